//! From a process that has just started to a session that takes messages: what each side can do, then a new session, or
//! the one that an earlier process had.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};

use super::{Connection, rpc::CallError, text};
use crate::session::{agents::Acp, events::Body, format::Look, host::Host, state::Resume};

/// The version of the protocol that this client speaks.
const VERSION: u64 = 1;
/// An agent that has not opened its session after this time does not open it.
const PATIENCE: Duration = Duration::from_secs(60);
/// JSON-RPC: the agent wants to be logged in.
const NOT_LOGGED_IN: i64 = -32000;

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error("{method}: {source}")]
    Call { method: &'static str, source: CallError },
    #[error(
        "the agent wants a login and takes {0}; give the workspace the agent's credentials with agent.secretRefs or agent.env"
    )]
    Login(String),
    #[error("the agent speaks version {0} of the Agent Client Protocol and this host version {VERSION}")]
    Version(Value),
    #[error("the agent names no session")]
    NoSession,
    #[error("the agent opened no session within {} s", PATIENCE.as_secs())]
    Slow,
}

/// What the session is opened with.
pub(in crate::session) struct Opening {
    /// Of the host; another one means that this process is over.
    pub generation: u64,
    pub system_prompt: Option<String>,
    /// The session of an earlier process, to go on with.
    pub earlier: Option<String>,
}

impl Host {
    /// Opens the agent's session in the background; then the agent is ready. An agent that has none is ended, and with it
    /// the container.
    pub(in crate::session) fn spawn_opening(self: &Arc<Self>, connection: &Arc<Connection>, opening: Opening) {
        let (host, connection) = (Arc::clone(self), Arc::clone(connection));
        tokio::spawn(async move {
            let opened = tokio::time::timeout(PATIENCE, host.open_session(&connection, &opening)).await;
            let error = match opened.unwrap_or(Err(OpenError::Slow)) {
                Ok(session) => return host.session_is_open(&connection, opening.generation, session),
                // What ended it is told where ends are told.
                Err(OpenError::Call { source: CallError::Closed, .. }) => return,
                Err(error) => error,
            };
            tracing::error!(%error, "the agent opens no session");
            let message = format!("The agent does not start: {error}.");
            host.hub.publish(Body::Error { message, level: "error", time: (host.config.now)() });
            connection.group().kill().await;
        });
    }

    async fn open_session(&self, connection: &Connection, opening: &Opening) -> Result<String, OpenError> {
        let hello = json!({
            "protocolVersion": VERSION,
            "clientCapabilities": { "fs": { "readTextFile": false, "writeTextFile": false }, "terminal": false },
            "clientInfo": { "name": "agentapi", "title": "AgentAPI", "version": env!("CARGO_PKG_VERSION") },
        });
        let agent = call(connection, "initialize", &hello).await?;
        if agent["protocolVersion"] != VERSION {
            return Err(OpenError::Version(agent["protocolVersion"].clone()));
        }
        let can = &agent["agentCapabilities"];
        let mut wanted = json!({ "cwd": self.config.workdir, "mcpServers": self.servers(can) });
        if let Some((acp, prompt)) = self.profile.acp.as_ref().zip(opening.system_prompt.as_deref())
            && let Some(meta) = meta(acp, prompt)
        {
            wanted["_meta"] = meta;
        }
        if let Some(earlier) = opening.earlier.as_ref().filter(|_| can["loadSession"] == true) {
            let mut again = wanted.clone();
            again["sessionId"] = json!(earlier);
            match call(connection, "session/load", &again).await {
                Ok(_) => return Ok(earlier.clone()),
                Err(error @ OpenError::Call { source: CallError::Closed, .. }) => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, "the agent does not go on with its session; it gets a new one");
                    let message = "The agent was restarted and does not remember the conversation.".to_owned();
                    self.hub.publish(Body::Error { message, level: "warning", time: (self.config.now)() });
                }
            }
        }
        let opened = match call(connection, "session/new", &wanted).await {
            Err(OpenError::Call { source: CallError::Refused { code: NOT_LOGGED_IN, .. }, .. }) => {
                let ways = agent["authMethods"].as_array().into_iter().flatten();
                let ways: Vec<_> = ways.map(|way| text(way, "name")).collect();
                return Err(OpenError::Login(ways.join(", ")));
            }
            opened => opened?,
        };
        let session = text(&opened, "sessionId");
        if session.is_empty() { Err(OpenError::NoSession) } else { Ok(session.to_owned()) }
    }

    /// The session's MCP servers, as far as the agent takes them from its client.
    fn servers(&self, can: &Value) -> Vec<Value> {
        if can["mcpCapabilities"]["http"] != true {
            return Vec::new();
        }
        let servers = self.mcp.servers().into_iter();
        servers.map(|(name, url)| json!({ "type": "http", "name": name, "url": url, "headers": [] })).collect()
    }

    fn session_is_open(&self, connection: &Connection, generation: u64, session: String) {
        let mut inner = self.lock();
        if inner.generation != generation {
            return;
        }
        tracing::info!("the agent's session is open");
        // From here on what the agent says is news.
        let _ = connection.session.set(session.clone());
        inner.acp_session = Some(session);
        inner.agent_ready = true;
        inner.look = Look::Waiting;
        if inner.resume == Resume::Asked {
            inner.resume = Resume::Allowed;
        }
        self.refresh(&mut inner);
        self.changes.send_modify(|count| *count += 1);
        drop(inner);
        self.ready.send_replace(true);
    }
}

/// What the agent is told about its operator's prompt when its session begins.
fn meta(acp: &Acp, prompt: &str) -> Option<Value> {
    fn fill(template: &Value, prompt: &str) -> Value {
        match template {
            Value::String(text) if text == "{{system_prompt}}" => json!(prompt),
            Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), fill(value, prompt))).collect(),
            other => other.clone(),
        }
    }
    acp.session_meta.as_ref().map(|template| fill(template, prompt))
}

async fn call(connection: &Connection, method: &'static str, params: &Value) -> Result<Value, OpenError> {
    let failed = |source| OpenError::Call { method, source };
    connection.peer.call(method, params).map_err(failed)?.get().await.map_err(failed)
}
