//! Which agent a session pod of a test runs: the small one of the fixtures, or a real one against the fake model.

use std::process::Command;

use agentapi_crds::names::env;
use anyhow::Result;

use crate::agents;

/// An agent for [`super::pods::ProcessPods::set_agent`].
#[derive(Clone, Debug)]
pub struct PodAgent {
    /// As in `AGENTAPI_AGENT_TYPE`.
    agent_type: String,
    /// `pty` or `acp`.
    transport: String,
    /// Further environment of the pod.
    env: Vec<(String, String)>,
}

impl PodAgent {
    /// A real agent whose model is at `model`, such as `http://127.0.0.1:8000`.
    pub fn real(agent_type: &str, transport: &str, model: &str) -> Result<Self> {
        let mut path = agents::bin_dir(agent_type)?.into_os_string();
        path.push(":/usr/local/bin:/usr/bin:/bin");
        let model = match agent_type {
            "codex" => [
                ("OPENAI_BASE_URL", format!("{model}/v1")),
                ("OPENAI_API_KEY", "any-key".to_owned()),
                ("OPENAI_MODEL", "fake-model".to_owned()),
            ],
            _ => [
                ("ANTHROPIC_BASE_URL", model.to_owned()),
                ("ANTHROPIC_API_KEY", "any-key-of-a-test".to_owned()),
                ("ANTHROPIC_MODEL", "fake-model".to_owned()),
            ],
        };
        let agent = Self { agent_type: agent_type.to_owned(), transport: transport.to_owned(), env: Vec::new() };
        let agent = agent.with("PATH", &path.to_string_lossy());
        Ok(model.iter().fold(agent, |agent, (name, value)| agent.with(name, value)))
    }

    /// With one more variable.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets it up in a pod whose environment is that of the small agent.
    pub(super) fn apply(&self, command: &mut Command) {
        command.env_remove(env::AGENT_COMMAND).env(env::AGENT_TYPE, &self.agent_type);
        command.env(env::TRANSPORT, &self.transport).envs(self.env.iter().map(|(name, value)| (name, value)));
    }
}
