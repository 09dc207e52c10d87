//! Is the Workspace accepted, and which objects does it ask for? Pure.
use crate::controllers::reference::{Refusal, Tenancy};
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
    let first = others.into_iter().find(|other| {
        other.name_any() == name
            && other.spec.organization_ref == workspace.spec.organization_ref
            && other.uid() != workspace.uid()
            && age(other) < age(workspace)
    });
    if let Some(first) = first {
        return Err(Refusal::new(
            reason::NAME_CONFLICT,
            format!(
                "Organization {:?} has a Workspace {name:?} already, in namespace {:?}; choose another name",
                tenancy.slug,
                first.namespace().unwrap_or_default()
            ),
        ));
    }
    Ok(Accepted { id, name, namespace, tenancy })
}

/// Who was first; the uid decides between two of the same second.
fn age(workspace: &Workspace) -> (Option<i64>, Option<String>) {
    (workspace.creation_timestamp().map(|time| time.0.as_second()), workspace.uid())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::controllers::workspace::tests::{tenancy, web};
    use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

    #[test]
    fn of_two_with_one_name_the_first_stays() {
        let mut first = web();
        first.metadata.creation_timestamp = Some(Time(Timestamp::from_second(10).unwrap()));
        let mut second = web();
        second.metadata.namespace = Some("team-b".into());
        second.metadata.uid = Some("ffffffff-1111-4222-8333-444455556666".into());
        second.metadata.creation_timestamp = Some(Time(Timestamp::from_second(20).unwrap()));
        assert!(validate(&first, Ok(tenancy()), [&first, &second]).is_ok());
        let refusal = validate(&second, Ok(tenancy()), [&first, &second]).unwrap_err();
        assert_eq!(refusal.reason, reason::NAME_CONFLICT);
        assert!(refusal.message.contains("team-a"), "{}", refusal.message);
        second.spec.organization_ref.name = "globex".into();
        assert!(validate(&second, Ok(tenancy()), [&first, &second]).is_ok(), "another organization");
    }
}
