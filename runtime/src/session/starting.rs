//! From what is wanted of the next agent process to the process: its files, its system prompt, its command.

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::Notify;

use super::{
    host::{Host, StartError},
    pty::{AgentProcess, Command},
    seed::{self, Seeder},
    state::Resume,
};

/// Where the agent finds the path of its system prompt's file.
const SYSTEM_PROMPT_FILE: &str = "AGENTAPI_SYSTEM_PROMPT_FILE";

/// What the next agent process is started with.
pub(super) struct Wanted {
    pub env: BTreeMap<String, String>,
    pub system_prompt: Option<String>,
    pub may_resume: bool,
}

impl Host {
    /// Writes the agent's files and starts it. Blocks.
    pub(super) fn prepare_and_start(
        &self,
        wanted: &Wanted,
        mark: (String, String),
        dirty: Arc<Notify>,
    ) -> Result<(AgentProcess, Resume), StartError> {
        let (config, profile) = (&self.config, &self.profile);
        let mut env = seed::environment(profile, &config.env, &wanted.env);
        env.extend([mark]);
        let mut argv = config.command.clone().unwrap_or_else(|| profile.command.clone());
        let prompt = wanted.system_prompt.as_deref();
        let prompt_file = prompt.map(|text| self.state_dir.write_system_prompt(text)).transpose()?;
        if let Some(file) = &prompt_file {
            // For agents that know no argument for it, and for programs around an agent.
            env.insert(SYSTEM_PROMPT_FILE.to_owned(), file.display().to_string());
        }
        let seeder = Seeder { home: &config.home, workdir: &config.workdir, env: &env };
        seeder.seed(profile)?;
        if let Some((text, file)) = prompt.zip(prompt_file.as_ref()) {
            argv.extend(seeder.system_prompt(&profile.system_prompt, text, file)?);
        }
        for (name, args) in &profile.args_with_env {
            if let Some(value) = env.get(name).filter(|value| !value.is_empty()) {
                argv.extend(args.iter().map(|arg| arg.replace("{{value}}", value)));
            }
        }
        argv.extend(self.mcp.prepare(&profile.mcp, &seeder, &config.state_dir)?);
        let mut asked = Resume::Allowed;
        if let Some(resume) = &profile.resume
            && wanted.may_resume
            && seeder.can_resume(resume)
        {
            argv.extend(resume.args.iter().cloned());
            asked = Resume::Asked;
        }
        let process = AgentProcess::start(&Command { argv, env, workdir: config.workdir.clone() }, dirty)?;
        Ok((process, asked))
    }
}
