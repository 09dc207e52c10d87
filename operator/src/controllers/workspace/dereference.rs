//! What a reconcile of a Workspace reads.
use crate::{
    context::Context,
    controllers::reference::{self, Refusal, Tenancy},
    error::{Error, Result},
};
use agentapi_crds::names;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt, api::ListParams, runtime::reflector::ObjectRef};
use std::collections::BTreeMap;

/// The Organization of an object in `namespace`, if it admits it.
pub fn tenancy(context: &Context, organization: &str, namespace: &str) -> Result<Tenancy, Refusal> {
    let labels = context
        .stores
        .namespaces
        .get(&ObjectRef::new(namespace))
        .map_or_else(BTreeMap::new, |namespace| namespace.labels().clone());
    let found = context.stores.organization(organization);
    reference::resolve(found.as_deref(), organization, namespace, &labels)
}

/// The session pods of a Workspace, whatever pool they are in.
pub async fn pods(context: &Context, tenant_namespace: &str, name: &str, namespace: &str) -> Result<Vec<Pod>> {
    let selector = format!(
        "{}={},{}={name},{}={namespace}",
        names::LABEL_COMPONENT,
        names::COMPONENT_SESSION,
        names::LABEL_WORKSPACE,
        names::LABEL_WORKSPACE_NAMESPACE
    );
    let pods = Api::<Pod>::namespaced(context.client.clone(), tenant_namespace);
    let list = pods
        .list(&ListParams::default().labels(&selector))
        .await
        .map_err(|e| Error::kube("list", "Pod", selector, e))?;
    Ok(list.items)
}
