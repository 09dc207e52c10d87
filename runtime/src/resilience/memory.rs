//! How many bytes of others' answers are in memory at a time: of one organization, and of all. Whoever comes when there
//! is no room is told so, before the bytes are taken. May touch: memory.

use std::hash::Hash;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::bulkhead::Semaphores;

/// There is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoRoom {
    /// The key's own share is used up.
    #[error("the answers that your organization waits for are too large together; ask for less at a time")]
    Share,
    /// All is used up.
    #[error("this server has too many large answers to pass on at the moment; try again")]
    All,
}

/// So many bytes, and so many of one key.
pub struct Memory<K> {
    all: Arc<Semaphore>,
    shares: Semaphores<K>,
}

/// Bytes that are taken until it is dropped.
#[derive(Debug)]
pub struct Room {
    /// What each byte costs: it is there more than once while it is passed on.
    price: usize,
    share: (Arc<Semaphore>, Option<OwnedSemaphorePermit>),
    all: (Arc<Semaphore>, Option<OwnedSemaphorePermit>),
}

impl<K: Hash + Eq> Memory<K> {
    /// With these sizes.
    pub fn new(all: usize, share: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), shares: Semaphores::new(share) }
    }

    /// A room of a key, with nothing in it yet, in which each byte takes so many.
    pub fn room(&self, key: K, price: usize) -> Room {
        Room { price, share: (self.shares.of(key), None), all: (Arc::clone(&self.all), None) }
    }
}

impl Room {
    /// Makes it this large, or smaller if it was larger.
    pub fn hold(&mut self, bytes: usize) -> Result<(), NoRoom> {
        let wanted = bytes.saturating_mul(self.price);
        resize(&mut self.share, wanted).map_err(|()| NoRoom::Share)?;
        resize(&mut self.all, wanted).map_err(|()| NoRoom::All)
    }
}

fn resize((semaphore, held): &mut (Arc<Semaphore>, Option<OwnedSemaphorePermit>), wanted: usize) -> Result<(), ()> {
    let has = held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
    if wanted <= has {
        // Given back when it is dropped here.
        drop(held.as_mut().and_then(|held| held.split(has - wanted)));
        return Ok(());
    }
    let more = u32::try_from(wanted - has).map_err(|_| ())?;
    let more = Arc::clone(semaphore).try_acquire_many_owned(more).map_err(|_| ())?;
    match held {
        Some(held) => held.merge(more),
        None => *held = Some(more),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn one_key_takes_its_share_and_all_together_take_all() {
        let memory = Memory::new(100, 60);
        let (mut first, mut second) = (memory.room("acme", 2), memory.room("acme", 2));
        first.hold(20).unwrap();
        assert_eq!(second.hold(11), Err(NoRoom::Share));
        second.hold(10).unwrap();
        let mut other = memory.room("globex", 1);
        assert_eq!(other.hold(41), Err(NoRoom::All));
        other.hold(40).unwrap();
        first.hold(5).unwrap();
        assert_eq!(other.hold(61), Err(NoRoom::Share));
        other.hold(60).unwrap();
        drop((first, second, other));
        assert_eq!(memory.all.available_permits(), 100);
        memory.room("acme", 1).hold(60).unwrap();
        assert_eq!(memory.room("acme", 1).hold(usize::MAX), Err(NoRoom::Share));
    }
}
