//! The contract with an agent that speaks ACP: the same conversation, events and errors; permissions and cancelling; what
//! becomes of an agent that ends, forgets, wants a login or talks nonsense. Real agents are in the API tests.

use std::{
    path::Path,
    sync::{Arc, Mutex},
};

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::post,
};

use super::support::{Pod, Session, SseEvent, until};
use serde_json::{Value, json};

fn pod() -> Pod {
    let agent = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/acp.py");
    Pod::with_command(&["python3", agent.to_str().unwrap()]).set("AGENTAPI_TRANSPORT", "acp")
}

fn slug(answer: &(u16, Value)) -> (u16, &str) {
    (answer.0, answer.1["type"].as_str().unwrap_or_default().trim_start_matches("https://agentapi.dev/problems/"))
}

/// The request for permission that the agent waits with.
async fn asked(session: &Session) -> Value {
    until("a request for permission", async || {
        let (_, body) = session.get("/permissions").await;
        body["permissions"].get(0).cloned()
    })
    .await
}

async fn last(session: &Session) -> String {
    session.stable().await;
    session.messages().await.pop().unwrap().2
}

#[tokio::test]
async fn a_conversation() {
    let pod = pod();
    let session = pod.start().await;
    session.stable().await;
    let status = session.get("/status").await.1;
    assert_eq!(status, json!({"status": "stable", "agent_type": "custom", "transport": "acp"}));
    assert_eq!(session.messages().await, [], "nothing has been said yet");
    let mut events = session.events("/events", None).await;
    assert_eq!(session.ask("hello there").await, "You said: hello there");
    // The same again: a reply equal to the last one is a new message.
    assert_eq!(session.ask("hello there").await, "You said: hello there");
    let ids: Vec<u64> = session.messages().await.iter().map(|message| message.0).collect();
    assert_eq!(ids, [0, 1, 2, 3]);
    let stable = |event: &SseEvent| event.name == "status_change" && event.data["status"] == "stable";
    // What a client sees, as with a terminal: the agent at work, the user's words, its words, and stable again.
    events.until(stable).await;
    let turn = events.until(stable).await;
    let seen: Vec<_> = turn.iter().map(|it| (it.name.as_str(), it.data["role"].as_str(), &it.data["status"])).collect();
    assert_eq!(seen[0], ("status_change", None, &json!("running")), "{turn:?}");
    assert_eq!(seen[1], ("message_update", Some("user"), &Value::Null), "{turn:?}");
    assert_eq!(seen[seen.len() - 2].1, Some("agent"), "{turn:?}");
    assert_eq!(turn[turn.len() - 2].data["message"], "You said: hello there");
}

#[tokio::test]
async fn there_is_no_terminal_and_that_is_said() {
    let pod = pod();
    let session = pod.start().await;
    session.stable().await;
    let raw = session.post("/message", json!({"content": "x\r", "type": "raw"})).await;
    assert_eq!(slug(&raw), (409, "no-terminal"));
    assert_eq!(slug(&session.get("/internal/screen").await), (409, "no-terminal"));
    assert_eq!(slug(&session.post("/message", json!({"content": " ", "type": "user"})).await), (400, "empty-message"));
    assert_eq!(session.messages().await, []);
}

#[tokio::test]
async fn a_client_decides_what_the_agent_may_do_and_only_once() {
    let pod = pod();
    let session = pod.start().await;
    for (body, outcome, status) in [
        (json!({"option_id": "yes"}), r#"{"optionId": "yes", "outcome": "selected"}"#, "completed"),
        (json!({"option_id": "no"}), r#"{"optionId": "no", "outcome": "selected"}"#, "rejected"),
        (json!({"outcome": "cancelled"}), r#"{"outcome": "cancelled"}"#, "rejected"),
    ] {
        session.say("tool").await;
        let permission = asked(&session).await;
        let tool = json!({"title": "Write note.txt", "kind": "edit", "raw_input": {"path": "note.txt"}});
        assert_eq!(permission["tool_call"], tool);
        assert_eq!(permission["options"][1], json!({"option_id": "no", "name": "No", "kind": "reject_once"}));
        // The agent is at work: it takes no message, and whoever comes now sees what it waits for.
        let busy = session.post("/message", json!({"content": "me too", "type": "user"})).await;
        assert_eq!(slug(&busy), (409, "agent-busy"));
        let mut events = session.events("/events", None).await;
        let snapshot = events.until(|event| event.name == "permission").await;
        assert_eq!(snapshot.last().unwrap().data, permission);
        let with = |id: &Value, mut body: Value| {
            body["id"] = id.clone();
            session.post("/permission", body)
        };
        for (id, wrong, expected) in [
            (&permission["id"], json!({"option_id": "maybe"}), (422, "no-such-option")),
            (&permission["id"], json!({"outcome": "selected"}), (422, "validation-failed")),
            (&permission["id"], json!({"option_id": "yes", "outcome": "cancelled"}), (422, "validation-failed")),
            (&permission["id"], json!({}), (422, "validation-failed")),
            (
                &json!("0197a000-0000-4000-8000-00000000c0de"),
                json!({"option_id": "yes"}),
                (404, "permission-not-found"),
            ),
        ] {
            assert_eq!(slug(&with(id, wrong.clone()).await), expected, "{wrong}");
        }
        assert_eq!(asked(&session).await, permission, "nothing of that was an answer");
        assert_eq!(with(&permission["id"], body.clone()).await, (200, json!({"ok": true})));
        assert_eq!(slug(&with(&permission["id"], body.clone()).await), (409, "permission-answered"));
        let expected = format!("[tool] Write note.txt (edit, {status})\n\n{outcome}");
        assert_eq!(last(&session).await, expected);
        let resolved = events.until(|event| event.name == "permission_resolved").await.pop().unwrap().data;
        assert_eq!((&resolved["id"], &resolved["by"]), (&permission["id"], &json!("user")));
        assert_eq!(resolved.get("option_id"), body.get("option_id"), "{resolved}");
        assert_eq!(session.get("/permissions").await.1, json!({"permissions": []}));
    }
}

#[tokio::test]
async fn nobody_answers_and_the_policy_does() {
    let asking = pod().set("AGENTAPI_PERMISSION_TIMEOUT", "1s");
    let session = asking.start().await;
    session.stable().await;
    let mut events = session.events("/events", None).await;
    session.say("tool").await;
    let seen = events.until(|event| event.name == "permission_resolved").await;
    let resolved = &seen.last().unwrap().data;
    assert_eq!((&resolved["by"], &resolved["option_id"]), (&json!("timeout"), &json!("no")));
    let asked = seen.iter().find(|event| event.name == "permission").expect("clients hear of the request at once");
    assert_eq!(asked.data["id"], resolved["id"]);
    assert!(last(&session).await.contains(r#"{"optionId": "no", "outcome": "selected"}"#));
    let late = session.post("/permission", json!({"id": resolved["id"], "option_id": "yes"})).await;
    assert_eq!(slug(&late), (409, "permission-answered"));
    for (policy, option) in [("allow", "yes"), ("reject", "no")] {
        let pod = pod().set("AGENTAPI_PERMISSIONS", policy);
        let session = pod.start().await;
        let said = session.ask("tool").await;
        assert!(said.ends_with(&format!(r#"{{"optionId": "{option}", "outcome": "selected"}}"#)), "{said}");
    }
}

#[tokio::test]
async fn the_runtime_hears_of_what_no_client_has_decided() {
    type Reports = Arc<Mutex<Vec<(String, Value)>>>;
    async fn receive(State(reports): State<Reports>, headers: HeaderMap, Json(body): Json<Value>) -> Response {
        let token = headers["authorization"].to_str().unwrap().to_owned();
        let mut reports = reports.lock().unwrap();
        reports.push((token, body));
        // The first is lost, of the second nothing is known, and then they are taken.
        match reports.len() {
            1 => StatusCode::SERVICE_UNAVAILABLE.into_response(),
            2 => Json(json!({"taken": 0})).into_response(),
            _ => Json(json!({"taken": 1})).into_response(),
        }
    }
    let reports = Reports::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let app = Router::new().route("/internal/v1/sessions/s1/permissions", post(receive)).with_state(reports.clone());
    tokio::spawn(async move { axum::serve(listener, app).await });
    let told = async |at_least: usize| {
        until("reports", async || Some(reports.lock().unwrap().clone()).filter(|it| it.len() >= at_least)).await
    };
    let claimed = |pod: Pod| {
        let secret = json!({"id": "s1", "organization": "acme", "workspace": "web"});
        std::fs::write(pod.path("secret/session.json"), secret.to_string()).unwrap();
        std::fs::write(pod.path("secret/token"), "t1").unwrap();
        pod.set("AGENTAPI_RUNTIME_INTERNAL_URL", &url)
    };
    let asking = claimed(pod().set("AGENTAPI_PERMISSION_TIMEOUT", "1s"));
    let session = asking.start().await;
    session.say("tool").await;
    let permission = asked(&session).await;
    let reported = told(3).await;
    let decision = json!({"permission": permission["id"], "decision": "no", "by": "timeout", "kind": "edit"});
    for (token, body) in &reported {
        assert_eq!((token.as_str(), body), ("Bearer t1", &json!({"decisions": [decision]})));
    }
    // What a client decides is in the log before the pod hears of it.
    session.stable().await;
    session.say("tool").await;
    let answer = json!({"id": asked(&session).await["id"], "option_id": "yes"});
    assert_eq!(session.post("/permission", answer).await.0, 200);
    session.stable().await;
    drop(session);
    for (policy, option) in [("allow", "yes"), ("reject", "no")] {
        let before = reports.lock().unwrap().len();
        let pod = claimed(pod().set("AGENTAPI_PERMISSIONS", policy));
        let session = pod.start().await;
        session.ask("tool").await;
        let (_, body) = told(before + 1).await.pop().unwrap();
        let decision = &body["decisions"][0];
        assert_eq!((&decision["decision"], &decision["by"]), (&json!(option), &json!("policy")), "{body}");
    }
    assert_eq!(reports.lock().unwrap().len(), reported.len() + 2, "once each");
}

#[tokio::test]
async fn a_turn_is_cancelled_and_the_next_one_works() {
    let pod = pod();
    let session = pod.start().await;
    session.stable().await;
    assert_eq!(slug(&session.post("/cancel", json!({})).await), (409, "agent-idle"));
    session.say("slow").await;
    until("a first part", async || session.messages().await.get(1).filter(|it| it.2.contains("step 2")).cloned()).await;
    assert_eq!(session.post("/cancel", json!({})).await, (200, json!({"ok": true})));
    let said = last(&session).await;
    assert!(said.starts_with("step 1 step 2") && said.ends_with("\n\n[stopped: cancelled]"), "{said}");
    // While it waits for a permission, too: what it asked for is cancelled with the turn.
    let mut events = session.events("/events", None).await;
    session.say("tool").await;
    let permission = asked(&session).await;
    assert_eq!(session.post("/cancel", json!({})).await.0, 200);
    let resolved = events.until(|event| event.name == "permission_resolved").await.pop().unwrap().data;
    assert_eq!(resolved, json!({"id": permission["id"], "outcome": "cancelled", "by": "agent"}));
    assert!(last(&session).await.contains(r#"{"outcome": "cancelled"}"#));
    let late = session.post("/permission", json!({"id": permission["id"], "option_id": "yes"})).await;
    assert_eq!(slug(&late), (409, "permission-answered"));
    assert_eq!(session.ask("still there?").await, "You said: still there?");
}

#[tokio::test]
async fn what_ends_the_turn_of_an_earlier_agent_ends_none_of_the_next_one() {
    let pod = pod();
    let session = pod.start().await;
    let file = pod.path("work/end");
    session.say(&format!("outlive {}", file.display())).await;
    until("the tool", async || session.messages().await.get(1).filter(|it| it.2 == "it is on its own").cloned()).await;
    // A claim with an environment starts the agent anew, in mid-turn.
    assert_eq!(session.post("/internal/claim", json!({"sessionId": "s1", "env": {"GREETING": "hi"}})).await.0, 200);
    session.say("tool").await;
    let permission = asked(&session).await;
    std::fs::write(file, "").unwrap();
    until("the answer of then", async || session.log_text().contains("the last of it").then_some(())).await;
    assert_eq!(session.get("/status").await.1["status"], "running");
    assert_eq!(session.get("/permissions").await.1, json!({"permissions": [permission]}));
    let answer = json!({"id": permission["id"], "option_id": "yes"});
    assert_eq!(session.post("/permission", answer).await.0, 200);
    let said = last(&session).await;
    assert!(said.starts_with("[tool] Write note.txt (edit, completed)") && said.contains("yes"), "{said}");
}

#[tokio::test]
async fn a_failed_turn_is_told_and_the_next_one_works() {
    let pod = pod();
    let session = pod.start().await;
    session.stable().await;
    let mut events = session.events("/events", None).await;
    assert_eq!(session.ask("fail").await, "[failed: Internal error: it is lost]");
    let error = events.until(|event| event.name == "agent_error").await.pop().unwrap();
    assert_eq!(error.data["message"], "The agent's turn has failed: Internal error: it is lost");
    assert_eq!(session.ask("hello").await, "You said: hello");
}

#[tokio::test]
async fn what_is_no_message_is_skipped_and_what_was_not_offered_is_refused() {
    let pod = pod();
    let session = pod.start().await;
    assert_eq!(session.ask("noise").await, "refused: -32601");
    until("the log", async || session.log_text().contains("a line of the log with[31m colour").then_some(())).await;
    assert!(session.log_text().contains("npm notice"), "{}", session.log_text());
}

#[tokio::test]
async fn the_agent_is_told_its_prompt_and_where_it_works() {
    let pod = pod();
    let session = pod.start().await;
    session.stable().await;
    let claim = json!({"sessionId": "s1", "env": {"GREETING": "hi"}, "systemPrompt": "Be kind."});
    assert_eq!(session.post("/internal/claim", claim).await.0, 200);
    assert_eq!(session.ask("env GREETING").await, "hi");
    let opened = session.ask("opened").await;
    let opened: Value = serde_json::from_str(opened.strip_prefix("new ").unwrap()).unwrap();
    assert_eq!(opened, json!({"cwd": pod.path("work").to_str().unwrap(), "mcpServers": []}));
    let file = session.ask("env AGENTAPI_SYSTEM_PROMPT_FILE").await;
    assert_eq!(std::fs::read_to_string(file).unwrap(), "Be kind.");
    assert_eq!(session.ask("env AGENTAPI_TRANSPORT").await, "unset", "the host's own variables stay with the host");
}

#[tokio::test]
async fn a_restarted_agent_goes_on_with_its_session() {
    let mut pod = pod();
    let mut session = pod.start().await;
    let first = session.ask("hello").await;
    session.terminate().await;
    let mut session = pod.start().await;
    // What the agent repeats of the past is in the conversation already.
    assert_eq!(last(&session).await, first);
    assert!(session.ask("opened").await.starts_with("load session-"));
    assert_eq!(session.messages().await.len(), 4);
    session.terminate().await;
    for mode in ["lost", "forgetful"] {
        pod.env.push(("ACP_MODE".to_owned(), mode.to_owned()));
        let mut session = pod.start().await;
        assert!(session.ask("opened").await.starts_with("new "), "{mode}");
        assert_eq!(session.messages().await[0].2, "hello", "{mode}");
        session.terminate().await;
    }
}

#[tokio::test]
async fn an_agent_that_ends_takes_its_container_with_it() {
    let pod = pod();
    let mut session = pod.start().await;
    session.stable().await;
    let mut events = session.events("/events", None).await;
    session.say("die 3").await;
    let error = events.until(|event| event.name == "agent_error").await.pop().unwrap();
    assert!(error.data["message"].as_str().unwrap().contains("code 3"), "{error:?}");
    assert_ne!(session.exit().await, Some(0));
    let session = pod.start().await;
    assert_eq!(last(&session).await, "last words");
    assert_eq!(session.ask("back?").await, "You said: back?");
}

#[tokio::test]
async fn an_agent_without_a_session_says_why_and_ends_the_container() {
    for (mode, expected) in [("login", "takes API key"), ("future", "speaks version 99")] {
        let pod = pod().set("ACP_MODE", mode);
        let mut session = pod.start().await;
        assert_ne!(session.exit().await, Some(0), "{mode}");
        until("the reason", async || session.log_text().contains(expected).then_some(())).await;
    }
}
