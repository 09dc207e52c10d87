//! Keeps the keys of running sessions' pods up to date: a pod learns which keys sign tokens for it, and has a session
//! token that the present key signed and that does not run out.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Lifecycle, LifecycleError};
use crate::auth::session_token::SessionClaims;
use crate::pods::agent::Target;
use crate::pods::{Pod, Rekey};
use crate::resilience::bulkhead::Semaphores;
use crate::store::identity::Organization;
use crate::store::sessions::{Phase, Session};
use agentapi_crds::names;
use uuid::Uuid;

/// Session tokens live a day; a session that lives longer gets a new one this often.
const RENEW_EVERY: Duration = Duration::from_secs(12 * 3600);
/// Pods of one organization that are told at a time.
const AT_A_TIME: usize = 8;

/// How far the keys of a session are.
#[derive(Clone, Copy)]
enum Renewal {
    UnderWay,
    Done(Instant),
}

/// The renewals that this replica remembers; a new leader begins with nothing, which costs it one more of each.
pub(super) struct Renewals {
    of_sessions: Mutex<HashMap<Uuid, Renewal>>,
    places: Semaphores<Uuid>,
}

impl Default for Renewals {
    fn default() -> Self {
        Self { of_sessions: Mutex::default(), places: Semaphores::new(AT_A_TIME) }
    }
}

impl Renewals {
    fn locked(&self) -> MutexGuard<'_, HashMap<Uuid, Renewal>> {
        self.of_sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// None: somebody is at it, or it is not time yet.
    fn begin(self: &Arc<Self>, session: Uuid, is_present: bool) -> Option<Renewing> {
        let mut renewals = self.locked();
        let wait = match renewals.get(&session) {
            Some(Renewal::UnderWay) => true,
            Some(Renewal::Done(at)) => is_present && at.elapsed() < RENEW_EVERY,
            None => false,
        };
        (!wait).then(|| {
            renewals.insert(session, Renewal::UnderWay);
            Renewing { renewals: Arc::clone(self), session, done: false }
        })
    }

    /// Forgets all other sessions.
    pub(super) fn keep(&self, sessions: &HashSet<Uuid>) {
        self.locked().retain(|session, renewal| matches!(renewal, Renewal::UnderWay) || sessions.contains(session));
    }
}

/// Under way until it is dropped, which a panic and the end of its task do too.
struct Renewing {
    renewals: Arc<Renewals>,
    session: Uuid,
    done: bool,
}

impl Renewing {
    fn end(mut self, done: bool) {
        self.done = done;
    }
}

impl Drop for Renewing {
    fn drop(&mut self) {
        let mut renewals = self.renewals.locked();
        if self.done {
            renewals.insert(self.session, Renewal::Done(Instant::now()));
        } else {
            renewals.remove(&self.session);
        }
    }
}

impl Lifecycle {
    /// Renews what is due, in the background: a pod that does not answer must not keep the loop from other sessions.
    pub(super) fn keep_keys(self: &Arc<Self>, organization: &Arc<Organization>, session: &Session, pod: Option<&Pod>) {
        let Some(pod) = pod.filter(|_| session.phase == Phase::Running) else { return };
        let is_present = self.has_present_keys(pod);
        let is_young = session.age_seconds < RENEW_EVERY.as_secs_f64();
        if is_present && is_young {
            return;
        }
        let Some(renewing) = self.renewals.begin(session.id, is_present) else { return };
        let (lifecycle, organization) = (Arc::clone(self), Arc::clone(organization));
        let (session, pod) = (session.clone(), pod.clone());
        self.tasks.spawn(async move {
            let _place = lifecycle.renewals.places.of(organization.id).acquire_owned().await;
            let renewed = lifecycle.rekey(&organization, &session, &pod).await;
            renewing.end(renewed.is_ok());
            if let Err(error) = renewed {
                tracing::warn!(session = %session.id, %error, "cannot renew the session's keys; trying again");
            }
        });
    }

    fn has_present_keys(&self, pod: &Pod) -> bool {
        let published = self.tokens.published();
        pod.token_key == self.tokens.key_id()
            && pod.known_keys == names::signing_key_ids(published.iter().map(String::as_str))
    }

    /// Into the Secret first: a container that restarts in between reads it there. The note on the pod goes before that
    /// and comes back last, and a rotation of the signing key waits for it.
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

#[cfg(test)]
mod tests {
    #![allow(clippy::panic)]
    use super::*;

    #[tokio::test]
    async fn a_renewal_that_panics_or_is_cut_off_is_taken_up_again() {
        let (renewals, session) = (Arc::new(Renewals::default()), Uuid::nil());
        let renewing = renewals.begin(session, false);
        assert!(renewing.is_some() && renewals.begin(session, false).is_none());
        let panics = tokio::spawn(async move {
            let _renewing = renewing;
            panic!("on purpose");
        });
        assert!(panics.await.is_err_and(|error| error.is_panic()));

        let renewing = renewals.begin(session, false);
        assert!(renewing.is_some());
        let never = tokio::spawn(async move {
            let _renewing = renewing;
            std::future::pending::<()>().await;
        });
        never.abort();
        assert!(never.await.is_err_and(|error| error.is_cancelled()));

        assert!(renewals.begin(session, false).map(|renewing| renewing.end(true)).is_some());
        assert!(renewals.begin(session, true).is_none(), "it is not time yet");
    }
}
