//! The real agents, from npm, in session pods without a cluster, against the fake model: conversation, what they are told, the MCP
//! servers of their session. The same for each: nothing here knows how an agent is told or asked.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use agentapi_tests::api::Api;
use agentapi_tests::cluster::eventually;
use agentapi_tests::fakemodel::{self, Recorded};
use agentapi_tests::mcp::raw::Raw;
use agentapi_tests::mcp::setup::{configuration, connection, platform};
use agentapi_tests::serve::agent::PodAgent;
use agentapi_tests::serve::policies::Operator;
use agentapi_tests::serve::steps::running;
use anyhow::Result;
use rstest::rstest;
use serde_json::{Value, json};

const SESSION_POD: &str = env!("CARGO_BIN_EXE_session-pod");
/// A turn with its tools, on a machine that has other things to do.
const TURN: Duration = Duration::from_secs(90);

/// Sends a message and gives back what the agent said to it.
async fn turn(api: &Api, session: &str, text: &str) -> Result<String> {
    send(api, session, text).await?;
    Ok(said(&api.stable(session, TURN).await?))
}

async fn send(api: &Api, session: &str, text: &str) -> Result<()> {
    let path = format!("/v1/sessions/{session}/message");
    api.post(&path, &json!({"content": text, "type": "user"})).await?.expect(200).map(drop)
}

/// The agent's last words.
fn said(messages: &[Value]) -> String {
    let last = messages.last().filter(|message| message["role"] == "agent");
    last.and_then(|message| message["content"].as_str()).unwrap_or_default().to_owned()
}

async fn requests(model: &str) -> Result<Vec<Recorded>> {
    Ok(reqwest::Client::builder().no_proxy().build()?.get(format!("{model}/requests")).send().await?.json().await?)
}

#[rstest]
#[case::claude("claude")]
#[case::codex("codex")]
#[case::droid("droid")]
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_talks_knows_its_rules_and_finds_its_servers(#[case] agent: &str) -> Result<()> {
    let (platform, replica, acme) = platform(SESSION_POD).await?;
    let model = fakemodel::serve(fakemodel::Config::default()).await?;
    platform.pods.set_agent(PodAgent::real(agent, "pty", &model)?);
    let rules = json!({"template": "Rule seventeen: be kind to boats."});
    Operator::of(&platform).await?.of_organization(&acme.organization, "rules", &rules).await?;
    let server = Raw::start().await?;
    connection(&replica.api(Some(&acme.admin))?, &configuration("tracker", &server.url())).await?;

    let alice = replica.api(Some(&acme.alice))?;
    let session = running(&alice, json!({"workspace": "main"})).await?;
    alice.stable(&session, TURN).await?;
    let first = turn(&alice, &session, "remember the blue door").await?;
    assert!(first.contains("I will remember the blue door."), "{first}");
    let second = turn(&alice, &session, "recall").await?;
    assert!(second.contains("You asked me to remember the blue door."), "{second}");
    // The same answer again is an answer of its own.
    let third = turn(&alice, &session, "recall").await?;
    assert_eq!(third, second);
    let messages = alice.stable(&session, TURN).await?;
    let roles: Vec<&str> = messages.iter().map(|message| message["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["agent", "user", "agent", "user", "agent", "user", "agent"]);

    let asked = requests(&model).await?;
    let told = |asked: &&Recorded| asked.user == "recall" && asked.system.contains("Rule seventeen: be kind to boats.");
    assert!(asked.iter().any(|it| told(&it)), "the model was not told the rules: {asked:#?}");
    eventually("the agent asks its server for tools", TURN, async || {
        let seen: Vec<String> = server.seen().iter().map(|seen| seen.body["method"].to_string()).collect();
        Ok(if server.count("tools/list") > 0 { Ok(()) } else { Err(format!("{seen:?}")) })
    })
    .await?;
    Ok(())
}
