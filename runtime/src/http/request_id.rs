//! One id per request: taken from `x-request-id` when it is sane, else made here; put on the response, into the log
//! span and into problem bodies. May touch: request and response headers.

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use http::HeaderValue;
use tracing::Instrument;
use uuid::Uuid;

/// The header's name.
pub const HEADER: &str = "x-request-id";
const MAX_LENGTH: usize = 128;

tokio::task_local! {
    static CURRENT: String;
}

/// The id of the request that this task is working on.
pub fn current() -> Option<String> {
    CURRENT.try_with(Clone::clone).ok()
}

/// An id from outside goes into logs and headers, so only plain characters are taken.
pub(super) fn sane(value: &HeaderValue) -> Option<&str> {
    let text = value.to_str().ok()?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':');
    (!text.is_empty() && text.len() <= MAX_LENGTH && text.bytes().all(plain)).then_some(text)
}

/// The trace id of a W3C `traceparent`, so that logs can be joined with the caller's trace.
pub(super) fn trace_id(value: &HeaderValue) -> Option<&str> {
    let trace = value.to_str().ok()?.split('-').nth(1)?;
    (trace.len() == 32 && trace.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(trace)
}

/// The middleware.
pub async fn middleware(mut request: Request, next: Next) -> Response {
    let headers = request.headers();
    let id = headers.get(HEADER).and_then(sane).map_or_else(|| Uuid::now_v7().to_string(), str::to_owned);
    let trace = headers.get("traceparent").and_then(trace_id).unwrap_or_default();
    let span = tracing::info_span!(
        "request",
        request_id = %id,
        trace_id = trace,
        method = %request.method(),
        path = request.uri().path(),
        organization = tracing::field::Empty,
    );
    let Ok(value) = HeaderValue::from_str(&id) else {
        return next.run(request).await;
    };
    request.headers_mut().insert(HEADER, value.clone());
    let mut response = CURRENT.scope(id, next.run(request)).instrument(span).await;
    response.headers_mut().insert(HEADER, value);
    response
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_plain_ids_are_taken() {
        assert_eq!(sane(&HeaderValue::from_static("abc-1.2:3_4")), Some("abc-1.2:3_4"));
        assert_eq!(sane(&HeaderValue::from_static("a b")), None);
        assert_eq!(sane(&HeaderValue::from_static("")), None);
        assert_eq!(sane(&HeaderValue::from_static("{\"level\":\"x\"}")), None);
        assert_eq!(sane(&HeaderValue::from_str(&"a".repeat(129)).unwrap()), None);
    }

    #[test]
    fn trace_ids_are_hex() {
        let good = HeaderValue::from_static("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        assert_eq!(trace_id(&good), Some("4bf92f3577b34da6a3ce929d0e0e4736"));
        assert_eq!(trace_id(&HeaderValue::from_static("nonsense")), None);
    }
}
