//! Codex and Droid in their terminals on the real cluster, from the examples: turns, a permission that a client gives, a turn that is
//! stopped, a restarted container that goes on with the agent's own conversation. Claude Code's terminal is in `e2e_story`.
#![cfg(feature = "cluster")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use std::time::Duration;

use agentapi_tests::api::Api;
use agentapi_tests::cluster::{Cluster, eventually, repo};
use agentapi_tests::fakemodel;
use rstest::rstest;
use serde_json::{Value, json};

const READY: Duration = Duration::from_secs(120);
const TURN: Duration = Duration::from_secs(60);
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
        eventually(&format!("workspace {name} Ready"), READY, async || {
            let seen = example.cluster.condition("workspace", Some(TEAM), name, "Ready")?;
            let ready = seen.as_ref().is_some_and(|(status, _)| status == "True");
            Ok(if ready { Ok(()) } else { Err(format!("{seen:?}")) })
        })
        .await
        .unwrap();
        example
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        let gone = ["-n", TEAM, "delete", "workspace", self.name, "--ignore-not-found", "--wait=false"];
        let _ = self.cluster.try_kubectl(&gone, "");
    }
}

/// How often the demo's model was told to answer slowly.
async fn asked_to_be_slow(model: &str) -> anyhow::Result<usize> {
    let seen = fakemodel::recorded(model).await?;
    Ok(seen.iter().filter(|it| it.user == "slow 600").count())
}

async fn send(api: &Api, id: &str, text: &str) {
    let body = json!({"content": text, "type": "user"});
    api.post(&format!("/v1/sessions/{id}/message"), &body).await.unwrap().expect(200).unwrap();
}

async fn turn(api: &Api, id: &str, text: &str) -> String {
    send(api, id, text).await;
    last(&api.stable(id, TURN).await.unwrap())
}

fn last(messages: &[Value]) -> String {
    messages.last().unwrap()["content"].as_str().unwrap().to_owned()
}

#[rstest]
#[case::codex("codex")]
#[case::droid("droid")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_works_in_its_terminal_in_a_session_pod(#[case] agent: &'static str) {
    let example = Example::apply(agent).await;
    let cluster = &example.cluster;
    let api = Api::new(&cluster.api_url().unwrap(), Some(cluster.token("acme-alice").unwrap())).unwrap();
    let body = api.post("/v1/sessions", &json!({"workspace": agent})).await.unwrap().expect(201).unwrap();
    let id = body["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/sessions/{id}");
    api.stable(&id, READY).await.unwrap();
    let status = api.get(&format!("{path}/status")).await.unwrap().expect(200).unwrap();
    assert_eq!((&status["transport"], &status["agent_type"]), (&json!("pty"), &json!(agent)));

    let remembered = "You asked me to remember the blue door.";
    assert!(turn(&api, &id, "remember the blue door").await.contains("I will remember the blue door."));
    assert!(turn(&api, &id, "recall").await.contains(remembered));

    send(&api, &id, "run: touch made && ls").await;
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
    assert!(said.contains("The command printed") && said.contains("made"), "{said}");

    let forward = cluster.port_forward("agentapi-demo", "deploy/fake-model", 8000).unwrap();
    let before = asked_to_be_slow(&forward.url()).await.unwrap();
    send(&api, &id, "slow 600").await;
    // Not every agent shows what it has got so far.
    eventually("the model is asked", TURN, async || {
        let asked = asked_to_be_slow(&forward.url()).await?;
        Ok(if asked > before { Ok(()) } else { Err(format!("{asked} times")) })
    })
    .await
    .unwrap();
    eventually("it can be stopped", TURN, async || {
        let answer = api.post(&format!("{path}/cancel"), &json!({})).await?;
        Ok(if answer.status == 200 { Ok(()) } else { Err(answer.body.to_string()) })
    })
    .await
    .unwrap();
    let before = api.stable(&id, TURN).await.unwrap();
    assert!(!last(&before).contains("word 600"));

    let pods = cluster.list("pods", "", &format!("agentapi.dev/session={id}")).unwrap();
    let field = |name: &str| pods[0]["metadata"][name].as_str().unwrap().to_owned();
    let (namespace, pod) = (field("namespace"), field("name"));
    cluster.kubectl(&["-n", &namespace, "exec", &pod, "--", "kill", "-TERM", "1"]).unwrap();
    eventually("the container restarts", READY, async || {
        let pod = cluster.get("pod", Some(&namespace), &pod)?.unwrap_or_default();
        let count = pod["status"]["containerStatuses"][0]["restartCount"].as_i64().unwrap_or_default();
        Ok(if count > 0 { Ok(()) } else { Err("not yet".to_owned()) })
    })
    .await
    .unwrap();
    let after = api.stable(&id, READY).await.unwrap();
    assert_eq!(after, before, "the history changed over the restart");
    assert!(turn(&api, &id, "recall").await.contains(remembered));
    api.delete(&path).await.unwrap();
}
