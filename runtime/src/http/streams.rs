//! How many event streams one user may have open here: each holds a connection, and that of a suspended session asks
//! Postgres. May touch: memory.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use axum::response::Response;
use futures::StreamExt;
use http::StatusCode;
use uuid::Uuid;

use super::error::Problem;
use crate::auth::Caller;
use crate::metrics::Metrics;

/// Streams end when their sessions are over or somebody closes them; nobody knows when that is.
const RETRY_SECONDS: u32 = 5;

/// Organization and user.
type User = (Uuid, Uuid);

/// The open streams of this replica. Only users who have some are kept.
pub struct Streams {
    most: u32,
    open: Arc<Mutex<HashMap<User, u32>>>,
}

/// A stream that is open until this is dropped.
pub(super) struct Open {
    user: User,
    open: Arc<Mutex<HashMap<User, u32>>>,
}

impl Streams {
    /// None is open yet. `most` is what a user may have on all replicas together.
    pub fn new(most: NonZeroU32, replicas: NonZeroU32) -> Self {
        Self { most: most.get().div_ceil(replicas.get()), open: Arc::default() }
    }

    /// One more.
    pub(super) fn open(&self, caller: &Caller, metrics: &Metrics) -> Result<Open, Problem> {
        let user = (caller.organization.id, caller.user_id);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let streams = open.entry(user).or_default();
        if *streams >= self.most {
            metrics.throttled(&caller.organization.slug, "streams");
            let detail = format!(
                "You have {} event streams open, as many as you may have at a time; close one, or wait until one ends.",
                self.most
            );
            let title = "Too many event streams";
            return Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, "too-many-streams", title, detail)
                .with("limit", self.most)
                .retry_after(RETRY_SECONDS));
        }
        *streams += 1;
        Ok(Open { user, open: Arc::clone(&self.open) })
    }
}

impl Open {
    /// Counts as open for as long as the response's body is there: the server drops it when the client goes.
    pub(super) fn held_by(self, response: Response) -> Response {
        response.map(|body| {
            Body::from_stream(body.into_data_stream().map(move |chunk| {
                let _still = &self;
                chunk
            }))
        })
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(streams) = open.get_mut(&self.user) {
            *streams -= 1;
            if *streams == 0 {
                open.remove(&self.user);
            }
        }
    }
}
