//! What servers and callers can't use up: memory for answers, places for notifications, labels of metrics, rows.

use agentapi_tests::api::Api;
use agentapi_tests::cluster::eventually;
use agentapi_tests::mcp::raw::{Mood, Raw};
use agentapi_tests::mcp::setup::{call, configuration, connect, connection, platform, probing, request, rpc};
use agentapi_tests::serve::Replica;
use agentapi_tests::serve::steps::SOON;
use anyhow::{Context, Result};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::RwLock;

const SESSION_POD: &str = env!("CARGO_BIN_EXE_session-pod");
const MIB: usize = 1024 * 1024;
/// One test measures the memory of the whole process: nobody else is at work then.
static MEMORY: RwLock<()> = RwLock::const_new(());

fn kind(answer: &Value) -> &str {
    answer["error"]["data"]["type"].as_str().unwrap_or_default()
}

/// The text of an answer, unread.
async fn text(api: &Api, path: &str, body: &Value) -> Result<(u16, String)> {
    let answer = api.request(Method::POST, path).header("accept", "application/json").json(body).send().await?;
    Ok((answer.status().as_u16(), answer.text().await?))
}

async fn metrics(replica: &Replica) -> Result<String> {
    Ok(reqwest::get(format!("http://{}/metrics", replica.addresses.metrics)).await?.text().await?)
}

/// The most memory that this process has had, since it was asked to count anew.
fn peak() -> Result<usize> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<usize>()? * 1024)
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_take_no_more_memory_than_there_is_for_them() -> Result<()> {
    let (platform, replica, acme) = platform(SESSION_POD).await?;
    let globex = platform.tenant("globex").await?;
    let (admin, theirs) = (replica.api(Some(&acme.admin))?, replica.api(Some(&globex.admin))?);
    let (hanging, long) = (Raw::start().await?, Raw::start().await?);
    let slow = connection(&admin, &configuration("slow", &hanging.url())).await?;
    let id = connection(&admin, &configuration("long", &long.url())).await?;
    let client = connect(&admin, &id).await?;
    let their_client = connect(&theirs, &connection(&theirs, &configuration("long", &long.url())).await?).await?;
    let echo = |client: &str| json!({"client": client, "name": "echo"});

    let alone = MEMORY.write().await;
    // A list of three million numbers goes through as the text that it is: as a tree it would be a hundred megabytes.
    long.set_mood(Mood::Numbers(3_000_000));
    std::fs::write("/proc/self/clear_refs", "5")?;
    let before = peak()?;
    for (path, body) in
        [(format!("/v1/mcp/gateway/{id}"), call("echo", json!({}))), ("/v1/mcp/call_tool".to_owned(), echo(&client))]
    {
        let (status, text) = text(&admin, &path, &body).await?;
        assert_eq!((status, text.matches("0,").count() / 1000), (200, 2999), "{path}: {text:.200}");
    }
    let grown = (peak()? - before) / MIB;
    assert!(grown < 120, "{grown} MiB for answers of 6 MiB");
    println!("{grown} MiB for answers of 6 MiB");
    drop(alone);

    // Two answers that never end hold what an organization may hold.
    long.set_mood(Mood::Long(MIB));
    hanging.set_mood(Mood::Hangs(8 * MIB - 4096));
    let begin = || {
        let (api, slow) = (admin.clone(), slow.clone());
        tokio::spawn(async move { rpc(&api, &slow, None, &call("echo", json!({}))).await.map(drop) })
    };
    let mut calls = vec![begin(), begin()];
    let refused = eventually("answers that there is no room for", SOON, async || {
        // One of them may have come when our own answer was there.
        if let Some(over) = calls.iter_mut().find(|call| call.is_finished()) {
            *over = begin();
        }
        if hanging.hanging() < 2 {
            return Ok(Err("they do not hang yet".to_owned()));
        }
        let answer = admin.post("/v1/mcp/call_tool", &echo(&client)).await?;
        let told = rpc(&admin, &id, None, &call("echo", json!({}))).await?;
        let stays = !calls.iter().any(tokio::task::JoinHandle::is_finished);
        let taken = answer.status == 200 || told.answer()["result"].is_object() || !stays;
        Ok(if taken { Err("one was taken".to_owned()) } else { Ok((answer, told)) })
    });
    let (refused, told) = refused.await?;
    assert_eq!((refused.status.as_u16(), refused.problem()), (429, "mcp-no-room"), "{}", refused.body);
    assert!(refused.body["detail"].as_str().is_some_and(|text| text.contains("ask for less")), "{}", refused.body);
    assert_eq!((told.status, kind(told.answer())), (200, "mcp-no-room"), "{told:?}");
    // Another organization has room.
    theirs.post("/v1/mcp/call_tool", &echo(&their_client)).await?.expect(200)?;

    for call in calls {
        call.abort();
    }
    eventually("room again", SOON, async || {
        let answer = admin.post("/v1/mcp/call_tool", &echo(&client)).await?;
        Ok(if answer.status == 200 { Ok(()) } else { Err(answer.body.to_string()) })
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn notifications_go_no_other_way_than_calls() -> Result<()> {
    let _others = MEMORY.read().await;
    let (_platform, replica, acme) = platform(SESSION_POD).await?;
    let (admin, server) = (replica.api(Some(&acme.admin))?, Raw::start().await?);
    let mut body = configuration("raw", &server.url());
    body["breaker"] = json!({"failures": 2, "successes": 1, "openSeconds": 3600});
    let id = connection(&admin, &body).await?;
    let note = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}});
    assert_eq!(rpc(&admin, &id, None, &note).await?.status, 202);
    server.set_mood(Mood::Status(500));
    for _ in 0..2 {
        let failed = rpc(&admin, &id, None, &note).await?;
        assert_eq!((failed.status, problem(failed.answer())), (502, "mcp-server-failed"), "{failed:?}");
    }
    let seen = server.seen().len();
    let refused = rpc(&admin, &id, None, &note).await?;
    assert_eq!((refused.status, problem(refused.answer())), (503, "mcp-breaker-open"), "{refused:?}");
    assert_eq!(server.seen().len(), seen);
    Ok(())
}

fn problem(answer: &Value) -> &str {
    answer["type"].as_str().and_then(|kind| kind.rsplit('/').next()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_with_names_that_nobody_can_keep_are_not_there() -> Result<()> {
    let _others = MEMORY.read().await;
    let (platform, _, acme) = platform(SESSION_POD).await?;
    let replica = probing(&platform, 1).await?;
    let (admin, server) = (replica.api(Some(&acme.admin))?, Raw::start().await?);
    let tool = |name: &str| json!({"name": name, "inputSchema": {"type": "object"}});
    server.set_tools(vec![tool("echo"), tool("nul\0"), tool(&"x".repeat(300)), tool("esc\u{1b}[2J"), tool("")]);
    let mut body = configuration("raw", &server.url());
    body["tools"] = json!({"pin": true});
    let id = connection(&admin, &body).await?;
    let called = rpc(&admin, &id, None, &call("echo", json!({}))).await?;
    assert!(called.answer()["result"].is_object(), "{called:?}");
    let listed = rpc(&admin, &id, None, &request(1, "tools/list", json!({}))).await?;
    assert_eq!(listed.answer()["result"]["tools"], json!([tool("echo")]));
    for name in ["nul\0", "esc\u{1b}[2J"] {
        let refused = rpc(&admin, &id, None, &call(name, json!({}))).await?;
        assert_eq!(kind(refused.answer()), "mcp-tool-unnamed", "{refused:?}");
    }
    eventually("what the prober saw", SOON, async || {
        let shown = admin.get(&format!("/v1/mcp/configurations/{id}")).await?.expect(200)?;
        let names: Vec<_> = shown["status"]["tools"].as_array().into_iter().flatten().map(|it| &it["name"]).collect();
        Ok(if names == ["echo"] && shown["status"]["state"] == "Ready" { Ok(()) } else { Err(shown.to_string()) })
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_only_tried_leaves_no_label() -> Result<()> {
    let _others = MEMORY.read().await;
    let (_platform, replica, acme) = platform(SESSION_POD).await?;
    let (admin, server) = (replica.api(Some(&acme.admin))?, Raw::start().await?);
    let tried = json!({"configuration": configuration("never-saved", &server.url())});
    let result = admin.post("/v1/mcp/test", &tried).await?.expect(200)?;
    assert_eq!((&result["ok"], result["tools"].as_array().map(Vec::len)), (&json!(true), Some(1)), "{result}");
    let id = connection(&admin, &configuration("saved", &server.url())).await?;
    rpc(&admin, &id, None, &call("echo", json!({}))).await?;
    let text = metrics(&replica).await?;
    assert!(text.contains("connection=\"saved\"") && !text.contains("never-saved"), "{text}");
    Ok(())
}
