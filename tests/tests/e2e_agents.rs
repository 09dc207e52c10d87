//! Agents that speak ACP on the real cluster: a session pod of each kind against the fake model: turns, a tool that a
//! client allows, cancelling, a restarted container that goes on with the agent's own session.
#![cfg(feature = "cluster")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use agentapi_tests::{
    api::Api,
    cluster::{Cluster, eventually},
    talk::{Talk, last},
};
use rstest::rstest;
use serde_json::{Value, json};
use std::time::Duration;

const READY: Duration = Duration::from_secs(120);
const TEAM: &str = "team-acme";
const MODEL: &str = "http://fake-model.agentapi-demo.svc.cluster.local:8000";

/// A Workspace of acme for an agent, gone with this value.
struct Workspace {
    cluster: Cluster,
    name: String,
}

impl Workspace {
    async fn new(agent: &str, env: &[(&str, &str)]) -> Self {
        let cluster = Cluster::connect().unwrap();
        let name = format!("acp-{}", agent.to_lowercase());
        let env: Vec<Value> = env.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
        let workspace = json!({
            "apiVersion": "agentapi.dev/v1alpha1", "kind": "Workspace",
            "metadata": {"name": name, "namespace": TEAM},
            "spec": {
                "organizationRef": {"name": "acme"}, "maxSessions": 2,
                "agent": {
                    "type": agent, "image": format!("agentapi.dev/session-{}:dev", agent.to_lowercase()),
                    "transport": "Acp", "permissions": {"timeout": "2m"}, "env": env,
                },
                "egress": [{"namespace": "agentapi-demo", "ports": [8000]}],
            },
        });
        cluster.apply(&workspace.to_string()).unwrap();
        cluster.ready("workspace", Some(TEAM), &name, READY).await.unwrap();
        Self { cluster, name }
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        let gone = ["-n", TEAM, "delete", "workspace", &self.name, "--ignore-not-found", "--timeout=60s"];
        let _ = self.cluster.try_kubectl(&gone, "");
    }
}

#[rstest]
#[case::claude("Claude", &[("ANTHROPIC_BASE_URL", MODEL), ("ANTHROPIC_API_KEY", "any-key")])]
#[case::codex("Codex", &[("OPENAI_BASE_URL", "http://fake-model.agentapi-demo.svc.cluster.local:8000/v1"),
                         ("OPENAI_API_KEY", "any-key")])]
#[case::droid("Droid", &[("ANTHROPIC_BASE_URL", MODEL), ("ANTHROPIC_API_KEY", "any-key"),
                         ("ANTHROPIC_MODEL", "fake-model")])]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_speaks_acp_in_a_session_pod(#[case] agent: &str, #[case] env: &[(&str, &str)]) {
    let workspace = Workspace::new(agent, env).await;
    let cluster = &workspace.cluster;
    let api = Api::new(&cluster.api_url().unwrap(), Some(cluster.token("acme-alice").unwrap())).unwrap();
    let talk = Talk::begin(&api, &json!({"workspace": workspace.name}), READY).await.unwrap();
    assert_eq!(talk.get("status").await.unwrap()["transport"], "acp");

    let first = talk.turn("remember the blue door").await.unwrap();
    assert!(first.ends_with("I will remember the blue door."), "{first}");
    let said = talk.turn("recall").await.unwrap();
    assert!(said.ends_with("You asked me to remember the blue door."), "{said}");

    talk.send("run: touch made && ls").await.unwrap();
    let permission = talk.asked().await.unwrap();
    talk.answer(&permission, "allow_once").await.unwrap().expect(200).unwrap();
    let said = talk.said().await.unwrap();
    assert!(said.contains("[tool] ") && said.contains("made"), "{said}");

    // An agent that has not begun yet has nothing to stop, so it is told until it does.
    talk.send("slow 600").await.unwrap();
    let stopped = eventually("the agent stops", READY, async || {
        talk.cancel().await?;
        let (status, messages) = (talk.get("status").await?, talk.get("messages").await?);
        Ok(if status["status"] == "stable" { Ok(messages["messages"].clone()) } else { Err(messages.to_string()) })
    })
    .await
    .unwrap();
    let said = last(stopped.as_array().unwrap()).unwrap();
    assert!(said.ends_with("[stopped: cancelled]"), "{said}");

    // The container dies and comes back; the agent still knows what it was told.
    let (namespace, pod) = cluster.session_pod(&talk.id).unwrap().unwrap();
    let before = talk.stable().await.unwrap();
    cluster.restart((&namespace, &pod), READY).await.unwrap();
    let after = talk.stable().await.unwrap();
    assert_eq!(before.len(), after.len(), "the history changed over the restart: {after:?}");
    let said = talk.turn("recall").await.unwrap();
    assert!(said.ends_with("You asked me to remember the blue door."), "{said}");
    api.delete(&format!("/v1/sessions/{}", talk.id)).await.unwrap();
}
