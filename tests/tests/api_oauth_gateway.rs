//! The gateway with the consent of a user: what goes to the MCP server, what does not, and what a refused token costs.

use std::collections::BTreeSet;

use agentapi_tests::mcp::raw::Raw;
use agentapi_tests::mcp::setup::{call, initialize, rpc};
use agentapi_tests::oauth::World;
use agentapi_tests::oauth::agent::Decision;
use anyhow::{Context, Result};
use serde_json::{Value, json};

const SESSION_POD: &str = env!("CARGO_BIN_EXE_session-pod");

/// Bearer tokens that the server has seen, in lower case as the server has them.
fn tokens(server: &Raw) -> BTreeSet<String> {
    let bearer =
        |head: &str| head.lines().find_map(|line| line.strip_prefix("authorization: bearer ").map(str::to_owned));
    server.seen().iter().filter_map(|seen| bearer(&seen.head)).collect()
}

fn problem(answer: &Value) -> &str {
    answer["error"]["data"]["type"].as_str().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_users_calls_go_with_the_users_token_and_nobody_elses() -> Result<()> {
    let world = World::start(SESSION_POD).await?;
    let server = Raw::start().await?;
    let (alice, bob) = (world.replica.api(Some(&world.acme.alice))?, world.replica.api(Some(&world.acme.bob))?);
    let oauth = json!({"clientSecretRef": "client_secret_basic", "url": server.url()});
    let connection = world.connection(&world.acme, "fixture", &oauth).await?;
    let id = connection.to_string();

    // Before: the server is not even asked.
    let refused = rpc(&alice, &id, None, &call("echo", json!({}))).await?;
    assert_eq!(problem(refused.answer()), "mcp-needs-consent", "{refused:?}");
    assert!(server.seen().is_empty());

    world.consent(&alice, connection, Decision::Allow).await?.expect(200)?;
    let session = initialize(&alice, &id).await?;
    let answered = rpc(&alice, &id, session.as_deref(), &call("echo", json!({"x": 1}))).await?;
    assert!(answered.answer()["result"]["content"][0]["text"].is_string(), "{answered:?}");
    let seen = tokens(&server);
    assert_eq!(seen.len(), 1, "one user, one token");
    let first = seen.first().context("none")?.clone();
    assert_ne!(first, world.acme.alice.to_lowercase(), "the caller's own token stays here");
    assert!(!answered.answer().to_string().contains(&first));

    let refused = rpc(&bob, &id, None, &call("echo", json!({}))).await?;
    assert_eq!(problem(refused.answer()), "mcp-needs-consent", "{refused:?}");

    // The server takes no token any more: another one is fetched, once, and tried, once.
    server.set_token("something else");
    let before = server.count("tools/call");
    let refused = rpc(&alice, &id, session.as_deref(), &call("echo", json!({}))).await?;
    assert!(!refused.answer()["error"].is_null(), "{refused:?}");
    assert_eq!(world.oidc.refreshes(), 1);
    assert_eq!((server.count("tools/call") - before, tokens(&server).len()), (2, 2));

    alice.post("/v1/oauth/revoke", &json!({"connection": connection})).await?.expect(200)?;
    let calls = server.seen().len();
    let refused = rpc(&alice, &id, session.as_deref(), &call("echo", json!({}))).await?;
    assert_eq!(problem(refused.answer()), "mcp-consent-revoked", "{refused:?}");
    assert_eq!(server.seen().len(), calls);
    Ok(())
}
