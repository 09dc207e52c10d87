//! What a policy adds to the prompts of sessions, for its status. Pure.
use agentapi_crds::{
    PromptPolicy,
    prompt_policy::{Effective, Scope},
};
use agentapi_prompts::{Facts, compose::digest, template};
use kube::ResourceExt;
use std::sync::Arc;

/// What the policy adds, next to these other ones of its name. `None`: its template does not work out.
pub fn effective(policy: &PromptPolicy, namesakes: &[Arc<PromptPolicy>]) -> Option<Effective> {
    let spec = &policy.spec;
    let organization = spec.organization_ref.as_ref().map_or("acme", |reference| &reference.name);
    let workspace = spec.workspace_ref.as_ref().map_or("web", |reference| &reference.name);
    let rendered =
        template::render(&spec.template, &spec.variables, &Facts::example_of(organization, workspace)).ok()?;
    let text = rendered.trim_matches(['\n', '\r', ' ', '\t']);
    let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
    Some(Effective {
        lines: if text.is_empty() { 0 } else { count(text.split('\n').count()) },
        bytes: count(text.len()),
        digest: digest(text),
        shadowed_by: shadow(policy, namesakes),
    })
}

/// The highest policy in whose place this one can't be put.
fn shadow(policy: &PromptPolicy, namesakes: &[Arc<PromptPolicy>]) -> Option<String> {
    let above = |other: &&Arc<PromptPolicy>| {
        let same_organization = other.spec.organization_ref == policy.spec.organization_ref;
        match (other.spec.scope, policy.spec.scope) {
            (Scope::Global, Scope::Organization | Scope::Workspace) => true,
            (Scope::Organization, Scope::Workspace) => same_organization,
            _ => false,
        }
    };
    let in_use = |other: &&Arc<PromptPolicy>| {
        other.spec.locked && other.status.as_ref().is_some_and(|status| status.active_generation.is_some())
    };
    let shadows = namesakes.iter().filter(|other| other.name_any() == policy.name_any()).filter(above).filter(in_use);
    let highest = shadows.min_by_key(|other| other.spec.scope != Scope::Global)?;
    let (scope, namespace) = (highest.spec.scope.as_str(), highest.namespace().unwrap_or_default());
    Some(format!("{scope} {namespace}/{}", highest.name_any()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::controllers::prompt_policy::validate::tests::policy;
    use serde_json::{Value, json};

    fn in_use(namespace: &str, spec: &Value) -> Arc<PromptPolicy> {
        let mut made = policy(spec);
        made.metadata.namespace = Some(namespace.into());
        made.status = serde_json::from_value(json!({"activeGeneration": 1, "conditions": []})).unwrap();
        Arc::new(made)
    }

    #[test]
    fn it_is_the_text_that_a_session_gets() {
        let own = policy(&json!({
            "scope": "Organization", "organizationRef": {"name": "globex"}, "template": "Hi {{ who }}.\nFrom {{ organization }}.\n",
            "variables": {"who": "you"},
        }));
        let shown = effective(&own, &[]).unwrap();
        assert_eq!((shown.lines, shown.bytes), (2, 20));
        assert_eq!(shown.digest, digest("Hi you.\nFrom globex."));
        assert_eq!(shown.shadowed_by, None);
    }

    #[test]
    fn only_a_locked_policy_above_that_is_in_use_shadows() {
        let of = |name: &str, locked: bool| json!({"scope": "Organization", "organizationRef": {"name": name}, "template": "x", "locked": locked});
        let own = policy(&json!({
            "scope": "Workspace", "organizationRef": {"name": "acme"}, "workspaceRef": {"name": "web"}, "template": "x",
        }));
        let shadow = |others: &[Arc<PromptPolicy>]| effective(&own, others).unwrap().shadowed_by;
        let mut waiting = (*in_use("team-a", &of("acme", true))).clone();
        waiting.status = None;
        let mut other_name = (*in_use("team-a", &of("acme", true))).clone();
        other_name.metadata.name = Some("other".into());
        let none = [
            in_use("team-a", &of("acme", false)),
            in_use("team-g", &of("globex", true)),
            Arc::new(waiting),
            Arc::new(other_name),
        ];
        assert_eq!(shadow(&none), None);
        let organization = in_use("team-a", &of("acme", true));
        assert_eq!(shadow(std::slice::from_ref(&organization)).as_deref(), Some("Organization team-a/rules"));
        let global = in_use("agentapi-system", &json!({"scope": "Global", "template": "x", "locked": true}));
        assert_eq!(shadow(&[organization, global]).as_deref(), Some("Global agentapi-system/rules"));
    }
}
