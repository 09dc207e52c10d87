//! The process group of an agent: how it ended, and how it is ended. What it is started with is for the transports.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::sync::watch;

/// An agent that was asked to end gets this long before it is killed.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// A killed process is gone within this time unless the kernel is stuck on it.
const KILL_GRACE: Duration = Duration::from_secs(2);

/// How an agent ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Exit {
    /// Its exit code.
    pub code: u32,
    /// The signal that ended it.
    pub signal: Option<String>,
}

/// A running agent and what it has started.
pub(super) struct Group {
    pid: Option<u32>,
    exit: watch::Receiver<Option<Exit>>,
}

impl Group {
    /// The group that `pid` leads; `exit` says how that process ended.
    pub(super) fn new(pid: Option<u32>, exit: watch::Receiver<Option<Exit>>) -> Self {
        Self { pid, exit }
    }

    /// Process id of the agent.
    pub(super) fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// How the agent ended, if it has.
    pub(super) fn exit(&self) -> watch::Receiver<Option<Exit>> {
        self.exit.clone()
    }

    /// The agent has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.exit.borrow().is_some()
    }

    /// Asks the agent to end, then ends its whole process group.
    pub(super) async fn stop(&self) {
        self.signal(Signal::HUP);
        self.signal(Signal::TERM);
        let mut exit = self.exit.clone();
        if tokio::time::timeout(STOP_GRACE, exit.wait_for(Option::is_some)).await.is_err() {
            tracing::warn!(pid = self.pid, "the agent did not end when asked; killing it");
        }
        // Also when the agent itself is gone: tools that it started may not be.
        self.kill().await;
    }

    /// Ends the agent's whole process group at once.
    pub(super) async fn kill(&self) {
        self.signal(Signal::KILL);
        let mut exit = self.exit.clone();
        if tokio::time::timeout(KILL_GRACE, exit.wait_for(Option::is_some)).await.is_err() {
            tracing::error!(pid = self.pid, "the agent is still there after SIGKILL");
        }
    }

    fn signal(&self, signal: Signal) {
        let group = self.pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        if let Some(group) = group
            && let Err(error) = kill_process_group(group, signal)
            && error != rustix::io::Errno::SRCH
        {
            tracing::warn!(pid = self.pid, %error, "cannot signal the agent");
        }
    }
}
