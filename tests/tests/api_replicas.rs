//! Two replicas and nothing in memory that matters: one may crash, restart or shut down at any moment.

use std::time::Duration;

use agentapi_tests::cluster::eventually;
use agentapi_tests::serve::steps::{SOON, id_of, phase};
use agentapi_tests::serve::{Platform, Tenant};
use anyhow::{Context, Result};
use futures::StreamExt;
use reqwest::Method;
use serde_json::json;

const SESSION_POD: &str = env!("CARGO_BIN_EXE_session-pod");

async fn platform() -> Result<(Platform, Tenant)> {
    let platform = Platform::start(SESSION_POD).await?;
    let tenant = platform.tenant("acme").await?;
    Ok((platform, tenant))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_of_one_replica_works_through_the_other() -> Result<()> {
    let (platform, tenant) = platform().await?;
    let (one, two) = (platform.replica().await?, platform.replica().await?);
    let api = one.api(Some(&tenant.alice))?;
    let id = id_of(&api.post("/v1/sessions", &json!({"workspace": "main"})).await?.expect(201)?)?;
    let other = two.api(Some(&tenant.alice))?;
    phase(&other, &id, "Running").await?;
    other.stable(&id, SOON).await?;
    one.stop().await?;
    let message = json!({"content": "hello", "type": "user"});
    other.post(&format!("/v1/sessions/{id}/message"), &message).await?.expect(200)?;
    assert_eq!(other.delete(&format!("/v1/sessions/{id}")).await?.status, 204);
    phase(&other, &id, "Ended").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_replica_crashed_while_it_started_is_finished_by_the_other() -> Result<()> {
    let (platform, tenant) = platform().await?;
    let (one, two) = (platform.replica().await?, platform.replica().await?);
    let api = one.api(Some(&tenant.alice))?;
    let other = two.api(Some(&tenant.alice))?;
    let id = id_of(&api.post("/v1/sessions", &json!({"workspace": "main"})).await?.expect(201)?)?;
    // The agent needs two seconds of a quiet screen to be ready: the replica goes away in between.
    phase(&other, &id, "Starting").await?;
    one.crash();
    phase(&other, &id, "Running").await?;
    other.stable(&id, SOON).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_replica_crashed_before_it_had_a_pod_fails_with_a_reason() -> Result<()> {
    let (platform, tenant) = platform().await?;
    let (one, two) = (platform.replica().await?, platform.replica().await?);
    platform.pods.set_away(true);
    let api = one.api(Some(&tenant.alice))?;
    let id = id_of(&api.post("/v1/sessions", &json!({"workspace": "main"})).await?.expect(201)?)?;
    one.crash();
    platform.pods.set_away(false);
    let failed = phase(&two.api(Some(&tenant.alice))?, &id, "Failed").await?;
    assert!(failed["error"].as_str().is_some_and(|error| error.contains("create another")), "{failed}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_replica_crashed_while_it_ended_is_ended_by_the_other() -> Result<()> {
    let (platform, tenant) = platform().await?;
    let (one, two) = (platform.replica().await?, platform.replica().await?);
    let api = one.api(Some(&tenant.alice))?;
    let create = api.request(Method::POST, "/v1/sessions").header("prefer", "wait=30");
    let id = id_of(&api.send(create.json(&json!({"workspace": "main"}))).await?.expect(201)?)?;
    platform.pods.set_away(true);
    assert_eq!(api.delete(&format!("/v1/sessions/{id}")).await?.status, 204);
    one.crash();
    platform.pods.set_away(false);
    phase(&two.api(Some(&tenant.alice))?, &id, "Ended").await?;
    assert_eq!(platform.pods.count(), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn only_one_replica_leads_and_the_next_takes_over() -> Result<()> {
    let (platform, _tenant) = platform().await?;
    let (one, two) = (platform.replica().await?, platform.replica().await?);
    let leads = async |address: std::net::SocketAddr| -> Result<bool> {
        let client = agentapi_tests::api::Api::new(&format!("http://{address}"), None)?;
        let text = client.get("/metrics").await?.body.as_str().unwrap_or_default().to_owned();
        Ok(text.lines().any(|line| line == "agentapi_session_reconciler_leader 1"))
    };
    let (first, second) = (one.addresses.metrics, two.addresses.metrics);
    eventually("one leads", SOON, async || {
        let count = u8::from(leads(first).await?) + u8::from(leads(second).await?);
        Ok(if count == 1 { Ok(()) } else { Err(count.to_string()) })
    })
    .await?;
    let (leader, left) = if leads(first).await? { (one, second) } else { (two, first) };
    leader.crash();
    eventually("the other leads", SOON, async || Ok(if leads(left).await? { Ok(()) } else { Err(String::new()) })).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_shuts_down_says_so_and_ends_streams_cleanly() -> Result<()> {
    let (platform, tenant) = platform().await?;
    let mut config = platform.config();
    config.shutdown_delay_seconds = 8;
    let (one, two) = (platform.replica_with(config).await?, platform.replica().await?);
    let api = one.api(Some(&tenant.alice))?;
    let create = api.request(Method::POST, "/v1/sessions").header("prefer", "wait=30");
    let id = id_of(&api.send(create.json(&json!({"workspace": "main"}))).await?.expect(201)?)?;
    let path = format!("/v1/sessions/{id}/events");
    let mut stream = api.request(Method::GET, &path).send().await?.error_for_status()?.bytes_stream();
    assert!(stream.next().await.is_some_and(|chunk| chunk.is_ok()));

    one.begin_stop();
    eventually("/ready is 503 while it still serves", Duration::from_secs(8), async || {
        let answer = one.api(None)?.get("/ready").await?;
        Ok(if answer.status == 503 { Ok(()) } else { Err(answer.status.to_string()) })
    })
    .await?;
    // Whoever asks on the connection that it has is told to make another one, which goes to another replica.
    let answer = api.request(Method::GET, &format!("/v1/sessions/{id}")).send().await?.error_for_status()?;
    assert_eq!(answer.headers().get("connection").and_then(|it| it.to_str().ok()), Some("close"));
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(SOON, async {
        while let Some(Ok(chunk)) = stream.next().await {
            rest.extend_from_slice(&chunk);
        }
    });
    ended.await.context("the stream did not end")?;
    assert!(String::from_utf8_lossy(&rest).contains("retry: 200"), "{}", String::from_utf8_lossy(&rest));
    one.stop().await?;
    // The client comes back to another replica.
    assert!(two.api(Some(&tenant.alice))?.events(&path, None).await?.recv().await.is_some());
    Ok(())
}
