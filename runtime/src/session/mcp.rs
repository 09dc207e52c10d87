//! MCP servers for the agent: which connections its session has, asked of the runtime; a configuration that names a
//! relay on the loopback address for each; and the relay, which adds the session's token. So neither that token nor any
//! credential of a server is in a file, the environment or the arguments of the agent.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, Path as Segment, State},
    http::{HeaderMap, HeaderName, Method, StatusCode, header},
    response::{IntoResponse, Response},
    routing::any,
};
use backon::{ExponentialBuilder, Retryable};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::Notify};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    agents::McpServers,
    host::Host,
    seed::{SeedError, Seeder, edit_json, merge},
    sync, tools,
    transport::Transport,
};

/// Asking for the connections takes no longer, all attempts together: a claim is waiting.
const ASK: Duration = Duration::from_secs(6);
/// One attempt.
const ATTEMPT: Duration = Duration::from_secs(2);
/// Making a connection to the runtime.
const CONNECT: Duration = Duration::from_secs(5);
/// A message of the agent is not longer.
const MAX_BODY: usize = 8 * 1024 * 1024;
/// What belongs to the protocol and is passed on, in both directions.
const PASSED: [HeaderName; 6] = [
    header::ACCEPT,
    header::CONTENT_TYPE,
    header::RETRY_AFTER,
    HeaderName::from_static("mcp-session-id"),
    HeaderName::from_static("mcp-protocol-version"),
    HeaderName::from_static("last-event-id"),
];

/// A connection of the session.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub(super) struct Connection {
    id: Uuid,
    name: String,
}

/// What the host knows of its session's connections.
#[derive(Default)]
pub(super) struct Mcp {
    relay: OnceLock<SocketAddr>,
    connections: Mutex<Vec<Connection>>,
    /// An agent has started without knowing them.
    pub(super) wanting: Notify,
}

/// Why the connections are not known.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    /// It can't be told now.
    #[error("{0}")]
    Passing(String),
    /// Not with this token, or not of this pod: that passes too, when keys or pods have just changed, and not at once.
    #[error("{0}")]
    Later(String),
    /// It makes no sense to ask again.
    #[error("{0}")]
    Final(String),
}

impl Mcp {
    /// Keeps the connections; says whether an agent has to be started again to know them.
    fn keep(&self, connections: Vec<Connection>) -> bool {
        let mut known = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let differs = *known != connections;
        *known = connections;
        differs
    }

    /// Names and addresses of the servers.
    pub(super) fn servers(&self) -> BTreeMap<String, String> {
        let Some(relay) = self.relay.get() else { return BTreeMap::new() };
        let known = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let names = tools::servers(known.iter().map(|connection| (connection.id, connection.name.as_str())));
        let urls = known.iter().map(|connection| format!("http://{relay}/mcp/{}", connection.id));
        names.into_iter().zip(urls).collect()
    }

    /// Tells the next agent process about the servers, in the way that it knows. Gives back arguments for it.
    pub(super) fn prepare(
        &self,
        way: &McpServers,
        seeder: &Seeder<'_>,
        folder: &Path,
    ) -> Result<Vec<String>, SeedError> {
        let servers = self.servers();
        // Claude's format, which others read too.
        let entries: Value =
            servers.iter().map(|(name, url)| (name.clone(), json!({"type": "http", "url": url}))).collect();
        if let Some(path) = &way.path {
            let path = PathBuf::from(seeder.fill(path));
            if path.exists() || !servers.is_empty() {
                edit_json(&path, |content| {
                    if let Some(known) = content.get_mut("mcpServers").and_then(Value::as_object_mut) {
                        // Those of an earlier process: its relay had another port, and connections may be gone.
                        known.retain(|_, server| !is_relay(server));
                    }
                    merge(content, json!({ "mcpServers": entries }));
                })?;
            }
        }
        if servers.is_empty() {
            return Ok(Vec::new());
        }
        let mut arguments = Vec::new();
        for (name, url) in &servers {
            arguments.extend(way.server_args.iter().map(|arg| arg.replace("{{name}}", name).replace("{{url}}", url)));
        }
        if !way.args.is_empty() {
            let path = folder.join("mcp.json");
            let file = path.display().to_string();
            super::state::write_atomically(&path, json!({ "mcpServers": entries }).to_string().as_bytes())
                .map_err(|source| SeedError { path: file.clone(), source })?;
            arguments.extend(way.args.iter().map(|argument| argument.replace("{{file}}", &file)));
        }
        Ok(arguments)
    }
}

/// An entry that a host wrote: its own relay, at whatever port.
fn is_relay(server: &Value) -> bool {
    let url = server.get("url").and_then(Value::as_str).and_then(|url| url.parse::<url::Url>().ok());
    url.is_some_and(|url| {
        let id = url.path().strip_prefix("/mcp/").map(Uuid::parse_str);
        url.host_str() == Some("127.0.0.1") && matches!(id, Some(Ok(_)))
    })
}

impl Host {
    /// Asks the runtime for the session's connections; says whether an agent that runs does not know them. An agent
    /// without its tools is better than none, so what can't be had in time is left out, and asked for on.
    pub(super) async fn load_connections(&self) -> bool {
        self.ask_for_connections().await.unwrap_or_else(|error| {
            tracing::warn!(%error, "the agent starts without its MCP servers");
            if !matches!(error, AskError::Final(_)) {
                self.mcp.wanting.notify_one();
            }
            false
        })
    }

    /// The same once more.
    pub(super) async fn ask_for_connections(&self) -> Result<bool, AskError> {
        if !self.knows_mcp() || self.mcp.relay.get().is_none() {
            return Ok(false);
        }
        let Some(url) = self.list_url() else { return Ok(false) };
        let client = client(self).map_err(|error| AskError::Final(error.to_string()))?;
        let backoff = ExponentialBuilder::default().with_min_delay(Duration::from_millis(100)).without_max_times();
        let ask =
            (|| self.ask(&client, url.clone())).retry(backoff).when(|error| matches!(error, AskError::Passing(_)));
        let asked = tokio::time::timeout(ASK, ask).await;
        let late = |_| AskError::Passing(format!("no answer within {} s", ASK.as_secs()));
        Ok(self.mcp.keep(asked.map_err(late)??))
    }

    /// There is a way to tell the agent about MCP servers.
    fn knows_mcp(&self) -> bool {
        self.config.transport == Transport::Acp || !self.profile.mcp.is_none()
    }

    async fn ask(&self, client: &reqwest::Client, url: url::Url) -> Result<Vec<Connection>, AskError> {
        #[derive(Deserialize)]
        struct Answer {
            connections: Vec<Connection>,
        }
        let token = self.token().ok_or_else(|| AskError::Final("the session has no token".to_owned()))?;
        let call = client.get(url).bearer_auth(token.expose_secret()).timeout(ATTEMPT).send().await;
        let response = call.map_err(|error| AskError::Passing(error.without_url().to_string()))?;
        match response.status() {
            StatusCode::OK => {
                let answer: Answer =
                    response.json().await.map_err(|error| AskError::Passing(error.without_url().to_string()))?;
                Ok(answer.connections)
            }
            status if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() => {
                Err(AskError::Passing(format!("the runtime answered {status}")))
            }
            StatusCode::UNAUTHORIZED if self.reload_token() => {
                Err(AskError::Passing("the token is renewed".to_owned()))
            }
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                Err(AskError::Later(format!("the runtime answered {status}")))
            }
            status => Err(AskError::Final(format!("the runtime answered {status}"))),
        }
    }

    fn token(&self) -> Option<SecretString> {
        self.lock().token.clone()
    }

    /// Where the runtime tells the connections of this session.
    fn list_url(&self) -> Option<url::Url> {
        let mut url = self.config.runtime_url.clone()?;
        let session = self.session_id()?;
        url.path_segments_mut().ok()?.pop_if_empty().extend(["internal", "v1", "sessions", &session, "connections"]);
        Some(url)
    }
}

/// Straight to the runtime, as for the transcript; streams have no end that could be waited for.
fn client(host: &Host) -> reqwest::Result<reqwest::Client> {
    let builder = reqwest::Client::builder().connect_timeout(CONNECT).no_proxy().local_address(sync::own_address(host));
    builder.redirect(reqwest::redirect::Policy::none()).build()
}

/// Opens the relay; the agent finds it in its configuration. Without a runtime or an agent that knows MCP there is none.
pub(super) async fn serve_relay(host: &Arc<Host>, stop: CancellationToken) -> std::io::Result<()> {
    if !host.knows_mcp() || host.config.runtime_url.is_none() {
        return Ok(());
    }
    let listener = TcpListener::bind((IpAddr::V4(Ipv4Addr::LOCALHOST), 0)).await?;
    let _ = host.mcp.relay.set(listener.local_addr()?);
    let client = client(host).map_err(std::io::Error::other)?;
    let router = Router::new()
        .route("/mcp/{connection}", any(relay))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state((Arc::clone(host), client));
    tokio::spawn(async move { axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await });
    Ok(())
}

/// One request of the agent to the gateway.
async fn relay(
    State((host, client)): State<(Arc<Host>, reqwest::Client)>,
    Segment(connection): Segment<Uuid>,
    method: Method,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    // A page in a browser of the agent has no business here, whatever name it calls this address by.
    if headers.contains_key(header::ORIGIN) {
        return (StatusCode::FORBIDDEN, "this is for the agent, and not for web pages").into_response();
    }
    if ![Method::POST, Method::GET, Method::DELETE].contains(&method) {
        return StatusCode::METHOD_NOT_ALLOWED.into_response();
    }
    let Some(mut url) = host.config.runtime_url.clone() else { return StatusCode::NOT_FOUND.into_response() };
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.pop_if_empty().extend(["v1", "mcp", "gateway", &connection.to_string()]);
    }
    let mut renewed = false;
    loop {
        let Some(token) = host.token() else {
            return (StatusCode::SERVICE_UNAVAILABLE, "this pod has no session yet").into_response();
        };
        let mut request = client.request(method.clone(), url.clone()).bearer_auth(token.expose_secret());
        for name in PASSED.iter().filter(|name| headers.contains_key(*name)) {
            request = request.header(name, &headers[name]);
        }
        let answer = match request.body(body.clone()).send().await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::warn!(error = %error.without_url(), "the runtime cannot be reached for a call to an MCP server");
                return (StatusCode::BAD_GATEWAY, "the AgentAPI runtime cannot be reached; try again").into_response();
            }
        };
        if answer.status() == StatusCode::UNAUTHORIZED && !renewed && host.reload_token() {
            renewed = true;
            continue;
        }
        let mut response = Response::new(Body::empty());
        *response.status_mut() = answer.status();
        for name in PASSED {
            if let Some(value) = answer.headers().get(&name) {
                response.headers_mut().insert(name, value.clone());
            }
        }
        *response.body_mut() = Body::from_stream(answer.bytes_stream());
        return response;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::session::agents::profile;

    fn connection(number: u128, name: &str) -> Connection {
        Connection { id: Uuid::from_u128(number), name: name.to_owned() }
    }

    fn url(number: u128) -> String {
        format!("http://127.0.0.1:4567/mcp/{}", Uuid::from_u128(number))
    }

    fn relayed(connections: Vec<Connection>) -> Mcp {
        let mcp = Mcp::default();
        mcp.keep(connections);
        mcp.relay.set("127.0.0.1:4567".parse().unwrap()).unwrap();
        mcp
    }

    fn prepare(mcp: &Mcp, agent: &str, folder: &Path) -> Vec<String> {
        let env = BTreeMap::new();
        let seeder = Seeder { home: folder, workdir: folder, env: &env };
        mcp.prepare(&profile(agent).unwrap().mcp, &seeder, folder).unwrap()
    }

    fn json_of(path: &Path) -> Value {
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    #[test]
    fn the_configuration_names_the_relay_and_nothing_secret() {
        let folder = tempfile::tempdir().unwrap();
        let all = || vec![connection(1, "github"), connection(2, "my tracker"), connection(3, "github")];
        let without_relay = Mcp::default();
        assert!(without_relay.keep(all()));
        assert!(prepare(&without_relay, "claude", folder.path()).is_empty(), "there is no relay");
        let mcp = relayed(all());
        let file = folder.path().join("mcp.json");
        assert_eq!(prepare(&mcp, "claude", folder.path()), [format!("--mcp-config={}", file.display())]);
        let server = |number: u128| json!({"type": "http", "url": url(number)});
        let again = format!("github-{}", Uuid::from_u128(3).simple());
        let expected = json!({"mcpServers": {"github": server(1), "my_tracker": server(2), again: server(3)}});
        assert_eq!(json_of(&file), expected);
        assert!(!mcp.keep(all()));
        assert!(mcp.keep(Vec::new()) && prepare(&mcp, "claude", folder.path()).is_empty());
    }

    #[test]
    fn codex_gets_arguments_and_droid_a_file_that_keeps_what_others_wrote() {
        let folder = tempfile::tempdir().unwrap();
        let mcp = relayed(vec![connection(1, "github")]);
        let argument = format!("mcp_servers.github.url=\"{}\"", url(1));
        assert_eq!(prepare(&mcp, "codex", folder.path()), ["-c", argument.as_str()]);
        let file = folder.path().join(".factory/mcp.json");
        std::fs::create_dir(folder.path().join(".factory")).unwrap();
        let old = format!("http://127.0.0.1:99/mcp/{}", Uuid::from_u128(9));
        let before = json!({"mcpServers": {"gone": {"type": "http", "url": old}, "own": {"command": "x"}}, "more": 1});
        std::fs::write(&file, before.to_string()).unwrap();
        assert_eq!(prepare(&mcp, "droid", folder.path()), [""; 0]);
        let server = json!({"type": "http", "url": url(1)});
        assert_eq!(json_of(&file), json!({"mcpServers": {"github": server, "own": {"command": "x"}}, "more": 1}));
        mcp.keep(Vec::new());
        prepare(&mcp, "droid", folder.path());
        assert_eq!(json_of(&file), json!({"mcpServers": {"own": {"command": "x"}}, "more": 1}));
    }
}
