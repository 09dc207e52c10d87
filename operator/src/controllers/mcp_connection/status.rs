//! What we say about an `McpConnection`. Pure.
use crate::{
    controllers::reference::Refusal,
    status::{Saying, merge},
};
use agentapi_crds::{
    McpConnection,
    conditions::{ACCEPTED, READY, reason},
    mcp_connection::McpConnectionStatus,
};
use k8s_openapi::jiff::Timestamp;

/// How far a connection has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It is not allowed, or it makes no sense.
    Refused(Refusal),
    /// It waits for something: the reason, and what people read.
    Waiting(&'static str, String),
    /// The gateway can use it.
    InPlace,
}

/// The new status.
pub fn status(connection: &McpConnection, state: &State, now: Timestamp) -> McpConnectionStatus {
    let old = connection.status.clone().unwrap_or_default();
    let generation = connection.metadata.generation;
    let accepted = || Saying::yes(ACCEPTED, reason::ACCEPTED, "the Organization admits this connection");
    let (sayings, id) = match state {
        State::Refused(refusal) => (
            [
                Saying::no(ACCEPTED, refusal.reason, refusal.message.clone()),
                Saying::no(READY, refusal.reason, refusal.message.clone()),
            ],
            None,
        ),
        State::Waiting(why, message) => ([accepted(), Saying::no(READY, why, message.clone())], old.connection_id),
        State::InPlace => (
            [accepted(), Saying::yes(READY, reason::RECONCILED, "the connection is known to the API")],
            connection.metadata.uid.clone(),
        ),
    };
    McpConnectionStatus {
        observed_generation: generation,
        connection_id: id,
        conditions: merge(&old.conditions, &sayings, generation, now),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::mcp_connection::validate::tests::github;

    #[test]
    fn a_refused_connection_has_no_id_and_says_why_twice() {
        let refused = State::Refused(Refusal::new(reason::ORGANIZATION_NOT_FOUND, "there is no Organization"));
        let shown = status(&github(), &refused, Timestamp::UNIX_EPOCH);
        assert_eq!(shown.connection_id, None);
        assert!(
            shown
                .conditions
                .iter()
                .all(|condition| condition.status == "False" && condition.reason == reason::ORGANIZATION_NOT_FOUND)
        );
        let ready = status(&github(), &State::InPlace, Timestamp::UNIX_EPOCH);
        assert!(ready.conditions.iter().all(|condition| condition.status == "True"));
        assert!(ready.connection_id.is_some());
    }
}
