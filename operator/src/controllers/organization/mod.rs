//! Organization: the tenant namespace with what isolates it, and the tenant in Postgres.
pub mod apply;
pub mod build;
pub mod dereference;
mod network;
pub mod offboard;
pub mod remove;
pub mod status;
pub mod validate;

use crate::{
    context::{Context, jittered, within},
    envelope,
    error::{Error, Result},
    isolation,
    tenancy::{
        self, Meaning,
        credentials::{self, Credentials, Decision},
        organization::{Ensured, Tenant},
    },
};
use agentapi_crds::{Organization, conditions::reason, names, organization::OrganizationStatus};
use build::{Prepared, TenantSecrets};
use dereference::{Live, NamespaceState};
use k8s_openapi::jiff::SignedDuration;
use kube::{Api, Resource, ResourceExt, runtime::controller::Action};
use status::Progress;
use std::{sync::Arc, time::Duration};

/// One reconcile never takes longer.
const LIMIT: Duration = Duration::from_secs(40);
/// How often everything is looked at without a reason.
const RESYNC: Duration = Duration::from_secs(300);
/// How often the read-only login's password is tried.
const TRY_LOGIN_EVERY: Duration = Duration::from_secs(240);
/// How often we look again for something that does not tell us when it comes.
const SOON: Duration = Duration::from_secs(3);

/// Bring one Organization into order.
pub async fn reconcile(organization: Arc<Organization>, context: Arc<Context>) -> Result<Action> {
    // Boxed: the futures of so many writes are large.
    if organization.meta().deletion_timestamp.is_some() {
        within(LIMIT, Box::pin(remove::remove(&organization, &context))).await
    } else {
        within(LIMIT, Box::pin(present(&organization, &context))).await
    }
}

async fn present(organization: &Organization, context: &Context) -> Result<Action> {
    let tenant = match validate::validate(organization) {
        Ok(tenant) => tenant,
        Err(refusal) => {
            let failed = Progress::Failed(refusal.reason, refusal.message);
            write_status(organization, context, &failed, &failed).await?;
            return Ok(Action::await_change());
        }
    };
    let organizations = Api::<Organization>::all(context.client.clone());
    if !organization.finalizers().iter().any(|finalizer| finalizer == names::FINALIZER) {
        // The write comes back through the watch and starts the next reconcile.
        context.applier.finalizer(&organizations, organization, names::FINALIZER, true).await?;
        return Ok(Action::requeue(SOON));
    }
    let namespace = names::tenant_namespace(&tenant.slug);
    let progress = match dereference::namespace_state(context, &namespace).await? {
        NamespaceState::Ours => Progress::Done,
        NamespaceState::Terminating => Progress::Waiting(
            reason::PROGRESSING,
            format!("namespace {namespace} is being deleted; it is made again when it is gone"),
        ),
        NamespaceState::Foreign => Progress::Failed(
            reason::NAMESPACE_CONFLICT,
            format!("namespace {namespace} exists and is not ours; delete it or give the Organization another name"),
        ),
    };
    if progress != Progress::Done {
        let waiting = Progress::Waiting(reason::PROGRESSING, "waits for the namespace".into());
        write_status(organization, context, &progress, &waiting).await?;
        return Ok(Action::requeue(jittered(SOON)));
    }
    let foundation = build::foundation(&tenant, &context.config);
    let contents = build::contents(&tenant, &organization.spec.quota, &context.config);
    let seen = isolation::fences::before_organization(context, organization, &foundation, &contents).await;
    apply::foundation(context, foundation, seen.as_ref()).await?;
    Box::pin(apply::contents(context, &namespace, &tenant.slug, contents, seen.as_ref())).await?;
    super::workspace::apply::sweep_orphans(context, &namespace).await?;
    super::mcp_connection::apply::sweep_orphans(context, &namespace).await?;
    super::mcp_connection::access::apply(context, &tenant.slug).await?;

    let live = dereference::secrets(context, &namespace).await?;
    let InPostgres { progress: database, secrets } = in_postgres(organization, context, &tenant, live).await?;
    if let Some(secrets) = secrets {
        apply::secrets(context, &namespace, secrets).await?;
    }

    write_status(organization, context, &Progress::Done, &database).await?;
    Ok(Action::requeue(jittered(if database == Progress::Done { RESYNC } else { SOON })))
}

struct InPostgres {
    progress: Progress,
    secrets: Option<TenantSecrets<Prepared>>,
}

/// The tenant in Postgres. That it can't be reached is a value: the namespace must not wait for it.
async fn in_postgres(
    organization: &Organization,
    context: &Context,
    tenant: &Tenant,
    live: Live,
) -> Result<InPostgres> {
    let Live { credentials: live, data_keys: kept } = live;
    let failed = |error: &tenancy::Error| InPostgres { progress: unavailable(error), secrets: None };
    let ensured = match context.postgres() {
        Ok(pool) => {
            tenancy::organization::ensure(pool, tenant, &context.keys.now().master, kept, &context.metrics).await
        }
        Err(error) => Err(error),
    };
    let ensured = match ensured {
        Ok(ensured) => ensured,
        Err(error) => return Ok(failed(&error)),
    };
    let credentials = match credentials_for(organization, context, tenant, live, &ensured).await {
        Ok(credentials) => credentials,
        Err(Error::Database(error)) => return Ok(failed(&error)),
        Err(error) => return Err(error),
    };
    Ok(InPostgres {
        progress: Progress::Done,
        secrets: Some(build::secrets(tenant, &credentials, &context.tenant_database, &ensured.data_keys)),
    })
}

fn unavailable(error: &tenancy::Error) -> Progress {
    tracing::warn!(%error, "Postgres did not do it");
    match error {
        tenancy::Error::Envelope(error @ envelope::Error::DoesNotOpen(_)) => {
            Progress::Failed(reason::INVALID, error.to_string())
        }
        error if error.meaning() == Meaning::IdentityConflict => Progress::Failed(
            reason::IDENTITY_CONFLICT,
            "another Organization has the same issuer and organization claim; change identity.orgClaim here or there"
                .into(),
        ),
        error => Progress::Waiting(reason::DATABASE_UNAVAILABLE, format!("{error}; it is tried again")),
    }
}

async fn credentials_for(
    organization: &Organization,
    context: &Context,
    tenant: &Tenant,
    live: Option<Credentials>,
    ensured: &Ensured,
) -> Result<Credentials> {
    let rotation = organization.annotations().get(names::ANNOTATION_ROTATE).map_or("", String::as_str);
    let max_age = SignedDuration::from_hours(24 * i64::from(context.config.credential_max_age_days));
    let mut decision = credentials::decide(live, ensured.password_digest.as_deref(), rotation, context.now(), max_age);
    if let Decision::Keep(credentials) = &decision
        && context.logins.is_due(&tenant.slug, TRY_LOGIN_EVERY)
        && tenancy::organization::opens_login(&context.database, tenant, &credentials.password).await == Some(false)
    {
        decision = Decision::Rotate("the login has changed its own password");
    }
    match decision {
        Decision::Keep(credentials) => Ok(credentials),
        Decision::Rotate(why) => {
            tracing::info!(organization = %tenant.slug, why, "a new password for the read-only role");
            let password = credentials::new_password()?;
            tenancy::organization::set_read_password(&context.database, tenant, &password, &context.metrics).await?;
            Ok(Credentials { password, rotated_at: context.now(), rotation: rotation.to_owned() })
        }
    }
}

/// Write the status when it says something new, and publish what changed as Events.
async fn write_status(
    organization: &Organization,
    context: &Context,
    namespace: &Progress,
    database: &Progress,
) -> Result<()> {
    let new = status::status(organization, namespace, database, context.now());
    if organization.status.clone().map(status::ours).as_ref() == Some(&new) {
        return Ok(());
    }
    let organizations = Api::<Organization>::all(context.client.clone());
    context.applier.status(&organizations, organization, &new).await?;
    let OrganizationStatus { conditions, .. } = organization.status.clone().unwrap_or_default();
    context.tell_transitions(organization, &conditions, &new.conditions).await;
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::Config;
    use clap::{Args, FromArgMatches};
    use serde_json::json;

    pub(crate) fn acme() -> Organization {
        serde_json::from_value(json!({
            "apiVersion": "agentapi.dev/v1alpha1", "kind": "Organization",
            "metadata": {"name": "acme", "uid": "0b8e4a5c-1111-4222-8333-444455556666", "generation": 3},
            "spec": {
                "displayName": "Acme Inc.",
                "identity": {"issuer": "https://login.example.com", "audience": "agentapi"},
                "quota": {"workspaces": 3, "sessions": 5, "cpu": "8", "memory": "16Gi", "storage": "20Gi"},
            },
        }))
        .unwrap()
    }

    pub(crate) fn config() -> Config {
        let command = Config::augment_args(clap::Command::new("run"));
        let arguments = ["run", "--database-url", "postgres://localhost/agentapi"];
        Config::from_arg_matches(&command.get_matches_from(arguments)).unwrap()
    }
}
