//! Workspace: the template that session pods are made from, warm pods, the egress policy, the volume, and
//! the row that the API reads.
pub mod apply;
pub mod build;
pub mod dereference;
mod keeping;
mod model;
pub(crate) mod network;
pub mod pool;
pub mod status;
pub mod validate;

use crate::{
    context::{Context, jittered, within},
    controllers::reference::Refusal,
    egress,
    error::Result,
    records::{self, WorkspaceRow},
};
use agentapi_crds::{Workspace, conditions::reason, names};
use build::Surroundings;
use k8s_openapi::jiff::SignedDuration;
use kube::{Api, Resource, ResourceExt, runtime::controller::Action};
use serde_json::json;
use status::State;
use std::{sync::Arc, time::Duration};
use uuid::Uuid;
use validate::Accepted;

/// One reconcile never takes longer.
const LIMIT: Duration = Duration::from_secs(40);
/// How often everything is looked at without a reason.
const RESYNC: Duration = Duration::from_secs(300);
/// How often we look again for something that does not tell us when it comes.
const SOON: Duration = Duration::from_secs(3);

/// Bring one Workspace into order.
pub async fn reconcile(workspace: Arc<Workspace>, context: Arc<Context>) -> Result<Action> {
    // Boxed: the futures of so many writes are large.
    if workspace.meta().deletion_timestamp.is_some() {
        within(LIMIT, Box::pin(remove(&workspace, &context))).await
    } else {
        within(LIMIT, Box::pin(present(&workspace, &context))).await
    }
}

async fn present(workspace: &Workspace, context: &Context) -> Result<Action> {
    let namespace = workspace.namespace().unwrap_or_default();
    let others = context.stores.workspaces.state();
    let tenancy = dereference::tenancy(context, &workspace.spec.organization_ref.name, &namespace);
    let accepted = match validate::validate(workspace, tenancy, others.iter().map(AsRef::as_ref)) {
        Ok(accepted) => accepted,
        Err(refusal) => return refuse(workspace, context, refusal).await,
    };
    let workspaces = Api::<Workspace>::namespaced(context.client.clone(), &namespace);
    if !workspace.finalizers().iter().any(|finalizer| finalizer == names::FINALIZER) {
        // The write comes back through the watch and starts the next reconcile.
        context.applier.finalizer(&workspaces, workspace, names::FINALIZER, true).await?;
        return Ok(Action::requeue(SOON));
    }
    if !accepted.tenancy.namespace_ready {
        let message = format!("the namespace of Organization {:?} is not ready yet", accepted.tenancy.slug);
        write_status(workspace, context, &State::Waiting(reason::ORGANIZATION_NOT_READY, message)).await?;
        return Ok(Action::requeue(jittered(SOON)));
    }
    let surroundings = Surroundings {
        runtime_internal_url: context.config.runtime_internal_url(),
        session_public_keys: context.keys.now().session_public_keys.clone(),
    };
    let egress = egress::decide(&workspace.spec.egress, accepted.tenancy.allowed_egress.as_deref(), &context.closed());
    let prepared = build::build(workspace, &accepted, &surroundings, &egress);
    let was_in_place = workspace.status.as_ref().is_some_and(|status| status.workspace_id.is_some());
    let applied = match Box::pin(apply::apply(context, &accepted.tenancy.slug, prepared, was_in_place)).await {
        Ok(applied) => applied,
        // Time does not mend a spec that the API server does not take: say so, where people look.
        Err(error) if error.is_refusal() => {
            write_status(workspace, context, &State::Waiting(reason::APPLY_FAILED, error.to_string())).await?;
            return Err(error);
        }
        Err(error) => return Err(error),
    };
    // The row before the pool: a workspace is usable without warm pods, and not without a row.
    let database = write_row(workspace, &accepted, context).await;
    let tenant_namespace = names::tenant_namespace(&accepted.tenancy.slug);
    let pods = dereference::pods(context, &tenant_namespace, &accepted.name, &accepted.namespace).await?;
    let wanted = usize::try_from(workspace.spec.warm_pool).unwrap_or_default();
    let pool = apply::keep_pool(context, &accepted, wanted, &applied.template, &pods).await?;
    let sessions =
        pods.iter().filter(|pod| pod.labels().contains_key(names::LABEL_SESSION) && !pool::has_ended(pod)).count();
    let calm = database.is_none() && pool.trouble.is_none();
    write_status(workspace, context, &State::InPlace { pool, sessions, database, egress: egress.refused }).await?;
    Ok(Action::requeue(jittered(if calm { RESYNC } else { SOON })))
}

/// Nothing is created. What was there before the refusal is taken away, but for the pods of sessions.
async fn refuse(workspace: &Workspace, context: &Context, refusal: Refusal) -> Result<Action> {
    if workspace.finalizers().iter().any(|finalizer| finalizer == names::FINALIZER) {
        take_away(workspace, context, false).await?;
        if refusal.revokes() {
            retire(workspace, context).await;
        }
    }
    write_status(workspace, context, &State::Refused(refusal)).await?;
    Ok(Action::requeue(jittered(RESYNC)))
}

/// Deleted: sessions end, objects go, the row is retired.
async fn remove(workspace: &Workspace, context: &Context) -> Result<Action> {
    // Whoever has taken our finalizer away has not taken away what it stood for.
    let pods_left = take_away(workspace, context, true).await?;
    let row_left = retire(workspace, context).await;
    let since = workspace.metadata.deletion_timestamp.as_ref().map_or(context.now(), |time| time.0);
    let deadline = SignedDuration::from_secs(i64::from(context.config.deletion_deadline_seconds));
    let overdue = context.now().duration_since(since) >= deadline;
    let left = match (pods_left, row_left) {
        (true, _) => Some("waits for its pods to end".to_owned()),
        (false, left) => left,
    };
    match left {
        Some(left) if !overdue => {
            write_status(workspace, context, &State::Deleting(left)).await?;
            Ok(Action::requeue(jittered(SOON)))
        }
        _ if !workspace.finalizers().iter().any(|finalizer| finalizer == names::FINALIZER) => {
            Ok(Action::await_change())
        }
        _ => {
            let namespace = workspace.namespace().unwrap_or_default();
            let workspaces = Api::<Workspace>::namespaced(context.client.clone(), &namespace);
            context.applier.finalizer(&workspaces, workspace, names::FINALIZER, false).await?;
            Ok(Action::await_change())
        }
    }
}

/// Take away what it owns in the tenant namespace, as far as that exists; says whether pods are left.
async fn take_away(workspace: &Workspace, context: &Context, sessions: bool) -> Result<bool> {
    let organization = &workspace.spec.organization_ref.name;
    // Without the Organization its namespace is gone or going, and our rights in it with it.
    let present = context
        .stores
        .organization(organization)
        .is_some_and(|organization| organization.metadata.deletion_timestamp.is_none());
    if !present {
        return Ok(false);
    }
    let namespace = workspace.namespace().unwrap_or_default();
    apply::remove(context, &names::tenant_namespace(organization), &workspace.name_any(), &namespace, sessions).await
}

/// Retire its row; says what is in the way.
async fn retire(workspace: &Workspace, context: &Context) -> Option<String> {
    let id = workspace.uid().and_then(|uid| Uuid::parse_str(&uid).ok())?;
    let retired = records::remove::<WorkspaceRow>(&context.database, id, &context.metrics).await;
    retired.err().map(|error| format!("waits for Postgres: {error}"))
}

/// Write its row; says what is in the way.
async fn write_row(workspace: &Workspace, accepted: &Accepted, context: &Context) -> Option<String> {
    if let Err(refusal) = accepted.tenancy.clone().in_postgres() {
        return Some(refusal.message);
    }
    let row = WorkspaceRow {
        id: accepted.id,
        organization: accepted.tenancy.id,
        name: accepted.name.clone(),
        namespace: accepted.namespace.clone(),
        agent_type: workspace.spec.agent.r#type.as_str().to_owned(),
        max_sessions: workspace.spec.max_sessions,
        spec: serde_json::to_value(&workspace.spec).unwrap_or_else(|_| json!({})),
        generation: workspace.metadata.generation.unwrap_or_default(),
    };
    let written = match context.postgres() {
        Ok(pool) => records::write(pool, &row, &context.metrics).await,
        Err(error) => Err(error),
    };
    written.err().map(|error| {
        tracing::warn!(%error, workspace = %workspace.name_any(), "can't write the workspace's row");
        format!("{error}; it is tried again")
    })
}

/// Write the status when it says something new, and publish what changed as Events.
async fn write_status(workspace: &Workspace, context: &Context, state: &State) -> Result<()> {
    let new = status::status(workspace, state, context.now());
    if workspace.status.as_ref() == Some(&new) {
        return Ok(());
    }
    let namespace = workspace.namespace().unwrap_or_default();
    let workspaces = Api::<Workspace>::namespaced(context.client.clone(), &namespace);
    context.applier.status(&workspaces, workspace, &new).await?;
    let old = workspace.status.clone().unwrap_or_default();
    context.tell_transitions(workspace, &old.conditions, &new.conditions).await;
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::controllers::reference::Tenancy;

    pub(crate) fn web() -> Workspace {
        serde_json::from_value(json!({
            "apiVersion": "agentapi.dev/v1alpha1", "kind": "Workspace",
            "metadata": {"name": "web", "namespace": "team-a", "uid": "1b8e4a5c-1111-4222-8333-444455556666", "generation": 2},
            "spec": {
                "organizationRef": {"name": "acme"},
                "agent": {
                    "type": "Claude",
                    "image": "agentapi.dev/session-claude:dev",
                    "command": ["claude", "--verbose"],
                    "env": [{"name": "ANTHROPIC_BASE_URL", "value": "http://fake-model.agentapi-demo:8000"}],
                    "secretRefs": ["claude-credentials"],
                },
                "maxSessions": 4,
                "warmPool": 2,
                "egress": [
                    {"cidr": "203.0.113.0/24", "ports": [443]},
                    {"namespace": "agentapi-demo"},
                ],
            },
        }))
        .unwrap()
    }

    pub(crate) fn tenancy() -> Tenancy {
        Tenancy {
            id: Uuid::from_u128(7),
            slug: "acme".into(),
            namespace_ready: true,
            database_ready: true,
            workspaces: 3,
            mcp_servers: 5,
            prompt_policies: 2,
            allowed_egress: serde_json::from_value(json!([{"cidr": "0.0.0.0/0"}, {"namespace": "agentapi-demo"}])).ok(),
        }
    }

    pub(crate) fn accepted() -> Accepted {
        Accepted { id: Uuid::from_u128(8), name: "web".into(), namespace: "team-a".into(), tenancy: tenancy() }
    }

    pub(crate) fn egress() -> egress::Decision {
        let closed = egress::Closed::new(["10.244.0.0/16".parse().unwrap()], names::SYSTEM_NAMESPACE);
        egress::decide(&web().spec.egress, tenancy().allowed_egress.as_deref(), &closed)
    }

    pub(crate) fn surroundings() -> Surroundings {
        Surroundings {
            runtime_internal_url: "http://agentapi-runtime.agentapi-system.svc.cluster.local:8090".into(),
            session_public_keys: vec!["11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo".into()],
        }
    }
}
