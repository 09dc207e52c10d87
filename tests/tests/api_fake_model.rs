//! The fake model endpoint over real HTTP, in each of its wire formats.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use agentapi_tests::fakemodel::{Config, Recorded, router};
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};

const MESSAGES: &str = "/v1/messages";
const CHAT: &str = "/v1/chat/completions";
const RESPONSES: &str = "/v1/responses";

struct Endpoint {
    base: String,
    client: Client,
}

impl Endpoint {
    async fn start(config: Config) -> Self {
        // Several crypto providers could be linked; a plain-HTTP client must not depend on which.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router(config)).await.unwrap() });
        Self { base, client: Client::new() }
    }

    fn post(&self, path: &str, body: &Value) -> RequestBuilder {
        self.client.post(format!("{}{path}", self.base)).json(body)
    }

    async fn send(&self, path: &str, body: &Value) -> Response {
        self.post(path, body).header("x-api-key", "k").send().await.unwrap()
    }

    async fn json(&self, path: &str, body: &Value) -> Value {
        self.send(path, body).await.error_for_status().unwrap().json().await.unwrap()
    }

    /// The events of a stream as (name, data).
    async fn stream(&self, path: &str, body: &Value) -> Vec<(String, Value)> {
        let response = self.send(path, body).await.error_for_status().unwrap();
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let text = response.text().await.unwrap();
        let field = |event: &str, name: &str| {
            event.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).unwrap_or_default().to_owned()
        };
        let events = text.split("\n\n").filter(|event| !event.is_empty());
        events
            .map(|event| (field(event, "event:"), field(event, "data:")))
            .map(|(name, data)| (name, serde_json::from_str(&data).unwrap_or(Value::String(data))))
            .collect()
    }

    async fn requests(&self) -> Vec<Recorded> {
        self.client.get(format!("{}/requests", self.base)).send().await.unwrap().json().await.unwrap()
    }
}

fn ask(path: &str, text: &str, stream: bool) -> Value {
    let messages = json!([{"role": "user", "content": text}]);
    match path {
        MESSAGES => json!({"model": "m", "max_tokens": 100, "messages": messages, "stream": stream}),
        CHAT => json!({"model": "m", "messages": messages, "stream": stream}),
        _ => json!({"model": "m", "input": messages, "stream": stream}),
    }
}

fn texts(events: &[(String, Value)], pointer: &str) -> String {
    events.iter().filter_map(|(_, data)| data.pointer(pointer).and_then(Value::as_str)).collect()
}

fn names(events: &[(String, Value)]) -> Vec<&str> {
    events.iter().map(|(name, _)| name.as_str()).collect()
}

#[tokio::test]
async fn each_format_answers_in_one_piece() {
    let endpoint = Endpoint::start(Config::default()).await;
    for (path, pointer) in
        [(MESSAGES, "/content/0/text"), (CHAT, "/choices/0/message/content"), (RESPONSES, "/output/0/content/0/text")]
    {
        let body = endpoint.json(path, &ask(path, "echo: one two", false)).await;
        assert_eq!(body.pointer(pointer), Some(&json!("one two")), "{path}");
    }
}

#[tokio::test]
async fn anthropic_streams_in_the_documented_order() {
    let endpoint = Endpoint::start(Config::default()).await;
    let events = endpoint.stream(MESSAGES, &ask(MESSAGES, "echo: one two", true)).await;
    assert_eq!(
        names(&events),
        [
            "message_start",
            "content_block_start",
            "ping",
            "content_block_delta",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop"
        ]
    );
    assert_eq!(texts(&events, "/delta/text"), "one two");
}

#[tokio::test]
async fn openai_streams_end_as_their_clients_expect() {
    let endpoint = Endpoint::start(Config::default()).await;
    let chat = endpoint.stream(CHAT, &ask(CHAT, "echo: one two", true)).await;
    assert_eq!(texts(&chat, "/choices/0/delta/content"), "one two");
    assert_eq!(chat.last().unwrap().1, json!("[DONE]"));

    let responses = endpoint.stream(RESPONSES, &ask(RESPONSES, "echo: one two", true)).await;
    assert_eq!(texts(&responses, "/delta"), "one two");
    assert_eq!(responses.last().unwrap().0, "response.completed");
    for (index, (_, data)) in responses.iter().enumerate() {
        assert_eq!(data["sequence_number"], index);
    }
}

#[tokio::test]
async fn a_tool_is_called_and_its_result_quoted_in_each_format() {
    let endpoint = Endpoint::start(Config::default()).await;

    let mut body = ask(MESSAGES, "read file /etc/motd", true);
    body["tools"] = json!([{"name": "Read", "input_schema": {"type": "object"}}]);
    let events = endpoint.stream(MESSAGES, &body).await;
    assert_eq!(texts(&events, "/delta/partial_json"), r#"{"file_path":"/etc/motd"}"#);
    assert_eq!(texts(&events, "/delta/stop_reason"), "tool_use");
    body["stream"] = json!(false);
    body["messages"] = json!([body["messages"][0],
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "Read", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "1→hi"}]},
            {"type": "text", "text": "<system-reminder>x</system-reminder>"}]}]);
    assert_eq!(endpoint.json(MESSAGES, &body).await["content"][0]["text"], "The file says: \"hi\"");

    let mut body = ask(CHAT, "run: date", false);
    body["tools"] = json!([{"type": "function", "function": {"name": "shell", "parameters":
        {"properties": {"command": {"type": "array"}}}}}]);
    let call = endpoint.json(CHAT, &body).await.pointer("/choices/0/message/tool_calls/0/function").cloned().unwrap();
    assert_eq!(call["arguments"], r#"{"command":["bash","-lc","date"]}"#);
    body["messages"] = json!([body["messages"][0], {"role": "assistant", "content": null, "tool_calls": [{"function": call}]},
        {"role": "tool", "tool_call_id": "c", "content": "noon"}]);
    let answer = endpoint.json(CHAT, &body).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "The command printed: \"noon\"");

    let mut body = ask(RESPONSES, "run: date", true);
    body["tools"] = json!([{"type": "function", "name": "exec_command", "parameters": {"properties": {"cmd": {}}}}]);
    let events = endpoint.stream(RESPONSES, &body).await;
    let done = &events.last().unwrap().1["response"]["output"][1];
    assert_eq!(done["arguments"], r#"{"cmd":"date"}"#);
    body["stream"] = json!(false);
    body["input"] = json!([body["input"][0], done,
        {"type": "function_call_output", "call_id": done["call_id"], "output": "Exit code: 0\nOutput:\nnoon"}]);
    let answer = endpoint.json(RESPONSES, &body).await;
    assert_eq!(answer["output"][0]["content"][0]["text"], "The command printed: \"noon\"");
}

#[tokio::test]
async fn a_key_is_required_and_can_be_pinned() {
    let open = Endpoint::start(Config::default()).await;
    let pinned = Endpoint::start(Config { api_key: Some("right".into()), ..Config::default() }).await;
    for path in [MESSAGES, CHAT, RESPONSES] {
        let body = ask(path, "hi", false);
        assert_eq!(open.post(path, &body).send().await.unwrap().status(), StatusCode::UNAUTHORIZED, "{path}");
        let blank = open.post(path, &body).bearer_auth("").send().await.unwrap();
        assert_eq!(blank.status(), StatusCode::UNAUTHORIZED, "{path}");
        let wrong = pinned.post(path, &body).bearer_auth("wrong").send().await.unwrap();
        assert_eq!(wrong.status(), StatusCode::UNAUTHORIZED, "{path}");
        let right = pinned.post(path, &body).bearer_auth("right").send().await.unwrap();
        assert_eq!(right.status(), StatusCode::OK, "{path}");
    }
}

#[tokio::test]
async fn requests_are_kept_without_the_key() {
    let endpoint = Endpoint::start(Config { keep_requests: 2, ..Config::default() }).await;
    for text in ["echo: 1", "echo: 2", "echo: 3"] {
        let sent =
            endpoint.post(MESSAGES, &ask(MESSAGES, text, false)).bearer_auth("very-secret").send().await.unwrap();
        assert!(sent.status().is_success());
    }
    let kept = endpoint.requests().await;
    let seen: Vec<_> = kept.iter().map(|one| (one.user.as_str(), one.reply.as_str(), one.auth.as_str())).collect();
    assert_eq!(seen, [("echo: 2", "2", "authorization"), ("echo: 3", "3", "authorization")]);
    assert!(!serde_json::to_string(&kept).unwrap().contains("very-secret"));

    endpoint.client.get(format!("{}/elsewhere", endpoint.base)).send().await.unwrap();
    assert_eq!(endpoint.requests().await.last().unwrap().path, "GET /elsewhere");
}

#[tokio::test]
async fn slow_answers_arrive_word_by_word() {
    let endpoint = Endpoint::start(Config { word_delay: Duration::from_millis(20), ..Config::default() }).await;
    let started = std::time::Instant::now();
    let mut response = endpoint.send(MESSAGES, &ask(MESSAGES, "slow 10", true)).await;
    let mut chunks = 0;
    while response.chunk().await.unwrap().is_some() {
        chunks += 1;
    }
    assert!(started.elapsed() >= Duration::from_millis(20 * 20), "20 pieces with a pause each");
    assert!(chunks > 5, "{chunks} chunks: the answer was held back");
}

#[tokio::test]
async fn bad_requests_say_what_is_missing() {
    let endpoint = Endpoint::start(Config::default()).await;
    for (path, pointer, word) in [
        (MESSAGES, "/error/message", "messages"),
        (CHAT, "/error/message", "messages"),
        (RESPONSES, "/error/message", "input"),
    ] {
        let response = endpoint.send(path, &json!({"model": "m"})).await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{path}");
        let body: Value = response.json().await.unwrap();
        assert!(body.pointer(pointer).unwrap().as_str().unwrap().contains(word), "{body}");
    }
    let counted = endpoint.json("/v1/messages/count_tokens", &ask(MESSAGES, "hi", false)).await;
    assert!(counted["input_tokens"].as_u64().unwrap() > 0);
    assert_eq!(endpoint.send(MESSAGES, &ask(MESSAGES, "fail 529", true)).await.status().as_u16(), 529);
}

#[tokio::test]
async fn what_the_model_is_told_is_recorded_and_of_a_long_text_the_end() {
    let endpoint = Endpoint::start(Config::default()).await;
    let mut body = ask(MESSAGES, "echo: hi", false);
    body["system"] = json!([{"type": "text", "text": "ü".repeat(9000)}, {"type": "text", "text": "Be kind."}]);
    endpoint.json(MESSAGES, &body).await;
    let system = endpoint.requests().await.pop().unwrap().system;
    assert!(system.ends_with("ü\nBe kind.") && system.len() <= 8 * 1024, "{}", system.len());
}

const VERTEX: &str = "/v1/projects/p/locations/us-east5/publishers/anthropic/models/claude-x";
const GEMINI: &str = "/v1beta1/projects/p/locations/us-central1/publishers/google/models/gemini-x";

impl Endpoint {
    /// As Google's libraries do it with a credentials file of type `external_account`.
    async fn google_token(&self, subject: &str) -> Response {
        let form = format!(
            "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Atoken-exchange&subject_token={subject}&audience=a"
        );
        self.client.post(format!("{}/sts/token", self.base)).body(form).send().await.unwrap()
    }

    async fn vertex(&self, token: &str, path: &str, body: &Value) -> Response {
        self.post(path, body).bearer_auth(token).send().await.unwrap()
    }
}

#[tokio::test]
async fn vertex_takes_tokens_of_the_exchange_and_nothing_else() {
    let endpoint = Endpoint::start(Config { api_key: Some("subject".into()), ..Config::default() }).await;
    assert_eq!(endpoint.google_token("another").await.status(), StatusCode::BAD_REQUEST);
    let token: Value = endpoint.google_token("subject").await.json().await.unwrap();
    let token = token["access_token"].as_str().unwrap();

    let body = json!({"anthropic_version": "vertex-2023-10-16", "max_tokens": 9,
        "messages": [{"role": "user", "content": "echo: one two"}]});
    let whole = endpoint.vertex(token, &format!("{VERTEX}:rawPredict"), &body).await;
    assert_eq!(whole.json::<Value>().await.unwrap()["content"][0]["text"], "one two");
    let stream = endpoint.vertex(token, &format!("{VERTEX}:streamRawPredict"), &body).await.text().await.unwrap();
    assert!(stream.contains("event: message_stop"), "{stream}");
    let seen = endpoint.requests().await.pop().unwrap();
    assert_eq!((seen.path, seen.model.as_str()), (format!("{VERTEX}:streamRawPredict"), "claude-x"));

    for (token, path, body) in [
        ("subject", format!("{VERTEX}:rawPredict"), &body),
        ("subject", format!("{GEMINI}:generateContent"), &json!({"contents": []})),
    ] {
        assert_eq!(endpoint.vertex(token, &path, body).await.status(), StatusCode::UNAUTHORIZED, "{path}");
    }
    let old = json!({"anthropic_version": "2023-06-01", "max_tokens": 9, "messages": []});
    assert_eq!(endpoint.vertex(token, &format!("{VERTEX}:rawPredict"), &old).await.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn gemini_streams_events_only_when_it_is_asked_to() {
    let endpoint = Endpoint::start(Config::default()).await;
    let token: Value = endpoint.google_token("s").await.json().await.unwrap();
    let token = token["access_token"].as_str().unwrap();
    let mut body = json!({"contents": [{"role": "user", "parts": [{"text": "read file /etc/motd"}]}],
        "tools": [{"functionDeclarations": [{"name": "Read", "parametersJsonSchema": {"type": "object"}}]}]});
    let array = endpoint.vertex(token, &format!("{GEMINI}:streamGenerateContent"), &body).await;
    assert_eq!(array.headers()["content-type"], "application/json");
    assert!(array.json::<Value>().await.unwrap().is_array());

    let events = endpoint.vertex(token, &format!("{GEMINI}:streamGenerateContent?alt=sse"), &body).await;
    let text = events.text().await.unwrap();
    let last: Value = serde_json::from_str(text.trim().rsplit_once("data: ").unwrap().1).unwrap();
    let call = &last["candidates"][0]["content"]["parts"][0]["functionCall"];
    assert_eq!((&call["name"], &call["args"]["file_path"]), (&json!("Read"), &json!("/etc/motd")));

    body["contents"] = json!([body["contents"][0], {"role": "model", "parts": [{"functionCall": call}]},
        {"role": "user", "parts": [{"functionResponse": {"name": "Read", "response": {"result": "1→hi"}}}]}]);
    let request = endpoint.post("/v1beta/models/gemini-x:generateContent", &body).header("x-goog-api-key", "k");
    let answer: Value = request.send().await.unwrap().json().await.unwrap();
    assert_eq!(answer["candidates"][0]["content"]["parts"][0]["text"], "The file says: \"hi\"");
    let without = endpoint.post("/v1beta/models/gemini-x:generateContent", &body).send().await.unwrap();
    assert_eq!(without.status(), StatusCode::UNAUTHORIZED);
}
