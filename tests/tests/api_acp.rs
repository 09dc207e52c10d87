//! The real agents, from npm, over ACP, in session pods without a cluster, against the fake model: turns, permissions
//! both ways, cancelling, what they are told, the MCP servers of their session. The same for each.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;

use agentapi_tests::cluster::eventually;
use agentapi_tests::serve::agent::PodAgent;
use agentapi_tests::serve::pods::container::processes;
use agentapi_tests::stage::{Stage, TURN};
use agentapi_tests::talk::{Talk, choice};
use anyhow::{Context, Result};
use rstest::rstest;
use serde_json::{Value, json};

const SESSION_POD: &str = env!("CARGO_BIN_EXE_session-pod");

#[rstest]
#[case::claude("claude")]
#[case::codex("codex")]
#[case::droid("droid")]
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_talks_asks_before_it_acts_and_stops_when_told(#[case] agent: &str) -> Result<()> {
    let stage = Stage::of(SESSION_POD, agent, "acp").await?;
    let talk = stage.begin().await?;
    let status = talk.get("status").await?;
    assert_eq!((&status["transport"], &status["agent_type"]), (&json!("acp"), &json!(agent)));

    // Two turns; the second needs the first.
    let first = talk.turn("remember the blue door").await?;
    // Codex warns in the first words of each turn that it knows nothing about this model.
    assert!(first.ends_with("I will remember the blue door."), "{first}");
    let second = talk.turn("recall").await?;
    assert!(second.ends_with("You asked me to remember the blue door."), "{second}");

    // It asks, and what is decided is what happens.
    let mut events = talk.api.events(&talk.path("events"), None).await?;
    let mut decided = Vec::new();
    for (name, kind) in [("allowed", "allow_once"), ("rejected", "reject_once")] {
        let file = stage.file(&talk, name)?;
        talk.send(&format!("run: touch {name} && echo done-{name}")).await?;
        let permission = talk.asked().await?;
        assert_eq!(permission["tool_call"]["kind"], "execute", "{permission}");
        assert!(permission["tool_call"]["title"].as_str().unwrap().contains(name), "{permission}");
        assert!(!file.exists(), "it did not wait for the answer");
        let answer = choice(&permission, kind)?;
        talk.api.post(&talk.path("permission"), &answer).await?.expect(200)?;
        let said = talk.said().await?;
        assert!(said.contains("[tool] ") && said.contains(name), "{said}");
        assert_eq!(file.exists(), kind == "allow_once", "{said}");
        let again = talk.api.post(&talk.path("permission"), &answer).await?;
        assert_eq!((again.status.as_u16(), again.problem()), (409, "permission-answered"));
        decided.push(answer);
    }
    let mut resolved = Vec::new();
    while resolved.len() < 2 {
        let event = tokio::time::timeout(TURN, events.recv()).await?.context("the events end")?;
        if event.name == "permission_resolved" {
            resolved.push(json!({"id": event.data["id"], "option_id": event.data["option_id"]}));
        }
    }
    assert_eq!(resolved, decided);

    // It stops in mid-turn, and goes on afterwards.
    talk.send("slow 600").await?;
    eventually("the model is talking", TURN, async || {
        let asked = stage.asked().await?;
        Ok(if asked.iter().any(|it| it.user == "slow 600") { Ok(()) } else { Err(format!("{asked:?}")) })
    })
    .await?;
    assert_eq!(talk.cancel().await?.expect(200)?, json!({"ok": true}));
    let said = talk.said().await?;
    assert!(said.ends_with("[stopped: cancelled]") && !said.contains("word 600"), "{said}");
    let said = talk.turn("echo: still here").await?;
    assert!(said.ends_with("still here"), "{said}");

    // Who decided what is in the audit log, and nothing of what it was about.
    let admin = stage.replica.api(Some(&stage.acme.admin))?;
    let audit = admin.get(&format!("/v1/audit?targetId={}", talk.id)).await?.expect(200)?;
    let rows = |action: &str| -> Vec<Value> {
        let entries = audit["entries"].as_array().unwrap().iter().rev();
        entries.filter(|entry| entry["action"] == action).map(|entry| entry["detail"].clone()).collect()
    };
    let decisions = decided.iter().map(|it| json!({"permission": it["id"], "decision": it["option_id"]}));
    let twice: Vec<Value> = decisions.flat_map(|it| [it.clone(), it]).collect();
    assert_eq!(rows("session.permission"), twice);
    assert_eq!(rows("session.permission-fail"), [json!({"status": 409}), json!({"status": 409})]);
    assert_eq!((rows("session.cancel"), rows("session.cancel-fail")), (vec![json!({})], vec![]));
    assert!(!audit.to_string().contains("done-allowed"));
    Ok(())
}

#[rstest]
#[case::claude("claude")]
#[case::codex("codex")]
#[case::droid("droid")]
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_knows_its_rules_and_finds_its_servers(#[case] agent: &str) -> Result<()> {
    let stage = Stage::of(SESSION_POD, agent, "acp").await?;
    let server = stage.rule_and_server().await?;
    let talk = stage.begin().await?;
    let said = talk.turn("echo: hello").await?;
    assert!(said.ends_with("hello"), "{said}");
    stage.knows_both("echo: hello", &server).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_of_a_pod_that_is_gone() -> Result<()> {
    // One that goes on when its input is closed.
    let stage = Stage::of(SESSION_POD, "codex", "acp").await?;
    let (one, other) = (stage.begin().await?, stage.begin().await?);
    let Stage { platform, replica: _replica, .. } = stage;
    let home = |talk: &Talk| -> Result<String> {
        Ok(format!("HOME={}", platform.pods.folder(talk.id.parse()?)?.join("home").display()))
    };
    let homes = [home(&one)?, home(&other)?];
    let count = || homes.each_ref().map(|home| processes(home).len());
    assert!(count().iter().all(|count| *count >= 2), "the host and its agent: {:?}", count());
    assert!(platform.pods.kill(one.id.parse()?));
    assert_eq!(count()[0], 0);
    assert!(count()[1] >= 2);
    // A replica may hold on to them for longer than the test.
    let held = Arc::clone(&platform.pods);
    drop(platform);
    assert_eq!((count(), held.count()), ([0, 0], 0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn permissions_belong_to_their_session_and_its_user() -> Result<()> {
    let stage = Stage::of(SESSION_POD, "claude", "acp").await?;
    let (platform, replica, acme) = (&stage.platform, &stage.replica, &stage.acme);
    let talk = stage.begin().await?;
    talk.send("write file note.txt: hello").await?;
    let permission = talk.asked().await?;
    let answer = choice(&permission, "allow_once")?;

    // Neither another user nor another organization, and not through another session.
    let globex = platform.tenant("globex").await?;
    for stranger in [&acme.bob, &globex.admin] {
        let api = replica.api(Some(stranger))?;
        for (route, body) in [("permission", &answer), ("cancel", &json!({}))] {
            let refused = api.post(&talk.path(route), body).await?;
            assert_eq!((refused.status.as_u16(), refused.problem()), (404, "session-not-found"), "{route}");
        }
        assert_eq!(api.get(&talk.path("permissions")).await?.status, 404);
    }
    let other = stage.begin().await?;
    let elsewhere = other.api.post(&other.path("permission"), &answer).await?;
    assert_eq!((elsewhere.status.as_u16(), elsewhere.problem()), (404, "permission-not-found"));

    // What is no answer goes no further than the API.
    let before = replica.api(Some(&acme.admin))?.get("/v1/audit?action=session.permission").await?.expect(200)?;
    let id = &permission["id"];
    for wrong in [
        json!({}),
        json!({"id": id}),
        json!({"id": "x", "option_id": "allow"}),
        json!({"id": id, "option_id": "allow", "outcome": "cancelled"}),
        json!({"id": id, "option_id": "a\u{0}b"}),
        json!({"id": id, "option_id": "x".repeat(300)}),
        json!({"id": id, "outcome": "selected"}),
        json!({"id": id, "outcome": "cancelled", "more": 1}),
    ] {
        let refused = talk.api.post(&talk.path("permission"), &wrong).await?;
        assert_eq!((refused.status.as_u16(), refused.problem()), (422, "invalid-field"), "{wrong}");
    }
    let after = replica.api(Some(&acme.admin))?.get("/v1/audit?action=session.permission").await?.expect(200)?;
    assert_eq!(before, after);
    let unknown = json!({"id": id, "option_id": "maybe"});
    let refused = talk.api.post(&talk.path("permission"), &unknown).await?;
    assert_eq!((refused.status.as_u16(), refused.problem()), (422, "no-such-option"));

    // It still waits, and a terminal it has none.
    assert_eq!(talk.asked().await?, permission);
    assert!(!stage.file(&talk, "note.txt")?.exists());
    let busy = talk.say("x").await?;
    assert_eq!((busy.status.as_u16(), busy.problem()), (409, "agent-busy"));
    let raw = talk.api.post(&talk.path("message"), &json!({"content": "1", "type": "raw"})).await?;
    assert_eq!((raw.status.as_u16(), raw.problem()), (409, "no-terminal"));
    let screen = talk.api.get(&talk.path("screen")).await?;
    assert_eq!((screen.status.as_u16(), screen.problem()), (409, "no-terminal"));
    talk.api.post(&talk.path("permission"), &answer).await?.expect(200)?;
    talk.said().await?;
    assert_eq!(std::fs::read_to_string(stage.file(&talk, "note.txt")?)?, "hello");
    let idle = talk.cancel().await?;
    assert_eq!((idle.status.as_u16(), idle.problem()), (409, "agent-idle"));
    Ok(())
}

#[rstest]
#[case::nobody_answers(&[("AGENTAPI_PERMISSION_TIMEOUT", "1s")], false)]
#[case::allow(&[("AGENTAPI_PERMISSIONS", "allow")], true)]
#[case::reject(&[("AGENTAPI_PERMISSIONS", "reject")], false)]
#[tokio::test(flavor = "multi_thread")]
async fn the_workspaces_policy_decides(#[case] policy: &[(&str, &str)], #[case] allowed: bool) -> Result<()> {
    let stage = Stage::of(SESSION_POD, "claude", "acp").await?;
    let agent = PodAgent::real("claude", "acp", &stage.model)?;
    stage.platform.pods.set_agent(policy.iter().fold(agent, |agent, (name, value)| agent.with(name, value)));
    let talk = stage.begin().await?;
    let said = talk.turn("write file note.txt: hello").await?;
    assert_eq!(stage.file(&talk, "note.txt")?.exists(), allowed, "{said}");
    assert_eq!(talk.get("permissions").await?, json!({"permissions": []}));
    Ok(())
}
