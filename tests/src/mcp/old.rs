//! A server of the older transport (HTTP with server-sent events, 2024-11-05) that tells of progress and never answers a
//! call. It keeps what comes in.
use anyhow::Result;
use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Query, State},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::{net::TcpListener, sync::mpsc::UnboundedSender};
use tokio_stream::{StreamExt, wrappers::UnboundedReceiverStream};

#[derive(Default)]
struct Kept {
    streams: Vec<UnboundedSender<String>>,
    seen: Vec<Value>,
}

/// The server.
#[derive(Clone)]
pub struct Old {
    /// Where it listens.
    pub address: SocketAddr,
    kept: Arc<Mutex<Kept>>,
}

impl Old {
    /// On a free port.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let server = Self { address: listener.local_addr()?, kept: Arc::default() };
        let router = Router::new().route("/sse", get(stream)).route("/messages", post(message));
        let router = router.with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(server)
    }

    /// Its endpoint.
    pub fn url(&self) -> String {
        format!("http://{}/sse", self.address)
    }

    /// What came in while its conversation was open.
    pub fn seen(&self, method: &str) -> Vec<Value> {
        self.kept().seen.iter().filter(|it| it["method"] == method).cloned().collect()
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn stream(State(server): State<Old>) -> Response {
    let (events, waiting) = tokio::sync::mpsc::unbounded_channel();
    let mut kept = server.kept();
    let _ = events.send(format!("event: endpoint\ndata: /messages?stream={}\n\n", kept.streams.len()));
    kept.streams.push(events);
    drop(kept);
    let body = Body::from_stream(UnboundedReceiverStream::new(waiting).map(Ok::<_, Infallible>));
    ([(CONTENT_TYPE, "text/event-stream")], body).into_response()
}

async fn message(State(server): State<Old>, Query(query): Query<HashMap<String, usize>>, body: Bytes) -> Response {
    let Ok(message) = serde_json::from_slice::<Value>(&body) else { return StatusCode::BAD_REQUEST.into_response() };
    let stream = query.get("stream").copied().unwrap_or_default();
    let id = &message["id"];
    let answer = match message["method"].as_str() {
        Some("initialize") => {
            let info = json!({"name": "old", "version": "1"});
            let result = json!({"protocolVersion": "2024-11-05", "capabilities": {"tools": {}}, "serverInfo": info});
            Some(json!({"jsonrpc": "2.0", "id": id, "result": result}))
        }
        Some("tools/call") => {
            let params = json!({"progressToken": message["params"]["_meta"]["progressToken"], "progress": 1});
            Some(json!({"jsonrpc": "2.0", "method": "notifications/progress", "params": params}))
        }
        _ => None,
    };
    let mut kept = server.kept();
    let open = kept.streams.get(stream).filter(|stream| !stream.is_closed()).cloned();
    let Some(open) = open else { return StatusCode::GONE.into_response() };
    kept.seen.push(message);
    if let Some(answer) = answer {
        let _ = open.send(format!("event: message\ndata: {answer}\n\n"));
    }
    StatusCode::ACCEPTED.into_response()
}
