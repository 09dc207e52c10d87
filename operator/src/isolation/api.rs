//! The runtime's two APIs, asked without a token, with forged ones, and with the genuine session token of a tenant about
//! sessions of others. Also asks the runtime to try the tenant's writing role, which the operator can't take on.
use super::{
    Outcome,
    token::{Mint, forged},
};
use crate::context::Context;
use agentapi_crds::Organization;
use kube::ResourceExt;
use reqwest::{Client, Method, StatusCode};
use serde::Deserialize;
use serde_json::json;
use std::time::Duration;
use uuid::Uuid;

const FORGED: &str = "the public API with a forged signature";

/// A client that waits for nobody.
pub fn client() -> reqwest::Result<Client> {
    Client::builder().timeout(Duration::from_secs(5)).redirect(reqwest::redirect::Policy::none()).no_proxy().build()
}

/// Ask both APIs what they must refuse.
pub async fn probe(context: &Context, client: &Client, organization: &Organization, mint: &Mint) -> Outcome {
    let now = context.now().as_second();
    let identity = &organization.spec.identity;
    let forge = |algorithm| forged(algorithm, &identity.issuer, &identity.audience, organization.org_claim(), now);
    let foreign = foreign_session(context, organization).await.unwrap_or_else(Uuid::new_v4);
    let public = format!("{}/v1/sessions", context.config.runtime_url());
    let internal = context.config.runtime_internal_url();
    let messages = format!("{internal}/internal/v1/sessions/{foreign}/messages");
    let slug = organization.name_any();
    let attempts = [
        ("the public API without a token", Method::GET, public.clone(), None),
        ("the public API with an unsigned token", Method::GET, public.clone(), Some(forge("none"))),
        (FORGED, Method::GET, public, Some(forge("EdDSA"))),
        ("the internal API without a token", Method::PUT, messages.clone(), None),
        ("the internal API with a forged signature", Method::PUT, messages.clone(), Some(forge("EdDSA"))),
        (
            "another organization's session with a session token of this one",
            Method::PUT,
            messages.clone(),
            Some(mint.session(&slug, Uuid::new_v4(), now)),
        ),
        (
            "another organization's session with a token that names it",
            Method::PUT,
            messages,
            Some(mint.session(&slug, foreign, now)),
        ),
        (
            "the route of the role probe with a session token",
            Method::POST,
            format!("{internal}/internal/v1/isolation"),
            Some(mint.session(&slug, Uuid::new_v4(), now)),
        ),
    ];
    let mut findings = Vec::new();
    for (what, method, url, token) in attempts {
        let mut request = client.request(method, url).json(&json!({ "messages": [] }));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        match request.send().await.map(|answer| answer.status()) {
            Ok(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND) => {}
            // The organization's identity provider is away: nobody gets in, and least of all with a forged signature.
            Ok(StatusCode::SERVICE_UNAVAILABLE) if what == FORGED => {}
            Ok(status) if status.is_success() => findings.push(format!("{what} is answered with {}", status.as_u16())),
            Ok(status) => return Outcome::unknown(format!("{what}: the runtime answers {}", status.as_u16())),
            Err(error) => return Outcome::unknown(format!("the runtime does not answer: {}", error.without_url())),
        }
    }
    Outcome::of(&findings, "everything was refused")
}

/// A live session of another organization, so that the id alone is no reason for a refusal.
async fn foreign_session(context: &Context, organization: &Organization) -> Option<Uuid> {
    let own = Uuid::parse_str(&organization.uid()?).ok()?;
    let query = "select id from sessions where org_id <> $1 order by ended_at is not null, created_at desc limit 1";
    sqlx::query_scalar(query).bind(own).fetch_optional(context.postgres().ok()?).await.ok()?
}

#[derive(Deserialize)]
struct Findings {
    findings: Vec<String>,
}

/// Ask the runtime to try the tenant's writing role.
pub async fn role(context: &Context, client: &Client, slug: &str, mint: &Mint) -> Outcome {
    let url = format!("{}/internal/v1/isolation", context.config.runtime_internal_url());
    let token = mint.role_probe(slug, context.now().as_second());
    let answer = match client.post(url).bearer_auth(token).send().await {
        Ok(answer) => answer,
        Err(error) => return Outcome::unknown(format!("the runtime does not answer: {}", error.without_url())),
    };
    let status = answer.status();
    if !status.is_success() {
        return Outcome::unknown(format!("the runtime answers {}", status.as_u16()));
    }
    match answer.json::<Findings>().await {
        Ok(Findings { findings }) => Outcome::of(&findings, "its own rows and nothing else"),
        Err(error) => Outcome::unknown(format!("the runtime's answer can't be read: {}", error.without_url())),
    }
}
