//! MCP servers of a session: the agent is told of a relay on the loopback address, the relay adds the session's token,
//! and the token is in nothing that the agent is given.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use super::support::{Pod, Session, until};
use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, Method, StatusCode},
    response::{IntoResponse, Response},
    routing::{any, get},
};
use serde_json::{Value, json};

const ID: &str = "0197a000-0000-7000-8000-00000000c0de";
/// The agent: notes how it was started, then goes on.
const AGENT: &str =
    r#"{ echo "$*"; env; } > "start.$$" && mv "start.$$" "started-$(ls | grep -c started)"; exec sleep 600"#;

/// What the gateway was asked: method, token, session of the protocol, body.
type Call = (Method, String, String, String);

#[derive(Clone, Default)]
struct Runtime {
    calls: Arc<Mutex<Vec<Call>>>,
    asked: Arc<Mutex<Vec<String>>>,
    connections: Arc<Mutex<Vec<Value>>>,
    /// Only this token is good, if there is one.
    good: Arc<Mutex<Option<String>>>,
}

fn header(headers: &HeaderMap, name: &str) -> String {
    headers.get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
}

async fn connections(State(runtime): State<Runtime>, Path(session): Path<String>, headers: HeaderMap) -> Response {
    let token = header(&headers, "authorization");
    runtime.asked.lock().unwrap().push(format!("{session} {token}"));
    if !runtime.takes(&token) {
        return (StatusCode::UNAUTHORIZED, Json(json!({"type": "unauthorized"}))).into_response();
    }
    Json(json!({"connections": *runtime.connections.lock().unwrap()})).into_response()
}

async fn gateway(
    State(runtime): State<Runtime>,
    Path(id): Path<String>,
    method: Method,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    assert_eq!(id, ID);
    let token = header(&headers, "authorization");
    assert!(
        headers.get("x-own").is_none() && headers.get("cookie").is_none(),
        "only what the protocol knows is passed on"
    );
    let call = (method, token.clone(), header(&headers, "mcp-session-id"), String::from_utf8(body.to_vec()).unwrap());
    runtime.calls.lock().unwrap().push(call);
    if !runtime.takes(&token) {
        return (StatusCode::UNAUTHORIZED, Json(json!({"type": "unauthorized"}))).into_response();
    }
    let headers = [("content-type", "text/event-stream"), ("mcp-session-id", "m1"), ("x-internal", "x")];
    (headers, "event: message\ndata: {\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}\n\n").into_response()
}

impl Runtime {
    fn takes(&self, token: &str) -> bool {
        self.good.lock().unwrap().as_ref().is_none_or(|good| token == format!("Bearer {good}"))
    }

    async fn start(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new()
            .route("/internal/v1/sessions/{id}/connections", get(connections))
            .route("/v1/mcp/gateway/{id}", any(gateway))
            .fallback(async || StatusCode::NO_CONTENT)
            .with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        url
    }
}

async fn pod(runtime: &Runtime) -> (Pod, Session) {
    let pod = Pod::with_command(&["bash", "-c", AGENT, "agent"])
        .set("AGENTAPI_AGENT_TYPE", "claude")
        .set("AGENTAPI_RUNTIME_INTERNAL_URL", &runtime.start().await);
    let session = pod.start().await;
    (pod, session)
}

/// Arguments and environment of the agent's nth process.
async fn started(pod: &Pod, n: usize) -> String {
    let file = pod.path("work").join(format!("started-{n}"));
    until("the agent to start", async || std::fs::read_to_string(&file).ok()).await
}

fn relay(pod: &Pod, arguments: &str) -> String {
    let first = arguments.lines().next().unwrap();
    let file = first.split(' ').find_map(|word| word.strip_prefix("--mcp-config=")).expect("no --mcp-config");
    assert_eq!(file, pod.path("state").join("mcp.json").to_str().unwrap());
    let written: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let server = &written["mcpServers"]["github"];
    assert_eq!(server["type"], "http");
    let url = server["url"].as_str().unwrap().to_owned();
    assert!(url.starts_with("http://127.0.0.1:") && url.ends_with(&format!("/mcp/{ID}")), "{url}");
    assert!(!written.to_string().contains("token"), "{written}");
    url
}

#[tokio::test]
async fn a_claimed_pod_starts_its_agent_with_the_sessions_servers_behind_a_relay_that_adds_the_token() {
    let runtime = Runtime::default();
    runtime.connections.lock().unwrap().push(json!({"id": ID, "name": "github"}));
    let (pod, session) = pod(&runtime).await;
    assert!(!started(&pod, 0).await.contains("--mcp-config"), "an unclaimed pod has no servers");
    let claim = json!({"sessionId": "s1", "token": "pod-token-value"});
    assert_eq!(session.post("/internal/claim", claim).await.0, 200);
    let told = started(&pod, 1).await;
    let url = relay(&pod, &told);
    assert!(!told.contains("pod-token-value"), "the agent is given the token: {told}");
    assert_eq!(*runtime.asked.lock().unwrap(), ["s1 Bearer pod-token-value"]);

    let agent = reqwest::Client::builder().no_proxy().build().unwrap();
    let call = || {
        let request = agent.post(&url).header("mcp-session-id", "m0").header("x-own", "1").header("cookie", "a=b");
        request.header("authorization", "Bearer of-the-agent").json(&json!({"id": 1}))
    };
    let answer = call().send().await.unwrap();
    assert_eq!((answer.status().as_u16(), &answer.headers()["mcp-session-id"]), (200, &"m1".parse().unwrap()));
    assert!(answer.headers().get("x-internal").is_none());
    assert!(answer.text().await.unwrap().contains("\"result\""));
    let bearer = "Bearer pod-token-value".to_owned();
    let first = (Method::POST, bearer.clone(), "m0".to_owned(), r#"{"id":1}"#.to_owned());
    assert_eq!(*runtime.calls.lock().unwrap(), [first]);
    assert_eq!(agent.delete(&url).send().await.unwrap().status(), 200);
    assert_eq!(runtime.calls.lock().unwrap().len(), 2);

    // What is not for the agent does not reach the runtime.
    let page = call().header("origin", "https://evil.example.com").send().await.unwrap();
    assert_eq!(page.status(), 403);
    assert_eq!(agent.put(&url).send().await.unwrap().status(), 405);
    let elsewhere = url.replace(ID, "..%2f..%2finternal");
    assert_eq!(agent.post(&elsewhere).send().await.unwrap().status(), 400);
    assert_eq!(runtime.calls.lock().unwrap().len(), 2);

    // A token that was renewed in the session's Secret is taken up.
    std::fs::write(pod.path("secret").join("session.json"), r#"{"id": "s1"}"#).unwrap();
    std::fs::write(pod.path("secret").join("token"), "renewed").unwrap();
    *runtime.good.lock().unwrap() = Some("renewed".to_owned());
    assert_eq!(call().send().await.unwrap().status(), 200);
    let tokens: Vec<String> = runtime.calls.lock().unwrap().iter().skip(2).map(|call| call.1.clone()).collect();
    assert_eq!(tokens, [bearer, "Bearer renewed".to_owned()]);
    // A token that is no good stays that way: it is passed on once, and not again and again.
    *runtime.good.lock().unwrap() = Some("another".to_owned());
    assert_eq!(call().send().await.unwrap().status(), 401);
    assert_eq!(runtime.calls.lock().unwrap().len(), 5);
    // What the runtime has said is newer than a Secret that the kubelet brings late.
    assert_eq!(session.post("/internal/keys", json!({"publicKeys": [], "token": "told"})).await.0, 200);
    *runtime.good.lock().unwrap() = Some("renewed".to_owned());
    assert_eq!(call().send().await.unwrap().status(), 401);
    let tokens: Vec<String> = runtime.calls.lock().unwrap().iter().skip(5).map(|call| call.1.clone()).collect();
    assert_eq!(tokens, ["Bearer told"]);
}

/// A claimed pod whose runtime could not say which servers it has.
async fn without_its_servers(runtime: &Runtime) -> (Pod, Session) {
    runtime.connections.lock().unwrap().push(json!({"id": ID, "name": "github"}));
    *runtime.good.lock().unwrap() = Some("another".to_owned());
    let (pod, session) = pod(runtime).await;
    started(&pod, 0).await;
    assert_eq!(session.post("/internal/claim", json!({"sessionId": "s1", "token": "t"})).await.0, 200);
    assert!(!runtime.asked.lock().unwrap().is_empty());
    assert!(!pod.path("work").join("started-1").exists(), "it has no servers that it does not know");
    (pod, session)
}

#[tokio::test]
async fn servers_that_could_not_be_had_in_time_are_asked_for_on_and_an_agent_that_waits_starts_again() {
    let runtime = Runtime::default();
    let (pod, _session) = without_its_servers(&runtime).await;
    *runtime.good.lock().unwrap() = None;
    relay(&pod, &started(&pod, 1).await);
}

#[tokio::test]
async fn an_agent_that_somebody_uses_goes_on_and_its_user_is_told_that_it_has_no_servers() {
    let runtime = Runtime::default();
    let (pod, session) = without_its_servers(&runtime).await;
    let mut events = session.events("/events", None).await;
    assert_eq!(session.post("/message", json!({"content": "x", "type": "raw"})).await.0, 200);
    *runtime.good.lock().unwrap() = None;
    let told = events.until(|event| event.name == "agent_error");
    let told = tokio::time::timeout(Duration::from_secs(60), told).await.expect("nobody is told").pop().unwrap().data;
    assert_eq!(told["level"], "warning");
    assert!(told["message"].as_str().unwrap().contains("MCP servers"), "{told}");
    assert!(!pod.path("work").join("started-1").exists());
}

#[tokio::test]
async fn a_session_without_connections_keeps_the_agent_that_waits() {
    let runtime = Runtime::default();
    let (pod, session) = pod(&runtime).await;
    started(&pod, 0).await;
    assert_eq!(session.post("/internal/claim", json!({"sessionId": "s1", "token": "t"})).await.0, 200);
    assert_eq!(runtime.asked.lock().unwrap().len(), 1);
    assert!(!pod.path("work").join("started-1").exists() && !pod.path("state").join("mcp.json").exists());
}

#[tokio::test]
async fn a_pod_that_is_made_for_its_session_starts_with_its_servers() {
    let runtime = Runtime::default();
    runtime.connections.lock().unwrap().push(json!({"id": ID, "name": "github"}));
    let pod = Pod::with_command(&["bash", "-c", AGENT, "agent"])
        .set("AGENTAPI_AGENT_TYPE", "claude")
        .set("AGENTAPI_RUNTIME_INTERNAL_URL", &runtime.start().await);
    std::fs::write(pod.path("secret").join("session.json"), r#"{"id": "s1"}"#).unwrap();
    std::fs::write(pod.path("secret").join("token"), "t").unwrap();
    let _session = pod.start().await;
    relay(&pod, &started(&pod, 0).await);
}
