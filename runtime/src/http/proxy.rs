//! Passes a request on to a session's pod and its answer back, both as streams: nothing is buffered, so a slow reader
//! slows the writer. May touch: `pods::agent`, metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use http::{HeaderMap, Method, StatusCode};

use super::error::{PROBLEM_JSON, Problem};
use super::{AppState, linger, request_id};
use crate::pods::agent::{AgentError, Target};

/// Silence on an event stream after which a comment is sent, so that idle timeouts on the way do not cut it.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// What the pod gets to see of a request.
const REQUEST_HEADERS: [HeaderName; 4] = [ACCEPT, CONTENT_TYPE, CONTENT_LENGTH, LAST_EVENT_ID];
/// What the client gets to see of the pod's answer.
const RESPONSE_HEADERS: [HeaderName; 4] = [CONTENT_TYPE, CONTENT_LENGTH, CACHE_CONTROL, RETRY_AFTER];

/// What to ask a pod.
pub(super) struct Call<'a> {
    pub(super) target: Target<'a>,
    pub(super) method: Method,
    pub(super) path: &'a str,
    pub(super) headers: &'a HeaderMap,
    /// Body and the most bytes that it may have.
    pub(super) body: Option<(Body, usize)>,
    /// Until the answer's head.
    pub(super) timeout: Duration,
}

fn pod_away(error: &AgentError) -> Problem {
    tracing::warn!(%error, "the session's pod does not answer");
    let detail = "The session's pod does not answer at the moment; it may be restarting. Try again.";
    Problem::unavailable("session-unreachable", detail, 2)
}

/// Asks the pod and streams its answer.
pub(super) async fn forward(app: &AppState, call: Call<'_>) -> Result<Response, Problem> {
    let mut request = app.agents.request(call.target, call.method, call.path).map_err(|error| pod_away(&error))?;
    for name in REQUEST_HEADERS {
        if let Some(value) = call.headers.get(&name) {
            request = request.header(name, value);
        }
    }
    if let Some(id) = request_id::current() {
        request = request.header(request_id::HEADER, id);
    }
    let mut sent_body = None;
    if let Some((body, most)) = call.body {
        let sent = call.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
        if sent.is_some_and(|sent| sent > most) {
            return Err(Problem::too_large(most));
        }
        let (stream, outcome) = limited(body, most);
        request = request.body(reqwest::Body::wrap_stream(stream));
        sent_body = Some((outcome, most));
    }
    let answer = tokio::time::timeout(call.timeout, request.send()).await;
    if let Some((outcome, most)) = sent_body {
        match outcome.load(Ordering::Relaxed) {
            TOO_LARGE => return Err(Problem::too_large(most)),
            TOO_SLOW => return Err(Problem::too_slow()),
            _ => {}
        }
    }
    let answer = match answer {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return Err(pod_away(&AgentError::Unreachable(error.without_url()))),
        Err(_) => {
            let detail = "The session's agent did not answer in time. Try again.";
            return Err(
                Problem::new(StatusCode::GATEWAY_TIMEOUT, "session-timeout", "Gateway timeout", detail).retry_after(2)
            );
        }
    };
    if matches!(answer.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
        // The client is fine; this address now belongs to another pod, or the pod does not know our key.
        let status = answer.status();
        return Err(pod_away(&AgentError::Refused { status, detail: "the pod refuses the API's token".into() }));
    }
    Ok(respond(app, answer))
}

fn respond(app: &AppState, answer: reqwest::Response) -> Response {
    let status = answer.status();
    let mut headers = HeaderMap::new();
    for name in RESPONSE_HEADERS {
        if let Some(value) = answer.headers().get(&name) {
            headers.insert(name, value.clone());
        }
    }
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if kind.starts_with("text/event-stream") {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        // Proxies that buffer would hold events back.
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
        return (status, headers, Body::from_stream(events(app, answer.bytes_stream()))).into_response();
    }
    if (status.is_client_error() || status.is_server_error()) && !kind.starts_with(PROBLEM_JSON) {
        let detail = "The session's agent refused this request.";
        return Problem::new(status, "agent-error", "Agent error", detail).into_response();
    }
    (status, headers, Body::from_stream(answer.bytes_stream())).into_response()
}

/// What became of a request's body on its way to the pod.
const PASSED_ON: u8 = 0;
const TOO_LARGE: u8 = 1;
const TOO_SLOW: u8 = 2;

/// The body, cut off with an error once it has more than `most` bytes or comes too slowly; the second value tells
/// which of the two happened.
fn limited(
    body: Body,
    most: usize,
) -> (impl Stream<Item = Result<Bytes, axum::Error>> + Send + 'static, Arc<AtomicU8>) {
    let outcome = Arc::new(AtomicU8::new(PASSED_ON));
    let told = Arc::clone(&outcome);
    let seen = AtomicUsize::new(0);
    let stream = body.into_data_stream().map(move |chunk| {
        let chunk = chunk.inspect_err(|error| {
            if linger::is_too_slow(error) {
                told.store(TOO_SLOW, Ordering::Relaxed);
            }
        })?;
        if seen.fetch_add(chunk.len(), Ordering::Relaxed) + chunk.len() > most {
            told.store(TOO_LARGE, Ordering::Relaxed);
            return Err(axum::Error::new(std::io::Error::other("body too large")));
        }
        Ok(chunk)
    });
    (stream, outcome)
}

/// Passes events through, with comments into long silences, until either side ends it or this replica shuts down;
/// then the client is told to come back at once, and resumes with Last-Event-ID on another replica.
fn events(
    app: &AppState,
    upstream: impl Stream<Item = reqwest::Result<Bytes>> + Send + 'static,
) -> impl Stream<Item = Result<Bytes, std::io::Error>> + Send + 'static {
    let closing = app.closing.clone();
    let open = app.metrics.stream();
    async_stream::stream! {
        let _open = open;
        let mut upstream = std::pin::pin!(upstream);
        // A comment may stand only between two events.
        let mut between = true;
        loop {
            let next = tokio::select! {
                () = closing.cancelled() => {
                    if between {
                        yield Ok(Bytes::from_static(b": this server is shutting down\nretry: 200\n\n"));
                    }
                    break;
                }
                next = tokio::time::timeout(KEEP_ALIVE, upstream.next()) => next,
            };
            match next {
                Ok(Some(Ok(chunk))) => {
                    between = chunk.ends_with(b"\n\n") || chunk.ends_with(b"\r\n\r\n");
                    yield Ok(chunk);
                }
                Ok(Some(Err(error))) => {
                    tracing::info!(error = %error.without_url(), "the session's event stream broke");
                    break;
                }
                Ok(None) => break,
                Err(_) if between => yield Ok(Bytes::from_static(b": keep-alive\n\n")),
                Err(_) => {}
            }
        }
    }
}
