//! Deleting an Organization: no one can take on its roles any more, then its namespace goes, then the
//! finalizer. Nothing here waits for ever: after the deadline the object goes although Postgres did not
//! answer, and the sweep (`controllers::database`) finishes in Postgres what is left, by the deletion policy
//! that is stored in the organization's row.
use super::{SOON, status::Progress, validate::validate, write_status};
use crate::{
    context::{Context, jittered},
    error::{Error, Result},
    tenancy,
};
use agentapi_crds::{Organization, conditions::reason, names};
use k8s_openapi::{
    api::core::v1::Namespace,
    jiff::{SignedDuration, Timestamp},
};
use kube::{Api, ResourceExt, runtime::controller::Action};

use super::dereference::{self, NamespaceState};

/// One step of the removal.
pub async fn remove(organization: &Organization, context: &Context) -> Result<Action> {
    if !organization.finalizers().iter().any(|finalizer| finalizer == names::FINALIZER) {
        return Ok(Action::await_change());
    }
    let in_cluster = remove_namespace(organization, context).await?;
    let in_postgres = remove_from_postgres(organization, context).await;
    if in_cluster.is_none() && in_postgres.is_none() {
        return release(organization, context).await;
    }
    if overdue(organization, context.now(), context.config.deletion_deadline_seconds) {
        tracing::warn!(organization = %organization.name_any(), ?in_cluster, ?in_postgres,
            "the deadline of the deletion has passed; what is left is swept later");
        return release(organization, context).await;
    }
    let progress = |left: Option<String>, done: &str| match left {
        Some(left) => Progress::Waiting(reason::DELETING, left),
        None => Progress::Waiting(reason::DELETING, done.to_owned()),
    };
    let namespace = progress(in_cluster, "the namespace is gone");
    let database = progress(in_postgres, "the roles are gone");
    write_status(organization, context, &namespace, &database, None).await?;
    Ok(Action::requeue(jittered(SOON)))
}

async fn release(organization: &Organization, context: &Context) -> Result<Action> {
    let organizations = Api::<Organization>::all(context.client.clone());
    context.applier.finalizer(&organizations, organization, names::FINALIZER, false).await?;
    Ok(Action::await_change())
}

/// What is left in the cluster.
async fn remove_namespace(organization: &Organization, context: &Context) -> Result<Option<String>> {
    let name = names::tenant_namespace(&organization.name_any());
    let namespaces = Api::<Namespace>::all(context.client.clone());
    match dereference::namespace_state(context, &name).await? {
        NamespaceState::Foreign => Ok(None),
        NamespaceState::Terminating => Ok(Some(format!("waits for namespace {name} to go"))),
        NamespaceState::Ours => {
            let live =
                namespaces.get_metadata_opt(&name).await.map_err(|e| Error::kube("get", "Namespace", &name, e))?;
            if live.is_none() {
                return Ok(None);
            }
            context.applier.delete(&namespaces, &name).await?;
            Ok(Some(format!("waits for namespace {name} to go")))
        }
    }
}

/// What is left in Postgres.
async fn remove_from_postgres(organization: &Organization, context: &Context) -> Option<String> {
    let Ok(tenant) = validate(organization) else { return None };
    let removed = tenancy::organization::remove(
        &context.database,
        tenant.id,
        &tenant.slug,
        tenant.deletion_policy,
        &context.metrics,
    )
    .await;
    removed.err().map(|error| {
        tracing::warn!(%error, "can't remove the organization from Postgres yet");
        format!(
            "waits for Postgres ({error}); after {} s the Organization goes anyway and the roles are removed later",
            context.config.deletion_deadline_seconds
        )
    })
}

fn overdue(organization: &Organization, now: Timestamp, seconds: u32) -> bool {
    let since = organization.metadata.deletion_timestamp.as_ref().map_or(now, |time| time.0);
    now.duration_since(since) >= SignedDuration::from_secs(i64::from(seconds))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::controllers::organization::tests::acme;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    #[test]
    fn the_deadline_counts_from_the_deletion() {
        let mut organization = acme();
        let at = |second| Timestamp::from_second(second).unwrap();
        assert!(!overdue(&organization, at(1000), 10), "it is not being deleted");
        organization.metadata.deletion_timestamp = Some(Time(at(1000)));
        assert!(!overdue(&organization, at(1009), 10));
        assert!(overdue(&organization, at(1010), 10));
    }
}
