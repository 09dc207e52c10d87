//! Sessions that nobody uses give up their pods and go on where they were: real Postgres, real session hosts.

use std::time::Duration;

use agentapi_tests::api::{Answer, Api};
use agentapi_tests::cluster::eventually;
use agentapi_tests::serve::policies::audit;
use agentapi_tests::serve::steps::{SOON, phase, running, running_in_main};
use agentapi_tests::serve::{Platform, Replica, Tenant};
use anyhow::{Context, Result};
use reqwest::Method;
use serde_json::{Value, json};

const SESSION_POD: &str = env!("CARGO_BIN_EXE_session-pod");

/// What the operator writes of the Workspace `main`.
async fn workspace(platform: &Platform, tenant: &Tenant, spec: &str) -> Result<()> {
    let organization = tenant.organization.id.to_string();
    let set = "update workspaces set spec = $2::jsonb where org_id = $1::uuid";
    platform.operator(set, &[&organization, spec]).await?;
    Ok(())
}

const SUSPEND: &str = r#"{"suspend": {"idleAfter": "2s"}, "agent": {"transport": "Pty"}}"#;

async fn platform() -> Result<(Platform, Replica, Tenant)> {
    let (platform, replica, tenant) = Platform::with_acme(SESSION_POD).await?;
    workspace(&platform, &tenant, SUSPEND).await?;
    Ok((platform, replica, tenant))
}

async fn message(api: &Api, id: &str, content: &str) -> Result<Answer> {
    api.post(&format!("/v1/sessions/{id}/message"), &json!({"content": content, "type": "user"})).await
}

/// Reads do not wake, so this can wait for an answer of an agent that is suspended right after it.
async fn has_answered(api: &Api, id: &str, answer: &str) -> Result<Vec<Value>> {
    eventually("the agent's answer", SOON, async || {
        let body = api.get(&format!("/v1/sessions/{id}/messages")).await?.expect(200)?;
        let messages = body["messages"].as_array().cloned().unwrap_or_default();
        let there = messages
            .iter()
            .any(|it| it["role"] == "agent" && it["content"].as_str().is_some_and(|text| text.contains(answer)));
        Ok(if there { Ok(messages) } else { Err(body.to_string()) })
    })
    .await
}

async fn ask(api: &Api, id: &str, content: &str, answer: &str) -> Result<Vec<Value>> {
    eventually("the message is taken", SOON, async || {
        let sent = message(api, id, content).await?;
        // Right after a start the agent may be busy with itself.
        Ok(if sent.status == 409 && sent.problem() == "agent-busy" { Err("busy".to_owned()) } else { Ok(sent) })
    })
    .await?
    .expect(200)?;
    has_answered(api, id, answer).await
}

/// A session that was told a word, and is suspended.
async fn suspended(api: &Api) -> Result<String> {
    let id = running_in_main(api).await?;
    ask(api, &id, "the word is sesame", "You said: the word is sesame").await?;
    phase(api, &id, "Suspended").await?;
    Ok(id)
}

/// It goes on with what was said before, and nothing was said twice or lost.
async fn goes_on(api: &Api, id: &str) -> Result<()> {
    let messages = ask(api, id, "and now", "You said: and now").await?;
    let ids: Vec<_> = messages.iter().filter_map(|message| message["id"].as_u64()).collect();
    assert_eq!(ids, (0..messages.len() as u64).collect::<Vec<_>>());
    let users: Vec<_> = messages.iter().filter(|it| it["role"] == "user").map(|it| it["content"].clone()).collect();
    assert_eq!(users, ["the word is sesame", "and now"], "{messages:?}");
    assert!(json!(messages).to_string().contains("You said: the word is sesame"), "{messages:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_nobody_uses_is_suspended_and_a_message_wakes_it() -> Result<()> {
    let (platform, replica, acme) = platform().await?;
    let api = replica.api(Some(&acme.alice))?;
    platform.pods.warm(&acme.organization.slug, "main")?;
    let id = running(&api, json!({"workspace": "main", "env": {"SECRET_WORD": "hunter2"}})).await?;
    let path = format!("/v1/sessions/{id}");
    ask(&api, &id, "hello", "You said: hello").await?;
    let mut watched = api.events(&format!("{path}/events"), None).await?;
    let (pod, _) = platform.pods.of(id.parse()?)?;
    for folder in ["home", "workspace"] {
        std::fs::write(platform.pods.pod_folder(&pod).join(folder).join("note.txt"), format!("kept in {folder}"))?;
    }
    let asleep = phase(&api, &id, "Suspended").await?;
    assert_eq!((platform.pods.count(), &asleep["error"]), (0, &Value::Null), "{asleep}");
    let mut last = String::new();
    while let Some(event) = watched.recv().await {
        last = event.id;
    }
    assert!(!last.is_empty(), "the stream ended with the pod, and its events had ids");
    let claim = platform.pods.pod_folder(&pod).join("state/claim.json");
    assert!(!claim.exists(), "the environment is on the volume");

    // What clients ask all the time does not wake it.
    let status = api.get(&format!("{path}/status")).await?.expect(200)?;
    assert_eq!(status, json!({"status": "stable", "agent_type": "claude", "transport": "pty"}));
    assert!(api.get(&format!("{path}/messages")).await?.expect(200)?.to_string().contains("You said: hello"));
    let screen = api.get(&format!("{path}/screen")).await?;
    assert_eq!((screen.status.as_u16(), screen.problem()), (409, "session-suspended"), "{}", screen.body);
    let mut resumed = api.events(&format!("{path}/events"), Some(&last)).await?;
    let mut fresh = api.events(&format!("{path}/events"), None).await?;
    let mut names = Vec::new();
    for _ in 0..4 {
        let event = tokio::time::timeout(SOON, fresh.recv()).await?.context("the stream ended")?;
        assert_eq!(event.id, "", "there is no pod to come back to with an id");
        names.push(event.name);
    }
    assert_eq!(names, ["message_update", "message_update", "message_update", "status_change"]);
    let listed = api.get("/v1/sessions?phase=Suspended").await?.expect(200)?;
    assert_eq!(listed["sessions"].as_array().map(Vec::len), Some(1));
    // Nor does what is refused anyway.
    let bad = json!({"content": "x", "type": "odd"});
    assert_eq!(api.post(&format!("{path}/message"), &bad).await?.status, 422);
    let foreign = message(&replica.api(Some(&acme.bob))?, &id, "mine").await?;
    assert_eq!((foreign.status.as_u16(), foreign.problem()), (404, "session-not-found"));
    assert_eq!(api.get(&path).await?.expect(200)?["phase"], "Suspended");
    assert_eq!(audit(&replica, &acme.admin, "action=session.wake").await?.len(), 0);

    // The first message gets through, the agent has its environment and its files, and followers go on.
    message(&api, &id, "env SECRET_WORD").await?.expect(200)?;
    assert_eq!(platform.pods.of(id.parse()?)?.0, pod, "a pod of the same name");
    let messages = has_answered(&api, &id, "SECRET_WORD=hunter2").await?;
    let users: Vec<_> = messages.iter().filter(|it| it["role"] == "user").map(|it| it["content"].clone()).collect();
    assert_eq!(users, ["hello", "env SECRET_WORD"]);
    let mut seen = Vec::new();
    while !seen.iter().any(|data: &Value| data.to_string().contains("SECRET_WORD=hunter2")) {
        seen.push(tokio::time::timeout(SOON, resumed.recv()).await?.context("the stream ended")?.data);
    }
    assert!(!json!(seen).to_string().contains("You said: hello"), "what was seen is sent again: {seen:?}");
    for folder in ["home", "workspace"] {
        let note = std::fs::read_to_string(platform.pods.pod_folder(&pod).join(folder).join("note.txt"))?;
        assert_eq!(note, format!("kept in {folder}"));
    }
    let wakes = audit(&replica, &acme.admin, &format!("targetId={id}&action=session.wake")).await?;
    assert_eq!(wakes[0]["actor"], format!("user:{}", acme.organization.alice.subject));
    let suspends = audit(&replica, &acme.admin, &format!("targetId={id}&action=session.suspend")).await?;
    assert_eq!(
        (&suspends[0]["actor"], &suspends[0]["detail"]),
        (&json!("system:sessions"), &json!({"idleAfter": "2s"}))
    );
    // And it is suspended again.
    phase(&api, &id, "Suspended").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn suspended_sessions_leave_room_and_need_room_to_wake() -> Result<()> {
    let (platform, replica, acme) = platform().await?;
    let organization = acme.organization.id.to_string();
    platform.operator("update workspaces set max_sessions = 1 where org_id = $1::uuid", &[&organization]).await?;
    let api = replica.api(Some(&acme.alice))?;
    let id = suspended(&api).await?;
    let listed = api.get("/v1/workspaces").await?.expect(200)?;
    assert_eq!(listed["workspaces"][0]["activeSessions"], 0, "{listed}");
    // The other one stays awake.
    workspace(&platform, &acme, "{}").await?;
    let other = running_in_main(&api).await?;
    let full = message(&api, &id, "anybody there?").await?;
    assert_eq!((full.status.as_u16(), full.problem()), (429, "quota-exceeded"), "{}", full.body);
    assert_eq!(full.body["quota"], "workspace.maxSessions", "{}", full.body);
    assert_eq!(api.get(&format!("/v1/sessions/{id}")).await?.expect(200)?["phase"], "Suspended");
    let said = audit(&replica, &acme.admin, &format!("targetId={id}&action=session.message")).await?;
    assert_eq!(said.len(), 1, "a message that reached nobody is in the audit log: {said:?}");
    api.delete(&format!("/v1/sessions/{other}")).await?;
    phase(&api, &other, "Ended").await?;

    // An upload wakes as a message does.
    let file = reqwest::multipart::Part::bytes(b"file content 42".to_vec()).file_name("note.txt");
    let form = reqwest::multipart::Form::new().part("file", file);
    let upload = api.request(Method::POST, &format!("/v1/sessions/{id}/upload")).multipart(form);
    let uploaded = api.send(upload).await?.expect(200)?;
    let path = uploaded["filePath"].as_str().context("no filePath")?;
    ask(&api, &id, &format!("read {path}"), "file content 42").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn suspended_sessions_end_when_their_time_is_over_and_nothing_of_them_stays() -> Result<()> {
    let (platform, replica, acme) = platform().await?;
    let api = replica.api(Some(&acme.alice))?;
    let pod = async |id: &str| -> Result<String> { Ok(platform.pods.of(id.parse()?)?.0) };
    let mut names = Vec::new();
    let mut ids = Vec::new();
    for _ in 0..4 {
        let id = running_in_main(&api).await?;
        names.push(pod(&id).await?);
        ids.push(id);
    }
    for (id, pod) in ids.iter().zip(&names) {
        phase(&api, id, "Suspended").await?;
        assert!(platform.pods.asleep(pod).is_some());
    }
    // Its user ends the first; then ttl, idleTimeout, and the end of the organization.
    assert_eq!(api.delete(&format!("/v1/sessions/{}", ids[0])).await?.status, 204);
    phase(&api, &ids[0], "Ended").await?;
    let expire = |column: &'static str, id: &str| {
        let statement = format!("update sessions set {column} = now() - interval '2 hours' where id = '{id}'");
        let db = platform.db.clone();
        async move {
            let mut admin = db.connect(&db.admin_url()).await?;
            sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&mut admin).await?;
            anyhow::Ok(())
        }
    };
    let spec = r#"{"suspend": {"idleAfter": "2s"}, "ttl": "1h", "idleTimeout": "30m"}"#;
    workspace(&platform, &acme, spec).await?;
    expire("created_at", &ids[1]).await?;
    phase(&api, &ids[1], "Ended").await?;
    expire("last_activity_at", &ids[2]).await?;
    phase(&api, &ids[2], "Ended").await?;
    assert_eq!(api.get(&format!("/v1/sessions/{}", ids[3])).await?.expect(200)?["phase"], "Suspended");
    let drain = "update organizations set drain_until = now() + interval '1 hour' where slug = $1";
    platform.operator(drain, &[&acme.organization.slug]).await?;
    phase(&api, &ids[3], "Ended").await?;
    for pod in &names {
        assert!(platform.pods.asleep(pod).is_none());
        assert!(!platform.pods.pod_folder(pod).join("home").exists(), "what {pod} held is still there");
    }
    let ends = audit(&replica, &acme.admin, "action=session.delete").await?;
    let reasons: Vec<_> = ends.iter().rev().map(|entry| entry["detail"]["reason"].clone()).collect();
    assert_eq!(reasons, ["deleted", "ttl", "idle", "organization-deleted"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_suspended_at_work_or_without_a_volume() -> Result<()> {
    let (platform, replica, acme) = platform().await?;
    let api = replica.api(Some(&acme.alice))?;
    platform.pods.keep_nothing(true);
    let without = running_in_main(&api).await?;
    platform.pods.keep_nothing(false);
    workspace(&platform, &acme, r#"{"suspend": {"idleAfter": "1s"}}"#).await?;
    let id = running_in_main(&api).await?;
    // Longer than it may be idle; killed in between, the agent would never come to the end.
    ask(&api, &id, "long work", "step 25").await?;
    phase(&api, &id, "Suspended").await?;
    let session = api.get(&format!("/v1/sessions/{without}")).await?.expect(200)?;
    assert_eq!(session["phase"], "Running", "what it holds would be gone: {session}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_cannot_be_woken_stays_suspended_with_the_reason() -> Result<()> {
    let (platform, replica, acme) = platform().await?;
    let api = replica.api(Some(&acme.alice))?;
    let id = suspended(&api).await?;
    platform.pods.refuse(Some("no node has room"));
    let refused = message(&api, &id, "wake up").await?;
    assert_eq!((refused.status.as_u16(), refused.problem()), (503, "session-not-woken"), "{}", refused.body);
    assert!(refused.body["detail"].as_str().is_some_and(|detail| detail.contains("no node has room")));
    let session = api.get(&format!("/v1/sessions/{id}")).await?.expect(200)?;
    assert_eq!((&session["phase"], &session["error"]), (&json!("Suspended"), &json!("no node has room")));
    platform.pods.refuse(None);
    goes_on(&api, &id).await?;
    let session = api.get(&format!("/v1/sessions/{id}")).await?.expect(200)?;
    assert_eq!(session["error"], Value::Null, "{session}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn many_who_wake_it_at_once_wake_it_once() -> Result<()> {
    let (platform, replica, acme) = platform().await?;
    let second = platform.replica().await?;
    let api = replica.api(Some(&acme.alice))?;
    let id = suspended(&api).await?;
    let apis = [replica.api(Some(&acme.alice))?, second.api(Some(&acme.alice))?];
    let sends = (0..8).map(|n| {
        let (api, id) = (apis[n % 2].clone(), id.clone());
        async move { message(&api, &id, &format!("number {n}")).await }
    });
    // Whoever wakes a session takes this lock first: while it is taken, they all come this far.
    let mut admin = platform.db.connect(&platform.db.admin_url()).await?;
    let mut hold = sqlx::Connection::begin(&mut admin).await?;
    let lock = sqlx::query("select from organizations where id = $1 for update");
    lock.bind(acme.organization.id).execute(&mut *hold).await?;
    let answers = tokio::spawn(futures::future::try_join_all(sends));
    let mut watcher = platform.db.connect(&platform.db.admin_url()).await?;
    eventually("several that wait", SOON, async || {
        let waiting = "select count(*) from pg_stat_activity
                       where wait_event_type = 'Lock' and datname = current_database()";
        let count: i64 = sqlx::query_scalar(waiting).fetch_one(&mut watcher).await?;
        Ok(if count >= 4 { Ok(()) } else { Err(count.to_string()) })
    })
    .await?;
    hold.rollback().await?;
    let answers = answers.await??;
    let taken = answers.iter().filter(|answer| answer.status == 200).count();
    assert!(taken >= 1, "{answers:?}");
    assert!(answers.iter().all(|it| it.status == 200 || it.problem() == "agent-busy"), "{answers:?}");
    assert_eq!(platform.pods.count(), 1);
    assert_eq!(audit(&replica, &acme.admin, &format!("targetId={id}&action=session.wake")).await?.len(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_pod_dies_goes_on_in_another_one() -> Result<()> {
    let (platform, replica, acme) = platform().await?;
    let api = replica.api(Some(&acme.alice))?;
    workspace(&platform, &acme, r#"{"suspend": {"idleAfter": "1h"}}"#).await?;
    let id = running_in_main(&api).await?;
    ask(&api, &id, "the word is sesame", "You said: the word is sesame").await?;
    let state = platform.pods.folder(id.parse()?)?.join("state/state.json");
    eventually("the answer is on the volume", SOON, async || {
        let text = std::fs::read_to_string(&state).unwrap_or_default();
        Ok(if text.contains("You said: the word is sesame") { Ok(()) } else { Err(text) })
    })
    .await?;
    assert!(platform.pods.kill_9(id.parse()?));
    phase(&api, &id, "Suspended").await?;
    goes_on(&api, &id).await?;
    let suspends = audit(&replica, &acme.admin, &format!("targetId={id}&action=session.suspend")).await?;
    assert!(suspends[0]["detail"]["reason"].as_str().is_some_and(|why| why.contains("pod ended")), "{suspends:?}");
    // Somebody drains its node: the pod says so before it is gone, or everything would go with it.
    assert!(platform.pods.evict(id.parse()?));
    phase(&api, &id, "Suspended").await?;
    let messages = ask(&api, &id, "once more", "You said: once more").await?;
    assert!(json!(messages).to_string().contains("You said: and now"), "{messages:?}");
    // What it holds is lost with the pod: so is the session.
    platform.pods.keep_nothing(true);
    let id = running_in_main(&api).await?;
    assert!(platform.pods.evict(id.parse()?));
    let failed = phase(&api, &id, "Failed").await?;
    assert_eq!(failed["error"], "the session's pod was deleted by somebody else");
    Ok(())
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
        let (platform, one, acme) = platform().await?;
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
    workspace(&platform, &acme, "{}").await?;
    let ids = [running_in_main(&api).await?, running_in_main(&api).await?];
    for id in &ids {
        ask(&api, id, "the word is sesame", "You said: the word is sesame").await?;
    }
    platform.pods.set_stalled(true);
    workspace(&platform, &acme, SUSPEND).await?;
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
        goes_on(&api, id).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_before_it_has_a_pod_again_leaves_it_suspended() -> Result<()> {
    let Crash { platform, one, two, acme } = Crash::new().await?;
    let api = one.api(Some(&acme.alice))?;
    let id = suspended(&api).await?;
    platform.pods.set_stalled(true);
    let (sender, session) = (api.clone(), id.clone());
    let sent = tokio::spawn(async move { message(&sender, &session, "lost").await });
    phase(&api, &id, "Starting").await?;
    one.crash();
    platform.pods.set_stalled(false);
    assert!(sent.await?.is_err(), "its server is gone");
    let api = two.api(Some(&acme.alice))?;
    let asleep = phase(&api, &id, "Suspended").await?;
    assert!(asleep["error"].as_str().is_some_and(|error| error.contains("the next message wakes it")), "{asleep}");
    goes_on(&api, &id).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_while_its_agent_starts_is_made_good_by_the_other() -> Result<()> {
    let Crash { platform, one, two, acme } = Crash::new().await?;
    let api = one.api(Some(&acme.alice))?;
    let id = suspended(&api).await?;
    let (sender, session) = (api.clone(), id.clone());
    let sent = tokio::spawn(async move { message(&sender, &session, "lost").await });
    eventually("a pod", Duration::from_secs(20), async || {
        Ok(platform.pods.of(id.parse()?).map(|_| ()).map_err(|error| error.to_string()))
    })
    .await?;
    one.crash();
    let api = two.api(Some(&acme.alice))?;
    phase(&api, &id, "Running").await?;
    if sent.await?.is_ok_and(|answer| answer.status == 200) {
        return Ok(());
    }
    goes_on(&api, &id).await
}
