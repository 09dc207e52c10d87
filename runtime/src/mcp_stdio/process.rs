//! The child process: started in a process group of its own, one JSON message a line in and out, ended with everything
//! that it has started. Its standard error is the log of the pod.

use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, kill_process_group, waitpgid};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// A message of a program is not longer.
const MAX_LINE: u64 = 16 * 1024 * 1024;
/// Messages that wait to be written to a program that does not read.
const WAITING: usize = 64;
/// A program that is told to stop has this long before the next, less friendly way.
const PATIENCE: Duration = Duration::from_secs(2);
/// Processes that a program may have left, and looks at those that are not dead yet.
const BURIALS: usize = 100;

/// What to run.
#[derive(Debug, Clone)]
pub struct Program {
    command: Vec<String>,
}

/// A running program.
pub(super) struct Process {
    /// Takes messages for it.
    pub(super) input: mpsc::Sender<Value>,
    /// Gives messages from it; closed when it has ended.
    pub(super) output: mpsc::Receiver<Value>,
    /// Cancelled when it and all that it has started are gone.
    pub(super) gone: CancellationToken,
}

impl Program {
    /// The program is the first word.
    pub fn new(command: Vec<String>) -> Self {
        Self { command }
    }

    /// Its name, without arguments: those may hold anything.
    pub fn name(&self) -> &str {
        self.command.first().map_or("", String::as_str)
    }

    /// Starts it. It is ended when `stop` is cancelled.
    pub(super) fn start(&self, stop: CancellationToken) -> std::io::Result<Process> {
        let mut command = Command::new(self.name());
        command.args(self.command.get(1..).unwrap_or_default());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.process_group(0).kill_on_drop(true).spawn()?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(std::io::Error::other("it has no standard input and output"));
        };
        let (input, to_write) = mpsc::channel(WAITING);
        let (read, output) = mpsc::channel(WAITING);
        let gone = CancellationToken::new();
        tokio::spawn(write(stdin, to_write, stop.clone()));
        let gone_guard = gone.clone().drop_guard();
        tokio::spawn(async move {
            // A program that closes its output is of no use any more.
            tokio::select! {
                () = self::read(stdout, read) => {}
                () = stop.cancelled() => {}
            }
            stop.cancel();
            end(child).await;
            drop(gone_guard);
        });
        Ok(Process { input, output, gone })
    }
}

async fn write(mut stdin: ChildStdin, mut messages: mpsc::Receiver<Value>, stop: CancellationToken) {
    while let Some(Some(message)) = stop.run_until_cancelled(messages.recv()).await {
        let line = format!("{message}\n");
        let written = async { stdin.write_all(line.as_bytes()).await.and(stdin.flush().await) };
        match stop.run_until_cancelled(written).await {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                tracing::debug!(%error, "the program does not read any more");
                return;
            }
            None => return,
        }
    }
}

async fn read(stdout: ChildStdout, messages: mpsc::Sender<Value>) {
    let mut reader = BufReader::new(stdout);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line).await {
            Ok(0) => return,
            Ok(_) if line.len() as u64 == MAX_LINE && line.last() != Some(&b'\n') => {
                tracing::error!("a message of the program is longer than 16 MiB; its session is ended");
                return;
            }
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%error, "the program's output can't be read");
                return;
            }
        }
        match serde_json::from_slice::<Value>(&line) {
            Ok(message) if message.is_object() => {
                if messages.send(message).await.is_err() {
                    return;
                }
            }
            // Banners and stray prints. Their text may be anything, so only that they are there is told.
            _ => tracing::debug!(bytes = line.len(), "the program wrote a line that is no message"),
        }
    }
}

/// Its input is closed by now, which is how a server over standard input is told to end. Then with signals, to it and to
/// what it has started.
async fn end(mut child: Child) {
    let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    for signal in [None, Some(Signal::TERM), Some(Signal::KILL)] {
        if let (Some(group), Some(signal)) = (group, signal) {
            // Gone already.
            let _ = kill_process_group(group, signal);
        }
        if let Ok(status) = tokio::time::timeout(PATIENCE, child.wait()).await {
            match status {
                Ok(status) => tracing::info!(%status, "the program has ended"),
                Err(error) => tracing::warn!(%error, "the program's end can't be awaited"),
            }
            break;
        }
    }
    // What it has left running. As the first process of a container we inherit that, and nobody else buries it.
    let Some(group) = group else { return };
    let _ = kill_process_group(group, Signal::KILL);
    for _ in 0..BURIALS {
        match waitpgid(group, WaitOptions::NOHANG) {
            Ok(Some(_)) => {}
            Ok(None) => tokio::time::sleep(Duration::from_millis(50)).await,
            Err(_) => return,
        }
    }
}
