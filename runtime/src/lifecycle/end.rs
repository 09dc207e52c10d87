//! From a session that should end to one whose pod and Secret are gone.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::{Lifecycle, LifecycleError};
use crate::audit::{Entry, Origin, action};
use crate::store::identity::Organization;
use crate::store::{TenantScope, TenantTx};

/// How often a pod on its way out is looked at.
const POLL: Duration = Duration::from_millis(500);
/// After this long the reconciler has the rest.
const PATIENCE: Duration = Duration::from_secs(90);

impl Lifecycle {
    /// Ends a session for the user or the platform: marks it, records that in the audit log, and deletes the pod in
    /// the background. False: it was not there to be ended, or somebody else is already at it.
    pub async fn end(
        self: &Arc<Self>,
        scope: &TenantScope<'_>,
        organization: &Arc<Organization>,
        session: Uuid,
        reason: &'static str,
        origin: &Origin,
    ) -> Result<bool, LifecycleError> {
        let mut tx = self.store.tenant_tx(scope).await?;
        let changed = tx.session_terminating(session).await?;
        self.begin_end(tx, organization, session, changed, reason, origin).await
    }

    /// Ends a session that nobody has used for so long. False: somebody has, or it does not wait for anybody.
    pub(super) async fn end_idle(
        self: &Arc<Self>,
        organization: &Arc<Organization>,
        session: Uuid,
        idle: Duration,
    ) -> Result<bool, LifecycleError> {
        let mut tx = self.store.tenant_tx(&TenantScope::system(organization)).await?;
        let changed = tx.session_terminating_idle(session, idle.as_secs_f64()).await?;
        self.begin_end(tx, organization, session, changed, "idle", &Origin::system("sessions")).await
    }

    async fn begin_end(
        self: &Arc<Self>,
        mut tx: TenantTx,
        organization: &Arc<Organization>,
        session: Uuid,
        changed: bool,
        reason: &'static str,
        origin: &Origin,
    ) -> Result<bool, LifecycleError> {
        if changed {
            let id = session.to_string();
            tx.audit(&Entry {
                origin,
                action: action::SESSION_DELETE,
                target_kind: "session",
                target_id: Some(&id),
                detail: json!({ "reason": reason }),
            })
            .await?;
        }
        tx.commit().await?;
        if changed {
            self.metrics.session_over(reason);
            tracing::info!(%session, reason, "session is ending");
            self.finish_end(Arc::clone(organization), session);
        }
        Ok(changed)
    }

    /// Deletes what a Terminating session still has, in the background.
    fn finish_end(self: &Arc<Self>, organization: Arc<Organization>, session: Uuid) {
        let lifecycle = Arc::clone(self);
        self.tasks.spawn(async move {
            let began = Instant::now();
            loop {
                match lifecycle.end_step(&organization, session).await {
                    Ok(true) => return,
                    Ok(false) => {}
                    Err(error) => tracing::warn!(%session, %error, "cannot delete the session's pod yet"),
                }
                if began.elapsed() > PATIENCE {
                    return;
                }
                sleep(POLL).await;
            }
        });
    }

    /// Deletes what is left of a Terminating session, and marks it as Ended once nothing is. True: it has ended.
    pub(super) async fn end_step(&self, organization: &Organization, session: Uuid) -> Result<bool, LifecycleError> {
        let scope = TenantScope::system(organization);
        let mut tx = self.store.tenant_tx(&scope).await?;
        // A suspended session has no pod, and what is kept of it is named after the one that it had.
        let pod = tx.session(session).await?.and_then(|session| session.pod_name);
        tx.commit().await?;
        if !self.pods.release(&organization.slug, session, pod.as_deref()).await? {
            return Ok(false);
        }
        let mut tx = self.store.tenant_tx(&scope).await?;
        tx.session_ended(session).await?;
        tx.commit().await?;
        Ok(true)
    }
}
