//! What there is in a container besides its first process: here, all that has its mark in its environment, wherever it
//! has gone. Some agents go on when whoever has started them is gone; a container ends with its first process.

use std::process::{Command, Stdio};

/// Variable with a value of its own for each container. Session hosts hand on what they do not know.
pub(super) const MARK: &str = "TEST_CONTAINER";

/// A killed process may have started another one a moment before.
const ROUNDS: usize = 1000;

/// Processes of this machine that have this in their environment, such as `HOME=/tmp/x`.
pub fn processes(variable: &str) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let has = |pid: &u32| {
        // Of one that has ended it is empty.
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|it| it == variable.as_bytes())
    };
    pids.filter(has).collect()
}

/// Ends all that is left of a container whose first process is dead.
pub(super) fn end(mark: &str) {
    end_all(&format!("{MARK}={mark}"));
}

/// Ends all that have this in their environment.
pub(crate) fn end_all(variable: &str) {
    for _ in 0..ROUNDS {
        let left = processes(variable);
        if left.is_empty() {
            return;
        }
        let pids = left.iter().map(u32::to_string);
        let _ = Command::new("kill").arg("-KILL").args(pids).stderr(Stdio::null()).status();
    }
}
