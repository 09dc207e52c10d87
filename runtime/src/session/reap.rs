//! As the first process of a container the host inherits every orphan that the agent's tools leave behind.
//! Nobody else collects their exit or ends them, so this does. Assumes that this process runs nothing but the agent.

use std::{collections::HashMap, sync::Arc, time::Duration};

use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, set_child_subreaper, waitpid};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::host::Host;

/// Variable in the agent's environment by which its descendants are known, wherever they have gone.
pub(super) const MARK: &str = "AGENT_HOST_MARK";
/// Left-over processes get this long to end before they are killed.
const END_GRACE: Duration = Duration::from_millis(500);
/// How often that is looked at.
const END_POLL: Duration = Duration::from_millis(25);

/// Collects ended children other than the agent until it is cancelled.
pub(super) async fn reap_orphans(host: Arc<Host>, stop: CancellationToken) {
    // Outside a container the orphans would go to the machine's first process.
    if let Err(error) = set_child_subreaper(Some(getpid())) {
        tracing::warn!(%error, "orphans of the agent are not collected");
    }
    let mut ended = match signal(SignalKind::child()) {
        Ok(ended) => ended,
        Err(error) => {
            tracing::error!(%error, "cannot watch for ended processes");
            return;
        }
    };
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            Some(()) = ended.recv() => {}
        }
        let own = getpid().as_raw_nonzero().get();
        for (pid, process) in processes() {
            // The agent itself is collected by the thread that waits for it.
            let orphan = process.ended && process.parent == own;
            if orphan && host.agent_pid().and_then(|agent| i32::try_from(agent).ok()) != Some(pid) {
                let _ = Pid::from_raw(pid).map(|pid| waitpid(Some(pid), WaitOptions::NOHANG));
            }
        }
    }
}

/// Ends what an ended agent has left behind: daemons with its old environment, tools in sessions of their own.
pub(super) async fn end_leftovers(mark: &str) {
    for (name, wanted) in [("asked", Signal::TERM), ("killed", Signal::KILL)] {
        let found = leftovers(mark);
        if found.is_empty() {
            return;
        }
        tracing::info!(count = found.len(), "processes of the ended agent are {name} to end");
        for pid in found {
            let _ = kill_process(pid, wanted);
        }
        let deadline = tokio::time::Instant::now() + END_GRACE;
        while tokio::time::Instant::now() < deadline && !leftovers(mark).is_empty() {
            tokio::time::sleep(END_POLL).await;
        }
    }
}

/// In a container all descendants of its first process, elsewhere those with our mark in their environment.
fn leftovers(mark: &str) -> Vec<Pid> {
    let own = getpid().as_raw_nonzero().get();
    let all = processes();
    let marked = format!("{MARK}={mark}");
    let is_ours = |pid: i32| {
        if own == 1 {
            let mut parent = pid;
            while parent > 1 {
                parent = all.get(&parent).map_or(0, |process| process.parent);
            }
            return parent == 1;
        }
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == marked.as_bytes())
    };
    let living = all.iter().filter(|(pid, process)| **pid != own && !process.ended);
    living.map(|(pid, _)| *pid).filter(|pid| is_ours(*pid)).filter_map(Pid::from_raw).collect()
}

struct Process {
    parent: i32,
    /// Ended, but not collected.
    ended: bool,
}

fn processes() -> HashMap<i32, Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return HashMap::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // "pid (name) state parent …"; the name may hold anything, also parentheses.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let ended = matches!(fields.next()?, "Z" | "X");
        Some((pid, Process { parent: fields.next()?.parse().ok()?, ended }))
    })
    .collect()
}
