//! Streamable HTTP in front of the sessions, at `/mcp`.

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, State};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use super::session::{Answers, error};
use super::sessions::{SessionError, Sessions};

const SESSION: &str = "mcp-session-id";
const MAX_BODY: usize = 4 * 1024 * 1024;

pub(super) fn router(sessions: Arc<Sessions>) -> Router {
    Router::new()
        .route("/mcp", post(message).get(listen).delete(end))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .route("/live", get(async || Json(json!({"live": true}))))
        .with_state(sessions)
}

/// A message of a client.
async fn message(State(sessions): State<Arc<Sessions>>, headers: HeaderMap, body: Bytes) -> Response {
    let Ok(message) = serde_json::from_slice::<Value>(&body) else {
        return refused(StatusCode::BAD_REQUEST, "the body is not JSON; send one JSON-RPC message");
    };
    if !message.is_object() {
        return refused(StatusCode::BAD_REQUEST, "send one JSON-RPC message at a time");
    }
    let is_request = message.get("method").is_some() && message.get("id").is_some_and(|id| !id.is_null());
    let id = message["id"].clone();
    let begins = is_request && message["method"] == "initialize";
    let found = match session_id(&headers) {
        Some(known) => sessions.get(known).map(|session| (session, None)).ok_or(SessionError::Unknown),
        None if begins => sessions.begin().map(|(id, session)| (session, Some(id))),
        None => sessions.shared().map(|session| (session, None)),
    };
    let (session, new_id) = match found {
        Ok(found) => found,
        Err(SessionError::Unknown) => return no_such_session(),
        Err(why @ SessionError::Busy(_)) => return refused(StatusCode::SERVICE_UNAVAILABLE, &why.to_string()),
        Err(why @ SessionError::Start(..)) => return Json(error(&id, &why.to_string())).into_response(),
    };
    if !is_request {
        session.tell(message).await;
        return StatusCode::ACCEPTED.into_response();
    }
    let answers = session.request(message).await;
    let mut response = if takes_events(&headers) { stream(answers) } else { whole(answers).await };
    if let Some(value) = new_id.and_then(|id| HeaderValue::try_from(id).ok()) {
        response.headers_mut().insert(SESSION, value);
    }
    response
}

fn session_id(headers: &HeaderMap) -> Option<&str> {
    headers.get(SESSION).map(|value| value.to_str().unwrap_or_default())
}

fn takes_events(headers: &HeaderMap) -> bool {
    let mut accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.any(|value| value.contains("text/event-stream"))
}

fn stream(mut answers: Answers) -> Response {
    let events = async_stream::stream! {
        while let Some(message) = answers.next().await {
            yield Ok::<_, Infallible>(Event::default().event("message").data(message.to_string()));
        }
    };
    Sse::new(events).keep_alive(KeepAlive::default()).into_response()
}

async fn whole(mut answers: Answers) -> Response {
    let mut last = Value::Null;
    while let Some(message) = answers.next().await {
        last = message;
    }
    Json(last).into_response()
}

/// The stream of what belongs to no request.
async fn listen(State(sessions): State<Arc<Sessions>>, headers: HeaderMap) -> Response {
    let Some(id) = session_id(&headers) else {
        return refused(StatusCode::METHOD_NOT_ALLOWED, "there is nothing to listen to without a session");
    };
    let Some(session) = sessions.get(id) else { return no_such_session() };
    let mut messages = session.listen();
    let events = async_stream::stream! {
        while let Some(message) = messages.recv().await {
            yield Ok::<_, Infallible>(Event::default().event("message").data(message.to_string()));
        }
    };
    Sse::new(events).keep_alive(KeepAlive::default()).into_response()
}

/// The client is done.
async fn end(State(sessions): State<Arc<Sessions>>, headers: HeaderMap) -> Response {
    match session_id(&headers) {
        Some(id) if sessions.end(id) => StatusCode::NO_CONTENT.into_response(),
        _ => no_such_session(),
    }
}

fn no_such_session() -> Response {
    refused(StatusCode::NOT_FOUND, &SessionError::Unknown.to_string())
}

fn refused(status: StatusCode, why: &str) -> Response {
    (status, Json(error(&Value::Null, why))).into_response()
}
