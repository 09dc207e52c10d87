//! The signing key is exchanged under a running session: the runtime takes it from the mounted files without a restart,
//! the session's pod learns it, no request fails, and what the retired key signed opens nothing any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use agentapi_crds::names;
use agentapi_runtime::auth::session_token::{SessionClaims, SessionTokens};
use agentapi_runtime::pods::{Pod, PodBackend};
use agentapi_tests::api::Api;
use agentapi_tests::cluster::eventually;
use agentapi_tests::serve::steps::running_in_main;
use agentapi_tests::serve::{Platform, idp, pem};
use anyhow::{Context, Result, ensure};
use reqwest::Method;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use uuid::Uuid;

const SESSION_POD: &str = env!("CARGO_BIN_EXE_session-pod");
const SOON: Duration = Duration::from_secs(60);

async fn pod(platform: &Platform, slug: &str) -> Result<Pod> {
    Ok(platform.pods.of_sessions(slug).await?.first().context("no pod")?.1.clone())
}

/// Waits until the pod's note says which keys it knows and which one signed its token.
async fn noted(platform: &Platform, slug: &str, keys: &[&str], token_key: &str) -> Result<()> {
    let wanted = (names::signing_key_ids(keys.iter().copied()), names::signing_key_id(token_key).to_owned());
    eventually("the pod has the keys", SOON, async || {
        let pod = pod(platform, slug).await?;
        let seen = (pod.known_keys, pod.token_key);
        Ok(if seen == wanted { Ok(()) } else { Err(format!("{seen:?} instead of {wanted:?}")) })
    })
    .await
}

async fn say(api: &Api, id: &str, text: &str) -> Result<()> {
    let said = json!({"content": text, "type": "user"});
    eventually("the agent takes a message", SOON, async || {
        let answer = api.post(&format!("/v1/sessions/{id}/message"), &said).await?;
        Ok(if answer.status == 200 { Ok(()) } else { Err(answer.body.to_string()) })
    })
    .await?;
    eventually("the agent's answer", SOON, async || {
        let messages = api.get(&format!("/v1/sessions/{id}/messages")).await?.expect(200)?;
        let answered = messages["messages"].as_array().into_iter().flatten().any(|message| {
            message["role"] == "agent" && message["content"].as_str().is_some_and(|content| content.contains(text))
        });
        Ok(if answered { Ok(()) } else { Err(messages.to_string()) })
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_lives_through_a_rotation_of_the_signing_key() -> Result<()> {
    let platform = Platform::start(SESSION_POD).await?;
    let replica = platform.replica().await?;
    let acme = platform.tenant("acme").await?;
    let slug = acme.organization.slug.as_str();
    let api = replica.api(Some(&acme.alice))?;
    let create = api.request(Method::POST, "/v1/sessions").header("prefer", "wait=30");
    let session = api.send(create.json(&json!({"workspace": "main"}))).await?.expect(201)?;
    let id = session["id"].as_str().context("no id")?.to_owned();
    say(&api, &id, "before").await?;

    let old = SessionTokens::from_file(&platform.config().session_signing_key_file)?;
    let (next_private, next_x) = idp::ed25519()?;
    let next = SessionTokens::from_pem(&pem(&next_private))?;
    let old_x = old.public_x();

    // Somebody is at it all the time.
    let stop = Arc::new(AtomicBool::new(false));
    let client = tokio::spawn({
        let (api, id, stop) = (api.clone(), id.clone(), Arc::clone(&stop));
        async move {
            let (mut failures, mut answered) = (Vec::new(), 0_u32);
            while !stop.load(Ordering::Relaxed) {
                match api.get(&format!("/v1/sessions/{id}/status")).await {
                    Ok(answer) if answer.status == 200 => answered += 1,
                    Ok(answer) => failures.push(answer.body.to_string()),
                    Err(error) => failures.push(format!("{error:#}")),
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            (failures, answered)
        }
    });

    // Offered, promoted, retired: what the operator writes into the Secret, step by step.
    platform.file(names::KEY_SIGNING_NEXT_PUBLIC, &next_x)?;
    noted(&platform, slug, &[&old_x, &next_x], &old_x).await?;
    let session_id: Uuid = id.parse()?;
    let ip = pod(&platform, slug).await?.ip().context("no ip")?.to_owned();
    let direct = async |tokens: &SessionTokens| -> Result<u16> {
        let token = tokens.for_pod(session_id, &pod(&platform, slug).await?.name)?;
        Ok(Api::new(&format!("http://{ip}:{}", names::SESSION_PORT), Some(token))?
            .get("/status")
            .await?
            .status
            .as_u16())
    };
    ensure!(direct(&next).await? == 200, "the pod does not know the next key");
    platform.file(names::KEY_SIGNING_PREVIOUS_PUBLIC, &old_x)?;
    platform.file(names::KEY_SIGNING_PRIVATE, &pem(&next_private))?;
    std::fs::remove_file(platform.file(names::KEY_SIGNING_NEXT_PUBLIC, "")?)?;
    noted(&platform, slug, &[&old_x, &next_x], &next_x).await?;
    ensure!(direct(&old).await? == 200, "a replica that lags behind is locked out");
    std::fs::remove_file(platform.file(names::KEY_SIGNING_PREVIOUS_PUBLIC, "")?)?;
    noted(&platform, slug, &[&next_x], &next_x).await?;

    say(&api, &id, "after").await?;
    stop.store(true, Ordering::Relaxed);
    let (failures, answered) = client.await?;
    ensure!(failures.is_empty(), "{} of {answered} failed: {failures:?}", failures.len());
    ensure!(answered > 50, "only {answered} requests");

    // The retired key opens neither the pod nor the runtime.
    ensure!(direct(&old).await? == 401, "the pod takes a token of the retired key");
    let claims = SessionClaims { sub: session_id, org: slug.to_owned(), ws: "main".to_owned(), pod: String::new() };
    let push = async |tokens: &SessionTokens| -> Result<u16> {
        let token = tokens.for_session(&claims)?.expose_secret().to_owned();
        let internal = Api::new(&format!("http://{}", replica.addresses.internal), Some(token))?;
        let request = internal.request(Method::PUT, &format!("/internal/v1/sessions/{id}/messages"));
        Ok(internal.send(request.json(&json!({"messages": []}))).await?.status.as_u16())
    };
    ensure!(push(&old).await? == 401, "the runtime takes a token of the retired key");

    // The transcript of the time after the rotation came through: the pod pushes with a token of the new key.
    ensure!(api.delete(&format!("/v1/sessions/{id}")).await?.status == 204);
    eventually("the transcript outlives the pod", SOON, async || {
        let messages: Value = api.get(&format!("/v1/sessions/{id}/messages")).await?.body;
        Ok(if messages.to_string().contains("after") { Ok(()) } else { Err(messages.to_string()) })
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_do_not_answer_keep_nobody_else_from_the_keys() -> Result<()> {
    const FROZEN: usize = 4;
    let platform = Platform::start(SESSION_POD).await?;
    let replica = platform.replica().await?;
    let (acme, globex) = (platform.tenant("acme").await?, platform.tenant("globex").await?);
    for _ in 0..FROZEN {
        let session = running_in_main(&replica.api(Some(&acme.alice))?).await?;
        ensure!(platform.pods.freeze(session.parse()?), "no pod");
    }
    running_in_main(&replica.api(Some(&globex.alice))?).await?;
    let slug = globex.organization.slug.as_str();
    let old = SessionTokens::from_file(&platform.config().session_signing_key_file)?.public_x();
    let (next_private, next) = idp::ed25519()?;
    // Each of the frozen pods is waited for for ten seconds. Twice, since nobody knows whose turn is first.
    let began = Instant::now();
    platform.file(names::KEY_SIGNING_NEXT_PUBLIC, &next)?;
    noted(&platform, slug, &[&old, &next], &old).await?;
    platform.file(names::KEY_SIGNING_PREVIOUS_PUBLIC, &old)?;
    platform.file(names::KEY_SIGNING_PRIVATE, &pem(&next_private))?;
    std::fs::remove_file(platform.file(names::KEY_SIGNING_NEXT_PUBLIC, "")?)?;
    noted(&platform, slug, &[&old, &next], &next).await?;
    ensure!(began.elapsed() < Duration::from_secs(60), "it took {:?}", began.elapsed());
    // What was sent to the others may have come or not: their notes say nothing.
    eventually("the notes are gone", SOON, async || {
        let pods = platform.pods.of_sessions(&acme.organization.slug).await?;
        let notes: Vec<_> = pods.into_iter().map(|(_, pod)| (pod.known_keys, pod.token_key)).collect();
        let none = notes.len() == FROZEN && notes.iter().all(|(keys, token)| keys.is_empty() && token.is_empty());
        Ok(if none { Ok(()) } else { Err(format!("{notes:?}")) })
    })
    .await
}
