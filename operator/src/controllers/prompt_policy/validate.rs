//! Is the policy accepted, and is its template good? Pure.
use crate::{
    controllers::{
        mcp_connection::validate::workspace_id,
        reference::{self, Refusal, Tenancy},
    },
    records::PolicyRow,
};
use agentapi_crds::{PromptPolicy, Workspace, conditions::reason, prompt_policy::Scope};
use agentapi_prompts::template;
use kube::ResourceExt;
use serde_json::json;
use uuid::Uuid;

/// What becomes of a policy.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// It goes to Postgres.
    Good(Box<PolicyRow>),
    /// It is accepted; its template does not parse, and the last good one stays.
    BadTemplate(String),
    /// It is not accepted.
    Refused(Refusal),
}

/// Check a policy against the others of its organization. `system_namespace` is where Global policies may come from.
pub fn validate<'a>(
    policy: &PromptPolicy,
    organization: Option<Result<Tenancy, Refusal>>,
    workspace: Option<&Workspace>,
    system_namespace: &str,
    others: impl IntoIterator<Item = &'a PromptPolicy>,
) -> Verdict {
    if let Some(Ok(tenancy)) = &organization
        && policy.spec.scope != Scope::Global
        && let Err(refusal) = has_a_place(policy, tenancy, others)
    {
        return Verdict::Refused(refusal);
    }
    let (organization, workspace) = match references(policy, organization, workspace, system_namespace) {
        Ok(references) => references,
        Err(refusal) => return Verdict::Refused(refusal),
    };
    let Some(id) = policy.uid().and_then(|uid| Uuid::parse_str(&uid).ok()) else {
        return Verdict::Refused(Refusal::new(reason::INVALID, "metadata.uid is not a UUID; the API server sets it"));
    };
    if let Err(problem) = template::check(&policy.spec.template, &policy.spec.variables) {
        return Verdict::BadTemplate(problem);
    }
    Verdict::Good(Box::new(PolicyRow {
        id,
        organization,
        workspace,
        scope: policy.spec.scope.as_str(),
        name: policy.name_any(),
        namespace: policy.namespace().unwrap_or_default(),
        priority: policy.spec.priority,
        locked: policy.spec.locked,
        template: policy.spec.template.clone(),
        spec: serde_json::to_value(&policy.spec).unwrap_or_else(|_| json!({})),
        generation: policy.metadata.generation.unwrap_or_default(),
    }))
}

/// Each one is read, parsed and rendered for the sessions of its organization.
fn has_a_place<'a>(
    policy: &PromptPolicy,
    tenancy: &Tenancy,
    others: impl IntoIterator<Item = &'a PromptPolicy>,
) -> Result<(), Refusal> {
    let before = others.into_iter().filter(|other| {
        other.spec.organization_ref == policy.spec.organization_ref && reference::precedes(*other, policy, is_accepted)
    });
    if before.count() >= tenancy.prompt_policies {
        let message = format!(
            "Organization {:?} may have {} PromptPolicies and has them; delete one or raise spec.quota.promptPolicies \
             of the Organization",
            tenancy.slug, tenancy.prompt_policies
        );
        return Err(Refusal::new(reason::QUOTA_EXCEEDED, message));
    }
    Ok(())
}

/// Refused ones take no place: anybody can make one.
pub(crate) fn is_accepted(policy: &PromptPolicy) -> bool {
    reference::is_accepted(policy, policy.status.as_ref().map(|status| &status.conditions))
}

type References = (Option<Uuid>, Option<Uuid>);

fn references(
    policy: &PromptPolicy,
    organization: Option<Result<Tenancy, Refusal>>,
    workspace: Option<&Workspace>,
    system_namespace: &str,
) -> Result<References, Refusal> {
    let needs = |what: &str| Refusal::new(reason::INVALID, format!("a policy of this scope needs {what}"));
    match policy.spec.scope {
        Scope::Global if policy.namespace().as_deref() == Some(system_namespace) => Ok((None, None)),
        Scope::Global => Err(Refusal::new(
            reason::SCOPE_NOT_ALLOWED,
            format!("scope Global works only in namespace {system_namespace:?}; use scope Organization here"),
        )),
        Scope::Organization => {
            let tenancy = organization.ok_or_else(|| needs("organizationRef"))??.in_postgres()?;
            Ok((Some(tenancy.id), None))
        }
        Scope::Workspace => {
            let tenancy = organization.ok_or_else(|| needs("organizationRef"))??.in_postgres()?;
            let reference = policy.spec.workspace_ref.as_ref().ok_or_else(|| needs("workspaceRef"))?;
            let workspace = workspace.ok_or_else(|| {
                Refusal::new(
                    reason::WORKSPACE_NOT_FOUND,
                    format!(
                        "there is no Workspace {:?} in this namespace; create it or correct workspaceRef",
                        reference.name
                    ),
                )
            })?;
            Ok((Some(tenancy.id), Some(workspace_id(workspace, &tenancy)?)))
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use crate::controllers::workspace::tests::{tenancy, web};
    use serde_json::Value;

    pub(crate) fn policy(spec: &Value) -> PromptPolicy {
        serde_json::from_value(json!({
            "apiVersion": "agentapi.dev/v1alpha1", "kind": "PromptPolicy",
            "metadata": {"name": "rules", "namespace": "team-a", "uid": "3b8e4a5c-1111-4222-8333-444455556666", "generation": 4},
            "spec": spec,
        }))
        .unwrap()
    }

    fn refused(verdict: Verdict) -> Refusal {
        match verdict {
            Verdict::Refused(refusal) => refusal,
            other => panic!("not refused: {other:?}"),
        }
    }

    #[test]
    fn global_policies_come_from_the_operators_namespace_only() {
        let mut global = policy(&json!({"scope": "Global", "template": "Be kind."}));
        assert_eq!(refused(validate(&global, None, None, "agentapi-system", [])).reason, reason::SCOPE_NOT_ALLOWED);
        global.metadata.namespace = Some("agentapi-system".into());
        let Verdict::Good(row) = validate(&global, None, None, "agentapi-system", []) else { panic!("refused") };
        assert_eq!((row.organization, row.scope), (None, "Global"));
    }

    #[test]
    fn a_policy_of_a_workspace_needs_one_in_place() {
        let of_web = policy(&json!({
            "scope": "Workspace", "organizationRef": {"name": "acme"}, "workspaceRef": {"name": "web"}, "template": "x",
        }));
        let refusal = refused(validate(&of_web, Some(Ok(tenancy())), None, "agentapi-system", []));
        assert_eq!(refusal.reason, reason::WORKSPACE_NOT_FOUND);
        let mut ready = web();
        ready.status = serde_json::from_value(json!({"workspaceId": Uuid::from_u128(9), "conditions": []})).unwrap();
        let verdict = validate(&of_web, Some(Ok(tenancy())), Some(&ready), "agentapi-system", []);
        assert!(matches!(verdict, Verdict::Good(row) if row.workspace == Some(Uuid::from_u128(9))));
    }

    #[test]
    fn the_quota_counts_accepted_policies_of_the_organization_that_were_there_before() {
        let spec = json!({"scope": "Organization", "organizationRef": {"name": "acme"}, "template": "x"});
        let last = policy(&spec);
        let older = |number: u32, accepted: &str, organization: &str| {
            let mut made = policy(&spec);
            made.metadata.uid = Some(format!("00000000-1111-4222-8333-00000000000{number}"));
            made.spec.organization_ref.as_mut().unwrap().name = organization.into();
            made.status = serde_json::from_value(json!({"conditions": [{
                "type": "Accepted", "status": accepted, "reason": "Accepted", "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z"}]}))
            .unwrap();
            made
        };
        let verdict = |others: &[PromptPolicy]| validate(&last, Some(Ok(tenancy())), None, "agentapi-system", others);
        let mut others =
            vec![last.clone(), older(1, "True", "acme"), older(2, "False", "acme"), older(3, "True", "globex")];
        assert!(matches!(verdict(&others), Verdict::Good(_)), "{:?}", verdict(&others));
        others.push(older(4, "True", "acme"));
        let refusal = refused(verdict(&others));
        assert_eq!(refusal.reason, reason::QUOTA_EXCEEDED);
        assert!(refusal.revokes() && refusal.message.contains("may have 2"), "{}", refusal.message);
        // Nor does one that comes in the same second, and whose uid happens to be smaller, take a place from them.
        let mut later = policy(&spec);
        later.metadata.uid = Some("00000000-1111-4222-8333-000000000000".into());
        let refusal = refused(validate(&later, Some(Ok(tenancy())), None, "agentapi-system", &others));
        assert_eq!(refusal.reason, reason::QUOTA_EXCEEDED);
        // Who was first stays, and the platform's own take no place.
        let first = validate(&others[1], Some(Ok(tenancy())), None, "agentapi-system", &others);
        assert!(matches!(first, Verdict::Good(_)));
        let mut global = policy(&json!({"scope": "Global", "template": "x"}));
        global.metadata.namespace = Some("agentapi-system".into());
        assert!(matches!(validate(&global, None, None, "agentapi-system", &others), Verdict::Good(_)));
    }

    #[test]
    fn a_template_that_does_not_parse_is_not_a_refusal() {
        let bad = policy(&json!({"scope": "Organization", "organizationRef": {"name": "acme"}, "template": "{{"}));
        let verdict = validate(&bad, Some(Ok(tenancy())), None, "agentapi-system", []);
        assert!(matches!(verdict, Verdict::BadTemplate(message) if message.starts_with("line 1, column ")));
    }
}
