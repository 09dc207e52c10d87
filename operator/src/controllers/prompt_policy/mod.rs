//! `PromptPolicy`: accepted, its template parsed, and written to Postgres. A template that does not parse is not
//! written: the last good one stays in use.
pub mod effective;
pub mod status;
pub mod validate;

use super::workspace::dereference::tenancy;
use crate::{
    context::{Context, jittered, within},
    error::Result,
    records::{self, PolicyRow},
};
use agentapi_crds::{PromptPolicy, conditions::reason, names};
use kube::{
    Api, Resource, ResourceExt,
    runtime::{controller::Action, reflector::ObjectRef},
};
use status::State;
use std::{sync::Arc, time::Duration};
use uuid::Uuid;
use validate::Verdict;

/// One reconcile never takes longer.
const LIMIT: Duration = Duration::from_secs(20);
/// How often everything is looked at without a reason.
const RESYNC: Duration = Duration::from_secs(300);
/// How often we look again for something that does not tell us when it comes.
const SOON: Duration = Duration::from_secs(3);

/// Bring one policy into order.
pub async fn reconcile(policy: Arc<PromptPolicy>, context: Arc<Context>) -> Result<Action> {
    within(LIMIT, async {
        if policy.meta().deletion_timestamp.is_some() {
            remove(&policy, &context).await
        } else {
            present(&policy, &context).await
        }
    })
    .await
}

async fn present(policy: &PromptPolicy, context: &Context) -> Result<Action> {
    let namespace = policy.namespace().unwrap_or_default();
    let organization =
        policy.spec.organization_ref.as_ref().map(|reference| tenancy(context, &reference.name, &namespace));
    let workspace = policy
        .spec
        .workspace_ref
        .as_ref()
        .and_then(|reference| context.stores.workspaces.get(&ObjectRef::new(&reference.name).within(&namespace)));
    let ours = &context.config.system_namespace;
    let finalized = policy.finalizers().iter().any(|finalizer| finalizer == names::FINALIZER);
    let others = context.stores.policies.state();
    let others = others.iter().map(AsRef::as_ref);
    let state = match validate::validate(policy, organization, workspace.as_deref(), ours, others) {
        Verdict::Good(row) => {
            if !finalized {
                let policies = Api::<PromptPolicy>::namespaced(context.client.clone(), &namespace);
                context.applier.finalizer(&policies, policy, names::FINALIZER, true).await?;
                return Ok(Action::requeue(SOON));
            }
            let written = match context.postgres() {
                Ok(pool) => records::write(pool, &*row, &context.metrics).await,
                Err(error) => Err(error),
            };
            match written {
                Ok(()) => {
                    let name = policy.name_any();
                    let namesakes =
                        context.stores.policies.state_filter(|other: &PromptPolicy| other.name_any() == name);
                    State::InPlace(effective::effective(policy, &namesakes))
                }
                Err(error) => State::Waiting(reason::DATABASE_UNAVAILABLE, format!("{error}; it is tried again")),
            }
        }
        Verdict::BadTemplate(message) => State::BadTemplate { message, active: active(policy, context).await },
        Verdict::Refused(refusal) if refusal.waits() => State::Waiting(refusal.reason, refusal.message),
        Verdict::Refused(refusal) => {
            // What is not accepted must not be in use either.
            if finalized && refusal.revokes() {
                delete_row(policy, context).await;
            }
            State::Refused(refusal)
        }
    };
    write_status(policy, context, &state).await?;
    Ok(Action::requeue(jittered(if matches!(state, State::Waiting(..)) { SOON } else { RESYNC })))
}

/// Generation of the template that is in use, as far as it can be known.
async fn active(policy: &PromptPolicy, context: &Context) -> Option<i64> {
    let id = policy.uid().and_then(|uid| Uuid::parse_str(&uid).ok())?;
    match records::active_policy_generation(&context.database, id).await {
        Ok(generation) => generation,
        Err(error) => {
            tracing::warn!(%error, "can't read which template is in use");
            policy.status.as_ref().and_then(|status| status.active_generation)
        }
    }
}

async fn remove(policy: &PromptPolicy, context: &Context) -> Result<Action> {
    // Whoever has taken our finalizer away has not taken away what it stood for.
    if let Some(left) = delete_row(policy, context).await
        && !super::overdue(policy, context)
    {
        write_status(policy, context, &State::Waiting(reason::DELETING, left)).await?;
        return Ok(Action::requeue(jittered(SOON)));
    }
    if !policy.finalizers().iter().any(|finalizer| finalizer == names::FINALIZER) {
        return Ok(Action::await_change());
    }
    let policies = Api::<PromptPolicy>::namespaced(context.client.clone(), &policy.namespace().unwrap_or_default());
    context.applier.finalizer(&policies, policy, names::FINALIZER, false).await?;
    Ok(Action::await_change())
}

/// Delete its row; says what is in the way.
async fn delete_row(policy: &PromptPolicy, context: &Context) -> Option<String> {
    let id = policy.uid().and_then(|uid| Uuid::parse_str(&uid).ok())?;
    let deleted = records::remove::<PolicyRow>(&context.database, id, &context.metrics).await;
    deleted.err().map(|error| format!("waits for Postgres: {error}"))
}

async fn write_status(policy: &PromptPolicy, context: &Context, state: &State) -> Result<()> {
    let new = status::status(policy, state, context.now());
    if policy.status.as_ref() == Some(&new) {
        return Ok(());
    }
    let policies = Api::<PromptPolicy>::namespaced(context.client.clone(), &policy.namespace().unwrap_or_default());
    context.applier.status(&policies, policy, &new).await?;
    let old = policy.status.clone().unwrap_or_default();
    context.tell_transitions(policy, &old.conditions, &new.conditions).await;
    Ok(())
}
