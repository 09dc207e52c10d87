//! What handlers take from requests: the caller, typed bodies, queries and ids. Every refusal is a problem document
//! that names the field and says what to write instead. May touch: `auth`, the audit log.

use std::net::IpAddr;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, MatchedPath, Path, Query, Request};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderMap, StatusCode};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::json;
use uuid::Uuid;

use super::error::Problem;
use super::rate_limit::Slot;
use super::{App, held, linger};
use crate::audit::{Client, Entry, action};
use crate::auth::{AuthError, Caller, Role};

/// Largest JSON body.
pub const MAX_JSON_BYTES: usize = 1024 * 1024;
/// A body must arrive within this time.
pub(super) const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// The token of `Authorization: Bearer <token>`.
pub fn bearer(headers: &HeaderMap) -> Result<&str, Problem> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else {
        return Err(AuthError::Missing.into());
    };
    if values.next().is_some() {
        return Err(Problem::malformed_authorization());
    }
    let (scheme, token) = value.to_str().ok().and_then(|text| text.split_once(' ')).unwrap_or_default();
    let token = token.trim();
    if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() || token.contains(' ') {
        return Err(Problem::malformed_authorization());
    }
    Ok(token)
}

impl FromRequestParts<App> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let Ok(client) = Client::from_request_parts(parts, app).await;
        let address = client.source_ip.as_deref().and_then(|address| address.parse().ok());
        let caller = match known_or_checked(parts, app, &client, address).await {
            Ok(caller) => caller,
            Err(problem) => {
                if let Some(address) = address.filter(|_| problem.status() == StatusCode::UNAUTHORIZED) {
                    app.rates.failed(address);
                }
                return Err(problem);
            }
        };
        tracing::Span::current().record("organization", caller.organization.slug.as_str());
        held::is_of(caller.organization.id);
        let slot = parts.extensions.get::<Slot>().cloned().unwrap_or_default();
        app.rates.admit(&caller, &slot, &app.metrics)?;
        Ok(caller)
    }
}

/// A token that was checked a moment ago costs a look into a map; any other costs a signature check and perhaps a
/// query, which an address that has failed too often does not get.
async fn known_or_checked(
    parts: &Parts,
    app: &App,
    client: &Client,
    address: Option<IpAddr>,
) -> Result<Caller, Problem> {
    let token = bearer(&parts.headers)?;
    if let Some(caller) = app.authenticator.recognize(token).await {
        return Ok(caller);
    }
    if let Some(address) = address {
        app.rates.admit_stranger(address, &app.metrics)?;
    }
    Ok(app.authenticator.authenticate(token, client).await?)
}

/// A caller who is an admin of their organization. That somebody else tried is recorded.
pub struct Admin(pub Caller);

impl FromRequestParts<App> for Admin {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let caller = Caller::from_request_parts(parts, app).await?;
        let Ok(client) = Client::from_request_parts(parts, app).await;
        admin_only(app, &caller, &client, &parts.method, &parts.extensions).await?;
        Ok(Self(caller))
    }
}

/// The same for a caller who may not be told yet, because what the request is about comes first.
pub(super) async fn admin_only(
    app: &App,
    caller: &Caller,
    client: &Client,
    method: &http::Method,
    extensions: &http::Extensions,
) -> Result<(), Problem> {
    if caller.role == Role::Admin {
        return Ok(());
    }
    let route = extensions.get::<MatchedPath>().map(MatchedPath::as_str);
    app.store
        .record(
            &caller.scope(),
            &Entry {
                origin: &client.origin(&caller.subject),
                action: action::ACCESS_REFUSE,
                target_kind: "route",
                target_id: route,
                detail: json!({ "method": method.as_str() }),
            },
        )
        .await?;
    Err(Problem::admin_only())
}

/// The id in `/v1/sessions/{id}`.
pub struct SessionId(pub Uuid);

impl<S: Send + Sync> FromRequestParts<S> for SessionId {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Ok(Path(text)) = Path::<String>::from_request_parts(parts, state).await else {
            return Err(Problem::no_such_session());
        };
        text.parse().map(Self).map_err(|_| Problem::no_such_session())
    }
}

/// A query string; unknown parameters are refused.
pub struct ApiQuery<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for ApiQuery<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Query(value) = Query::<T>::from_request_parts(parts, state)
            .await
            .map_err(|error| Problem::bad_request(format!("The query string is not valid: {}.", error.body_text())))?;
        Ok(Self(value))
    }
}

/// A JSON body; unknown fields are refused.
pub struct ApiJson<T>(pub T);

impl<T: DeserializeOwned> FromRequest<App> for ApiJson<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &App) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        read_json(&parts.headers, body, MAX_JSON_BYTES).await.map(Self)
    }
}

/// Reads a JSON body, for who has something to look at before.
pub async fn read_json<T: DeserializeOwned>(headers: &HeaderMap, body: Body, limit: usize) -> Result<T, Problem> {
    require_content_type(headers, "application/json")?;
    parse_json(&read_body(body, limit).await?)
}

/// Checks `Content-Type` without its parameters.
pub fn require_content_type(headers: &HeaderMap, wanted: &str) -> Result<(), Problem> {
    let sent = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = sent.split(';').next().unwrap_or_default().trim();
    let suffixed = wanted == "application/json" && essence.starts_with("application/") && essence.ends_with("+json");
    if essence.eq_ignore_ascii_case(wanted) || suffixed {
        return Ok(());
    }
    Err(Problem::unsupported_media_type(wanted))
}

/// Reads a body to its end: 413 when it is longer, 408 when it does not arrive in time, 400 when it breaks off, 429 when
/// the organization has too many long ones on their way.
pub async fn read_body(body: Body, limit: usize) -> Result<Bytes, Problem> {
    tokio::time::timeout(BODY_TIMEOUT, read_whole(body, limit)).await.unwrap_or_else(|_| Err(Problem::too_slow()))
}

async fn read_whole(body: Body, limit: usize) -> Result<Bytes, Problem> {
    let (mut chunks, mut read) = (body.into_data_stream(), BytesMut::new());
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| {
            if linger::is_too_slow(&error) {
                Problem::too_slow()
            } else {
                Problem::bad_request("The body ended early.")
            }
        })?;
        let length = read.len() + chunk.len();
        if length > limit {
            return Err(Problem::too_large(limit));
        }
        held::body(length)?;
        read.extend_from_slice(&chunk);
    }
    Ok(read.freeze())
}

/// Parses a body: 400 when it is no JSON, 422 when it is not the JSON that is wanted.
pub fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let text = std::str::from_utf8(bytes)
        .map_err(|error| Problem::bad_request(format!("The body is not UTF-8 (byte {}).", error.valid_up_to())))?;
    // Serde would take an array for an object whose fields are in order.
    if text.trim_ascii_start().starts_with('[') && serde_json::from_str::<IgnoredAny>(text).is_ok() {
        return Err(Problem::invalid_field(".", "The body is a JSON object, not an array."));
    }
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let field = error.path().to_string();
        let inner = error.into_inner();
        match inner.classify() {
            serde_json::error::Category::Data => {
                let detail = without_position(&inner.to_string());
                let field = unknown_field(&detail).map_or(field, str::to_owned);
                Problem::invalid_field(field, format!("{detail}."))
            }
            _ => Problem::bad_request(format!(
                "The body is not valid JSON (line {}, column {}).",
                inner.line(),
                inner.column()
            )),
        }
    })?;
    deserializer.end().map_err(|_| Problem::bad_request("There is something after the JSON body."))?;
    Ok(value)
}

fn without_position(message: &str) -> String {
    message.split(" at line ").next().unwrap_or(message).to_owned()
}

fn unknown_field(message: &str) -> Option<&str> {
    message.strip_prefix("unknown field `")?.split('`').next()
}

/// The response of a panic: the same as of any other internal error.
pub fn panicked(_: Box<dyn std::any::Any + Send>) -> Response {
    tracing::error!("a handler panicked");
    Problem::internal().into_response()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use http::HeaderValue;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Wanted {
        #[allow(dead_code)]
        name: String,
    }

    fn refused(body: &[u8]) -> Problem {
        parse_json::<Wanted>(body).expect_err("must be refused")
    }

    #[test]
    fn bad_bodies_are_told_apart() {
        assert_eq!(refused(b"\xff\xfe").status(), StatusCode::BAD_REQUEST);
        assert_eq!(refused(b"{").status(), StatusCode::BAD_REQUEST);
        assert_eq!(refused(b"{\"name\": \"a\"} x").status(), StatusCode::BAD_REQUEST);
        assert_eq!(refused(b"{\"name\": 1}").status(), StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(refused(b" [\"a\"]").status(), StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(refused(b"[\"a\"").status(), StatusCode::BAD_REQUEST);
        let unknown = refused(b"{\"name\": \"a\", \"nmae\": 1}");
        assert_eq!(unknown.status(), StatusCode::UNPROCESSABLE_ENTITY);
        assert!(format!("{unknown:?}").contains("nmae"));
    }

    #[test]
    fn only_one_bearer_token_is_taken() {
        let header = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, HeaderValue::from_static(value));
            headers
        };
        assert_eq!(bearer(&header("bearer abc")).unwrap(), "abc");
        for bad in ["Basic abc", "Bearer", "Bearer ", "Bearer a b"] {
            assert!(bearer(&header(bad)).is_err(), "{bad}");
        }
        let mut two = header("Bearer a");
        two.append(AUTHORIZATION, HeaderValue::from_static("Bearer b"));
        assert!(bearer(&two).is_err());
    }

    #[test]
    fn json_may_have_parameters_and_suffixes() {
        let header = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(value));
            headers
        };
        assert!(require_content_type(&header("application/json; charset=utf-8"), "application/json").is_ok());
        assert!(require_content_type(&header("text/plain"), "application/json").is_err());
        assert!(require_content_type(&HeaderMap::new(), "application/json").is_err());
    }
}
