//! An existing client of coder/agentapi, `cyberian` from PyPI, unmodified, talks to a session. It knows only a host
//! and a port, so a loopback proxy of a few lines adds what a client has to change: base URL and bearer header.
#![cfg(feature = "cluster")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use agentapi_tests::{api::Api, cluster::Cluster};
use axum::{Router, body::Body, extract::Request, response::Response};
use serde_json::json;
use std::{process::Output, time::Duration};

async fn proxy(api: Api, session: String) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let app = Router::new().fallback(async move |request: Request| {
        let (head, body) = request.into_parts();
        let path = format!("/v1/sessions/{session}{}", head.uri.path_and_query().unwrap());
        let mut upstream = api.request(head.method, &path);
        if let Some(kind) = head.headers.get("content-type") {
            upstream = upstream.header("content-type", kind);
        }
        let answer = upstream.body(reqwest::Body::wrap_stream(body.into_data_stream())).send().await.unwrap();
        let mut response = Response::builder().status(answer.status());
        if let Some(kind) = answer.headers().get("content-type") {
            response = response.header("content-type", kind);
        }
        response.body(Body::from_stream(answer.bytes_stream())).unwrap()
    });
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    port
}

async fn cyberian(port: u16, args: &[&str]) -> Output {
    let program = std::env::var("CYBERIAN").unwrap_or_else(|_| "cyberian".into());
    tokio::process::Command::new(&program)
        .args(args)
        .args(["--host", "127.0.0.1", "--port", &port.to_string()])
        .output()
        .await
        .unwrap_or_else(|e| panic!("{program}: {e}; `cargo xtask test` installs it (pip install cyberian==0.2.2)"))
}

#[tokio::test]
async fn an_unmodified_client_of_coder_agentapi_works() {
    let cluster = Cluster::connect().unwrap();
    let api = Api::new(&cluster.api_url().unwrap(), Some(cluster.token("acme-bob").unwrap())).unwrap();
    api.end_all().await.unwrap();
    let body = api.post("/v1/sessions", &json!({ "workspace": "web" })).await.unwrap().expect(201).unwrap();
    let session = body["id"].as_str().unwrap().to_owned();
    api.stable(&session, Duration::from_secs(90)).await.unwrap();
    let port = proxy(api.clone(), session.clone()).await;

    let status = cyberian(port, &["status"]).await;
    let text = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.status.success() && text.contains("stable"), "{status:?}");

    let sent = cyberian(port, &["message", "echo: hello from an old client", "--sync"]).await;
    let text = String::from_utf8_lossy(&sent.stdout).into_owned();
    assert!(sent.status.success() && text.contains("hello from an old client"), "{sent:?}");

    let messages = cyberian(port, &["messages"]).await;
    let text = String::from_utf8_lossy(&messages.stdout).into_owned();
    assert!(messages.status.success() && text.contains("hello from an old client"), "{messages:?}");
    api.delete(&format!("/v1/sessions/{session}")).await.unwrap();
}
