//! The real agents, from npm, against the fake model: suspended and woken they know what was said before.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use agentapi_tests::serve::steps::phase;
use agentapi_tests::stage::Stage;
use anyhow::Result;
use rstest::rstest;

const SESSION_POD: &str = env!("CARGO_BIN_EXE_session-pod");

#[rstest]
#[case::claude("claude", "pty")]
#[case::codex("codex", "pty")]
#[case::droid("droid", "pty")]
#[case::claude_acp("claude", "acp")]
#[case::codex_acp("codex", "acp")]
#[case::droid_acp("droid", "acp")]
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_goes_on_with_its_conversation(#[case] agent: &str, #[case] transport: &str) -> Result<()> {
    let stage = Stage::of(SESSION_POD, agent, transport).await?;
    let (platform, organization) = (&stage.platform, stage.acme.organization.id.to_string());
    let workspace = async |spec: &str| {
        let set = "update workspaces set spec = $2::jsonb where org_id = $1::uuid";
        platform.operator(set, &[&organization, spec]).await
    };
    let talk = stage.begin().await?;
    talk.send("remember the blue door").await?;
    talk.says("I will remember the blue door.").await?;
    let before = talk.stable().await?;
    workspace(r#"{"suspend": {"idleAfter": "2s"}}"#).await?;
    phase(&talk.api, &talk.id, "Suspended").await?;
    assert_eq!(platform.pods.count(), 0);
    workspace("{}").await?;

    talk.send("recall").await?;
    talk.says("You asked me to remember the blue door.").await?;
    let after = talk.stable().await?;
    assert_eq!(after[..before.len()], before, "what was said before is as it was");
    assert_eq!(after.len(), before.len() + 2, "{after:?}");
    Ok(())
}
