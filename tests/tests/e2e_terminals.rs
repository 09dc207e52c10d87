//! Codex and Droid in their terminals on the real cluster, from the examples: turns, a permission that a client gives, a turn that is
//! stopped, a restarted container that goes on with the agent's own conversation. Claude Code's terminal is in `e2e_story`.
#![cfg(feature = "cluster")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use std::time::Duration;

use agentapi_tests::api::Api;
use agentapi_tests::cluster::{Cluster, eventually, repo};
use agentapi_tests::fakemodel;
use agentapi_tests::talk::{Talk, last};
use rstest::rstest;
use serde_json::json;

const READY: Duration = Duration::from_secs(120);
const TEAM: &str = "team-acme";

/// The workspace of an example, gone with this value.
struct Example {
    cluster: Cluster,
    name: &'static str,
}

impl Example {
    async fn apply(name: &'static str) -> Self {
        let example = Self { cluster: Cluster::connect().unwrap(), name };
        for file in ["acme", name] {
            let text = std::fs::read_to_string(repo().join(format!("examples/{file}.yaml"))).unwrap();
            example.cluster.apply(&text).unwrap();
        }
        example.cluster.ready("workspace", Some(TEAM), name, READY).await.unwrap();
        example
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        let gone = ["-n", TEAM, "delete", "workspace", self.name, "--ignore-not-found", "--wait=false"];
        let _ = self.cluster.try_kubectl(&gone, "");
    }
}

/// When the demo's model was last told to answer slowly.
async fn asked_to_be_slow(model: &str) -> anyhow::Result<Option<String>> {
    let seen = fakemodel::recorded(model).await?;
    Ok(seen.into_iter().rfind(|it| it.user == "slow 600").map(|it| it.time))
}

#[rstest]
#[case::codex("codex")]
#[case::droid("droid")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_works_in_its_terminal_in_a_session_pod(#[case] agent: &'static str) {
    let example = Example::apply(agent).await;
    let cluster = &example.cluster;
    let api = Api::new(&cluster.api_url().unwrap(), Some(cluster.token("acme-alice").unwrap())).unwrap();
    let talk = Talk::begin(&api, &json!({"workspace": agent}), READY).await.unwrap();
    let status = talk.get("status").await.unwrap();
    assert_eq!((&status["transport"], &status["agent_type"]), (&json!("pty"), &json!(agent)));

    let remembered = "You asked me to remember the blue door.";
    assert!(talk.turn("remember the blue door").await.unwrap().contains("I will remember the blue door."));
    assert!(talk.turn("recall").await.unwrap().contains(remembered));

    talk.send("run: touch made && ls").await.unwrap();
    talk.permit("allow_once").await.unwrap();
    talk.says("The command printed").await.unwrap();
    let said = talk.said().await.unwrap();
    assert!(said.contains("The command printed") && said.contains("made"), "{said}");

    let forward = cluster.port_forward("agentapi-demo", "deploy/fake-model", 8000).unwrap();
    let before = asked_to_be_slow(&forward.url()).await.unwrap();
    talk.send("slow 600").await.unwrap();
    // Not every agent shows what it has got so far.
    eventually("the model is asked", READY, async || {
        let asked = asked_to_be_slow(&forward.url()).await?;
        Ok(if asked == before { Err(format!("last: {asked:?}")) } else { Ok(()) })
    })
    .await
    .unwrap();
    eventually("it can be stopped", READY, async || {
        let answer = talk.cancel().await?;
        Ok(if answer.status == 200 { Ok(()) } else { Err(answer.body.to_string()) })
    })
    .await
    .unwrap();
    let before = talk.at_rest().await.unwrap();
    assert!(!last(&before).unwrap().contains("word 600"));

    let (namespace, pod) = cluster.session_pod(&talk.id).unwrap().unwrap();
    cluster.restart((&namespace, &pod), READY).await.unwrap();
    let after = talk.stable().await.unwrap();
    assert_eq!(after, before, "the history changed over the restart");
    assert!(talk.turn("recall").await.unwrap().contains(remembered));
    api.delete(&format!("/v1/sessions/{}", talk.id)).await.unwrap();
}
