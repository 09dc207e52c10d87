//! `GET /v1/sessions`, `GET` and `DELETE /v1/sessions/{id}`. May touch: `store`, `lifecycle`.

use axum::Json;
use axum::extract::State;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::audit::Client;
use crate::auth::Caller;
use crate::http::App;
use crate::http::error::{Problem, ProblemBody};
use crate::http::extract::{ApiQuery, SessionId};
use crate::http::paging::Page;
use crate::lifecycle::LifecycleError;
use crate::prompt::screening::FindingView;
use crate::store::sessions::{Phase, Session, SessionFilter};

const DEFAULT_LIMIT: u16 = 50;
const MAX_LIMIT: u16 = 200;

/// A session.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SessionView {
    /// `UUIDv7`.
    id: Uuid,
    /// Its workspace.
    #[schema(example = "coding")]
    workspace: String,
    /// Type of its agent.
    #[schema(example = "claude")]
    agent: String,
    /// Where it is in its life.
    phase: Phase,
    /// `running` or `stable`, as its pod last said.
    #[serde(skip_serializing_if = "Option::is_none")]
    agent_status: Option<String>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// `sha256:<hex>` of the system prompt that its agent was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_digest: Option<String>,
    /// What was cut out of `prompt`; only in the answer to its creation.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) redacted: Vec<FindingView>,
    /// RFC 3339.
    created_at: String,
    /// RFC 3339.
    updated_at: String,
    /// RFC 3339.
    last_activity_at: String,
    /// RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_at: Option<String>,
    /// Where to go from here.
    links: Links,
}

/// Routes of a session, relative to this server.
#[derive(Debug, Serialize, ToSchema)]
pub struct Links {
    #[serde(rename = "self")]
    own: String,
    status: String,
    messages: String,
    message: String,
    events: String,
    upload: String,
    screen: String,
}

impl From<Session> for SessionView {
    fn from(session: Session) -> Self {
        let base = format!("/v1/sessions/{}", session.id);
        let links = Links {
            status: format!("{base}/status"),
            messages: format!("{base}/messages"),
            message: format!("{base}/message"),
            events: format!("{base}/events"),
            upload: format!("{base}/upload"),
            screen: format!("{base}/screen"),
            own: base,
        };
        Self {
            id: session.id,
            workspace: session.workspace,
            agent: session.agent_type,
            phase: session.phase,
            agent_status: session.agent_status,
            error: session.error,
            prompt_digest: session.prompt_digest,
            redacted: Vec::new(),
            created_at: session.created_at,
            updated_at: session.updated_at,
            last_activity_at: session.last_activity_at,
            ended_at: session.ended_at,
            links,
        }
    }
}

/// A page of sessions.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SessionPage {
    /// Newest first.
    sessions: Vec<SessionView>,
    /// Pass it as `cursor` to get the next page; not there on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// Which sessions to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Only sessions of this workspace.
    workspace: Option<String>,
    /// Only sessions in this phase.
    phase: Option<Phase>,
    /// Sessions per page, 1 to 200; 50 if left out.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u16>,
    /// `nextCursor` of the page before.
    cursor: Option<String>,
}

pub(in crate::http) fn decode_cursor(cursor: &str) -> Result<Uuid, Problem> {
    let bytes = URL_SAFE_NO_PAD.decode(cursor).ok();
    bytes
        .and_then(|bytes| Uuid::from_slice(&bytes).ok())
        .ok_or_else(|| Problem::bad_request("cursor must be the nextCursor of an earlier page."))
}

/// Sessions that you may see: your own, or as an admin all of your organization.
#[utoipa::path(
    get, path = "/v1/sessions", operation_id = "listSessions", tag = "sessions", params(ListQuery),
    responses(
        (status = 200, body = SessionPage),
        (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn list(
    State(app): State<App>,
    caller: Caller,
    ApiQuery(query): ApiQuery<ListQuery>,
) -> Result<Json<SessionPage>, Problem> {
    let page = Page::of(query.limit, DEFAULT_LIMIT, MAX_LIMIT)?;
    let before = query.cursor.as_deref().map(decode_cursor).transpose()?;
    let filter =
        SessionFilter { workspace: query.workspace.as_deref(), phase: query.phase, before, limit: page.to_read() };
    let mut tx = app.store.tenant_tx(&caller.scope()).await?;
    let mut sessions = tx.sessions(&filter).await?;
    tx.commit().await?;
    let next_cursor = page.cut(&mut sessions).map(|session| URL_SAFE_NO_PAD.encode(session.id.as_bytes()));
    Ok(Json(SessionPage { sessions: sessions.into_iter().map(SessionView::from).collect(), next_cursor }))
}

/// One session.
#[utoipa::path(
    get, path = "/v1/sessions/{id}", operation_id = "getSession", tag = "sessions", params(("id" = Uuid, Path, description = "Session")),
    responses(
        (status = 200, body = SessionView),
        (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn get(
    State(app): State<App>,
    caller: Caller,
    SessionId(id): SessionId,
) -> Result<Json<SessionView>, Problem> {
    Ok(Json(load(&app, &caller, id).await?.into()))
}

/// Ends a session: its pod and Secret are deleted, its transcript stays. May be repeated.
#[utoipa::path(
    delete, path = "/v1/sessions/{id}", operation_id = "endSession", tag = "sessions", params(("id" = Uuid, Path, description = "Session")),
    responses(
        (status = 204, description = "It is ending or has ended."),
        (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn delete(
    State(app): State<App>,
    caller: Caller,
    client: Client,
    SessionId(id): SessionId,
) -> Result<StatusCode, Problem> {
    load(&app, &caller, id).await?;
    let origin = client.origin(&caller.subject);
    app.lifecycle.end(&caller.scope(), &caller.organization, id, "deleted", &origin).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A session that the caller may see.
pub(super) async fn load(app: &App, caller: &Caller, id: Uuid) -> Result<Session, Problem> {
    let mut tx = app.store.tenant_tx(&caller.scope()).await?;
    let session = tx.session(id).await?;
    tx.commit().await?;
    session.ok_or_else(Problem::no_such_session)
}

impl From<LifecycleError> for Problem {
    fn from(error: LifecycleError) -> Self {
        match error {
            LifecycleError::Store(error) => error.into(),
            other => {
                tracing::error!(error = %other, "session lifecycle");
                Self::internal()
            }
        }
    }
}
