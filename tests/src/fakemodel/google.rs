//! Google's ways to models: Anthropic's and Google's own on Vertex AI, the Gemini API, and the token exchange of workload
//! identity (RFC 8693) that a credentials file of type `external_account` names. Vertex AI takes only tokens from there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::{OriginalUri, Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Dialect, Model, gemini, script, wire};

/// What tokens of the exchange begin with.
const TOKEN: &str = "ya29.fake-";
/// What Vertex AI wants to read in Anthropic's requests.
const ANTHROPIC_VERSION: &str = "vertex-2023-10-16";

pub(super) fn router() -> Router<Arc<Model>> {
    let vertex = "/projects/{project}/locations/{location}/publishers";
    Router::new()
        .route("/sts/token", post(exchange))
        .route("/sts/subject", get(subject))
        .route(&format!("/v1{vertex}/anthropic/models/{{call}}"), post(anthropic))
        .route(&format!("/v1{vertex}/google/models/{{call}}"), post(vertex_gemini))
        .route(&format!("/v1beta1{vertex}/google/models/{{call}}"), post(vertex_gemini))
        .route("/v1beta/models/{call}", post(gemini_api))
}

/// The token that the exchange takes, where a credentials file of type `external_account` looks for it.
async fn subject(State(model): State<Arc<Model>>) -> String {
    model.config.api_key.clone().unwrap_or_else(|| "subject".to_owned())
}

async fn exchange(State(model): State<Arc<Model>>, body: String) -> Response {
    let form: BTreeMap<String, String> = url::form_urlencoded::parse(body.as_bytes()).into_owned().collect();
    let field = |name: &str| form.get(name).map_or("", |value| value.trim());
    let refused = |error: &str, why: &str| {
        (StatusCode::BAD_REQUEST, Json(json!({"error": error, "error_description": why}))).into_response()
    };
    if field("grant_type") != "urn:ietf:params:oauth:grant-type:token-exchange" {
        return refused("unsupported_grant_type", "only token exchange");
    }
    let expected = model.config.api_key.as_ref();
    let subject = field("subject_token");
    if subject.is_empty() || expected.is_some_and(|key| key != subject) {
        return refused("invalid_grant", "the subject token is not known");
    }
    let number = model.next_id.fetch_add(1, Ordering::Relaxed);
    Json(json!({"access_token": format!("{TOKEN}{number}"), "token_type": "Bearer", "expires_in": 3600,
        "issued_token_type": "urn:ietf:params:oauth:token-type:access_token"}))
    .into_response()
}

fn from_exchange(headers: &HeaderMap) -> bool {
    let sent = headers.get("authorization").and_then(|value| value.to_str().ok());
    sent.and_then(|value| value.strip_prefix("Bearer ")).is_some_and(|token| token.starts_with(TOKEN))
}

/// The body with what stands in the path, `NAME:METHOD`.
fn completed(call: &str, body: &str, streams: &str) -> Result<(String, String), String> {
    let (name, method) = call.rsplit_once(':').ok_or("the path ends in MODEL:METHOD")?;
    let mut body: Value = serde_json::from_str(body).map_err(|error| format!("the body is not JSON: {error}"))?;
    let map = body.as_object_mut().ok_or("the body is no object")?;
    // count-tokens has the model in its body.
    map.entry("model").or_insert_with(|| name.into());
    map.insert("stream".into(), (method == streams).into());
    Ok((body.to_string(), method.to_owned()))
}

async fn anthropic(
    State(model): State<Arc<Model>>,
    Path((_, _, call)): Path<(String, String, String)>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    body: String,
) -> Response {
    let dialect = Dialect::Anthropic;
    if !from_exchange(&headers) {
        return dialect.unauthorized("Vertex AI takes access tokens of Google only");
    }
    let bad = |why: &str| dialect.error(StatusCode::BAD_REQUEST, "invalid_request_error", why);
    let (body, method) = match completed(&call, &body, "streamRawPredict") {
        Ok(completed) => completed,
        Err(why) => return bad(&why),
    };
    if !body.contains(&format!("\"anthropic_version\":\"{ANTHROPIC_VERSION}\"")) {
        return bad(&format!("anthropic_version must be {ANTHROPIC_VERSION}"));
    }
    match method.as_str() {
        "rawPredict" if call.starts_with("count-tokens") => {
            Json(json!({"input_tokens": wire::tokens(&body)})).into_response()
        }
        "rawPredict" | "streamRawPredict" => model.authenticated(dialect, uri.path(), "authorization", &body),
        _ => bad("use rawPredict or streamRawPredict"),
    }
}

#[derive(Deserialize)]
struct Alt {
    alt: Option<String>,
}

async fn vertex_gemini(
    State(model): State<Arc<Model>>,
    Path((_, _, call)): Path<(String, String, String)>,
    Query(query): Query<Alt>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    body: String,
) -> Response {
    if !from_exchange(&headers) {
        return Dialect::Gemini.error(
            StatusCode::UNAUTHORIZED,
            "unauthenticated",
            "Vertex AI takes access tokens only",
        );
    }
    generate(&model, &call, &query, uri.path(), "authorization", &body)
}

async fn gemini_api(
    State(model): State<Arc<Model>>,
    Path(call): Path<String>,
    Query(query): Query<Alt>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    body: String,
) -> Response {
    match model.authenticate(&headers) {
        Ok(auth) => generate(&model, &call, &query, uri.path(), auth, &body),
        Err(reason) => Dialect::Gemini.unauthorized(reason),
    }
}

fn generate(model: &Model, call: &str, query: &Alt, path: &str, auth: &str, body: &str) -> Response {
    let (body, method) = match completed(call, body, "streamGenerateContent") {
        Ok(completed) => completed,
        Err(why) => return Dialect::Gemini.error(StatusCode::BAD_REQUEST, "invalid_argument", &why),
    };
    // Without `alt=sse` Google streams one JSON array.
    if method == "streamGenerateContent" && query.alt.as_deref() != Some("sse") {
        return match Dialect::Gemini.parse(&body) {
            Ok(asked) => {
                let reply = script::reply(&asked, model.config.word_delay);
                Json(json!([gemini::whole(0, wire::tokens(&body), &asked, &reply)])).into_response()
            }
            Err(why) => Dialect::Gemini.error(StatusCode::BAD_REQUEST, "invalid_argument", &why),
        };
    }
    model.authenticated(Dialect::Gemini, path, auth, &body)
}
