//! From a suspended session to a running one. The pod has the name of the one before: there are never two that write to
//! the session's volume. What does not work out leaves the session suspended, with the reason, and nothing is lost.

use std::sync::Arc;

use serde_json::json;
use tokio::time::Instant;
use uuid::Uuid;

use super::start::patiently;
use super::{Lifecycle, LifecycleError};
use crate::audit::{Entry, Origin, action};
use crate::auth::session_token::SessionClaims;
use crate::pods::{Pod, Rekey, Wake};
use crate::store::TenantScope;
use crate::store::identity::Organization;
use crate::store::sessions::{QuotaExceeded, Session};

/// What became of the wish to wake a session.
pub enum Woken {
    /// It is being started.
    Starts,
    /// It is not suspended (any more): somebody else was faster.
    Otherwise,
    /// There is no room for another running session.
    Full(QuotaExceeded),
    /// Its workspace is gone.
    NoWorkspace,
}

impl Lifecycle {
    /// Gives a suspended session a pod, in the background. Sessions that are suspended do not count against quotas of
    /// sessions at a time, so there may be no room.
    pub async fn wake(
        self: &Arc<Self>,
        scope: &TenantScope<'_>,
        organization: &Arc<Organization>,
        session: &Session,
        origin: &Origin,
    ) -> Result<Woken, LifecycleError> {
        if session.workspace_deleted {
            return Ok(Woken::NoWorkspace);
        }
        let mut tx = self.store.tenant_tx(scope).await?;
        match tx.reserve_session(&session.workspace, organization.max_sessions).await? {
            Some(Ok(_)) => {}
            Some(Err(exceeded)) => return Ok(Woken::Full(exceeded)),
            None => return Ok(Woken::NoWorkspace),
        }
        if !tx.session_waking(session.id).await? {
            return Ok(Woken::Otherwise);
        }
        let id = session.id.to_string();
        tx.audit(&Entry {
            origin,
            action: action::SESSION_WAKE,
            target_kind: "session",
            target_id: Some(&id),
            detail: json!({}),
        })
        .await?;
        tx.commit().await?;
        let (lifecycle, organization, session) = (Arc::clone(self), Arc::clone(organization), session.clone());
        self.tasks.spawn(async move {
            let began = Instant::now();
            let work = Box::pin(lifecycle.rouse(&organization, &session, began));
            if let Err(error) = lifecycle.with_heartbeat(&organization, session.id, work).await {
                lifecycle.asleep_again(&organization, session.id, &error.to_string()).await;
            }
        });
        Ok(Woken::Starts)
    }

    async fn rouse(
        &self,
        organization: &Organization,
        session: &Session,
        began: Instant,
    ) -> Result<(), LifecycleError> {
        let Some(pod) = session.pod_name.clone() else {
            return Err(LifecycleError::PodLost("nobody knows which pod the session had".to_owned()));
        };
        // The id first: if the key changes in between, the pod counts as one with an old token and gets another.
        let token_key = self.tokens.key_id();
        let claims = SessionClaims {
            sub: session.id,
            org: organization.slug.clone(),
            ws: session.workspace.clone(),
            pod: pod.clone(),
        };
        let rekey = Rekey { token: self.tokens.for_session(&claims)?, token_key, public_keys: self.tokens.published() };
        let wake = Wake {
            session: session.id,
            organization: organization.slug.clone(),
            workspace: session.workspace.clone(),
            pod,
            rekey,
        };
        let pod: Pod = patiently!(self, began, session.id, self.pods.wake(&wake))?;
        self.await_ready(organization, session.id, pod, began).await
    }

    /// A session that could not be woken is suspended again.
    pub(super) async fn asleep_again(self: &Arc<Self>, organization: &Arc<Organization>, session: Uuid, error: &str) {
        let marked = async {
            let mut tx = self.store.tenant_tx(&TenantScope::system(organization)).await?;
            let changed = tx.session_suspending_again(session, error).await?;
            tx.commit().await?;
            Ok::<_, LifecycleError>(changed)
        };
        match marked.await {
            Ok(true) => {
                tracing::warn!(%session, error, "session could not be woken; it stays suspended");
                self.finish_suspend(Arc::clone(organization), session);
            }
            // It was ended meanwhile; who did that has the pod.
            Ok(false) => {}
            // The reconciler finds a start that nobody works on.
            Err(store_error) => tracing::error!(%session, error, %store_error, "cannot mark the session as suspended"),
        }
    }
}
