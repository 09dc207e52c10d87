//! What the API refuses and how it says so: bodies, fields, methods, keys that were used, quotas that are full.

use std::time::Duration;

use agentapi_runtime::pods::Shortage;
use agentapi_tests::api::{Answer, Api};
use agentapi_tests::cluster::eventually;
use agentapi_tests::serve::Platform;
use agentapi_tests::serve::steps::{SOON, id_of, phase, running};
use anyhow::Result;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::Connection;

const SESSION_POD: &str = env!("CARGO_BIN_EXE_session-pod");

async fn with_key(api: &Api, key: &str, body: &Value) -> Result<Answer> {
    api.send(api.request(Method::POST, "/v1/sessions").header("idempotency-key", key).json(body)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_refused_with_the_field_and_what_to_do() -> Result<()> {
    let (platform, replica, tenant) = Platform::with_acme(SESSION_POD).await?;
    platform.pods.refuse(Some("this test needs no pods"));
    let api = replica.api(Some(&tenant.alice))?;
    let fields = [
        (json!({"workspace": "main", "wrokspace": "x"}), "wrokspace"),
        (json!({}), "."),
        (json!(["main"]), "."),
        (json!({"workspace": 1}), "workspace"),
        (json!({"workspace": "nope"}), "workspace"),
        (json!({"workspace": "main", "agent": "another"}), "agent"),
        (json!({"workspace": "main", "env": {"A-B": "x"}}), "env.A-B"),
        (json!({"workspace": "main", "env": {"AGENTAPI_X": "x"}}), "env.AGENTAPI_X"),
        (json!({"workspace": "main", "env": {"A": "\u{0}"}}), "env.A"),
        (json!({"workspace": "main", "env": {"A": 1}}), "env.A"),
        (json!({"workspace": "main", "prompt": "  "}), "prompt"),
    ];
    for (body, field) in fields {
        let answer = api.post("/v1/sessions", &body).await?;
        assert_eq!((answer.status.as_u16(), answer.problem()), (422, "invalid-field"), "{body}: {}", answer.body);
        assert_eq!(answer.body["field"], field, "{body}: {}", answer.body);
    }
    for path in ["/v1/sessions?workspace=%00", "/v1/sessions/%00", "/v1/sessions/%FF"] {
        let status = api.get(path).await?.status.as_u16();
        assert!(matches!(status, 400 | 404 | 422), "{path}: {status}");
    }
    let raw = async |kind: &str, body: Vec<u8>| -> Result<Answer> {
        api.send(api.request(Method::POST, "/v1/sessions").header("content-type", kind).body(body)).await
    };
    assert_eq!(raw("text/plain", b"{}".to_vec()).await?.status, 415);
    assert_eq!(raw("application/json", b"{".to_vec()).await?.status, 400);
    assert_eq!(raw("application/json", b"{\"workspace\": \"\xff\"}".to_vec()).await?.status, 400);
    assert_eq!(raw("application/json", b"".to_vec()).await?.status, 400);
    assert_eq!(raw("application/json", vec![b' '; 2 * 1024 * 1024]).await?.status, 413);
    let deep = [b"{\"workspace\":".to_vec(), b"[".repeat(100_000)].concat();
    assert!(matches!(raw("application/json", deep).await?.status.as_u16(), 400 | 422));
    assert_eq!(raw("application/json; charset=utf-8", b"{\"workspace\": \"main\"}".to_vec()).await?.status, 201);

    for (method, path, status) in [
        (Method::GET, "/", 404),
        (Method::GET, "/v1/nothing", 404),
        (Method::GET, "/v1/sessions/not-a-uuid", 404),
        (Method::PATCH, "/v1/sessions", 405),
        (Method::POST, "/v1/workspaces", 405),
    ] {
        let answer = api.send(api.request(method.clone(), path)).await?;
        assert_eq!(answer.status, status, "{method} {path}");
        assert_eq!(answer.content_type, "application/problem+json", "{method} {path}");
    }
    let allow = api.request(Method::PATCH, "/v1/sessions").send().await?;
    assert!(allow.headers().contains_key("allow"), "405 names the methods");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agents_own_refusals_are_passed_on() -> Result<()> {
    let (_platform, replica, tenant) = Platform::with_acme(SESSION_POD).await?;
    let api = replica.api(Some(&tenant.alice))?;
    let id = running(&api, json!({"workspace": "main"})).await?;
    api.stable(&id, SOON).await?;
    let path = format!("/v1/sessions/{id}/message");
    let empty = api.post(&path, &json!({"content": "", "type": "user"})).await?;
    assert_eq!((empty.status.as_u16(), empty.content_type.as_str()), (400, "application/problem+json"));
    let schema = api.post(&path, &json!({"content": "x", "type": "odd"})).await?;
    assert_eq!((schema.status.as_u16(), schema.content_type.as_str()), (422, "application/problem+json"));
    let request = api.request(Method::POST, &path).header("content-type", "text/plain").body("x");
    assert_eq!(api.send(request).await?.status, 415);
    api.post(&path, &json!({"content": "slow x", "type": "user"})).await?.expect(200)?;
    let busy = api.post(&path, &json!({"content": "now", "type": "user"})).await?;
    assert_eq!(busy.status, 409, "{}", busy.body);
    let big = json!({"content": "x".repeat(2 * 1024 * 1024), "type": "user"});
    assert_eq!(api.post(&path, &big).await?.status, 413);
    // The same without a length in advance.
    let chunks = (0..40).map(|_| Ok::<_, std::io::Error>(bytes::Bytes::from(vec![b'x'; 64 * 1024])));
    let stream = reqwest::Body::wrap_stream(futures::stream::iter(chunks));
    let request = api.request(Method::POST, &path).header("content-type", "application/json").body(stream);
    assert_eq!(api.send(request).await?.status, 413);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idempotency_key_makes_one_session() -> Result<()> {
    let (platform, replica, tenant) = Platform::with_acme(SESSION_POD).await?;
    platform.pods.refuse(Some("this test needs no pods"));
    let api = replica.api(Some(&tenant.alice))?;
    let body = json!({"workspace": "main", "env": {"A": "1", "B": "2"}});
    let first = with_key(&api, "key-1", &body).await?.expect(201)?;
    let again =
        with_key(&api, "key-1", &json!({"env": {"B": "2", "A": "1"}, "workspace": "main"})).await?.expect(201)?;
    assert_eq!(first["id"], again["id"]);
    let other = with_key(&api, "key-1", &json!({"workspace": "main", "env": {"A": "1", "B": "3"}})).await?;
    assert_eq!((other.status.as_u16(), other.problem()), (422, "idempotency-key-reused"));
    assert_ne!(with_key(&api, "key-2", &body).await?.expect(201)?["id"], first["id"]);
    // Keys are each user's own.
    let bob = replica.api(Some(&tenant.bob))?;
    assert_ne!(with_key(&bob, "key-1", &body).await?.expect(201)?["id"], first["id"]);
    for bad in ["", "\"\"", &"k".repeat(256)] {
        let answer = with_key(&api, bad, &body).await?;
        assert_eq!((answer.status.as_u16(), answer.problem()), (400, "bad-request"), "{bad:?}");
    }
    // The draft's quoted form is the same key.
    assert_eq!(with_key(&api, "\"key-1\"", &body).await?.expect(201)?["id"], first["id"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_requests_with_one_key_make_one_session() -> Result<()> {
    let (platform, replica, tenant) = Platform::with_acme(SESSION_POD).await?;
    platform.pods.refuse(Some("this test needs no pods"));
    let second = platform.replica().await?;
    let apis = [replica.api(Some(&tenant.alice))?, second.api(Some(&tenant.alice))?];
    let body = json!({"workspace": "main"});
    let calls = (0..24).map(|n| with_key(&apis[n % 2], "one", &body));
    let mut ids = Vec::new();
    for answer in futures::future::join_all(calls).await {
        let answer = answer?;
        match answer.status.as_u16() {
            201 => ids.push(id_of(&answer.body)?),
            409 => assert_eq!(answer.problem(), "idempotency-conflict"),
            other => anyhow::bail!("{other}: {}", answer.body),
        }
    }
    ids.dedup();
    assert_eq!(ids.len(), 1, "{ids:?}");
    let page = apis[0].get("/v1/sessions").await?.expect(200)?;
    assert_eq!(page["sessions"].as_array().map(Vec::len), Some(1));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn quotas_hold_under_concurrency_and_name_themselves() -> Result<()> {
    let (platform, replica, tenant) = Platform::with_acme(SESSION_POD).await?;
    // Pods never come, so that sessions stay Pending and count.
    platform.pods.set_away(true);
    let apis = [replica.api(Some(&tenant.alice))?, replica.api(Some(&tenant.bob))?];
    let body = json!({"workspace": "main"});
    let calls = (0..12).map(|n| apis[n % 2].post("/v1/sessions", &body));
    let mut created = 0;
    for answer in futures::future::join_all(calls).await {
        let answer = answer?;
        if answer.status == 201 {
            created += 1;
        } else {
            assert_eq!((answer.status.as_u16(), answer.problem()), (429, "quota-exceeded"), "{}", answer.body);
            assert_eq!(answer.body["quota"], "workspace.maxSessions");
            assert_eq!((&answer.body["limit"], &answer.body["used"]), (&json!(5), &json!(5)));
        }
    }
    assert_eq!(created, 5, "the workspace takes five, however many ask at once");

    let slug = tenant.organization.slug.as_str();
    platform.operator("update organizations set quota = '{\"sessions\": 3}' where slug = $1", &[slug]).await?;
    eventually("the organization's quota is named", SOON, async || {
        let answer = apis[0].post("/v1/sessions", &body).await?;
        assert_eq!(answer.status, 429);
        Ok(if answer.body["quota"] == "organization.sessions" { Ok(()) } else { Err(answer.body.to_string()) })
    })
    .await?;
    let refused = apis[0].request(Method::POST, "/v1/sessions").json(&body).send().await?;
    assert!(refused.headers().contains_key("retry-after"));

    // An ended session makes room.
    platform.operator("update organizations set quota = '{}' where slug = $1", &[slug]).await?;
    platform.pods.set_away(false);
    // Each user sees their own, and all five may be one user's.
    let pages = [apis[0].get("/v1/sessions").await?.expect(200)?, apis[1].get("/v1/sessions").await?.expect(200)?];
    let owner = usize::from(pages[0]["sessions"].as_array().is_none_or(Vec::is_empty));
    let id = id_of(&pages[owner]["sessions"][0])?;
    assert_eq!(apis[owner].delete(&format!("/v1/sessions/{id}")).await?.status, 204);
    phase(&apis[owner], &id, "Ended").await?;
    eventually("there is room again", SOON, async || {
        let answer = apis[0].post("/v1/sessions", &body).await?;
        Ok(if answer.status == 201 { Ok(()) } else { Err(answer.body.to_string()) })
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_without_room_is_429_and_the_same_request_works_later() -> Result<()> {
    let (platform, replica, tenant) = Platform::with_acme(SESSION_POD).await?;
    let [requested, used, limit] = ["2", "19", "20"].map(str::to_owned);
    platform.pods.set_shortage(Some(Shortage { resource: "limits.cpu".into(), requested, used, limit }));
    let api = replica.api(Some(&tenant.alice))?;
    let body = json!({"workspace": "main"});
    let request = api.request(Method::POST, "/v1/sessions").header("idempotency-key", "again").json(&body);
    let response = request.send().await?;
    assert_eq!((response.status().as_u16(), &response.headers()["retry-after"]), (429, &"30".parse()?));
    let problem: serde_json::Value = response.json().await?;
    assert!(problem["type"].as_str().is_some_and(|kind| kind.ends_with("/quota-exceeded")), "{problem}");
    assert_eq!(
        (&problem["quota"], &problem["requested"], &problem["used"], &problem["limit"]),
        (&json!("limits.cpu"), &json!("2"), &json!("19"), &json!("20"))
    );
    // What was tried is there to see, and counts against nothing.
    let page = api.get("/v1/sessions").await?.expect(200)?;
    assert_eq!(page["sessions"][0]["phase"], "Failed", "{page}");
    let error = page["sessions"][0]["error"].as_str().unwrap_or_default();
    assert!(error.starts_with("quota exceeded: limits.cpu"), "{error}");
    let audit = replica.api(Some(&tenant.admin))?.get("/v1/audit").await?.expect(200)?;
    let mut actions: Vec<_> =
        audit["entries"].as_array().into_iter().flatten().filter_map(|it| it["action"].as_str()).collect();
    actions.retain(|action| action.starts_with("session."));
    assert_eq!(actions, ["session.fail", "session.create"], "{audit}");
    assert_eq!(platform.pods.count(), 0);

    platform.pods.set_shortage(None);
    let created = with_key(&api, "again", &body).await?.expect(201)?;
    assert_ne!(created["id"], page["sessions"][0]["id"], "another session, with the same key");
    phase(&api, &id_of(&created)?, "Running").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_organizations_flood_leaves_room_for_the_others() -> Result<()> {
    let (platform, replica, acme) = Platform::with_acme(SESSION_POD).await?;
    let globex = platform.tenant("globex").await?;
    let calm = replica.api(Some(&globex.alice))?;
    calm.get("/v1/workspaces").await?.expect(200)?;
    // Whoever creates a session locks the organization; a lock that is not given back makes all others wait.
    let mut stuck = platform.db.connect(&platform.db.admin_url()).await?;
    let mut held = stuck.begin().await?;
    sqlx::query("select 1 from organizations where slug = $1 for update")
        .bind(&acme.organization.slug)
        .execute(&mut *held)
        .await?;
    let flooder = replica.api(Some(&acme.alice))?;
    let flood: Vec<_> = (0..40)
        .map(|_| {
            let api = flooder.clone();
            tokio::spawn(async move { api.post("/v1/sessions", &json!({"workspace": "main"})).await })
        })
        .collect();
    let mut watcher = platform.db.connect(&platform.db.admin_url()).await?;
    eventually("the flood waits for the lock", SOON, async || {
        let waiting: i64 =
            sqlx::query_scalar("select count(*) from pg_locks where not granted").fetch_one(&mut watcher).await?;
        // Of eight connections tenants may use four, and one organization half of those.
        Ok(if waiting >= 2 { Ok(()) } else { Err(waiting.to_string()) })
    })
    .await?;
    for _ in 0..5 {
        let began = std::time::Instant::now();
        calm.get("/v1/workspaces").await?.expect(200)?;
        assert!(began.elapsed() < Duration::from_secs(3), "the other organization had to wait {:?}", began.elapsed());
    }
    eventually("the flood is told to slow down", SOON, async || {
        let answer = flooder.get("/v1/workspaces").await?;
        Ok(if answer.problem() == "too-many-requests" { Ok(()) } else { Err(answer.body.to_string()) })
    })
    .await?;
    held.rollback().await?;
    for call in flood {
        let answer = call.await??;
        assert!(matches!(answer.status.as_u16(), 201 | 429), "{}: {}", answer.status, answer.body);
    }
    Ok(())
}
