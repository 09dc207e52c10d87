//! From what is wanted of the next agent process to the process: its files, its system prompt, its command.

use std::{collections::BTreeMap, fmt::Display, sync::Arc};

use tokio::sync::Notify;

use crate::google_credentials;

use super::{
    acp::{self, opening::Opening},
    agents::Acp,
    host::{Host, StartError},
    pty::AgentProcess,
    reserve::DiskFull,
    seed::{self, Seeder},
    state::Resume,
    transport::{Agent, Command, Transport},
};

/// Where the agent finds the path of its system prompt's file.
const SYSTEM_PROMPT_FILE: &str = "AGENTAPI_SYSTEM_PROMPT_FILE";

/// What the next agent process is started with.
pub(super) struct Wanted {
    pub env: BTreeMap<String, String>,
    pub system_prompt: Option<String>,
    pub may_resume: bool,
    /// The session of an earlier process, of an agent that speaks ACP.
    pub acp_session: Option<String>,
    /// The host's count of agent processes.
    pub generation: u64,
    /// There is a conversation already: its files were written before.
    pub begun: bool,
}

/// An agent process that has begun.
pub(super) struct Started {
    pub agent: Agent,
    pub resume: Resume,
    /// What is said to it first.
    pub greeting: Option<Greeting>,
}

/// The beginning of a connection.
pub(super) struct Greeting {
    connection: Arc<acp::Connection>,
    listening: acp::Listening,
    opening: Opening,
}

impl Greeting {
    pub(super) fn begin(self, host: &Arc<Host>) {
        self.listening.begin(host);
        host.spawn_opening(&self.connection, self.opening);
    }
}

impl Host {
    /// A disk that is full does not keep an agent from going on that has started before: its files are those of then.
    fn written<T: Default, E: DiskFull + Display>(&self, begun: bool, written: Result<T, E>) -> Result<T, E> {
        match written {
            Err(error) if begun && error.is_disk_full() => {
                tracing::warn!(%error, "the agent goes on with the files of an earlier start");
                self.notify(format!("The agent goes on with the files of an earlier start: {error}"));
                Ok(T::default())
            }
            written => written,
        }
    }

    /// Writes the agent's files and starts it. Blocks.
    pub(super) fn prepare_and_start(
        &self,
        wanted: Wanted,
        mark: (String, String),
        dirty: Arc<Notify>,
    ) -> Result<Started, StartError> {
        let (config, profile, begun) = (&self.config, &self.profile, wanted.begun);
        let mut env = seed::environment(profile, &config.env, &wanted.env);
        env.extend([mark]);
        let credentials = config.env.get(agentapi_crds::names::env::GOOGLE_CREDENTIALS);
        let keep = || google_credentials::keep(&config.home, credentials.map(String::as_str));
        if let Some(file) = self.written(begun, self.with_room(keep))? {
            env.entry(google_credentials::VARIABLE.to_owned()).or_insert_with(|| file.display().to_string());
        }
        let unknown = Acp::default();
        let (command, args_with_env, told, servers) = match config.transport {
            Transport::Pty => (&profile.command, &profile.args_with_env, &profile.system_prompt, &profile.mcp),
            Transport::Acp => {
                let Acp { command, args_with_env, system_prompt, mcp, .. } = profile.acp.as_ref().unwrap_or(&unknown);
                (command, args_with_env, system_prompt, mcp)
            }
        };
        let mut argv = config.command.clone().unwrap_or_else(|| command.clone());
        let prompt = wanted.system_prompt.as_deref();
        let write = |text| self.with_room(|| self.state_dir.write_system_prompt(text));
        let prompt_file = prompt.map(write).transpose()?;
        if let Some(file) = &prompt_file {
            // For agents that know no argument for it, and for programs around an agent.
            env.insert(SYSTEM_PROMPT_FILE.to_owned(), file.display().to_string());
        }
        let seeder = Seeder { home: &config.home, workdir: &config.workdir, env: &env };
        self.written(begun, self.with_room(|| seeder.seed(profile)))?;
        if let Some((text, file)) = prompt.zip(prompt_file.as_ref()) {
            argv.extend(self.with_room(|| seeder.system_prompt(told, text, file))?);
        }
        for (name, args) in args_with_env {
            if let Some(value) = env.get(name).filter(|value| !value.is_empty()) {
                argv.extend(args.iter().map(|arg| arg.replace("{{value}}", value)));
            }
        }
        let prepare = || self.mcp.prepare(servers, &seeder, &config.state_dir);
        argv.extend(self.written(begun, self.with_room(prepare))?);
        if config.transport == Transport::Acp {
            let command = Command { argv, env, workdir: config.workdir.clone() };
            let (connection, listening) = acp::Connection::start(&command)?;
            let resume = if wanted.acp_session.is_some() { Resume::Asked } else { Resume::Allowed };
            let Wanted { system_prompt, acp_session: earlier, generation, .. } = wanted;
            let opening = Opening { generation, system_prompt, earlier };
            let greeting = Greeting { connection: Arc::clone(&connection), listening, opening };
            return Ok(Started { agent: Agent::Acp(connection), resume, greeting: Some(greeting) });
        }
        let mut asked = Resume::Allowed;
        if let Some(resume) = &profile.resume
            && wanted.may_resume
            && seeder.can_resume(resume)
        {
            argv.extend(resume.args.iter().cloned());
            asked = Resume::Asked;
        }
        let process = AgentProcess::start(&Command { argv, env, workdir: config.workdir.clone() }, dirty)?;
        Ok(Started { agent: Agent::Pty(Arc::new(process)), resume: asked, greeting: None })
    }
}
