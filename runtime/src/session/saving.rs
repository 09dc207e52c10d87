//! Saves the conversation: whenever it changes, and before a client hears that its message was taken.

use std::sync::{Arc, atomic::Ordering};

use tokio_util::sync::CancellationToken;

use super::{
    host::Host,
    state::{Resume, State},
};

impl Host {
    /// Saves the conversation now. False: the disk does not take it.
    pub(super) async fn persist(self: &Arc<Self>) -> bool {
        self.save(None).await
    }

    /// What was said last is on the disk.
    pub(super) fn is_saved(&self) -> bool {
        self.saved.load(Ordering::Relaxed)
    }

    pub(super) async fn save(self: &Arc<Self>, last_event: Option<String>) -> bool {
        let _in_order = self.saving.lock().await;
        let state = {
            let inner = self.lock();
            let mut state = State::new(inner.conversation.messages().to_vec());
            state.session_id.clone_from(&inner.session_id);
            state.initial_prompt.clone_from(&inner.prompt);
            state.prompt_progress = inner.prompt_state;
            state.acp_session.clone_from(&inner.acp_session);
            state.last_event = last_event;
            state.resume = if inner.resume == Resume::Refused { Resume::Refused } else { Resume::Allowed };
            state
        };
        let host = Arc::clone(self);
        let save = move || {
            let saved = host.with_room(|| host.state_dir.save(&state));
            if saved.is_ok() {
                host.reserve.take();
            }
            saved
        };
        let saved = match tokio::task::spawn_blocking(save).await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                tracing::error!(%error, "the conversation could not be saved");
                false
            }
            Err(error) => {
                tracing::error!(%error, "saving was interrupted");
                false
            }
        };
        self.saved.store(saved, Ordering::Relaxed);
        saved
    }

    /// Saves the conversation whenever it changes.
    pub(super) async fn save_on_change(self: Arc<Self>, stop: CancellationToken) {
        let mut changes = self.changes.subscribe();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Ok(()) = changes.changed() => {}
            }
            self.persist().await;
            // A working agent changes its message many times a second; a disk should not.
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(std::time::Duration::from_millis(250)) => {}
            }
        }
    }
}
