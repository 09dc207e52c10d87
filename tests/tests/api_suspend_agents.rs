//! The real agents, from npm, against the fake model: suspended and woken they know what was said before.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use agentapi_tests::api::Api;
use agentapi_tests::cluster::eventually;
use agentapi_tests::fakemodel;
use agentapi_tests::serve::Platform;
use agentapi_tests::serve::agent::PodAgent;
use agentapi_tests::serve::steps::{phase, running};
use anyhow::Result;
use rstest::rstest;
use serde_json::json;

const SESSION_POD: &str = env!("CARGO_BIN_EXE_session-pod");
/// A turn, on a machine that has other things to do.
const TURN: Duration = Duration::from_secs(90);

/// Waits for the agent's words: on a busy machine a terminal can be quiet for a while before they come.
async fn says(api: &Api, session: &str, words: &str) -> Result<()> {
    eventually("the agent's words", TURN, async || {
        let body = api.get(&format!("/v1/sessions/{session}/messages")).await?.expect(200)?;
        let last = body["messages"].as_array().and_then(|messages| messages.last()).cloned().unwrap_or_default();
        let said = last["role"] == "agent" && last["content"].as_str().is_some_and(|text| text.contains(words));
        Ok(if said { Ok(()) } else { Err(body.to_string()) })
    })
    .await
}

#[rstest]
#[case::claude("claude", "pty")]
#[case::codex("codex", "pty")]
#[case::droid("droid", "pty")]
#[case::claude_acp("claude", "acp")]
#[case::codex_acp("codex", "acp")]
#[case::droid_acp("droid", "acp")]
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_goes_on_with_its_conversation(#[case] agent: &str, #[case] transport: &str) -> Result<()> {
    let (platform, replica, acme) = Platform::with_acme(SESSION_POD).await?;
    let model = fakemodel::serve(fakemodel::Config::default()).await?;
    platform.pods.set_agent(PodAgent::real(agent, transport, &model)?);
    let organization = acme.organization.id.to_string();
    let workspace = async |spec: &str| {
        let set = "update workspaces set spec = $2::jsonb where org_id = $1::uuid";
        platform.operator(set, &[&organization, spec]).await
    };
    let alice = replica.api(Some(&acme.alice))?;
    let id = running(&alice, json!({"workspace": "main"})).await?;
    alice.stable(&id, TURN).await?;
    let path = format!("/v1/sessions/{id}/message");
    let first = json!({"content": "remember the blue door", "type": "user"});
    alice.post(&path, &first).await?.expect(200)?;
    says(&alice, &id, "I will remember the blue door.").await?;
    let before = alice.stable(&id, TURN).await?;
    workspace(r#"{"suspend": {"idleAfter": "2s"}}"#).await?;
    phase(&alice, &id, "Suspended").await?;
    assert_eq!(platform.pods.count(), 0);
    workspace("{}").await?;

    alice.post(&path, &json!({"content": "recall", "type": "user"})).await?.expect(200)?;
    says(&alice, &id, "You asked me to remember the blue door.").await?;
    let after = alice.stable(&id, TURN).await?;
    assert_eq!(after[..before.len()], before, "what was said before is as it was");
    assert_eq!(after.len(), before.len() + 2, "{after:?}");
    Ok(())
}
