//! `POST /v1/sessions`. One transaction decides and records: quota, row, audit. The pod comes after it, so a request
//! that was answered is never lost, and one that was not answered can be repeated with its Idempotency-Key.
//! May touch: `store`, `lifecycle`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use agentapi_prompts::Composed;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header::LOCATION;
use http::{HeaderMap, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep, timeout};
use utoipa::ToSchema;
use uuid::Uuid;

use super::sessions::{SessionView, load};
use crate::audit::{Client, Entry, Origin, action};
use crate::auth::Caller;
use crate::http::App;
use crate::http::error::{Problem, ProblemBody};
use crate::http::extract::ApiJson;
use crate::http::screening;
use crate::lifecycle::Launch;
use crate::pods::Shortage;
use crate::prompt::screening::{Outcome, Screened};
use crate::store::prompts::Told;
use crate::store::sessions::{Phase, QuotaExceeded, Session};
use crate::store::workspaces::Workspace;

pub(in crate::http) const IDEMPOTENCY_KEY: &str = "idempotency-key";
const MAX_KEY_LENGTH: usize = 255;
const MAX_ENV_VARIABLES: usize = 100;
const MAX_ENV_BYTES: usize = 128 * 1024;
const MAX_PROMPT_BYTES: usize = 256 * 1024;
/// A full quota frees up when somebody ends a session; nobody knows when.
const QUOTA_RETRY_SECONDS: u32 = 30;
/// The API server says within milliseconds whether there is room for a pod; a busy one within seconds.
const PLACEMENT_PATIENCE: Duration = Duration::from_secs(3);
const MAX_WAIT: Duration = Duration::from_secs(60);
const WAIT_POLL: Duration = Duration::from_millis(100);

/// A session to create.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateSession {
    /// Name of a workspace of your organization.
    #[schema(example = "coding")]
    workspace: String,
    /// Type of agent; if given, it must be the workspace's.
    #[schema(example = "claude")]
    agent: Option<String>,
    /// Environment of the agent, on top of the workspace's. Kept in the session's Secret only.
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, String>)]
    env: BTreeMap<String, SecretString>,
    /// First message to the agent.
    prompt: Option<String>,
}

impl CreateSession {
    pub(in crate::http) fn validate(&self) -> Result<(), Problem> {
        if self.env.len() > MAX_ENV_VARIABLES {
            return Err(Problem::invalid_field("env", format!("At most {MAX_ENV_VARIABLES} variables are taken.")));
        }
        let mut bytes = 0;
        for (name, value) in &self.env {
            let field = || format!("env.{}", name.chars().take(64).collect::<String>());
            let first = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
            if !first || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
                let detail = "A variable's name has letters, digits and _, and does not begin with a digit.";
                return Err(Problem::invalid_field(field(), detail));
            }
            if name.starts_with("AGENTAPI_") {
                return Err(Problem::invalid_field(field(), "Names that begin with AGENTAPI_ are reserved."));
            }
            if value.expose_secret().contains('\0') {
                return Err(Problem::invalid_field(field(), "A variable's value cannot contain a NUL byte."));
            }
            bytes += name.len() + value.expose_secret().len();
        }
        if bytes > MAX_ENV_BYTES {
            return Err(Problem::invalid_field("env", format!("All variables together have {MAX_ENV_BYTES} bytes.")));
        }
        checked_prompt(self.prompt.as_deref())
    }

    /// The same for the same request, however its JSON is written. Hex of a hash: the values cannot be read from it.
    fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        let mut field = |text: Option<&str>| {
            let text = text.map_or_else(|| "-".to_owned(), |text| format!("{}:{text}", text.len()));
            hash.update(text.as_bytes());
        };
        field(Some("POST /v1/sessions"));
        field(Some(&self.workspace));
        field(self.agent.as_deref());
        field(self.prompt.as_deref());
        for (name, value) in &self.env {
            field(Some(name));
            field(Some(value.expose_secret()));
        }
        hex::encode(hash.finalize())
    }
}

pub(super) fn checked_prompt(prompt: Option<&str>) -> Result<(), Problem> {
    match prompt {
        Some(prompt) if prompt.trim().is_empty() => {
            Err(Problem::invalid_field("prompt", "Leave prompt out or write something."))
        }
        Some(prompt) if prompt.len() > MAX_PROMPT_BYTES => {
            Err(Problem::invalid_field("prompt", format!("prompt has at most {MAX_PROMPT_BYTES} bytes.")))
        }
        _ => Ok(()),
    }
}

pub(super) fn no_such_workspace() -> Problem {
    let detail = "Your organization has no workspace of this name; GET /v1/workspaces lists them.";
    Problem::invalid_field("workspace", detail)
}

/// An agent that is named must be the workspace's.
pub(super) fn checked_agent(agent: Option<&str>, workspace: &Workspace) -> Result<(), Problem> {
    if agent.is_none_or(|agent| agent == workspace.agent_type) {
        return Ok(());
    }
    let detail = format!("Workspace {} runs {}; leave agent out or name that.", workspace.name, workspace.agent_type);
    Err(Problem::invalid_field("agent", detail))
}

pub(in crate::http) fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else {
        return Ok(None);
    };
    let text = value.to_str().map(str::trim).unwrap_or_default();
    // The draft's form is a quoted string; most clients send it bare.
    let key = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text);
    if key.is_empty() || key.len() > MAX_KEY_LENGTH {
        let detail = format!("Idempotency-Key must be 1 to {MAX_KEY_LENGTH} visible ASCII characters, a UUID for one.");
        return Err(Problem::bad_request(detail));
    }
    Ok(Some(key))
}

fn key_in_use() -> Problem {
    let detail = "A request with this Idempotency-Key is being worked on; try again for its result.";
    Problem::new(StatusCode::CONFLICT, "idempotency-conflict", "Conflict", detail).retry_after(1)
}

fn key_reused() -> Problem {
    let detail = "This Idempotency-Key was used for another request; use a new key for a new request.";
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "idempotency-key-reused", "Idempotency key reused", detail)
}

pub(super) fn quota_problem(exceeded: &QuotaExceeded) -> Problem {
    let QuotaExceeded { quota, limit, used } = exceeded;
    let detail = format!("The quota {quota} is used up ({used} of {limit} sessions). End a session, or ask for more.");
    Problem::quota_exceeded(detail, quota, *limit, *used).retry_after(QUOTA_RETRY_SECONDS)
}

fn shortage_problem(shortage: &Shortage) -> Problem {
    let detail = format!("Your organization's quota has no room: {shortage}. End a session, or ask for more.");
    let Shortage { resource, requested, used, limit } = shortage;
    Problem::quota_exceeded(detail, resource, limit.as_str(), used.as_str())
        .with("requested", requested.as_str())
        .retry_after(QUOTA_RETRY_SECONDS)
}

/// Creates a session. It is answered at once with phase Pending; the agent takes messages from phase Running on.
/// With `Prefer: wait=30` the answer comes when the agent is ready, or after that many seconds. Where the workspace's
/// policies say so, what looks like prompt injection is cut out of `prompt`, and the answer tells what.
#[utoipa::path(
    post, path = "/v1/sessions", operation_id = "createSession", tag = "sessions", request_body = CreateSession,
    params(
        ("Idempotency-Key" = Option<String>, Header, description = "The same key and body give the same session."),
        ("Prefer" = Option<String>, Header, description = "`wait=<seconds>`, at most 60."),
    ),
    responses(
        (status = 201, body = SessionView, headers(("Location" = String, description = "The session."))),
        (status = 409, description = "The same Idempotency-Key is being worked on.", body = ProblemBody,
         content_type = "application/problem+json"),
        (status = 422, description = "A field is not valid, the Idempotency-Key belongs to another request, or a policy \
         refuses `prompt` because it looks like prompt injection.",
         body = ProblemBody, content_type = "application/problem+json"),
        (status = 429, description = "A quota is used up; the problem names it.", body = ProblemBody,
         content_type = "application/problem+json"),
        (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn create(
    State(app): State<App>,
    caller: Caller,
    client: Client,
    headers: HeaderMap,
    ApiJson(body): ApiJson<CreateSession>,
) -> Result<Response, Problem> {
    body.validate()?;
    let key = idempotency_key(&headers)?;
    let fingerprint = key.map(|_| body.fingerprint());
    let idempotency = key.zip(fingerprint.as_deref());
    let origin = client.origin(&caller.subject);
    let (id, replayed, redacted) = match decide(&app, &caller, &origin, &body, idempotency).await? {
        Decision::New(new) => {
            let New { id, composed, screened } = *new;
            let (prompt, redacted) = match screened {
                Some(Screened { outcome: Outcome::Redacted(text), findings, .. }) => (Some(text), findings),
                _ => (body.prompt, Vec::new()),
            };
            let placed = app.lifecycle.launch(Launch {
                session: id,
                organization: Arc::clone(&caller.organization),
                workspace: body.workspace,
                env: body.env,
                prompt,
                system_prompt: Some(composed.text.clone()).filter(|text| !text.is_empty()),
            });
            // A cluster that is slow to say no leaves the session Failed with the same words.
            if let Ok(Ok(Err(shortage))) = timeout(PLACEMENT_PATIENCE, placed).await {
                app.metrics.quota_refused(&shortage.resource);
                return Err(shortage_problem(&shortage));
            }
            (id, false, redacted)
        }
        Decision::Replay(id) => (id, true, Vec::new()),
    };
    let session = wait(&app, &caller, id, preferred_wait(&headers)).await?;
    let location = format!("/v1/sessions/{id}");
    let mut view = SessionView::from(session);
    view.redacted = redacted;
    let mut response = (StatusCode::CREATED, [(LOCATION, location)], Json(view)).into_response();
    if replayed {
        response.headers_mut().insert("idempotent-replayed", http::HeaderValue::from_static("true"));
    }
    Ok(response)
}

enum Decision {
    New(Box<New>),
    Replay(Uuid),
}

/// A session that was accepted.
struct New {
    id: Uuid,
    composed: Arc<Composed>,
    /// Its first message, if something was found in it.
    screened: Option<Screened>,
}

/// The policies that a session was told, for the audit log: with id and generation they can be found again.
fn policies(composed: &Composed) -> serde_json::Value {
    let sources = composed.sections.iter().map(|section| &section.source);
    sources.map(|source| json!({ "id": Uuid::from_u128(source.id), "generation": source.generation })).collect()
}

async fn decide(
    app: &App,
    caller: &Caller,
    origin: &Origin,
    body: &CreateSession,
    idempotency: Option<(&str, &str)>,
) -> Result<Decision, Problem> {
    let mut tx = app.store.tenant_tx(&caller.scope()).await?;
    if let Some((key, fingerprint)) = idempotency
        && let Some((id, hash)) = tx.session_by_key(key).await?
    {
        return if hash.as_deref() == Some(fingerprint) { Ok(Decision::Replay(id)) } else { Err(key_reused()) };
    }
    let workspace = match tx.reserve_session(&body.workspace, caller.organization.max_sessions).await? {
        Some(Ok(workspace)) => workspace,
        Some(Err(exceeded)) => {
            app.metrics.quota_refused(exceeded.quota);
            return Err(quota_problem(&exceeded));
        }
        None => return Err(no_such_workspace()),
    };
    checked_agent(body.agent.as_deref(), &workspace)?;
    let composed = app.prompts.compose(&mut tx, &caller.organization, &workspace, &caller.subject).await?;
    let screened = body.prompt.as_deref().map(|prompt| Screened::of(prompt, composed.mode));
    let screened = screened.filter(|screened| screened.outcome != Outcome::Clean);
    if let Some(screened) = screened.as_ref().filter(|screened| screened.outcome == Outcome::Rejected) {
        // Takes back what it has, which is nothing but locks.
        drop(tx);
        let entry = screening::entry(origin, screened, "prompt", "workspace", Some(&workspace.name));
        app.store.record(&caller.scope(), &entry).await?;
        screening::count(app, screened);
        return Err(screening::rejected(screened));
    }
    let id = Uuid::now_v7();
    let told = Told { digest: &composed.digest, screening: composed.mode.as_str() };
    if !tx.insert_session(id, &workspace, told, idempotency).await? {
        return Err(key_in_use());
    }
    let target = id.to_string();
    tx.audit(&Entry {
        origin,
        action: action::SESSION_CREATE,
        target_kind: "session",
        target_id: Some(&target),
        detail: json!({
            "workspace": workspace.name,
            "agent": workspace.agent_type,
            // Names only: values are secrets.
            "env": body.env.keys().collect::<Vec<_>>(),
            "prompt": body.prompt.is_some(),
            "promptDigest": composed.digest,
            "policies": policies(&composed),
        }),
    })
    .await?;
    if let Some(screened) = &screened {
        tx.audit(&screening::entry(origin, screened, "prompt", "session", Some(&target))).await?;
    }
    tx.commit().await?;
    if let Some(screened) = &screened {
        screening::count(app, screened);
    }
    Ok(Decision::New(Box::new(New { id, composed, screened })))
}

/// `Prefer: wait=<seconds>` (RFC 7240).
pub(in crate::http) fn preferred_wait(headers: &HeaderMap) -> Duration {
    let prefer = headers.get("prefer").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let seconds = prefer.split(',').find_map(|part| part.trim().strip_prefix("wait=")?.parse::<u64>().ok());
    seconds.map_or(Duration::ZERO, Duration::from_secs).min(MAX_WAIT)
}

async fn wait(app: &App, caller: &Caller, id: Uuid, at_most: Duration) -> Result<Session, Problem> {
    let began = Instant::now();
    loop {
        let session = load(app, caller, id).await?;
        let starting = matches!(session.phase, Phase::Pending | Phase::Starting);
        if !starting || began.elapsed() >= at_most || app.leaving.is_cancelled() {
            return Ok(session);
        }
        sleep(WAIT_POLL).await;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use http::HeaderValue;

    fn body(json: serde_json::Value) -> CreateSession {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn the_fingerprint_is_of_the_meaning() {
        let one = body(json!({"workspace": "w", "env": {"A": "1", "B": "2"}}));
        let same = body(json!({"env": {"B": "2", "A": "1"}, "workspace": "w"}));
        assert_eq!(one.fingerprint(), same.fingerprint());
        for other in [
            json!({"workspace": "w", "env": {"A": "1", "B": "3"}}),
            json!({"workspace": "w", "env": {"A": "1"}}),
            json!({"workspace": "w", "env": {"A": "1", "B": "2"}, "prompt": "p"}),
            json!({"workspace": "w", "env": {"A": "1", "B": "2"}, "agent": "p"}),
        ] {
            assert_ne!(one.fingerprint(), body(other).fingerprint());
        }
    }

    #[test]
    fn bad_environments_are_refused() {
        for env in
            [json!({"A-B": ""}), json!({"1": ""}), json!({"": ""}), json!({"AGENTAPI_X": ""}), json!({"A": "\0"})]
        {
            assert!(body(json!({"workspace": "w", "env": env})).validate().is_err(), "{env}");
        }
        assert!(body(json!({"workspace": "w", "env": {"_A1": "x"}})).validate().is_ok());
    }

    #[test]
    fn waits_are_bounded() {
        let prefer = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("prefer", HeaderValue::from_static(value));
            preferred_wait(&headers)
        };
        assert_eq!(prefer("wait=5"), Duration::from_secs(5));
        assert_eq!(prefer("return=minimal, wait=5"), Duration::from_secs(5));
        assert_eq!(prefer("wait=9999"), MAX_WAIT);
        assert_eq!(prefer("wait=-1"), Duration::ZERO);
    }
}
