//! The pages of a consent: `/oauth/connect` says what is about to be allowed and opens the provider in a window of its
//! own, and what that window shows in the end. Scripts and styles are ours and carry a nonce; no page has a secret in
//! it. May touch: `oauth`.

use std::time::Duration;

use aws_lc_rs::rand;
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{ACCEPT, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, ORIGIN, REFERRER_POLICY, SET_COOKIE};
use http::header::{VARY, X_FRAME_OPTIONS};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};
use url::Url;

use super::App;
use super::docs::escape;
use super::error::Problem;
use super::extract::ApiJson;
use super::v1::oauth::{configured, cookie, for_a_stranger, tls};
use crate::audit::Client;
use crate::oauth::error::OauthError;
use crate::oauth::state;

const CONNECT: &str = include_str!("connect.html");
const RESULT: &str = include_str!("result.html");
const STYLE: &str = include_str!("style.css");
const CONNECT_SCRIPT: &str = include_str!("connect.js");
const RESULT_SCRIPT: &str = include_str!("result.js");
/// As long as a consent.
const COOKIE_LIVES: Duration = Duration::from_secs(600);
const OPENER: HeaderName = HeaderName::from_static("cross-origin-opener-policy");

/// Which consent.
#[derive(Deserialize)]
pub(super) struct Which {
    state: String,
}

/// Where the window goes.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Leave {
    authorization_url: Url,
}

/// Whether a browser asks, and not a program.
pub(super) fn wants_page(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|kind| kind.trim().starts_with("text/html"))
}

/// `GET /oauth/connect`
pub(super) async fn page(
    State(app): State<App>,
    client: Client,
    query: Result<Query<Which>, QueryRejection>,
) -> Response {
    let state = query.ok().and_then(|query| state::State::parse(&query.state));
    let found = async {
        let oauth = configured(&app)?;
        let about = async { oauth.page(state.as_ref().ok_or(OauthError::State)?).await };
        for_a_stranger(&app, &client, about).await
    };
    let about = match found.await {
        Ok(about) => about,
        Err(problem) => return failed(None, &problem),
    };
    let whose = if about.shared { "All agents of organization" } else { "Your agents in organization" };
    let back = about.return_to.as_ref().map(Url::as_str).unwrap_or_default();
    let channel = channel(state.as_ref());
    let texts = [
        ("{connection}", about.connection.as_str()),
        ("{subject}", about.subject.as_str()),
        ("{whose}", whose),
        ("{organization}", about.organization.as_str()),
        ("{provider}", about.provider.as_str()),
        ("{return}", back),
        ("{channel}", channel.as_str()),
    ];
    let mut response = html(StatusCode::OK, CONNECT, CONNECT_SCRIPT, &texts);
    // Only here: two pages that both say it about themselves lose each other when the provider between them does not.
    response.headers_mut().insert(OPENER, HeaderValue::from_static("same-origin-allow-popups"));
    response
}

/// `POST /oauth/connect`: the page's button was pressed. Only our own page may say so, since the cookie that is set
/// here means that this browser has shown it.
pub(super) async fn leave(
    State(app): State<App>,
    client: Client,
    headers: HeaderMap,
    ApiJson(Which { state }): ApiJson<Which>,
) -> Result<Response, Problem> {
    let oauth = configured(&app)?;
    let own = oauth.public_url().origin().ascii_serialization();
    if headers.get(ORIGIN).and_then(|origin| origin.to_str().ok()) != Some(own.as_str()) {
        let detail = "This is for the page at /oauth/connect only; open that in a browser.";
        return Err(Problem::new(StatusCode::FORBIDDEN, "wrong-origin", "Wrong origin", detail));
    }
    let state = state::State::parse(&state).ok_or(OauthError::State)?;
    let authorization_url = for_a_stranger(&app, &client, oauth.leave(&state)).await?;
    let (name, value) = state.cookie(tls(oauth));
    let cookie = HeaderValue::from_str(&cookie(&name, &value, COOKIE_LIVES, tls(oauth)));
    let mut response = Json(Leave { authorization_url }).into_response();
    response.headers_mut().insert(SET_COOKIE, cookie.map_err(|_| Problem::internal())?);
    Ok(response)
}

/// What the window shows when the consent is complete.
pub(super) fn finished(state: Option<&state::State>, connection: &str) -> Response {
    let text = format!("{connection} is connected. You can close this window.");
    result(StatusCode::OK, state, "connected", "Connected", &text)
}

/// What it shows otherwise.
pub(super) fn failed(state: Option<&state::State>, problem: &Problem) -> Response {
    let denied = problem.slug() == "oauth-denied";
    let (kind, title) = if denied { ("denied", "Not connected") } else { ("failed", "It did not work") };
    result(problem.status(), state, kind, title, problem.detail())
}

fn result(status: StatusCode, state: Option<&state::State>, kind: &str, title: &str, text: &str) -> Response {
    let channel = channel(state);
    let texts = [("{channel}", channel.as_str()), ("{kind}", kind), ("{title}", title), ("{text}", text)];
    let mut response = html(status, RESULT, RESULT_SCRIPT, &texts);
    response.headers_mut().insert(VARY, HeaderValue::from_static("accept"));
    response
}

/// How the two windows of a consent find each other. A part of a hash: it leads nowhere.
fn channel(state: Option<&state::State>) -> String {
    state.map(|state| state.cookie(false).0).unwrap_or_default()
}

fn html(status: StatusCode, template: &str, script: &str, texts: &[(&str, &str)]) -> Response {
    let mut random = [0; 16];
    if rand::fill(&mut random).is_err() {
        return Problem::internal().into_response();
    }
    let nonce = STANDARD.encode(random);
    // First, and not escaped: what stands in the texts must not be taken for a place of these.
    let mut page =
        template.replacen("/*style*/", STYLE, 1).replacen("/*script*/", script, 1).replace("{nonce}", &nonce);
    for (name, text) in texts {
        page = page.replace(name, &escape(text));
    }
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; base-uri \
         'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CONTENT_SECURITY_POLICY, policy.as_str()),
        (X_FRAME_OPTIONS, "DENY"),
        // The state is in the address of the page.
        (REFERRER_POLICY, "no-referrer"),
    ];
    (status, headers, page).into_response()
}
