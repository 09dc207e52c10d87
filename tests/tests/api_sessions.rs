//! Sessions from request to transcript: real Postgres, real session host processes as pods.

use agentapi_tests::api::{Api, Event};
use agentapi_tests::cluster::eventually;
use agentapi_tests::serve::Platform;
use agentapi_tests::serve::steps::{SOON, id_of, phase, running};
use anyhow::{Context, Result};
use reqwest::Method;
use serde_json::json;
use tokio::sync::mpsc;
use uuid::Uuid;

const SESSION_POD: &str = env!("CARGO_BIN_EXE_session-pod");

/// Sends a message and waits for the agent's answer to it.
async fn ask(api: &Api, id: &str, content: &str, answer: &str) -> Result<()> {
    let message = json!({"content": content, "type": "user"});
    api.stable(id, SOON).await?;
    api.post(&format!("/v1/sessions/{id}/message"), &message).await?.expect(200)?;
    eventually("the agent's answer", SOON, async || {
        let body = api.get(&format!("/v1/sessions/{id}/messages")).await?.expect(200)?;
        let answered = body["messages"].as_array().is_some_and(|messages| {
            messages
                .iter()
                .any(|it| it["role"] == "agent" && it["content"].as_str().is_some_and(|c| c.contains(answer)))
        });
        Ok(if answered { Ok(()) } else { Err(body.to_string()) })
    })
    .await
}

/// Events up to and with the first of this kind.
async fn until(events: &mut mpsc::Receiver<Event>, last: impl Fn(&Event) -> bool) -> Result<Vec<Event>> {
    let mut seen = Vec::new();
    loop {
        let next = tokio::time::timeout(SOON, events.recv()).await;
        seen.push(next.with_context(|| format!("not among {seen:?}"))?.context("the stream ended")?);
        if seen.last().is_some_and(&last) {
            return Ok(seen);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_lives_from_creation_to_its_transcript() -> Result<()> {
    let (platform, replica, tenant) = Platform::with_acme(SESSION_POD).await?;
    let api = replica.api(Some(&tenant.alice))?;
    let created = api
        .send(
            api.request(Method::POST, "/v1/sessions")
                .json(&json!({"workspace": "main", "env": {"AGENT_NAME": "Ada", "SECRET_WORD": "hunter2"}})),
        )
        .await?
        .expect(201)?;
    let id = id_of(&created)?;
    assert_eq!(id.parse::<Uuid>()?.get_version_num(), 7);
    assert_eq!(created["workspace"], "main");
    assert_eq!(created["links"]["events"], format!("/v1/sessions/{id}/events"));
    assert!(created["createdAt"].as_str().is_some_and(|time| time.parse::<jiff::Timestamp>().is_ok()), "{created}");

    // Messages wait for a session that is about to be ready, so no polling is needed here.
    ask(&api, &id, "hello there", "You said: hello there").await?;
    ask(&api, &id, "env SECRET_WORD", "SECRET_WORD=hunter2").await?;
    let status = api.get(&format!("/v1/sessions/{id}/status")).await?.expect(200)?;
    assert_eq!((&status["agent_type"], &status["transport"]), (&json!("custom"), &json!("pty")));

    let form = reqwest::multipart::Form::new()
        .part("file", reqwest::multipart::Part::bytes(b"file content 42".to_vec()).file_name("note.txt"));
    let upload = api.request(Method::POST, &format!("/v1/sessions/{id}/upload")).multipart(form);
    let uploaded = api.send(upload).await?.expect(200)?;
    let path = uploaded["filePath"].as_str().context("no filePath")?;
    ask(&api, &id, &format!("read {path}"), "file content 42").await?;

    assert_eq!(api.delete(&format!("/v1/sessions/{id}")).await?.status, 204);
    assert_eq!(api.delete(&format!("/v1/sessions/{id}")).await?.status, 204, "deleting again is fine");
    let ended = phase(&api, &id, "Ended").await?;
    assert!(ended["endedAt"].is_string());
    assert_eq!(platform.pods.count(), 0, "the pod is gone");
    assert_eq!(api.delete(&format!("/v1/sessions/{id}")).await?.status, 204, "also after the end");

    let transcript = api.get(&format!("/v1/sessions/{id}/messages")).await?.expect(200)?.to_string();
    assert!(transcript.contains("You said: hello there") && transcript.contains("file content 42"), "{transcript}");
    let status = api.get(&format!("/v1/sessions/{id}/status")).await?;
    assert_eq!((status.status.as_u16(), status.problem()), (409, "session-over"));
    let message = json!({"content": "still there?", "type": "user"});
    let message = api.post(&format!("/v1/sessions/{id}/message"), &message).await?;
    assert_eq!((message.status.as_u16(), message.problem()), (409, "session-over"));

    let audit = replica.api(Some(&tenant.admin))?.get(&format!("/v1/audit?targetId={id}")).await?.expect(200)?;
    let actions: Vec<_> = audit["entries"].as_array().into_iter().flatten().map(|it| it["action"].clone()).collect();
    assert_eq!(actions.iter().filter(|action| *action == "session.message").count(), 3);
    assert_eq!(actions.iter().filter(|action| *action == "session.upload").count(), 1);
    assert_eq!((actions.len(), &actions[0], &actions[5]), (6, &json!("session.delete"), &json!("session.create")));
    let created = &audit["entries"][5];
    assert_eq!(created["actor"], format!("user:{}", tenant.organization.alice.subject));
    assert_eq!(created["sourceIp"], "127.0.0.1");
    assert!(!audit.to_string().contains("hunter2"), "an environment value is in the audit log");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warm_pod_is_taken_with_environment_and_prompt() -> Result<()> {
    let (platform, replica, tenant) = Platform::with_acme(SESSION_POD).await?;
    let pod = platform.pods.warm(&tenant.organization.slug, "main")?;
    let api = replica.api(Some(&tenant.alice))?;
    let id = running(&api, json!({"workspace": "main", "env": {"AGENT_NAME": "Eve"}, "prompt": "first words"})).await?;
    assert_eq!(platform.pods.count(), 1, "no second pod next to {pod}");
    eventually("the prompt is answered", SOON, async || {
        let body = api.get(&format!("/v1/sessions/{id}/messages")).await?.expect(200)?.to_string();
        let done = body.contains("I am Eve") && body.contains("You said: first words");
        Ok(if done { Ok(()) } else { Err(body) })
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn events_resume_where_they_were_left() -> Result<()> {
    let (_platform, replica, tenant) = Platform::with_acme(SESSION_POD).await?;
    let api = replica.api(Some(&tenant.alice))?;
    let id = running(&api, json!({"workspace": "main"})).await?;
    let path = format!("/v1/sessions/{id}/events");
    api.stable(&id, SOON).await?;

    let mut events = api.events(&path, None).await?;
    let begun = until(&mut events, |event| event.name == "status_change").await?;
    let names: Vec<&str> = begun.iter().map(|event| event.name.as_str()).collect();
    assert!(names.contains(&"message_update"), "{names:?}");
    let last = begun.last().map(|event| event.id.clone()).unwrap_or_default();
    assert!(!last.is_empty(), "events carry ids");
    drop(events);

    ask(&api, &id, "while nobody watched", "You said: while nobody watched").await?;
    let mut resumed = api.events(&path, Some(&last)).await?;
    let seen = until(&mut resumed, |event| event.data.to_string().contains("You said: while nobody watched")).await?;
    assert!(
        !seen.iter().any(|it| it.name == "message_update" && it.data["id"] == 0),
        "what was seen before the pause is not sent again: {seen:?}"
    );
    let screen = api.events(&format!("/v1/sessions/{id}/screen"), None).await?.recv().await;
    assert!(screen.is_some_and(|it| it.name == "screen"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_have_pages_filters_and_only_ones_own() -> Result<()> {
    let (platform, replica, tenant) = Platform::with_acme(SESSION_POD).await?;
    platform.pods.refuse(Some("this test needs no pods"));
    let (alice, bob) = (replica.api(Some(&tenant.alice))?, replica.api(Some(&tenant.bob))?);
    let mut made = Vec::new();
    for _ in 0..5 {
        let id = id_of(&alice.post("/v1/sessions", &json!({"workspace": "main"})).await?.expect(201)?)?;
        phase(&alice, &id, "Failed").await?;
        made.push(id);
    }
    let of_bob = id_of(&bob.post("/v1/sessions", &json!({"workspace": "main"})).await?.expect(201)?)?;
    let failed = phase(&bob, &of_bob, "Failed").await?;
    assert_eq!(failed["error"], "this test needs no pods");

    let mut listed = Vec::new();
    let mut path = "/v1/sessions?limit=2".to_owned();
    loop {
        let page = alice.get(&path).await?.expect(200)?;
        let sessions = page["sessions"].as_array().cloned().unwrap_or_default();
        assert!(sessions.len() <= 2);
        for session in &sessions {
            listed.push(id_of(session)?);
        }
        let Some(cursor) = page["nextCursor"].as_str() else { break };
        path = format!("/v1/sessions?limit=2&cursor={cursor}");
    }
    made.reverse();
    assert_eq!(listed, made, "newest first, each once, none of Bob's");

    let count = async |api: &Api, query: &str| -> Result<usize> {
        let page = api.get(&format!("/v1/sessions{query}")).await?.expect(200)?;
        Ok(page["sessions"].as_array().map_or(0, Vec::len))
    };
    assert_eq!(count(&replica.api(Some(&tenant.admin))?, "").await?, 6, "admins see all of the organization");
    assert_eq!(count(&alice, "?phase=Failed&workspace=main").await?, 5);
    assert_eq!(count(&alice, "?phase=Running").await?, 0);
    assert_eq!(count(&alice, "?workspace=other").await?, 0);
    for bad in ["?limit=0", "?limit=201", "?limit=x", "?phase=Odd", "?cursor=@@", "?cursor=AAAA", "?nope=1"] {
        let answer = alice.get(&format!("/v1/sessions{bad}")).await?;
        assert_eq!((answer.status.as_u16(), answer.problem()), (400, "bad-request"), "{bad}: {}", answer.body);
    }
    // Within an organization, too, somebody else's session does not exist.
    assert_eq!(alice.get(&format!("/v1/sessions/{of_bob}")).await?.status, 404);
    assert_eq!(alice.delete(&format!("/v1/sessions/{of_bob}")).await?.status, 404);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_pod_is_503_and_then_a_failed_session() -> Result<()> {
    let (platform, replica, tenant) = Platform::with_acme(SESSION_POD).await?;
    let api = replica.api(Some(&tenant.alice))?;
    let id = running(&api, json!({"workspace": "main"})).await?;
    ask(&api, &id, "remember me", "You said: remember me").await?;
    eventually("the transcript is in the database", SOON, async || {
        let mut connection = platform.db.connect(&platform.db.admin_url()).await?;
        let count: i64 =
            sqlx::query_scalar("select count(*) from messages where content like '%You said: remember me%'")
                .fetch_one(&mut connection)
                .await?;
        Ok(if count > 0 { Ok(()) } else { Err("nothing yet") }.map_err(str::to_owned))
    })
    .await?;
    assert!(platform.pods.kill(id.parse()?));
    let status = api.get(&format!("/v1/sessions/{id}/status")).await?;
    assert!(matches!(status.problem(), "session-unreachable" | "session-over"), "{} {}", status.status, status.body);
    let failed = phase(&api, &id, "Failed").await?;
    assert!(failed["error"].as_str().is_some_and(|error| error.contains("pod")), "{failed}");
    let transcript = api.get(&format!("/v1/sessions/{id}/messages")).await?.expect(200)?.to_string();
    assert!(transcript.contains("remember me"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn prefer_wait_answers_when_the_agent_is_ready() -> Result<()> {
    let (_platform, replica, tenant) = Platform::with_acme(SESSION_POD).await?;
    let api = replica.api(Some(&tenant.alice))?;
    let request =
        api.request(Method::POST, "/v1/sessions").header("prefer", "wait=30").json(&json!({"workspace": "main"}));
    let created = api.send(request).await?.expect(201)?;
    assert_eq!(created["phase"], "Running");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_and_old_sessions_end() -> Result<()> {
    let (platform, replica, tenant) = Platform::with_acme(SESSION_POD).await?;
    let api = replica.api(Some(&tenant.alice))?;
    let id = running(&api, json!({"workspace": "main"})).await?;
    let organization = tenant.organization.id.to_string();
    let set = "update workspaces set spec = $2::jsonb where org_id = $1::uuid";
    platform.operator(set, &[&organization, r#"{"idleTimeout": "1h", "ttl": "2s"}"#]).await?;
    phase(&api, &id, "Ended").await?;
    platform.operator(set, &[&organization, r#"{"idleTimeout": "3s", "ttl": "1h"}"#]).await?;
    let id = running(&api, json!({"workspace": "main"})).await?;
    phase(&api, &id, "Ended").await?;
    let audit = replica.api(Some(&tenant.admin))?.get("/v1/audit?action=session.delete").await?.expect(200)?;
    let entries = audit["entries"].as_array().cloned().unwrap_or_default();
    let reasons: Vec<_> = entries.iter().map(|entry| entry["detail"]["reason"].clone()).collect();
    assert_eq!(reasons, ["idle", "ttl"]);
    assert_eq!(entries[0]["actor"], "system:sessions");
    Ok(())
}
