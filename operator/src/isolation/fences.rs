//! Fences in the cluster: the policies, bindings and labels of a tenant namespace against what they must be. Reconciles
//! ask here before they repair, so that a breach is written down although its repair is quick.
use super::{Outcome, Probe, board::settle};
use crate::{
    apply::{self, Applicable, Ownership},
    context::Context,
    controllers::organization::build::{Contents, Foundation, Prepared},
    error::{Error, Result},
};
use agentapi_crds::{McpConnection, Organization, conditions::NAMESPACE_READY, names};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        core::v1::Namespace,
        networking::v1::NetworkPolicy,
        rbac::v1::{RoleBinding, Subject},
    },
};
use kube::{Api, Resource, ResourceExt, api::ListParams};
use std::collections::BTreeMap;

/// What was found in a tenant namespace.
#[derive(Default)]
pub struct Inspection {
    findings: BTreeMap<Probe, Vec<String>>,
    foreign_policies: Vec<NetworkPolicy>,
    foreign_bindings: Vec<RoleBinding>,
    seen: Seen,
}

/// The objects that a judgement was made of. A reconcile writes over these and does not look again: what falls between
/// two looks would be put back by the second, and told by nobody.
#[derive(Default)]
pub struct Seen {
    /// The namespace itself.
    pub namespace: Option<Namespace>,
    /// All policies in it.
    pub policies: Vec<NetworkPolicy>,
    /// All bindings in it.
    pub bindings: Vec<RoleBinding>,
}

impl Inspection {
    fn find(&mut self, probe: Probe, finding: String) {
        self.findings.entry(probe).or_default().push(finding);
    }

    /// One outcome for each of the three probes.
    pub fn outcomes(&self) -> Vec<(Probe, Outcome)> {
        let of = |probe: Probe, passed: &str| {
            (probe, Outcome::of(self.findings.get(&probe).map_or(&[], Vec::as_slice), passed))
        };
        vec![
            of(Probe::NetworkPolicies, "they are the operator's and as it wrote them"),
            of(Probe::RoleBindings, "none gives pods of tenants a right"),
            of(Probe::PodSecurity, "restricted"),
        ]
    }

    /// Is there anything to repair?
    pub fn is_breached(&self) -> bool {
        !self.findings.is_empty()
    }
}

/// A namespace that is not in place yet has no fences that could be missing.
pub fn is_in_place(organization: &Organization) -> bool {
    organization.metadata.deletion_timestamp.is_none()
        && organization
            .status
            .iter()
            .flat_map(|status| &status.conditions)
            .any(|condition| condition.type_ == NAMESPACE_READY && condition.status == "True")
}

/// Before a reconcile of the Organization writes: tell what is wrong, and take away what nobody wants. What it writes over
/// then, if the fences can be looked at: not so in a namespace that is not in place yet.
pub async fn before_organization(
    context: &Context,
    organization: &Organization,
    foundation: &Foundation<Prepared>,
    contents: &Contents<Prepared>,
) -> Option<Seen> {
    if !is_in_place(organization) {
        return None;
    }
    match inspect(context, organization, foundation, contents).await {
        Ok(inspection) => {
            let outcomes = inspection.outcomes();
            let breached: Vec<_> =
                outcomes.into_iter().filter(|(probe, _)| inspection.findings.contains_key(probe)).collect();
            settle(context, organization, &breached).await;
            remove_foreign(context, &inspection).await;
            Some(inspection.seen)
        }
        Err(error) => {
            tracing::warn!(%error, "can't look at the fences before they are applied");
            None
        }
    }
}

/// Write the policy of a Workspace or an `McpConnection`; tells what is wrong with the live one before it is put right.
pub async fn apply_policy(
    context: &Context,
    slug: &str,
    wanted: NetworkPolicy,
    was_in_place: bool,
) -> Result<NetworkPolicy> {
    let policies = Api::<NetworkPolicy>::namespaced(context.client.clone(), &names::tenant_namespace(slug));
    let live = context.applier.live(&policies, &wanted.name_any()).await?;
    if let Some(organization) = context.stores.organization(slug).filter(|organization| is_in_place(organization))
        && let Some(finding) = state_of(&wanted, live.as_ref(), was_in_place)
    {
        settle(context, &organization, &[(Probe::NetworkPolicies, Outcome::breached(&[finding]))]).await;
    }
    context.applier.apply_over(&policies, live, wanted, Ownership::Exclusive).await
}

/// Compare everything in the tenant namespace that keeps it apart with what it must be.
pub async fn inspect(
    context: &Context,
    organization: &Organization,
    foundation: &Foundation<Prepared>,
    contents: &Contents<Prepared>,
) -> Result<Inspection> {
    let mut inspection = Inspection::default();
    let namespace = foundation.namespace.name_any();
    // Before the list and after it: the policy of a Workspace that goes just now is nobody's for a moment, and no opening.
    let mut known = known_policies(context, organization, contents);
    let policies: Vec<NetworkPolicy> = list(context, &namespace).await?;
    known.extend(known_policies(context, organization, contents));
    for wanted in [&contents.default_deny, &contents.session_traffic] {
        let live = policies.iter().find(|live| live.name_any() == wanted.name_any());
        if let Some(finding) = state_of(wanted, live, true) {
            inspection.find(Probe::NetworkPolicies, finding);
        }
    }
    for policy in &policies {
        if policy.metadata.deletion_timestamp.is_none() && !known.contains(&policy.name_any()) {
            let finding =
                format!("NetworkPolicy {} is not the operator's; policies only ever add openings", policy.name_any());
            inspection.find(Probe::NetworkPolicies, finding);
            inspection.foreign_policies.push(policy.clone());
        }
    }
    let bindings: Vec<RoleBinding> = list(context, &namespace).await?;
    for wanted in [&foundation.operator_binding, &foundation.runtime_binding] {
        let live = bindings.iter().find(|live| live.name_any() == wanted.name_any());
        if let Some(live) = live
            && let Some(finding) = state_of(wanted, Some(live), true)
        {
            inspection.find(Probe::RoleBindings, finding);
        }
    }
    for binding in &bindings {
        let ours = [&foundation.operator_binding, &foundation.runtime_binding];
        if ours.iter().any(|wanted| wanted.name_any() == binding.name_any()) {
            continue;
        }
        if let Some(subject) =
            binding.subjects.iter().flatten().find(|subject| is_reached_by_tenants(subject, &namespace))
        {
            let finding = format!(
                "RoleBinding {} gives {} {} the role {}",
                binding.name_any(),
                subject.kind,
                subject.name,
                binding.role_ref.name
            );
            inspection.find(Probe::RoleBindings, finding);
            inspection.foreign_bindings.push(binding.clone());
        }
    }
    let live = context.applier.live(&Api::<Namespace>::all(context.client.clone()), &namespace).await?;
    if let Some(live) = &live {
        for (label, value) in
            foundation.namespace.labels().iter().filter(|(label, _)| label.starts_with("pod-security"))
        {
            let shown = live.labels().get(label).map_or("missing", String::as_str);
            if shown != value && live.metadata.deletion_timestamp.is_none() {
                inspection
                    .find(Probe::PodSecurity, format!("label {label} of the namespace is {shown} and not {value}"));
            }
        }
    }
    inspection.seen = Seen { namespace: live, policies, bindings };
    Ok(inspection)
}

/// Take away what is not ours. Our own objects are repaired by the reconcile.
pub async fn remove_foreign(context: &Context, inspection: &Inspection) {
    for policy in &inspection.foreign_policies {
        take_away(context, policy).await;
    }
    for binding in &inspection.foreign_bindings {
        take_away(context, binding).await;
    }
}

async fn take_away<K>(context: &Context, object: &K)
where
    K: Applicable + Resource<Scope = NamespaceResourceScope>,
{
    let api = Api::<K>::namespaced(context.client.clone(), &object.namespace().unwrap_or_default());
    if let Err(error) = context.applier.delete_seen(&api, object).await {
        tracing::warn!(%error, "can't take away what opens a tenant namespace; it is tried again");
    }
}

async fn list<K>(context: &Context, namespace: &str) -> Result<Vec<K>>
where
    K: Applicable + Resource<Scope = NamespaceResourceScope>,
{
    let api = Api::<K>::namespaced(context.client.clone(), namespace);
    let listed = api.list(&ListParams::default()).await;
    Ok(listed.map_err(|error| Error::kube("list", &K::kind(&()), namespace, error))?.items)
}

/// What is wrong with an object of ours, if anything is.
fn state_of<K: Applicable>(wanted: &K, live: Option<&K>, was_in_place: bool) -> Option<String> {
    let what = || format!("{} {}", K::kind(&()), wanted.name_any());
    match live {
        None => was_in_place.then(|| format!("{} is missing", what())),
        Some(live) if apply::tampered(wanted, live) => Some(format!("{} was changed by somebody else", what())),
        Some(_) => None,
    }
}

/// Names of the policies that belong into the namespace.
fn known_policies(context: &Context, organization: &Organization, contents: &Contents<Prepared>) -> Vec<String> {
    let name = organization.name_any();
    let workspaces = context.stores.workspaces.state_filter(|workspace| workspace.spec.organization_ref.name == name);
    let mut known: Vec<String> =
        workspaces.iter().map(|workspace| names::pod_template(&workspace.name_any())).collect();
    let connections = context.stores.connections.state_filter(|connection: &McpConnection| {
        connection.spec.organization_ref.name == name && connection.spec.transport.stdio.is_some()
    });
    known.extend(connections.iter().map(|connection| names::mcp_server(&connection.name_any())));
    known.extend([contents.default_deny.name_any(), contents.session_traffic.name_any()]);
    known
}

/// Could a pod of a tenant, or anybody at all, act as this subject? People of the platform team may be given rights in a
/// tenant namespace, for example to read its database Secret.
fn is_reached_by_tenants(subject: &Subject, namespace: &str) -> bool {
    match subject.kind.as_str() {
        "ServiceAccount" => {
            let of = subject.namespace.as_deref().unwrap_or(namespace);
            of.starts_with("agentapi-") && of != names::SYSTEM_NAMESPACE
        }
        "Group" => {
            ["system:authenticated", "system:unauthenticated", "system:serviceaccounts"]
                .contains(&subject.name.as_str())
                || subject.name.strip_prefix("system:serviceaccounts:").is_some_and(|of| of.starts_with("agentapi-"))
        }
        "User" => subject.name == "system:anonymous" || subject.name.starts_with("system:serviceaccount:agentapi-"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::a_pod_of_the_tenant("ServiceAccount", "session", None, true)]
    #[case::a_pod_of_another("ServiceAccount", "default", Some("agentapi-globex"), true)]
    #[case::every_pod("Group", "system:serviceaccounts", None, true)]
    #[case::every_pod_of_one("Group", "system:serviceaccounts:agentapi-acme", None, true)]
    #[case::everybody("Group", "system:authenticated", None, true)]
    #[case::by_name("User", "system:serviceaccount:agentapi-acme:session", None, true)]
    #[case::the_platform_team("Group", "platform-admins", None, false)]
    #[case::somebody("User", "jane", None, false)]
    #[case::a_monitoring_agent("ServiceAccount", "prometheus", Some("monitoring"), false)]
    fn only_what_pods_of_tenants_could_use_is_taken_away(
        #[case] kind: &str,
        #[case] name: &str,
        #[case] namespace: Option<&str>,
        #[case] reached: bool,
    ) {
        let subject =
            Subject { kind: kind.into(), name: name.into(), namespace: namespace.map(Into::into), api_group: None };
        assert_eq!(is_reached_by_tenants(&subject, "agentapi-acme"), reached);
    }
}
