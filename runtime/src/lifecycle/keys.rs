//! Keeps the keys of running sessions' pods up to date: a pod learns which keys sign tokens for it, and has a session
//! token that the present key signed and that does not run out.

use std::time::{Duration, Instant};

use super::{Lifecycle, LifecycleError};
use crate::auth::session_token::SessionClaims;
use crate::pods::agent::Target;
use crate::pods::{Pod, Rekey};
use crate::store::identity::Organization;
use crate::store::sessions::{Phase, Session};
use agentapi_crds::names;

/// Session tokens live a day; a session that lives longer gets a new one this often.
const RENEW_EVERY: Duration = Duration::from_secs(12 * 3600);

impl Lifecycle {
    /// When the session's token was renewed last, now for one. None: not yet, or the next round tries again.
    pub(super) async fn keep_keys(
        &self,
        organization: &Organization,
        session: &Session,
        pod: Option<&Pod>,
        last: Option<&Instant>,
    ) -> Option<Instant> {
        let pod = pod.filter(|_| session.phase == Phase::Running)?;
        if self.has_present_keys(pod) {
            if session.age_seconds < RENEW_EVERY.as_secs_f64() {
                return None;
            }
            if let Some(last) = last.filter(|last| last.elapsed() < RENEW_EVERY) {
                return Some(*last);
            }
        }
        match self.rekey(organization, session, pod).await {
            Ok(()) => Some(Instant::now()),
            Err(error) => {
                tracing::warn!(session = %session.id, %error, "cannot renew the session's keys; trying again");
                None
            }
        }
    }

    fn has_present_keys(&self, pod: &Pod) -> bool {
        let published = self.tokens.published();
        pod.token_key == self.tokens.key_id()
            && pod.known_keys == names::signing_key_ids(published.iter().map(String::as_str))
    }

    /// Into the Secret first: a container that restarts in between reads it there. The note on the pod comes last, and
    /// a rotation of the signing key waits for it.
    async fn rekey(&self, organization: &Organization, session: &Session, pod: &Pod) -> Result<(), LifecycleError> {
        let Some(ip) = pod.ip() else { return Err(LifecycleError::PodLost("the pod does not run now".to_owned())) };
        let claims = SessionClaims {
            sub: session.id,
            org: organization.slug.clone(),
            ws: session.workspace.clone(),
            pod: pod.name.clone(),
        };
        let token_key = self.tokens.key_id();
        let token = self.tokens.for_session(&claims)?;
        let rekey = Rekey { token, token_key, public_keys: self.tokens.published() };
        self.pods.rekey(&organization.slug, &pod.name, &rekey).await?;
        self.agents.rekey(Target { session: session.id, pod: &pod.name, ip }, &rekey).await?;
        Ok(self.pods.rekeyed(&organization.slug, &pod.name, &rekey).await?)
    }
}
