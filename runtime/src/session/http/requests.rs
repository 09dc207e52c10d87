//! `/status`, `/messages`, `/message` and `/internal/{claim,keys,prepare,notice}`.

use axum::{Extension, Json, body::Body, extract::State, http::StatusCode};
use futures::StreamExt;
use secrecy::SecretString;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{App, Caller, MAX_DRAINED_BYTES, problem::Problem};
use crate::session::{claim::Claim, claiming::ClaimRefused, pty::PtyError, send::SendError};

/// Largest body of a message or claim.
const MAX_JSON_BYTES: usize = 1024 * 1024;

pub(super) async fn status(State(app): State<App>) -> Json<Value> {
    let transport = app.host.config.transport.to_string();
    let mut status =
        json!({ "status": app.host.status(), "agent_type": app.host.agent_type(), "transport": transport });
    if !app.host.is_saved() {
        // Only when something is wrong: who speaks the contract knows the three.
        status["saved"] = json!(false);
    }
    Json(status)
}

pub(super) async fn messages(State(app): State<App>) -> Json<Value> {
    Json(json!({ "messages": app.host.messages() }))
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum MessageType {
    User,
    Raw,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MessageRequest {
    content: String,
    r#type: MessageType,
    /// coder's generated clients may send the schema's address along.
    #[serde(default, rename = "$schema")]
    _schema: Option<String>,
}

pub(super) async fn message(State(app): State<App>, body: Body) -> Result<Json<Value>, Problem> {
    let request: MessageRequest = parse(body).await?;
    match request.r#type {
        MessageType::User => app.host.send_user(&request.content).await.map_err(send_problem)?,
        MessageType::Raw => app.host.write_raw(request.content.as_bytes()).map_err(|error| pty_problem(&error))?,
    }
    Ok(Json(json!({ "ok": true })))
}

pub(super) async fn claim(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let claim: Claim = parse(body).await?;
    claim.validate().map_err(|error| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-claim", error))?;
    if let Caller::Session(session) = caller
        && session != claim.session_id
    {
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            "forbidden",
            "the token is for another session than the claim",
        ));
    }
    let session_id = claim.session_id.clone();
    // A task of its own: a client that goes away must not leave the pod half claimed.
    let host = app.host.clone();
    let claimed = tokio::spawn(async move { host.claim(claim).await }).await;
    match claimed {
        Ok(Ok(())) => Ok(Json(json!({ "ok": true, "sessionId": session_id, "ready": app.host.is_ready() }))),
        Ok(Err(error @ ClaimRefused::Taken)) => Err(Problem::new(StatusCode::CONFLICT, "pod-taken", error)),
        Ok(Err(error)) => {
            tracing::error!(%error, "claim failed");
            Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "claim-failed", error))
        }
        Err(error) => {
            tracing::error!(%error, "claim was interrupted");
            Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "claim-failed", "the claim was interrupted"))
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct KeysRequest {
    public_keys: Vec<String>,
    token: SecretString,
}

/// The runtime says which keys' tokens are good from now on, with a token of one that is good now.
pub(super) async fn keys(State(app): State<App>, body: Body) -> Result<Json<Value>, Problem> {
    let request: KeysRequest = parse(body).await?;
    if let Some(verifier) = &app.verifier {
        verifier
            .replace(&request.public_keys.join(","))
            .map_err(|error| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-keys", error))?;
    }
    app.host.take_token(request.token);
    tracing::info!(keys = request.public_keys.len(), "other keys for the runtime's tokens");
    Ok(Json(json!({ "ok": true })))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PrepareRequest {
    system_prompt: Option<String>,
}

/// The runtime says what the next session's agent will probably be told.
pub(super) async fn prepare(State(app): State<App>, body: Body) -> Result<Json<Value>, Problem> {
    let request: PrepareRequest = parse(body).await?;
    // A task of its own: a client that goes away must not leave the pod without an agent.
    let host = app.host.clone();
    let prompt = request.system_prompt.filter(|text| !text.is_empty());
    match tokio::spawn(async move { host.prepare(prompt).await }).await {
        Ok(Ok(())) => Ok(Json(json!({ "ok": true }))),
        Ok(Err(error @ ClaimRefused::Taken)) => Err(Problem::new(StatusCode::CONFLICT, "pod-taken", error)),
        Ok(Err(error)) => {
            tracing::error!(%error, "the agent cannot be started with the workspace's prompt");
            Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "prepare-failed", error))
        }
        Err(_) => Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "prepare-failed", "it was interrupted")),
    }
}

#[derive(Deserialize)]
pub(super) struct NoticeRequest {
    message: String,
}

/// The platform has something to say to whoever follows the session.
pub(super) async fn notice(State(app): State<App>, body: Body) -> Result<Json<Value>, Problem> {
    let request: NoticeRequest = parse(body).await?;
    app.host.notice(request.message);
    Ok(Json(json!({ "ok": true })))
}

pub(super) async fn parse<T: DeserializeOwned>(body: Body) -> Result<T, Problem> {
    let mut stream = body.into_data_stream();
    let (mut bytes, mut size) = (Vec::new(), 0);
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|error| Problem::new(StatusCode::BAD_REQUEST, "bad-request", error))?;
        size += chunk.len();
        if size <= MAX_JSON_BYTES {
            bytes.extend_from_slice(&chunk);
        } else if size > MAX_DRAINED_BYTES {
            break;
        }
    }
    // Only now: a client that is still writing would see a broken connection instead of the answer.
    if size > MAX_JSON_BYTES {
        let detail = "the body is larger than 1 MiB; send less, or upload a file";
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", detail));
    }
    let value: Value = serde_json::from_slice(&bytes)
        .map_err(|error| Problem::new(StatusCode::BAD_REQUEST, "bad-request", format!("not JSON: {error}")))?;
    serde_json::from_value(value)
        .map_err(|error| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "validation-failed", error))
}

fn send_problem(error: SendError) -> Problem {
    match error {
        SendError::Empty => Problem::new(StatusCode::BAD_REQUEST, "empty-message", error),
        SendError::Busy => Problem::new(StatusCode::CONFLICT, "agent-busy", error),
        SendError::Asks => Problem::new(StatusCode::CONFLICT, "agent-asks", error),
        SendError::Pty(error) => pty_problem(&error),
        SendError::DiskFull | SendError::NotKept => {
            Problem::new(StatusCode::INSUFFICIENT_STORAGE, "session-not-saved", error)
        }
        SendError::NotShown(_) | SendError::NotStarted(_) => {
            Problem::new(StatusCode::GATEWAY_TIMEOUT, "agent-did-not-react", error)
        }
        SendError::Interrupted => Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "interrupted", error),
    }
}

pub(super) fn pty_problem(error: &PtyError) -> Problem {
    match error {
        PtyError::NoTerminal => Problem::new(StatusCode::CONFLICT, "no-terminal", error),
        PtyError::Start { .. } | PtyError::Input => {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "agent-unavailable", error)
        }
    }
}
