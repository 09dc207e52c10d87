//! Follows the agent's screen: snapshots after it changed, the conversation from the snapshots, readiness and
//! status from how long it has been quiet. The only writer of all three.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    events::{Body, Status},
    format::{self, Look},
    host::{Host, Inner},
    transport::{Agent, Transport},
};

/// So many times as long.
const UNANSWERED: u32 = 4;

impl Inner {
    /// The next process has shown nothing yet.
    pub(super) fn forget_screen(&mut self) {
        self.look = Look::Other;
        self.alternate = None;
        self.asked = None;
    }
}

impl Host {
    /// Follows the agent's screen until it is cancelled.
    pub(super) async fn track(self: Arc<Self>, stop: CancellationToken) {
        loop {
            let next = self.next_evaluation();
            tokio::select! {
                // Nothing is told after the end, or the next container would take it for news that a client has missed.
                biased;
                () = stop.cancelled() => return,
                () = self.dirty.notified() => {
                    tokio::time::sleep(self.config.timing.snapshot).await;
                    self.snapshot();
                }
                () = sleep_until(next) => {}
            }
            self.refresh(&mut self.lock());
        }
    }

    /// When the status can change although the screen does not.
    fn next_evaluation(&self) -> Option<Instant> {
        let inner = self.lock();
        // Otherwise only a change of the screen, or the end of what is being done, can change anything.
        if inner.status == Status::Stable || inner.agent.is_none() || self.config.transport == Transport::Acp {
            None
        } else if !inner.agent_ready {
            (inner.look == Look::Waiting).then(|| inner.last_change + self.profile.input.ready_settle())
        } else if inner.look != Look::Working && !inner.sending && !inner.prompt_state.is_open() {
            Some(inner.last_change + self.quiet_time(&inner))
        } else {
            None
        }
    }

    /// An agent that has been quiet for so long is done. One that has not said a word yet gets more time: on a busy machine
    /// the first sign of work may be late.
    fn quiet_time(&self, inner: &Inner) -> Duration {
        let stable = self.config.timing.stable;
        if inner.conversation.unanswered() { stable * UNANSWERED } else { stable }
    }

    fn snapshot(self: &Arc<Self>) {
        if self.config.transport == Transport::Acp {
            return self.take_reply(&mut self.lock());
        }
        let Ok(process) = self.process() else { return };
        let frame = process.frame();
        let mut inner = self.lock();
        if !matches!(&inner.agent, Some(Agent::Pty(current)) if Arc::ptr_eq(current, &process)) {
            return;
        }
        let changed = {
            let before = self.frames.borrow();
            before.lines != frame.lines || before.working != frame.working
        };
        let frame = Arc::new(frame);
        self.frames.send_replace(Arc::clone(&frame));
        if changed {
            inner.last_change = Instant::now();
            self.follow_question(&mut inner, &frame);
            let says_so = frame.working && inner.asked.is_none();
            inner.look = if says_so { Look::Working } else { format::look(&self.profile, frame.screen()) };
            self.observe(&mut inner);
        }
    }

    /// Takes the screen into the conversation.
    pub(super) fn observe(&self, inner: &mut Inner) {
        if inner.sending {
            return;
        }
        let frame = Arc::clone(&self.frames.borrow());
        // An editor or a pager that the agent has opened for a while says nothing in the conversation.
        if inner.alternate.is_some_and(|conversation| conversation != frame.alternate) {
            return;
        }
        let changed = inner.conversation.observe(&self.profile, &frame.lines, (self.config.now)());
        self.publish_message(inner, changed);
    }

    pub(super) fn publish_message(&self, inner: &Inner, id: Option<usize>) {
        if let Some(message) = id.and_then(|id| inner.conversation.messages().get(id)) {
            self.hub.publish(Body::message(message));
            self.changes.send_modify(|count| *count += 1);
        }
    }

    /// Works out readiness and status, and tells about changes.
    pub(super) fn refresh(&self, inner: &mut Inner) {
        let quiet = inner.last_change.elapsed();
        let alive = inner.agent.is_some();
        // An agent that speaks ACP says when it is done; nothing has to be guessed from how quiet it is.
        let says_so = self.config.transport == Transport::Acp;
        if alive
            && !says_so
            && !inner.agent_ready
            && inner.look == Look::Waiting
            && quiet >= self.profile.input.ready_settle()
        {
            inner.agent_ready = true;
            self.ready.send_replace(true);
        }
        // An agent that shows its input box and was asked nothing has nothing to do: the contract's quiet time is for
        // an agent that may go on.
        let idle = inner.untouched && inner.look == Look::Waiting;
        let stable = alive
            && inner.agent_ready
            // Not only when it is `Waiting`: an agent that asks for a permission shows no input box and waits for the user.
            && inner.look != Look::Working
            && !inner.sending
            && !inner.prompt_state.is_open()
            && (says_so || idle || quiet >= self.quiet_time(inner));
        if stable {
            let settled = inner.conversation.settle((self.config.now)());
            self.publish_message(inner, settled);
        }
        let status = if stable { Status::Stable } else { Status::Running };
        if status != inner.status {
            inner.status = status;
            self.hub.publish(Body::Status { status, agent_type: self.profile.name.clone() });
            self.changes.send_modify(|count| *count += 1);
        }
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
