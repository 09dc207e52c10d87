//! Memory that requests and their answers take, of each organization and of all: bodies that are read whole, and answers
//! that wait for a slow reader. Without it one tenant could fill the process that serves everybody. May touch: memory.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::StatusCode;
use hyper::body::{Frame, SizeHint};
use uuid::Uuid;

use super::App;
use super::error::Problem;
use crate::resilience::memory::{Memory, NoRoom, Room};

/// Of all organizations, and of one: its longest body, the transcript of a session's pod, fits in.
const ALL: usize = 160 * 1024 * 1024;
const OF_AN_ORGANIZATION: usize = 96 * 1024 * 1024;
/// A body is there as it was read, as it was parsed, and as it goes on.
pub(super) const COPIES: usize = 3;
/// What is smaller is not worth counting, and goes through when everything else has to wait.
const SMALL: usize = 64 * 1024;

/// The memory of this replica.
#[derive(Clone)]
pub struct Held(Arc<Memory<Uuid>>);

impl Default for Held {
    fn default() -> Self {
        Self(Arc::new(Memory::new(ALL, OF_AN_ORGANIZATION)))
    }
}

impl Held {
    /// Room for so many bytes of an organization, each of them so many times.
    pub(super) fn room(&self, organization: Uuid, copies: usize, bytes: usize) -> Result<Room, NoRoom> {
        let mut room = self.0.room(organization, copies);
        room.hold(counted(bytes))?;
        Ok(room)
    }
}

fn counted(bytes: usize) -> usize {
    if bytes <= SMALL { 0 } else { bytes }
}

/// What the request at hand takes.
struct Taken {
    held: Held,
    /// Nobody's until the caller is known.
    whose: Option<Uuid>,
    body: Option<Room>,
}

tokio::task_local! {
    static CURRENT: Arc<Mutex<Taken>>;
}

fn locked(taken: &Mutex<Taken>) -> MutexGuard<'_, Taken> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says whose the request at hand is.
pub(super) fn is_of(organization: Uuid) {
    // A test may call a handler by itself.
    let _ = CURRENT.try_with(|taken| locked(taken).whose = Some(organization));
}

/// The body of the request at hand has so many bytes by now. They count until it is answered.
pub(super) fn body(bytes: usize) -> Result<(), Problem> {
    if bytes <= SMALL {
        return Ok(());
    }
    let more = |taken: &Arc<Mutex<Taken>>| {
        let mut taken = locked(taken);
        let Taken { held, whose, body } = &mut *taken;
        // Who is nobody has nothing long to say.
        let whose = whose.ok_or_else(|| Problem::too_large(SMALL))?;
        Ok(body.get_or_insert_with(|| held.0.room(whose, COPIES)).hold(bytes)?)
    };
    CURRENT.try_with(more).unwrap_or(Ok(()))
}

/// The middleware.
pub(super) async fn middleware(State(app): State<App>, request: Request, next: Next) -> Response {
    let taken = Arc::new(Mutex::new(Taken { held: app.held.clone(), whose: None, body: None }));
    let response = CURRENT.scope(Arc::clone(&taken), next.run(request)).await;
    // A stream has no length, and is not in memory as a whole; what everybody may read is there once.
    let bytes = response.body().size_hint().exact().and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(0);
    let Some(whose) = locked(&taken).whose.filter(|_| bytes > SMALL) else { return response };
    match app.held.room(whose, 1, bytes) {
        Ok(room) => response.map(|body| Body::new(InRoom { body, room: Arc::new(room) })),
        Err(full) => Problem::from(full).into_response(),
    }
}

impl From<NoRoom> for Problem {
    fn from(full: NoRoom) -> Self {
        let (slug, title) = ("too-much-at-a-time", "Too much at a time");
        match full {
            NoRoom::Share => {
                let detail =
                    "What your organization sends and waits for is too much at a time; send less, or read faster.";
                Self::new(StatusCode::TOO_MANY_REQUESTS, slug, title, detail).retry_after(1)
            }
            NoRoom::All => Self::unavailable(slug, "This server has too much to pass on at the moment; try again.", 1),
        }
    }
}

/// An answer that takes memory until it is sent: the server has all of it in hand long before a slow reader has.
struct InRoom {
    body: Body,
    room: Arc<Room>,
}

/// A part of it.
struct Part(Bytes, #[allow(dead_code)] Arc<Room>);

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl HttpBody for InRoom {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        let in_room = |bytes: Bytes| Bytes::from_owner(Part(bytes, Arc::clone(&self.room)));
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(in_room))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_organization_leaves_room_for_others_and_what_is_small_always_goes_through() {
        const MIB: usize = 1024 * 1024;
        let (held, [mine, other, third]) = (Held::default(), [1, 2, 3].map(Uuid::from_u128));
        let refused = |whose, bytes| held.room(whose, COPIES, bytes).err();
        let transcript = held.room(mine, COPIES, 32 * MIB).unwrap();
        assert_eq!((refused(mine, SMALL + 1), refused(mine, SMALL)), (Some(NoRoom::Share), None));
        assert_eq!(refused(other, 21 * MIB), None);
        let _others = held.room(other, COPIES, 21 * MIB).unwrap();
        assert_eq!((refused(third, MIB), refused(third, SMALL)), (Some(NoRoom::All), None));
        drop(transcript);
        assert_eq!((refused(mine, SMALL + 1), refused(third, MIB)), (None, None));
    }
}
