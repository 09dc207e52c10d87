//! The controllers: what is watched, what a change of it sets off, and one loop per kind.
pub mod database;
mod leftovers;
pub mod mcp_connection;
pub mod organization;
mod pods;
pub mod prompt_policy;
pub mod reference;
pub mod secrets;
mod touched;
pub mod workspace;

mod watches;

pub use watches::{Watches, watches};

use crate::{
    context::Context,
    error::{Error, Result},
    keys,
};
use futures::{StreamExt, channel::mpsc::UnboundedReceiver, future};
use k8s_openapi::jiff::SignedDuration;
use kube::{
    Resource,
    runtime::{
        applier,
        controller::{Action, Config},
        reflector::{ObjectRef, Store},
    },
};
use std::{convert::Infallible, fmt::Debug, sync::Arc, time::Duration};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Asks for reconciles of the four kinds, as they come.
pub struct Queues {
    /// Of Organizations.
    pub organizations: UnboundedReceiver<ObjectRef<agentapi_crds::Organization>>,
    /// Of Workspaces.
    pub workspaces: UnboundedReceiver<ObjectRef<agentapi_crds::Workspace>>,
    /// Of `McpConnections`.
    pub connections: UnboundedReceiver<ObjectRef<agentapi_crds::McpConnection>>,
    /// Of `PromptPolicies`.
    pub policies: UnboundedReceiver<ObjectRef<agentapi_crds::PromptPolicy>>,
}

/// Run all controllers until `stop`; then those reconciles that are under way end.
pub async fn run(context: Arc<Context>, queues: Queues, stop: CancellationToken) {
    let mut tasks = JoinSet::new();
    let stores = &context.stores;
    tasks.spawn(control(
        stores.organizations.clone(),
        queues.organizations,
        organization::reconcile,
        context.clone(),
        stop.clone(),
    ));
    tasks.spawn(control(
        stores.workspaces.clone(),
        queues.workspaces,
        workspace::reconcile,
        context.clone(),
        stop.clone(),
    ));
    tasks.spawn(control(
        stores.connections.clone(),
        queues.connections,
        mcp_connection::reconcile,
        context.clone(),
        stop.clone(),
    ));
    tasks.spawn(control(
        stores.policies.clone(),
        queues.policies,
        prompt_policy::reconcile,
        context.clone(),
        stop.clone(),
    ));
    tasks.spawn(database::watch(context.clone(), stop.clone()));
    tasks.spawn(leftovers::watch(context.clone(), stop.clone()));
    tasks.spawn(crate::checkpoints::watch(context.clone(), stop.clone()));
    tasks.spawn(crate::observations::watch(context.clone(), stop.clone()));
    tasks.spawn(crate::usage::watch(context.clone(), stop.clone()));
    tasks.spawn(keys::watch(context.clone(), stop.clone()));
    tasks.spawn(crate::isolation::watch(context.clone(), stop.clone()));
    tasks.spawn(secrets::watch(context, stop));
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "a controller ended");
        }
    }
}

async fn control<K, F, R>(
    store: Store<K>,
    queue: UnboundedReceiver<ObjectRef<K>>,
    reconcile: R,
    context: Arc<Context>,
    stop: CancellationToken,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
    F: Future<Output = Result<Action>> + Send + 'static,
    R: Fn(Arc<K>, Arc<Context>) -> F + Clone + Send + Sync + 'static,
{
    let kind = K::kind(&()).into_owned();
    let timed = {
        let kind = kind.clone();
        move |object: Arc<K>, context: Arc<Context>| {
            let reconcile = reconcile.clone();
            let kind = kind.clone();
            Box::pin(async move {
                let _timer = context.metrics.reconcile_seconds(&kind).start_timer();
                let result = reconcile(object.clone(), context.clone()).await;
                let word = if result.is_ok() { "ok" } else { "error" };
                context.metrics.reconciles.with_label_values(&[kind.as_str(), word]).inc();
                if result.is_ok() {
                    context.failures.clear(&*object);
                }
                result
            })
        }
    };
    let again = |object: Arc<K>, error: &Error, context: Arc<Context>| {
        if !error.is_conflict() {
            tracing::warn!(%error, kind = %K::kind(&()), object = %ObjectRef::from_obj(&*object), "a reconcile failed");
        }
        context.failures.again(&*object, error)
    };
    // One change of ours comes back as several events: look once.
    let config = Config::default().debounce(Duration::from_millis(100)).concurrency(8);
    let requests = queue.map(Ok::<_, Infallible>).take_until(stop.cancelled_owned());
    applier(timed, again, context, store, Box::pin(requests), config).for_each(|_| future::ready(())).await;
    tracing::debug!(kind, "the controller has ended");
}

/// Has the deadline of a deletion passed?
fn overdue<K: Resource>(object: &K, context: &Context) -> bool {
    let now = context.now();
    let since = object.meta().deletion_timestamp.as_ref().map_or(now, |time| time.0);
    now.duration_since(since) >= SignedDuration::from_secs(i64::from(context.config.deletion_deadline_seconds))
}
