//! `McpConnection`: accepted, validated and written to Postgres, where the gateway reads it.
pub mod status;
pub mod validate;

use super::workspace::dereference::tenancy;
use crate::{
    context::{Context, jittered, within},
    error::Result,
    records::{self, ConnectionRow},
};
use agentapi_crds::{McpConnection, conditions::reason, names};
use kube::{
    Api, Resource, ResourceExt,
    runtime::{controller::Action, reflector::ObjectRef},
};
use status::State;
use std::{sync::Arc, time::Duration};
use uuid::Uuid;

/// One reconcile never takes longer.
const LIMIT: Duration = Duration::from_secs(20);
/// How often everything is looked at without a reason.
const RESYNC: Duration = Duration::from_secs(300);
/// How often we look again for something that does not tell us when it comes.
const SOON: Duration = Duration::from_secs(3);

/// Bring one connection into order.
pub async fn reconcile(connection: Arc<McpConnection>, context: Arc<Context>) -> Result<Action> {
    within(LIMIT, async {
        if connection.meta().deletion_timestamp.is_some() {
            remove(&connection, &context).await
        } else {
            present(&connection, &context).await
        }
    })
    .await
}

async fn present(connection: &McpConnection, context: &Context) -> Result<Action> {
    let namespace = connection.namespace().unwrap_or_default();
    let workspace = connection
        .spec
        .workspace_ref
        .as_ref()
        .and_then(|reference| context.stores.workspaces.get(&ObjectRef::new(&reference.name).within(&namespace)));
    let tenancy = tenancy(context, &connection.spec.organization_ref.name, &namespace);
    let state = match validate::validate(connection, tenancy, workspace.as_deref()) {
        Ok(row) => {
            let connections = Api::<McpConnection>::namespaced(context.client.clone(), &namespace);
            if !connection.finalizers().iter().any(|finalizer| finalizer == names::FINALIZER) {
                context.applier.finalizer(&connections, connection, names::FINALIZER, true).await?;
                return Ok(Action::requeue(SOON));
            }
            let written = match context.postgres() {
                Ok(pool) => records::write(pool, &row, &context.metrics).await,
                Err(error) => Err(error),
            };
            match written {
                Ok(()) => State::InPlace,
                Err(error) => State::Waiting(reason::DATABASE_UNAVAILABLE, format!("{error}; it is tried again")),
            }
        }
        Err(refusal) if refusal.waits() => State::Waiting(refusal.reason, refusal.message),
        Err(refusal) => {
            // What is not accepted must not be usable either.
            if refusal.revokes() && connection.finalizers().iter().any(|finalizer| finalizer == names::FINALIZER) {
                delete_row(connection, context).await;
            }
            State::Refused(refusal)
        }
    };
    write_status(connection, context, &state).await?;
    Ok(Action::requeue(jittered(if matches!(state, State::Waiting(..)) { SOON } else { RESYNC })))
}

async fn remove(connection: &McpConnection, context: &Context) -> Result<Action> {
    if !connection.finalizers().iter().any(|finalizer| finalizer == names::FINALIZER) {
        return Ok(Action::await_change());
    }
    if let Some(left) = delete_row(connection, context).await
        && !super::overdue(connection, context)
    {
        write_status(connection, context, &State::Waiting(reason::DELETING, left)).await?;
        return Ok(Action::requeue(jittered(SOON)));
    }
    let namespace = connection.namespace().unwrap_or_default();
    let connections = Api::<McpConnection>::namespaced(context.client.clone(), &namespace);
    context.applier.finalizer(&connections, connection, names::FINALIZER, false).await?;
    Ok(Action::await_change())
}

/// Delete its row; says what is in the way.
async fn delete_row(connection: &McpConnection, context: &Context) -> Option<String> {
    let id = connection.uid().and_then(|uid| Uuid::parse_str(&uid).ok())?;
    let deleted = records::remove::<ConnectionRow>(&context.database, id, &context.metrics).await;
    deleted.err().map(|error| format!("waits for Postgres: {error}"))
}

async fn write_status(connection: &McpConnection, context: &Context, state: &State) -> Result<()> {
    let new = status::status(connection, state, context.now());
    if connection.status.as_ref() == Some(&new) {
        return Ok(());
    }
    let namespace = connection.namespace().unwrap_or_default();
    let connections = Api::<McpConnection>::namespaced(context.client.clone(), &namespace);
    context.applier.status(&connections, connection, &new).await?;
    let old = connection.status.clone().unwrap_or_default();
    context.tell_transitions(connection, &old.conditions, &new.conditions).await;
    Ok(())
}
