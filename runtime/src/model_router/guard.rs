//! The guard in front of the router: two paths, the models of the workspace, the router's password. Everything else ends
//! here. It streams answers through and keeps nothing.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, OriginalUri, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderName, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};

use super::RouterError;
use super::config::Configuration;

/// As much as Anthropic takes.
const MAX_BODY: usize = 32 * 1024 * 1024;
/// What the router gets to see of a request.
const REQUEST_HEADERS: [HeaderName; 5] = [
    ACCEPT,
    CONTENT_TYPE,
    USER_AGENT,
    HeaderName::from_static("anthropic-version"),
    HeaderName::from_static("anthropic-beta"),
];
/// What the agent gets to see of the answer.
const RESPONSE_HEADERS: [HeaderName; 2] = [CONTENT_TYPE, RETRY_AFTER];
/// Below the ports that Linux gives to connections: one of those could be somebody's before the router listens on it.
const PORTS: Range<u16> = 10_000..20_000;
/// With this the router lets a system prompt choose a model.
const CHOICE: (&str, &str) = ("<CCR-SUBAGENT-MODEL>", "</CCR-SUBAGENT-MODEL>");

/// The router can't be told to take any port and say which.
fn free_port(place: u16) -> Option<u16> {
    let first = PORTS.start + place % (PORTS.end - PORTS.start);
    let mut all = (first..PORTS.end).chain(PORTS.start..first);
    all.find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
}

/// The guard of one router.
#[derive(Clone)]
pub(super) struct Guard(Arc<Inner>);

struct Inner {
    http: reqwest::Client,
    password: SecretString,
    port: u16,
    models: BTreeSet<String>,
}

impl Guard {
    /// A new password, and a free port for the router.
    pub(super) fn new(configuration: &Configuration) -> Result<Self, RouterError> {
        let prepare = |error: &dyn std::fmt::Display| RouterError::Prepare(error.to_string());
        let mut random = [0; 32];
        aws_lc_rs::rand::fill(&mut random).map_err(|_| RouterError::Prepare("no random numbers".into()))?;
        let mut place = [0; 2];
        aws_lc_rs::rand::fill(&mut place).map_err(|_| RouterError::Prepare("no random numbers".into()))?;
        let http = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
        Ok(Self(Arc::new(Inner {
            http: http.connect_timeout(Duration::from_secs(5)).build().map_err(|error| prepare(&error))?,
            password: SecretString::from(hex::encode(random)),
            port: free_port(u16::from_be_bytes(place)).ok_or_else(|| prepare(&"no port is free"))?,
            models: configuration.models().collect(),
        })))
    }

    pub(super) fn password(&self) -> &str {
        self.0.password.expose_secret()
    }

    /// Where the router shall listen.
    pub(super) fn upstream_port(&self) -> u16 {
        self.0.port
    }

    /// For the agent.
    pub(super) fn router(&self) -> Router {
        Router::new()
            .route("/v1/messages", post(messages))
            .route("/v1/messages/count_tokens", post(messages))
            .fallback(async || {
                refused(StatusCode::NOT_FOUND, "not_found_error", "the model router serves /v1/messages only")
            })
            .layer(DefaultBodyLimit::max(MAX_BODY))
            .with_state(self.clone())
    }

    /// For probes.
    pub(super) fn health(&self) -> Router {
        let health = async |State(guard): State<Guard>| {
            let well = guard.is_well().await;
            let status = if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            (status, Json(json!({ "router": well })))
        };
        Router::new().route("/health", get(health)).with_state(self.clone())
    }

    /// Waits until the router answers. False: it did not.
    pub(super) async fn answers(&self, within: Duration, look: Duration) -> bool {
        let start = Instant::now();
        while start.elapsed() < within {
            if self.is_well().await {
                return true;
            }
            tokio::time::sleep(look).await;
        }
        false
    }

    async fn is_well(&self) -> bool {
        let asked = self.0.http.get(self.url("/health")).timeout(Duration::from_secs(2)).send().await;
        asked.is_ok_and(|answer| answer.status().is_success())
    }

    fn url(&self, path_and_query: &str) -> String {
        format!("http://127.0.0.1:{}{path_and_query}", self.0.port)
    }

    /// A request may choose among the models of the workspace's routes and no others: who pays has not named those.
    fn allows(&self, body: &Value) -> Result<(), String> {
        // JavaScript reads an object with a length like a list.
        let odd = |key: &str, fits: fn(&Value) -> bool| body.get(key).is_some_and(|value| !fits(value));
        if odd("model", Value::is_string) || odd("system", |system| system.is_string() || system.is_array()) {
            return Err("model is a string, system a string or a list".to_owned());
        }
        let chosen = body.get("model").and_then(Value::as_str).filter(|model| model.contains(','));
        let system = body.get("system").and_then(Value::as_array).into_iter().flatten();
        let in_system = system
            .filter_map(|part| part.get("text")?.as_str()?.strip_prefix(CHOICE.0)?.split_once(CHOICE.1))
            .map(|(model, _)| model);
        match chosen.into_iter().chain(in_system).find(|model| !self.0.models.contains(*model)) {
            None => Ok(()),
            Some(model) => Err(format!(
                "{model:?} is not one of the workspace's models; there are {}",
                self.0.models.iter().map(String::as_str).collect::<Vec<_>>().join(" and ")
            )),
        }
    }
}

async fn messages(
    State(guard): State<Guard>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let Ok(message) = serde_json::from_slice::<Value>(&body) else {
        return refused(StatusCode::BAD_REQUEST, "invalid_request_error", "the body is not JSON");
    };
    if let Err(why) = guard.allows(&message) {
        return refused(StatusCode::BAD_REQUEST, "invalid_request_error", &why);
    }
    let place = uri.path_and_query().map_or("/v1/messages", |it| it.as_str());
    let mut request = guard.0.http.post(guard.url(place)).bearer_auth(guard.password()).body(body);
    for name in REQUEST_HEADERS {
        if let Some(value) = headers.get(&name) {
            request = request.header(name, value);
        }
    }
    let answer = match request.send().await {
        Ok(answer) => answer,
        Err(error) => {
            tracing::warn!(error = %error.without_url(), "the model router does not answer");
            return refused(
                StatusCode::BAD_GATEWAY,
                "api_error",
                "the model router does not answer; it is started again",
            );
        }
    };
    let status = answer.status();
    let mut passed = HeaderMap::new();
    for name in RESPONSE_HEADERS {
        if let Some(value) = answer.headers().get(&name) {
            passed.insert(name, value.clone());
        }
    }
    (status, passed, Body::from_stream(answer.bytes_stream())).into_response()
}

/// In Anthropic's form, which agents show to their users.
fn refused(status: StatusCode, kind: &str, message: &str) -> Response {
    (status, Json(json!({ "type": "error", "error": { "type": kind, "message": message } }))).into_response()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn guard() -> Guard {
        let text = r#"{"API_TIMEOUT_MS": 1, "Router": {"default": "a,x"}, "Providers": [{"name": "a", "models": ["x", "y"]},
            {"name": "b", "models": ["z:1"]}]}"#;
        Guard::new(&Configuration::parse(text).unwrap()).unwrap()
    }

    #[test]
    fn only_models_of_the_workspace_can_be_chosen() {
        let guard = guard();
        for model in ["claude-sonnet-4-5", "a,x", "b,z:1"] {
            assert_eq!(guard.allows(&json!({ "model": model })), Ok(()), "{model}");
        }
        for model in ["a,other", "b,x", "c,x", "a,x,y", ","] {
            assert!(guard.allows(&json!({ "model": model })).unwrap_err().contains("a,x and a,y and b,z:1"), "{model}");
        }
        let tagged = |model: &str| {
            let text = format!("<CCR-SUBAGENT-MODEL>{model}</CCR-SUBAGENT-MODEL>You are a helper.");
            json!({ "model": "claude-sonnet-4-5", "system": [{ "type": "text", "text": "x" }, { "type": "text", "text": text }] })
        };
        assert_eq!(guard.allows(&tagged("a,y")), Ok(()));
        assert!(guard.allows(&tagged("a,other")).is_err());
        assert!(guard.allows(&tagged("other")).is_err());
        let text = format!("{}other{}", CHOICE.0, CHOICE.1);
        assert!(guard.allows(&json!({ "model": "x", "system": { "length": 2, "1": { "text": text } } })).is_err());
        assert!(guard.allows(&json!({ "model": ["other,x"] })).is_err());
        assert_eq!(guard.allows(&json!({ "model": "x", "system": "be brief" })), Ok(()));
    }

    #[test]
    fn every_guard_has_a_password_of_its_own() {
        let (one, two) = (guard(), guard());
        assert_eq!(one.password().len(), 64);
        assert_ne!(one.password(), two.password());
    }
}
