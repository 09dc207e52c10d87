//! Is the Workspace accepted, and which objects does it ask for? Pure.
use super::model;
use crate::controllers::reference::{self, Refusal, Tenancy};
use agentapi_crds::{Workspace, conditions::reason};
use kube::ResourceExt;
use uuid::Uuid;

/// An accepted Workspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// `metadata.uid`.
    pub id: Uuid,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// The Organization.
    pub tenancy: Tenancy,
}

/// Check the Workspace against the others of its organization.
pub fn validate<'a>(
    workspace: &Workspace,
    tenancy: Result<Tenancy, Refusal>,
    others: impl IntoIterator<Item = &'a Workspace>,
) -> Result<Accepted, Refusal> {
    let tenancy = tenancy?;
    let (name, namespace) = (workspace.name_any(), workspace.namespace().unwrap_or_default());
    let id = workspace
        .uid()
        .and_then(|uid| Uuid::parse_str(&uid).ok())
        .ok_or_else(|| Refusal::new(reason::INVALID, "metadata.uid is not a UUID; the API server sets it"))?;
    if let Some(name) = model::set_twice(&workspace.spec.agent) {
        return Err(Refusal::new(
            reason::INVALID,
            format!("spec.agent.env sets {name}, and so does spec.agent.model; take it out of spec.agent.env"),
        ));
    }
    // Only who was let in can hold a name: else a namespace that is not admitted could take everybody's.
    let before: Vec<&Workspace> = others
        .into_iter()
        .filter(|other| {
            other.spec.organization_ref == workspace.spec.organization_ref
                && reference::precedes(*other, workspace, is_accepted)
        })
        .collect();
    if before.iter().any(|other| other.name_any() == name) {
        return Err(Refusal::new(
            reason::NAME_CONFLICT,
            format!("Organization {:?} has a Workspace {name:?} already; choose another name", tenancy.slug),
        ));
    }
    if before.len() >= tenancy.workspaces {
        return Err(Refusal::new(
            reason::QUOTA_EXCEEDED,
            format!(
                "Organization {:?} may have {} Workspaces and has them; delete one or raise spec.quota.workspaces of the \
                 Organization",
                tenancy.slug, tenancy.workspaces
            ),
        ));
    }
    Ok(Accepted { id, name, namespace, tenancy })
}

/// Refused ones take no place: anybody can make one.
pub(crate) fn is_accepted(workspace: &Workspace) -> bool {
    reference::is_accepted(workspace, workspace.status.as_ref().map(|status| &status.conditions))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::controllers::workspace::tests::{tenancy, web};
    use agentapi_crds::conditions::ACCEPTED;
    use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

    fn accepted() -> Option<agentapi_crds::workspace::WorkspaceStatus> {
        serde_json::from_value(serde_json::json!({"conditions": [{
            "type": ACCEPTED, "status": "True", "reason": "Accepted", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}]}))
        .unwrap()
    }

    #[test]
    fn the_quota_counts_accepted_workspaces_that_were_there_before() {
        let mut older = web();
        older.metadata.name = Some("older".into());
        older.metadata.uid = Some("00000000-1111-4222-8333-444455556666".into());
        let one = Tenancy { workspaces: 1, ..tenancy() };
        assert!(validate(&web(), Ok(one.clone()), [&older, &web()]).is_ok(), "it was never accepted");
        older.status = accepted();
        let refusal = validate(&web(), Ok(one.clone()), [&older, &web()]).unwrap_err();
        assert_eq!(refusal.reason, reason::QUOTA_EXCEEDED);
        assert!(validate(&older, Ok(one), [&older, &web()]).is_ok(), "who was first stays");
        let none = Tenancy { workspaces: 0, ..tenancy() };
        assert!(validate(&web(), Ok(none), []).is_err());
    }

    #[test]
    fn a_variable_that_the_model_sets_too_is_refused_by_name() {
        let mut workspace = web();
        workspace.spec.agent.model = serde_json::from_value(serde_json::json!({
            "provider": "Anthropic", "baseUrl": "https://llm.acme.example",
            "credentialsSecretRef": {"name": "anthropic", "key": "key"}}))
        .unwrap();
        let refusal = validate(&workspace, Ok(tenancy()), []).unwrap_err();
        assert_eq!(refusal.reason, reason::INVALID);
        assert!(refusal.message.contains("ANTHROPIC_BASE_URL"), "{}", refusal.message);
    }

    #[test]
    fn of_two_with_one_name_the_first_stays() {
        let mut first = web();
        first.metadata.creation_timestamp = Some(Time(Timestamp::from_second(10).unwrap()));
        let mut second = web();
        second.metadata.namespace = Some("team-b".into());
        second.metadata.uid = Some("ffffffff-1111-4222-8333-444455556666".into());
        second.metadata.creation_timestamp = Some(Time(Timestamp::from_second(20).unwrap()));
        assert!(validate(&first, Ok(tenancy()), [&first, &second]).is_ok());
        assert!(validate(&second, Ok(tenancy()), [&first, &second]).is_ok(), "a refused one holds no name");
        first.status = accepted();
        let refusal = validate(&second, Ok(tenancy()), [&first, &second]).unwrap_err();
        assert_eq!(refusal.reason, reason::NAME_CONFLICT);
        assert!(!refusal.message.contains("team-a"), "names a namespace of others: {}", refusal.message);
        second.spec.organization_ref.name = "globex".into();
        assert!(validate(&second, Ok(tenancy()), [&first, &second]).is_ok(), "another organization");
    }
}
