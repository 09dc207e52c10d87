//! How many calls are under way at a time: to one server, and of one organization to all of them. Whoever finds no
//! place within a moment is told so; nobody queues up behind a server that hangs. May touch: memory.

use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long a call waits for a place.
const PATIENCE: Duration = Duration::from_secs(1);
/// Nobody has used it for so long: it is full again.
const FORGET_AFTER: Duration = Duration::from_secs(900);
const MOST_KEYS: u64 = 100_000;

/// All places are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} calls are under way already; send fewer at a time")]
pub struct Full(pub usize);

/// Places by key.
pub struct Bulkhead<K> {
    places: usize,
    semaphores: Cache<K, Arc<Semaphore>>,
}

impl<K: Hash + Eq + Send + Sync + 'static> Bulkhead<K> {
    /// With so many places for each key.
    pub fn new(places: usize) -> Self {
        let semaphores = Cache::builder().max_capacity(MOST_KEYS).time_to_idle(FORGET_AFTER).build();
        Self { places, semaphores }
    }

    /// Takes a place, which is free again when the value is dropped.
    pub async fn enter(&self, key: K) -> Result<OwnedSemaphorePermit, Full> {
        let semaphore = self.semaphores.get_with(key, || Arc::new(Semaphore::new(self.places)));
        match tokio::time::timeout(PATIENCE, semaphore.acquire_owned()).await {
            Ok(Ok(place)) => Ok(place),
            Ok(Err(_)) | Err(_) => Err(Full(self.places)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn each_key_has_its_own_places() {
        let bulkhead = Bulkhead::new(2);
        let (first, _second) = (bulkhead.enter("acme").await.unwrap(), bulkhead.enter("acme").await.unwrap());
        assert_eq!(bulkhead.enter("acme").await.unwrap_err(), Full(2));
        assert!(bulkhead.enter("globex").await.is_ok());
        drop(first);
        assert!(bulkhead.enter("acme").await.is_ok());
    }
}
