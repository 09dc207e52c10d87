//! Agents that speak ACP on the real cluster: a session pod of each kind against the fake model: turns, a tool that a
//! client allows, cancelling, a restarted container that goes on with the agent's own session.
#![cfg(feature = "cluster")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use agentapi_tests::{
    api::Api,
    cluster::{Cluster, eventually},
};
use rstest::rstest;
use serde_json::{Value, json};
use std::time::Duration;

const READY: Duration = Duration::from_secs(120);
const TURN: Duration = Duration::from_secs(60);
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
        eventually(&format!("{name} Ready"), READY, async || {
            let seen = cluster.condition("workspace", Some(TEAM), &name, "Ready")?;
            Ok(if seen.as_ref().is_some_and(|(status, _)| status == "True") {
                Ok(())
            } else {
                Err(format!("{seen:?}"))
            })
        })
        .await
        .unwrap();
        Self { cluster, name }
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        let gone = ["-n", TEAM, "delete", "workspace", &self.name, "--ignore-not-found", "--timeout=60s"];
        let _ = self.cluster.try_kubectl(&gone, "");
    }
}

async fn turn(api: &Api, path: &str, id: &str, text: &str) -> String {
    api.post(&format!("{path}/message"), &json!({"content": text, "type": "user"})).await.unwrap().expect(200).unwrap();
    last(&api.stable(id, TURN).await.unwrap())
}

fn last(messages: &[Value]) -> String {
    messages.last().unwrap()["content"].as_str().unwrap().to_owned()
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
    let body = api.post("/v1/sessions", &json!({"workspace": workspace.name})).await.unwrap().expect(201).unwrap();
    let id = body["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/sessions/{id}");
    api.stable(&id, READY).await.unwrap();
    let status = api.get(&format!("{path}/status")).await.unwrap().expect(200).unwrap();
    assert_eq!(status["transport"], "acp");

    let first = turn(&api, &path, &id, "remember the blue door").await;
    assert!(first.ends_with("I will remember the blue door."), "{first}");
    let said = turn(&api, &path, &id, "recall").await;
    assert!(said.ends_with("You asked me to remember the blue door."), "{said}");

    let command = json!({"content": "run: touch made && ls", "type": "user"});
    api.post(&format!("{path}/message"), &command).await.unwrap().expect(200).unwrap();
    let permission = eventually("a request for permission", TURN, async || {
        let body = api.get(&format!("{path}/permissions")).await?.expect(200)?;
        Ok(body["permissions"].get(0).cloned().ok_or_else(|| body.to_string()))
    })
    .await
    .unwrap();
    let options = permission["options"].as_array().unwrap();
    let option = options.iter().find(|option| option["kind"] == "allow_once").unwrap();
    let answer = json!({"id": permission["id"], "option_id": option["option_id"]});
    api.post(&format!("{path}/permission"), &answer).await.unwrap().expect(200).unwrap();
    let said = last(&api.stable(&id, TURN).await.unwrap());
    assert!(said.contains("[tool] ") && said.contains("made"), "{said}");

    // An agent that has not begun yet has nothing to stop, so it is told until it does.
    api.post(&format!("{path}/message"), &json!({"content": "slow 600", "type": "user"})).await.unwrap();
    let stopped = eventually("the agent stops", TURN, async || {
        api.post(&format!("{path}/cancel"), &json!({})).await?;
        let status = api.get(&format!("{path}/status")).await?.expect(200)?;
        let messages = api.get(&format!("{path}/messages")).await?.expect(200)?;
        Ok(if status["status"] == "stable" { Ok(messages["messages"].clone()) } else { Err(messages.to_string()) })
    })
    .await
    .unwrap();
    let said = last(stopped.as_array().unwrap());
    assert!(said.ends_with("[stopped: cancelled]"), "{said}");

    // The container dies and comes back; the agent still knows what it was told.
    let pods = cluster.list("pods", "", &format!("agentapi.dev/session={id}")).unwrap();
    let field = |name: &str| pods[0]["metadata"][name].as_str().unwrap().to_owned();
    let (namespace, pod) = (field("namespace"), field("name"));
    let before = api.stable(&id, TURN).await.unwrap();
    cluster.kubectl(&["-n", &namespace, "exec", &pod, "--", "kill", "-TERM", "1"]).unwrap();
    eventually("the container restarts", READY, async || {
        let pod = cluster.get("pod", Some(&namespace), &pod)?.unwrap_or_default();
        let count = pod["status"]["containerStatuses"][0]["restartCount"].as_i64().unwrap_or_default();
        Ok(if count > 0 { Ok(()) } else { Err("not yet".to_owned()) })
    })
    .await
    .unwrap();
    let after = api.stable(&id, READY).await.unwrap();
    assert_eq!(before.len(), after.len(), "the history changed over the restart: {after:?}");
    let said = turn(&api, &path, &id, "recall").await;
    assert!(said.ends_with("You asked me to remember the blue door."), "{said}");
    api.delete(&path).await.unwrap();
}
