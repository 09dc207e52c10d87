//! Sessions that lose their pod, or the replica that is at work on them, go on where they were: real Postgres, real session
//! hosts.

use agentapi_tests::cluster::eventually;
use agentapi_tests::serve::policies::audit;
use agentapi_tests::serve::steps::{SOON, phase, running_in_main};
use agentapi_tests::serve::suspend::{SUSPEND, goes_on, platform, suspended, told};
use agentapi_tests::serve::{Platform, Replica, Tenant};
use agentapi_tests::talk::Talk;
use anyhow::Result;
use axum::Router;
use axum::http::StatusCode;
use axum::routing::post;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const SESSION_POD: &str = env!("CARGO_BIN_EXE_session-pod");

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_pod_dies_goes_on_in_another_one() -> Result<()> {
    let (platform, replica, acme) = platform(SESSION_POD).await?;
    let api = replica.api(Some(&acme.alice))?;
    platform.workspace(&acme, r#"{"suspend": {"idleAfter": "1h"}}"#).await?;
    let talk = told(&api).await?;
    let id = talk.id.clone();
    let state = platform.pods.folder(id.parse()?)?.join("state/state.json");
    eventually("the answer is on the volume", SOON, async || {
        let text = std::fs::read_to_string(&state).unwrap_or_default();
        Ok(if text.contains("You said: the word is sesame") { Ok(()) } else { Err(text) })
    })
    .await?;
    assert!(platform.pods.kill_9(id.parse()?));
    phase(&api, &id, "Suspended").await?;
    goes_on(&talk).await?;
    let suspends = audit(&replica, &acme.admin, &format!("targetId={id}&action=session.suspend")).await?;
    assert!(suspends[0]["detail"]["reason"].as_str().is_some_and(|why| why.contains("pod ended")), "{suspends:?}");
    // Somebody drains its node: the pod says so before it is gone, or everything would go with it.
    assert!(platform.pods.evict(id.parse()?));
    phase(&api, &id, "Suspended").await?;
    let messages = talk.ask("once more", "You said: once more").await?;
    assert!(json!(messages).to_string().contains("You said: and now"), "{messages:?}");
    // What it holds is lost with the pod: so is the session.
    platform.pods.keep_nothing(true);
    let id = running_in_main(&api).await?;
    assert!(platform.pods.evict(id.parse()?));
    let failed = phase(&api, &id, "Failed").await?;
    assert_eq!(failed["error"], "the session's pod was deleted by somebody else");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_ends_says_so_until_it_is_heard() -> Result<()> {
    let (platform, replica, acme) = platform(SESSION_POD).await?;
    let api = replica.api(Some(&acme.alice))?;
    let calls = Arc::new(AtomicUsize::new(0));
    let heard = Arc::clone(&calls);
    let ending = async move || match heard.fetch_add(1, Ordering::SeqCst) {
        0 => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::NO_CONTENT,
    };
    let app = Router::new().route("/internal/v1/sessions/{id}/ending", post(ending));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    platform.pods.set_internal_api(listener.local_addr()?);
    tokio::spawn(async move { axum::serve(listener, app).await });
    let id = running_in_main(&api).await?;
    // Nor does the replica see for itself what happens to the pod.
    platform.pods.set_away(true);
    assert!(platform.pods.evict(id.parse()?));
    eventually("it says so twice", SOON, async || {
        let said = calls.load(Ordering::SeqCst);
        Ok(if said >= 2 { Ok(()) } else { Err(format!("{said} times")) })
    })
    .await
}

/// Two replicas, the first of which is at work on a session that was told a word.
struct Crash {
    platform: Platform,
    one: Replica,
    two: Replica,
    acme: Tenant,
}

impl Crash {
    async fn new() -> Result<Self> {
        let (platform, one, acme) = platform(SESSION_POD).await?;
        // The first leads before there is a second.
        let id = running_in_main(&one.api(Some(&acme.alice))?).await?;
        one.api(Some(&acme.alice))?.delete(&format!("/v1/sessions/{id}")).await?;
        let two = platform.replica().await?;
        Ok(Self { platform, one, two, acme })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_while_it_is_suspended_loses_nothing() -> Result<()> {
    let Crash { platform, one, two, acme } = Crash::new().await?;
    let api = one.api(Some(&acme.alice))?;
    platform.workspace(&acme, "{}").await?;
    let ids = [told(&api).await?.id, told(&api).await?.id];
    platform.pods.set_stalled(true);
    platform.workspace(&acme, SUSPEND).await?;
    for id in &ids {
        phase(&api, id, "Suspending").await?;
    }
    one.crash();
    // The second pod dies as well, before anybody asked it to end.
    assert!(platform.pods.kill_9(ids[1].parse()?));
    platform.pods.set_stalled(false);
    let api = two.api(Some(&acme.alice))?;
    for id in &ids {
        phase(&api, id, "Suspended").await?;
        goes_on(&Talk::of(&api, id, SOON)).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_before_it_has_a_pod_again_leaves_it_suspended() -> Result<()> {
    let Crash { platform, one, two, acme } = Crash::new().await?;
    let api = one.api(Some(&acme.alice))?;
    let talk = suspended(&api).await?;
    let id = talk.id.clone();
    platform.pods.set_stalled(true);
    let sent = tokio::spawn(async move { talk.say("lost").await });
    phase(&api, &id, "Starting").await?;
    one.crash();
    platform.pods.set_stalled(false);
    assert!(sent.await?.is_err(), "its server is gone");
    let api = two.api(Some(&acme.alice))?;
    let asleep = phase(&api, &id, "Suspended").await?;
    assert!(asleep["error"].as_str().is_some_and(|error| error.contains("the next message wakes it")), "{asleep}");
    goes_on(&Talk::of(&api, &id, SOON)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_while_its_agent_starts_is_made_good_by_the_other() -> Result<()> {
    let Crash { platform, one, two, acme } = Crash::new().await?;
    let api = one.api(Some(&acme.alice))?;
    let talk = suspended(&api).await?;
    let id = talk.id.clone();
    let sent = tokio::spawn(async move { talk.say("lost").await });
    eventually("a pod", SOON, async || {
        Ok(platform.pods.of(id.parse()?).map(|_| ()).map_err(|error| error.to_string()))
    })
    .await?;
    one.crash();
    let api = two.api(Some(&acme.alice))?;
    phase(&api, &id, "Running").await?;
    if sent.await?.is_ok_and(|answer| answer.status == 200) {
        return Ok(());
    }
    goes_on(&Talk::of(&api, &id, SOON)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_younger_than_the_list_of_pods_goes_on() -> Result<()> {
    let (platform, replica, acme) = Platform::with_acme(SESSION_POD).await?;
    let api = replica.api(Some(&acme.alice))?;
    let held = platform.pods.hold_lists().await;
    platform.pods.listed(1).await?;
    let id = running_in_main(&api).await?;
    drop(held);
    // The second look in the round with the old list, and two rounds after it.
    platform.pods.listed(4).await?;
    let session = api.get(&format!("/v1/sessions/{id}")).await?.expect(200)?;
    assert_eq!(session["phase"], "Running", "{session}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fence_that_is_down_ends_no_session() -> Result<()> {
    let (platform, replica, acme) = Platform::with_acme(SESSION_POD).await?;
    let talk = told(&replica.api(Some(&acme.alice))?).await?;
    // Of no role that the runtime has: its queries find nothing.
    for (policy, roles) in [
        ("sessions_read on sessions", "agentapi_tenant"),
        ("workspaces_read on workspaces", "agentapi_tenant, agentapi_tenant_ro"),
    ] {
        platform.db.admin(&format!("alter policy {policy} to agentapi_owner")).await?;
        // A pod without a session stays for two rounds.
        platform.pods.listed(7).await?;
        platform.db.admin(&format!("alter policy {policy} to {roles}")).await?;
    }
    goes_on(&talk).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_was_given_up_since_the_list_is_not_given_up_again() -> Result<()> {
    let (platform, replica, acme) = Platform::with_acme(SESSION_POD).await?;
    let api = replica.api(Some(&acme.alice))?;
    let id = told(&api).await?.id;
    platform.pods.set_stalled(true);
    platform.workspace(&acme, SUSPEND).await?;
    phase(&api, &id, "Suspending").await?;
    let held = platform.pods.hold_lists().await;
    platform.pods.listed(1).await?;
    platform.pods.set_stalled(false);
    phase(&api, &id, "Suspended").await?;
    let changed = format!("select updated_at::text from sessions where id = '{id}'");
    let before: String = platform.db.scalar(&changed).await?;
    drop(held);
    // Two rounds after the one with the old list and another look.
    platform.pods.listed(4).await?;
    assert_eq!(platform.db.scalar::<String>(&changed).await?, before);
    Ok(())
}
