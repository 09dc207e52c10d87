//! Sessions that nobody uses give up their pods and go on where they were: real Postgres, real session hosts.

use agentapi_tests::cluster::eventually;
use agentapi_tests::serve::policies::audit;
use agentapi_tests::serve::steps::{SOON, phase, running, running_in_main};
use agentapi_tests::serve::suspend::{SUSPEND, goes_on, platform, suspended};
use agentapi_tests::talk::Talk;
use anyhow::{Context, Result};
use reqwest::Method;
use serde_json::{Value, json};

const SESSION_POD: &str = env!("CARGO_BIN_EXE_session-pod");

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_nobody_uses_is_suspended_and_a_message_wakes_it() -> Result<()> {
    let (platform, replica, acme) = platform(SESSION_POD).await?;
    let api = replica.api(Some(&acme.alice))?;
    platform.workspace(&acme, "{}").await?;
    platform.pods.warm(&acme.organization.slug, "main")?;
    let id = running(&api, json!({"workspace": "main", "env": {"SECRET_WORD": "hunter2"}})).await?;
    let path = format!("/v1/sessions/{id}");
    let talk = Talk::of(&api, &id, SOON);
    talk.ask("hello", "You said: hello").await?;
    let mut watched = api.events(&format!("{path}/events"), None).await?;
    let (pod, _) = platform.pods.of(id.parse()?)?;
    for folder in ["home", "workspace"] {
        std::fs::write(platform.pods.pod_folder(&pod).join(folder).join("note.txt"), format!("kept in {folder}"))?;
    }
    platform.workspace(&acme, SUSPEND).await?;
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
    let foreign = Talk::of(&replica.api(Some(&acme.bob))?, &id, SOON).say("mine").await?;
    assert_eq!((foreign.status.as_u16(), foreign.problem()), (404, "session-not-found"));
    assert_eq!(api.get(&path).await?.expect(200)?["phase"], "Suspended");
    assert_eq!(audit(&replica, &acme.admin, "action=session.wake").await?.len(), 0);

    // The first message gets through, the agent has its environment and its files, and followers go on.
    talk.say("env SECRET_WORD").await?.expect(200)?;
    assert_eq!(platform.pods.of(id.parse()?)?.0, pod, "a pod of the same name");
    let messages = talk.says("SECRET_WORD=hunter2").await?;
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
    let (platform, replica, acme) = platform(SESSION_POD).await?;
    let organization = acme.organization.id.to_string();
    platform.operator("update workspaces set max_sessions = 1 where org_id = $1::uuid", &[&organization]).await?;
    let api = replica.api(Some(&acme.alice))?;
    let talk = suspended(&api).await?;
    let listed = api.get("/v1/workspaces").await?.expect(200)?;
    assert_eq!(listed["workspaces"][0]["activeSessions"], 0, "{listed}");
    // The other one stays awake.
    platform.workspace(&acme, "{}").await?;
    let other = running_in_main(&api).await?;
    let said = async || audit(&replica, &acme.admin, &format!("targetId={}&action=session.message", talk.id)).await;
    let before = said().await?;
    let full = talk.say("anybody there?").await?;
    assert_eq!((full.status.as_u16(), full.problem()), (429, "quota-exceeded"), "{}", full.body);
    assert_eq!(full.body["quota"], "workspace.maxSessions", "{}", full.body);
    assert_eq!(api.get(&format!("/v1/sessions/{}", talk.id)).await?.expect(200)?["phase"], "Suspended");
    assert_eq!(said().await?, before, "a message that reached nobody is in the audit log");
    api.delete(&format!("/v1/sessions/{other}")).await?;
    phase(&api, &other, "Ended").await?;

    // An upload wakes as a message does.
    let file = reqwest::multipart::Part::bytes(b"file content 42".to_vec()).file_name("note.txt");
    let form = reqwest::multipart::Form::new().part("file", file);
    let upload = api.request(Method::POST, &talk.path("upload")).multipart(form);
    let uploaded = api.send(upload).await?.expect(200)?;
    let path = uploaded["filePath"].as_str().context("no filePath")?;
    talk.ask(&format!("read {path}"), "file content 42").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn suspended_sessions_end_when_their_time_is_over_and_nothing_of_them_stays() -> Result<()> {
    let (platform, replica, acme) = platform(SESSION_POD).await?;
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
    platform.workspace(&acme, spec).await?;
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
    let (platform, replica, acme) = platform(SESSION_POD).await?;
    let api = replica.api(Some(&acme.alice))?;
    platform.pods.keep_nothing(true);
    let without = running_in_main(&api).await?;
    platform.pods.keep_nothing(false);
    platform.workspace(&acme, r#"{"suspend": {"idleAfter": "1s"}}"#).await?;
    let id = running_in_main(&api).await?;
    // Longer than it may be idle; killed in between, the agent would never come to the end.
    Talk::of(&api, &id, SOON).ask("long work", "step 25").await?;
    phase(&api, &id, "Suspended").await?;
    let session = api.get(&format!("/v1/sessions/{without}")).await?.expect(200)?;
    assert_eq!(session["phase"], "Running", "what it holds would be gone: {session}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_cannot_be_woken_stays_suspended_with_the_reason() -> Result<()> {
    let (platform, replica, acme) = platform(SESSION_POD).await?;
    let api = replica.api(Some(&acme.alice))?;
    let talk = suspended(&api).await?;
    let path = format!("/v1/sessions/{}", talk.id);
    platform.pods.refuse(Some("no node has room"));
    let refused = talk.say("wake up").await?;
    assert_eq!((refused.status.as_u16(), refused.problem()), (503, "session-not-woken"), "{}", refused.body);
    assert!(refused.body["detail"].as_str().is_some_and(|detail| detail.contains("no node has room")));
    let session = api.get(&path).await?.expect(200)?;
    assert_eq!((&session["phase"], &session["error"]), (&json!("Suspended"), &json!("no node has room")));
    platform.pods.refuse(None);
    goes_on(&talk).await?;
    let session = api.get(&path).await?.expect(200)?;
    assert_eq!(session["error"], Value::Null, "{session}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn many_who_wake_it_at_once_wake_it_once() -> Result<()> {
    let (platform, replica, acme) = platform(SESSION_POD).await?;
    let second = platform.replica().await?;
    let api = replica.api(Some(&acme.alice))?;
    let talk = suspended(&api).await?;
    platform.workspace(&acme, "{}").await?;
    let talks = [talk.clone(), Talk::of(&second.api(Some(&acme.alice))?, &talk.id, SOON)];
    let sends = (0..8).map(|n| {
        let talk = talks[n % 2].clone();
        async move { talk.say(&format!("number {n}")).await }
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
    assert_eq!(audit(&replica, &acme.admin, &format!("targetId={}&action=session.wake", talk.id)).await?.len(), 1);
    Ok(())
}
