//! `/v1/sessions/{id}/{status,messages,message,events,upload,screen}`: the coder/agentapi contract behind tenant
//! authentication. A client of coder/agentapi works with `/v1/sessions/{id}` as its base URL and a bearer header.
//! What changes something is in the audit log before the pod gets it. May touch: `store`, the session's pod through
//! `proxy`.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::{Instant, sleep};
use utoipa::ToSchema;
use uuid::Uuid;

use super::asleep;
use super::deed::Deed;
use super::sessions::load;
use super::transcript;
use crate::audit::{Client, action};
use crate::auth::Caller;
use crate::http::App;
use crate::http::error::{Problem, ProblemBody};
use crate::http::extract::{MAX_JSON_BYTES, SessionId, parse_json, read_body, require_content_type};
use crate::http::multipart;
use crate::http::proxy::{Call, forward};
use crate::pods::agent::Target;
use crate::prompt::screening::FindingView;
use crate::store::messages::Message;
use crate::store::sessions::{Phase, Session};

/// The pod takes files of 10 MiB; the multipart frame around one is small.
const MAX_UPLOAD_BYTES: usize = 10 * 1024 * 1024 + 64 * 1024;
/// A message is answered when the agent has started on it: it resends for 15 seconds before it gives up.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(60);
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(120);
pub(super) const READ_TIMEOUT: Duration = Duration::from_secs(15);
/// A request for a session that is about to be ready waits this long for it.
pub(super) const START_PATIENCE: Duration = Duration::from_secs(10);
pub(super) const START_POLL: Duration = Duration::from_millis(100);
/// Activity is written at most this often.
const ACTIVITY_SECONDS: f64 = 5.0;

/// What the agent is doing.
#[derive(Debug, Serialize, ToSchema)]
pub struct StatusBody {
    /// `running` while the agent works, `stable` when it waits for a message; a suspended session's waits for one too.
    #[schema(example = "stable")]
    pub(super) status: String,
    /// Type of agent.
    #[schema(example = "claude")]
    pub(super) agent_type: String,
    /// `pty` or `acp`.
    #[schema(example = "pty")]
    pub(super) transport: String,
}

/// One message of a conversation.
#[derive(Debug, Serialize, ToSchema)]
pub struct MessageView {
    /// Counts from 0 within the session.
    id: i32,
    /// Text.
    content: String,
    /// `agent` or `user`.
    #[schema(example = "agent")]
    role: String,
    /// RFC 3339.
    time: String,
}

/// A conversation.
#[derive(Debug, Serialize, ToSchema)]
pub struct MessagesBody {
    /// Oldest first.
    messages: Vec<MessageView>,
}

impl From<Message> for MessageView {
    fn from(message: Message) -> Self {
        Self { id: message.id, content: message.content, role: message.role, time: message.time }
    }
}

/// A message to the agent.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SendMessage {
    /// Text, or for type `raw` the keystrokes.
    content: String,
    /// `user` or `raw`.
    r#type: MessageType,
    /// coder's generated clients may send the schema's address along.
    #[serde(default, rename = "$schema")]
    #[schema(ignore)]
    _schema: Option<String>,
}

/// What a message is.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum MessageType {
    /// Text for the agent.
    User,
    /// Keystrokes for its terminal.
    Raw,
}

/// The agent has started on it.
#[derive(Debug, Serialize, ToSchema)]
pub struct SentMessage {
    /// `true`.
    ok: bool,
    /// What was cut out of the message before the agent got it, where a policy says so.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    redacted: Vec<FindingView>,
}

/// A file for the agent.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "describes the body for the OpenAPI document; the body itself streams to the pod")]
pub struct UploadForm {
    /// At most 10 MiB.
    #[schema(value_type = String, format = Binary)]
    file: Vec<u8>,
}

/// Where the file is.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Uploaded {
    /// `true`.
    ok: bool,
    /// Path in the pod; name it in a message.
    file_path: String,
}

pub(super) fn starting() -> Problem {
    let detail = "The session is still starting; try again in a moment.";
    Problem::unavailable("session-starting", detail, 1)
}

fn over(session: &Session) -> Problem {
    let detail = match &session.error {
        Some(error) => format!("The session has failed: {error}. Its messages can still be read."),
        None => "The session has ended. Its messages can still be read.".to_owned(),
    };
    Problem::new(StatusCode::CONFLICT, "session-over", "Session is over", detail).with("phase", session.phase.as_str())
}

/// The session, once it is past its start; records that it is in use.
pub(super) async fn settled(app: &App, caller: &Caller, id: Uuid) -> Result<Session, Problem> {
    let began = Instant::now();
    loop {
        let mut tx = app.store.tenant_tx(&caller.scope()).await?;
        let session = tx.session(id).await?.ok_or_else(Problem::no_such_session)?;
        let idle = session.phase == Phase::Running && session.idle_seconds > ACTIVITY_SECONDS;
        // Not in use any more: it is being suspended this moment.
        let gone = idle && !tx.session_in_use(id).await?;
        tx.commit().await?;
        if !gone && !matches!(session.phase, Phase::Pending | Phase::Starting) {
            return Ok(session);
        }
        if began.elapsed() >= START_PATIENCE || app.leaving.is_cancelled() {
            return Err(starting());
        }
        sleep(START_POLL).await;
    }
}

pub(super) struct Ask<'a> {
    method: Method,
    path: &'a str,
    body: Option<(Body, usize)>,
    timeout: Duration,
}

impl<'a> Ask<'a> {
    pub(super) fn get(path: &'a str) -> Self {
        Self { method: Method::GET, path, body: None, timeout: READ_TIMEOUT }
    }

    /// A short JSON body, whose type and length the headers say.
    pub(super) fn post(path: &'a str, body: Body) -> Self {
        Self { method: Method::POST, path, body: Some((body, MAX_JSON_BYTES)), timeout: READ_TIMEOUT }
    }
}

/// The pod of a session that has one.
pub(super) fn target(session: &Session) -> Result<Target<'_>, Problem> {
    if session.phase.is_asleep() {
        return Err(asleep::suspended());
    }
    if session.phase != Phase::Running {
        return Err(over(session));
    }
    match (session.pod_name.as_deref(), session.pod_ip.as_deref()) {
        (Some(pod), Some(ip)) => Ok(Target { session: session.id, pod, ip }),
        _ => Err(starting()),
    }
}

/// Why a pod does not get what it was about to get: the session is suspended this moment, or over.
pub(super) async fn gone(app: &App, caller: &Caller, id: Uuid) -> Problem {
    match load(app, caller, id).await {
        Ok(session) => target(&session).err().unwrap_or_else(starting),
        Err(problem) => problem,
    }
}

pub(super) async fn ask(app: &App, target: Target<'_>, headers: &HeaderMap, ask: Ask<'_>) -> Result<Response, Problem> {
    let Ask { method, path, body, timeout } = ask;
    forward(app, Call { target, method, path, headers, body, timeout }).await
}

/// Whether the agent is working. Does not wake a suspended session, whose agent is `stable`.
#[utoipa::path(
    get, path = "/v1/sessions/{id}/status", operation_id = "getStatus", tag = "agent", params(("id" = Uuid, Path, description = "Session")),
    responses(
        (status = 200, body = StatusBody),
        (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn status(
    State(app): State<App>,
    caller: Caller,
    SessionId(id): SessionId,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let session = settled(&app, &caller, id).await?;
    if session.phase.is_asleep() {
        return Ok(asleep::status(session));
    }
    ask(&app, target(&session)?, &headers, Ask::get("/status")).await
}

/// The conversation so far; also after the session's end, and without waking a suspended one.
#[utoipa::path(
    get, path = "/v1/sessions/{id}/messages", operation_id = "getMessages", tag = "agent", params(("id" = Uuid, Path, description = "Session")),
    responses(
        (status = 200, body = MessagesBody),
        (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn messages(
    State(app): State<App>,
    caller: Caller,
    SessionId(id): SessionId,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let session = settled(&app, &caller, id).await?;
    if session.phase == Phase::Running {
        return ask(&app, target(&session)?, &headers, Ask::get("/messages")).await;
    }
    Ok(transcript::as_json(transcript::pages(&app, &caller, &session).await?))
}

/// Sends a message to the agent; answered when the agent has started on it. Wakes a suspended session, which takes as
/// long as a start. Where the session's policies say so, a
/// message of type `user` that looks like prompt injection is refused, or goes on without that part.
#[utoipa::path(
    post, path = "/v1/sessions/{id}/message", operation_id = "sendMessage", tag = "agent", params(("id" = Uuid, Path, description = "Session")),
    request_body = SendMessage,
    responses(
        (status = 200, body = SentMessage),
        (status = 409, description = "The agent is busy, or the session is over.", body = ProblemBody,
         content_type = "application/problem+json"),
        (status = 422, description = "The body is not valid, or a policy refuses the message; the problem names the \
         family of attack and its place.", body = ProblemBody, content_type = "application/problem+json"),
        (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn message(
    State(app): State<App>,
    caller: Caller,
    client: Client,
    SessionId(id): SessionId,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let session = settled(&app, &caller, id).await?;
    require_content_type(&headers, "application/json")?;
    let bytes = read_body(body, MAX_JSON_BYTES).await?;
    let message: SendMessage = parse_json(&bytes)?;
    let deed = Deed::new(&app, &caller, &client, id);
    let (bytes, redacted) = match message.r#type {
        MessageType::User => deed.screen(&session, &message.content, bytes).await?,
        // Keystrokes come one by one; what they make together is not known here.
        MessageType::Raw => (bytes, Vec::new()),
    };
    let detail = json!({ "type": message.r#type, "bytes": message.content.len() });
    let session = asleep::begun(&deed, &client, action::SESSION_MESSAGE, &detail).await?;
    let target = target(&session)?;
    let mut headers = headers;
    headers.insert(CONTENT_LENGTH, bytes.len().into());
    let body = Some((Body::from(bytes), MAX_JSON_BYTES));
    let post = Ask { method: Method::POST, path: "/message", body, timeout: MESSAGE_TIMEOUT };
    let answer = ask(&app, target, &headers, post).await;
    let answer = deed.close(action::SESSION_MESSAGE_FAIL, answer).await?;
    if redacted.is_empty() || !answer.status().is_success() {
        return Ok(answer);
    }
    Ok(Json(SentMessage { ok: true, redacted }).into_response())
}

/// Follows the conversation as server-sent events. Resume with the header `Last-Event-ID`, also after the session was
/// suspended. Does not wake a suspended session: the stream stays open and goes on when somebody else does.
#[utoipa::path(
    get, path = "/v1/sessions/{id}/events", operation_id = "followEvents", tag = "agent",
    params(
        ("id" = Uuid, Path, description = "Session"),
        ("Last-Event-ID" = Option<String>, Header, description = "Id of the last event that was seen."),
    ),
    responses(
        (status = 200, description = "`message_update`, `status_change`, `permission`, `permission_resolved` and `agent_error` events.", body = String,
         content_type = "text/event-stream"),
        (status = 429, description = "The caller has too many event streams open, or sends too many requests.",
         body = ProblemBody, content_type = "application/problem+json"),
        (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn events(
    State(app): State<App>,
    caller: Caller,
    SessionId(id): SessionId,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let session = settled(&app, &caller, id).await?;
    let open = app.streams.open(&caller, &app.metrics)?;
    let stream = if session.phase.is_asleep() {
        asleep::follow(app, caller, session, headers).await?
    } else {
        ask(&app, target(&session)?, &headers, Ask::get("/events")).await?
    };
    Ok(open.held_by(stream))
}

/// Puts a file into the agent's pod. Wakes a suspended session.
#[utoipa::path(
    post, path = "/v1/sessions/{id}/upload", operation_id = "uploadFile", tag = "agent", params(("id" = Uuid, Path, description = "Session")),
    request_body(content = UploadForm, content_type = "multipart/form-data"),
    responses(
        (status = 200, body = Uploaded),
        (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn upload(
    State(app): State<App>,
    caller: Caller,
    client: Client,
    SessionId(id): SessionId,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    settled(&app, &caller, id).await?;
    require_content_type(&headers, "multipart/form-data")?;
    let file = multipart::begin(&headers, body).await?;
    let deed = Deed::new(&app, &caller, &client, id);
    let detail = json!({ "file": file.name, "bytes": file.bytes });
    let session = asleep::begun(&deed, &client, action::SESSION_UPLOAD, &detail).await?;
    let target = target(&session)?;
    let body = Some((file.body, MAX_UPLOAD_BYTES));
    let post = Ask { method: Method::POST, path: "/upload", body, timeout: UPLOAD_TIMEOUT };
    let answer = ask(&app, target, &headers, post).await;
    deed.close(action::SESSION_UPLOAD_FAIL, answer).await
}

/// Follows the agent's terminal as server-sent events. A suspended session has none, and is not woken.
#[utoipa::path(
    get, path = "/v1/sessions/{id}/screen", operation_id = "followScreen", tag = "agent", params(("id" = Uuid, Path, description = "Session")),
    responses(
        (status = 200, description = "`screen` events.", body = String, content_type = "text/event-stream"),
        (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn screen(
    State(app): State<App>,
    caller: Caller,
    SessionId(id): SessionId,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let session = settled(&app, &caller, id).await?;
    let open = app.streams.open(&caller, &app.metrics)?;
    Ok(open.held_by(ask(&app, target(&session)?, &headers, Ask::get("/internal/screen")).await?))
}
