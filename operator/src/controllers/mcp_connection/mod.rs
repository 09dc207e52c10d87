//! `McpConnection`: accepted, validated and written to Postgres, where the gateway reads it; for stdio, the pod of the
//! program; and the right of the runtime to get the Secrets that it names. What the runtime observed of the server
//! comes back from Postgres as conditions.
pub mod access;
pub mod apply;
pub mod build;
pub mod status;
pub mod validate;

use super::workspace::dereference::tenancy;
use crate::{
    context::{Context, jittered, within},
    egress,
    error::Result,
    isolation, observations,
    records::{self, ConnectionRow},
};
use agentapi_crds::{McpConnection, conditions::reason, names};
use build::Surroundings;
use kube::{
    Api, Resource, ResourceExt,
    runtime::{controller::Action, reflector::ObjectRef},
};
use status::{Seen, State};
use std::{sync::Arc, time::Duration};
use uuid::Uuid;
use validate::Accepted;

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
    let others = context.stores.connections.state();
    let state = match validate::validate(connection, tenancy, workspace.as_deref(), others.iter().map(AsRef::as_ref)) {
        Ok(accepted) => {
            let connections = Api::<McpConnection>::namespaced(context.client.clone(), &namespace);
            if !has_finalizer(connection) {
                context.applier.finalizer(&connections, connection, names::FINALIZER, true).await?;
                return Ok(Action::requeue(SOON));
            }
            Box::pin(in_place(connection, &accepted, context)).await?
        }
        Err(refusal) if refusal.waits() => State::Waiting(refusal.reason, refusal.message),
        Err(refusal) => {
            // What is not accepted must not be usable either.
            if has_finalizer(connection) {
                take_away(connection, context, refusal.reason == reason::NAME_CONFLICT).await?;
                if refusal.revokes() {
                    delete_row(connection, context).await;
                }
            }
            State::Refused(refusal)
        }
    };
    write_status(connection, context, &state).await?;
    let calm = match &state {
        State::Waiting(..) => false,
        State::InPlace(seen) => seen.server.is_none(),
        State::Refused(_) => true,
    };
    Ok(Action::requeue(jittered(if calm { RESYNC } else { SOON })))
}

/// An accepted connection: its rights, its program, its row, and what is known of its server.
async fn in_place(connection: &McpConnection, accepted: &Accepted, context: &Context) -> Result<State> {
    let tenancy = &accepted.tenancy;
    if !tenancy.namespace_ready {
        let message = format!("the namespace of Organization {:?} is not ready yet", tenancy.slug);
        return Ok(State::Waiting(reason::ORGANIZATION_NOT_READY, message));
    }
    access::apply(context, &tenancy.slug).await?;
    let mut seen = Seen { stale_after: context.config.mcp_stale_after(), ..Seen::default() };
    match run_program(connection, accepted, context).await {
        Ok(program) => (seen.server, seen.egress) = program.map_or((None, None), |it| (it.trouble, Some(it.refused))),
        // Time does not mend a spec that the API server does not take: say so, where people look.
        Err(error) if error.is_refusal() => return Ok(State::Waiting(reason::APPLY_FAILED, error.to_string())),
        Err(error) => return Err(error),
    }
    // The runtime looks at a server as soon as it finds a new row: not before the program of this spec is up.
    let written = match context.postgres() {
        Ok(_) if seen.server.is_some() => Ok(()),
        Ok(pool) => records::write(pool, &accepted.row, &context.metrics).await,
        Err(error) => Err(error),
    };
    let observed = match (written, context.postgres()) {
        (Ok(()), Ok(pool)) => observations::of(pool, tenancy.id, accepted.row.id).await,
        (Err(error), _) | (_, Err(error)) => Err(error),
    };
    Ok(match observed {
        Ok(observation) => State::InPlace(Box::new(Seen { observation, ..seen })),
        Err(error) => State::Waiting(reason::DATABASE_UNAVAILABLE, format!("{error}; it is tried again")),
    })
}

/// The program of a stdio connection.
struct Program {
    /// Why it does not run.
    trouble: Option<String>,
    /// Egress rules that are not in force.
    refused: Vec<String>,
}

/// Keeps the program of a stdio connection running, and takes away the one that another transport had.
async fn run_program(connection: &McpConnection, accepted: &Accepted, context: &Context) -> Result<Option<Program>> {
    let Accepted { row, tenancy } = accepted;
    let tenant_namespace = names::tenant_namespace(&tenancy.slug);
    let Some(stdio) = &connection.spec.transport.stdio else {
        apply::remove(context, &tenant_namespace, &row.name, &row.namespace).await?;
        return Ok(None);
    };
    let Some(runtime_image) = context.config.probe_image.clone() else {
        let trouble = "the operator does not know the runtime's image; set PROBE_IMAGE of agentapi-operator".to_owned();
        return Ok(Some(Program { trouble: Some(trouble), refused: Vec::new() }));
    };
    let surroundings = Surroundings {
        runtime_image,
        system_namespace: context.config.system_namespace.clone(),
        dns_namespace: context.config.dns_namespace.clone(),
    };
    let egress = egress::decide(&stdio.egress, tenancy.allowed_egress.as_deref(), &context.closed());
    let prepared = build::build(stdio, accepted, &surroundings, &egress);
    let was_in_place = connection.status.as_ref().is_some_and(|status| status.connection_id.is_some());
    let applied = Box::pin(apply::apply(context, &tenancy.slug, prepared, was_in_place)).await?;
    Ok(Some(Program { trouble: apply::trouble(context, &applied.deployment).await?, refused: egress.refused }))
}

async fn remove(connection: &McpConnection, context: &Context) -> Result<Action> {
    // Whoever has taken our finalizer away has not taken away what it stood for.
    take_away(connection, context, false).await?;
    if let Some(left) = delete_row(connection, context).await
        && !super::overdue(connection, context)
    {
        write_status(connection, context, &State::Waiting(reason::DELETING, left)).await?;
        return Ok(Action::requeue(jittered(SOON)));
    }
    if !has_finalizer(connection) {
        return Ok(Action::await_change());
    }
    let namespace = connection.namespace().unwrap_or_default();
    let connections = Api::<McpConnection>::namespaced(context.client.clone(), &namespace);
    context.applier.finalizer(&connections, connection, names::FINALIZER, false).await?;
    Ok(Action::await_change())
}

fn has_finalizer(connection: &McpConnection) -> bool {
    connection.finalizers().iter().any(|finalizer| finalizer == names::FINALIZER)
}

/// Take away its program and the runtime's right to its Secrets, as far as the tenant namespace is there. From a namesake
/// `only_program`, whose selector nobody can write over: the policy and the address of that name are the other's by now.
async fn take_away(connection: &McpConnection, context: &Context, only_program: bool) -> Result<()> {
    let organization = &connection.spec.organization_ref.name;
    // Without the Organization its namespace is gone or going, and our rights in it with it.
    let present = context.stores.organization(organization).is_some_and(|it| isolation::fences::is_in_place(&it));
    if !present {
        return Ok(());
    }
    let (name, namespace) = (connection.name_any(), connection.namespace().unwrap_or_default());
    let tenant_namespace = names::tenant_namespace(organization);
    if only_program {
        apply::remove_program(context, &tenant_namespace, &name, &namespace).await?;
    } else {
        apply::remove(context, &tenant_namespace, &name, &namespace).await?;
    }
    access::apply(context, organization).await
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
