//! What happens to a session outside of requests: it gets a pod, becomes ready, ends. The replica that accepted a
//! session works on it in a background task; `reconciler` finishes what a replica left behind.
//! May touch: `store`, `pods`. Imports nothing of `http`.

mod drain;
mod end;
mod keys;
pub mod reconciler;
mod start;
mod suspend;
mod wake;
mod warm;

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::audit::{Entry, Origin, action};
use crate::auth::session_token::{SessionTokenError, SessionTokens};
use crate::metrics::Metrics;
use crate::pods::agent::{AgentError, Agents};
use crate::pods::{PodBackend, PodError};
use crate::prompt::Prompts;
use crate::store::identity::Organization;
use crate::store::{Store, StoreError, TenantScope};
use serde_json::json;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

pub use start::Launch;
pub use wake::Woken;

/// A replica that works on a session says so this often.
const HEARTBEAT: Duration = Duration::from_secs(3);
/// Nobody has said anything about a session for this long: its replica is gone.
const ABANDONED: Duration = Duration::from_secs(15);
/// Why a session failed for which the tenant's namespace has no room.
const QUOTA_EXCEEDED: &str = "quota-exceeded";

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum LifecycleError {
    /// Postgres.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The cluster.
    #[error(transparent)]
    Pods(#[from] PodError),
    /// The pod.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The signing key.
    #[error(transparent)]
    Token(#[from] SessionTokenError),
    /// It took too long; what it waited for.
    #[error("the session was not ready within {0} seconds{1}")]
    Deadline(u64, String),
    /// The pod is gone or has failed.
    #[error("{0}")]
    PodLost(String),
}

impl LifecycleError {
    /// Whether the same step may well succeed in a moment.
    fn is_passing(&self) -> bool {
        matches!(self, Self::Store(StoreError::Unavailable(_)) | Self::Pods(PodError::Unavailable(_)))
    }
}

/// Everything that sessions need to live.
pub struct Lifecycle {
    store: Store,
    pods: Arc<dyn PodBackend>,
    agents: Agents,
    tokens: Arc<SessionTokens>,
    metrics: Metrics,
    prompts: Arc<Prompts>,
    start_deadline: Duration,
    tasks: TaskTracker,
    /// Sessions whose pods are being asked whether they can be suspended.
    asked: Mutex<HashSet<Uuid>>,
    renewals: Arc<keys::Renewals>,
}

impl Lifecycle {
    /// Nothing runs yet.
    pub fn new(
        store: Store,
        pods: Arc<dyn PodBackend>,
        agents: Agents,
        tokens: Arc<SessionTokens>,
        metrics: Metrics,
        prompts: Arc<Prompts>,
        start_deadline: Duration,
    ) -> Self {
        Self {
            store,
            pods,
            agents,
            tokens,
            metrics,
            prompts,
            start_deadline,
            tasks: TaskTracker::new(),
            asked: Mutex::default(),
            renewals: Arc::default(),
        }
    }

    /// Waits for background tasks, for a shutdown. What is left after `within` is the next leader's.
    pub async fn drain(&self, within: Duration) {
        self.tasks.close();
        if tokio::time::timeout(within, self.tasks.wait()).await.is_err() {
            tracing::warn!(tasks = self.tasks.len(), "sessions are left to another replica");
        }
    }

    /// Marks a session as failed, once, and lets go of its pod.
    async fn fail(&self, organization: &Organization, session: Uuid, reason: &'static str, error: &str) {
        let marked = async {
            let mut tx = self.store.tenant_tx(&TenantScope::system(organization)).await?;
            let changed = tx.session_failed(session, error).await?;
            if changed && reason == QUOTA_EXCEEDED {
                // Nothing was begun: the same request, sent again, is to be tried again.
                tx.forget_idempotency_key(session).await?;
            }
            if changed {
                let id = session.to_string();
                tx.audit(&Entry {
                    origin: &Origin::system("sessions"),
                    action: action::SESSION_FAIL,
                    target_kind: "session",
                    target_id: Some(&id),
                    detail: json!({ "reason": error }),
                })
                .await?;
            }
            tx.commit().await?;
            Ok::<_, StoreError>(changed)
        };
        match marked.await {
            Ok(true) => {
                self.metrics.session_over(reason);
                tracing::warn!(%session, organization = organization.slug, error, "session failed");
            }
            Ok(false) => {}
            Err(store_error) => tracing::error!(%session, error, %store_error, "cannot mark the session as failed"),
        }
        // If this fails, the reconciler finds a pod whose session is over.
        if let Err(error) = self.let_go(organization, session).await {
            tracing::warn!(%session, %error, "cannot delete the failed session's pod yet");
        }
    }
}
