//! `spec.agent.model` with real parts and without a cluster: pods as the operator builds them, the real session host, the
//! real Claude Code and the real claude-code-router, against the fake model in each provider's dialect.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use agentapi_tests::fakemodel::{Config, Recorded, router};
use agentapi_tests::models::{Agent, Router, environment, google_credentials, pod, workspace};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};

/// The key that upstreams take; the agent must never have it.
const KEY: &str = "the-key-of-the-upstream";
const SESSION_POD: &str = env!("CARGO_BIN_EXE_session-pod");

struct Model {
    base: String,
    http: Client,
}

impl Model {
    async fn start() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let config = Config { api_key: Some(KEY.into()), ..Config::default() };
        tokio::spawn(async move { axum::serve(listener, router(config)).await.unwrap() });
        Self { base, http: Client::builder().no_proxy().build().unwrap() }
    }

    async fn requests(&self) -> Vec<Recorded> {
        self.http.get(format!("{}/requests", self.base)).send().await.unwrap().json().await.unwrap()
    }

    /// Requests that came with the user's words.
    async fn about(&self, words: &str) -> Vec<Recorded> {
        self.requests().await.into_iter().filter(|request| request.user.contains(words)).collect()
    }
}

fn key() -> Value {
    json!({"name": "model", "key": "key"})
}

/// Two turns, the second of which needs the first.
async fn two_turns(agent: &Agent) {
    agent.ask("remember the word heron-7").await.unwrap();
    let answer = agent.ask("recall").await.unwrap();
    assert!(answer.contains("heron-7"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claude_talks_to_anthropics_api_with_the_key_of_the_secret() {
    let model = Model::start().await;
    let spec = json!({"provider": "Anthropic", "name": "claude-sonnet-4-5", "baseUrl": model.base, "credentialsSecretRef": key()});
    let spec = pod(&workspace("Claude", &spec).unwrap()).unwrap();
    let missing = environment(&spec.containers[0], &[]).unwrap_err().to_string();
    assert!(missing.contains("\"model\" not found"), "{missing}");
    let secrets = [("model", "key", KEY.to_owned())];
    let agent = Agent::start(SESSION_POD, "claude", &spec, &secrets, None).await.unwrap();
    two_turns(&agent).await;
    let seen = model.about("recall").await;
    assert!(seen.iter().any(|it| it.path == "/v1/messages" && it.model == "claude-sonnet-4-5"), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claude_talks_to_vertex_with_a_credentials_file_from_the_secret() {
    let model = Model::start().await;
    let spec = json!({"provider": "Vertex", "name": "claude-sonnet-4-5", "region": "us-east5", "projectId": "acme-ai",
        "baseUrl": format!("{}/v1", model.base), "credentialsSecretRef": {"name": "google", "key": "credentials.json"}});
    let spec = pod(&workspace("Claude", &spec).unwrap()).unwrap();
    let secrets = [("google", "credentials.json", google_credentials(&model.base))];
    let agent = Agent::start(SESSION_POD, "claude", &spec, &secrets, None).await.unwrap();
    two_turns(&agent).await;
    let seen = model.about("recall").await;
    let path = "/v1/projects/acme-ai/locations/us-east5/publishers/anthropic/models/claude-sonnet-4-5:streamRawPredict";
    assert!(seen.iter().any(|it| it.path == path && it.auth == "authorization"), "{seen:?}");
    assert!(agent.home(".config/agentapi/google-credentials.json").unwrap().contains("external_account"));
    assert!(!agent.log().contains("sts/subject"), "the credentials are in the log");
}

/// A router with one upstream of each type, all at `base`, and what is in its Secrets. Claude Code asks for thinking
/// nearly always, so its requests take the route `think`.
fn routed(base: &str, default: &Value, think: &Value) -> (Value, [(&'static str, &'static str, String); 2]) {
    let google = json!({"name": "google", "key": "credentials.json"});
    let model = json!({"provider": "Router", "router": {
        "image": "agentapi.dev/model-router:dev",
        "upstreams": [
            {"name": "chat", "type": "OpenAICompatible", "baseUrl": format!("{base}/v1"), "credentialsSecretRef": key()},
            {"name": "vertex", "type": "VertexGemini", "baseUrl": base, "region": "us-central1", "projectId": "acme-ai",
             "credentialsSecretRef": google},
            {"name": "studio", "type": "Gemini", "baseUrl": base, "credentialsSecretRef": key()},
            {"name": "messages", "type": "Anthropic", "baseUrl": base, "credentialsSecretRef": key()},
        ],
        "routes": {"default": default, "background": {"upstream": "studio", "model": "gemini-2.5-flash"},
            "think": think,
            "longContext": {"upstream": "vertex", "model": "gemini-2.5-pro"}, "longContextThreshold": 1_000_000},
    }});
    (model, [("model", "key", KEY.to_owned()), ("google", "credentials.json", google_credentials(base))])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claude_talks_to_chat_completions_through_the_router_and_has_no_key() {
    let model = Model::start().await;
    let route = json!({"upstream": "chat", "model": "deepseek/deepseek-r1"});
    let (spec, secrets) = routed(&model.base, &route, &route);
    let spec = pod(&workspace("Claude", &spec).unwrap()).unwrap();
    // The agent's container needs no Secret at all.
    assert!(environment(&spec.containers[0], &[]).is_ok());
    let router = Router::start(&spec, &secrets).await.unwrap();
    let agent = Agent::start(SESSION_POD, "claude", &spec, &[], Some(&router)).await.unwrap();
    two_turns(&agent).await;
    let seen = model.about("recall").await;
    let fits = |it: &Recorded| it.path == "/v1/chat/completions" && it.model == "deepseek/deepseek-r1";
    assert!(seen.iter().any(|it| fits(it) && it.auth == "authorization"), "{seen:?}");
    drop(agent);
    router.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claude_talks_to_gemini_on_vertex_through_the_router() {
    let model = Model::start().await;
    let route = json!({"upstream": "vertex", "model": "gemini-2.5-pro"});
    let (spec, secrets) = routed(&model.base, &route, &route);
    let spec = pod(&workspace("Claude", &spec).unwrap()).unwrap();
    let router = Router::start(&spec, &secrets).await.unwrap();
    let agent = Agent::start(SESSION_POD, "claude", &spec, &[], Some(&router)).await.unwrap();
    two_turns(&agent).await;
    let seen = model.about("recall").await;
    let path =
        "/v1beta1/projects/acme-ai/locations/us-central1/publishers/google/models/gemini-2.5-pro:streamGenerateContent";
    assert!(seen.iter().any(|it| it.path == path && it.stream), "{seen:?}");
}

/// A message to a model of the router, as agents send it.
async fn message(router: &Router, body: &Value) -> (StatusCode, Value) {
    let http = Client::builder().no_proxy().build().unwrap();
    let sent = http.post(format!("{}/v1/messages", router.url)).header("anthropic-version", "2023-06-01").json(body);
    let answer = sent.send().await.unwrap();
    (answer.status(), answer.json().await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_route_goes_where_it_says() {
    let model = Model::start().await;
    let think = json!({"upstream": "messages", "model": "claude-opus-4-1"});
    let (spec, secrets) = routed(&model.base, &json!({"upstream": "chat", "model": "gpt-5"}), &think);
    let router = Router::start(&pod(&workspace("Claude", &spec).unwrap()).unwrap(), &secrets).await.unwrap();
    let ask = |name: &str, words: &str| json!({"model": name, "max_tokens": 2000, "messages": [{"role": "user", "content": format!("echo: {words}")}]});
    let mut think = ask("claude-sonnet-4-5", "think");
    think["thinking"] = json!({"type": "enabled", "budget_tokens": 1024});
    for (body, words, path) in [
        (ask("claude-sonnet-4-5", "default"), "default", "/v1/chat/completions"),
        (ask("claude-haiku-4-5", "background"), "background", "/v1beta/models/gemini-2.5-flash:generateContent"),
        (think, "think", "/v1/messages"),
        (
            ask("vertex,gemini-2.5-pro", "chosen"),
            "chosen",
            "/v1beta1/projects/acme-ai/locations/us-central1/publishers/google/models/gemini-2.5-pro:generateContent",
        ),
    ] {
        let (status, answer) = message(&router, &body).await;
        assert_eq!((status, &answer["content"][0]["text"]), (StatusCode::OK, &json!(words)), "{answer}");
        assert_eq!(model.about(words).await.last().unwrap().path, path);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_in_the_pod_gets_messages_from_the_router_and_no_key() {
    let model = Model::start().await;
    let think = json!({"upstream": "messages", "model": "claude-opus-4-1"});
    let (spec, secrets) = routed(&model.base, &json!({"upstream": "chat", "model": "gpt-5"}), &think);
    let router = Router::start(&pod(&workspace("Claude", &spec).unwrap()).unwrap(), &secrets).await.unwrap();
    let http = Client::builder().no_proxy().build().unwrap();

    // The guard: nothing but messages, and those only for the models of the routes.
    for path in ["/api/config", "/providers", "/api/logs", "/ui/", "/", "/health", "/v1/messages/../../api/config"] {
        let answer = http.get(format!("{}{path}", router.url)).send().await.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        assert!(matches!(status.as_u16(), 404 | 405) && !text.contains(KEY), "{path}: {status} {text}");
    }
    let changed = json!({"Providers": [], "Router": {}});
    let answer = http.post(format!("{}/api/config", router.url)).json(&changed).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    for name in ["chat,another", "elsewhere,gpt-5"] {
        let body = json!({"model": name, "max_tokens": 9, "messages": [{"role": "user", "content": "echo: x"}]});
        let (status, answer) = message(&router, &body).await;
        assert_eq!((status, &answer["error"]["type"]), (StatusCode::BAD_REQUEST, &json!("invalid_request_error")));
        assert!(answer["error"]["message"].as_str().unwrap().contains("chat,gpt-5"), "{answer}");
    }
    let broken = http.post(format!("{}/v1/messages", router.url)).body("{").send().await.unwrap();
    assert_eq!(broken.status(), StatusCode::BAD_REQUEST);
    assert_eq!(model.requests().await, [], "something came through");

    // claude-code-router itself, behind the guard: a port of the same network, a password that nobody else has.
    let file = std::fs::read_to_string(router.home.path().join(".claude-code-router/config.json")).unwrap();
    assert!(!file.contains(KEY), "the key is in the configuration");
    let file: Value = serde_json::from_str(&file).unwrap();
    let behind = format!("http://127.0.0.1:{}", file["PORT"]);
    assert_eq!(http.get(format!("{behind}/health")).send().await.unwrap().status(), StatusCode::OK);
    for path in [
        "/api/config",
        "/providers",
        "/api/logs/files",
        "/api/transformers",
        "/ui/../api/config",
        "/ui/%2e%2e/api/config",
    ] {
        for password in [None, Some(""), Some("$AGENTAPI_ROUTER_PASSWORD"), Some("no-key-needed"), Some("undefined")] {
            let mut request = http.get(format!("{behind}{path}"));
            if let Some(password) = password {
                request = request.header("authorization", format!("Bearer {password}"));
            }
            let answer = request.send().await.unwrap();
            let status = answer.status();
            let text = answer.text().await.unwrap();
            assert!(
                matches!(status.as_u16(), 401 | 404) && !text.contains(KEY),
                "{path} {password:?}: {status} {text}"
            );
        }
    }
    router.end().await.unwrap();
}
