//! From a session that nobody uses to one without a pod.
//!
//! The order matters for whoever takes over after a crash. A session is `Suspending` before anything of it is given up,
//! its Secret and its volume are taken over from the pod before the pod is deleted, and it is `Suspended` only once the
//! pod is gone. Each step may be repeated.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::{Lifecycle, LifecycleError};
use crate::audit::{Entry, Origin, action};
use crate::pods::agent::{AgentError, Target};
use crate::pods::{Pod, PodState};
use crate::store::identity::Organization;
use crate::store::sessions::{Phase, Session};
use crate::store::{TenantScope, TenantTx};

/// Why a pod went that we did not delete.
pub(super) const POD_DELETED: &str = "the session's pod was deleted by somebody else";
/// How often a pod on its way out is looked at.
const POLL: Duration = Duration::from_millis(500);
/// After this long the reconciler has the rest.
const PATIENCE: Duration = Duration::from_secs(90);

impl Lifecycle {
    /// Suspends a running session that was idle for `idle`, in the background: a pod that does not answer must not keep the
    /// loop from the other sessions.
    pub(super) fn suspend_if_idle(
        self: &Arc<Self>,
        organization: &Arc<Organization>,
        session: &Session,
        pod: Pod,
        idle: Duration,
    ) {
        let id = session.id;
        if !self.asked.lock().unwrap_or_else(PoisonError::into_inner).insert(id) {
            return;
        }
        // A panic and the end of the task take it back too.
        let lifecycle = scopeguard::guard(Arc::clone(self), move |lifecycle| {
            lifecycle.asked.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        });
        let (organization, session) = (Arc::clone(organization), session.clone());
        self.tasks.spawn(async move {
            if let Err(error) = lifecycle.suspend(&organization, &session, &pod, idle).await {
                tracing::warn!(session = %id, %error, "cannot suspend the session yet");
            }
        });
    }

    /// Suspends a session, unless its pod keeps nothing or its agent is at work.
    async fn suspend(
        self: &Arc<Self>,
        organization: &Arc<Organization>,
        session: &Session,
        pod: &Pod,
        idle: Duration,
    ) -> Result<bool, LifecycleError> {
        // One from before the workspace said that it may be suspended: what it holds would go with its pod.
        let Some(ip) = pod.ip().filter(|_| pod.keeps) else { return Ok(false) };
        let id = session.id;
        // What the row says of the agent may be older than what it does.
        let target = Target { session: id, pod: &pod.name, ip };
        let waits =
            async { Ok::<_, AgentError>(self.agents.is_stable(target).await? && !self.agents.asks(target).await?) };
        match waits.await {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(error) => {
                tracing::debug!(session = %id, %error, "not suspended: nobody knows what its agent does");
                return Ok(false);
            }
        }
        let mut tx = self.store.tenant_tx(&TenantScope::system(organization)).await?;
        let changed = tx.session_suspending(id, idle.as_secs_f64()).await?;
        self.begin_suspend(tx, organization, id, changed, &json!({ "idleAfter": session.suspend_after })).await
    }

    /// Suspends a running session whose pod is going without our doing, as with a node that is drained: what it holds is
    /// still there, and the agent begins again with the next message. False: nothing would be left of it.
    pub(super) async fn rescue(
        self: &Arc<Self>,
        organization: &Arc<Organization>,
        session: &Session,
        pod: &Pod,
        why: &str,
    ) -> Result<bool, LifecycleError> {
        if !pod.keeps || session.suspend_after.is_none() {
            return Ok(false);
        }
        tracing::warn!(session = %session.id, pod = pod.name, why, "the session's pod is going; it is suspended");
        let mut tx = self.store.tenant_tx(&TenantScope::system(organization)).await?;
        let changed = tx.session_losing_pod(session.id).await?;
        self.begin_suspend(tx, organization, session.id, changed, &json!({ "reason": why })).await?;
        Ok(true)
    }

    /// A session's pod has been told to end. Comes back when what the session holds does not go with it.
    pub async fn pod_ends(
        self: &Arc<Self>,
        organization: &Arc<Organization>,
        session: &Session,
    ) -> Result<(), LifecycleError> {
        // A pod that had no answer says it again, and who began to suspend its session then may not have come to its volume.
        if session.phase == Phase::Suspending {
            return self.suspend_step(organization, session.id).await.map(drop);
        }
        if session.phase != Phase::Running || session.suspend_after.is_none() {
            return Ok(());
        }
        let pods = self.pods.of_sessions(&organization.slug).await?;
        // A container that only restarts stays where it is.
        let ending = pods.into_iter().find(|(id, pod)| *id == session.id && pod.state == PodState::Terminating);
        if let Some((_, pod)) = ending
            && self.rescue(organization, session, &pod, POD_DELETED).await?
        {
            self.suspend_step(organization, session.id).await?;
        }
        Ok(())
    }

    async fn begin_suspend(
        self: &Arc<Self>,
        mut tx: TenantTx,
        organization: &Arc<Organization>,
        session: Uuid,
        changed: bool,
        detail: &Value,
    ) -> Result<bool, LifecycleError> {
        if changed {
            let id = session.to_string();
            tx.audit(&Entry {
                origin: &Origin::system("sessions"),
                action: action::SESSION_SUSPEND,
                target_kind: "session",
                target_id: Some(&id),
                detail: detail.clone(),
            })
            .await?;
        }
        tx.commit().await?;
        if changed {
            tracing::info!(%session, "session is being suspended");
            self.finish_suspend(Arc::clone(organization), session);
        }
        Ok(changed)
    }

    /// Gives up the pod of a Suspending session, in the background.
    pub(super) fn finish_suspend(self: &Arc<Self>, organization: Arc<Organization>, session: Uuid) {
        let lifecycle = Arc::clone(self);
        self.tasks.spawn(async move {
            let began = Instant::now();
            loop {
                match lifecycle.suspend_step(&organization, session).await {
                    Ok(true) => return,
                    Ok(false) => {}
                    Err(error) => tracing::warn!(%session, %error, "cannot give up the session's pod yet"),
                }
                if began.elapsed() > PATIENCE {
                    return;
                }
                sleep(POLL).await;
            }
        });
    }

    /// Gives up what a Suspending session still has of a pod, and marks it as Suspended once there is none. True:
    /// nothing is left to be done.
    pub(super) async fn suspend_step(
        &self,
        organization: &Organization,
        session: Uuid,
    ) -> Result<bool, LifecycleError> {
        let scope = TenantScope::system(organization);
        let mut tx = self.store.tenant_tx(&scope).await?;
        // Also says that somebody is at it.
        let mine = tx.session_touched(session).await?;
        tx.commit().await?;
        if !mine {
            return Ok(true);
        }
        if !self.pods.suspend(&organization.slug, session).await? {
            return Ok(false);
        }
        let mut tx = self.store.tenant_tx(&scope).await?;
        let suspended = tx.session_suspended(session).await?;
        tx.commit().await?;
        if suspended {
            tracing::info!(%session, "session is suspended");
        }
        Ok(true)
    }

    /// Lets go of a pod whose session went another way meanwhile, as that way asks for.
    pub(super) async fn let_go(&self, organization: &Organization, session: Uuid) -> Result<(), LifecycleError> {
        let mut tx = self.store.tenant_tx(&TenantScope::system(organization)).await?;
        let row = tx.session(session).await?;
        // A row stays when its session is over. In a fence that is down there are none, and nothing says who lives.
        let hidden = row.is_none() && !tx.sees_sessions().await?;
        tx.commit().await?;
        let slug = &organization.slug;
        if hidden {
            tracing::warn!(%session, organization = slug, "no session of the organization can be seen; its pod stays");
            return Ok(());
        }
        match row {
            // Somebody who works on it knows of the pod, or will find it.
            Some(row) if matches!(row.phase, Phase::Pending | Phase::Starting | Phase::Running) => {}
            Some(row) if row.phase.is_asleep() => {
                self.pods.suspend(slug, session).await?;
            }
            row => {
                let pod = row.and_then(|row| row.pod_name);
                self.pods.release(slug, session, pod.as_deref()).await?;
            }
        }
        Ok(())
    }
}
