//! Clients of MCP servers: a user connects, lists, calls, reads, and any replica goes on with it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use agentapi_tests::cluster::eventually;
use agentapi_tests::mcp::raw::{Mood, Raw};
use agentapi_tests::mcp::setup::{self, configuration, connect, connection, platform, protected, secret};
use agentapi_tests::serve::steps::SOON;
use anyhow::Result;
use reqwest::Method;
use serde_json::{Value, json};

const SESSION_POD: &str = env!("CARGO_BIN_EXE_session-pod");

fn names(list: &Value, field: &str) -> Vec<String> {
    let all = list[field].as_array().into_iter().flatten();
    all.filter_map(|it| it["name"].as_str().map(str::to_owned)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_question_reaches_a_real_server_by_either_transport() -> Result<()> {
    let (platform, replica, acme) = platform(SESSION_POD).await?;
    let (admin, alice) = (replica.api(Some(&acme.admin))?, replica.api(Some(&acme.alice))?);
    for transport in ["http", "sse"] {
        let (_server, id) = protected(&platform, &acme, &admin, transport).await?;
        let client = connect(&alice, &id).await?;
        let ask = async |route: &str, mut body: Value| {
            body["client"] = json!(client);
            alice.post(&format!("/v1/mcp/{route}"), &body).await
        };
        let tools = ask("list_tools", json!({})).await?.expect(200)?;
        let tools = names(&tools, "tools");
        assert!(tools.contains(&"echo".to_owned()) && !tools.contains(&"broken".to_owned()), "{transport}: {tools:?}");
        let echo = ask("call_tool", json!({"name": "echo", "arguments": {"text": "grüße"}})).await?.expect(200)?;
        assert_eq!(echo["content"][0]["text"], "grüße", "{transport}: {echo}");
        let denied = ask("call_tool", json!({"name": "broken"})).await?;
        assert_eq!((denied.status.as_u16(), denied.problem()), (403, "mcp-tool-not-allowed"), "{}", denied.body);
        let resources = ask("list_resources", json!({})).await?.expect(200)?;
        assert_eq!(resources["resources"][0]["uri"], "notes://today", "{resources}");
        let read = ask("read_resource", json!({"uri": "notes://today"})).await?.expect(200)?;
        assert_eq!(read["contents"][0]["text"], "buy milk");
        let prompts = ask("list_prompts", json!({})).await?.expect(200)?;
        assert_eq!(names(&prompts, "prompts"), ["review"]);
        let prompt = ask("get_prompt", json!({"name": "review", "arguments": {"code": "x = 1"}})).await?.expect(200)?;
        assert!(prompt.to_string().contains("x = 1"), "{prompt}");
        let unknown = ask("read_resource", json!({"uri": "notes://never"})).await?;
        assert_eq!((unknown.status.as_u16(), unknown.problem()), (422, "mcp-error"), "{}", unknown.body);
        let shown = alice.get(&format!("/v1/mcp/client/{client}")).await?.expect(200)?;
        assert_eq!(shown["server"]["name"], "fixture", "{shown}");
        alice.post("/v1/mcp/disconnect", &json!({"client": client})).await?;
        let over = ask("list_tools", json!({})).await?;
        assert_eq!((over.status.as_u16(), over.problem()), (404, "mcp-client-not-found"));
    }
    // Each call was recorded with a digest of its arguments and without them.
    let calls = admin.get("/v1/audit?action=mcp.tool-call").await?.expect(200)?;
    assert_eq!(calls["entries"].as_array().map(Vec::len), Some(2), "{calls}");
    assert!(calls.to_string().contains("sha256:") && !calls.to_string().contains("grüße"), "{calls}");
    for action in ["mcp.connect", "mcp.disconnect"] {
        let rows = admin.get(&format!("/v1/audit?action={action}")).await?.expect(200)?;
        assert_eq!(rows["entries"].as_array().map(Vec::len), Some(2), "{rows}");
    }
    let refused = admin.get("/v1/audit?action=mcp.tool-call-fail").await?.expect(200)?;
    assert_eq!(refused["entries"][0]["detail"]["reason"], "mcp-tool-not-allowed", "{refused}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn another_replica_goes_on_with_a_client_and_a_lost_session_is_opened_again() -> Result<()> {
    let (platform, first, acme) = platform(SESSION_POD).await?;
    let second = setup::replica(&platform).await?;
    let server = Raw::start().await?;
    let id = connection(&first.api(Some(&acme.admin))?, &configuration("raw", &server.url())).await?;
    let client = connect(&first.api(Some(&acme.alice))?, &id).await?;
    let body = json!({"client": client, "name": "echo", "arguments": {"n": 1}});
    let other = second.api(Some(&acme.alice))?;
    other.post("/v1/mcp/call_tool", &body).await?.expect(200)?;
    let last = server.seen().pop().unwrap();
    assert!(last.head.contains("mcp-session-id: session-1\r\n"), "{}", last.head);
    assert!(last.head.contains("mcp-protocol-version: 2025-06-18\r\n"), "{}", last.head);
    server.set_mood(Mood::Forgetful);
    other.post("/v1/mcp/call_tool", &body).await?.expect(200)?;
    assert!(server.seen().pop().unwrap().head.contains("mcp-session-id: session-2\r\n"));
    // And the first replica knows the new one.
    first.api(Some(&acme.alice))?.post("/v1/mcp/call_tool", &body).await?.expect(200)?;
    assert!(server.seen().pop().unwrap().head.contains("mcp-session-id: session-2\r\n"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_that_was_changed_is_used_at_once_and_never_shown() -> Result<()> {
    let (platform, replica, acme) = platform(SESSION_POD).await?;
    let (admin, server) = (replica.api(Some(&acme.admin))?, Raw::start().await?);
    secret(&platform, &acme, "raw", "first-t0ken", &server.url())?;
    server.set_token("first-t0ken");
    let mut body = configuration("raw", &server.url());
    body["auth"] = json!({"bearer": {"secretRef": {"name": "raw", "key": "token"}}});
    let id = connection(&admin, &body).await?;
    let client = connect(&admin, &id).await?;
    let call = json!({"client": client, "name": "echo"});
    admin.post("/v1/mcp/call_tool", &call).await?.expect(200)?;
    server.set_token("second-t0ken");
    let refused = admin.post("/v1/mcp/call_tool", &call).await?;
    assert_eq!((refused.status.as_u16(), refused.problem()), (502, "mcp-unauthorized"), "{}", refused.body);
    secret(&platform, &acme, "raw", "second-t0ken", &server.url())?;
    admin.post("/v1/mcp/call_tool", &call).await?.expect(200)?;
    for path in ["/v1/mcp/configurations", "/v1/mcp/clients", "/v1/audit?limit=1000"] {
        let shown = admin.get(path).await?.expect(200)?.to_string();
        assert!(!shown.contains("t0ken"), "{path}: {shown}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_key_goes_in_the_header_that_its_server_wants() -> Result<()> {
    let (platform, replica, acme) = platform(SESSION_POD).await?;
    let (admin, server) = (replica.api(Some(&acme.admin))?, Raw::start().await?);
    secret(&platform, &acme, "raw", "a-k3y", &server.url())?;
    let mut body = configuration("raw", &server.url());
    body["auth"] = json!({"apiKey": {"header": "X-Api-Key", "secretRef": {"name": "raw", "key": "token"}}});
    let client = connect(&admin, &connection(&admin, &body).await?).await?;
    admin.post("/v1/mcp/call_tool", &json!({"client": client, "name": "echo"})).await?.expect(200)?;
    let seen = server.seen();
    assert!(seen.len() > 1);
    for seen in seen {
        assert!(seen.head.contains("x-api-key: a-k3y\r\n") && !seen.head.contains("authorization:"), "{}", seen.head);
    }
    for path in ["/v1/mcp/configurations", "/v1/mcp/clients", "/v1/audit?limit=1000"] {
        assert!(!admin.get(path).await?.expect(200)?.to_string().contains("a-k3y"), "{path}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_says_nothing_takes_its_own_places_and_nobody_elses() -> Result<()> {
    const PLACES: usize = 32;
    let (_platform, replica, acme) = platform(SESSION_POD).await?;
    let (admin, silent, well) = (replica.api(Some(&acme.admin))?, Raw::start().await?, Raw::start().await?);
    let dead = connect(&admin, &connection(&admin, &configuration("silent", &silent.url())).await?).await?;
    let alive = connect(&admin, &connection(&admin, &configuration("well", &well.url())).await?).await?;
    silent.set_mood(Mood::Silent);
    let call = |client: &str| json!({"client": client, "name": "echo"});
    let waiting: Vec<_> = (0..PLACES)
        .map(|_| {
            let (admin, body) = (admin.clone(), call(&dead));
            tokio::spawn(async move { admin.post("/v1/mcp/call_tool", &body).await })
        })
        .collect();
    eventually("all places are taken", SOON, async || {
        let taken = silent.count("tools/call");
        Ok(if taken == PLACES { Ok(()) } else { Err(format!("{taken} calls")) })
    })
    .await?;
    let refused = admin.request(Method::POST, "/v1/mcp/call_tool").json(&call(&dead)).send().await?;
    assert_eq!(refused.status(), 429);
    assert_eq!(refused.headers()["retry-after"], "1");
    assert!(refused.text().await?.contains("/mcp-busy"));
    assert_eq!(silent.count("tools/call"), PLACES, "it was called all the same");
    admin.post("/v1/mcp/call_tool", &call(&alive)).await?.expect(200)?;
    for call in waiting {
        call.abort();
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn arguments_that_a_schema_marks_are_sent_as_headers_too() -> Result<()> {
    let (_platform, replica, acme) = platform(SESSION_POD).await?;
    let (admin, server) = (replica.api(Some(&acme.admin))?, Raw::start().await?);
    let id = connection(&admin, &configuration("raw", &server.url())).await?;
    let client = connect(&admin, &id).await?;
    let region = json!({"type": "string", "x-mcp-header": "Region"});
    server.set_tools(vec![json!({"name": "weather", "inputSchema": {"properties": {"region": region}}})]);
    server.set_mood(Mood::WantsHeader("mcp-param-region: us-west1\r\n"));
    let weather = json!({"client": client, "name": "weather", "arguments": {"region": "us-west1"}});
    admin.post("/v1/mcp/call_tool", &weather).await?.expect(200)?;
    assert_eq!(server.count("tools/call"), 2, "the first one was refused, unread");
    let other = json!({"client": client, "name": "weather", "arguments": {}});
    let refused = admin.post("/v1/mcp/call_tool", &other).await?;
    assert_eq!((refused.status.as_u16(), refused.problem()), (422, "mcp-error"), "{}", refused.body);
    Ok(())
}
