//! Fuzz targets of what a request carries: headers, cursors, bodies. See `agentapi_fuzz`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use agentapi_fuzz::Fuzz;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};

use super::v1::{create_session, sessions};
use super::{error::Problem, extract, internal, request_id};

fn kind(problem: &Problem) -> u64 {
    u64::from(problem.status().as_u16()) * 1000 + problem.detail().len() as u64
}

/// One header value, read by everything that reads headers.
#[test]
fn request_headers() {
    const TOKENS: &[&[u8]] = &[
        b"Bearer ",
        b"bearer",
        b"Basic ",
        b"wait=",
        b"return=minimal, ",
        b"\"",
        b"application/json",
        b"application/x+json",
        b"multipart/form-data; boundary=",
        b"; charset=utf-8",
        b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        b" ",
        b"\t",
        b",",
        b";",
        b"\x80",
    ];
    Fuzz::new("request_headers").tokens(TOKENS).max_bytes(1024).run(|input| {
        let Ok(value) = HeaderValue::from_bytes(input) else { return 0 };
        let mut headers = HeaderMap::new();
        for name in [AUTHORIZATION, CONTENT_TYPE, http::HeaderName::from_static("prefer")] {
            headers.insert(name, value.clone());
        }
        headers.insert(create_session::IDEMPOTENCY_KEY, value.clone());
        let mut behaviour = 1;
        match extract::bearer(&headers) {
            Ok(token) => {
                assert!(!token.is_empty() && !token.contains(' '), "{token:?}");
                behaviour |= 2;
            }
            Err(problem) => behaviour |= kind(&problem) << 16,
        }
        if let Some(id) = request_id::sane(&value) {
            assert!(id.len() <= 128 && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(&b)), "{id:?}");
            behaviour |= 4;
        }
        if let Some(trace) = request_id::trace_id(&value) {
            assert!(trace.len() == 32 && trace.bytes().all(|b| b.is_ascii_hexdigit()), "{trace:?}");
            behaviour |= 8;
        }
        let wait = create_session::preferred_wait(&headers);
        assert!(wait <= Duration::from_secs(60));
        behaviour |= u64::from(!wait.is_zero()) << 4;
        if let Ok(Some(key)) = create_session::idempotency_key(&headers) {
            assert!(!key.is_empty() && key.len() <= 255 && key.is_ascii());
            behaviour |= 32;
        }
        behaviour |= u64::from(extract::require_content_type(&headers, "application/json").is_ok()) << 6;
        behaviour |= u64::from(extract::require_content_type(&headers, "multipart/form-data").is_ok()) << 7;
        behaviour | u64::from(sessions::decode_cursor(&String::from_utf8_lossy(input)).is_ok()) << 8
    });
}

/// Bodies of the public and of the internal API.
#[test]
fn request_body() {
    const TOKENS: &[&[u8]] = &[
        br#""workspace":"main""#,
        br#""env":{"A":"b"}"#,
        br#""env":{"":""}"#,
        br#""prompt":"hi""#,
        br#""agent":null"#,
        br#""messages":["#,
        br#"{"id":0,"role":"agent","content":"","time":"2026-01-01T00:00:00Z"}"#,
        br#""status":"stable""#,
        br#""time":"-009999-01-02T01:59:59Z""#,
        br#""\ud800""#,
        br#""\u0000""#,
        b"null",
        b"[",
        b"]",
        b"{",
        b"}",
        b",",
        b":",
        b"\xff",
        b"1e999",
        b"[[[[[[[[[[[[[[[[",
        b"{\"a\":{\"a\":{\"a\":",
    ];
    Fuzz::new("request_body").tokens(TOKENS).run(|input| {
        let public = match extract::parse_json::<create_session::CreateSession>(input) {
            Err(problem) => kind(&problem),
            Ok(body) => match body.validate() {
                Err(problem) => 1 + kind(&problem),
                Ok(()) => 2,
            },
        };
        let internal = match extract::parse_json::<internal::Transcript>(input) {
            Err(problem) => kind(&problem),
            Ok(_) => 3,
        };
        assert!(public < 500_000 && internal < 500_000, "a body of the client's is the server's fault");
        public << 32 | internal
    });
}
