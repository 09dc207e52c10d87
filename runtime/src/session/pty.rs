//! One agent process in a pseudo-terminal: start, input, exit, stop. Owns the threads that the blocking
//! terminal file needs; everything else talks to it through channels.

use std::{
    io::{Read, Write},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
};

use portable_pty::{CommandBuilder, PtySize, native_pty_system};
use tokio::sync::{Notify, watch};

use super::{
    group::{Exit, Group},
    screen::{COLUMNS, Frame, ROWS, Terminal},
    transport::Command,
};

/// Writes that may wait for an agent that does not read.
const INPUT_QUEUE: usize = 256;

/// What went wrong with the agent's process or terminal.
#[derive(Debug, thiserror::Error)]
pub enum PtyError {
    /// The command could not be started.
    #[error("cannot start {program:?} in {workdir}: {reason}; check the workspace's agent command and image")]
    Start {
        /// The program.
        program: String,
        /// Where it was to run.
        workdir: String,
        /// The system's reason.
        reason: String,
    },
    /// The agent does not read its input or has ended.
    #[error("the agent does not take input; wait until it is stable, or delete the session")]
    Input,
    /// The agent was started without one.
    #[error("this session's agent speaks ACP and has no terminal; send messages of type user and follow its events")]
    NoTerminal,
}

/// A running agent.
pub(super) struct AgentProcess {
    // The agent is the leader of its session, so its pid is also its process group.
    group: Group,
    terminal: Arc<Mutex<Terminal>>,
    input: SyncSender<Vec<u8>>,
    // Closing the master hangs the terminal up, so it lives as long as this value.
    _master: Mutex<Box<dyn portable_pty::MasterPty + Send>>,
}

impl AgentProcess {
    /// Starts the agent; `dirty` is notified whenever it has drawn something.
    pub(super) fn start(command: &Command, dirty: Arc<Notify>) -> Result<Self, PtyError> {
        let program = command.argv.first().cloned().unwrap_or_default();
        let failed = |reason: String| PtyError::Start {
            program: program.clone(),
            workdir: command.workdir.display().to_string(),
            reason,
        };
        if program.is_empty() {
            return Err(failed("the command is empty".to_owned()));
        }
        if !Path::new(&command.workdir).is_dir() {
            return Err(failed("the folder does not exist".to_owned()));
        }
        let size = PtySize { rows: ROWS, cols: COLUMNS, pixel_width: 0, pixel_height: 0 };
        let pair = native_pty_system().openpty(size).map_err(|e| failed(format!("{e:#}")))?;
        let mut builder = CommandBuilder::from_argv(command.argv.iter().map(Into::into).collect());
        builder.env_clear();
        for (name, value) in &command.env {
            builder.env(name, value);
        }
        builder.cwd(&command.workdir);
        let mut child = pair.slave.spawn_command(builder).map_err(|e| failed(format!("{e:#}")))?;
        drop(pair.slave);
        let pid = child.process_id();
        let reader = pair.master.try_clone_reader().map_err(|e| failed(format!("{e:#}")))?;
        let writer = pair.master.take_writer().map_err(|e| failed(format!("{e:#}")))?;

        let terminal = Arc::new(Mutex::new(Terminal::new()));
        let (input, queue) = sync_channel(INPUT_QUEUE);
        let (exited, exit) = watch::channel(None);
        let thread = |name: &str, run: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.to_owned()).spawn(run).map_err(|e| failed(e.to_string()))
        };
        let (screen, replies, drawn) = (Arc::clone(&terminal), input.clone(), Arc::clone(&dirty));
        thread("pty-read", Box::new(move || read_loop(reader, &screen, &replies, &drawn)))?;
        thread("pty-write", Box::new(move || write_loop(writer, &queue)))?;
        thread(
            "agent-wait",
            Box::new(move || {
                let exit = match child.wait() {
                    Ok(status) => Exit { code: status.exit_code(), signal: status.signal().map(str::to_owned) },
                    Err(error) => Exit { code: 1, signal: Some(format!("wait failed: {error}")) },
                };
                exited.send_replace(Some(exit));
                dirty.notify_one();
            }),
        )?;
        Ok(Self { group: Group::new(pid, exit), terminal, input, _master: Mutex::new(pair.master) })
    }

    pub(super) fn group(&self) -> &Group {
        &self.group
    }

    /// What the terminal shows now.
    pub(super) fn frame(&self) -> Frame {
        self.terminal.lock().unwrap_or_else(PoisonError::into_inner).frame()
    }

    /// Forgets the scrolled-off rows and returns what is shown then.
    pub(super) fn mark(&self) -> Frame {
        let mut terminal = self.terminal.lock().unwrap_or_else(PoisonError::into_inner);
        terminal.mark();
        terminal.frame()
    }

    /// Queues bytes for the agent's input.
    pub(super) fn write(&self, bytes: impl Into<Vec<u8>>) -> Result<(), PtyError> {
        if self.group.has_ended() {
            return Err(PtyError::Input);
        }
        self.input.try_send(bytes.into()).map_err(|error| match error {
            TrySendError::Full(_) | TrySendError::Disconnected(_) => PtyError::Input,
        })
    }
}

fn read_loop(
    mut reader: Box<dyn Read + Send>,
    terminal: &Mutex<Terminal>,
    replies: &SyncSender<Vec<u8>>,
    dirty: &Notify,
) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        match reader.read(&mut buffer) {
            // EIO is how Linux says that the last process has closed the terminal.
            Ok(0) | Err(_) => return,
            Ok(read) => {
                let reply = terminal.lock().unwrap_or_else(PoisonError::into_inner).feed(&buffer[..read]);
                if !reply.is_empty() {
                    // A full queue means that the agent does not read its answers either.
                    let _ = replies.try_send(reply);
                }
                dirty.notify_one();
            }
        }
    }
}

fn write_loop(mut writer: Box<dyn Write + Send>, queue: &Receiver<Vec<u8>>) {
    while let Ok(bytes) = queue.recv() {
        if writer.write_all(&bytes).and_then(|()| writer.flush()).is_err() {
            return;
        }
    }
}
