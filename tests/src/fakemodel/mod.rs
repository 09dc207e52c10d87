//! A model endpoint without a model: it speaks Anthropic Messages (also as Vertex AI has them), `OpenAI` chat completions,
//! `OpenAI` responses and Gemini (Google's API and Vertex AI), and a small script language in the user's text decides what it answers (see [`script`]).
//!
//! Real coding agents run against it in tests and in the demo, so nothing has to leave the machine. It keeps the last
//! requests (never a key) for assertions at `GET /requests`, and refuses calls without an API key as a real one does.

mod anthropic;
mod gemini;
mod google;
mod openai_chat;
mod openai_responses;
mod record;
pub mod script;
mod wire;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, OriginalUri, Query, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::json;

use record::Recorder;
pub use record::{Recorded, recorded};
use script::{Conversation, Reply};

/// Agents send their whole history with every request.
const MAX_BODY: usize = 64 * 1024 * 1024;

/// How the endpoint behaves.
#[derive(Debug, Clone)]
pub struct Config {
    /// The only key that is accepted; any non-empty key when unset.
    pub api_key: Option<String>,
    /// Pause between two words of a `slow N` answer.
    pub word_delay: Duration,
    /// How many requests `GET /requests` can show.
    pub keep_requests: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { api_key: None, word_delay: Duration::from_millis(200), keep_requests: 500 }
    }
}

/// What the handlers share.
#[derive(Debug)]
struct Model {
    config: Config,
    recorder: Recorder,
    next_id: AtomicU64,
}

/// The wire formats; each renders the same scripted reply in its own way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    Anthropic,
    Chat,
    Responses,
    Gemini,
}

/// The endpoint as a router, ready to be served on any listener.
pub fn router(config: Config) -> Router {
    let recorder = Recorder::new(config.keep_requests);
    let model = Arc::new(Model { config, recorder, next_id: AtomicU64::new(1) });
    Router::new()
        .route("/", get(|| async { "fake-model" }))
        .route("/health", get(|| async { Json(json!({"status": "ok"})) }))
        .route("/requests", get(requests).delete(forget))
        .route("/v1/models", get(models))
        .route("/v1/messages", post(messages))
        .route("/v1/messages/count_tokens", post(count_tokens))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/responses", post(responses))
        .merge(google::router())
        .fallback(unknown)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(model)
}

/// The endpoint on a free port of this machine, for as long as the test's runtime lives. Gives back its address.
pub async fn serve(config: Config) -> std::io::Result<String> {
    let listener = tokio::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await?;
    let address = format!("http://{}", listener.local_addr()?);
    tokio::spawn(async move { axum::serve(listener, router(config)).await });
    Ok(address)
}

#[derive(Deserialize)]
struct Limit {
    limit: Option<usize>,
}

async fn requests(State(model): State<Arc<Model>>, Query(query): Query<Limit>) -> Json<Vec<Recorded>> {
    Json(model.recorder.last(query.limit.unwrap_or(usize::MAX)))
}

async fn forget(State(model): State<Arc<Model>>) -> StatusCode {
    model.recorder.clear();
    StatusCode::NO_CONTENT
}

async fn models(State(model): State<Arc<Model>>, headers: HeaderMap) -> Response {
    if let Err(reason) = model.authenticate(&headers) {
        return Dialect::Anthropic.unauthorized(reason);
    }
    let entry = json!({"id": "fake-model", "type": "model", "object": "model", "display_name": "Fake model",
        "created_at": "2026-01-01T00:00:00Z", "owned_by": "agentapi"});
    Json(json!({"object": "list", "data": [entry], "has_more": false, "first_id": "fake-model", "last_id": "fake-model"}))
        .into_response()
}

async fn messages(State(model): State<Arc<Model>>, headers: HeaderMap, body: String) -> Response {
    model.answer(Dialect::Anthropic, &headers, &body)
}

async fn chat(State(model): State<Arc<Model>>, headers: HeaderMap, body: String) -> Response {
    model.answer(Dialect::Chat, &headers, &body)
}

async fn responses(State(model): State<Arc<Model>>, headers: HeaderMap, body: String) -> Response {
    model.answer(Dialect::Responses, &headers, &body)
}

async fn count_tokens(State(model): State<Arc<Model>>, headers: HeaderMap, body: String) -> Response {
    match model.authenticate(&headers) {
        Err(reason) => Dialect::Anthropic.unauthorized(reason),
        Ok(_) => Json(json!({"input_tokens": wire::tokens(&body)})).into_response(),
    }
}

/// Anything else is recorded too: an agent that calls something unexpected shows up in the assertions.
async fn unknown(State(model): State<Arc<Model>>, method: Method, OriginalUri(uri): OriginalUri) -> Response {
    tracing::warn!(%method, path = uri.path(), "unknown path");
    model.recorder.push(Recorded::unknown(&method, uri.path()));
    (StatusCode::NOT_FOUND, Json(json!({"type": "error", "error": {"type": "not_found_error",
        "message": format!("the fake model has no {method} {}; see /health, /requests, /v1/messages, /v1/chat/completions, /v1/responses", uri.path())}})))
        .into_response()
}

impl Model {
    fn answer(&self, dialect: Dialect, headers: &HeaderMap, body: &str) -> Response {
        match self.authenticate(headers) {
            Ok(auth) => self.authenticated(dialect, dialect.path(), auth, body),
            Err(reason) => dialect.unauthorized(reason),
        }
    }

    fn authenticated(&self, dialect: Dialect, path: &str, auth: &str, body: &str) -> Response {
        let conversation = match dialect.parse(body) {
            Ok(conversation) => conversation,
            Err(reason) => {
                return dialect.error(StatusCode::BAD_REQUEST, "invalid_request_error", &reason);
            }
        };
        let reply = script::reply(&conversation, self.config.word_delay);
        let recorded = Recorded::new(path, auth, &conversation, &reply);
        tracing::info!(path = recorded.path, stream = recorded.stream, turns = recorded.entries, user = %recorded.user, reply = %recorded.reply, "request");
        self.recorder.push(recorded);

        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        if let Reply::Fail { status, message } = &reply {
            let status = StatusCode::from_u16(*status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            return dialect.error(status, "api_error", message);
        }
        let input = wire::tokens(body);
        match (dialect, conversation.stream) {
            (Dialect::Anthropic, false) => Json(anthropic::whole(id, input, &conversation, &reply)).into_response(),
            (Dialect::Anthropic, true) => wire::sse(anthropic::frames(id, input, &conversation, &reply)),
            (Dialect::Chat, false) => Json(openai_chat::whole(id, input, &conversation, &reply)).into_response(),
            (Dialect::Chat, true) => wire::sse(openai_chat::frames(id, input, &conversation, &reply)),
            (Dialect::Responses, false) => {
                Json(openai_responses::whole(id, input, &conversation, &reply)).into_response()
            }
            (Dialect::Responses, true) => wire::sse(openai_responses::frames(id, input, &conversation, &reply)),
            (Dialect::Gemini, false) => Json(gemini::whole(id, input, &conversation, &reply)).into_response(),
            (Dialect::Gemini, true) => wire::sse(gemini::frames(id, input, &conversation, &reply)),
        }
    }

    /// The name of the header that carried the key, or why the call is refused.
    fn authenticate(&self, headers: &HeaderMap) -> Result<&'static str, &'static str> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
        let bearer = text("authorization").and_then(|value| value.strip_prefix("Bearer ")).map(str::trim);
        let found =
            [("x-api-key", text("x-api-key")), ("x-goog-api-key", text("x-goog-api-key")), ("authorization", bearer)];
        let sent = found.into_iter().find_map(|(name, key)| key.filter(|key| !key.is_empty()).map(|key| (name, key)));
        match (sent, &self.config.api_key) {
            (None, _) => Err("no API key: send x-api-key or Authorization: Bearer"),
            (Some((_, key)), Some(expected)) if key != expected => Err("invalid x-api-key"),
            (Some((name, _)), _) => Ok(name),
        }
    }
}

impl Dialect {
    fn path(self) -> &'static str {
        match self {
            Dialect::Anthropic => "/v1/messages",
            Dialect::Chat => "/v1/chat/completions",
            Dialect::Responses => "/v1/responses",
            Dialect::Gemini => "/v1beta/models",
        }
    }

    fn parse(self, body: &str) -> Result<Conversation, String> {
        let body = serde_json::from_str(body).map_err(|error| format!("the body is not JSON: {error}"))?;
        match self {
            Dialect::Anthropic => anthropic::parse(&body),
            Dialect::Chat => openai_chat::parse(&body),
            Dialect::Responses => openai_responses::parse(&body),
            Dialect::Gemini => gemini::parse(&body),
        }
    }

    fn unauthorized(self, reason: &str) -> Response {
        self.error(StatusCode::UNAUTHORIZED, "authentication_error", reason)
    }

    fn error(self, status: StatusCode, kind: &str, message: &str) -> Response {
        let body = match self {
            Dialect::Anthropic => json!({"type": "error", "error": {"type": kind, "message": message}}),
            Dialect::Chat | Dialect::Responses => {
                json!({"error": {"type": kind, "message": message, "code": null, "param": null}})
            }
            Dialect::Gemini => {
                json!({"error": {"code": status.as_u16(), "message": message, "status": kind.to_uppercase()}})
            }
        };
        (status, Json(body)).into_response()
    }
}
