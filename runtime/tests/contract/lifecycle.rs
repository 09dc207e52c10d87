//! A session pod's life: claim, tokens, restart, the agent's end, transcript push, shutdown.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use super::support::{Pod, Session, Signer, until};
use axum::{Json, Router, extract::State, http::HeaderMap, routing::put};
use serde_json::{Value, json};

const SECRET: &str = "hunter2-secret";

async fn pod_with_key() -> (Pod, Session, Signer) {
    let signer = Signer::new();
    let pod = Pod::new().set("AGENTAPI_SESSION_PUBLIC_KEY", &signer.public);
    let mut session = pod.start().await;
    session.token = Some(signer.token("s1", "pod-1"));
    (pod, session, signer)
}

#[tokio::test]
async fn only_the_runtime_gets_in_and_only_for_the_session_that_has_the_pod() {
    let (pod, mut session, signer) = pod_with_key().await;
    session.token = None;
    for path in ["/status", "/messages", "/events", "/internal/screen"] {
        assert_eq!(session.get(path).await.0, 401, "{path}");
    }
    for path in ["/message", "/upload", "/internal/claim", "/internal/prepare", "/internal/notice"] {
        assert_eq!(session.post(path, json!({})).await.0, 401, "{path}");
    }
    assert_eq!(session.get("/internal/live").await.0, 200);
    session.token = Some(Signer::new().token("s1", "pod-1"));
    assert_eq!(session.get("/status").await.0, 401);
    session.token = Some(signer.token("s1", "pod-2"));
    assert_eq!(session.get("/status").await.0, 403);
    session.token = Some(signer.token("s1", "pod-1"));
    assert_eq!(session.get("/status").await.0, 200);
    // A token for one session does not claim for another.
    assert_eq!(session.post("/internal/claim", json!({"sessionId": "s2"})).await.0, 403);
    assert_eq!(session.post("/internal/claim", json!({"sessionId": "s1"})).await.0, 200);
    session.token = Some(signer.token("s2", "pod-1"));
    for path in ["/status", "/messages", "/events", "/internal/screen"] {
        assert_eq!(session.get(path).await.0, 404, "{path}");
    }
    assert_eq!(session.post("/internal/claim", json!({"sessionId": "s2"})).await.0, 409);
    // What is for waiting pods does not reach one that has a session.
    assert_eq!(session.post("/internal/prepare", json!({"systemPrompt": "Obey."})).await.0, 404);
    session.token = Some(signer.token("s1", "pod-1"));
    let (status, problem) = session.post("/internal/prepare", json!({"systemPrompt": "Obey."})).await;
    assert_eq!((status, &problem["type"]), (409, &json!("https://agentapi.dev/problems/pod-taken")), "{problem}");
    assert!(!pod.path("state/system-prompt.md").exists());
}

#[tokio::test]
async fn a_claim_brings_environment_and_prompt_once() {
    let (pod, mut session, signer) = pod_with_key().await;
    until("readiness", async || (session.get("/internal/ready").await.0 == 200).then_some(())).await;
    assert_eq!(session.post("/internal/claim", json!({"sessionId": "s1", "env": {"AGENTAPI_X": "1"}})).await.0, 422);
    let claim = json!({
        "sessionId": "s1", "env": {"AGENT_NAME": "claimed", "API_KEY": SECRET},
        "token": "pod-token-value", "initialPrompt": "first words",
    });
    assert_eq!(session.post("/internal/claim", claim.clone()).await.0, 200);
    assert_eq!(session.post("/internal/claim", claim.clone()).await.0, 200);
    session.stable().await;
    let expected =
        [(0, "agent", "Hello, I am claimed."), (1, "user", "first words"), (2, "agent", "You said: first words")];
    let expected: Vec<_> =
        expected.iter().map(|(id, role, text)| (*id, (*role).to_owned(), (*text).to_owned())).collect();
    assert_eq!(session.messages().await, expected);
    assert_eq!(session.ask("env API_KEY").await, format!("API_KEY={SECRET}"));

    // Neither a restart nor another claim sends the prompt again; the environment comes back from the state folder.
    assert_eq!(session.terminate().await, Some(0));
    let logs = session.log_text();
    for secret in [SECRET, "pod-token-value", "first words", session.token.as_ref().unwrap()] {
        assert!(!logs.contains(secret), "{secret} is in the log");
    }
    let mut session = pod.start().await;
    session.token = Some(signer.token("s1", "pod-1"));
    assert_eq!(session.post("/internal/claim", claim).await.0, 200);
    session.stable().await;
    assert_eq!(session.messages().await[..3], expected);
    assert_eq!(session.ask("env API_KEY").await, format!("API_KEY={SECRET}"));
    let messages = session.messages().await;
    assert_eq!(messages.iter().filter(|message| message.2 == "first words").count(), 1);
    assert_eq!(messages.iter().map(|message| message.0).collect::<Vec<_>>(), (0..7).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_claim_that_the_agent_cannot_start_with_ends_the_container() {
    let pod = Pod::new();
    let mut session = pod.start().await;
    session.stable().await;
    let (status, problem) = session.post("/internal/claim", json!({"sessionId": "s1", "env": {"PATH": "/none"}})).await;
    assert_eq!(status, 500);
    assert!(problem["detail"].as_str().unwrap().contains("bash"), "{problem}");
    assert_eq!(session.exit().await, Some(1));
}

#[tokio::test]
async fn a_mounted_secret_is_a_claim() {
    let signer = Signer::new();
    let pod = Pod::new().set("AGENTAPI_SESSION_PUBLIC_KEY", &signer.public);
    let session_json =
        json!({"id": "s9", "organization": "acme", "workspace": "web", "initialPrompt": "from the secret"});
    std::fs::write(pod.path("secret/session.json"), session_json.to_string()).unwrap();
    std::fs::write(pod.path("secret/env.json"), json!({"AGENT_NAME": "cold"}).to_string()).unwrap();
    std::fs::write(pod.path("secret/token"), "t").unwrap();
    let mut session = pod.start().await;
    session.token = Some(signer.token("s1", "pod-1"));
    assert_eq!(session.get("/status").await.0, 404);
    session.token = Some(signer.token("s9", "pod-1"));
    session.stable().await;
    let messages = session.messages().await;
    assert_eq!(messages[0].2, "Hello, I am cold.");
    assert_eq!(messages[2].2, "You said: from the secret");
}

#[tokio::test]
async fn a_killed_container_goes_on_where_it_was() {
    let pod = Pod::new();
    let mut session = pod.start().await;
    session.ask("before").await;
    let before = session.messages().await;
    until("the saved answer", async || {
        let saved = std::fs::read_to_string(pod.path("state/state.json")).ok()?;
        saved.contains("You said: before").then_some(())
    })
    .await;
    session.child.kill().await.unwrap();
    let session = pod.start().await;
    session.stable().await;
    assert_eq!(session.messages().await, before);
    assert_eq!(session.ask("after").await, "You said: after");
    assert_eq!(session.messages().await[..3], before);
    assert_eq!(session.messages().await[4].0, 4);
}

#[tokio::test]
async fn events_go_on_over_a_container_that_ended_in_order() {
    let pod = Pod::new();
    let mut session = pod.start().await;
    session.ask("before").await;
    let mut events = session.events("/events", None).await;
    let last = events.until(|event| event.name == "status_change").await.pop().unwrap();
    assert_eq!(session.terminate().await, Some(0));
    drop(events);
    let session = pod.start().await;
    session.stable().await;
    let mut events = session.events("/events", Some(&last.id)).await;
    session.say("after").await;
    let seen = events.until(|event| event.data["message"] == "You said: after").await;
    assert!(!seen.iter().any(|event| event.data["message"] == "You said: before"), "it is sent again: {seen:?}");
    assert!(seen.iter().any(|event| event.data["message"] == "after"), "{seen:?}");
}

#[tokio::test]
async fn what_cannot_be_kept_is_not_taken() {
    let pod = Pod::new();
    let session = pod.start().await;
    session.ask("before").await;
    session.stable().await;
    pod.at_rest().await;
    // A disk that takes nothing more.
    std::fs::rename(pod.path("state"), pod.path("elsewhere")).unwrap();
    let say = async |text: &str| session.post("/message", json!({"content": text, "type": "user"})).await;
    let (status, problem) = say("first").await;
    assert_eq!(status, 507, "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("the agent has the message"), "{problem}");
    session.stable().await;
    assert_eq!(session.get("/status").await.1["saved"], false);
    let (status, problem) = say("second").await;
    assert_eq!(
        (status, &problem["type"]),
        (507, &json!("https://agentapi.dev/problems/session-not-saved")),
        "{problem}"
    );
    assert!(!session.messages().await.iter().any(|message| message.2 == "second"), "the agent got it");
    std::fs::rename(pod.path("elsewhere"), pod.path("state")).unwrap();
    assert_eq!(session.ask("third").await, "You said: third");
    assert_eq!(session.get("/status").await.1.get("saved"), None);
}

#[tokio::test]
async fn a_full_disk_keeps_neither_the_conversation_from_being_saved_nor_the_session_from_starting_again() {
    let Some((pod, disk)) = Pod::new().set("AGENTAPI_STATE_RESERVE", "1048576").on_disk("4m") else {
        // Where nobody may, the unit tests of the reserve are what there is.
        eprintln!("skipped: mounting a disk needs CAP_SYS_ADMIN");
        return;
    };
    let secret = json!({"id": "s1", "organization": "acme", "workspace": "web", "systemPrompt": "Be kind."});
    std::fs::write(pod.path("secret/session.json"), secret.to_string()).unwrap();
    let reserve = pod.path("state/.reserve");
    let mut session = pod.start().await;
    session.ask("before").await;
    until("room that is kept back", async || std::fs::metadata(&reserve).ok().filter(|it| it.len() == 1 << 20)).await;
    let mut events = session.events("/events", None).await;
    session.stable().await;
    pod.at_rest().await;
    disk.fill();
    assert_eq!(session.ask("in between").await, "You said: in between");
    let warning = events.until(|event| event.name == "agent_error").await.pop().unwrap().data;
    assert!(warning["message"].as_str().unwrap().contains("disk is full"), "{warning}");
    assert!(!reserve.exists());
    assert_eq!(session.get("/status").await.1.get("saved"), None);
    session.stable().await;
    session.terminate().await;

    // Nothing is left now, and the agent's files can't be written; but it has started with such before.
    disk.fill();
    let pod = pod.set("AGENTAPI_AGENT_TYPE", "claude");
    let session = pod.start().await;
    let error = until("a warning", async || {
        let text = session.log_text();
        text.contains("goes on with the files of an earlier start").then_some(text)
    })
    .await;
    assert!(error.contains(".claude.json"), "{error}");
    until("the agent", async || session.log_text().contains("agent started").then_some(())).await;
    let said: Vec<String> = session.messages().await.into_iter().map(|message| message.2).collect();
    assert!(said.iter().any(|it| it == "You said: in between"), "{said:?}");

    // A session that begins on such a disk says what is wrong.
    for file in ["state", "home"] {
        std::fs::remove_dir_all(pod.path(file)).unwrap();
        std::fs::create_dir(pod.path(file)).unwrap();
    }
    disk.fill();
    drop(session);
    let mut session = pod.start().await;
    assert_ne!(session.exit().await, Some(0));
    until("the reason", async || session.log_text().contains("No space left on device").then_some(())).await;
}

#[tokio::test]
async fn a_conversation_that_the_agent_cannot_resume_does_not_keep_the_pod_down() {
    let script = "case \"$*\" in *--continue*) exit 3;; esac; \
        r=$(printf '─%.0s' $(seq 80)); printf 'fresh\\n%s\\n❯ \\n%s\\n  ? for shortcuts' \"$r\" \"$r\"; sleep 1000";
    let pod = Pod::with_command(&["bash", "-c", script, "agent"]).set("AGENTAPI_AGENT_TYPE", "claude");
    std::fs::create_dir_all(pod.path("home/.claude/projects/-w")).unwrap();
    std::fs::write(pod.path("home/.claude/projects/-w/a.jsonl"), "{}").unwrap();
    let message = |id: u64, role: &str| json!({"id": id, "content": "x", "role": role, "time": "2026-01-01T00:00:00Z"});
    let state = json!({
        "version": 1, "session_id": null, "messages": [message(0, "agent"), message(1, "user"), message(2, "agent")],
        "initial_prompt": null, "initial_prompt_state": "none",
    });
    std::fs::write(pod.path("state/state.json"), state.to_string()).unwrap();
    let mut first = pod.start().await;
    assert_eq!(first.exit().await, Some(1));
    let second = pod.start().await;
    second.stable().await;
    assert_eq!(second.messages().await.len(), 3);
}

#[tokio::test]
async fn the_end_of_the_agent_is_told_and_ends_the_container() {
    let pod = Pod::new();
    let mut session = pod.start().await;
    session.stable().await;
    let mut events = session.events("/events", None).await;
    assert_eq!(session.post("/message", json!({"content": "quit 7\r", "type": "raw"})).await.0, 200);
    let error = events.until(|event| event.name == "agent_error").await.pop().unwrap();
    assert_eq!(error.data["level"], "error");
    assert!(error.data["message"].as_str().unwrap().contains("code 7"), "{error:?}");
    assert!(error.data["time"].is_string());
    assert_eq!(session.exit().await, Some(1));
    until("the code in the log", async || session.log_text().contains("\"code\":7").then_some(())).await;
}

#[tokio::test]
async fn a_stubborn_agent_its_children_and_its_daemons_are_gone_in_time() {
    let script = "trap '' HUP TERM; sleep 1000 & echo \"child $!\"; \
        setsid bash -c 'trap \"\" TERM; echo \"daemon $$\"; sleep 1000; sleep 1000' & while :; do sleep 1; done";
    let pod = Pod::with_command(&["bash", "-c", script]);
    let mut session = pod.start().await;
    let pid_of = async |name: &str| {
        let text = session.messages().await.remove(0).2;
        text.lines().find_map(|line| line.strip_prefix(name)).map(|pid| pid.trim().to_owned())
    };
    let processes = until("the pids", async || Some([pid_of("child").await?, pid_of("daemon").await?])).await;
    let lives = |pid: &String| {
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        !state.is_empty() && !state.contains(") Z ")
    };
    assert!(processes.iter().all(lives), "{processes:?}");
    let start = Instant::now();
    assert_eq!(session.terminate().await, Some(0));
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    until("their end", async || (!processes.iter().any(lives)).then_some(())).await;
}

#[tokio::test]
async fn orphans_of_the_agent_are_collected() {
    let pod = Pod::new();
    let session = pod.start().await;
    let host = session.child.id().unwrap();
    let pid: u32 = session.ask("orphan").await.parse().unwrap();
    until("the orphan to be gone", async || (!std::path::Path::new(&format!("/proc/{pid}")).exists()).then_some(()))
        .await;
    assert!(std::path::Path::new(&format!("/proc/{host}")).exists());
}

#[tokio::test]
async fn open_streams_end_with_the_host() {
    let pod = Pod::new();
    let mut session = pod.start().await;
    let mut events = session.events("/events", None).await;
    let mut screens = session.events("/internal/screen", None).await;
    let start = Instant::now();
    assert_eq!(session.terminate().await, Some(0));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    while events.next().await.is_some() {}
    while screens.next().await.is_some() {}
    assert!(!session.log_text().contains("did not end in time"));
}

type Pushes = Arc<Mutex<Vec<(String, Value)>>>;

#[tokio::test]
async fn the_transcript_reaches_a_runtime_that_was_away() {
    async fn receive(State(pushes): State<Pushes>, headers: HeaderMap, Json(body): Json<Value>) -> http::StatusCode {
        let mut pushes = pushes.lock().unwrap();
        pushes.push((headers["authorization"].to_str().unwrap().to_owned(), body));
        // The first pushes fail.
        if pushes.len() <= 2 { http::StatusCode::SERVICE_UNAVAILABLE } else { http::StatusCode::NO_CONTENT }
    }
    let pushes = Pushes::default();
    let app = Router::new().route("/internal/v1/sessions/s1/messages", put(receive)).with_state(pushes.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });

    let signer = Signer::new();
    let pod = Pod::new().set("AGENTAPI_SESSION_PUBLIC_KEY", &signer.public).set("AGENTAPI_RUNTIME_INTERNAL_URL", &url);
    let mut session = pod.start().await;
    session.token = Some(signer.token("s1", "pod-1"));
    assert_eq!(session.post("/internal/claim", json!({"sessionId": "s1", "token": "pod-token"})).await.0, 200);
    session.ask("keep this").await;
    let has_all = async || {
        let pushes = pushes.lock().unwrap();
        let mut contents = pushes.iter().skip(2).flat_map(|push| push.1["messages"].as_array().unwrap().clone());
        let last = contents.find(|message| message["content"] == "You said: keep this")?;
        let stable = pushes.last().is_some_and(|push| push.1["status"] == "stable");
        stable.then_some(last)
    };
    let message = until("the transcript", has_all).await;
    assert_eq!((&message["id"], &message["role"]), (&json!(2), &json!("agent")));
    assert!(message["time"].is_string());
    assert!(pushes.lock().unwrap().iter().all(|push| push.0 == "Bearer pod-token"));
    // What is stable is not pushed again.
    let count = pushes.lock().unwrap().len();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(pushes.lock().unwrap().len(), count);
}

#[tokio::test]
async fn a_wrong_command_is_an_error_that_helps() {
    let pod = Pod::with_command(&["/no/such/agent"]);
    let mut session = pod.start().await;
    assert_eq!(session.exit().await, Some(1));
    let told = |logs: &str| logs.contains("/no/such/agent") && logs.contains("agent command");
    until("the reason in the log", async || told(&session.log_text()).then_some(())).await;
}
