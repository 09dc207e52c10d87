//! An organization is being deleted: whoever follows one of its sessions hears of it before the sessions end.

use std::collections::HashSet;
use std::time::Duration;

use futures::future::join_all;
use uuid::Uuid;

use super::Lifecycle;
use crate::pods::agent::Target;
use crate::store::identity::{Draining, Organization};
use crate::store::sessions::{Phase, Session};

/// All sessions of an organization together get no longer.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a session's followers are told.
pub(crate) fn notice(until: &str) -> String {
    format!(
        "Your organization is being deleted. This session ends at {until}; save what you need. Its messages can be read \
         until the organization is gone."
    )
}

impl Lifecycle {
    /// Tells each running session that was not told yet. Gives back those that know now.
    pub(super) async fn tell_of_drain(
        &self,
        organization: &Organization,
        draining: &Draining,
        sessions: &[Session],
        told: &HashSet<Uuid>,
    ) -> HashSet<Uuid> {
        let message = notice(&draining.until);
        let tell = sessions.iter().filter(|session| session.phase == Phase::Running).map(|session| {
            let message = &message;
            async move {
                let known = told.contains(&session.id);
                let target = session.pod_name.as_deref().zip(session.pod_ip.as_deref());
                let (Some((pod, ip)), false) = (target, known) else { return known.then_some(session.id) };
                let target = Target { session: session.id, pod, ip };
                let heard = tokio::time::timeout(PATIENCE, self.agents.notice(target, message)).await;
                match heard {
                    Ok(Ok(())) => Some(session.id),
                    Ok(Err(error)) => {
                        tracing::warn!(session = %session.id, %error, "cannot tell a session that it will end");
                        None
                    }
                    Err(_) => None,
                }
            }
        });
        let known: HashSet<Uuid> = join_all(tell).await.into_iter().flatten().collect();
        let news = known.difference(told).count();
        if news > 0 {
            let (organization, until) = (&organization.slug, &draining.until);
            tracing::info!(organization, until, sessions = news, "told sessions that they will end");
        }
        known
    }
}
