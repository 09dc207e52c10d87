//! What every reconcile has at hand: clients, stores, the clock. No logic of any kind of object.
use crate::{
    apply::Applier,
    config::Config,
    drift::Owner,
    egress::Closed,
    error::{Error, Result},
    isolation,
    keys::Keyring,
    metrics::Metrics,
    signing::Signer,
    status, tenancy,
};
use agentapi_crds::{McpConnection, Organization, PromptPolicy, Workspace};
use futures::channel::mpsc::UnboundedSender;
use k8s_openapi::{api::core::v1::Namespace, apimachinery::pkg::apis::meta::v1::Condition, jiff::Timestamp};
use kube::{
    Client, Resource, ResourceExt,
    core::PartialObjectMeta,
    runtime::{
        controller::Action,
        events::{Event, EventType, Recorder},
        reflector::{ObjectRef, Store},
    },
};
use rand::RngExt;
use sqlx::PgPool;
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// What the watches have seen.
pub struct Stores {
    /// Organizations.
    pub organizations: Store<Organization>,
    /// Workspaces of all namespaces.
    pub workspaces: Store<Workspace>,
    /// Connections of all namespaces.
    pub connections: Store<McpConnection>,
    /// Policies of all namespaces.
    pub policies: Store<PromptPolicy>,
    /// Metadata of all namespaces.
    pub namespaces: Store<PartialObjectMeta<Namespace>>,
}

impl Stores {
    /// The Organization of this name.
    pub fn organization(&self, name: &str) -> Option<Arc<Organization>> {
        self.organizations.get(&ObjectRef::new(name))
    }
}

/// Asks for reconciles.
#[derive(Clone)]
pub struct Triggers {
    /// Of Organizations.
    pub organizations: UnboundedSender<ObjectRef<Organization>>,
    /// Of Workspaces.
    pub workspaces: UnboundedSender<ObjectRef<Workspace>>,
    /// Of `McpConnections`.
    pub connections: UnboundedSender<ObjectRef<McpConnection>>,
    /// Of `PromptPolicies`.
    pub policies: UnboundedSender<ObjectRef<PromptPolicy>>,
}

impl Triggers {
    /// Reconcile the owner of something that changed. A closed channel means that we are shutting down.
    pub fn owner(&self, owner: Owner) {
        match owner {
            Owner::Organization(name) => {
                let _ = self.organizations.unbounded_send(ObjectRef::new(&name));
            }
            Owner::Workspace(namespace, name) => {
                let _ = self.workspaces.unbounded_send(ObjectRef::new(&name).within(&namespace));
            }
            Owner::Connection(namespace, name) => {
                let _ = self.connections.unbounded_send(ObjectRef::new(&name).within(&namespace));
            }
        }
    }
}

/// What every reconcile has at hand.
pub struct Context {
    /// Client of the Kubernetes API.
    pub client: Client,
    /// Settings.
    pub config: Config,
    /// `host:port` of Postgres as tenants reach it, and the database's name.
    pub tenant_database: (String, String),
    /// Postgres, waited for when it does not answer.
    pub database: PgPool,
    /// Postgres answered when it was last looked at.
    pub postgres_up: AtomicBool,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// The writer to the cluster.
    pub applier: Applier,
    /// The writer of Events.
    pub recorder: Recorder,
    /// The time.
    pub clock: fn() -> Timestamp,
    /// What the watches have seen.
    pub stores: Stores,
    /// Asks for reconciles.
    pub triggers: Triggers,
    /// The keys of the platform.
    pub keys: Keyring,
    /// Signs statements about tenants.
    pub signer: Signer,
    /// Failures in a row, by object.
    pub failures: Failures,
    /// When the password of each organization's read-only login was tried last.
    pub logins: Tried,
    /// What the isolation probes have found.
    pub isolation: isolation::State,
}

impl Context {
    /// The time now.
    pub fn now(&self) -> Timestamp {
        (self.clock)()
    }

    /// The ranges that no Workspace may open.
    pub fn closed(&self) -> Arc<Closed> {
        self.isolation.closed()
    }

    /// Postgres, unless it did not answer a moment ago: what is in the cluster must not wait for it.
    pub fn postgres(&self) -> tenancy::Result<&PgPool> {
        if self.postgres_up.load(Ordering::Relaxed) { Ok(&self.database) } else { Err(tenancy::Error::Down) }
    }

    /// Publish an Event for each condition whose status or reason changed.
    pub async fn tell_transitions<K>(&self, object: &K, old: &[Condition], new: &[Condition])
    where
        K: Resource<DynamicType = ()>,
    {
        let mut told: Vec<(&str, &str)> = Vec::new();
        for condition in status::transitions(old, new) {
            // Two conditions often change for one reason; people want to read it once.
            if told.contains(&(&condition.reason, &condition.message)) {
                continue;
            }
            told.push((&condition.reason, &condition.message));
            let event = Event {
                type_: if status::is_worrying(condition) { EventType::Warning } else { EventType::Normal },
                reason: condition.reason.clone(),
                note: Some(shorten(&condition.message)).filter(|note| !note.is_empty()),
                action: condition.type_.clone(),
                secondary: None,
            };
            if let Err(error) = self.recorder.publish(&event, &object.object_ref(&())).await {
                tracing::warn!(%error, "can't publish an Event");
            }
        }
    }
}

/// The API takes notes of at most 1024 bytes.
fn shorten(message: &str) -> String {
    let mut end = message.len().min(1000);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    message[..end].to_owned()
}

/// What was tried when, for things that need not be tried at every reconcile.
#[derive(Default)]
pub struct Tried(Mutex<HashMap<String, Instant>>);

impl Tried {
    /// Is it time to try again? Counts as a try.
    pub fn is_due(&self, name: &str, every: Duration) -> bool {
        let mut tried = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if tried.get(name).is_some_and(|at| at.elapsed() < every) {
            return false;
        }
        tried.retain(|_, at| at.elapsed() < every);
        tried.insert(name.to_owned(), Instant::now());
        true
    }
}

/// Failures in a row, by object, for a backoff that grows.
#[derive(Default)]
pub struct Failures(Mutex<HashMap<String, u32>>);

impl Failures {
    fn key<K: Resource<DynamicType = ()>>(object: &K) -> String {
        format!("{}/{}/{}", K::kind(&()), object.namespace().unwrap_or_default(), object.name_any())
    }

    /// It worked.
    pub fn clear<K: Resource<DynamicType = ()>>(&self, object: &K) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&Self::key(object));
    }

    /// It failed once more: when to try again. A conflict is tried at once.
    pub fn again<K: Resource<DynamicType = ()>>(&self, object: &K, error: &Error) -> Action {
        if error.is_conflict() {
            return Action::requeue(jittered(Duration::from_millis(200)));
        }
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = failures.entry(Self::key(object)).or_default();
        *count = count.saturating_add(1);
        Action::requeue(backoff(*count))
    }
}

/// Doubles from half a second to half a minute, jittered.
fn backoff(failures: u32) -> Duration {
    let doubled = Duration::from_millis(500).saturating_mul(1 << failures.saturating_sub(1).min(6));
    jittered(doubled.min(Duration::from_secs(30)))
}

/// 80 % to 120 % of a duration, so that many objects do not come back at the same moment.
pub fn jittered(duration: Duration) -> Duration {
    duration.mul_f64(rand::rng().random_range(0.8..1.2))
}

/// A reconcile that does not end is given up.
pub async fn within<T>(limit: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(limit, work).await.map_err(|_| Error::TimedOut(limit))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_grows_and_has_an_end() {
        assert!(backoff(1) <= Duration::from_millis(600));
        assert!(backoff(4) > backoff(1) * 4);
        for failures in [7, 8, 100, u32::MAX] {
            let wait = backoff(failures);
            assert!(wait >= Duration::from_secs(24) && wait <= Duration::from_secs(36), "{wait:?}");
        }
    }

    #[test]
    fn notes_are_cut_at_a_character() {
        assert!(shorten(&"ä".repeat(900)).len() <= 1000);
        assert_eq!(shorten("short"), "short");
    }
}
