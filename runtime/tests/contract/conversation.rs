//! The coder/agentapi contract of a session pod: conversation, events, screen, upload, errors.

use std::path::Path;
use std::time::{Duration, Instant};

use super::support::{Pod, SseEvent, answer, until};
use reqwest::{
    Method,
    multipart::{Form, Part},
};
use serde_json::json;

#[tokio::test]
async fn a_conversation() {
    let pod = Pod::new();
    let session = pod.start().await;
    until("readiness", async || (session.get("/internal/ready").await.0 == 200).then_some(())).await;
    session.stable().await;
    let status = session.get("/status").await.1;
    assert_eq!(status, json!({"status": "stable", "agent_type": "custom", "transport": "pty"}));
    assert_eq!(session.messages().await, [(0, "agent".to_owned(), "Hello, I am repl.".to_owned())]);

    assert_eq!(session.ask("hello there").await, "You said: hello there");
    // The same again: a reply equal to the last one is a new message.
    assert_eq!(session.ask("hello there").await, "You said: hello there");
    // More than the 1000 rows of the terminal, and nothing is lost.
    let long = session.ask("lines 2500").await;
    let expected: Vec<String> = (1..=2500).map(|i| format!("line {i}")).collect();
    assert!(long.lines().eq(expected.iter().map(String::as_str)), "{} lines", long.lines().count());
    assert_eq!(session.ask("short again").await, "You said: short again");
    let ids: Vec<u64> = session.messages().await.iter().map(|message| message.0).collect();
    assert_eq!(ids, (0..9).collect::<Vec<_>>());
}

#[tokio::test]
async fn raw_input_reaches_the_terminal_and_is_no_message() {
    let pod = Pod::new();
    let session = pod.start().await;
    session.stable().await;
    assert_eq!(session.post("/message", json!({"content": "typed by hand\r", "type": "raw"})).await.0, 200);
    let mut screens = session.events("/internal/screen", None).await;
    let shown =
        |event: &SseEvent| event.data["screen"].as_str().unwrap().lines().any(|line| line == "You said: typed by hand");
    let last = screens.until(shown).await.pop().unwrap();
    assert_eq!(last.name, "screen");
    assert!(session.messages().await.iter().all(|message| message.1 == "agent"));
}

#[tokio::test]
async fn a_pager_on_the_alternate_screen_is_no_part_of_the_conversation() {
    let pod = Pod::new();
    let session = pod.start().await;
    session.stable().await;
    assert_eq!(session.ask("before").await, "You said: before");
    let before = session.messages().await;
    session.say("pager").await;
    let mut screens = session.events("/internal/screen", None).await;
    screens.until(|event: &SseEvent| event.data["screen"].as_str().unwrap() == "full screen").await;
    session.stable().await;
    let shown = session.messages().await;
    assert_eq!(shown[..before.len()], before);
    assert!(shown.iter().all(|message| !message.2.contains("full screen")), "{shown:?}");
    assert_eq!(session.post("/message", json!({"content": "q", "type": "raw"})).await.0, 200);
    until("the end", async || session.messages().await.last().filter(|it| it.2 == "left the pager").cloned()).await;
    assert_eq!(session.messages().await.len(), before.len() + 2);
}

#[tokio::test]
async fn a_busy_agent_refuses_and_reads_still_answer() {
    let pod = Pod::new();
    let session = pod.start().await;
    session.say("slow now").await;
    assert_eq!(session.get("/status").await.1["status"], "running");
    let (status, problem) = session.post("/message", json!({"content": "me too", "type": "user"})).await;
    assert_eq!((status, problem["type"].as_str().unwrap()), (409, "https://agentapi.dev/problems/agent-busy"));
    // The reply grows while the agent works.
    let begun = |text: &str| text.starts_with("step 1") && !text.contains("step 6");
    until("a first part", async || session.messages().await.last().filter(|m| begun(&m.2)).cloned()).await;
    session.stable().await;
    assert_eq!(session.messages().await[2].2, "step 1\nstep 2\nstep 3\nstep 4\nstep 5\nstep 6");
}

#[tokio::test]
async fn reads_answer_while_a_message_is_being_sent_and_a_send_outlives_its_client() {
    // Shows nothing of what is typed until Enter, and then only after a while.
    let script = "echo ready; stty -echo; while read -r line; do sleep 1; echo \"got $line\"; done";
    let pod = Pod::with_command(&["bash", "-c", script]);
    let session = pod.start().await;
    session.stable().await;
    let body = json!({"content": "quiet", "type": "user"});
    let sending = tokio::spawn(session.request(Method::POST, "/message").json(&body).send());
    until("the sending", async || (session.get("/status").await.1["status"] == "running").then_some(())).await;
    sending.abort();
    assert!(sending.await.is_err_and(|error| error.is_cancelled()), "the client had its answer");
    for _ in 0..5 {
        let start = Instant::now();
        assert_eq!(session.get("/status").await.1["status"], "running");
        assert_eq!(session.messages().await.len(), 1);
        assert!(start.elapsed() < Duration::from_secs(5));
    }
    assert_eq!(session.post("/message", body).await.0, 409);
    // Raw keys are the way out: Enter makes the agent show something.
    assert_eq!(session.post("/message", json!({"content": "\r", "type": "raw"})).await.0, 200);
    until("the message", async || session.messages().await.iter().any(|m| m.2 == "quiet").then_some(())).await;
}

#[tokio::test]
async fn an_agent_that_asks_is_not_done_once_a_key_is_pressed() {
    // Asks once it is told to, and shows nothing else, whatever is typed.
    let script = r#"stty -echo; cat "$0/01-startup.txt"; until [ -e ~/ask ]; do sleep 0.1; done
                    printf '\033[2J\033[H'; tail -n 20 "$0/06-permission.txt"; sleep 1000"#;
    let screens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/screens/claude/screens");
    let pod = Pod::with_command(&["bash", "-c", script, screens.to_str().unwrap()]);
    let pod = pod.set("AGENTAPI_AGENT_TYPE", "claude");
    let session = pod.start().await;
    session.stable().await;
    std::fs::write(pod.path("home/ask"), "").unwrap();
    until("the question", async || session.get("/permissions").await.1["permissions"].get(0).map(drop)).await;
    session.stable().await;
    let mut events = session.events("/events", None).await;
    let told = |events: &[SseEvent]| events.last().map(|event| event.data["status"].clone());
    let snapshot = events.until(|event| event.name == "status_change").await;
    assert_eq!(told(&snapshot), Some(json!("stable")));
    assert_eq!(session.post("/message", json!({"content": "x", "type": "raw"})).await.0, 200);
    let next = events.until(|event| event.name == "status_change").await;
    assert_eq!(told(&next), Some(json!("running")));
}

#[tokio::test]
async fn errors_say_what_is_wrong() {
    let pod = Pod::new();
    let session = pod.start().await;
    session.stable().await;
    for (body, status, slug) in [
        (json!({"content": "", "type": "user"}), 400, "empty-message"),
        (json!({"content": " \n ", "type": "user"}), 400, "empty-message"),
        (json!({"content": "x", "type": "shout"}), 422, "validation-failed"),
        (json!({"content": "x"}), 422, "validation-failed"),
        (json!({"type": "user"}), 422, "validation-failed"),
        (json!({"content": 1, "type": "user"}), 422, "validation-failed"),
        (json!({"content": "x", "type": "user", "extra": 1}), 422, "validation-failed"),
        (json!([]), 422, "validation-failed"),
        (json!({"content": "x".repeat(2 << 20), "type": "user"}), 413, "too-large"),
    ] {
        let (got, problem) = session.post("/message", body).await;
        assert_eq!(
            (got, problem["type"].as_str().unwrap()),
            (status, &*format!("https://agentapi.dev/problems/{slug}"))
        );
        assert_eq!(problem["status"], status);
    }
    let broken = session.request(Method::POST, "/message").header("content-type", "application/json").body("{\"con");
    assert_eq!(answer(broken).await.0, 400);
    assert_eq!(session.get("/nothing").await.0, 404);
    assert_eq!(session.post("/status", json!({})).await.0, 405);
    assert_eq!(session.messages().await.len(), 1);
}

#[tokio::test]
async fn control_characters_in_a_message_are_not_keys() {
    let pod = Pod::new();
    let session = pod.start().await;
    // An end-of-paste sequence, Ctrl-C and Ctrl-D would end the agent.
    assert_eq!(session.ask("a\u{1b}[201~\u{3}\u{4}b").await, "You said: a[201~b");
}

#[tokio::test]
async fn events_come_with_ids_to_come_back_to() {
    let pod = Pod::new();
    let session = pod.start().await;
    session.stable().await;
    let mut events = session.events("/events", None).await;
    let first = events.until(|event| event.name == "status_change").await;
    assert_eq!(first.len(), 2);
    assert_eq!(first[0].name, "message_update");
    assert_eq!(first[0].data["id"], 0);
    assert_eq!(first[0].data["message"], "Hello, I am repl.");
    assert_eq!(first[1].data, json!({"status": "stable", "agent_type": "custom"}));

    session.ask("one").await;
    let stable = |event: &SseEvent| event.data["status"] == "stable";
    let live = events.until(stable).await;
    let names: Vec<_> = live.iter().map(|event| (event.name.as_str(), event.data["role"].as_str())).collect();
    assert_eq!(names[0], ("status_change", None));
    assert!(names.contains(&("message_update", Some("user"))) && names.contains(&("message_update", Some("agent"))));

    // Back from where the first connection was before the message: the same events, none twice, none lost.
    let mut back = session.events("/events", Some(&first[1].id)).await;
    assert_eq!(back.until(stable).await, live);
    // In the middle of a snapshot there is no place to come back to: the snapshot starts again.
    let mut again = session.events("/events", Some(&first[0].id)).await;
    let snapshot = again.until(stable).await;
    assert_eq!(snapshot.iter().filter(|event| event.name == "message_update").count(), 3);
    let mut stranger = session.events("/events", Some("0123456789ab-1")).await;
    assert_eq!(stranger.until(stable).await.len(), 4);
}

#[tokio::test]
async fn an_uploaded_file_is_where_the_agent_can_read_it() {
    let pod = Pod::new();
    let session = pod.start().await;
    let send = async |name: &str, content: Vec<u8>| {
        let form = Form::new().text("note", "ignored").part("file", Part::bytes(content).file_name(name.to_owned()));
        answer(session.request(Method::POST, "/upload").multipart(form)).await
    };
    let (status, body) = send("../../notes.txt", b"uploaded words\n".to_vec()).await;
    assert_eq!((status, &body["ok"]), (200, &json!(true)));
    let path = body["filePath"].as_str().unwrap();
    assert!(path.starts_with(pod.path("work/uploads").to_str().unwrap()) && path.ends_with("/notes.txt"), "{path}");
    assert_eq!(session.ask(&format!("read {path}")).await, "uploaded words");

    assert_eq!(send("big", vec![0; 10 << 20]).await.0, 200);
    assert_eq!(send("bigger", vec![0; (10 << 20) + 1]).await.0, 413);
    assert_eq!(send("huge", vec![0; 11 << 20]).await.0, 413);
    let no_file = Form::new().text("other", "x");
    assert_eq!(answer(session.request(Method::POST, "/upload").multipart(no_file)).await.0, 422);
    assert_eq!(session.post("/upload", json!({})).await.0, 422);
}

#[tokio::test]
async fn an_agent_that_was_asked_nothing_is_stable_as_soon_as_it_is_ready() {
    let pod = Pod::new();
    let session = pod.start().await;
    until("readiness", async || (session.get("/internal/ready").await.0 == 200).then_some(())).await;
    // The contract's two quiet seconds are not over yet.
    assert_eq!(session.get("/status").await.1["status"], "stable");
    assert_eq!(session.post("/message", json!({"content": "x", "type": "raw"})).await.0, 200);
    until("the screen to change", async || (session.get("/status").await.1["status"] == "running").then_some(())).await;
    session.stable().await;
}
