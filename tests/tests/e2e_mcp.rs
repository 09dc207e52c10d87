//! MCP on the real cluster, as `cargo xtask up` made it: the connections of examples/mcp.yaml, the real Claude Code in a
//! session pod calls tools of real servers through the gateway, after a consent at the real provider; and what the pod
//! has of credentials (nothing).
#![cfg(feature = "cluster")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use agentapi_tests::{
    api::Api,
    cluster::{Cluster, PortForward, eventually},
    connections::{self, DEMO, READY, TEAM, TENANT, id, said},
    oauth::agent::{Agent, Decision},
};
use axum::{Router, body::Body, extract::Request, response::Response};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use std::{collections::BTreeSet, time::Duration};

const ISSUER: &str = "oidc.agentapi-demo.svc.cluster.local:9000";
const TURN: Duration = Duration::from_secs(60);

/// The names inside of the cluster, and the public name of the API, for a browser that runs here.
async fn browser(cluster: &Cluster) -> (Agent, PortForward) {
    let provider = cluster.port_forward(DEMO, "svc/oidc", 9000).unwrap();
    let (provider_url, api) = (provider.url(), cluster.api_url().unwrap());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = format!("http://{}", listener.local_addr().unwrap());
    let http = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let app = Router::new().fallback(async move |request: Request| {
        let (head, body) = request.into_parts();
        let host = head.headers["host"].to_str().unwrap().to_owned();
        let base = if host == ISSUER { &provider_url } else { &api };
        let url = format!("{}{}", base.trim_end_matches('/'), head.uri.path_and_query().unwrap());
        let mut onwards = http.request(head.method, url);
        for (name, value) in &head.headers {
            onwards = onwards.header(name, value);
        }
        let answer = onwards.body(axum::body::to_bytes(body, 1 << 20).await.unwrap()).send().await.unwrap();
        let mut response = Response::builder().status(answer.status());
        for (name, value) in answer.headers().iter().filter(|(name, _)| *name != "transfer-encoding") {
            response = response.header(name, value);
        }
        response.body(Body::from(answer.bytes().await.unwrap())).unwrap()
    });
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    (Agent::through(&proxy).unwrap(), provider)
}

async fn consent(cluster: &Cluster, api: &Api, connection: &str, login: &str) {
    let begun = api.post("/v1/oauth/init", &json!({ "connection": id(cluster, connection).unwrap() })).await.unwrap();
    let page = begun.expect(201).unwrap()["authorizationUrl"].as_str().unwrap().to_owned();
    let callback = format!("{}/v1/oauth/callback", page.split("/oauth/").next().unwrap());
    let (mut agent, _provider) = browser(cluster).await;
    let provider = agent.leave(&page).await.unwrap();
    let back = agent.decide(&provider, login, Decision::Allow, &callback).await.unwrap();
    agent.back(&back).await.unwrap().expect(200).unwrap();
}

struct Session {
    api: Api,
    id: String,
}

impl Session {
    async fn start(api: &Api) -> Self {
        let body = api.post("/v1/sessions", &json!({ "workspace": "tools" })).await.unwrap().expect(201).unwrap();
        let id = body["id"].as_str().unwrap().to_owned();
        api.stable(&id, READY).await.unwrap();
        Self { api: api.clone(), id }
    }

    async fn send(&self, kind: &str, content: &str) {
        let path = format!("/v1/sessions/{}/message", self.id);
        // It may draw something between two turns, and counts as busy then.
        eventually("the agent takes a message", TURN, async || {
            let sent = self.api.post(&path, &json!({"content": content, "type": kind})).await?;
            Ok(if sent.status == 409 { Err(sent.body.to_string()) } else { Ok(sent.expect(200).map(drop)?) })
        })
        .await
        .unwrap();
    }

    async fn last(&self) -> String {
        let messages = self.api.get(&format!("/v1/sessions/{}/messages", self.id)).await.unwrap().expect(200).unwrap();
        messages["messages"].as_array().unwrap().last().unwrap()["content"].as_str().unwrap().to_owned()
    }

    async fn shows(&self, wanted: &str) {
        eventually(&format!("the agent shows {wanted:?}"), TURN, async || {
            let last = self.last().await;
            Ok(if last.contains(wanted) { Ok(()) } else { Err(last) })
        })
        .await
        .unwrap();
    }

    /// Has the agent call a tool, as a model would: look it up first, ask the user, call. Its answer has these words in it.
    async fn call(&self, tool: &str, arguments: &Value, answer: &str) {
        self.send("user", &format!(r#"call ToolSearch {{"query":"select:{tool}"}}"#)).await;
        self.api.stable(&self.id, TURN).await.unwrap();
        self.send("user", &format!("call {tool} {arguments}")).await;
        self.shows("Do you want to proceed?").await;
        // A key that comes with the question is not taken for an answer to it.
        eventually("the agent takes the answer", TURN, async || {
            self.send("raw", "1").await;
            let limit = tokio::time::Instant::now() + Duration::from_secs(3);
            loop {
                let last = self.last().await;
                if !last.contains("Do you want to proceed?") {
                    return Ok(Ok(()));
                }
                if tokio::time::Instant::now() > limit {
                    return Ok(Err(last));
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        })
        .await
        .unwrap();
        // Not only its beginning: a terminal may draw a line in pieces.
        eventually(&format!("{tool} answers {answer:?}"), TURN, async || {
            let last = self.last().await;
            let there = last.split_once("The tool answered").is_some_and(|(_, said)| said.contains(answer));
            Ok(if there { Ok(()) } else { Err(last) })
        })
        .await
        .unwrap();
    }

    fn pod(&self, cluster: &Cluster) -> String {
        cluster.session_pod(&self.id).unwrap().unwrap().1
    }
}

/// Everything that the agent could read in its pod: environment and arguments of all processes, and all files.
fn belongings(cluster: &Cluster, pod: &str) -> String {
    let look = "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null; \
                find /home/agent /state /workspace /tmp /run /dev/shm -xdev -type f -size -20M -exec cat {} + 2>/dev/null; true";
    let out = cluster.kubectl(&["-n", TENANT, "exec", pod, "-c", "agent", "--", "sh", "-c", look]).unwrap();
    assert!(out.contains("ANTHROPIC_BASE_URL") && out.contains("mcpServers"), "it did not look at the agent's own");
    out
}

/// Issuers of all JWTs in a text.
fn issuers(text: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let words = text.split(|c: char| !is_part(c) && c != '.').filter(|word| word.starts_with("eyJ"));
    let claims = words.filter_map(|word| URL_SAFE_NO_PAD.decode(word.split('.').nth(1)?).ok());
    let claims = claims.filter_map(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    claims.map(|claims| claims["iss"].as_str().unwrap_or("none").to_owned()).collect()
}

#[tokio::test]
async fn an_agent_in_a_pod_uses_servers_of_every_kind_and_has_none_of_their_credentials() {
    let cluster = Cluster::connect().unwrap();
    connections::apply(&cluster).await.unwrap();
    said(&cluster, "metrics", ("Authorized", "True", "Authorized")).await.unwrap();
    said(&cluster, "docs", ("ToolsPinned", "True", "ToolsPinned")).await.unwrap();
    said(&cluster, "files", ("EgressAllowed", "True", "Accepted")).await.unwrap();
    let api = Api::new(&cluster.api_url().unwrap(), Some(cluster.token("acme-alice").unwrap())).unwrap();
    api.end_all().await.unwrap();

    let before = cluster.condition("mcpconnection", Some(TEAM), "tracker", "Authorized").unwrap();
    if before.is_none_or(|(status, _)| status != "True") {
        said(&cluster, "tracker", ("Authorized", "False", "NeedsConsent")).await.unwrap();
        assert!(connections::message(&cluster, "tracker", "Authorized").unwrap().contains("/v1/oauth/init"));
    }
    consent(&cluster, &api, "tracker", "acme-alice").await;
    said(&cluster, "tracker", ("Authorized", "True", "Authorized")).await.unwrap();

    let session = Session::start(&api).await;
    session.call("mcp__tracker__whoami", &json!({}), "acme-alice").await;
    session.call("mcp__files__secret_word", &json!({}), "xyzzy").await;
    session.call("mcp__metrics__add", &json!({"a": 40, "b": 2}), "42").await;

    let pod = session.pod(&cluster);
    let all = belongings(&cluster, &pod);
    assert!(!all.contains("the-token-of-the-demo"), "the pod has the fixed token");
    let issuers = issuers(&all);
    assert!(issuers.iter().all(|issuer| issuer == "agentapi-runtime"), "tokens of {issuers:?} are in the pod");

    // Only the runtime gets to the program.
    let url = "http://agentapi-mcp-files.agentapi-acme.svc.cluster.local:8090/live";
    let curl = ["curl", "-sS", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", url];
    let reached =
        cluster.try_kubectl(&[&["-n", TENANT, "exec", &pod, "-c", "agent", "--"][..], &curl].concat(), "").unwrap();
    assert!(!reached.ok && !reached.stdout.contains("200"), "a session pod reaches the program: {reached:?}");
    api.end_all().await.unwrap();
}
