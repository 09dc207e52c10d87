//! How many calls are under way at a time: to one server, and of one organization to all of them. Whoever finds no
//! place within a moment is told so; nobody queues up behind a server that hangs. May touch: memory.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long a call waits for a place.
const PATIENCE: Duration = Duration::from_secs(1);

/// All places are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} calls are under way already; send fewer at a time")]
pub struct Full(pub usize);

/// A semaphore for each key, for as long as somebody holds one of its places: one that nobody holds is a new one.
pub struct Semaphores<K> {
    places: usize,
    held: Mutex<Held<K>>,
}

struct Held<K> {
    by_key: HashMap<K, Weak<Semaphore>>,
    /// When there are so many, those that nobody holds are forgotten.
    tidy_at: usize,
}

impl<K: Hash + Eq> Semaphores<K> {
    /// With so many places for each key.
    pub fn new(places: usize) -> Self {
        Self { places, held: Mutex::new(Held { by_key: HashMap::new(), tidy_at: 64 }) }
    }

    /// The semaphore of a key.
    pub fn of(&self, key: K) -> Arc<Semaphore> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(semaphore) = held.by_key.get(&key).and_then(Weak::upgrade) {
            return semaphore;
        }
        if held.by_key.len() >= held.tidy_at {
            held.by_key.retain(|_, semaphore| semaphore.strong_count() > 0);
            held.tidy_at = (held.by_key.len() * 2).max(64);
        }
        let semaphore = Arc::new(Semaphore::new(self.places));
        held.by_key.insert(key, Arc::downgrade(&semaphore));
        semaphore
    }
}

/// Places by key.
pub struct Bulkhead<K>(Semaphores<K>);

impl<K: Hash + Eq> Bulkhead<K> {
    /// With so many places for each key.
    pub fn new(places: usize) -> Self {
        Self(Semaphores::new(places))
    }

    /// Takes a place, which is free again when the value is dropped.
    pub async fn enter(&self, key: K) -> Result<OwnedSemaphorePermit, Full> {
        match tokio::time::timeout(PATIENCE, self.0.of(key).acquire_owned()).await {
            Ok(Ok(place)) => Ok(place),
            Ok(Err(_)) | Err(_) => Err(Full(self.0.places)),
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

    #[tokio::test]
    async fn a_place_that_is_out_stays_out_whoever_else_comes_and_a_key_that_nobody_uses_takes_no_memory() {
        let bulkhead = Bulkhead::new(1);
        let _held = bulkhead.enter(0).await.unwrap();
        for key in 1..200_000 {
            drop(bulkhead.enter(key).await.unwrap());
        }
        assert_eq!(bulkhead.enter(0).await.unwrap_err(), Full(1));
        assert!(bulkhead.0.held.lock().unwrap().by_key.len() <= 64);
    }
}
