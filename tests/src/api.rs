//! A client of the agent API for tests and benches: status and body as they came, and server-sent events.
use anyhow::{Context, Result, bail};
use futures::StreamExt;
use reqwest::{Method, StatusCode};
use serde_json::Value;
use std::net::IpAddr;
use std::time::Duration;
use tokio::sync::mpsc;

/// The agent API with one caller's token.
#[derive(Clone, Debug)]
pub struct Api {
    base: String,
    token: Option<String>,
    http: reqwest::Client,
}

/// What the API answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status code.
    pub status: StatusCode,
    /// Media type without parameters.
    pub content_type: String,
    /// Body as JSON, or as a string where it is not JSON.
    pub body: Value,
}

impl Answer {
    /// The body, if the status is the expected one.
    ///
    /// # Errors
    /// When it is another; the message holds the body.
    pub fn expect(self, status: u16) -> Result<Value> {
        if self.status.as_u16() != status {
            bail!("expected {status}, got {}: {}", self.status, self.body);
        }
        Ok(self.body)
    }

    /// The last part of a problem's `type` (RFC 9457).
    pub fn problem(&self) -> &str {
        self.body["type"].as_str().and_then(|t| t.rsplit('/').next()).unwrap_or_default()
    }
}

/// One server-sent event.
#[derive(Clone, Debug)]
pub struct Event {
    /// `id` field, for `Last-Event-ID`.
    pub id: String,
    /// `event` field.
    pub name: String,
    /// `data` field as JSON.
    pub data: Value,
}

impl Api {
    /// A client of the API at `base`, with the bearer token if one is given.
    ///
    /// # Errors
    /// When the HTTP client can't be made.
    pub fn new(base: &str, token: Option<String>) -> Result<Self> {
        Self::from_address(base, token, None)
    }

    /// The same from one of this machine's addresses.
    ///
    /// # Errors
    /// When the HTTP client can't be made.
    pub fn from_address(base: &str, token: Option<String>, own: Option<IpAddr>) -> Result<Self> {
        let http = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(5))
            .pool_idle_timeout(Duration::from_secs(5))
            .local_address(own)
            .no_proxy()
            .build()?;
        Ok(Self { base: base.trim_end_matches('/').to_owned(), token, http })
    }

    /// A request with the token, to be changed and sent by the caller.
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// Sends the request and reads the whole answer.
    ///
    /// # Errors
    /// When no answer comes.
    pub async fn send(&self, request: reqwest::RequestBuilder) -> Result<Answer> {
        let response = request.timeout(Duration::from_secs(120)).send().await?;
        let status = response.status();
        let content_type = response.headers().get("content-type").and_then(|v| v.to_str().ok()).unwrap_or_default();
        let content_type = content_type.split(';').next().unwrap_or_default().to_owned();
        let text = response.text().await?;
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Ok(Answer { status, content_type, body })
    }

    /// GET.
    ///
    /// # Errors
    /// When no answer comes.
    pub async fn get(&self, path: &str) -> Result<Answer> {
        self.send(self.request(Method::GET, path)).await
    }

    /// POST of a JSON body.
    ///
    /// # Errors
    /// When no answer comes.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Answer> {
        self.send(self.request(Method::POST, path).json(body)).await
    }

    /// DELETE.
    ///
    /// # Errors
    /// When no answer comes.
    pub async fn delete(&self, path: &str) -> Result<Answer> {
        self.send(self.request(Method::DELETE, path)).await
    }

    /// Follows an event stream in the background until the receiver is dropped or the stream ends.
    ///
    /// # Errors
    /// When the answer is not an event stream.
    pub async fn events(&self, path: &str, last_id: Option<&str>) -> Result<mpsc::Receiver<Event>> {
        let mut request = self.request(Method::GET, path).header("accept", "text/event-stream");
        if let Some(id) = last_id {
            request = request.header("last-event-id", id);
        }
        let response = request.send().await?;
        if response.status() != StatusCode::OK {
            bail!("{path}: {} {}", response.status(), response.text().await?);
        }
        let (tx, rx) = mpsc::channel(1024);
        tokio::spawn(async move {
            let mut stream = response.bytes_stream();
            let mut buffer = Vec::new();
            while let Some(Ok(chunk)) = stream.next().await {
                buffer.extend_from_slice(&chunk);
                while let Some(end) = buffer.windows(2).position(|w| w == b"\n\n") {
                    let frame: Vec<u8> = buffer.drain(..end + 2).collect();
                    if let Some(event) = parse(&String::from_utf8_lossy(&frame))
                        && tx.send(event).await.is_err()
                    {
                        return;
                    }
                }
            }
        });
        Ok(rx)
    }

    /// Waits until the session's agent is stable, and gives back its messages.
    ///
    /// # Errors
    /// When it is not within the limit.
    pub async fn stable(&self, session: &str, limit: Duration) -> Result<Vec<Value>> {
        let path = format!("/v1/sessions/{session}");
        crate::cluster::eventually("a stable agent", limit, async || {
            let status = self.get(&format!("{path}/status")).await?;
            Ok(if status.status == StatusCode::OK && status.body["status"] == "stable" {
                Ok(())
            } else {
                Err(format!("{} {}", status.status, status.body))
            })
        })
        .await?;
        let body = self.get(&format!("{path}/messages")).await?.expect(200)?;
        body["messages"].as_array().cloned().context("no messages in the answer")
    }
    /// Ends all sessions of the caller, such as those that a failed run left, and waits until they have ended.
    ///
    /// # Errors
    /// When one has not ended in time.
    pub async fn end_all(&self) -> Result<()> {
        crate::cluster::eventually("no live session", Duration::from_secs(60), async || {
            let list = self.get("/v1/sessions").await?.expect(200)?;
            let live: Vec<String> = list["sessions"]
                .as_array()
                .context("no sessions in the list of sessions")?
                .iter()
                .filter(|s| s["phase"] != "Ended" && s["phase"] != "Failed")
                .filter_map(|s| s["id"].as_str().map(str::to_owned))
                .collect();
            for id in &live {
                self.delete(&format!("/v1/sessions/{id}")).await?;
            }
            Ok(if live.is_empty() { Ok(()) } else { Err(format!("{live:?}")) })
        })
        .await
    }
}

fn parse(frame: &str) -> Option<Event> {
    let field = |name: &str| -> Option<String> {
        let lines: Vec<&str> = frame
            .lines()
            .filter_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(|value| value.strip_prefix(' ').unwrap_or(value))
            .collect();
        (!lines.is_empty()).then(|| lines.join("\n"))
    };
    let data = field("data")?;
    Some(Event {
        id: field("id").unwrap_or_default(),
        name: field("event").unwrap_or_else(|| "message".into()),
        data: serde_json::from_str(&data).unwrap_or(Value::String(data)),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    #[test]
    fn an_event_has_id_name_and_data_and_a_comment_is_none() {
        let event = super::parse("id: 7-1\nevent: status_change\ndata: {\"status\":\"stable\"}\n\n").unwrap();
        assert_eq!((event.id.as_str(), event.name.as_str()), ("7-1", "status_change"));
        assert_eq!(event.data["status"], "stable");
        assert!(super::parse(": keep-alive\n\n").is_none());
    }
}
