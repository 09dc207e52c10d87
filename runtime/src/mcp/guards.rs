//! The breaker of each connection, and places for calls: of each connection and of each organization. May touch: memory.

use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use uuid::Uuid;

use super::error::{UpstreamError, Verdict};
use super::upstream::Target;
use crate::resilience::breaker::{Breaker, Permit, State};
use crate::resilience::bulkhead::Bulkhead;

/// Calls to one server at a time, from one replica.
const CALLS_OF_A_CONNECTION: usize = 32;
/// Calls of one organization at a time, from one replica.
const CALLS_OF_AN_ORGANIZATION: usize = 128;
/// Streams of servers' own that an organization has open, from one replica.
const STREAMS_OF_AN_ORGANIZATION: usize = 256;
/// A connection that nobody calls for so long begins with a closed breaker.
const FORGET_AFTER: Duration = Duration::from_secs(3600);

type Key = (Uuid, Uuid);

/// All of them.
pub struct Guards {
    started: Instant,
    breakers: Cache<Key, Arc<Breaker>>,
    connections: Bulkhead<Key>,
    organizations: Bulkhead<Uuid>,
    streams: Bulkhead<Uuid>,
}

impl Default for Guards {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            breakers: Cache::builder().max_capacity(100_000).time_to_idle(FORGET_AFTER).build(),
            connections: Bulkhead::new(CALLS_OF_A_CONNECTION),
            organizations: Bulkhead::new(CALLS_OF_AN_ORGANIZATION),
            streams: Bulkhead::new(STREAMS_OF_AN_ORGANIZATION),
        }
    }
}

/// A call that was let through.
#[must_use]
pub struct Ticket {
    permit: Permit,
    started: Instant,
    breaker: Arc<Breaker>,
    _places: [OwnedSemaphorePermit; 2],
}

impl Ticket {
    /// It is over; gives back what the breaker does now.
    pub fn end(self, verdict: Verdict) -> State {
        match verdict {
            Verdict::Healthy => self.permit.succeeded(),
            Verdict::Failing => self.permit.failed(self.started.elapsed()),
            Verdict::Unknown => drop(self.permit),
        }
        self.breaker.state()
    }
}

impl Guards {
    /// A place and the breaker's permission, or why not.
    pub async fn enter(&self, target: Target<'_>) -> Result<Ticket, UpstreamError> {
        let breaker = self.breaker(target);
        // Asked first: whoever would be refused takes no place. Asked again below, when a place is there.
        if breaker.state() == State::Open {
            drop(breaker.admit(self.started.elapsed())?);
        }
        let key = (target.organization.id, target.connection.id);
        let places = [self.organizations.enter(key.0).await?, self.connections.enter(key).await?];
        let permit = breaker.admit(self.started.elapsed())?;
        Ok(Ticket { permit, started: self.started, breaker, _places: places })
    }

    /// A place for a stream that stays open.
    pub async fn enter_stream(&self, organization: Uuid) -> Result<OwnedSemaphorePermit, UpstreamError> {
        Ok(self.streams.enter(organization).await?)
    }

    /// What the breaker of a connection does.
    pub fn state(&self, target: Target<'_>) -> State {
        self.breaker(target).state()
    }

    /// A breaker whose settings were changed begins anew.
    fn breaker(&self, target: Target<'_>) -> Arc<Breaker> {
        let (key, settings) = ((target.organization.id, target.connection.id), target.connection.breaker);
        match self.breakers.get(&key) {
            Some(breaker) if breaker.settings() == settings => breaker,
            Some(_) => {
                let breaker = Arc::new(Breaker::new(settings));
                self.breakers.insert(key, Arc::clone(&breaker));
                breaker
            }
            None => self.breakers.get_with(key, || Arc::new(Breaker::new(settings))),
        }
    }
}
