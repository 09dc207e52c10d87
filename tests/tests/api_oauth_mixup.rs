//! Mix-up (RFC 9700, 4.4): a provider that a tenant has named sends the user on to an honest one, and hopes that the honest
//! one's code comes to it.

use std::sync::{Arc, Mutex, PoisonError};

use agentapi_tests::oauth::World;
use agentapi_tests::oauth::agent::{Agent, Decision};
use anyhow::{Context, Result};
use axum::extract::State;
use axum::http::{Method, Uri};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use serde_json::{Value, json};
use url::Url;
use uuid::Uuid;

const SESSION_POD: &str = env!("CARGO_BIN_EXE_session-pod");

/// A provider that is not honest.
#[derive(Clone)]
struct Evil {
    base: String,
    got: Arc<Mutex<Vec<String>>>,
}

impl Evil {
    async fn start() -> Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let evil = Self { base: format!("http://{}", listener.local_addr()?), got: Arc::default() };
        let router = Router::new().fallback(serve).with_state(evil.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(evil)
    }

    fn got(&self) -> Vec<String> {
        self.got.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn serve(State(evil): State<Evil>, method: Method, uri: Uri, body: String) -> Response {
    if method == Method::POST {
        evil.got.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{uri} {body}"));
        return Json(json!({"access_token": "x", "token_type": "Bearer"})).into_response();
    }
    let base = &evil.base;
    Json(json!({
        "issuer": base, "authorization_endpoint": format!("{base}/authorize"), "token_endpoint": format!("{base}/token"),
        "code_challenge_methods_supported": ["S256"],
    }))
    .into_response()
}

fn parameter(url: &Url, name: &str) -> Result<String> {
    let found = url.query_pairs().find(|(known, _)| known == name);
    Ok(found.with_context(|| format!("no {name} in {url}"))?.1.into_owned())
}

/// The honest provider, where the evil one sends the user: its client, its redirect URI, our state and challenge.
fn sent_on(honest: &str, asked: &Url, redirect: &str) -> Result<Url> {
    let mut url: Url = format!("{honest}/auth").parse()?;
    url.query_pairs_mut()
        .append_pair("client_id", "none")
        .append_pair("response_type", "code")
        .append_pair("scope", "openid")
        .append_pair("redirect_uri", redirect)
        .append_pair("state", &parameter(asked, "state")?)
        .append_pair("code_challenge", &parameter(asked, "code_challenge")?)
        .append_pair("code_challenge_method", "S256");
    Ok(url)
}

/// As a provider of before RFC 9207 sends a user back.
fn without_iss(url: &Url) -> Url {
    let kept: Vec<(String, String)> = url.query_pairs().into_owned().filter(|(name, _)| name != "iss").collect();
    let mut changed = url.clone();
    changed.query_pairs_mut().clear().extend_pairs(kept);
    changed
}

#[tokio::test(flavor = "multi_thread")]
async fn the_code_of_an_honest_provider_never_comes_to_an_evil_one() -> Result<()> {
    let world = World::start(SESSION_POD).await?;
    let evil = Evil::start().await?;
    let api = world.replica.api(Some(&world.acme.alice))?;
    let secret = json!({"clientSecretRef": "none"});
    let honest = world.connection(&world.acme, "honest", &secret).await?;
    let slug = &world.acme.organization.slug;
    world.platform.secrets.set(slug, "lure", "clientId", "none");
    world.platform.secrets.allow(slug, "lure", evil.base.trim_start_matches("http://"));
    let named = json!({"clientSecretRef": "lure", "issuer": evil.base});
    let lure = world.connection(&world.acme, "lure", &named).await?;
    // The honest one's client itself is not for the evil one.
    let stolen = json!({"clientSecretRef": "client_secret_basic", "issuer": evil.base});
    let stolen = json!({"connection": world.connection(&world.acme, "stolen", &stolen).await?});
    let refused = api.post("/v1/oauth/init", &stolen).await?;
    assert_eq!((refused.status.as_u16(), refused.problem()), (409, "oauth-client-not-for-host"), "{}", refused.body);
    let count = async |table: &str| world.value(&format!("select count(*)::text from {table}")).await;

    let own = |id: Uuid| format!("{}/{id}", world.callback());
    // The honest provider sends users back to the honest connection's address, and to the one for all if its client was
    // registered in a hurry.
    for redirect in [own(honest), world.callback()] {
        let mut agent = Agent::new()?;
        let asked = agent.leave(&world.begin(&api, lure).await?).await?;
        assert!(asked.as_str().starts_with(&format!("{}/authorize", evil.base)), "{asked}");
        let sent_on = sent_on(&world.oidc.issuer, &asked, &redirect)?;
        let back = agent.decide(&sent_on, "acme-alice", Decision::Allow, &redirect).await?;
        assert!(parameter(&back, "code").is_ok(), "{back}");
        let answer = agent.back(&without_iss(&back)).await?;
        assert_eq!((answer.status.as_u16(), answer.problem()), (400, "oauth-callback-mismatch"), "{}", answer.body);
        assert_eq!(answer.content_type, "application/problem+json");
        assert_eq!(evil.got(), Vec::<String>::new());
        assert_eq!(count("oauth_states").await?.as_deref(), Some("0"), "the state is used up");
    }
    assert_eq!(count("mcp_oauth_tokens").await?.as_deref(), Some("0"));
    let why = "select string_agg(detail->>'reason', ' ' order by seq) from audit_log where action = 'oauth.refuse'";
    assert_eq!(world.value(why).await?.as_deref(), Some("callback callback"));

    // What is no id is no address of ours, and says so like any other state that is none.
    let stranger = world.replica.api(None)?;
    let nowhere = stranger.get("/v1/oauth/callback/nobody?state=acme.x&code=y").await?;
    assert_eq!((nowhere.status.as_u16(), nowhere.problem()), (400, "oauth-state-invalid"));

    // Both work for themselves.
    world.consent(&api, honest, Decision::Allow).await?.expect(200)?;
    let mut agent = Agent::new()?;
    let asked = agent.leave(&world.begin(&api, lure).await?).await?;
    let mut back: Url = parameter(&asked, "redirect_uri")?.parse()?;
    back.query_pairs_mut().append_pair("state", &parameter(&asked, "state")?).append_pair("code", "its-own");
    let connected: Value = agent.back(&back).await?.expect(200)?;
    assert_eq!(connected["connection"], "lure");
    assert!(evil.got().iter().any(|got| got.contains("code=its-own")), "{:?}", evil.got());
    Ok(())
}
