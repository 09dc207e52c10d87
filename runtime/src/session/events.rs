//! Events of a session: a sequence with ids, a bounded buffer for clients that come back, live delivery.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::broadcast;

use super::{
    messages::{Message, Role},
    permissions::{By, Pending},
};

/// Events that are kept for clients that come back.
const BUFFER_EVENTS: usize = 1024;
/// And how much text they may hold: each update carries the whole message.
const BUFFER_BYTES: usize = 2 * 1024 * 1024;
/// Events that a slow client may be behind before it gets a new snapshot instead.
const LIVE_EVENTS: usize = 256;

/// What the agent is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    /// Starting or working.
    Running,
    /// Waits for input.
    Stable,
}

/// Content of an event.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Body {
    /// `message_update`.
    Message {
        /// Message id.
        id: usize,
        /// Author.
        role: Role,
        /// Whole text.
        message: String,
        /// Time of the change.
        time: Timestamp,
    },
    /// `status_change`.
    Status {
        /// New status.
        status: Status,
        /// Agent type.
        agent_type: String,
    },
    /// `agent_error`.
    Error {
        /// What happened.
        message: String,
        /// `error` or `warning`.
        level: &'static str,
        /// When.
        time: Timestamp,
    },
    /// `permission`: the agent asks whether it may use a tool.
    Permission(Pending),
    /// `permission_resolved`
    Resolved {
        /// Of the request.
        id: String,
        /// `selected` or `cancelled`.
        outcome: &'static str,
        /// The option that was selected.
        #[serde(skip_serializing_if = "Option::is_none")]
        option_id: Option<String>,
        /// Who decided.
        by: By,
    },
}

impl Body {
    /// The update that carries a message.
    pub(super) fn message(message: &Message) -> Self {
        Self::Message { id: message.id, role: message.role, message: message.content.clone(), time: message.time }
    }

    /// Name of the event.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Message { .. } => "message_update",
            Self::Status { .. } => "status_change",
            Self::Error { .. } => "agent_error",
            Self::Permission(_) => "permission",
            Self::Resolved { .. } => "permission_resolved",
        }
    }

    fn size(&self) -> usize {
        match self {
            Self::Message { message, .. } | Self::Error { message, .. } => message.len() + 64,
            Self::Permission(pending) => pending.size(),
            Self::Status { .. } | Self::Resolved { .. } => 128,
        }
    }
}

/// An event with its place in the sequence.
#[derive(Debug)]
pub(super) struct Event {
    /// Counted from 1.
    pub sequence: u64,
    /// Content.
    pub body: Body,
}

/// What a client gets first, and then.
pub(super) struct Subscription {
    /// Events since the client's last one, or `None`: send a snapshot that stands for everything up to `sequence`.
    pub missed: Option<Vec<Arc<Event>>>,
    /// Last event that happened before `live`.
    pub sequence: u64,
    /// What happens from now on.
    pub live: broadcast::Receiver<Arc<Event>>,
}

#[derive(Default)]
struct Buffer {
    sequence: u64,
    events: VecDeque<Arc<Event>>,
    bytes: usize,
}

/// The sequence of events.
pub(super) struct Hub {
    epoch: String,
    /// Id of the last event of the process before this one, if nothing happened after it.
    before: Option<String>,
    buffer: Mutex<Buffer>,
    live: broadcast::Sender<Arc<Event>>,
}

impl Hub {
    /// A new sequence. `epoch` tells it from the sequences of earlier processes; whoever has seen the event `before` has
    /// missed nothing of the one before this.
    pub(super) fn new(epoch: String, before: Option<String>) -> Self {
        Self { epoch, before, buffer: Mutex::default(), live: broadcast::channel(LIVE_EVENTS).0 }
    }

    /// Id of the last event.
    pub(super) fn last_id(&self) -> String {
        self.id(self.buffer.lock().unwrap_or_else(PoisonError::into_inner).sequence)
    }

    /// The name of this sequence, and of the process that makes it.
    pub(super) fn epoch(&self) -> &str {
        &self.epoch
    }

    /// Adds an event.
    pub(super) fn publish(&self, body: Body) {
        let mut buffer = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        buffer.sequence += 1;
        let event = Arc::new(Event { sequence: buffer.sequence, body });
        buffer.bytes += event.body.size();
        buffer.events.push_back(Arc::clone(&event));
        while buffer.events.len() > BUFFER_EVENTS || (buffer.bytes > BUFFER_BYTES && buffer.events.len() > 1) {
            if let Some(old) = buffer.events.pop_front() {
                buffer.bytes -= old.body.size();
            }
        }
        // No receiver is no error: nobody is listening now.
        let _ = self.live.send(event);
    }

    /// Id of an event on the wire.
    pub(super) fn id(&self, sequence: u64) -> String {
        format!("{}-{sequence}", self.epoch)
    }

    /// Starts to listen after the event with the id `last`.
    pub(super) fn subscribe(&self, last: Option<&str>) -> Subscription {
        let buffer = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        let sequence = |id: &str| id.strip_prefix(self.epoch.as_str())?.strip_prefix('-')?.parse::<u64>().ok();
        let last = last
            .and_then(|id| if Some(id) == self.before.as_deref() { Some(0) } else { sequence(id) })
            .filter(|last| *last <= buffer.sequence);
        let missed = last.filter(|last| {
            let oldest = buffer.events.front().map_or(buffer.sequence + 1, |event| event.sequence);
            *last + 1 >= oldest
        });
        Subscription {
            missed: missed
                .map(|last| buffer.events.iter().filter(|event| event.sequence > last).map(Arc::clone).collect()),
            sequence: buffer.sequence,
            live: self.live.subscribe(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    fn status() -> Body {
        Body::Status { status: Status::Stable, agent_type: "custom".to_owned() }
    }

    #[test]
    fn a_client_that_comes_back_gets_exactly_what_it_missed() {
        let hub = Hub::new("e1".to_owned(), None);
        for _ in 0..5 {
            hub.publish(status());
        }
        let missed = hub.subscribe(Some("e1-3")).missed.unwrap();
        assert_eq!(missed.iter().map(|event| event.sequence).collect::<Vec<_>>(), [4, 5]);
        assert!(hub.subscribe(Some("e1-5")).missed.unwrap().is_empty());
    }

    #[test]
    fn a_client_goes_on_over_the_end_of_a_process_that_ended_in_order() {
        let first = Hub::new("e1".to_owned(), None);
        first.publish(status());
        first.publish(status());
        assert_eq!(first.last_id(), "e1-2");
        let second = Hub::new("e2".to_owned(), Some(first.last_id()));
        assert!(second.subscribe(Some("e1-2")).missed.unwrap().is_empty());
        second.publish(status());
        assert_eq!(second.subscribe(Some("e1-2")).missed.unwrap().len(), 1);
        assert!(second.subscribe(Some("e1-1")).missed.is_none(), "it missed something that nobody has any more");
        for _ in 0..2000 {
            second.publish(status());
        }
        assert!(second.subscribe(Some("e1-2")).missed.is_none());
    }

    #[test]
    fn unknown_ids_get_a_snapshot() {
        let hub = Hub::new("e1".to_owned(), None);
        hub.publish(status());
        for id in [None, Some("e0-1"), Some("e1-9"), Some("e1-"), Some("1"), Some("e1-1-0"), Some("e1--1")] {
            assert!(hub.subscribe(id).missed.is_none(), "{id:?}");
        }
    }

    #[test]
    fn the_buffer_is_bounded_in_events_and_bytes() {
        let hub = Hub::new("e".to_owned(), None);
        for _ in 0..3000 {
            hub.publish(status());
        }
        assert!(hub.subscribe(Some("e-1")).missed.is_none());
        assert_eq!(hub.subscribe(Some("e-1976")).missed.unwrap().len(), 1024);
        for id in 0..50 {
            let message = "x".repeat(1024 * 1024);
            hub.publish(Body::Message { id, role: Role::Agent, message, time: Timestamp::UNIX_EPOCH });
        }
        assert!(hub.buffer.lock().unwrap().bytes <= BUFFER_BYTES);
    }
}
