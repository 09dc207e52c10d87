//! The API for session pods, on a port of its own: a pod writes the transcript of its own session and nothing else.
//! May touch: `auth::session_token`, `store`.

use axum::Json;
use axum::extract::{Request, State};
use http::StatusCode;
use serde::{Deserialize, Serialize};

use super::App;
use super::error::Problem;
use super::extract::{self, SessionId};
use crate::auth::AuthError;
use crate::store::TenantScope;
use crate::store::messages::Message;
use crate::store::sessions::Phase;

/// A transcript may be long.
pub const MAX_TRANSCRIPT_BYTES: usize = 32 * 1024 * 1024;

/// Nobody talks that much; without a limit an agent could fill the database with the token in its pod.
const MAX_MESSAGES: i32 = 20_000;
/// A longer message is cut: a screen has 1000 lines of 80 characters.
const MAX_MESSAGE_BYTES: usize = 1024 * 1024;

/// A pod's view of its session.
#[derive(Debug, Deserialize)]
pub struct Transcript {
    messages: Vec<TranscriptMessage>,
    #[serde(default)]
    status: Option<AgentStatus>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum AgentStatus {
    Running,
    Stable,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum MessageRole {
    Agent,
    User,
}

#[derive(Debug, Deserialize)]
struct TranscriptMessage {
    id: i32,
    role: MessageRole,
    content: String,
    time: jiff::Timestamp,
}

/// How many messages were taken.
#[derive(Debug, Serialize)]
pub struct Taken {
    taken: usize,
}

/// `PUT /internal/v1/sessions/{id}/messages`
pub async fn put_messages(
    State(app): State<App>,
    SessionId(id): SessionId,
    request: Request,
) -> Result<(StatusCode, Json<Taken>), Problem> {
    let (parts, body) = request.into_parts();
    let headers = parts.headers;
    let claims = app
        .tokens
        .verify_session(extract::bearer(&headers)?)
        .map_err(|_| AuthError::Invalid("the session token is not valid".to_owned()))?;
    if claims.sub != id {
        return Err(Problem::no_such_session());
    }
    extract::require_content_type(&headers, "application/json")?;
    // Only now: whoever has no token makes the runtime hold nothing.
    let body = extract::read_body(body, MAX_TRANSCRIPT_BYTES).await?;
    let transcript: Transcript = extract::parse_json(&body)?;
    let Some(organization) = app.store.organization_by_slug(&claims.org).await? else {
        return Err(Problem::no_such_session());
    };
    // What runs in a pod belongs to the tenant, so a flood of pushes counts against the tenant.
    let scope = TenantScope { platform: false, ..TenantScope::system(&organization) };
    let mut tx = app.store.tenant_tx(&scope).await?;
    // A late push of a pod on its way out is still taken; one of a session that never was is not.
    let Some(session) = tx.session(id).await? else {
        return Err(Problem::no_such_session());
    };
    if let Some(bad) = transcript.messages.iter().find(|message| !(0..MAX_MESSAGES).contains(&message.id)) {
        let detail = format!("A message's id is 0 to {}, not {}.", MAX_MESSAGES - 1, bad.id);
        return Err(Problem::invalid_field("messages", detail));
    }
    let mut ids = std::collections::HashSet::new();
    if let Some(twice) = transcript.messages.iter().find(|message| !ids.insert(message.id)) {
        return Err(Problem::invalid_field("messages", format!("Message {} is there twice.", twice.id)));
    }
    let messages: Vec<Message> = transcript.messages.into_iter().map(Message::from).collect();
    tx.upsert_messages(id, &messages).await?;
    if session.phase == Phase::Running {
        let status = transcript.status.map(|status| match status {
            AgentStatus::Running => "running",
            AgentStatus::Stable => "stable",
        });
        tx.session_active(id, status).await?;
    }
    tx.commit().await?;
    Ok((StatusCode::OK, Json(Taken { taken: messages.len() })))
}

impl From<TranscriptMessage> for Message {
    fn from(message: TranscriptMessage) -> Self {
        let role = match message.role {
            MessageRole::Agent => "agent",
            MessageRole::User => "user",
        };
        // Postgres cannot store NUL, and a terminal can produce it.
        let mut content = message.content.replace('\0', "");
        content.truncate(content.floor_char_boundary(MAX_MESSAGE_BYTES));
        Self { id: message.id, role: role.to_owned(), content, time: message.time.to_string() }
    }
}
