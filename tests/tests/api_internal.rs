//! The API for session pods: a pod writes the transcript of its own session, from its own address, while the session
//! lives, and no more than its budget. Whoever has stolen its token can do nothing with it elsewhere.

use std::net::IpAddr;
use std::time::Duration;

use agentapi_runtime::auth::session_token::SessionClaims;
use agentapi_tests::api::{Answer, Api};
use agentapi_tests::cluster::eventually;
use agentapi_tests::serve::policies::audit;
use agentapi_tests::serve::steps::{phase, running_in_main};
use agentapi_tests::serve::{Platform, Replica, Tenant};
use anyhow::Result;
use reqwest::Method;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use uuid::Uuid;

const SESSION_POD: &str = env!("CARGO_BIN_EXE_session-pod");

async fn put(pod: &Api, session: &str, body: &Value) -> Result<Answer> {
    pod.send(pod.request(Method::PUT, &format!("/internal/v1/sessions/{session}/messages")).json(body)).await
}

fn message(id: i32, content: &str) -> Value {
    json!({"id": id, "role": "agent", "content": content, "time": "2026-01-01T00:00:00Z"})
}

fn messages(messages: &[Value]) -> Value {
    json!({"messages": messages, "status": "stable"})
}

async fn stored(platform: &Platform, session: &str) -> Result<Vec<(i32, String)>> {
    let mut connection = platform.db.connect(&platform.db.admin_url()).await?;
    let rows = "select id, content from messages where session_id = $1 and id >= 900 order by id";
    Ok(sqlx::query_as(rows).bind(session.parse::<Uuid>()?).fetch_all(&mut connection).await?)
}

struct Pod {
    session: String,
    token: String,
    name: String,
    address: IpAddr,
}

impl Pod {
    /// A client at its address, with a token for its session that was made for the pod of this name.
    fn api(&self, platform: &Platform, replica: &Replica, tenant: &Tenant, pod: &str) -> Result<Api> {
        let (sub, org) = (self.session.parse()?, tenant.organization.slug.clone());
        let token = platform.tokens.for_session(&SessionClaims { sub, org, ws: "main".into(), pod: pod.into() })?;
        replica.internal_api(Some(token.expose_secret()), self.address)
    }
}

async fn pod(platform: &Platform, replica: &Replica, tenant: &Tenant) -> Result<Pod> {
    let session = running_in_main(&replica.api(Some(&tenant.alice))?).await?;
    let token = platform.pods.session_token(session.parse()?)?;
    let (name, address) = platform.pods.of(session.parse()?)?;
    Ok(Pod { session, token, name, address })
}

fn expect(answer: &Answer, status: u16, problem: &str, why: &str) {
    assert_eq!((answer.status.as_u16(), answer.problem()), (status, problem), "{why}: {}", answer.body);
    if status >= 400 {
        assert_eq!(answer.content_type, "application/problem+json", "{why}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_writes_its_own_transcript_and_no_other() -> Result<()> {
    let (platform, replica, acme) = Platform::with_acme(SESSION_POD).await?;
    let (own, other) = (pod(&platform, &replica, &acme).await?, pod(&platform, &replica, &acme).await?);
    let as_own = replica.internal_api(Some(&own.token), own.address)?;
    let body = messages(&[message(900, "from the pod\u{0}")]);
    expect(&put(&as_own, &own.session, &body).await?, 200, "", "its own");
    expect(&put(&as_own, &own.session, &body).await?, 200, "", "may be repeated");
    assert_eq!(stored(&platform, &own.session).await?, [(900, "from the pod".to_owned())]);

    let stolen = messages(&[message(901, "not from the pod")]);
    expect(&put(&as_own, &other.session, &stolen).await?, 404, "session-not-found", "another session");
    let without = replica.internal_api(None, own.address)?;
    expect(&put(&without, &own.session, &stolen).await?, 401, "unauthorized", "no token");
    let user = replica.internal_api(Some(&acme.admin), own.address)?;
    expect(&put(&user, &own.session, &stolen).await?, 401, "unauthorized", "a user's token");
    // The token got out of the pod: from another pod, or from anywhere else.
    let elsewhere = replica.internal_api(Some(&own.token), other.address)?;
    expect(&put(&elsewhere, &own.session, &stolen).await?, 403, "wrong-pod", "another pod's address");
    // A token for this session that was made for another pod, such as the one that the session had before.
    let misplaced = own.api(&platform, &replica, &acme, &other.name)?;
    expect(&put(&misplaced, &own.session, &stolen).await?, 403, "wrong-pod", "another pod's token");
    let right = own.api(&platform, &replica, &acme, &own.name)?;
    expect(&put(&right, &own.session, &body).await?, 200, "", "the pod's token, renewed");

    for (body, why) in [
        (json!({"messages": [{"id": "x"}]}), "an id that is no number"),
        (messages(&[message(901, "a"), message(902, "b"), message(901, "c")]), "an id that is there twice"),
        (messages(&[message(-1, "a")]), "a negative id"),
        (messages(&[message(20_000, "a")]), "too many messages"),
        (json!([[], "stable"]), "an array"),
    ] {
        expect(&put(&as_own, &own.session, &body).await?, 422, "invalid-field", why);
    }
    assert_eq!(stored(&platform, &own.session).await?.len(), 1, "nothing of what was refused is written");

    // The session token opens nothing else, and the internal API is not on the public port.
    let public = replica.api(Some(&own.token))?;
    assert_eq!(public.get("/v1/sessions").await?.status, 401);
    let path = format!("/internal/v1/sessions/{}/messages", own.session);
    assert_eq!(public.send(public.request(Method::PUT, &path).json(&body)).await?.status, 404);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_sessions_own_pod_says_that_it_ends_and_only_one_that_does_is_believed() -> Result<()> {
    let (platform, replica, acme) = Platform::with_acme(SESSION_POD).await?;
    let organization = acme.organization.id.to_string();
    let set = r#"update workspaces set spec = '{"suspend": {"idleAfter": "1h"}}' where org_id = $1::uuid"#;
    platform.operator(set, &[&organization]).await?;
    let (own, other) = (pod(&platform, &replica, &acme).await?, pod(&platform, &replica, &acme).await?);
    let say = async |token: Option<&str>, address: IpAddr, session: &str| {
        let api = replica.internal_api(token, address)?;
        api.send(api.request(Method::POST, &format!("/internal/v1/sessions/{session}/ending"))).await
    };
    expect(&say(None, own.address, &own.session).await?, 401, "unauthorized", "no token");
    expect(&say(Some(&acme.admin), own.address, &own.session).await?, 401, "unauthorized", "a user's token");
    expect(&say(Some(&own.token), own.address, &other.session).await?, 404, "session-not-found", "another session");
    expect(&say(Some(&own.token), other.address, &own.session).await?, 403, "wrong-pod", "another pod's address");
    // The cluster says that the pod stays: its session goes on.
    expect(&say(Some(&own.token), own.address, &own.session).await?, 204, "", "its own");
    let api = replica.api(Some(&acme.alice))?;
    for session in [&own.session, &other.session] {
        assert_eq!(api.get(&format!("/v1/sessions/{session}")).await?.expect(200)?["phase"], "Running");
    }
    // Its session is being suspended, and its volume is not safe yet: it is not told that it is.
    platform.pods.set_stalled(true);
    let begun = "update sessions set phase = 'Suspending' where id = $1::uuid";
    let mut admin = platform.db.connect(&platform.db.admin_url()).await?;
    sqlx::query(begun).bind(&own.session).execute(&mut admin).await?;
    assert!(say(Some(&own.token), own.address, &own.session).await?.status.is_server_error());
    platform.pods.set_stalled(false);
    expect(&say(Some(&own.token), own.address, &own.session).await?, 204, "", "once it is");
    phase(&api, &own.session, "Suspended").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_client_has_decided_is_recorded_once_and_only_for_the_pods_own_session() -> Result<()> {
    let (platform, replica, acme) = Platform::with_acme(SESSION_POD).await?;
    let (own, other) = (pod(&platform, &replica, &acme).await?, pod(&platform, &replica, &acme).await?);
    let as_own = replica.internal_api(Some(&own.token), own.address)?;
    let path = |pod: &Pod| format!("/internal/v1/sessions/{}/permissions", pod.session);
    let decided = |by: &str, decision: &str| json!({"permission": Uuid::new_v4(), "decision": decision, "by": by, "kind": "edit"});
    let (first, second) = (decided("policy", "yes"), decided("timeout", "cancelled"));
    let rows = async |session: &str| -> Result<Vec<Value>> {
        let query = format!("targetId={session}&action=session.permission");
        Ok(audit(&replica, &acme.admin, &query).await?.into_iter().rev().collect())
    };
    let report = |decisions: &[&Value]| json!({"decisions": decisions});
    let taken = as_own.post(&path(&own), &report(&[&first])).await?.expect(200)?;
    assert_eq!(taken, json!({"taken": 1}));
    // Its answer was lost: the pod sends it again.
    let taken = as_own.post(&path(&own), &report(&[&first, &second])).await?.expect(200)?;
    assert_eq!(taken, json!({"taken": 2}));
    let recorded = rows(&own.session).await?;
    assert_eq!(recorded.iter().map(|row| row["detail"].clone()).collect::<Vec<_>>(), [first.clone(), second]);
    assert!(recorded.iter().all(|row| row["actor"] == "system:permissions"), "{recorded:?}");

    let body = report(&[&decided("policy", "yes")]);
    expect(&as_own.post(&path(&other), &body).await?, 404, "session-not-found", "another session");
    let without = replica.internal_api(None, own.address)?;
    expect(&without.post(&path(&own), &body).await?, 401, "unauthorized", "no token");
    let user = replica.internal_api(Some(&acme.admin), own.address)?;
    expect(&user.post(&path(&own), &body).await?, 401, "unauthorized", "a user's token");
    let elsewhere = replica.internal_api(Some(&own.token), other.address)?;
    expect(&elsewhere.post(&path(&own), &body).await?, 403, "wrong-pod", "another pod's address");
    let many: Vec<Value> = (0..65).map(|_| decided("policy", "yes")).collect();
    for (bad, why) in [
        (report(&[&decided("user", "yes")]), "a client decides elsewhere"),
        (report(&[&decided("policy", "a\u{7}b")]), "control characters"),
        (report(&[&decided("policy", &"x".repeat(257))]), "a long name"),
        (report(&many.iter().collect::<Vec<_>>()), "too many"),
        (json!({}), "nothing"),
    ] {
        expect(&as_own.post(&path(&own), &bad).await?, 422, "invalid-field", why);
    }
    assert_eq!(rows(&own.session).await?.len(), 2, "nothing of that is recorded");
    assert_eq!(rows(&other.session).await?.len(), 0);

    // An image of a tenant does not fill the log. What is over is not lost: the pod keeps it.
    let mut recorded = 2;
    let refused = loop {
        let part: Vec<Value> = (0..64).map(|_| decided("policy", "yes")).collect();
        let answer = as_own.post(&path(&own), &report(&part.iter().collect::<Vec<_>>())).await?;
        if answer.status != 200 {
            break answer;
        }
        recorded += answer.body["taken"].as_u64().unwrap_or_default();
        assert!(recorded < 400, "nobody stops it");
    };
    expect(&refused, 429, "rate-limit-exceeded", "a flood");
    assert!(recorded >= 200, "{recorded}");
    let mut admin = platform.db.connect(&platform.db.admin_url()).await?;
    let count = "select count(*) from audit_log where action = 'session.permission' and target_id = $1";
    let rows: i64 = sqlx::query_scalar(count).bind(&own.session).fetch_one(&mut admin).await?;
    assert_eq!(rows.unsigned_abs(), recorded);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn last_words_are_taken_for_two_minutes_after_the_end() -> Result<()> {
    let (platform, replica, acme) = Platform::with_acme(SESSION_POD).await?;
    let own = pod(&platform, &replica, &acme).await?;
    let as_own = replica.internal_api(Some(&own.token), own.address)?;
    let api = replica.api(Some(&acme.alice))?;
    assert_eq!(api.delete(&format!("/v1/sessions/{}", own.session)).await?.status, 204);
    phase(&api, &own.session, "Ended").await?;
    expect(&put(&as_own, &own.session, &messages(&[message(900, "bye")])).await?, 200, "", "last words");
    let transcript = api.get(&format!("/v1/sessions/{}/messages", own.session)).await?.expect(200)?;
    assert!(transcript.to_string().contains("bye"));

    let mut admin = platform.db.connect(&platform.db.admin_url()).await?;
    sqlx::query("update sessions set ended_at = now() - interval '121 seconds' where id = $1")
        .bind(own.session.parse::<Uuid>()?)
        .execute(&mut admin)
        .await?;
    let late = put(&as_own, &own.session, &messages(&[message(901, "from the grave")])).await?;
    expect(&late, 409, "session-over", "two minutes later");
    let rewritten = put(&as_own, &own.session, &messages(&[message(900, "history")])).await?;
    expect(&rewritten, 409, "session-over", "what is written stays as it is");
    assert_eq!(stored(&platform, &own.session).await?, [(900, "bye".to_owned())]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn transcripts_have_a_budget_per_session_and_per_organization() -> Result<()> {
    // The harness gives a session 4 MiB and an organization nine and a half.
    let (platform, replica, acme) = Platform::with_acme(SESSION_POD).await?;
    let mut pods = Vec::new();
    for _ in 0..3 {
        pods.push(pod(&platform, &replica, &acme).await?);
    }
    let mebibyte = "x".repeat(1 << 20);
    let large: Vec<Value> = (900..904).map(|id| message(id, &mebibyte)).collect();
    let as_pod = |pod: &Pod| replica.internal_api(Some(&pod.token), pod.address);
    let first = as_pod(&pods[0])?;
    expect(&put(&first, &pods[0].session, &messages(&large[..3])).await?, 200, "", "three of four");
    let over = put(&first, &pods[0].session, &messages(&large)).await?;
    expect(&over, 413, "transcript-too-large", "more than the session's budget");
    assert_eq!((&over.body["quota"], &over.body["limit"]), (&json!("session.transcriptBytes"), &json!(4 << 20)));
    assert_eq!(stored(&platform, &pods[0].session).await?.len(), 3, "the whole push is taken back");
    expect(&put(&first, &pods[0].session, &messages(&[message(903, "small")])).await?, 200, "", "there is room for it");

    for pod in &pods[1..] {
        expect(&put(&as_pod(pod)?, &pod.session, &messages(&large[..3])).await?, 200, "", "nine of nine and a half");
    }
    let body = messages(&[message(904, &mebibyte[..600 << 10])]);
    let request = as_pod(&pods[2])?;
    let path = format!("/internal/v1/sessions/{}/messages", pods[2].session);
    let response = request.request(Method::PUT, &path).json(&body).send().await?;
    let (status, retry) = (response.status().as_u16(), response.headers().get("retry-after").cloned());
    let problem: Value = response.json().await?;
    assert_eq!((status, &problem["quota"]), (429, &json!("organization.transcriptBytes")), "{problem}");
    assert!(retry.is_some_and(|value| value == "60"));
    let shorter = messages(&[message(900, "cut"), message(901, "cut")]);
    expect(&put(&request, &pods[2].session, &shorter).await?, 200, "", "what makes it shorter is always taken");
    // Another organization has a budget of its own.
    let globex = platform.tenant("globex").await?;
    let other = pod(&platform, &replica, &globex).await?;
    expect(&put(&as_pod(&other)?, &other.session, &messages(&large[..3])).await?, 200, "", "another organization");
    let metrics = Api::new(&format!("http://{}", replica.addresses.metrics), None)?.get("/metrics").await?.body;
    let metrics = metrics.as_str().unwrap_or_default();
    assert!(metrics.contains("agentapi_quota_refusals_total{quota=\"session.transcriptBytes\"} 1"), "{metrics}");
    assert!(metrics.contains("agentapi_quota_refusals_total{quota=\"organization.transcriptBytes\"}"), "{metrics}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_is_refused_for_its_size_still_says_what_the_agent_does() -> Result<()> {
    let (platform, replica, acme) = Platform::with_acme(SESSION_POD).await?;
    let own = pod(&platform, &replica, &acme).await?;
    let as_own = replica.internal_api(Some(&own.token), own.address)?;
    let mut admin = platform.db.connect(&platform.db.admin_url()).await?;
    let id: Uuid = own.session.parse()?;
    // After that it says nothing by itself.
    eventually("what the pod itself says", Duration::from_secs(60), async || {
        let session = replica.api(Some(&acme.alice))?.get(&format!("/v1/sessions/{id}")).await?.expect(200)?;
        Ok(if session["agentStatus"] == "stable" { Ok(()) } else { Err(session.to_string()) })
    })
    .await?;
    let mebibyte = "x".repeat(1 << 20);
    let large: Vec<Value> = (900..905).map(|id| message(id, &mebibyte)).collect();
    // What is refused is repeated for ever, so that an agent that waits is not at work because of it.
    for (status, is_activity) in
        [("stable", false), ("running", true), ("running", true), ("stable", true), ("stable", false)]
    {
        let earlier = "update sessions set last_activity_at = now() - interval '5 minutes' where id = $1";
        sqlx::query(earlier).bind(id).execute(&mut admin).await?;
        let over = put(&as_own, &own.session, &json!({"messages": large, "status": status})).await?;
        expect(&over, 413, "transcript-too-large", status);
        let row = "select agent_status, last_activity_at > now() - interval '4 minutes' from sessions where id = $1";
        let seen: (Option<String>, bool) = sqlx::query_as(row).bind(id).fetch_one(&mut admin).await?;
        assert_eq!(seen, (Some(status.to_owned()), is_activity));
    }
    // Nor does it say again what nobody was ready to hear.
    sqlx::query("update sessions set phase = 'Starting' where id = $1").bind(id).execute(&mut admin).await?;
    let early = put(&as_own, &own.session, &json!({"messages": [], "status": "running"})).await?;
    expect(&early, 200, "", "before it is known to run");
    let row = "select agent_status from sessions where id = $1";
    let seen: Option<String> = sqlx::query_scalar(row).bind(id).fetch_one(&mut admin).await?;
    assert_eq!(seen.as_deref(), Some("running"));
    assert!(stored(&platform, &own.session).await?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_learns_the_names_of_its_sessions_connections_and_of_no_others() -> Result<()> {
    let (platform, replica, acme) = Platform::with_acme(SESSION_POD).await?;
    let globex = platform.tenant("globex").await?;
    let (own, other) = (pod(&platform, &replica, &acme).await?, pod(&platform, &replica, &acme).await?);
    let mut admin = platform.db.connect(&platform.db.admin_url()).await?;
    let main: Uuid = sqlx::query_scalar("select workspace_id from sessions where id = $1")
        .bind(own.session.parse::<Uuid>()?)
        .fetch_one(&mut admin)
        .await?;
    let another = Uuid::new_v4();
    sqlx::query(
        "insert into workspaces (org_id, id, name, k8s_namespace, agent_type, max_sessions)
         select org_id, $1, 'another', k8s_namespace, agent_type, 1 from workspaces where id = $2",
    )
    .bind(another)
    .bind(main)
    .execute(&mut admin)
    .await?;
    let mut ids = Vec::new();
    for (organization, name, workspace) in [
        (acme.organization.id, "of-all", None),
        (acme.organization.id, "of-main", Some(main)),
        (acme.organization.id, "of-another", Some(another)),
        (globex.organization.id, "of-globex", None),
    ] {
        let id = Uuid::new_v4();
        sqlx::query(
            "insert into mcp_connections (org_id, id, name, workspace_id, k8s_namespace, origin, transport)
             values ($1, $2, $3, $4, 'team', 'crd', 'sse')",
        )
        .bind(organization)
        .bind(id)
        .bind(name)
        .bind(workspace)
        .execute(&mut admin)
        .await?;
        ids.push(id);
    }
    let path = |session: &str| format!("/internal/v1/sessions/{session}/connections");
    let as_own = replica.internal_api(Some(&own.token), own.address)?;
    let seen = as_own.get(&path(&own.session)).await?.expect(200)?;
    let expected = json!([{"id": ids[0], "name": "of-all"}, {"id": ids[1], "name": "of-main"}]);
    assert_eq!(seen, json!({"connections": expected}));

    expect(&as_own.get(&path(&other.session)).await?, 404, "session-not-found", "another session");
    let without = replica.internal_api(None, own.address)?;
    expect(&without.get(&path(&own.session)).await?, 401, "unauthorized", "no token");
    let user = replica.internal_api(Some(&acme.admin), own.address)?;
    expect(&user.get(&path(&own.session)).await?, 401, "unauthorized", "a user's token");
    let misplaced = own.api(&platform, &replica, &acme, &other.name)?;
    expect(&misplaced.get(&path(&own.session)).await?, 403, "wrong-pod", "another pod's token");
    assert_eq!(replica.api(Some(&own.token))?.get(&path(&own.session)).await?.status, 404, "not on the public port");

    let api = replica.api(Some(&acme.alice))?;
    assert_eq!(api.delete(&format!("/v1/sessions/{}", own.session)).await?.status, 204);
    phase(&api, &own.session, "Ended").await?;
    expect(&as_own.get(&path(&own.session)).await?, 409, "session-over", "after the end");
    Ok(())
}
