//! Answers to consents that are not taken: forged, replayed, late, somebody else's, of another provider. Nothing is
//! stored, each time.

use agentapi_tests::api::Answer;
use agentapi_tests::oauth::World;
use agentapi_tests::oauth::agent::{Agent, Decision};
use anyhow::{Context, Result};
use serde_json::json;
use url::Url;
use uuid::Uuid;

const SESSION_POD: &str = env!("CARGO_BIN_EXE_session-pod");

async fn grants(world: &World) -> Result<String> {
    world.value("select count(*)::text from mcp_oauth_tokens").await?.context("no count")
}

/// The same address with another value of a parameter; none: without it.
fn with(url: &Url, name: &str, value: Option<&str>) -> Url {
    let kept: Vec<(String, String)> = url.query_pairs().into_owned().filter(|(known, _)| known != name).collect();
    let mut changed = url.clone();
    changed.query_pairs_mut().clear().extend_pairs(kept).extend_pairs(value.map(|value| (name, value)));
    changed
}

fn state(url: &Url) -> Result<String> {
    Ok(url.query_pairs().find(|(name, _)| name == "state").context("no state")?.1.into_owned())
}

fn is(answer: &Answer, status: u16, problem: &str) {
    assert_eq!((answer.status.as_u16(), answer.problem()), (status, problem), "{}", answer.body);
    assert_eq!(answer.content_type, "application/problem+json");
}

/// A consent that is given and not yet taken back to the API.
async fn given(world: &World, token: &str, connection: Uuid) -> Result<(Agent, Url)> {
    let mut agent = Agent::new()?;
    let provider = agent.leave(&world.begin(&world.replica.api(Some(token))?, connection).await?).await?;
    let back = agent.decide(&provider, "acme-alice", Decision::Allow, &world.callback()).await?;
    Ok((agent, back))
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_browser_that_began_ends_a_consent_and_only_once() -> Result<()> {
    let world = World::start(SESSION_POD).await?;
    let acme = &world.acme;
    let globex = world.platform.tenant("globex").await?;
    let connection = world.connection(acme, "github", &json!({"clientSecretRef": "none"})).await?;
    let (mut alice, back) = given(&world, &acme.alice, connection).await?;

    // Bob's browser, with a consent of his own under way.
    let (mut bob, his) = given(&world, &acme.bob, connection).await?;
    is(&bob.back(&back).await?, 400, "oauth-wrong-browser");
    is(&alice.back(&with(&back, "state", Some(&state(&his)?))).await?, 400, "oauth-wrong-browser");
    // A browser that knows nothing.
    is(&Agent::new()?.back(&back).await?, 400, "oauth-wrong-browser");
    for wrong in ["", "x", "acme", "acme.", ".x", "acme.x'--", "acme.\0", &"a.".repeat(200)] {
        is(&alice.back(&with(&back, "state", Some(wrong))).await?, 400, "oauth-state-invalid");
    }
    is(&alice.back(&with(&back, "state", None)).await?, 400, "oauth-state-invalid");
    // The state of one organization presented as another's, with the cookie that would go with it.
    let random = state(&back)?.split_once('.').context("no dot")?.1.to_owned();
    for slug in [globex.organization.slug.as_str(), "nobody-at-all"] {
        let foreign = format!("{slug}.{random}");
        let parsed = agentapi_runtime::oauth::state::State::parse(&foreign).context("no state")?;
        alice.set_cookie(&world.public, parsed.cookie(false));
        is(&alice.back(&with(&back, "state", Some(&foreign))).await?, 400, "oauth-state-invalid");
    }
    assert_eq!(grants(&world).await?, "0");

    // None of that has hurt alice's consent.
    alice.back(&back).await?.expect(200)?;
    assert_eq!(grants(&world).await?, "1");
    // Again: the cookie is gone with the first time.
    is(&alice.back(&back).await?, 400, "oauth-wrong-browser");
    let parsed = agentapi_runtime::oauth::state::State::parse(&state(&back)?).context("no state")?;
    alice.set_cookie(&world.public, parsed.cookie(false));
    is(&alice.back(&back).await?, 400, "oauth-state-invalid");
    let theirs = "select u.subject from mcp_oauth_tokens t join users u on u.id = t.user_id and u.org_id = t.org_id";
    assert_eq!(world.value(theirs).await?, Some(acme.organization.alice.subject.clone()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_late_or_of_another_provider_is_not_taken() -> Result<()> {
    let world = World::start(SESSION_POD).await?;
    let acme = &world.acme;
    let connection = world.connection(acme, "github", &json!({"clientSecretRef": "none"})).await?;
    for iss in [Some("https://evil.example"), Some(""), None] {
        let (mut agent, back) = given(&world, &acme.alice, connection).await?;
        is(&agent.back(&with(&back, "iss", iss)).await?, 400, "oauth-issuer-mismatch");
    }
    // Eleven minutes pass.
    let (mut agent, back) = given(&world, &acme.alice, connection).await?;
    let passed = "update oauth_states set created_at = created_at - interval '11 minutes', expires_at = expires_at - interval '11 minutes'";
    assert_eq!(world.admin(passed).await?, 1);
    is(&agent.back(&back).await?, 400, "oauth-state-invalid");
    assert_eq!(grants(&world).await?, "0");
    // A code that the provider never gave out, and none at all.
    let (mut agent, back) = given(&world, &acme.alice, connection).await?;
    is(&agent.back(&with(&back, "code", Some("made-up"))).await?, 502, "oauth-provider-refused");
    let (mut agent, back) = given(&world, &acme.alice, connection).await?;
    is(&agent.back(&with(&back, "code", None)).await?, 400, "oauth-state-invalid");
    assert_eq!(grants(&world).await?, "0");
    let refused = "select string_agg(detail->>'reason', ' ' order by seq) from audit_log where action = 'oauth.refuse'";
    assert_eq!(world.value(refused).await?.as_deref(), Some("issuer issuer issuer refused refused"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_says_no_is_taken_at_their_word() -> Result<()> {
    let world = World::start(SESSION_POD).await?;
    let api = world.replica.api(Some(&world.acme.alice))?;
    let connection = world.connection(&world.acme, "github", &json!({"clientSecretRef": "none"})).await?;
    is(&world.consent(&api, connection, Decision::Deny).await?, 403, "oauth-denied");
    assert_eq!(grants(&world).await?, "0");
    assert_eq!(world.audited().await?, ["oauth.begin", "oauth.refuse"]);
    is(&api.post("/v1/oauth/refresh", &json!({"connection": connection})).await?, 409, "oauth-needs-consent");
    is(&api.post("/v1/oauth/revoke", &json!({"connection": connection})).await?, 409, "oauth-needs-consent");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_agreed_to_is_refused_before_anything_is_written() -> Result<()> {
    let world = World::start(SESSION_POD).await?;
    let (acme, globex) = (&world.acme, world.platform.tenant("globex").await?);
    let api = world.replica.api(Some(&acme.alice))?;
    let init = async |body: serde_json::Value| api.post("/v1/oauth/init", &body).await;
    let secret = json!({"clientSecretRef": "none"});
    let connection = world.connection(acme, "github", &secret).await?;
    for redirect in [
        "https://evil.example/x",
        "http://app.test/x",
        "https://app.test:8443/",
        "javascript:alert(1)",
        "https://app.test.evil.example/",
    ] {
        is(&init(json!({"connection": connection, "redirect": redirect})).await?, 422, "redirect-not-allowed");
    }
    is(&init(json!({"connection": connection, "redirect": "nowhere"})).await?, 422, "invalid-field");
    let theirs = world.connection(&globex, "github", &secret).await?;
    for id in [theirs, Uuid::new_v4()] {
        is(&init(json!({"connection": id})).await?, 404, "connection-not-found");
    }
    let other = Uuid::new_v4();
    let plain = format!(
        "insert into mcp_connections (org_id, id, name, origin, transport, spec) values ('{}', '{other}', 'plain', 'api',
         'streamableHttp', '{{\"transport\": {{\"streamableHttp\": {{\"url\": \"https://x\"}}}}}}')",
        acme.organization.id
    );
    world.admin(&plain).await?;
    is(&init(json!({"connection": other})).await?, 409, "connection-not-oauth");
    // Providers at addresses that nobody may name, and one that is somebody else.
    for issuer in ["http://169.254.169.254/latest", "https://10.0.0.1/", "ftp://x"] {
        let id = world
            .connection(acme, &format!("c-{}", Uuid::new_v4()), &json!({"issuer": issuer, "clientSecretRef": "none"}))
            .await?;
        is(&init(json!({"connection": id})).await?, 502, "oauth-provider-refused");
    }
    let missing = world.connection(acme, "missing", &json!({"clientSecretRef": "not-there"})).await?;
    is(&init(json!({"connection": missing})).await?, 409, "oauth-client-missing");
    assert_eq!(world.value("select count(*)::text from oauth_states").await?.as_deref(), Some("0"));

    let allowed = init(json!({"connection": connection, "redirect": "https://app.test/settings?a=1"})).await?;
    allowed.expect(201)?;
    for _ in 0..19 {
        init(json!({"connection": connection})).await?.expect(201)?;
    }
    is(&init(json!({"connection": connection})).await?, 429, "too-many-consents");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_page_itself_may_say_that_its_button_was_pressed() -> Result<()> {
    let world = World::start(SESSION_POD).await?;
    let api = world.replica.api(Some(&world.acme.alice))?;
    let connection = world.connection(&world.acme, "github", &json!({"clientSecretRef": "none"})).await?;
    let page: Url = world.begin(&api, connection).await?.parse()?;
    let body = json!({"state": state(&page)?});
    let stranger = world.replica.api(None)?;
    for origin in [None, Some("https://evil.example"), Some("null"), Some("http://127.0.0.1")] {
        let mut request = stranger.request(reqwest::Method::POST, "/oauth/connect").json(&body);
        if let Some(origin) = origin {
            request = request.header("origin", origin);
        }
        is(&stranger.send(request).await?, 403, "wrong-origin");
    }
    let shown =
        stranger.request(reqwest::Method::GET, &format!("/oauth/connect?state={}", state(&page)?)).send().await?;
    assert_eq!(shown.status(), 200);
    let header = |name: &str| shown.headers()[name].to_str().map(str::to_owned);
    assert_eq!((header("x-frame-options")?.as_str(), header("referrer-policy")?.as_str()), ("DENY", "no-referrer"));
    let policy = header("content-security-policy")?;
    for part in ["default-src 'none'", "script-src 'nonce-", "frame-ancestors 'none'", "base-uri 'none'"] {
        assert!(policy.contains(part), "{policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    let text = shown.text().await?;
    assert!(!text.contains(&state(&page)?), "no secret in the page");
    // No state, or none that is known: a page too, and no door.
    for query in ["", "?state=acme.x", "?state=%3Cscript%3E"] {
        let answer = stranger.request(reqwest::Method::GET, &format!("/oauth/connect{query}")).send().await?;
        assert_eq!(answer.status(), 400, "{query}");
        assert!(!answer.text().await?.contains("<script>"));
    }
    Ok(())
}
