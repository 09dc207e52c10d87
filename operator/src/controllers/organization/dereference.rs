//! What a reconcile of an Organization reads from the cluster.
use super::build::{ANNOTATION_ROTATED_AT, ANNOTATION_ROTATION, KEY_PASSWORD};
use crate::{
    context::Context,
    error::{Error, Result},
    tenancy::credentials::Credentials,
};
use agentapi_crds::names;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::{Api, ResourceExt};

/// State of the name that the tenant's namespace must have.
#[derive(Debug, PartialEq, Eq)]
pub enum NamespaceState {
    /// It is free or ours.
    Ours,
    /// It is going; it can be made again when it is gone.
    Terminating,
    /// Somebody else made it.
    Foreign,
}

/// Whose the tenant's namespace is. A label could have been edited away; that we have applied it can't.
pub async fn namespace_state(context: &Context, name: &str) -> Result<NamespaceState> {
    let live = Api::<Namespace>::all(context.client.clone())
        .get_metadata_opt(name)
        .await
        .map_err(|e| Error::kube("get", "Namespace", name, e))?;
    let Some(live) = live else { return Ok(NamespaceState::Ours) };
    let ours = live
        .managed_fields()
        .iter()
        .any(|entry| entry.manager.as_deref() == Some(names::OPERATOR) && entry.operation.as_deref() == Some("Apply"));
    Ok(match (ours, live.metadata.deletion_timestamp.is_some()) {
        (_, true) => NamespaceState::Terminating,
        (true, false) => NamespaceState::Ours,
        (false, false) => NamespaceState::Foreign,
    })
}

/// The read-only role's password as the tenant's Secret has it.
pub async fn credentials(context: &Context, namespace: &str) -> Result<Option<Credentials>> {
    let name = names::SECRET_DATABASE;
    let secret = Api::<Secret>::namespaced(context.client.clone(), namespace)
        .get_opt(name)
        .await
        .map_err(|e| Error::kube("get", "Secret", format!("{namespace}/{name}"), e))?;
    Ok(secret.as_ref().and_then(parse))
}

fn parse(secret: &Secret) -> Option<Credentials> {
    let password = secret.data.as_ref()?.get(KEY_PASSWORD)?.0.clone();
    let annotations = secret.annotations();
    Some(Credentials {
        password: String::from_utf8(password).ok()?.into(),
        rotated_at: annotations.get(ANNOTATION_ROTATED_AT)?.parse().ok()?,
        rotation: annotations.get(ANNOTATION_ROTATION).cloned().unwrap_or_default(),
    })
}
