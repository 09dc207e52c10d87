//! `/v1/oauth/{init,callback,refresh,revoke}`: consents of users to MCP servers. No route gives a token out. May touch:
//! `oauth`.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use http::header::{COOKIE, SET_COOKIE};
use http::{HeaderMap, HeaderValue, StatusCode};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use url::Url;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::audit::Client;
use crate::auth::{Caller, Role};
use crate::http::App;
use crate::http::connect;
use crate::http::error::{Problem, ProblemBody};
use crate::http::extract::ApiJson;
use crate::mcp::secrets::SecretError;
use crate::oauth::OAuth;
use crate::oauth::consent::{Answer, Wish};
use crate::oauth::error::OauthError;
use crate::oauth::grants::AtProvider;
use crate::oauth::state;
use crate::oauth::target::Target;

/// Which consent.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OauthInit {
    /// Id of the connection.
    connection: Uuid,
    /// Where the user goes afterwards; its origin must be one that the platform allows.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    redirect: Option<Url>,
    /// For everybody of the organization; admins only.
    #[serde(default)]
    shared: bool,
}

/// A consent that has begun.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OauthStarted {
    /// Open this in the user's browser. It says what the user is about to allow, and leads to the provider.
    #[schema(value_type = String)]
    authorization_url: Url,
    /// Until when it can be finished (RFC 3339).
    expires_at: String,
}

/// Whose grant of which connection.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OauthGrant {
    /// Id of the connection.
    connection: Uuid,
    /// The organization's grant instead of your own; admins only.
    #[serde(default)]
    shared: bool,
}

/// A grant that is good.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OauthRefreshed {
    /// `Authorized`.
    #[schema(example = "Authorized")]
    state: &'static str,
    /// Seconds that its access token is good; not there when the provider does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_in_seconds: Option<u64>,
}

/// A grant that is no more.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OauthRevoked {
    /// `Revoked`: the tokens are gone from here in any case.
    #[schema(example = "Revoked")]
    state: &'static str,
    /// What the provider did: `revoked`, `unsupported` when it can't be told, `failed` when it could not be reached.
    #[schema(example = "revoked")]
    provider: &'static str,
}

/// A consent that is complete.
#[derive(Debug, Serialize, ToSchema)]
pub struct OauthConnected {
    /// `Authorized`.
    #[schema(example = "Authorized")]
    state: &'static str,
    /// Name of the connection.
    #[schema(example = "github")]
    connection: String,
}

/// What providers send with a user; whatever else they send is not looked at.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct CallbackQuery {
    /// Which consent.
    state: Option<String>,
    /// To be exchanged for tokens.
    #[param(value_type = Option<String>)]
    code: Option<SecretString>,
    /// Why there is no code.
    error: Option<String>,
    /// Who answers (RFC 9207).
    iss: Option<String>,
}

/// The room, where it is configured.
pub(in crate::http) fn configured(app: &App) -> Result<&Arc<OAuth>, Problem> {
    app.oauth.as_ref().ok_or_else(|| {
        let detail = "This installation has no OAuth: ask your platform team to set runtime.publicUrl and to mount the \
                      master key (AGENTAPI_PUBLIC_URL, AGENTAPI_MASTER_KEY_DIR).";
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "oauth-not-configured", "OAuth is not configured", detail)
    })
}

/// What is everybody's is for admins to give, refresh and take back.
fn may_be_shared(caller: &Caller, shared: bool) -> Result<(), Problem> {
    if shared && caller.role != Role::Admin { Err(Problem::admin_only()) } else { Ok(()) }
}

async fn target(app: &App, oauth: &OAuth, caller: &Caller, grant: &OauthGrant) -> Result<Target, Problem> {
    may_be_shared(caller, grant.shared)?;
    let mut tx = app.store.tenant_tx(&caller.scope()).await?;
    let target = oauth.target(&mut tx, &caller.organization, grant.connection).await?;
    tx.commit().await?;
    Ok(target)
}

/// Begins a consent to an MCP server.
#[utoipa::path(
    post, path = "/v1/oauth/init", operation_id = "beginConsent", tag = "oauth", request_body = OauthInit,
    responses(
        (status = 201, body = OauthStarted),
        (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
        (status = "5XX", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn init(
    State(app): State<App>,
    caller: Caller,
    client: Client,
    ApiJson(wish): ApiJson<OauthInit>,
) -> Result<(StatusCode, Json<OauthStarted>), Problem> {
    let oauth = configured(&app)?;
    may_be_shared(&caller, wish.shared)?;
    let OauthInit { connection, redirect, shared } = wish;
    let begun = oauth.begin(&caller, &client, Wish { connection, shared, return_to: redirect }).await?;
    Ok((StatusCode::CREATED, Json(OauthStarted { authorization_url: begun.url, expires_at: begun.expires_at })))
}

/// Where a provider that the platform itself knows, such as github.com, sends a user back to. Browsers get a page.
#[utoipa::path(
    get, path = "/v1/oauth/callback", operation_id = "finishConsent", tag = "oauth", params(CallbackQuery),
    security(()),
    responses(
        (status = 200, body = OauthConnected),
        (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
        (status = "5XX", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn callback(
    State(app): State<App>,
    client: Client,
    headers: HeaderMap,
    query: Result<Query<CallbackQuery>, QueryRejection>,
) -> Response {
    Box::pin(come_back(&app, &client, &headers, query, Ok(None))).await
}

/// Where a provider that a connection names sends a user back to. Browsers get a page.
#[utoipa::path(
    get, path = "/v1/oauth/callback/{connection}", operation_id = "finishConsentOfConnection", tag = "oauth",
    params(("connection" = Uuid, Path, description = "Connection"), CallbackQuery),
    security(()),
    responses(
        (status = 200, body = OauthConnected),
        (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
        (status = "5XX", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn callback_of(
    State(app): State<App>,
    connection: Result<Path<Uuid>, PathRejection>,
    client: Client,
    headers: HeaderMap,
    query: Result<Query<CallbackQuery>, QueryRejection>,
) -> Response {
    let came_to = connection.map(|Path(id)| Some(id)).map_err(|_| OauthError::State);
    Box::pin(come_back(&app, &client, &headers, query, came_to)).await
}

/// A user comes back, to the address of a connection or to the one for all.
async fn come_back(
    app: &App,
    client: &Client,
    headers: &HeaderMap,
    query: Result<Query<CallbackQuery>, QueryRejection>,
    came_to: Result<Option<Uuid>, OauthError>,
) -> Response {
    let state = query.as_ref().ok().and_then(|query| state::State::parse(query.state.as_deref()?));
    let answered = match query {
        Ok(Query(query)) => finish(app, client, headers, state.as_ref(), came_to, query).await,
        Err(_) => Err(OauthError::State.into()),
    };
    let page = connect::wants_page(headers);
    let mut response = match answered {
        Ok(connection) if page => connect::finished(state.as_ref(), &connection),
        Ok(connection) => Json(OauthConnected { state: "Authorized", connection }).into_response(),
        Err(problem) if page => connect::failed(state.as_ref(), &problem),
        Err(problem) => problem.into_response(),
    };
    if let (Some(oauth), Some(state)) = (&app.oauth, &state) {
        let (name, _) = state.cookie(tls(oauth));
        if let Ok(gone) = HeaderValue::from_str(&cookie(&name, "", Duration::ZERO, tls(oauth))) {
            response.headers_mut().append(SET_COOKIE, gone);
        }
    }
    response
}

async fn finish(
    app: &App,
    client: &Client,
    headers: &HeaderMap,
    state: Option<&state::State>,
    came_to: Result<Option<Uuid>, OauthError>,
    query: CallbackQuery,
) -> Result<String, Problem> {
    let oauth = configured(app)?;
    let answered = async {
        let (state, came_to) = (state.ok_or(OauthError::State)?, came_to?);
        if !has_cookie(headers, &state.cookie(tls(oauth))) {
            return Err(OauthError::Browser);
        }
        let answer = Answer { code: query.code, error: query.error, iss: query.iss };
        oauth.answer(client, state, came_to, answer).await
    };
    for_a_stranger(app, client, answered).await
}

/// Nobody has shown who they are, but for a state: whoever guesses does not do it for long.
pub(in crate::http) async fn for_a_stranger<T>(
    app: &App,
    client: &Client,
    work: impl Future<Output = Result<T, OauthError>>,
) -> Result<T, Problem> {
    let address = client.source_ip.as_deref().and_then(|address| address.parse().ok());
    if let Some(address) = address {
        app.rates.admit_stranger(address, &app.metrics)?;
    }
    let done = work.await;
    if let (Err(OauthError::State | OauthError::Browser), Some(address)) = (&done, address) {
        app.rates.failed(address);
    }
    Ok(done?)
}

/// Gets another access token for a grant, before the one that is there ends.
#[utoipa::path(
    post, path = "/v1/oauth/refresh", operation_id = "refreshGrant", tag = "oauth", request_body = OauthGrant,
    responses(
        (status = 200, body = OauthRefreshed),
        (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
        (status = "5XX", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn refresh(
    State(app): State<App>,
    caller: Caller,
    ApiJson(grant): ApiJson<OauthGrant>,
) -> Result<Json<OauthRefreshed>, Problem> {
    let oauth = configured(&app)?;
    let target = target(&app, oauth, &caller, &grant).await?;
    let user = (!grant.shared).then_some(caller.user_id);
    let access = oauth.refresh_now(&target, user).await?;
    let seconds = access.row.seconds_left.and_then(|left| Duration::try_from_secs_f64(left).ok());
    Ok(Json(OauthRefreshed { state: "Authorized", expires_in_seconds: seconds.map(|left| left.as_secs()) }))
}

/// Takes a consent back: the tokens are gone from here at once, and revoked at the provider where it can be told.
#[utoipa::path(
    post, path = "/v1/oauth/revoke", operation_id = "revokeGrant", tag = "oauth", request_body = OauthGrant,
    responses(
        (status = 200, body = OauthRevoked),
        (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
        (status = "5XX", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn revoke(
    State(app): State<App>,
    caller: Caller,
    client: Client,
    ApiJson(grant): ApiJson<OauthGrant>,
) -> Result<Json<OauthRevoked>, Problem> {
    let oauth = configured(&app)?;
    let target = target(&app, oauth, &caller, &grant).await?;
    let told = oauth.revoke(&caller, &client.origin(&caller.subject), &target, grant.shared).await?;
    let provider = match told {
        AtProvider::Revoked => "revoked",
        AtProvider::Unsupported => "unsupported",
        AtProvider::Failed => "failed",
    };
    Ok(Json(OauthRevoked { state: "Revoked", provider }))
}

/// Whether browsers reach the API with TLS.
pub(in crate::http) fn tls(oauth: &OAuth) -> bool {
    oauth.public_url().scheme() == "https"
}

/// Lax: the provider sends the user back from another site.
pub(in crate::http) fn cookie(name: &str, value: &str, lives: Duration, tls: bool) -> String {
    let secure = if tls { "; Secure" } else { "" };
    format!("{name}={value}; Path=/; Max-Age={}; HttpOnly; SameSite=Lax{secure}", lives.as_secs())
}

fn has_cookie(headers: &HeaderMap, (name, value): &(String, String)) -> bool {
    let sent = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok()).flat_map(|all| all.split(';'));
    sent.filter_map(|cookie| cookie.trim().split_once('=')).any(|(n, v)| n == name && v == value)
}

impl From<OauthError> for Problem {
    fn from(error: OauthError) -> Self {
        let detail = error.to_string();
        let new = |status: StatusCode, slug, title| Self::new(status, slug, title, sentence(&detail));
        match error {
            OauthError::NoConnection => new(StatusCode::NOT_FOUND, "connection-not-found", "Connection not found"),
            OauthError::NotOauth => new(StatusCode::CONFLICT, "connection-not-oauth", "Connection without OAuth"),
            OauthError::Redirect => {
                new(StatusCode::UNPROCESSABLE_ENTITY, "redirect-not-allowed", "Redirect not allowed")
                    .with("field", "redirect")
            }
            OauthError::TooMany => {
                new(StatusCode::TOO_MANY_REQUESTS, "too-many-consents", "Too many consents").retry_after(60)
            }
            OauthError::State => new(StatusCode::BAD_REQUEST, "oauth-state-invalid", "Consent is not valid"),
            OauthError::Browser => new(StatusCode::BAD_REQUEST, "oauth-wrong-browser", "Another browser"),
            OauthError::Issuer => new(StatusCode::BAD_REQUEST, "oauth-issuer-mismatch", "Another provider"),
            OauthError::Callback => new(StatusCode::BAD_REQUEST, "oauth-callback-mismatch", "Another connection"),
            OauthError::Denied => new(StatusCode::FORBIDDEN, "oauth-denied", "Consent was not given"),
            OauthError::NeedsConsent => new(StatusCode::CONFLICT, "oauth-needs-consent", "Consent is needed"),
            OauthError::Revoked => new(StatusCode::CONFLICT, "oauth-revoked", "Consent was revoked"),
            OauthError::ProviderDown { retry_after, .. } => {
                let seconds = u32::try_from(retry_after.as_secs()).unwrap_or(u32::MAX).max(1);
                Self::unavailable("oauth-provider-unavailable", sentence(&detail), seconds)
            }
            OauthError::Unusable(_) => new(StatusCode::BAD_GATEWAY, "oauth-provider-refused", "Provider refuses"),
            OauthError::Secret(SecretError::Unavailable(why)) => {
                tracing::error!(why, "a Secret cannot be read");
                Self::unavailable("cluster-unavailable", "The cluster cannot be asked for a Secret; try again.", 2)
            }
            OauthError::Secret(SecretError::NotForHost { .. }) => {
                new(StatusCode::CONFLICT, "oauth-client-not-for-host", "OAuth client is for another provider")
            }
            OauthError::Secret(_) => new(StatusCode::CONFLICT, "oauth-client-missing", "OAuth client is missing"),
            OauthError::Store(error) => error.into(),
            OauthError::Crypto(error) => {
                tracing::error!(%error, "OAuth: keys");
                Self::internal()
            }
        }
    }
}

fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|letter| letter.to_uppercase().to_string()).unwrap_or_default();
    format!("{first}{}.", letters.as_str())
}
