//! The API for session pods, on a port of its own: a pod writes the transcript of its own session and nothing else.
//! May touch: `auth::session_token`, `store`.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};

use axum::Json;
use axum::extract::{Request, State};
use http::{Extensions, HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::error::Problem;
use super::extract::{self, SessionId};
use super::transcript_budget::TranscriptBudget;
use super::{App, AppState, held};
use crate::auth::AuthError;
use crate::auth::session_token::SessionClaims;
use crate::store::TenantScope;
use crate::store::identity::Organization;
use crate::store::messages::Message;
use crate::store::sessions::{Phase, Session};

/// A transcript may be long.
pub const MAX_TRANSCRIPT_BYTES: usize = 32 * 1024 * 1024;

/// Nobody talks that much; without a limit an agent could fill the database with the token in its pod.
const MAX_MESSAGES: i32 = 20_000;
/// A longer message is cut: a screen has 1000 lines of 80 characters.
pub(super) const MAX_MESSAGE_BYTES: usize = 1024 * 1024;

/// A pod that ends with its session still flushes what it has; the kubelet gives it less time than this.
const LAST_WORDS_SECONDS: f64 = 120.0;

/// What the API for session pods is told.
pub struct InternalApi {
    /// Whether a push must come from the address of the session's pod.
    pub check_pod_address: bool,
    /// How long transcripts may get.
    pub budget: TranscriptBudget,
}

/// A pod's view of its session.
#[derive(Debug, Deserialize)]
pub struct Transcript {
    messages: Vec<TranscriptMessage>,
    #[serde(default)]
    status: Option<AgentStatus>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum AgentStatus {
    Running,
    Stable,
}

impl AgentStatus {
    fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Stable => "stable",
        }
    }
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
    let peer = peer(&app, &parts.extensions);
    let claims = claims(&app, id, &parts.headers)?;
    // Only now: whoever has no token makes the runtime hold nothing, and the others not more than their organization may.
    let organization = organization(&app, &claims).await?;
    let transcript: Transcript = extract::read_json(&parts.headers, body, MAX_TRANSCRIPT_BYTES).await?;
    transcript.validate()?;
    // What runs in a pod belongs to the tenant, so a flood of pushes counts against the tenant.
    let scope = TenantScope { platform: false, ..TenantScope::system(&organization) };
    let mut tx = app.store.tenant_tx(&scope).await?;
    let Some(session) = tx.session(id).await? else {
        return Err(Problem::no_such_session());
    };
    admit(&session, &claims, peer)?;
    let messages: Vec<Message> = transcript.messages.into_iter().map(Message::from).collect();
    tx.upsert_messages(id, &messages).await?;
    let runs = session.phase == Phase::Running;
    let status = transcript.status.map(AgentStatus::as_str);
    let grown = match app.internal.budget.check(&mut tx, &session, &app.metrics).await {
        Ok(grown) => grown,
        Err(refused) => {
            // The messages are taken back, and what the agent does is not: a session whose agent has stopped would never
            // be suspended, and one whose agent works would end as idle. The pod repeats what was refused for ever, so
            // that alone is no activity.
            drop(tx);
            let is_news = status == Some(AgentStatus::Running.as_str()) || status != session.agent_status.as_deref();
            if runs && is_news && status.is_some() {
                let mut tx = app.store.tenant_tx(&scope).await?;
                tx.session_active(id, status).await?;
                tx.commit().await?;
            }
            return Err(refused);
        }
    };
    if runs {
        tx.session_active(id, status).await?;
    } else if let Some(status) = status.filter(|_| session.phase == Phase::Starting) {
        // The pod says it once, and may be faster than who notes that the session runs.
        tx.session_starts_with(id, status).await?;
    }
    tx.commit().await?;
    grown.count();
    Ok((StatusCode::OK, Json(Taken { taken: messages.len() })))
}

/// What the token of a session's pod says, when it is this session's.
pub(super) fn claims(app: &AppState, session: Uuid, headers: &HeaderMap) -> Result<SessionClaims, Problem> {
    let claims = app
        .tokens
        .verify_session(extract::bearer(headers)?)
        .map_err(|_| AuthError::Invalid("the session token is not valid".to_owned()))?;
    if claims.sub == session { Ok(claims) } else { Err(Problem::no_such_session()) }
}

/// The organization of the token.
pub(super) async fn organization(app: &AppState, claims: &SessionClaims) -> Result<Organization, Problem> {
    let organization = app.store.organization_by_slug(&claims.org).await?.ok_or_else(Problem::no_such_session)?;
    held::is_of(organization.id);
    Ok(organization)
}

/// Who asks, where pods are known by their addresses.
pub(super) fn peer(app: &AppState, extensions: &Extensions) -> Option<IpAddr> {
    let peer = extensions.get::<SocketAddr>().map(|peer| peer.ip().to_canonical());
    peer.filter(|_| app.internal.check_pod_address)
}

/// Whether this pod may write this session's transcript now. A token that got out of its pod is worth nothing
/// elsewhere, and soon after the session's end it is worth nothing at all.
pub(super) fn admit(session: &Session, claims: &SessionClaims, peer: Option<IpAddr>) -> Result<(), Problem> {
    let wrong_pod = || {
        let detail = "Only the session's own pod may write its transcript.";
        Problem::new(StatusCode::FORBIDDEN, "wrong-pod", "Wrong pod", detail)
    };
    if session.over_seconds.is_some_and(|seconds| seconds > LAST_WORDS_SECONDS) {
        let detail = "The session is over; its transcript is closed.";
        return Err(Problem::new(StatusCode::CONFLICT, "session-over", "Session is over", detail));
    }
    // A warm pod that was claimed this moment can be faster than the row that says so.
    let not_yet = || Problem::unavailable("session-starting", "The session is still starting; try again.", 1);
    match &session.pod_name {
        Some(pod) if *pod == claims.pod => {}
        None if session.over_seconds.is_none() => return Err(not_yet()),
        _ => return Err(wrong_pod()),
    }
    // A session that is over has no address any more, only its pod's last words.
    let Some(peer) = peer.filter(|_| session.over_seconds.is_none()) else {
        return Ok(());
    };
    match session.pod_ip.as_deref().map(str::parse::<IpAddr>) {
        None => Err(not_yet()),
        Some(Ok(ip)) if ip.to_canonical() == peer => Ok(()),
        Some(_) => Err(wrong_pod()),
    }
}

impl Transcript {
    fn validate(&self) -> Result<(), Problem> {
        let mut seen = HashSet::new();
        for TranscriptMessage { id, .. } in &self.messages {
            if !(0..MAX_MESSAGES).contains(id) {
                let detail = format!("A message's id is 0 to {}, not {id}.", MAX_MESSAGES - 1);
                return Err(Problem::invalid_field("messages", detail));
            }
            if !seen.insert(*id) {
                let detail = format!("The id {id} is there twice; send each message once.");
                return Err(Problem::invalid_field("messages", detail));
            }
        }
        Ok(())
    }
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
