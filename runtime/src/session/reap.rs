//! As the first process of a container the host inherits every orphan that the agent's tools leave behind.
//! Nobody else collects their exit, so this does.

use std::sync::Arc;

use rustix::process::{Pid, WaitOptions, set_child_subreaper, waitpid};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::host::Host;

/// Collects ended children other than the agent until it is cancelled.
pub(super) async fn reap_orphans(host: Arc<Host>, stop: CancellationToken) {
    // Outside a container the orphans would go to the machine's first process.
    if let Err(error) = set_child_subreaper(Some(rustix::process::getpid())) {
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
        for pid in zombies(std::process::id()) {
            // The agent itself is collected by the thread that waits for it.
            if host.agent_pid() != Some(pid)
                && let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw)
            {
                let _ = waitpid(Some(pid), WaitOptions::NOHANG);
            }
        }
    }
}

/// Ended children of `parent` that nobody has collected.
fn zombies(parent: u32) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // "pid (name) state ppid …"; the name may hold anything, also parentheses.
            let mut fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
            fields.next() == Some("Z") && fields.next() == Some(parent.to_string().as_str())
        })
        .collect()
}
