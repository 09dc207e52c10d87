//! Every error of the API as `application/problem+json` (RFC 9457). May touch: nothing; it only builds responses.

use axum::Extension;
use axum::response::{IntoResponse, Response};
use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, StatusCode};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::auth::AuthError;
use crate::http::request_id;
use crate::store::StoreError;

/// Media type of error bodies.
pub const PROBLEM_JSON: &str = "application/problem+json";
/// The slug of a tenant that has too many requests at work at a time.
pub(super) const TOO_MANY_REQUESTS: &str = "too-many-requests";
const TYPE_PREFIX: &str = "https://agentapi.dev/problems/";

/// An error as the client sees it. The detail says what to do; it never holds a secret or an internal message.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    slug: &'static str,
    title: &'static str,
    detail: String,
    headers: Box<HeaderMap>,
    extra: Map<String, Value>,
}

/// Left in a response's extensions, for what surrounds the handlers.
#[derive(Debug, Clone, Copy)]
pub(super) struct ProblemSlug(pub(super) &'static str);

/// The JSON body of a problem, for the OpenAPI document.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProblemBody {
    /// Stable identifier of the kind of problem.
    #[schema(example = "https://agentapi.dev/problems/session-not-found")]
    pub r#type: String,
    /// The kind of problem in words.
    pub title: String,
    /// HTTP status.
    #[schema(example = 404)]
    pub status: u16,
    /// What happened here and what to do.
    pub detail: String,
    /// Find this request in the logs with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// More fields for some kinds, such as `quota`, `limit` and `used`.
    #[serde(flatten)]
    #[schema(inline)]
    pub extra: Map<String, Value>,
}

impl Problem {
    /// A problem of a kind.
    pub fn new(status: StatusCode, slug: &'static str, title: &'static str, detail: impl Into<String>) -> Self {
        Self { status, slug, title, detail: detail.into(), headers: Box::default(), extra: Map::new() }
    }

    /// With one more field in the body.
    #[must_use]
    pub fn with(mut self, field: &'static str, value: impl Into<Value>) -> Self {
        self.extra.insert(field.to_owned(), value.into());
        self
    }

    /// With a hint when to try again.
    #[must_use]
    pub fn retry_after(self, seconds: u32) -> Self {
        self.header(RETRY_AFTER, HeaderValue::from(seconds))
    }

    fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// 404 for a route.
    pub fn no_such_route() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", "Not found", "There is no such route; see /docs.")
    }

    /// 404 for a session: not there, or not the caller's.
    pub fn no_such_session() -> Self {
        let detail = "There is no session with this id among those you may see.";
        Self::new(StatusCode::NOT_FOUND, "session-not-found", "Session not found", detail)
    }

    /// 405.
    pub fn method_not_allowed() -> Self {
        let detail = "This route does not take this method; see the Allow header and /docs.";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "Method not allowed", detail)
    }

    /// 400.
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad-request", "Bad request", detail)
    }

    /// 415.
    pub fn unsupported_media_type(wanted: &str) -> Self {
        let detail = format!("Send the body as {wanted} and say so in Content-Type.");
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type", "Unsupported media type", detail)
    }

    /// 413.
    pub fn too_large(limit: usize) -> Self {
        let detail = format!("The body may have at most {limit} bytes.");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", "Body too large", detail)
    }

    /// 408: the client is too slow, whatever the reason.
    pub fn too_slow() -> Self {
        let detail = "The body did not arrive in time; send it again, faster or in smaller parts.";
        Self::new(StatusCode::REQUEST_TIMEOUT, "request-timeout", "Request timeout", detail)
            .header(CONNECTION, HeaderValue::from_static("close"))
    }

    /// 422 about one field.
    pub fn invalid_field(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-field", "Invalid field", detail)
            .with("field", field.into())
    }

    /// 429 about a quota that is used up.
    pub fn quota_exceeded(
        detail: impl Into<String>,
        quota: &str,
        limit: impl Into<Value>,
        used: impl Into<Value>,
    ) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "quota-exceeded", "Quota exceeded", detail)
            .with("quota", quota)
            .with("limit", limit)
            .with("used", used)
    }

    /// 403: authenticated, but not allowed.
    pub fn admin_only() -> Self {
        let detail = "Only admins of your organization may do this: the token's role claim must be admin.";
        Self::new(StatusCode::FORBIDDEN, "forbidden", "Forbidden", detail)
            .header(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer error=\"insufficient_scope\""))
    }

    /// 500 without any internal detail.
    pub fn internal() -> Self {
        let detail = "Something went wrong on the server; its log has more under this request id.";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "Internal error", detail)
    }

    /// 503: a part that is needed is away for a moment.
    pub fn unavailable(slug: &'static str, detail: impl Into<String>, retry_after: u32) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, slug, "Service unavailable", detail).retry_after(retry_after)
    }

    /// 401 per RFC 6750: the error code only when a token was sent.
    fn unauthorized(error: Option<&'static str>, detail: String) -> Self {
        let value = match error {
            None => "Bearer realm=\"agentapi\"".to_owned(),
            Some(code) => {
                let description: String =
                    detail.chars().filter(|c| matches!(c, ' ' | '!' | '#'..='[' | ']'..='~')).collect();
                format!("Bearer realm=\"agentapi\", error=\"{code}\", error_description=\"{description}\"")
            }
        };
        let value = HeaderValue::from_str(&value).unwrap_or(HeaderValue::from_static("Bearer"));
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", "Unauthorized", detail).header(WWW_AUTHENTICATE, value)
    }

    /// The same for a request without a usable `Authorization` header in place of a wrong token.
    pub fn malformed_authorization() -> Self {
        let detail = "The Authorization header must be: Bearer <token>.";
        Self::unauthorized(Some("invalid_request"), detail.to_owned())
    }

    /// Says which methods a route takes.
    #[must_use]
    pub fn allow(self, methods: HeaderValue) -> Self {
        self.header(ALLOW, methods)
    }

    /// The kind, as the end of its `type`.
    pub(super) fn slug(&self) -> &'static str {
        self.slug
    }

    /// The text for people.
    pub(super) fn detail(&self) -> &str {
        &self.detail
    }

    /// The response's status.
    pub fn status(&self) -> StatusCode {
        self.status
    }
}

impl From<AuthError> for Problem {
    fn from(error: AuthError) -> Self {
        match error {
            AuthError::Missing => Self::unauthorized(None, error.to_string()),
            AuthError::Invalid(detail) => Self::unauthorized(Some("invalid_token"), detail),
            AuthError::ProviderUnavailable => Self::unavailable("identity-provider-unavailable", error.to_string(), 5),
            AuthError::Store(error) => error.into(),
            AuthError::SharedSecrets { .. } => Self::internal(),
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(error) => {
                tracing::error!(%error, "database unavailable");
                Self::unavailable("database-unavailable", "The database cannot be reached; try again.", 2)
            }
            StoreError::TenantBusy => {
                let detail = "Your organization has too many requests at work at this moment; send fewer at a time.";
                Self::new(StatusCode::TOO_MANY_REQUESTS, TOO_MANY_REQUESTS, "Too many requests", detail).retry_after(1)
            }
            StoreError::TenantGone => {
                Self::unauthorized(Some("invalid_token"), "the organization no longer exists".to_owned())
            }
            StoreError::Leaving => {
                let detail = "Your organization is being deleted and takes no new sessions; ask your platform team.";
                Self::new(StatusCode::CONFLICT, "organization-leaving", "Organization is being deleted", detail)
            }
            StoreError::Value(error) => {
                tracing::info!(%error, "the database refuses a value");
                let detail = "The request holds a value that cannot be stored: a NUL character, or something too long.";
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-value", "Invalid value", detail)
            }
            StoreError::Database(error) => {
                tracing::error!(%error, "database error");
                Self::internal()
            }
            StoreError::Corrupt(what) => {
                tracing::error!(what, "unexpected value in the database");
                Self::internal()
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = ProblemBody {
            r#type: format!("{TYPE_PREFIX}{}", self.slug),
            title: self.title.to_owned(),
            status: self.status.as_u16(),
            detail: self.detail,
            request_id: request_id::current(),
            extra: self.extra,
        };
        let mut headers = *self.headers;
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        let bytes = serde_json::to_vec(&body).unwrap_or_default();
        (self.status, headers, Extension(ProblemSlug(self.slug)), bytes).into_response()
    }
}
