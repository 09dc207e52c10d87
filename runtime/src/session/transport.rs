//! How the host talks to its agent: through a terminal, or with the Agent Client Protocol. What both can do is here.

use std::{fmt, path::PathBuf, sync::Arc};

use tokio::sync::watch;

use super::{
    acp,
    format::Look,
    group::{Exit, Group},
    host::Host,
    pty::{AgentProcess, PtyError},
};

/// The two ways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Transport {
    /// A terminal that the agent draws on.
    #[default]
    Pty,
    /// The Agent Client Protocol, on the agent's standard input and output.
    Acp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pty => "pty",
            Self::Acp => "acp",
        })
    }
}

/// What to start.
#[derive(Clone, Debug)]
pub(super) struct Command {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: std::collections::BTreeMap<String, String>,
    /// Working folder.
    pub workdir: PathBuf,
}

/// A running agent.
#[derive(Clone)]
pub(super) enum Agent {
    /// In a terminal.
    Pty(Arc<AgentProcess>),
    /// At the other end of a connection.
    Acp(Arc<acp::Connection>),
}

impl Agent {
    pub(super) fn group(&self) -> &Group {
        match self {
            Self::Pty(process) => process.group(),
            Self::Acp(connection) => connection.group(),
        }
    }

    /// Process id.
    pub(super) fn pid(&self) -> Option<u32> {
        self.group().pid()
    }

    /// How the agent ended, if it has.
    pub(super) fn exit(&self) -> watch::Receiver<Option<Exit>> {
        self.group().exit()
    }
}

/// What the agent does can't be cancelled.
#[derive(Debug, thiserror::Error)]
pub(super) enum CancelError {
    /// It does nothing.
    #[error("the agent is not working on anything; there is nothing to cancel")]
    Idle,
    /// Nobody knows how.
    #[error("an agent in a terminal is stopped with the keys it takes for that; send them as a message of type raw")]
    Unsupported,
    /// The agent is away.
    #[error(transparent)]
    Agent(#[from] PtyError),
}

impl Host {
    /// The agent's terminal.
    pub(super) fn process(&self) -> Result<Arc<AgentProcess>, PtyError> {
        match self.lock().agent.clone() {
            Some(Agent::Pty(process)) => Ok(process),
            Some(Agent::Acp(_)) => Err(PtyError::NoTerminal),
            None => Err(PtyError::Input),
        }
    }

    /// Stops what the agent is doing; its turn ends soon after.
    pub(super) fn cancel(&self) -> Result<(), CancelError> {
        let (agent, look, asks) = {
            let inner = self.lock();
            (inner.agent.clone(), inner.look, inner.asked.is_some())
        };
        match agent {
            None => Err(PtyError::Input.into()),
            Some(_) if look != Look::Working && !asks => Err(CancelError::Idle),
            Some(Agent::Pty(process)) => {
                let cancel = self.profile.cancel.as_ref().ok_or(CancelError::Unsupported)?;
                process.write(cancel.keys.as_bytes())?;
                self.stir();
                Ok(())
            }
            Some(Agent::Acp(connection)) => {
                connection.cancel()?;
                // The protocol wants an answer to each request of a turn that is cancelled.
                self.permissions.cancel_all();
                Ok(())
            }
        }
    }
}
