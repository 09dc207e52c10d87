//! From an accepted session to a ready agent.
//!
//! The order matters for whoever takes over after a crash: a session is `Starting` only once its pod has everything
//! it needs (a warm pod has taken the claim, a cold one mounts the Secret). What is still `Pending` when its replica
//! dies has lost its environment, which is kept nowhere but in the Secret, and is failed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::{HEARTBEAT, Lifecycle, LifecycleError, QUOTA_EXCEEDED};
use crate::pods::agent::{AgentError, Target};
use crate::pods::{Pod, PodError, PodKind, PodRequest, PodState, Shortage};
use crate::store::TenantScope;
use crate::store::identity::Organization;
use crate::store::sessions::Session;

/// How often a starting pod is asked whether it listens and is ready.
const POLL: Duration = Duration::from_millis(50);
/// After this long it is asked less often.
const PATIENCE: Duration = Duration::from_secs(10);
const SLOW_POLL: Duration = Duration::from_millis(500);

/// Repeats a step while the cluster or the database is away, until the start's deadline.
macro_rules! patiently {
    ($lifecycle:expr, $began:expr, $session:expr, $step:expr) => {
        loop {
            match $step.await.map_err(LifecycleError::from) {
                Err(error) if error.is_passing() => $lifecycle.hold_on($began, $session, &error).await?,
                done => break done,
            }
        }
    };
}
pub(super) use patiently;

/// Tells whether the cluster has room for a pod.
type Teller = oneshot::Sender<Result<(), Shortage>>;

/// A session to start.
pub struct Launch {
    /// Its id.
    pub session: Uuid,
    /// Its organization.
    pub organization: Arc<Organization>,
    /// Its workspace.
    pub workspace: String,
    /// Its environment.
    pub env: BTreeMap<String, SecretString>,
    /// First message to the agent.
    pub prompt: Option<String>,
    /// What the agent is told before that.
    pub system_prompt: Option<String>,
}

impl Lifecycle {
    /// Starts a Pending session in the background. The receiver hears whether the cluster has room for its pod, once the
    /// cluster has said so and a session without room is marked as failed.
    pub fn launch(self: &Arc<Self>, launch: Launch) -> oneshot::Receiver<Result<(), Shortage>> {
        let lifecycle = Arc::clone(self);
        let (tell, told) = oneshot::channel();
        self.tasks.spawn(async move {
            let (organization, session) = (Arc::clone(&launch.organization), launch.session);
            let mut tell = Some(tell);
            let work = Box::pin(lifecycle.start(launch, &mut tell));
            let failure = lifecycle.watch_over(&organization, session, work).await;
            if let (Some(tell), Some(LifecycleError::Pods(PodError::QuotaExceeded(shortage)))) = (tell, failure) {
                // Who asked may have gone.
                let _ = tell.send(Err(shortage));
            }
        });
        told
    }

    /// Finishes the start of a session whose pod has all it needs, in the background.
    pub(super) fn resume(self: &Arc<Self>, organization: Arc<Organization>, session: &Session, pod: Pod) {
        let (lifecycle, id, was_suspended) = (Arc::clone(self), session.id, session.was_suspended);
        self.tasks.spawn(async move {
            let work = Box::pin(lifecycle.await_ready(&organization, id, pod, Instant::now()));
            if !was_suspended {
                lifecycle.watch_over(&organization, id, work).await;
            } else if let Err(error) = lifecycle.with_heartbeat(&organization, id, work).await {
                lifecycle.asleep_again(&organization, id, &error.to_string()).await;
            }
        });
    }

    /// Runs a start, and says all the time that somebody is at it.
    pub(super) async fn with_heartbeat(
        &self,
        organization: &Organization,
        session: Uuid,
        work: impl Future<Output = Result<(), LifecycleError>>,
    ) -> Result<(), LifecycleError> {
        let heartbeat = async {
            loop {
                sleep(HEARTBEAT).await;
                if let Err(error) = self.touch(organization, session).await {
                    tracing::warn!(%session, %error, "cannot record that the session is being worked on");
                }
            }
        };
        tokio::select! {
            outcome = work => outcome,
            () = heartbeat => Ok(()),
        }
    }

    /// The same, and fails the session when it does not work out.
    async fn watch_over(
        &self,
        organization: &Organization,
        session: Uuid,
        work: impl Future<Output = Result<(), LifecycleError>>,
    ) -> Option<LifecycleError> {
        let error = self.with_heartbeat(organization, session, work).await.err()?;
        let reason = match &error {
            LifecycleError::Deadline(..) => "start-deadline",
            LifecycleError::PodLost(_) => "pod-lost",
            LifecycleError::Pods(PodError::Refused(_)) => "pod-refused",
            LifecycleError::Pods(PodError::QuotaExceeded(_)) => QUOTA_EXCEEDED,
            _ => "start-error",
        };
        self.fail(organization, session, reason, &error.to_string()).await;
        Some(error)
    }

    async fn touch(&self, organization: &Organization, session: Uuid) -> Result<(), LifecycleError> {
        let mut tx = self.store.tenant_tx(&TenantScope::system(organization)).await?;
        tx.session_touched(session).await?;
        Ok(tx.commit().await?)
    }

    async fn start(&self, launch: Launch, tell: &mut Option<Teller>) -> Result<(), LifecycleError> {
        let began = Instant::now();
        let Launch { session, organization, workspace, env, prompt, system_prompt } = launch;
        // The id first: if the key changes in between, the pod counts as one with an old token and gets another.
        let (token_key, tokens) = (self.tokens.key_id(), Arc::clone(&self.tokens));
        let slug = organization.slug.clone();
        let request =
            PodRequest { session, organization: slug, workspace, env, prompt, system_prompt, tokens, token_key };
        let pod = loop {
            let pod = patiently!(self, began, session, self.pods.acquire(&request))?;
            if let Some(tell) = tell.take() {
                let _ = tell.send(Ok(()));
            }
            match (pod.kind, pod.ip()) {
                (PodKind::Warm, Some(ip)) => {
                    match self.agents.claim(Target { session, pod: &pod.name, ip }, &request).await {
                        Ok(()) => break pod,
                        // A warm pod that died between the list and the claim: let it go and take another.
                        Err(error @ (AgentError::Unreachable(_) | AgentError::Taken)) => {
                            tracing::warn!(%session, pod = pod.name, %error, "warm pod is of no use");
                            let (slug, dead) = (&organization.slug, Some(pod.name.as_str()));
                            patiently!(self, began, session, self.pods.release(slug, session, dead))?;
                            self.check_deadline(began, "a usable warm pod")?;
                            sleep(SLOW_POLL).await;
                        }
                        Err(error) => return Err(error.into()),
                    }
                }
                _ => break pod,
            }
        };
        if pod.kind == PodKind::Warm {
            self.metrics.pod_claimed(pod.kind.as_str(), began.elapsed());
        }
        if !patiently!(self, began, session, self.record_starting(&organization, session, &pod))? {
            // Deleted meanwhile; whoever did that may have looked before there was a pod.
            return self.let_go(&organization, session).await;
        }
        self.await_ready(&organization, session, pod, began).await
    }

    /// The cluster or the database is away: waits, unless the start's deadline is over.
    pub(super) async fn hold_on(
        &self,
        began: Instant,
        session: Uuid,
        error: &LifecycleError,
    ) -> Result<(), LifecycleError> {
        tracing::warn!(%session, %error, "a step of the session's start has to wait");
        self.check_deadline(began, &error.to_string())?;
        sleep(SLOW_POLL).await;
        Ok(())
    }

    async fn record_starting(
        &self,
        organization: &Organization,
        session: Uuid,
        pod: &Pod,
    ) -> Result<bool, LifecycleError> {
        let mut tx = self.store.tenant_tx(&TenantScope::system(organization)).await?;
        let recorded = tx.session_starting(session, &pod.name, pod.ip()).await?;
        tx.commit().await?;
        Ok(recorded)
    }

    async fn record_running(&self, organization: &Organization, session: Uuid) -> Result<bool, LifecycleError> {
        let mut tx = self.store.tenant_tx(&TenantScope::system(organization)).await?;
        let running = tx.session_running(session).await?;
        tx.commit().await?;
        Ok(running)
    }

    /// Waits for the container, then for the agent's first screen, then opens the session for messages.
    pub(super) async fn await_ready(
        &self,
        organization: &Organization,
        session: Uuid,
        mut pod: Pod,
        began: Instant,
    ) -> Result<(), LifecycleError> {
        let kind = pod.kind;
        let mut known_ip = None;
        loop {
            let ip = match &pod.state {
                PodState::Running(ip) => ip.clone(),
                PodState::Waiting(_) => {
                    let left = self.start_deadline.saturating_sub(began.elapsed());
                    let slug = &organization.slug;
                    let seen = patiently!(self, began, session, self.pods.wait_running(slug, &pod.name, left))?;
                    let Some(seen) = seen else {
                        return Err(LifecycleError::PodLost("the session's pod was deleted while it started".into()));
                    };
                    if let PodState::Waiting(why) = &seen.state {
                        self.check_deadline(began, why.as_deref().unwrap_or("the pod"))?;
                    }
                    pod = Pod { kind, ..seen };
                    continue;
                }
                PodState::Terminating => {
                    return Err(LifecycleError::PodLost("the session's pod was deleted while it started".into()));
                }
                PodState::Failed(why) => return Err(LifecycleError::PodLost(why.clone())),
            };
            if known_ip.as_ref() != Some(&ip) {
                if !patiently!(self, began, session, self.record_starting(organization, session, &pod))? {
                    return self.let_go(organization, session).await;
                }
                if kind != PodKind::Warm {
                    self.metrics.pod_claimed(kind.as_str(), began.elapsed());
                }
                known_ip = Some(ip.clone());
            }
            if matches!(self.agents.is_ready(&ip).await, Ok(true)) {
                break;
            }
            self.check_deadline(began, "the agent's first screen")?;
            if began.elapsed() > PATIENCE {
                // It may have been restarted or evicted: look again at the pod itself.
                sleep(SLOW_POLL).await;
                pod.state = PodState::Waiting(None);
            } else {
                sleep(POLL).await;
            }
        }
        let running = patiently!(self, began, session, self.record_running(organization, session))?;
        if running {
            self.metrics.session_started(kind.as_str(), began.elapsed());
            tracing::info!(%session, pod = pod.name, kind = kind.as_str(), took = ?began.elapsed(), "session is running");
        }
        Ok(())
    }

    fn check_deadline(&self, began: Instant, waiting_for: &str) -> Result<(), LifecycleError> {
        if began.elapsed() < self.start_deadline {
            return Ok(());
        }
        Err(LifecycleError::Deadline(self.start_deadline.as_secs(), format!("; it waited for: {waiting_for}")))
    }
}
