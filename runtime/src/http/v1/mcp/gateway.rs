//! `/v1/mcp/gateway/{connection}`: an MCP server to agents and to users' own clients, and a client of the real server
//! behind it. It speaks streamable HTTP and passes messages on as they are, whichever version of the protocol they are
//! in; it looks at each, keeps to the connection's policy, and adds the credentials, which the other side never sees.
//! May touch: `store`, `mcp`.

use axum::body::Body;
use axum::extract::{FromRequestParts, Request, State};
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Method, StatusCode};
use serde_json::{Map, Value};

use super::party::Party;
use super::problem::session_lost;
use super::relay::{self, Opened, Relay};
use super::{CallRecord, ConfigurationId, conversation};
use crate::auth::mcp_session::McpSession;
use crate::http::App;
use crate::http::error::{Problem, ProblemBody};
use crate::http::extract;
use crate::mcp::connection::Transport;
use crate::mcp::error::{UpstreamError, Verdict};
use crate::mcp::policy::Denied;
use crate::mcp::protocol::STATELESS;
use crate::mcp::rpc::{self, Message, NotAMessage, code};
use crate::mcp::service::{Loaded, McpError};
use crate::mcp::tools::is_name;
use crate::mcp::upstream::{Answer, LAST_EVENT_ID, Outgoing, PROTOCOL_VERSION, SESSION_ID};
use crate::store::TenantTx;

/// Requests that are passed on.
const METHODS: &[&str] = &[
    "initialize",
    "server/discover",
    "ping",
    "tools/list",
    "tools/call",
    "resources/list",
    "resources/templates/list",
    "resources/read",
    "resources/subscribe",
    "resources/unsubscribe",
    "subscriptions/listen",
    "prompts/list",
    "prompts/get",
    "completion/complete",
    "logging/setLevel",
    "tasks/get",
    "tasks/list",
    "tasks/result",
    "tasks/update",
    "tasks/cancel",
];
const PARAMETER_PREFIX: &str = "mcp-param-";

/// One message of JSON-RPC 2.0, as the protocol's streamable HTTP has it.
#[derive(serde::Deserialize, utoipa::ToSchema)]
#[allow(dead_code)]
pub struct RpcMessage {
    /// `2.0`.
    #[schema(example = "2.0")]
    jsonrpc: String,
    /// Of a request; what answers it has the same.
    id: Option<i64>,
    /// What to do.
    #[schema(example = "tools/list")]
    method: String,
    /// With what.
    #[schema(value_type = Object)]
    params: Option<Value>,
}

/// Sends a message to the server behind a connection. The answer is one message, or a stream of them.
#[utoipa::path(
    post, path = "/v1/mcp/gateway/{connection}", operation_id = "mcpGatewayPost", tag = "mcp",
    params(("connection" = Uuid, Path, description = "Configuration")), request_body = RpcMessage,
    responses(
        (status = 200, description = "A message, or an event stream of messages."),
        (status = 202, description = "The message wants no answer."),
        (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn post(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    let (mut head, body) = request.into_parts();
    let party = Party::user(&mut head, &app).await?;
    message(app, party, head, body).await
}

/// The same for a session's pod.
pub async fn internal_post(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    let (mut head, body) = request.into_parts();
    let party = Party::session(&mut head, &app).await?;
    message(app, party, head, body).await
}

/// The server's own stream of messages within a session; `Last-Event-ID` goes on where another one broke off.
#[utoipa::path(
    get, path = "/v1/mcp/gateway/{connection}", operation_id = "mcpGatewayGet", tag = "mcp",
    params(
        ("connection" = Uuid, Path, description = "Configuration"),
        ("Last-Event-ID" = Option<String>, Header, description = "Id of the last event that you have seen."),
    ),
    responses(
        (status = 200, description = "An event stream of messages."),
        (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn get(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    let (mut head, _) = request.into_parts();
    let party = Party::user(&mut head, &app).await?;
    in_session(app, party, head).await
}

/// The same for a session's pod.
pub async fn internal_get(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    let (mut head, _) = request.into_parts();
    let party = Party::session(&mut head, &app).await?;
    in_session(app, party, head).await
}

/// Ends a session with the server.
#[utoipa::path(
    delete, path = "/v1/mcp/gateway/{connection}", operation_id = "mcpGatewayDelete", tag = "mcp",
    params(("connection" = Uuid, Path, description = "Configuration")),
    responses(
        (status = 204, description = "It is over."),
        (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn delete(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    let (mut head, _) = request.into_parts();
    let party = Party::user(&mut head, &app).await?;
    in_session(app, party, head).await
}

/// The same for a session's pod.
pub async fn internal_delete(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    let (mut head, _) = request.into_parts();
    let party = Party::session(&mut head, &app).await?;
    in_session(app, party, head).await
}

async fn message(app: App, party: Party, mut head: http::request::Parts, body: Body) -> Result<Response, Problem> {
    let ConfigurationId(id) = ConfigurationId::from_request_parts(&mut head, &app).await?;
    extract::require_content_type(&head.headers, "application/json")?;
    // Before a transaction begins: nobody keeps one open by sending slowly.
    let body = extract::read_body(body, extract::MAX_JSON_BYTES).await?;
    let no_message = |error: &NotAMessage| Problem::bad_request(format!("The body is not a message of MCP: {error}."));
    let message = Message::parse(&body).map_err(|error| no_message(&error))?;
    let mut tx = app.store.tenant_tx(&party.caller.scope()).await?;
    let mut loaded = party.connection(&app, &mut tx, id).await?;
    let mut headers = headers(&app, &party, &loaded, &head.headers)?;
    match message {
        Message::Request { id, method, params } => {
            let params = rpc::object(params.as_deref()).map_err(|error| no_message(&error))?;
            if let Err(refusal) = admit(&app, &party, tx, &mut loaded, &method, &params).await? {
                return Ok(json_response(refusal.answer(&id).to_string(), None));
            }
            describe(&mut headers, &method, &params);
            let message = rpc::request(&id, &method, &params);
            Relay { app, party, loaded, id, method, params }.run(message, headers).await
        }
        // As it was read, so that nothing is passed on that was not looked at.
        other => {
            tx.commit().await?;
            forward(&app, &party, &loaded, headers, &other).await
        }
    }
}

/// A refusal in the protocol's own words: agents read those.
struct Refusal {
    code: i64,
    text: String,
    kind: &'static str,
}

impl Refusal {
    fn answer(&self, id: &Value) -> Value {
        rpc::error(id, self.code, &self.text, self.kind)
    }
}

/// Whether a request goes to the server. A call of a tool is recorded here, before anything is sent: in the transaction
/// that has read the connection, unless the server has to be asked for something first.
async fn admit(
    app: &App,
    party: &Party,
    mut tx: TenantTx,
    loaded: &mut Loaded,
    method: &str,
    params: &Map<String, Value>,
) -> Result<Result<(), Refusal>, Problem> {
    let refuse = |code, text: &str, kind| Ok(Err(Refusal { code, text: text.to_owned(), kind }));
    if !METHODS.contains(&method) {
        return refuse(code::METHOD_NOT_FOUND, "this gateway does not pass on this method", "mcp-method-unknown");
    }
    if !matches!(method, "tools/call" | "tools/list") {
        tx.commit().await?;
        return Ok(Ok(()));
    }
    if loaded.wants_pins() {
        tx.commit().await?;
        let mut pinned = loaded.clone();
        if let Err(error) = app.mcp.ensure_pinned(party.target(loaded), &mut pinned).await {
            return match error {
                McpError::Store(error) => Err(error.into()),
                other => refuse(code::SERVER_FAILED, &other.to_string(), other.kind()),
            };
        }
        *loaded = pinned;
        tx = app.store.tenant_tx(&party.caller.scope()).await?;
    }
    if method == "tools/list" {
        tx.commit().await?;
        return Ok(Ok(()));
    }
    let Some(name) = params.get("name").and_then(Value::as_str).filter(|name| is_name(name)) else {
        let text = "params.name is the name of a tool: at most 256 bytes, and no control characters";
        return refuse(code::INVALID_PARAMS, text, "mcp-tool-unnamed");
    };
    let denied = loaded.check(name).err();
    let record = CallRecord {
        origin: &party.origin,
        connection: &loaded.connection,
        tool: name,
        arguments: params.get("arguments").unwrap_or(&Value::Null),
    };
    record.write_in(&mut tx, denied.as_ref().map(Denied::kind)).await?;
    tx.commit().await?;
    match denied {
        None => Ok(Ok(())),
        Some(denied) => {
            let began = std::time::Instant::now();
            app.mcp.told(party.target(loaded), method, Some(denied.kind()), began);
            refuse(code::REFUSED, &denied.to_string(), denied.kind())
        }
    }
}

/// Headers of the protocol that go on; the session is the one that the gateway has given to this very party.
fn headers(app: &App, party: &Party, loaded: &Loaded, sent: &HeaderMap) -> Result<HeaderMap, Problem> {
    let mut headers = HeaderMap::new();
    for (name, value) in sent {
        let known = [PROTOCOL_VERSION, LAST_EVENT_ID].contains(name);
        if known || name.as_str().starts_with(PARAMETER_PREFIX) {
            headers.append(name, value.clone());
        }
    }
    if let Some(session) = sent.get(SESSION_ID) {
        let upstream = session.to_str().ok().and_then(|text| app.tokens.verify_mcp_session(text).ok());
        let upstream = upstream.filter(|it| it.is_of(&party.caller, loaded.connection.id));
        let value = upstream.and_then(|it| HeaderValue::from_str(&it.session).ok()).ok_or_else(session_lost)?;
        headers.insert(SESSION_ID, value);
    }
    Ok(headers)
}

/// Headers that say what the message says: made from the message that was looked at, never taken over.
fn describe(headers: &mut HeaderMap, method: &str, params: &Map<String, Value>) {
    if headers.get(PROTOCOL_VERSION).is_none_or(|version| version != STATELESS) {
        return;
    }
    for (name, value) in crate::mcp::protocol::standard_headers(method, params) {
        headers.insert(name, value);
    }
}

/// A server says at once that it has got what wants no answer; one that does not keeps a connection of ours.
const NOTICE: std::time::Duration = std::time::Duration::from_secs(10);

/// Passes on what wants no answer.
async fn forward(
    app: &App,
    party: &Party,
    loaded: &Loaded,
    headers: HeaderMap,
    message: &Message,
) -> Result<Response, Problem> {
    if matches!(loaded.connection.transport, Transport::Sse(_)) {
        conversation::notified(app, party, &headers, message).await?;
    } else {
        let (target, outgoing) = (party.target(loaded), Outgoing::post(message.to_text(), headers));
        // It takes a place like a call: a server that is slow to hear is slow.
        let ticket = app.mcp.client().guards().enter(target).await?;
        let exchange = app.mcp.client().upstream().exchange(target, &outgoing);
        let told = tokio::time::timeout(NOTICE, exchange).await.unwrap_or(Err(UpstreamError::TimedOut(NOTICE)));
        ticket.end(told.as_ref().map_or_else(UpstreamError::verdict, |_| Verdict::Healthy));
        match told {
            Ok(_) => {}
            Err(UpstreamError::SessionLost) => return Err(session_lost()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(StatusCode::ACCEPTED.into_response())
}

/// GET and DELETE.
async fn in_session(app: App, party: Party, mut head: http::request::Parts) -> Result<Response, Problem> {
    let ConfigurationId(id) = ConfigurationId::from_request_parts(&mut head, &app).await?;
    let mut tx = app.store.tenant_tx(&party.caller.scope()).await?;
    let loaded = party.connection(&app, &mut tx, id).await?;
    tx.commit().await?;
    let headers = headers(&app, &party, &loaded, &head.headers)?;
    if matches!(loaded.connection.transport, Transport::Sse(_)) {
        return Err(Problem::method_not_allowed());
    }
    let place = app.mcp.client().guards().enter_stream(party.caller.organization.id).await?;
    let open_ended = head.method == Method::GET;
    let again = headers.contains_key(LAST_EVENT_ID);
    let outgoing = Outgoing { method: head.method.clone(), url: None, body: None, headers, open_ended };
    let reply = match app.mcp.client().upstream().exchange(party.target(&loaded), &outgoing).await {
        Ok(reply) => reply,
        Err(UpstreamError::Status(405)) => return Err(Problem::method_not_allowed()),
        Err(UpstreamError::SessionLost) => return Err(session_lost()),
        Err(error) => return Err(error.into()),
    };
    match reply.answer {
        Answer::Events(events) if open_ended => {
            let opened = if again { Opened::Again(party, Box::new(loaded)) } else { Opened::ByItself };
            Ok(relay::stream(&app, events, place, opened))
        }
        _ => Ok(StatusCode::NO_CONTENT.into_response()),
    }
}

/// One message as the answer.
pub(super) fn json_response(message: impl Into<Body>, session: Option<HeaderValue>) -> Response {
    let mut response = message.into().into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(session) = session {
        response.headers_mut().insert(SESSION_ID, session);
    }
    response
}

/// The session as the other side knows it: good for this party and this connection only.
pub(super) fn wrapped(app: &App, party: &Party, loaded: &Loaded, session: &HeaderValue) -> Option<HeaderValue> {
    let session = McpSession::new(&party.caller, loaded.connection.id, session.to_str().ok()?);
    let token = app.tokens.for_mcp_session(&session).ok()?;
    HeaderValue::from_str(&token).ok()
}
