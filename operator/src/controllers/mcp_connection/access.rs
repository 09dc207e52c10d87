//! Which Secrets of a tenant namespace the runtime may get: those that the organization's connections name, one by one,
//! and no others. One Role per namespace; the build is pure.
use crate::{apply::Ownership, context::Context, controllers::workspace::dereference::tenancy, error::Result};
use agentapi_crds::{McpConnection, names};
use k8s_openapi::api::rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject};
use kube::{Api, ResourceExt, api::ObjectMeta};
use std::collections::{BTreeMap, BTreeSet};

/// The Role and its binding to the runtime.
#[derive(Debug)]
pub struct Access {
    /// The right to get each Secret.
    pub role: Role,
    /// For the runtime alone.
    pub binding: RoleBinding,
}

/// Write what the runtime may get in this Organization's namespace, as of now.
pub async fn apply(context: &Context, organization: &str) -> Result<()> {
    let connections = context
        .stores
        .connections
        .state_filter(|connection: &McpConnection| connection.spec.organization_ref.name == organization);
    let admitted = connections.iter().filter(|connection| {
        let namespace = connection.namespace().unwrap_or_default();
        connection.metadata.deletion_timestamp.is_none() && tenancy(context, organization, &namespace).is_ok()
    });
    let secrets = admitted.flat_map(|connection| connection.spec.secrets_of_runtime());
    let account = (context.config.system_namespace.as_str(), context.config.runtime_service_account.as_str());
    let Access { role, binding } = build(organization, account, secrets);
    let namespace = names::tenant_namespace(organization);
    let roles = Api::<Role>::namespaced(context.client.clone(), &namespace);
    let bindings = Api::<RoleBinding>::namespaced(context.client.clone(), &namespace);
    context.applier.apply(&roles, role, Ownership::Exclusive).await?;
    context.applier.apply(&bindings, binding, Ownership::Exclusive).await?;
    Ok(())
}

/// `account` is namespace and name of the runtime's ServiceAccount.
fn build<'a>(organization: &str, account: (&str, &str), secrets: impl Iterator<Item = &'a str>) -> Access {
    // The rules of the CRD refuse these names too; a server without them does not, and they are never the runtime's.
    let named: BTreeSet<String> = secrets
        .filter(|name| !name.starts_with("agentapi-") && !name.ends_with("-session"))
        .map(str::to_owned)
        .collect();
    let metadata = ObjectMeta {
        name: Some(names::RUNTIME_MCP_ROLE.to_owned()),
        namespace: Some(names::tenant_namespace(organization)),
        labels: Some(BTreeMap::from([
            (names::LABEL_MANAGED_BY.to_owned(), names::OPERATOR.to_owned()),
            (names::LABEL_ORGANIZATION.to_owned(), organization.to_owned()),
        ])),
        ..ObjectMeta::default()
    };
    // A rule without names would be a rule about all Secrets.
    let rules = if named.is_empty() {
        Vec::new()
    } else {
        vec![PolicyRule {
            api_groups: Some(vec![String::new()]),
            resources: Some(vec!["secrets".to_owned()]),
            resource_names: Some(named.into_iter().collect()),
            verbs: vec!["get".to_owned()],
            ..PolicyRule::default()
        }]
    };
    Access {
        role: Role { metadata: metadata.clone(), rules: Some(rules) },
        binding: RoleBinding {
            metadata,
            role_ref: RoleRef {
                api_group: "rbac.authorization.k8s.io".into(),
                kind: "Role".into(),
                name: names::RUNTIME_MCP_ROLE.into(),
            },
            subjects: Some(vec![Subject {
                kind: "ServiceAccount".into(),
                name: account.1.into(),
                namespace: Some(account.0.into()),
                api_group: None,
            }]),
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const ACCOUNT: (&str, &str) = (names::SYSTEM_NAMESPACE, names::RUNTIME);

    #[test]
    fn each_secret_is_named_once_and_those_of_the_operator_never() {
        let secrets = ["github-app", "tracker", "github-app", "agentapi-data-key", "w-web-1-session"];
        let Access { role, binding } = build("acme", ACCOUNT, secrets.into_iter());
        insta::assert_yaml_snapshot!("access", (role, binding));
    }

    #[test]
    fn without_a_name_there_is_no_rule_at_all() {
        assert_eq!(build("acme", ACCOUNT, std::iter::empty()).role.rules, Some(Vec::new()));
        assert_eq!(build("acme", ACCOUNT, ["agentapi-database"].into_iter()).role.rules, Some(Vec::new()));
    }
}
