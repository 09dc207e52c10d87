//! Streams through the gateway: progress as it comes, cancellation, and going on where one broke off; the same for both
//! of a server's transports, at whichever replica, and for nobody but who has asked.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use agentapi_tests::api::Api;
use agentapi_tests::cluster::eventually;
use agentapi_tests::mcp::fastmcp::Fastmcp;
use agentapi_tests::mcp::old::Old;
use agentapi_tests::mcp::raw::{Mood, Raw};
use agentapi_tests::mcp::setup::{
    self, call, configuration, connection, initialize, platform, posted, protected, request, rpc,
};
use agentapi_tests::serve::Platform;
use anyhow::{Context, Result};
use reqwest::{Method, Response};
use serde_json::{Value, json};

const SESSION_POD: &str = env!("CARGO_BIN_EXE_session-pod");
const PATIENCE: Duration = Duration::from_secs(30);

/// A call under way.
struct Call {
    response: Response,
    text: String,
}

impl Call {
    /// Of the tool that waits, up to where it tells that it has begun.
    async fn of_wait(api: &Api, connection: &str, session: Option<&str>, id: u64) -> Result<Self> {
        let params = json!({"name": "wait", "arguments": {}, "_meta": {"progressToken": "p"}});
        let mut call = Self::sent(api, connection, session, &request(id, "tools/call", params)).await?;
        while !call.text.contains("notifications/progress") {
            anyhow::ensure!(call.read().await?, "it ended before it began: {}", call.text);
        }
        Ok(call)
    }

    async fn sent(api: &Api, connection: &str, session: Option<&str>, message: &Value) -> Result<Self> {
        Ok(Self { response: posted(api, connection, session, message).send().await?, text: String::new() })
    }

    async fn read(&mut self) -> Result<bool> {
        let chunk = tokio::time::timeout(PATIENCE, self.response.chunk()).await.context("nothing comes")??;
        self.text.push_str(&String::from_utf8_lossy(chunk.as_deref().unwrap_or_default()));
        Ok(chunk.is_some())
    }

    /// What comes at last.
    async fn answer(mut self) -> Result<Value> {
        while self.read().await? {}
        let last =
            self.text.lines().filter_map(|line| line.strip_prefix("data: ")).next_back().context("no message")?;
        Ok(serde_json::from_str(last)?)
    }
}

/// How many calls the server itself has seen cancelled.
async fn cancelled(api: &Api, connection: &str, session: Option<&str>) -> Result<String> {
    let said = rpc(api, connection, session, &call("cancelled", json!({}))).await?;
    Ok(said.answer()["result"]["content"][0]["text"].as_str().with_context(|| format!("{said:?}"))?.to_owned())
}

fn note(id: u64) -> Value {
    json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": id, "reason": "enough"}})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_cancelled_at_any_replica_by_whoever_made_it() -> Result<()> {
    let (platform, first, acme) = platform(SESSION_POD).await?;
    let second = setup::replica(&platform).await?;
    let admin = first.api(Some(&acme.admin))?;
    let (here, there) = (first.api(Some(&acme.alice))?, second.api(Some(&acme.alice))?);
    for transport in ["http", "sse"] {
        let (_server, id) = protected(&platform, &acme, &admin, transport).await?;
        let one = initialize(&here, &id).await?.context("no session")?;
        let other = initialize(&here, &id).await?.context("no session")?;
        assert_ne!(one, other);
        // Two agents of one user, whose requests have the same id.
        let call = Call::of_wait(&here, &id, Some(&one), 5).await?;
        let others = Call::of_wait(&here, &id, Some(&other), 5).await?;
        let bob = second.api(Some(&acme.bob))?;
        let refused = rpc(&bob, &id, Some(&one), &note(5)).await?;
        assert_eq!(refused.status, 404, "{transport}: {refused:?}");
        for (session, id_of_request) in [(Some(one.as_str()), 6), (None, 5)] {
            let nothing = rpc(&there, &id, session, &note(id_of_request)).await?;
            assert!(nothing.status == 202 || transport == "http", "{transport}: {nothing:?}");
        }
        assert_eq!(rpc(&there, &id, Some(&one), &note(5)).await?.status, 202);
        let answer = call.answer().await?;
        assert!(answer["error"].is_object() && answer["id"] == 5, "{transport}: {answer}");
        eventually("the server knows", PATIENCE, async || {
            let count = cancelled(&there, &id, Some(&one)).await?;
            Ok(if count == "1" { Ok(()) } else { Err(count) })
        })
        .await?;
        assert_eq!(rpc(&here, &id, Some(&other), &note(5)).await?.status, 202);
        let answer = others.answer().await?;
        assert!(answer["error"].is_object() && answer["id"] == 5, "{transport}: {answer}");
        eventually("the server knows of both", PATIENCE, async || {
            let count = cancelled(&there, &id, Some(&one)).await?;
            Ok(if count == "2" { Ok(()) } else { Err(count) })
        })
        .await?;
    }
    // To have been cancelled is no failure: neither in the audit log, nor for the breaker.
    let failed = admin.get("/v1/audit?action=mcp.tool-call-fail").await?.expect(200)?;
    assert_eq!(failed["entries"], json!([]));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_listens_before_it_answers() -> Result<()> {
    let platform = Platform::start(SESSION_POD).await?;
    let mut admin = platform.db.connect(&platform.db.admin_url()).await?;
    let replica = platform.replica().await?;
    replica.api(None)?.get("/live").await?.expect(200)?;
    let listening = "select count(*) from pg_stat_activity where datname = current_database() and query like 'LISTEN%'";
    assert_eq!(sqlx::query_scalar::<_, i64>(listening).fetch_one(&mut admin).await?, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_the_older_transport_is_told_and_need_not_answer() -> Result<()> {
    let (platform, first, acme) = platform(SESSION_POD).await?;
    let second = setup::replica(&platform).await?;
    let (here, there) = (first.api(Some(&acme.admin))?, second.api(Some(&acme.admin))?);
    let server = Old::start().await?;
    let id = connection(&here, &json!({"name": "old", "transport": {"sse": {"url": server.url()}}})).await?;
    let session = initialize(&here, &id).await?.context("no session")?;
    let call = Call::of_wait(&here, &id, Some(&session), 5).await?;
    assert_eq!(rpc(&there, &id, Some(&session), &note(5)).await?.status, 202);
    let answer = call.answer().await?;
    assert_eq!((&answer["id"], &answer["error"]["data"]["type"]), (&json!(5), &json!("mcp-cancelled")), "{answer}");
    let told = server.seen("notifications/cancelled");
    assert_eq!((told.len(), &told[0]["params"]), (1, &json!({"requestId": 5})), "{told:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_in_the_channel_of_cancellations_cancels_nothing_and_is_in_nobodys_way() -> Result<()> {
    let (platform, replica, acme) = platform(SESSION_POD).await?;
    let globex = platform.tenant("globex").await?;
    let alice = replica.api(Some(&acme.alice))?;
    let server = Old::start().await?;
    let old = json!({"name": "old", "transport": {"sse": {"url": server.url()}}});
    let id = connection(&replica.api(Some(&acme.admin))?, &old).await?;
    let session = initialize(&alice, &id).await?.context("no session")?;
    let mut calls = Vec::new();
    for request in [5, 6] {
        calls.push(Call::of_wait(&alice, &id, Some(&session), request).await?);
    }
    // Postgres lets whoever can log in speak there: names as ours, and as long as it takes them.
    let flood = "select count(pg_notify('agentapi_mcp_cancelled', case i % 2
                     when 0 then encode(sha256(i::text::bytea), 'hex') else lpad(i::text, 7900, 'x') end))
                 from generate_series(1, 10000) i";
    let mut stranger = platform.db.connect_read_only(&globex.organization).await?;
    let flooding = async { Ok::<_, anyhow::Error>(sqlx::query(flood).execute(&mut stranger).await?) };
    let others = async {
        for _ in 0..20 {
            alice.get("/v1/workspaces").await?.expect(200)?;
        }
        Ok(())
    };
    tokio::try_join!(flooding, others)?;
    // All is heard in the order in which it was said, so all of that was heard before this.
    for (request, call) in [5, 6].into_iter().zip(calls) {
        assert_eq!(rpc(&alice, &id, Some(&session), &note(request)).await?.status, 202);
        let answer = call.answer().await?;
        let problem = &answer["error"]["data"]["type"];
        assert_eq!((&answer["id"], problem), (&json!(request), &json!("mcp-cancelled")), "{answer}");
        let told = server.seen("notifications/cancelled");
        let told: Vec<_> = told.iter().map(|it| it["params"]["requestId"].clone()).collect();
        assert_eq!(told, (5..=request).map(Value::from).collect::<Vec<_>>());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_goes_away_from_the_older_transport_has_cancelled() -> Result<()> {
    let (_platform, replica, acme) = platform(SESSION_POD).await?;
    let admin = replica.api(Some(&acme.admin))?;
    let server = Fastmcp::start("sse", None).await?;
    let id = connection(&admin, &json!({"name": "old", "transport": {"sse": {"url": server.url()}}})).await?;
    let call = Call::of_wait(&admin, &id, None, 5).await?;
    assert_eq!(cancelled(&admin, &id, None).await?, "0");
    drop(call);
    eventually("the server knows", PATIENCE, async || {
        let count = cancelled(&admin, &id, None).await?;
        Ok(if count == "1" { Ok(()) } else { Err(count) })
    })
    .await
}

/// The server's own stream, until it breaks off: ids and messages.
async fn stream(api: &Api, id: &str, session: &str, last: Option<&str>) -> Result<(u16, Vec<(String, Value)>)> {
    let mut sent = api.request(Method::GET, &format!("/v1/mcp/gateway/{id}")).header("accept", "text/event-stream");
    sent = sent.header("mcp-session-id", session).header("mcp-protocol-version", "2025-06-18");
    if let Some(last) = last {
        sent = sent.header("last-event-id", last);
    }
    let response = sent.send().await?;
    let (status, text) = (response.status().as_u16(), response.text().await?);
    let field = |event: &str, name: &str| event.lines().find_map(|line| line.strip_prefix(name).map(str::to_owned));
    let events = text.split("\n\n").filter_map(|event| {
        Some((field(event, "id: ")?, serde_json::from_str(&field(event, "data: ")?).unwrap_or(Value::Null)))
    });
    Ok((status, events.collect()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_broke_off_goes_on_at_any_replica_with_what_was_waited_for() -> Result<()> {
    let (platform, first, acme) = platform(SESSION_POD).await?;
    let second = setup::replica(&platform).await?;
    let (alice, bob) = (first.api(Some(&acme.alice))?, first.api(Some(&acme.bob))?);
    let server = Raw::start().await?;
    let mut body = configuration("raw", &server.url());
    body["tools"] = json!({"deny": ["broken"]});
    let id = connection(&first.api(Some(&acme.admin))?, &body).await?;
    let session = initialize(&alice, &id).await?.context("no session")?;
    let told = |method: &str| json!({"jsonrpc": "2.0", "method": method, "params": {}});
    let answer = |id: u64, result: Value| json!({"jsonrpc": "2.0", "id": id, "result": result});
    let tool = |name: &str| json!({"name": name, "inputSchema": {}});
    let called = answer(7, json!({"content": [{"type": "text", "text": "late"}]}));
    server.set_stream(vec![
        told("notifications/tools/list_changed"),
        called.clone(),
        answer(8, json!({"tools": [tool("broken"), tool("echo")], "nextCursor": "2"})),
        told("notifications/prompts/list_changed"),
        json!({"jsonrpc": "2.0", "id": 9, "error": {"code": -1, "message": "no"}}),
        answer(10, json!({"tools": {"broken": tool("broken")}})),
    ]);
    // A new stream brings what the server says of itself: an answer there would be to nothing.
    let (status, events) = stream(&alice, &id, &session, None).await?;
    let ids: Vec<_> = events.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!((status, ids.as_slice()), (200, ["1", "4"].as_slice()), "{events:?}");
    let elsewhere = second.api(Some(&acme.alice))?;
    let (status, events) = stream(&elsewhere, &id, &session, Some("1")).await?;
    let ids: Vec<_> = events.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!((status, ids.as_slice()), (200, ["2", "3", "4", "5", "6"].as_slice()), "{events:?}");
    assert_eq!(events[0].1, called);
    assert_eq!(events[1].1["result"], json!({"nextCursor": "2", "tools": [tool("echo")]}), "policy holds here too");
    assert_eq!(events[3].1["error"]["message"], "no");
    assert!(events[4].1["error"].is_object() && !events[4].1.to_string().contains("inputSchema"), "{events:?}");
    assert!(server.seen().pop().context("nothing seen")?.head.contains("last-event-id: 1\r\n"));
    let seen = server.seen().len();
    assert_eq!(stream(&bob, &id, &session, Some("1")).await?.0, 404);
    assert_eq!(server.seen().len(), seen, "the server was called");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_in_the_log_before_its_answer_is_out() -> Result<()> {
    let (_platform, replica, acme) = platform(SESSION_POD).await?;
    let (admin, server) = (replica.api(Some(&acme.admin))?, Raw::start().await?);
    let id = connection(&admin, &configuration("raw", &server.url())).await?;
    server.set_mood(Mood::DiesMidStream);
    for n in 1..=5 {
        let mut call = Call::sent(&admin, &id, None, &call("echo", json!({}))).await?;
        while !call.text.contains("mcp-answer-broke-off") {
            anyhow::ensure!(call.read().await?, "no failure: {}", call.text);
        }
        // Not read to its end, as an agent does that has what it waited for.
        drop(call);
        let rows = admin.get("/v1/audit?action=mcp.tool-call-fail").await?.expect(200)?;
        assert_eq!(rows["entries"].as_array().map(Vec::len), Some(n), "{rows}");
    }
    Ok(())
}
