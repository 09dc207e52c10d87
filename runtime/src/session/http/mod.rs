//! HTTP side of a session host: the coder/agentapi contract and the host's own `/internal` routes.

mod permissions;
mod problem;
mod requests;
mod streams;
pub(super) mod upload;

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Request, State},
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use self::problem::Problem;
use super::{
    host::Host,
    token::{TokenError, Verifier},
};

/// So much of a body that is too large is read before it is refused.
const MAX_DRAINED_BYTES: usize = 64 * 1024 * 1024;

/// What handlers need.
#[derive(Clone)]
struct App {
    host: Arc<Host>,
    verifier: Option<Verifier>,
    /// Streams end when the host does.
    closing: CancellationToken,
}

/// Who is asking.
#[derive(Clone)]
enum Caller {
    /// The runtime, for this session.
    Session(String),
    /// Anybody, in a host without authentication.
    Anybody,
}

/// The routes.
pub(super) fn router(host: Arc<Host>, verifier: Option<Verifier>, closing: CancellationToken) -> Router {
    let app = App { host, verifier, closing };
    let protected = Router::new()
        .route("/status", get(requests::status))
        .route("/messages", get(requests::messages))
        .route("/message", post(requests::message))
        .route("/upload", post(upload::upload))
        .route("/permissions", get(permissions::list))
        .route("/permission", post(permissions::answer))
        .route("/cancel", post(permissions::cancel))
        .route("/events", get(streams::events))
        .route("/internal/screen", get(streams::screen))
        .route("/internal/claim", post(requests::claim))
        .route("/internal/keys", post(requests::keys))
        .route("/internal/prepare", post(requests::prepare))
        .route("/internal/notice", post(requests::notice))
        // The handlers have limits of their own; this one only ends what never ends.
        .layer(DefaultBodyLimit::max(MAX_DRAINED_BYTES))
        .route_layer(middleware::from_fn_with_state(app.clone(), authenticate));
    Router::new()
        .merge(protected)
        .route("/internal/ready", get(ready))
        .route("/internal/live", get(live))
        .fallback(async || Problem::new(StatusCode::NOT_FOUND, "not-found", "there is no such route"))
        .method_not_allowed_fallback(async || {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "this route has no such method")
        })
        .with_state(app)
}

/// Lets the runtime in, for the session that this pod belongs to.
async fn authenticate(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let caller = match &app.verifier {
        None => Caller::Anybody,
        Some(verifier) => {
            let header = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
            let session = match verifier.session(header) {
                Ok(session) => session,
                Err(error @ TokenError::OtherPod) => {
                    return Problem::new(StatusCode::FORBIDDEN, "forbidden", error).into_response();
                }
                Err(error) => return Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", error).into_response(),
            };
            // A claim answers for itself whose pod this is.
            let is_claim = request.uri().path() == "/internal/claim";
            if !is_claim && app.host.session_id().is_some_and(|id| id != session) {
                let detail = "this pod serves another session";
                return Problem::new(StatusCode::NOT_FOUND, "session-not-found", detail).into_response();
            }
            Caller::Session(session)
        }
    };
    request.extensions_mut().insert(caller);
    next.run(request).await
}

async fn ready(State(app): State<App>) -> Response {
    if app.host.is_ready() {
        Json(json!({ "ready": true })).into_response()
    } else {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not-ready", "the agent is not ready yet").into_response()
    }
}

async fn live(State(app): State<App>) -> Response {
    if app.host.failure().borrow().is_none() {
        Json(json!({ "live": true })).into_response()
    } else {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "agent-ended", "the agent has ended").into_response()
    }
}
