//! What is recorded about a change, and who made it; and everything that an auditor does with the log afterwards. The
//! rows themselves are `store::audit`. Pure: imports nothing of ours.

pub mod chain;
pub mod checkpoint;
#[cfg(test)]
mod fuzz;
pub mod ocsf;
pub mod proxies;
pub mod verify;

use serde_json::Value;

/// What the API and the platform record. `ocsf` has a line for each.
pub mod action {
    /// A session was accepted.
    pub const SESSION_CREATE: &str = "session.create";
    /// A session ends, by its user or by the platform.
    pub const SESSION_DELETE: &str = "session.delete";
    /// A session has failed.
    pub const SESSION_FAIL: &str = "session.fail";
    /// Nobody used a session: its pod was given up.
    pub const SESSION_SUSPEND: &str = "session.suspend";
    /// A suspended session gets a pod again.
    pub const SESSION_WAKE: &str = "session.wake";
    /// A message goes to the agent. Written before the agent gets it, so that none is unrecorded.
    pub const SESSION_MESSAGE: &str = "session.message";
    /// The message of the same request was refused, or nobody knows.
    pub const SESSION_MESSAGE_FAIL: &str = "session.message-fail";
    /// A file goes to the agent. Written before the agent gets it.
    pub const SESSION_UPLOAD: &str = "session.upload";
    /// The file of the same request was refused, or nobody knows.
    pub const SESSION_UPLOAD_FAIL: &str = "session.upload-fail";
    /// A user answers what the agent asks. Written before the agent gets it.
    pub const SESSION_PERMISSION: &str = "session.permission";
    /// The answer of the same request was refused, or nobody knows.
    pub const SESSION_PERMISSION_FAIL: &str = "session.permission-fail";
    /// A user stops what the agent is doing. Written before the agent gets it.
    pub const SESSION_CANCEL: &str = "session.cancel";
    /// There was nothing to stop, or nobody knows.
    pub const SESSION_CANCEL_FAIL: &str = "session.cancel-fail";
    /// An admin made a connection to an MCP server. The operator writes the same of resources.
    pub const MCP_CONNECTION_CREATE: &str = "mcpconnection.create";
    /// An admin changed one.
    pub const MCP_CONNECTION_UPDATE: &str = "mcpconnection.update";
    /// An admin removed one.
    pub const MCP_CONNECTION_DELETE: &str = "mcpconnection.delete";
    /// An admin had a server called to see whether it works.
    pub const MCP_CONNECTION_TEST: &str = "mcpconnection.test";
    /// A user opened a session with an MCP server.
    pub const MCP_CONNECT: &str = "mcp.connect";
    /// A user's session with an MCP server was ended.
    pub const MCP_DISCONNECT: &str = "mcp.disconnect";
    /// A tool of an MCP server is called. Written before the server gets it, so that none is unrecorded.
    pub const MCP_TOOL_CALL: &str = "mcp.tool-call";
    /// The call of the same request was refused or has failed.
    pub const MCP_TOOL_CALL_FAIL: &str = "mcp.tool-call-fail";
    /// A pinned tool has changed; the connection's tools are called no more.
    pub const MCP_QUARANTINE: &str = "mcp.quarantine";
    /// A user's text looks like prompt injection; the detail says what became of it.
    pub const PROMPT_SCREEN: &str = "prompt.screen";
    /// A consent to an MCP server begins.
    pub const OAUTH_BEGIN: &str = "oauth.begin";
    /// A consent was given.
    pub const OAUTH_GRANT: &str = "oauth.grant";
    /// A consent was not given, or its provider's answer was not taken.
    pub const OAUTH_REFUSE: &str = "oauth.refuse";
    /// Tokens were exchanged for others.
    pub const OAUTH_REFRESH: &str = "oauth.refresh";
    /// The provider does not take a grant any more.
    pub const OAUTH_LOSE: &str = "oauth.lose";
    /// A consent was taken back.
    pub const OAUTH_REVOKE: &str = "oauth.revoke";
    /// A client was registered at a provider.
    pub const OAUTH_REGISTER: &str = "oauth.register";
    /// Tokens were sealed with another version of the data key.
    pub const OAUTH_RESEAL: &str = "oauth.reseal";
    /// Somebody was here for the first time.
    pub const USER_CREATE: &str = "user.create";
    /// Somebody's token says another role or email than before.
    pub const USER_UPDATE: &str = "user.update";
    /// Somebody wanted what only admins may.
    pub const ACCESS_REFUSE: &str = "access.refuse";
}

/// The client behind a request.
#[derive(Debug, Clone, Default)]
pub struct Client {
    /// Request that it made.
    pub request_id: Option<String>,
    /// Its address, as far as it can be known.
    pub source_ip: Option<String>,
    /// Its `User-Agent`, cut to what the column takes.
    pub user_agent: Option<String>,
}

impl Client {
    /// This user, from here.
    pub fn origin(&self, subject: &str) -> Origin {
        Origin { actor: format!("user:{subject}"), client: self.clone() }
    }
}

/// Who or what made a change, from where.
#[derive(Debug, Clone)]
pub struct Origin {
    /// `user:<subject>` or `system:<part>`.
    pub actor: String,
    /// From where; nothing for the platform itself.
    pub client: Client,
}

impl Origin {
    /// A part of the platform itself.
    pub fn system(part: &str) -> Self {
        Self { actor: format!("system:{part}"), client: Client::default() }
    }
}

/// One row to write. `detail` never holds environment values, prompts, messages or tokens.
#[derive(Debug)]
pub struct Entry<'a> {
    /// Who.
    pub origin: &'a Origin,
    /// Did what, one of [`action`].
    pub action: &'a str,
    /// To what kind of thing.
    pub target_kind: &'a str,
    /// To which one.
    pub target_id: Option<&'a str>,
    /// More about it, a JSON object.
    pub detail: Value,
}
