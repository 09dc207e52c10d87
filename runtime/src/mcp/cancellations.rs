//! Requests that their clients have cancelled. Behind the older transport one replica holds the conversation of a
//! request, and the client may have told another one: all of them hear of it. May touch: `store`.

use std::collections::HashMap;
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::store::cancellations::Cancellations as Said;
use crate::store::{Store, StoreError};

/// Requests wait so long for it at the start; without Postgres they are answered nevertheless.
const FIRST: Duration = Duration::from_secs(5);
/// Before listening again when Postgres was away.
const PAUSE: Duration = Duration::from_secs(1);

/// The name of a request among all of all organizations: that of its session cannot be guessed.
pub fn name(session: &str, id: &Value) -> String {
    hex::encode(Sha256::digest(format!("{}:{session}{id}", session.len())))
}

/// Who waits, by the name of the request: whatever else is said, and everybody who can log in to Postgres can say
/// something, costs one look and reaches nobody.
#[derive(Clone, Default)]
pub struct Cancellations(Arc<Mutex<HashMap<String, Vec<oneshot::Sender<()>>>>>);

impl Cancellations {
    fn waiting(&self) -> MutexGuard<'_, HashMap<String, Vec<oneshot::Sender<()>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of one request, from now on.
    pub fn of(&self, request: String) -> Watch {
        let (tell, told) = oneshot::channel();
        self.waiting().entry(request.clone()).or_default().push(tell);
        Watch { all: self.clone(), request, told }
    }

    fn hear(&self, request: &str) {
        for waiting in self.waiting().remove(request).unwrap_or_default() {
            // It may have gone this moment.
            let _ = waiting.send(());
        }
    }

    /// Listens for the first time, before any request is taken: nobody would hear that it was cancelled.
    pub async fn begin(store: &Store) -> Option<Said> {
        timeout(FIRST, store.cancellations()).await.ok()?.ok()
    }

    /// Listens until `stop`; `begun` is where it listens already.
    pub async fn run(&self, store: &Store, mut begun: Option<Said>, stop: CancellationToken) {
        while !stop.is_cancelled() {
            tokio::select! {
                () = stop.cancelled() => return,
                Err(error) = self.follow(store, begun.take()) => tracing::warn!(%error, "cannot hear of cancelled requests"),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    async fn follow(&self, store: &Store, begun: Option<Said>) -> Result<std::convert::Infallible, StoreError> {
        let mut said = match begun {
            Some(said) => said,
            None => store.cancellations().await?,
        };
        loop {
            self.hear(&said.next().await?);
        }
    }
}

/// Waits for one request to be cancelled.
pub struct Watch {
    all: Cancellations,
    request: String,
    told: oneshot::Receiver<()>,
}

impl Watch {
    /// Returns when it is; then nothing more can be heard of it.
    pub async fn cancelled(&mut self) {
        if (&mut self.told).await.is_err() {
            pending::<()>().await;
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.told.close();
        let mut waiting = self.all.waiting();
        if let Some(same) = waiting.get_mut(&self.request) {
            same.retain(|it| !it.is_closed());
            if same.is_empty() {
                waiting.remove(&self.request);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::iter::repeat_n;

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

    /// Whether it has been cancelled by now.
    async fn is_cancelled(watch: &mut Watch) -> bool {
        tokio::select! {
            biased;
            () = watch.cancelled() => true,
            () = std::future::ready(()) => false,
        }
    }

    #[tokio::test]
    async fn only_the_request_itself_is_cancelled_however_much_else_is_said() {
        let all = Cancellations::default();
        let (mut one, mut other) = (all.of("one".to_owned()), all.of("other".to_owned()));
        // Two clients may not, but the same one may have two requests of a name.
        let mut again = all.of("one".to_owned());
        for request in repeat_n("third", 10_000).chain(["one"]).chain(repeat_n("fourth", 10_000)) {
            all.hear(request);
        }
        assert!(is_cancelled(&mut one).await && is_cancelled(&mut again).await);
        assert!(!is_cancelled(&mut other).await);
        // The name can be used again.
        let mut later = all.of("one".to_owned());
        drop(one);
        assert!(!is_cancelled(&mut later).await);
        all.hear("one");
        assert!(is_cancelled(&mut later).await);
    }

    #[tokio::test]
    async fn nothing_is_kept_of_who_does_not_wait_any_more() {
        let all = Cancellations::default();
        let (first, mut second) = (all.of("one".to_owned()), all.of("one".to_owned()));
        drop(first);
        assert_eq!(all.waiting()["one"].len(), 1);
        all.hear("one");
        assert!(is_cancelled(&mut second).await);
        drop((second, all.of("two".to_owned())));
        assert!(all.waiting().is_empty());
    }
}
