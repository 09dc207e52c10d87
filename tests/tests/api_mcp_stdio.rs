//! `agentapi-runtime mcp-stdio` in front of a real MCP server that speaks over standard input and output (fastmcp), as
//! it runs in the pod of a stdio McpConnection.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::time::Duration;

use agentapi_runtime::mcp_stdio::{self, StdioArgs};
use agentapi_tests::cluster::{eventually, repo};
use agentapi_tests::mcp::fastmcp;
use futures::future::join_all;
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use reqwest::{Client, Method, Response, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

const EVENTS: &str = "application/json, text/event-stream";
const SOON: Duration = Duration::from_secs(60);

/// A running pod, so to speak.
struct Pod {
    url: String,
    http: Client,
    stop: CancellationToken,
    _stops: DropGuard,
}

impl Pod {
    async fn of(command: Vec<String>, max_sessions: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/mcp", listener.local_addr().unwrap());
        let stop = CancellationToken::new();
        let args = StdioArgs { listen: listener.local_addr().unwrap(), max_sessions, idle_seconds: 1800, command };
        tokio::spawn(mcp_stdio::serve(listener, args, stop.clone()));
        let http = Client::builder().no_proxy().timeout(Duration::from_secs(60)).build().unwrap();
        Self { url, http, _stops: stop.clone().drop_guard(), stop }
    }

    async fn demo(max_sessions: usize) -> Self {
        let python = tokio::task::spawn_blocking(fastmcp::python).await.unwrap().unwrap().display().to_string();
        let server = repo().join("images/mcp-server/server.py").display().to_string();
        Self::of(["env", "TRANSPORT=stdio", &python, &server].map(str::to_owned).to_vec(), max_sessions).await
    }

    async fn send(&self, session: Option<&str>, message: &Value) -> Response {
        let mut request = self.http.post(&self.url).header(ACCEPT, EVENTS).json(message);
        if let Some(session) = session {
            request = request.header("mcp-session-id", session);
        }
        request.send().await.unwrap()
    }

    /// All messages that come back for a request.
    async fn messages(&self, session: Option<&str>, message: &Value) -> Vec<Value> {
        let response = self.send(session, message).await;
        assert_eq!(response.status(), StatusCode::OK);
        let text = response.text().await.unwrap();
        text.lines()
            .filter_map(|line| line.strip_prefix("data: "))
            .map(|data| serde_json::from_str(data).unwrap())
            .collect()
    }

    async fn call(&self, session: &str, id: i64, tool: &str, arguments: Value) -> Value {
        let params = json!({"name": tool, "arguments": arguments});
        let request = json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params});
        self.messages(Some(session), &request).await.pop().unwrap()
    }

    /// Id of a session that is ready for calls.
    async fn initialize(&self) -> String {
        let params =
            json!({"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}});
        let request = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params});
        let response = self.send(None, &request).await;
        assert_eq!(response.status(), StatusCode::OK);
        let session = response.headers()["mcp-session-id"].to_str().unwrap().to_owned();
        let text = response.text().await.unwrap();
        assert!(text.contains("\"serverInfo\""), "{text}");
        let ready = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
        assert_eq!(self.send(Some(&session), &ready).await.status(), StatusCode::ACCEPTED);
        session
    }

    async fn delete(&self, session: &str) -> StatusCode {
        let request = self.http.request(Method::DELETE, &self.url).header("mcp-session-id", session);
        request.send().await.unwrap().status()
    }
}

fn process(answer: &Value) -> u32 {
    u32::try_from(answer["result"]["structuredContent"]["result"].as_u64().unwrap()).unwrap()
}

fn text(answer: &Value) -> &str {
    answer["result"]["content"][0]["text"].as_str().unwrap_or_default()
}

async fn gone(process: u32) {
    let folder = std::path::PathBuf::from(format!("/proc/{process}"));
    let look = async || Ok(if folder.exists() { Err("it runs".to_owned()) } else { Ok(()) });
    eventually("the program is gone", SOON, look).await.unwrap();
}

#[tokio::test]
async fn each_session_has_a_process_of_its_own_and_answers_find_their_askers() {
    let pod = Pod::demo(8).await;
    let (one, two) = tokio::join!(pod.initialize(), pod.initialize());
    let first = process(&pod.call(&one, 1, "pid", json!({})).await);
    let second = process(&pod.call(&two, 1, "pid", json!({})).await);
    assert_ne!(first, second);
    assert_eq!(process(&pod.call(&one, 2, "pid", json!({})).await), first, "the same session, the same process");
    // Ids of the client's choice, several at a time, one twice: each gets its own answer, under its own id.
    let sums = join_all((0..10).map(|n| pod.call(&one, n % 5, "add", json!({"a": n, "b": 100})))).await;
    for (n, sum) in (0..10).zip(&sums) {
        assert_eq!((sum["id"].as_i64().unwrap(), text(sum)), (n % 5, (n + 100).to_string().as_str()), "{sum}");
    }
    assert_eq!(pod.delete(&one).await, StatusCode::NO_CONTENT);
    gone(first).await;
    assert_eq!(pod.delete(&one).await, StatusCode::NOT_FOUND);
    assert_eq!(process(&pod.call(&two, 3, "pid", json!({})).await), second, "the other one goes on");
}

#[tokio::test]
async fn progress_comes_under_the_clients_own_token_and_a_call_can_be_cancelled() {
    let pod = Pod::demo(8).await;
    let session = pod.initialize().await;
    let params = json!({"name": "count", "arguments": {"to": 3}, "_meta": {"progressToken": "mine"}});
    let request = json!({"jsonrpc": "2.0", "id": "a", "method": "tools/call", "params": params});
    let messages = pod.messages(Some(&session), &request).await;
    let progress: Vec<&Value> = messages.iter().filter(|it| it["method"] == "notifications/progress").collect();
    assert_eq!(progress.len(), 3, "{messages:?}");
    assert!(progress.iter().all(|it| it["params"]["progressToken"] == "mine"), "{progress:?}");
    assert_eq!(text(messages.last().unwrap()), "counted to 3");
    assert_eq!(messages.last().unwrap()["id"], "a");

    let long = json!({"jsonrpc": "2.0", "id": "long", "method": "tools/call",
                      "params": {"name": "sleep", "arguments": {"seconds": 600}}});
    let cancel = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": "long"}});
    let cancelled = async {
        // The stream begins when the program has the request.
        let response = pod.send(Some(&session), &long).await;
        assert_eq!(pod.send(Some(&session), &cancel).await.status(), StatusCode::ACCEPTED);
        response.text().await.unwrap()
    };
    let answer = tokio::time::timeout(SOON, cancelled).await.expect("the call goes on although it was cancelled");
    assert!(answer.contains("\"id\":\"long\"") && answer.contains("was cancelled"), "{answer}");
}

#[tokio::test]
async fn a_program_that_dies_ends_its_session_and_the_next_one_has_another() {
    let pod = Pod::demo(8).await;
    let session = pod.initialize().await;
    let first = process(&pod.call(&session, 1, "pid", json!({})).await);
    let answer = pod.call(&session, 2, "crash", json!({})).await;
    assert!(answer["error"]["message"].as_str().unwrap().contains("has ended"), "{answer}");
    assert_eq!(answer["id"], 2);
    let again = json!({"jsonrpc": "2.0", "id": 3, "method": "tools/list"});
    let refused = pod.send(Some(&session), &again).await;
    assert_eq!(refused.status(), StatusCode::NOT_FOUND, "a client begins another session when it reads this");
    let next = pod.initialize().await;
    assert_ne!(process(&pod.call(&next, 1, "pid", json!({})).await), first);
}

#[tokio::test]
async fn requests_without_a_session_share_one_process() {
    let pod = Pod::demo(8).await;
    let meta = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "t", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    let call = |tool: &str, arguments: Value| {
        let params = json!({"name": tool, "arguments": arguments, "_meta": meta});
        json!({"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": params})
    };
    let requests: Vec<Value> = (0..5).map(|n| call("add", json!({"a": n, "b": 1}))).collect();
    let answers = join_all(requests.iter().map(|request| pod.messages(None, request))).await;
    for (n, answer) in answers.iter().enumerate() {
        let answer = answer.last().unwrap();
        assert_eq!((answer["id"].as_i64(), text(answer)), (Some(7), (n + 1).to_string().as_str()), "{answer}");
    }
    let first = process(pod.messages(None, &call("pid", json!({}))).await.last().unwrap());
    let crashed = pod.messages(None, &call("crash", json!({}))).await;
    assert!(crashed.last().unwrap()["error"].is_object(), "{crashed:?}");
    let second = process(pod.messages(None, &call("pid", json!({}))).await.last().unwrap());
    assert_ne!(first, second, "started again");
}

#[tokio::test]
async fn clients_that_share_a_process_do_not_reach_each_other() {
    let python = tokio::task::spawn_blocking(fastmcp::python).await.unwrap().unwrap().display().to_string();
    let program = repo().join("tests/fixtures/mcp/gossip.py").display().to_string();
    let pod = Pod::of(vec![python, program], 8).await;
    let request = |id: Value, method: &str| json!({"jsonrpc": "2.0", "id": id, "method": method});
    let heard = async || {
        let answer = pod.messages(None, &request(json!("h"), "heard")).await.pop().unwrap();
        answer["result"]["heard"].as_array().unwrap().clone()
    };
    // Alice waits for an answer. The stream begins when the program has her request.
    let alice = pod.send(None, &request(json!(7), "hold")).await;
    eventually("alice's request is heard", SOON, async || {
        Ok(if heard().await.iter().any(|it| it["method"] == "hold") { Ok(()) } else { Err("not yet".to_owned()) })
    })
    .await
    .unwrap();
    // Bob cancels under her id and under the one that the program knows, and answers what the program asks.
    for id in [json!(7), json!(1), json!("7")] {
        let cancel = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": id}});
        assert_eq!(pod.send(None, &cancel).await.status(), StatusCode::ACCEPTED);
        let forged = json!({"jsonrpc": "2.0", "id": id, "result": {"forged": true}});
        assert_eq!(pod.send(None, &forged).await.status(), StatusCode::ACCEPTED);
    }
    // He is the only one who asks for something, and gets what is about his request and nothing else.
    let told = pod.messages(None, &request(json!("g"), "gossip")).await;
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!(told[0]["params"]["data"], "yours");
    assert_eq!(told[0]["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"], "g");
    assert_eq!((&told[1]["id"], &told[1]["result"]), (&json!("g"), &json!({})));
    let all = heard().await;
    assert!(all.iter().all(|it| it["method"] != "notifications/cancelled" && it["result"].is_null()), "{all:?}");
    // Whom it has asked does not keep it waiting.
    let declined: Vec<_> = all.iter().filter(|it| it["id"] == "ask-1").collect();
    assert_eq!((declined.len(), &declined[0]["error"]["code"]), (1, &json!(-32601)), "{all:?}");
    pod.messages(None, &request(json!("r"), "release")).await;
    let answer = alice.text().await.unwrap();
    assert!(answer.contains("\"id\":7") && answer.contains("\"late\":true"), "{answer}");
    // With a session, which is one client's, all of that goes through.
    let session = pod.initialize().await;
    let told = pod.messages(Some(&session), &request(json!("g"), "gossip")).await;
    assert_eq!(told.len(), 4, "{told:?}");
}

#[tokio::test]
async fn processes_are_limited_and_idle_ones_make_room() {
    let pod = Pod::demo(1).await;
    let idle = pod.initialize().await;
    let first = process(&pod.call(&idle, 1, "pid", json!({})).await);
    let busy = pod.initialize().await;
    gone(first).await;
    let long = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call",
                      "params": {"name": "sleep", "arguments": {"seconds": 600}}});
    let _working = pod.send(Some(&busy), &long).await;
    let request = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {}});
    let refused = pod.send(None, &request).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(refused.text().await.unwrap().contains("try again"));
}

#[tokio::test]
async fn what_is_wrong_is_said_and_starts_nothing() {
    let pod = Pod::of(vec!["no-such-program".into()], 8).await;
    let request = json!({"jsonrpc": "2.0", "id": 5, "method": "initialize", "params": {}});
    let answer: Value = pod.send(None, &request).await.json().await.unwrap();
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains("\"no-such-program\"") && message.contains("spec.transport.stdio.command"), "{message}");
    assert_eq!(answer["id"], 5);
    for (body, kind) in [("{", "application/json"), ("[]", "application/json"), ("[{}]", "application/json")] {
        let request = pod.http.post(&pod.url).header(CONTENT_TYPE, kind).body(body);
        assert_eq!(request.send().await.unwrap().status(), StatusCode::BAD_REQUEST, "{body}");
    }
    let ping = json!({"jsonrpc": "2.0", "id": 1, "method": "ping"});
    assert_eq!(pod.send(Some("nobody"), &ping).await.status(), StatusCode::NOT_FOUND);
    let listen = pod.http.get(&pod.url).header(ACCEPT, "text/event-stream");
    assert_eq!(listen.send().await.unwrap().status(), StatusCode::METHOD_NOT_ALLOWED);
    let live = pod.http.get(pod.url.replace("/mcp", "/live")).send().await.unwrap();
    assert_eq!(live.status(), StatusCode::OK);
}

#[tokio::test]
async fn nothing_is_left_running_when_the_pod_ends() {
    let pod = Pod::demo(8).await;
    let session = pod.initialize().await;
    let program = process(&pod.call(&session, 1, "pid", json!({})).await);
    pod.stop.cancel();
    gone(program).await;
}
