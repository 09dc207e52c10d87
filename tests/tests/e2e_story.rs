//! The main job on the real cluster: two tenants, tokens of a real OIDC provider, the real Claude Code in a
//! session pod against the fake model, events, upload, a restarted container, the end.
#![cfg(feature = "cluster")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use agentapi_tests::{
    api::{Api, Event},
    cluster::{Cluster, eventually, repo},
    talk::Talk,
};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::sync::mpsc;

const READY: Duration = Duration::from_secs(90);
const TURN: Duration = Duration::from_secs(40);

async fn tenants(cluster: &Cluster) {
    for file in ["acme.yaml", "globex.yaml"] {
        cluster.apply(&std::fs::read_to_string(repo().join("examples").join(file)).unwrap()).unwrap();
    }
    for (kind, ns, name) in [
        ("organization", None, "acme"),
        ("organization", None, "globex"),
        ("workspace", Some("team-acme"), "web"),
        ("workspace", Some("team-globex"), "research"),
    ] {
        cluster.ready(kind, ns, name, READY).await.unwrap();
    }
}

async fn create(api: &Api, workspace: &str) -> String {
    let body = api.post("/v1/sessions", &json!({ "workspace": workspace })).await.unwrap().expect(201).unwrap();
    body["id"].as_str().unwrap().to_owned()
}

fn agent_texts(messages: &[Value]) -> Vec<String> {
    messages.iter().filter(|m| m["role"] == "agent").map(|m| m["content"].as_str().unwrap().to_owned()).collect()
}

async fn turn(api: &Api, session: &str, text: &str) -> Vec<Value> {
    let talk = Talk::of(api, session, TURN);
    talk.send(text).await.unwrap();
    talk.stable().await.unwrap()
}

async fn wait_for(events: &mut mpsc::Receiver<Event>, what: &str, mut matches: impl FnMut(&Event) -> bool) -> Event {
    tokio::time::timeout(TURN, async {
        while let Some(event) = events.recv().await {
            if matches(&event) {
                return event;
            }
        }
        panic!("the event stream ended before: {what}");
    })
    .await
    .unwrap_or_else(|_| panic!("no event within {TURN:?}: {what}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_talks_to_its_agent_from_apply_to_delete() {
    let cluster = Cluster::connect().unwrap();
    tenants(&cluster).await;
    let url = cluster.api_url().unwrap();
    let alice = Api::new(&url, Some(cluster.token("acme-alice").unwrap())).unwrap();
    let gina = Api::new(&url, Some(cluster.token("globex-gina").unwrap())).unwrap();

    alice.end_all().await.unwrap();
    gina.end_all().await.unwrap();

    // A warm session for acme, a cold one for globex (it keeps no warm pods).
    let (mine, theirs) = tokio::join!(create(&alice, "web"), create(&gina, "research"));
    let first = alice.stable(&mine, READY).await.unwrap();
    assert_eq!((first[0]["id"].as_i64(), first[0]["role"].as_str()), (Some(0), Some("agent")));
    gina.stable(&theirs, READY).await.unwrap();
    let (ns, name) = cluster.session_pod(&mine).unwrap().expect("a pod with the session's label");
    assert_eq!(ns, "agentapi-acme");

    // Two turns; the second needs the first.
    let mut events = alice.events(&format!("/v1/sessions/{mine}/events"), None).await.unwrap();
    turn(&alice, &mine, "remember the password is blue-42").await;
    let messages = turn(&alice, &mine, "recall").await;
    let answer = messages.last().unwrap();
    assert!(answer["content"].as_str().unwrap().contains("blue-42"), "the agent forgot: {answer}");
    let seen = wait_for(&mut events, "the answer as message_update", |e| {
        e.name == "message_update" && e.data["id"] == answer["id"] && e.data["message"] == answer["content"]
    })
    .await;

    // A broken connection goes on where it was: the numbers after the last one, nothing again and nothing left out.
    drop(events);
    let number = |id: &str| id.rsplit('-').next().unwrap().parse::<u64>().unwrap();
    let mut next = number(&seen.id);
    let mut events = alice.events(&format!("/v1/sessions/{mine}/events"), Some(&seen.id)).await.unwrap();
    turn(&alice, &mine, "echo: after the break").await;
    wait_for(&mut events, "an update after Last-Event-ID", |e| {
        next += 1;
        assert_eq!(number(&e.id), next, "the stream does not go on after {}: {e:?}", seen.id);
        e.name == "message_update"
            && e.data["role"] == "agent"
            && e.data["message"].to_string().contains("after the break")
    })
    .await;

    // The agent reads an uploaded file with its own tool.
    let part = reqwest::multipart::Part::bytes(b"the launch code is 7-heron".to_vec()).file_name("notes.txt");
    let form = reqwest::multipart::Form::new().part("file", part);
    let upload = alice.request(reqwest::Method::POST, &format!("/v1/sessions/{mine}/upload")).multipart(form);
    let uploaded = alice.send(upload).await.unwrap().expect(200).unwrap();
    let path = uploaded["filePath"].as_str().unwrap();
    let messages = turn(&alice, &mine, &format!("read file {path}")).await;
    let answer = agent_texts(&messages).pop().unwrap();
    assert!(answer.contains("7-heron"), "the agent did not read the file: {answer}");

    // The container dies and comes back with the whole conversation.
    let before = alice.stable(&mine, TURN).await.unwrap();
    cluster.restart((&ns, &name), READY).await.unwrap();
    let after = alice.stable(&mine, READY).await.unwrap();
    let texts = |messages: &[Value]| -> Vec<(Value, Value)> {
        messages.iter().map(|m| (m["role"].clone(), m["content"].clone())).collect()
    };
    assert_eq!(texts(&before)[1..], texts(&after)[1..before.len()], "the history changed over the restart");
    let messages = turn(&alice, &mine, "echo: still here").await;
    assert!(agent_texts(&messages).pop().unwrap().contains("still here"));

    // The other tenant sees none of it.
    for suffix in ["", "/status", "/messages", "/events"] {
        let answer = gina.get(&format!("/v1/sessions/{mine}{suffix}")).await.unwrap();
        assert_eq!(answer.status.as_u16(), 404, "{suffix}: {}", answer.body);
        assert_eq!(answer.content_type, "application/problem+json");
    }
    let listed = gina.get("/v1/sessions").await.unwrap().expect(200).unwrap();
    assert!(!listed.to_string().contains(&mine), "globex lists acme's session");

    // The end: nothing of the session is left in the cluster, the transcript is.
    for (api, id) in [(&alice, &mine), (&gina, &theirs)] {
        let answer = api.delete(&format!("/v1/sessions/{id}")).await.unwrap();
        assert!(matches!(answer.status.as_u16(), 202 | 204), "{} {}", answer.status, answer.body);
    }
    eventually("pod and Secret are gone", READY, async || {
        let secret = cluster.get("secret", Some(&ns), &format!("{name}-session"))?;
        Ok(match (cluster.session_pod(&mine)?, secret) {
            (None, None) => Ok(()),
            (pod, secret) => Err(format!("pod {pod:?}, Secret {}", secret.is_some())),
        })
    })
    .await
    .unwrap();
    let kept = alice.get(&format!("/v1/sessions/{mine}/messages")).await.unwrap().expect(200).unwrap();
    assert!(kept.to_string().contains("blue-42"), "the transcript did not outlive the pod: {kept}");
}
