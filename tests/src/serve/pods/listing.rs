//! Lists of sessions' pods, which may be old when they arrive, as those of a slow API server are.

use std::sync::atomic::{AtomicUsize, Ordering};

use agentapi_runtime::pods::{Pod, PodError};
use anyhow::Result;
use tokio::sync::{RwLock, RwLockWriteGuard};
use uuid::Uuid;

use super::{ProcessPods, pod};
use crate::cluster::eventually;
use crate::serve::steps::SOON;

#[derive(Default)]
pub(super) struct Listing {
    arrived: AtomicUsize,
    made: AtomicUsize,
    gate: RwLock<()>,
}

impl ProcessPods {
    /// Lists are made as ever, and arrive when this is dropped.
    pub async fn hold_lists(&self) -> RwLockWriteGuard<'_, ()> {
        self.listing.gate.write().await
    }

    /// Waits until so many more lists were made than have arrived. The reconciler makes one of each organization in a
    /// round, and one more when it is in doubt.
    pub async fn listed(&self, more: usize) -> Result<()> {
        let made = || self.listing.made.load(Ordering::SeqCst);
        let wanted = self.listing.arrived.load(Ordering::SeqCst) + more;
        eventually("lists of pods", SOON, async || {
            let made = made();
            Ok(if made >= wanted { Ok(()) } else { Err(format!("{made} of {wanted}")) })
        })
        .await
    }

    pub(super) async fn list_sessions(&self, organization: &str) -> Result<Vec<(Uuid, Pod)>, PodError> {
        self.check()?;
        let listed = {
            let mut state = self.state();
            let own = state.running.iter_mut().filter(|(_, process)| process.organization == organization);
            own.filter_map(|(name, process)| Some((process.session?, pod(name, process)))).collect()
        };
        self.listing.made.fetch_add(1, Ordering::SeqCst);
        drop(self.listing.gate.read().await);
        self.listing.arrived.fetch_add(1, Ordering::SeqCst);
        Ok(listed)
    }
}
