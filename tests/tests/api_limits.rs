//! Request rates: an organization's, a user's, and those of who can't say who they are. What is refused says which
//! limit, for how long, and every answer says how the limits stand.

use std::num::NonZeroU32;

use agentapi_tests::api::Api;
use agentapi_tests::cluster::eventually;
use agentapi_tests::serve::steps::{SOON, running_in_main};
use agentapi_tests::serve::{Platform, Replica, Tenant};
use anyhow::{Context, Result};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

const SESSION_POD: &str = env!("CARGO_BIN_EXE_session-pod");
/// A rate at which nothing comes back while a test looks.
const SLOW: u32 = 1;

async fn get(api: &Api) -> Result<Response> {
    Ok(api.request(Method::GET, "/v1/workspaces").send().await?)
}

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

async fn quota(platform: &Platform, tenant: &Tenant, quota: &Value) -> Result<()> {
    let change = "update organizations set quota = $2::jsonb where slug = $1";
    platform.operator(change, &[&tenant.organization.slug, &quota.to_string()]).await?;
    Ok(())
}

async fn metrics(replica: &Replica) -> Result<String> {
    let metrics = Api::new(&format!("http://{}", replica.addresses.metrics), None)?.get("/metrics").await?;
    Ok(metrics.body.as_str().unwrap_or_default().to_owned())
}

/// Sends requests until one is refused; how many were let in, and the refusal.
async fn until_refused(api: &Api, at_most: usize) -> Result<(usize, Response)> {
    for let_in in 0..at_most {
        let response = get(api).await?;
        if response.status() == StatusCode::TOO_MANY_REQUESTS {
            return Ok((let_in, response));
        }
        assert_eq!(response.status(), StatusCode::OK);
    }
    anyhow::bail!("{at_most} requests were all let in")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_users_limit_is_named_and_leaves_room_for_the_others() -> Result<()> {
    let platform = Platform::start(SESSION_POD).await?;
    let acme = platform.tenant("acme").await?;
    let per_user = json!({"perUser": {"requestsPerSecond": SLOW, "burst": 5}, "requestsPerSecond": SLOW, "burst": 40});
    quota(&platform, &acme, &per_user).await?;
    let replica = platform.replica().await?;
    let alice = replica.api(Some(&acme.alice))?;

    let first = get(&alice).await?;
    assert_eq!(header(&first, "ratelimit-policy"), "\"user\";q=5;w=5, \"organization\";q=40;w=40");
    assert_eq!(header(&first, "ratelimit"), "\"user\";r=4;t=1, \"organization\";r=39;t=1");
    let (let_in, refused) = until_refused(&alice, 20).await?;
    assert!((4..=8).contains(&let_in), "{let_in} after the first");
    assert_eq!(header(&refused, "content-type"), "application/problem+json");
    assert_eq!(header(&refused, "retry-after"), "1");
    assert_eq!(header(&refused, "ratelimit"), "\"user\";r=0;t=5");
    let problem: Value = refused.json().await?;
    assert!(problem["type"].as_str().is_some_and(|kind| kind.ends_with("/rate-limit-exceeded")), "{problem}");
    assert_eq!((&problem["limit"], &problem["burst"]), (&json!("user"), &json!(5)), "{problem}");

    assert_eq!(get(&replica.api(Some(&acme.bob))?).await?.status(), StatusCode::OK, "another user");
    let slug = &acme.organization.slug;
    let text = metrics(&replica).await?;
    assert!(
        text.contains(&format!("agentapi_requests_throttled_total{{kind=\"user\",organization=\"{slug}\"}} 1")),
        "{text}"
    );
    // Probes and documents have no caller and no limit.
    for path in ["/live", "/ready", "/openapi.json", "/docs"] {
        for _ in 0..20 {
            assert_eq!(replica.api(None)?.get(path).await?.status, 200, "{path}");
        }
    }
    // What is refused changes nothing.
    let refused = alice.post("/v1/sessions", &json!({"workspace": "main"})).await?;
    if refused.status == 429 {
        let mut admin = platform.db.connect(&platform.db.admin_url()).await?;
        let rows: i64 = sqlx::query_scalar("select count(*) from sessions").fetch_one(&mut admin).await?;
        assert_eq!(rows, 0);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_organizations_limit_follows_the_spec_within_seconds_and_is_shared_by_replicas() -> Result<()> {
    let platform = Platform::start(SESSION_POD).await?;
    let (acme, globex) = (platform.tenant("acme").await?, platform.tenant("globex").await?);
    quota(&platform, &acme, &json!({"requestsPerSecond": SLOW, "burst": 10})).await?;
    let mut config = platform.config();
    config.replicas = NonZeroU32::new(2).context("two")?;
    let replica = platform.replica_with(config).await?;
    let (alice, bob) = (replica.api(Some(&acme.alice))?, replica.api(Some(&acme.bob))?);
    let (let_in, refused) = until_refused(&alice, 20).await?;
    assert!((5..=7).contains(&let_in), "one of two replicas lets in half of ten, not {let_in}");
    assert_eq!(refused.json::<Value>().await?["limit"], "organization");
    // Every two seconds there is room for one more.
    let (let_in, _) = until_refused(&bob, 5).await?;
    assert!(let_in <= 2, "all its users share it: {let_in}");
    assert_eq!(get(&replica.api(Some(&globex.alice))?).await?.status(), StatusCode::OK, "another organization");

    quota(&platform, &acme, &json!({"requestsPerSecond": 500, "burst": 1000})).await?;
    eventually("the new limit", SOON, async || {
        let policy = header(&get(&bob).await?, "ratelimit-policy").to_owned();
        Ok(if policy.contains("\"organization\";q=500;w=2") { Ok(()) } else { Err(policy) })
    })
    .await?;
    for _ in 0..50 {
        assert_eq!(get(&alice).await?.status(), StatusCode::OK);
    }
    quota(&platform, &acme, &json!({"requestsPerSecond": SLOW, "burst": 2})).await?;
    eventually("the limit is low again", SOON, async || {
        let status = get(&alice).await?.status();
        Ok(if status == StatusCode::TOO_MANY_REQUESTS { Ok(()) } else { Err(status.to_string()) })
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_authenticate_is_slowed_down_by_address_and_valid_tokens_go_on() -> Result<()> {
    let platform = Platform::start(SESSION_POD).await?;
    let acme = platform.tenant("acme").await?;
    let mut config = platform.config();
    config.failed_authentications_per_second = SLOW;
    config.failed_authentications_burst = 5;
    config.trusted_proxies = vec!["127.0.0.1/32".parse()?];
    let replica = platform.replica_with(config).await?;
    // One client for all: to make one takes longer than a request.
    let anybody = replica.api(None)?;
    let call = async |token: &str, from: &str| -> Result<Response> {
        let request = anybody.request(Method::GET, "/v1/workspaces").bearer_auth(token);
        Ok(request.header("x-forwarded-for", from).send().await?)
    };
    let claims = platform.claims(&acme.organization.slug, "mallory", "admin");
    let forged = agentapi_tests::serve::idp::SigningKey::es256("first")?.sign(&claims)?;
    let mut refused = 0;
    for _ in 0..20 {
        let response = call(&forged, "192.0.2.66").await?;
        match response.status().as_u16() {
            401 => {}
            429 => {
                refused += 1;
                assert!(matches!(header(&response, "retry-after"), "1" | "2"), "{:?}", response.headers());
                assert_eq!(response.json::<Value>().await?["limit"], "address");
            }
            other => anyhow::bail!("{other}"),
        }
    }
    assert!(refused >= 10, "only {refused} of 20 forged tokens were refused before they were checked");
    assert_eq!(call(&acme.alice, "192.0.2.77").await?.status(), StatusCode::OK, "another address");
    assert_eq!(call("nonsense", "192.0.2.77").await?.status(), StatusCode::UNAUTHORIZED);
    // A token that was checked a moment ago is known, wherever it comes from.
    assert_eq!(call(&acme.alice, "192.0.2.66").await?.status(), StatusCode::OK, "a known token behind the same proxy");
    eventually("the address is let in again", SOON, async || {
        let status = call(&acme.bob, "192.0.2.66").await?.status();
        Ok(if status == StatusCode::OK { Ok(()) } else { Err(status.to_string()) })
    })
    .await?;
    let text = metrics(&replica).await?;
    assert!(text.contains("agentapi_requests_throttled_total{kind=\"address\",organization=\"\"}"), "{text}");
    // The audit log names the client, not the proxy.
    platform.pods.refuse(Some("this test needs no pods"));
    let api = replica.api(Some(&acme.alice))?;
    let create = api.request(Method::POST, "/v1/sessions").header("x-forwarded-for", "203.0.113.1, 192.0.2.77");
    api.send(create.json(&json!({"workspace": "main"}))).await?.expect(201)?;
    let audit = replica.api(Some(&acme.admin))?.get("/v1/audit?action=session.create").await?.expect(200)?;
    assert_eq!(audit["entries"][0]["sourceIp"], "192.0.2.77");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_has_so_many_event_streams_open_and_closing_one_makes_room() -> Result<()> {
    let (platform, _, acme) = Platform::with_acme(SESSION_POD).await?;
    let mut config = platform.config();
    config.user_event_streams = NonZeroU32::new(3).context("three")?;
    config.replicas = NonZeroU32::new(2).context("two")?;
    let replica = platform.replica_with(config).await?;
    let alice = replica.api(Some(&acme.alice))?;
    let id = running_in_main(&alice).await?;
    let open = async |api: &Api, what: &str| -> Result<Response> {
        Ok(api.request(Method::GET, &format!("/v1/sessions/{id}/{what}")).send().await?)
    };
    // One of two replicas has half of three, rounded up; the terminal counts as the conversation does.
    let (first, screen) = (open(&alice, "events").await?, open(&alice, "screen").await?);
    assert_eq!((first.status(), screen.status()), (StatusCode::OK, StatusCode::OK));
    for what in ["events", "screen"] {
        let refused = open(&alice, what).await?;
        assert_eq!((refused.status(), header(&refused, "retry-after")), (StatusCode::TOO_MANY_REQUESTS, "5"), "{what}");
        assert_eq!(header(&refused, "content-type"), "application/problem+json");
        let problem: Value = refused.json().await?;
        assert!(problem["type"].as_str().is_some_and(|kind| kind.ends_with("/too-many-streams")), "{problem}");
        assert_eq!(problem["limit"], 2, "{problem}");
    }
    let counted =
        format!("agentapi_requests_throttled_total{{kind=\"streams\",organization=\"{}\"}} 2", acme.organization.slug);
    assert!(metrics(&replica).await?.contains(&counted));
    assert_eq!(alice.get(&format!("/v1/sessions/{id}/status")).await?.status, 200, "only streams are counted");
    assert_eq!(open(&replica.api(Some(&acme.admin))?, "events").await?.status(), StatusCode::OK, "another user");

    // A client that goes, and a stream that ends with its session, make room.
    drop(first);
    let again = eventually("room", SOON, async || {
        let opened = open(&alice, "events").await?;
        Ok(if opened.status() == StatusCode::OK { Ok(opened) } else { Err(opened.status().to_string()) })
    })
    .await?;
    assert_eq!(open(&alice, "events").await?.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(alice.delete(&format!("/v1/sessions/{id}")).await?.status, 204);
    drop((again.text().await, screen.text().await));
    let other = running_in_main(&alice).await?;
    let path = format!("/v1/sessions/{other}/events");
    let mut streams = Vec::new();
    for _ in 0..2 {
        let stream = eventually("room", SOON, async || {
            let opened = alice.request(Method::GET, &path).send().await?;
            Ok(if opened.status() == StatusCode::OK { Ok(opened) } else { Err(opened.status().to_string()) })
        });
        streams.push(stream.await?);
    }
    Ok(())
}
