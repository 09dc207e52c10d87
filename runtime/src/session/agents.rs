//! What is known about each agent: command, seeded files, markers of its screen. Data files in `agents/`,
//! parsed here; nothing else in the session room knows an agent by name.

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;

use super::{boxes::PermissionBox, tools};

/// Names of all agent types, as coder/agentapi spells them, with their data files.
const FILES: &[(&str, &str)] = &[
    ("aider", include_str!("agents/aider.json")),
    ("amazonq", include_str!("agents/amazonq.json")),
    ("amp", include_str!("agents/amp.json")),
    ("auggie", include_str!("agents/auggie.json")),
    ("claude", include_str!("agents/claude.json")),
    ("codex", include_str!("agents/codex.json")),
    ("copilot", include_str!("agents/copilot.json")),
    ("cursor", include_str!("agents/cursor.json")),
    ("custom", include_str!("agents/custom.json")),
    ("droid", include_str!("agents/droid.json")),
    ("gemini", include_str!("agents/gemini.json")),
    ("goose", include_str!("agents/goose.json")),
    ("opencode", include_str!("agents/opencode.json")),
];

/// Why an agent type can't be used.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// There is no such type.
    #[error("unknown agent type {name:?}; use one of {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// The data file is wrong; a test parses all of them.
    #[error("agent file of {name}: {source}")]
    File {
        /// Agent type.
        name: String,
        /// What the parser says.
        source: serde_json::Error,
    },
}

/// Everything that differs between agents.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AgentProfile {
    /// Name, as in coder/agentapi's `agent_type`.
    #[serde(rename = "type")]
    pub name: String,
    /// Default command; empty for `custom`, where the workspace must give one.
    #[serde(default)]
    pub command: Vec<String>,
    /// How it is started when it is to speak the Agent Client Protocol. None: not known.
    #[serde(default)]
    pub acp: Option<Acp>,
    /// How a conversation goes on after the process was restarted.
    #[serde(default)]
    pub resume: Option<Resume>,
    /// What its image holds: for `cargo xtask images` and the tests.
    #[serde(default, rename = "image")]
    pub _image: Option<serde::de::IgnoredAny>,
    /// Arguments after the command where a variable is set, with `{{value}}`.
    #[serde(default)]
    pub args_with_env: BTreeMap<String, Vec<String>>,
    /// How it is told about MCP servers.
    #[serde(default)]
    pub mcp: McpServers,
    /// How it is told what its operator says.
    #[serde(default)]
    pub system_prompt: SystemPrompt,
    /// Environment defaults; what the pod or the claim sets wins.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Files that must be there before the agent starts.
    #[serde(default)]
    pub files: Vec<SeedFile>,
    /// When the agent waits for input.
    #[serde(default)]
    pub ready: Ready,
    /// Anything on the screen counts as ready: nothing is known about the program.
    #[serde(default)]
    pub any_screen_is_ready: bool,
    /// Shapes of the input box, tried in this order.
    #[serde(default)]
    pub input_box: Vec<InputBox>,
    /// What stands before the user's words when the agent repeats them in its transcript.
    #[serde(default)]
    pub echo_prefixes: Vec<String>,
    /// What the agent writes instead of a long paste when it repeats it.
    #[serde(default)]
    pub paste_placeholders: Vec<String>,
    /// Lines that are decoration (spinners, hints) and belong to no message.
    #[serde(default)]
    pub noise: Vec<Noise>,
    /// Rows at the top of the screen that change all the time (token counters) and start no message.
    #[serde(default)]
    pub dynamic_header_rows: usize,
    /// How a message is typed.
    #[serde(default)]
    pub input: Input,
    /// How it asks for a permission. None: it is not known; the user looks at the screen.
    #[serde(default)]
    pub permission: Option<PermissionBox>,
    /// What makes it stop in the middle of its work.
    #[serde(default)]
    pub cancel: Option<Cancel>,
}

/// What makes an agent stop.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Cancel {
    /// Keystrokes.
    pub keys: String,
}

/// An agent that speaks the Agent Client Protocol on its standard input and output.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Acp {
    /// Its command.
    pub command: Vec<String>,
    /// Arguments after the command where a variable is set, with `{{value}}`.
    #[serde(default)]
    pub args_with_env: BTreeMap<String, Vec<String>>,
    /// `_meta` of the session's beginning, when there is a system prompt: `{{system_prompt}}` stands for it.
    #[serde(default)]
    pub session_meta: Option<serde_json::Value>,
    /// Other ways to tell it its system prompt.
    #[serde(default)]
    pub system_prompt: SystemPrompt,
    /// Other ways to tell it about MCP servers, for one that does not take them when its session begins.
    #[serde(default)]
    pub mcp: McpServers,
}

/// Resume arguments of an agent.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Resume {
    /// Arguments that are appended to the command.
    pub args: Vec<String>,
    /// The arguments are used only when a file with this extension is somewhere under this folder:
    /// an agent that is asked to continue nothing exits.
    pub folder: String,
    /// See `folder`.
    pub extension: String,
}

/// How an agent is told about its MCP servers. An agent with none of these is not.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct McpServers {
    /// Arguments that name a file in Claude's format, `{{file}}`.
    #[serde(default)]
    pub args: Vec<String>,
    /// Arguments for each server, with `{{name}}` and `{{url}}`.
    #[serde(default)]
    pub server_args: Vec<String>,
    /// A file of its own in Claude's format, with `{{home}}`; what others wrote there stays.
    #[serde(default)]
    pub path: Option<String>,
    /// What it calls a tool, with `{{server}}` and `{{tool}}`.
    #[serde(default = "common_tool_name")]
    pub tool_name: String,
}

fn common_tool_name() -> String {
    tools::COMMON.to_owned()
}

impl Default for McpServers {
    fn default() -> Self {
        Self { args: Vec::new(), server_args: Vec::new(), path: None, tool_name: common_tool_name() }
    }
}

impl McpServers {
    /// The agent knows no MCP.
    pub(super) fn is_none(&self) -> bool {
        self.args.is_empty() && self.server_args.is_empty() && self.path.is_none()
    }
}

/// How an agent gets its system prompt. An agent with neither finds the file's path in `AGENTAPI_SYSTEM_PROMPT_FILE`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SystemPrompt {
    /// Arguments, with `{{file}}`.
    #[serde(default)]
    pub args: Vec<String>,
    /// A file of its own that it reads when it starts, with `{{home}}`.
    #[serde(default)]
    pub path: Option<String>,
}

/// A file in the agent's home.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SeedFile {
    /// Where, with `{{home}}` and `{{workdir}}`.
    pub path: String,
    /// Only when this variable is set (not to write half a configuration).
    #[serde(default)]
    pub only_with_env: Option<String>,
    /// JSON that is merged into the file that may be there.
    #[serde(default)]
    pub json: Option<serde_json::Value>,
    /// Text for a file that is not there yet.
    #[serde(default)]
    pub text: Option<String>,
}

/// Markers of an agent that waits for input.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Ready {
    /// At least one of these is near the bottom of the screen; when there are none, the input box is.
    #[serde(default)]
    pub any: Vec<String>,
    /// None of these is in the box or below it.
    #[serde(default)]
    pub none: Vec<String>,
    /// Rows right above the box where `none` is looked for too.
    #[serde(default)]
    pub rows_above_box: usize,
}

/// How the input box looks.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, tag = "kind", rename_all = "snake_case")]
pub(super) enum InputBox {
    /// Two horizontal rules with the prompt between them; what is below is status.
    Rules {
        /// Glyphs that start the first line between the rules.
        prompts: Vec<String>,
    },
    /// A frame of box-drawing characters; what is below is status.
    Frame {
        /// Text that the frame must hold, or any.
        #[serde(default)]
        contains: Vec<String>,
    },
    /// A line near the bottom that starts with a prompt; it and what is below is input.
    Prompt {
        /// The prompts.
        prompts: Vec<String>,
        /// How many non-blank lines may follow it.
        #[serde(default)]
        footer: usize,
    },
    /// Lines near the bottom that start with a thick bar.
    Bar {
        /// The bar.
        bar: String,
    },
}

/// A line that belongs to no message: all given conditions hold.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Noise {
    /// First characters; indentation counts.
    #[serde(default)]
    pub starts_with: Vec<String>,
    /// All of these are in the line.
    #[serde(default)]
    pub contains: Vec<String>,
    /// Last characters.
    #[serde(default)]
    pub ends_with: Option<String>,
}

/// When to use bracketed paste.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(super) enum Paste {
    /// When the program has asked for it.
    #[default]
    Auto,
    /// Always.
    Always,
}

/// How a message is typed.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Input {
    /// Bracketed paste or plain characters.
    pub paste: Paste,
    /// The pasted text counts as taken when the screen has been quiet for this long.
    pub paste_settle_ms: u64,
    /// The first screen counts as ready when it has been quiet for this long.
    pub ready_settle_ms: u64,
}

impl Default for Input {
    fn default() -> Self {
        Self { paste: Paste::Auto, paste_settle_ms: 150, ready_settle_ms: 300 }
    }
}

impl Input {
    /// See `paste_settle_ms`.
    pub(super) fn paste_settle(&self) -> Duration {
        Duration::from_millis(self.paste_settle_ms)
    }

    /// See `ready_settle_ms`.
    pub(super) fn ready_settle(&self) -> Duration {
        Duration::from_millis(self.ready_settle_ms)
    }
}

/// The profile of an agent type.
pub(super) fn profile(name: &str) -> Result<AgentProfile, AgentError> {
    let (_, text) = FILES.iter().find(|(known, _)| *known == name).ok_or_else(|| AgentError::Unknown {
        name: name.to_owned(),
        known: FILES.iter().map(|(known, _)| *known).collect::<Vec<_>>().join(", "),
    })?;
    serde_json::from_str(text).map_err(|source| AgentError::File { name: name.to_owned(), source })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn every_agent_file_parses_and_is_filed_under_its_name() {
        for (name, _) in FILES {
            let profile = profile(name).unwrap();
            assert_eq!(profile.name, *name);
            assert_eq!(profile.command.is_empty(), *name == "custom", "{name}");
            assert!(profile.acp.is_none_or(|acp| !acp.command.is_empty()), "{name}");
            for file in &profile.files {
                assert!(file.json.is_some() != file.text.is_some(), "{name}: {}", file.path);
            }
        }
    }

    #[test]
    fn an_unknown_type_lists_the_known_ones() {
        let message = profile("clippy").unwrap_err().to_string();
        assert!(message.contains("claude") && message.contains("custom"), "{message}");
    }
}
