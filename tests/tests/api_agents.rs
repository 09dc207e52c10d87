//! The real agents, from npm, in session pods without a cluster, against the fake model: conversation, what they are told, the MCP
//! servers of their session. The same for each: nothing here knows how an agent is told or asked.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use agentapi_crds::names::env;
use agentapi_tests::cluster::eventually;
use agentapi_tests::fakemodel;
use agentapi_tests::mcp::raw::Raw;
use agentapi_tests::mcp::setup::{configuration, connection, probing};
use agentapi_tests::serve::Platform;
use agentapi_tests::serve::agent::PodAgent;
use agentapi_tests::serve::policies::{Operator, preview};
use agentapi_tests::stage::{Stage, TURN};
use agentapi_tests::talk::{Talk, last};
use anyhow::Result;
use rstest::rstest;
use serde_json::json;

const SESSION_POD: &str = env!("CARGO_BIN_EXE_session-pod");

#[rstest]
#[case::claude("claude")]
#[case::codex("codex")]
#[case::droid("droid")]
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_talks_knows_its_rules_and_finds_its_servers(#[case] agent: &str) -> Result<()> {
    let stage = Stage::of(SESSION_POD, agent, "pty").await?;
    let server = stage.rule_and_server().await?;
    let talk = stage.begin().await?;
    let first = talk.turn("remember the blue door").await?;
    assert!(first.contains("I will remember the blue door."), "{first}");
    let second = talk.turn("recall").await?;
    assert!(second.contains("You asked me to remember the blue door."), "{second}");
    // The same answer again is an answer of its own.
    let third = talk.turn("recall").await?;
    assert_eq!(third, second);
    let messages = talk.stable().await?;
    let roles: Vec<&str> = messages.iter().map(|message| message["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["agent", "user", "agent", "user", "agent", "user", "agent"]);
    stage.knows_both("recall", &server).await
}

#[rstest]
#[case::claude("claude")]
#[case::codex("codex")]
#[case::droid("droid")]
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_in_a_terminal_asks_is_answered_and_stops(#[case] agent: &str) -> Result<()> {
    let stage = Stage::of(SESSION_POD, agent, "pty").await?;
    let talk = stage.begin().await?;
    let made = |name: &str| stage.file(&talk, name).unwrap().exists();

    talk.send("run: touch allowed").await?;
    let question = talk.asked().await?;
    assert!(question["tool_call"]["raw_input"]["text"].as_str().unwrap().contains("touch allowed"), "{question}");
    assert!(!made("allowed"));
    let question = talk.permit("allow_once").await?;
    talk.says("The command printed:").await?;
    let printed = talk.said().await?;
    assert!(made("allowed"), "{printed}");
    assert!(printed.contains("The command printed:"), "{printed}");
    let again = talk.answer(&question, "allow_once").await?;
    assert_eq!((again.status.as_u16(), again.problem()), (409, "permission-answered"), "{again:?}");

    talk.send("run: touch rejected").await?;
    talk.permit("reject_once").await?;
    talk.stable().await?;
    assert!(!made("rejected"));

    // Somebody answers at the screen: the request is withdrawn.
    talk.send("run: touch by-hand").await?;
    talk.asked().await?;
    talk.api.post(&talk.path("message"), &json!({"content": "\r", "type": "raw"})).await?.expect(200)?;
    eventually("it goes on", TURN, async || {
        let left = talk.get("permissions").await?;
        let on = made("by-hand") && left == json!({"permissions": []});
        Ok(if on { Ok(()) } else { Err(left.to_string()) })
    })
    .await?;
    talk.stable().await?;

    let idle = talk.cancel().await?;
    assert_eq!((idle.status.as_u16(), idle.problem()), (409, "agent-idle"), "{idle:?}");
    talk.send("slow 600").await?;
    // Not every agent shows what it has got so far.
    eventually("the model is asked", TURN, async || {
        let asked = stage.asked().await?;
        let begun = asked.iter().any(|it| it.user == "slow 600" && it.reply.contains("word 600"));
        Ok(if begun { Ok(()) } else { Err(format!("{} requests", asked.len())) })
    })
    .await?;
    eventually("it can be stopped", TURN, async || {
        let answer = talk.cancel().await?;
        Ok(if answer.status.is_success() { Ok(()) } else { Err(answer.body.to_string()) })
    })
    .await?;
    let stopped = talk.said().await?;
    assert!(!stopped.contains("word 600"), "{stopped}");
    assert!(talk.turn("echo: and on").await?.contains("and on"));
    Ok(())
}

/// More lines than the terminal has, so that the agent's history scrolls and is drawn anew.
#[rstest]
#[case::claude("claude")]
#[case::codex("codex")]
#[case::droid("droid")]
#[tokio::test(flavor = "multi_thread")]
async fn a_long_answer_comes_whole_and_leaves_the_others_alone(#[case] agent: &str) -> Result<()> {
    let stage = Stage::of(SESSION_POD, agent, "pty").await?;
    let talk = stage.begin().await?;
    talk.turn("echo: before it").await?;
    let before = talk.stable().await?;
    let long = talk.turn("long 1500").await?;
    let lines: Vec<&str> = long.lines().map(|line| line.trim_matches(['●', '•', '⛬', ' '])).collect();
    let expected: Vec<String> = (1..=1500).map(|number| format!("line {number}")).collect();
    assert_eq!(lines, expected, "{} lines", lines.len());
    let after = talk.turn("echo: after it").await?;
    assert!(after.contains("after it") && after.lines().count() < 4, "{after}");
    let messages = talk.stable().await?;
    assert_eq!(messages[..before.len()], before);
    assert_eq!(messages.len(), before.len() + 4);
    Ok(())
}

#[rstest]
#[case::claude("claude")]
#[case::codex("codex")]
#[case::droid("droid")]
#[tokio::test(flavor = "multi_thread")]
async fn a_pause_in_an_answer_is_not_its_end(#[case] agent: &str) -> Result<()> {
    // Longer than an agent has to be quiet to be taken for done.
    let config = fakemodel::Config { word_delay: Duration::from_secs(4), ..fakemodel::Config::default() };
    let stage = Stage::with_model(SESSION_POD, agent, "pty", config).await?;
    let talk = stage.begin().await?;
    let answer = talk.turn("slow 3").await?;
    assert!(answer.contains("word 1 word 2 word 3"), "{answer}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_policy_of_a_workspace_answers_at_the_screen() -> Result<()> {
    let stage = Stage::of(SESSION_POD, "claude", "pty").await?;
    for (policy, happens) in [("allow", true), ("reject", false)] {
        stage.platform.pods.set_agent(PodAgent::real("claude", "pty", &stage.model)?.with(env::PERMISSIONS, policy));
        let talk = stage.begin().await?;
        talk.send("run: touch decided").await?;
        // Nobody answers, and the question is gone.
        eventually("an answer", TURN, async || {
            let body = talk.get("messages").await?;
            let words = last(body["messages"].as_array().unwrap()).unwrap_or_default();
            let over = words.contains("touch decided") && !words.contains("Do you want to proceed?");
            Ok(if over { Ok(()) } else { Err(words) })
        })
        .await?;
        talk.stable().await?;
        assert_eq!(stage.file(&talk, "decided")?.exists(), happens, "{policy}");
        assert_eq!(talk.get("permissions").await?, json!({"permissions": []}));
    }
    Ok(())
}

/// Droid is not here: it looks for a server's tools with a tool of its own first, which the fake model does not know to use.
#[rstest]
#[case::claude("claude")]
#[case::codex("codex")]
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_calls_a_tool_of_its_server_when_it_may(#[case] agent: &str) -> Result<()> {
    let platform = Platform::start(SESSION_POD).await?;
    let (replica, acme) = (probing(&platform, 1).await?, platform.tenant("acme").await?);
    let model = fakemodel::serve(fakemodel::Config::default()).await?;
    // Claude Code, too, looks for tools with a tool of its own, unless it is told not to.
    platform.pods.set_agent(PodAgent::real(agent, "pty", &model)?.with("ENABLE_TOOL_SEARCH", "false"));
    let server = Raw::start().await?;
    connection(&replica.api(Some(&acme.admin))?, &configuration("tracker", &server.url())).await?;
    // The prompt says what the tool is called here.
    let tools = json!({"template": "{{ tools | join(' ') }}"});
    Operator::of(&platform).await?.of_organization(&acme.organization, "tools", &tools).await?;
    let name = eventually("the runtime has seen the tools", TURN, async || {
        let seen = preview(&replica.api(Some(&acme.alice))?, None).await?;
        let name = seen["lines"][0]["text"].as_str().filter(|text| !text.is_empty());
        Ok(name.map(str::to_owned).ok_or_else(|| seen.to_string()))
    })
    .await?;
    let talk = Talk::begin(&replica.api(Some(&acme.alice))?, &json!({"workspace": "main"}), TURN).await?;
    // It does not say when it has them, and the server is asked for them by others too; the model hears of them.
    eventually("the agent knows the tools", TURN, async || {
        talk.turn("echo: and now").await?;
        let asked = fakemodel::recorded(&model).await?;
        let known = asked.iter().any(|it| it.tools.contains(&name));
        Ok(if known { Ok(()) } else { Err(format!("{:?}", asked.last())) })
    })
    .await?;
    talk.send(&format!("call {name} {{\"text\": \"seventeen\"}}")).await?;
    talk.asked().await?;
    assert_eq!(server.count("tools/call"), 0, "it did not wait for the answer");
    talk.permit("allow_once").await?;
    talk.says("The tool answered:").await?;
    let answered = talk.said().await?;
    assert_eq!(server.count("tools/call"), 1, "{answered}");
    assert!(answered.contains("The tool answered:") && answered.contains("seventeen"), "{answered}");
    Ok(())
}
