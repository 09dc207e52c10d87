//! The Agent Client Protocol (agentclientprotocol.com), version 1, as a client: starts the agent, opens a session of it,
//! sends it messages, turns what it does into messages of the conversation. Files and terminals it has of its own, in
//! the pod that it runs in; so this client offers neither.

#[cfg(test)]
mod fuzz;
pub(super) mod opening;
pub(super) mod reply;
pub(super) mod rpc;
mod turn;

use std::{
    process::Stdio,
    sync::{Arc, OnceLock},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    sync::watch,
};

use self::rpc::{Incoming, Peer};
use super::{
    group::{Exit, Group},
    host::Host,
    pty::PtyError,
    transport::Command,
};

/// So much of a line that the agent logs is kept.
const MAX_LOGGED: usize = 2000;
/// An agent that has closed its output gets this long to end by itself.
const LAST_WORD: Duration = Duration::from_secs(2);
/// JSON-RPC: the method is not there.
const NO_SUCH_METHOD: i64 = -32601;

/// An agent's process and the connection to it.
pub(super) struct Connection {
    peer: Peer,
    group: Group,
    /// The agent's own id of its session, once it is open. What the agent says before that is about the past.
    session: OnceLock<String>,
}

impl Connection {
    /// Starts the agent. Nobody listens to it yet.
    pub(super) fn start(command: &Command) -> Result<(Arc<Self>, Listening), PtyError> {
        let program = command.argv.first().cloned().unwrap_or_default();
        let failed = |reason: String| PtyError::Start {
            program: program.clone(),
            workdir: command.workdir.display().to_string(),
            reason,
        };
        if program.is_empty() {
            return Err(failed("the command is empty".to_owned()));
        }
        let mut child = tokio::process::Command::new(&program)
            .args(&command.argv[1..])
            .env_clear()
            .envs(&command.env)
            .current_dir(&command.workdir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|error| failed(error.to_string()))?;
        let no_pipe = || failed("it has no standard input or output".to_owned());
        let (input, output) = child.stdin.take().zip(child.stdout.take()).ok_or_else(no_pipe)?;
        let stderr = child.stderr.take().ok_or_else(no_pipe)?;
        let (exited, exit) = watch::channel(None);
        let group = Group::new(child.id(), exit);
        let (peer, queue) = Peer::new();
        tokio::spawn(rpc::write(input, queue));
        tokio::spawn(log(stderr));
        tokio::spawn(async move {
            let exit = match child.wait().await {
                Ok(status) => exit_of(status),
                Err(error) => Exit { code: 1, signal: Some(format!("wait failed: {error}")) },
            };
            exited.send_replace(Some(exit));
        });
        let connection = Arc::new(Self { peer, group, session: OnceLock::new() });
        Ok((Arc::clone(&connection), Listening { connection, output: Box::new(output) }))
    }

    pub(super) fn group(&self) -> &Group {
        &self.group
    }

    /// Tells the agent to stop its turn.
    pub(super) fn cancel(&self) -> Result<(), PtyError> {
        let session = self.session.get().ok_or(PtyError::Input)?;
        self.peer.notify("session/cancel", &json!({ "sessionId": session })).map_err(|_| PtyError::Input)
    }
}

fn exit_of(status: std::process::ExitStatus) -> Exit {
    use std::os::unix::process::ExitStatusExt;
    let signal = status.signal().map(|signal| format!("signal {signal}"));
    // As portable_pty has it: an agent that a signal has ended has the code 1.
    Exit { code: status.code().and_then(|code| u32::try_from(code).ok()).unwrap_or(1), signal }
}

/// The agent's output, before anybody listens to it.
pub(super) struct Listening {
    connection: Arc<Connection>,
    output: Box<dyn AsyncRead + Send + Unpin>,
}

impl Listening {
    /// Listens until the agent closes its output.
    pub(super) fn begin(self, host: &Arc<Host>) {
        let (Self { connection, output }, host) = (self, Arc::clone(host));
        tokio::spawn(async move {
            let on = |incoming| match incoming {
                Incoming::Notification { method, params } if method == "session/update" => {
                    host.agent_update(&connection, &params);
                }
                // Those that begin with _ are extensions, which may be ignored.
                Incoming::Notification { .. } => {}
                Incoming::Request { id, method, params } if method == "session/request_permission" => {
                    host.agent_asks(&connection, id, &params);
                }
                // `fs/…` and `terminal/…` were not offered.
                Incoming::Request { id, method, .. } => {
                    tracing::warn!(method, "the agent asks for what it was not offered");
                    connection.peer.respond(&id, Err((NO_SUCH_METHOD, "this client does not offer that")));
                }
            };
            connection.peer.read(BufReader::new(output), on).await;
            // Without its output it is of no use; mostly it is just about to end.
            let mut exit = connection.group.exit();
            if tokio::time::timeout(LAST_WORD, exit.wait_for(Option::is_some)).await.is_err() {
                tracing::error!("the agent has closed its output; it is ended");
                connection.group.kill().await;
            }
        });
    }
}

/// What the agent logs is a part of the container's log.
async fn log(stderr: impl AsyncRead + Unpin) {
    let mut lines = BufReader::new(stderr).split(b'\n');
    while let Ok(Some(line)) = lines.next_segment().await {
        let text = String::from_utf8_lossy(&line);
        let text: String = rpc::beginning(&text, MAX_LOGGED).chars().filter(|c| !c.is_control()).collect();
        if !text.is_empty() {
            tracing::info!(text, "the agent's log");
        }
    }
}

/// The member of an object as text.
fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}
