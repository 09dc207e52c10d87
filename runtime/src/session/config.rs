//! Configuration of a session host: command line and environment in, checked values out.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use agentapi_crds::common::parse_duration;
use jiff::Timestamp;

use super::{
    permissions::{Policy, Rule},
    transport::Transport,
};

/// Arguments of `agentapi-runtime session`. In a pod the operator sets them through the environment.
#[derive(Clone, Debug, clap::Args)]
pub struct SessionArgs {
    /// Address to listen on.
    #[arg(long, env = "AGENTAPI_LISTEN", default_value = "127.0.0.1:3284")]
    pub listen: SocketAddr,
    /// Agent type, as in coder/agentapi.
    #[arg(long = "type", env = "AGENTAPI_AGENT_TYPE", default_value = "custom")]
    pub agent_type: String,
    /// Agent command as a JSON array; the default is the agent type's own command.
    #[arg(long, env = "AGENTAPI_AGENT_COMMAND")]
    pub agent_command: Option<String>,
    /// Transport to the agent.
    #[arg(long, env = "AGENTAPI_TRANSPORT", default_value = "pty")]
    pub transport: Transport,
    /// What becomes of the agent's requests for permission.
    #[arg(long, env = "AGENTAPI_PERMISSIONS", default_value = "ask")]
    pub permissions: Rule,
    /// A request for permission that nobody has answered after this time is rejected.
    #[arg(long, env = "AGENTAPI_PERMISSION_TIMEOUT", default_value = "5m", value_parser = duration)]
    pub permission_timeout: Duration,
    /// base64url x of the Ed25519 keys that sign the runtime's tokens, with commas.
    #[arg(long, env = "AGENTAPI_SESSION_PUBLIC_KEY")]
    pub session_public_key: Option<String>,
    /// Serve without authentication; only on a loopback address, for local development.
    #[arg(long)]
    pub insecure_no_auth: bool,
    /// Base URL of the runtime's internal API; without it the transcript stays in the pod.
    #[arg(long, env = "AGENTAPI_RUNTIME_INTERNAL_URL")]
    pub runtime_internal_url: Option<url::Url>,
    /// Folder for the saved state.
    #[arg(long, env = "AGENTAPI_STATE_DIR", default_value = "/state")]
    pub state_dir: PathBuf,
    /// Bytes on the disk of that folder that are kept back for the state.
    #[arg(long, env = "AGENTAPI_STATE_RESERVE", default_value_t = 0)]
    pub state_reserve: u64,
    /// Folder that the agent works in.
    #[arg(long, env = "AGENTAPI_WORKDIR", default_value = "/workspace")]
    pub workdir: PathBuf,
    /// Folder where the session's Secret is mounted.
    #[arg(long, env = "AGENTAPI_SESSION_SECRET_DIR")]
    pub session_secret_dir: Option<PathBuf>,
    /// Name of this pod.
    #[arg(long, env = "AGENTAPI_POD_NAME", default_value = "local")]
    pub pod_name: String,
    /// First user message, for a session that is not claimed through the API.
    #[arg(long, env = "AGENTAPI_INITIAL_PROMPT")]
    pub initial_prompt: Option<String>,
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "is a duration such as 30s, 5m or 1h30m".to_owned())
}

/// Time constants of the contract; tests shorten them.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// The screen is looked at this long after it started to change.
    pub snapshot: Duration,
    /// The agent is stable when the screen has been quiet for this long.
    pub stable: Duration,
    /// The agent must show a typed message within this time.
    pub paste: Duration,
    /// The agent must react to Enter within this time.
    pub enter: Duration,
    /// Enter is pressed again after this time.
    pub enter_again: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            snapshot: Duration::from_millis(40),
            stable: Duration::from_secs(2),
            paste: Duration::from_secs(15),
            enter: Duration::from_secs(15),
            enter_again: Duration::from_secs(3),
        }
    }
}

/// Checked configuration.
#[derive(Clone)]
pub struct SessionConfig {
    /// Address to listen on.
    pub listen: SocketAddr,
    /// Agent type.
    pub agent_type: String,
    /// How the host talks to the agent.
    pub transport: Transport,
    /// What becomes of the agent's requests for permission.
    pub permissions: Policy,
    /// Command that replaces the agent type's own.
    pub command: Option<Vec<String>>,
    /// Keys that tokens are checked with; `None` only on loopback.
    pub public_key: Option<String>,
    /// Base URL of the runtime's internal API.
    pub runtime_url: Option<url::Url>,
    /// Folder for the saved state.
    pub state_dir: PathBuf,
    /// Bytes on its disk that are kept back for the state.
    pub state_reserve: u64,
    /// Folder that the agent works in.
    pub workdir: PathBuf,
    /// The agent's home.
    pub home: PathBuf,
    /// Folder where the session's Secret is mounted.
    pub secret_dir: Option<PathBuf>,
    /// Name of this pod.
    pub pod_name: String,
    /// First user message.
    pub initial_prompt: Option<String>,
    /// The environment of this process.
    pub env: BTreeMap<String, String>,
    /// Time constants.
    pub timing: Timing,
    /// Wall clock.
    pub now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
}

/// A configuration that makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No key and no permission to go without.
    #[error(
        "AGENTAPI_SESSION_PUBLIC_KEY is not set: set it to the public key of the runtime, or use --insecure-no-auth on a loopback address for local development"
    )]
    NoKey,
    /// No authentication where others can connect.
    #[error("--insecure-no-auth needs a loopback address, and {0} is none; use --listen 127.0.0.1:3284")]
    InsecureListen(SocketAddr),
    /// The command is not a JSON array of strings.
    #[error("AGENTAPI_AGENT_COMMAND must be a JSON array of strings with the program first, like [\"claude\"]")]
    Command,
}

impl SessionArgs {
    /// Checks the arguments. `env` is the environment that the agent inherits.
    pub fn into_config(self, env: BTreeMap<String, String>) -> Result<SessionConfig, ConfigError> {
        let public_key = self.session_public_key.filter(|key| !key.trim().is_empty());
        if public_key.is_none() && !self.insecure_no_auth {
            return Err(ConfigError::NoKey);
        }
        if public_key.is_none() && !self.listen.ip().is_loopback() {
            return Err(ConfigError::InsecureListen(self.listen));
        }
        let command = match self.agent_command.as_deref().map(str::trim) {
            None | Some("") => None,
            Some(text) => {
                let argv: Vec<String> = serde_json::from_str(text).map_err(|_| ConfigError::Command)?;
                if argv.first().is_some_and(String::is_empty) {
                    return Err(ConfigError::Command);
                }
                Some(argv).filter(|argv| !argv.is_empty())
            }
        };
        let home = env.get("HOME").map_or_else(|| self.workdir.clone(), PathBuf::from);
        Ok(SessionConfig {
            listen: self.listen,
            agent_type: self.agent_type,
            transport: self.transport,
            permissions: Policy { rule: self.permissions, timeout: self.permission_timeout },
            command,
            public_key,
            runtime_url: self.runtime_internal_url,
            state_dir: self.state_dir,
            state_reserve: self.state_reserve,
            workdir: self.workdir,
            home,
            secret_dir: self.session_secret_dir,
            pod_name: self.pod_name,
            initial_prompt: self.initial_prompt.filter(|prompt| !prompt.trim().is_empty()),
            env,
            timing: Timing::default(),
            now: Arc::new(Timestamp::now),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use clap::Parser;

    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        session: SessionArgs,
    }

    fn config(args: &[&str]) -> Result<SessionConfig, ConfigError> {
        let args = std::iter::once("session").chain(args.iter().copied());
        Cli::parse_from(args).session.into_config(BTreeMap::new())
    }

    #[test]
    fn a_session_without_a_key_is_only_for_loopback_and_only_when_asked_for() {
        assert!(matches!(config(&[]), Err(ConfigError::NoKey)));
        assert!(matches!(config(&["--session-public-key", " "]), Err(ConfigError::NoKey)));
        assert!(config(&["--insecure-no-auth"]).is_ok());
        let open = config(&["--insecure-no-auth", "--listen", "0.0.0.0:1"]);
        assert!(matches!(open, Err(ConfigError::InsecureListen(_))));
        assert!(config(&["--session-public-key", "k", "--listen", "0.0.0.0:1"]).is_ok());
    }

    #[test]
    fn commands_are_json_arrays() {
        let parsed = config(&["--insecure-no-auth", "--agent-command", r#"["bash","-c","x y"]"#]).unwrap();
        assert_eq!(parsed.command.unwrap(), ["bash", "-c", "x y"]);
        for bad in ["bash", "{}", "[1]", "[\"\"]"] {
            let parsed = config(&["--insecure-no-auth", "--agent-command", bad]);
            assert!(matches!(parsed, Err(ConfigError::Command)), "{bad}");
        }
        assert!(config(&["--insecure-no-auth", "--agent-command", "[]"]).unwrap().command.is_none());
    }

    #[test]
    fn transports_and_policies_are_what_the_operator_writes() {
        let parsed = config(&["--insecure-no-auth"]).unwrap();
        assert_eq!((parsed.transport, parsed.permissions.rule), (Transport::Pty, Rule::Ask));
        assert_eq!(parsed.permissions.timeout, Duration::from_secs(300));
        let args = ["--transport", "acp", "--permissions", "reject", "--permission-timeout", "1m30s"];
        let parsed = config(&[&["--insecure-no-auth"], &args[..]].concat()).unwrap();
        assert_eq!((parsed.transport, parsed.permissions.rule), (Transport::Acp, Rule::Reject));
        assert_eq!(parsed.permissions.timeout, Duration::from_secs(90));
        for bad in [["--transport", "ftp"], ["--permissions", "maybe"], ["--permission-timeout", "5"]] {
            assert!(Cli::try_parse_from(["session"].iter().chain(&bad)).is_err(), "{bad:?}");
        }
    }
}
