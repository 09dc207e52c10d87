//! Requests that their clients have cancelled. Behind the older transport one replica holds the conversation of a
//! request, and the client may have told another one: all of them hear of it. May touch: `store`.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio_util::sync::CancellationToken;

use crate::store::{Store, StoreError};

/// A conversation that is so far behind has missed some.
const WAITING: usize = 256;
/// Before listening again when Postgres was away.
const PAUSE: Duration = Duration::from_secs(1);

/// The name of a request among all of all organizations: that of its session cannot be guessed.
pub fn name(session: &str, id: &Value) -> String {
    hex::encode(Sha256::digest(format!("{}:{session}{id}", session.len())))
}

/// What was heard.
pub struct Cancellations(broadcast::Sender<Arc<str>>);

impl Default for Cancellations {
    fn default() -> Self {
        Self(broadcast::Sender::new(WAITING))
    }
}

impl Cancellations {
    /// Of one request, from now on.
    pub fn of(&self, request: String) -> Watch {
        Watch { request, heard: self.0.subscribe() }
    }

    /// Listens until `stop`.
    pub async fn run(&self, store: &Store, stop: CancellationToken) {
        while !stop.is_cancelled() {
            tokio::select! {
                () = stop.cancelled() => return,
                Err(error) = self.follow(store) => tracing::warn!(%error, "cannot hear of cancelled requests"),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    async fn follow(&self, store: &Store) -> Result<std::convert::Infallible, StoreError> {
        let mut said = store.cancellations().await?;
        loop {
            // Nobody listens: there is no such conversation here.
            let _ = self.0.send(said.next().await?.into());
        }
    }
}

/// Waits for one request to be cancelled.
pub struct Watch {
    request: String,
    heard: broadcast::Receiver<Arc<str>>,
}

impl Watch {
    /// Returns when it is.
    pub async fn cancelled(&mut self) {
        loop {
            match self.heard.recv().await {
                Ok(request) if *request == *self.request => return,
                Ok(_) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => std::future::pending().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn no_two_requests_have_a_name_in_common() {
        let names = [
            name("a", &json!(1)),
            name("a", &json!("1")),
            name("b", &json!(1)),
            name("a1", &json!(1)),
            name("a", &json!(11)),
        ];
        for (at, one) in names.iter().enumerate() {
            assert_eq!(one.len(), 64);
            assert!(!names[at + 1..].contains(one), "{at}");
        }
    }

    #[tokio::test]
    async fn only_the_request_itself_is_cancelled() {
        let all = Cancellations::default();
        let (mut one, mut other) = (all.of("one".to_owned()), all.of("other".to_owned()));
        // More than anybody waits for, and then the one.
        for request in std::iter::repeat_n("third", WAITING * 2).chain(["one"]) {
            assert!(all.0.send(request.into()).is_ok());
        }
        one.cancelled().await;
        assert!(tokio::time::timeout(Duration::from_millis(50), other.cancelled()).await.is_err());
    }
}
