//! HTTP with server-sent events, the transport of the protocol's version 2024-11-05: the answers to messages come on an
//! event stream that was opened before. Each conversation opens one of its own, so that any replica can hold it.
//! May touch: the server, through `upstream`.

use futures::StreamExt;
use http::{HeaderMap, Method};
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::time::{Instant, timeout_at};
use url::Url;

use super::connection::Transport;
use super::error::UpstreamError;
use super::protocol::{answer_to_server, outcome};
use super::rpc::Message;
use super::upstream::{Answer, Events, Outgoing, Target, Upstream};

/// A conversation.
pub struct Legacy {
    events: Events,
    /// Where messages go.
    messages: String,
}

fn no_endpoint(what: &str) -> UpstreamError {
    UpstreamError::NotMcp(format!("its event stream {what}"))
}

impl Legacy {
    /// Opens the stream and waits for the server to say where messages go.
    pub async fn open(upstream: &Upstream, target: Target<'_>) -> Result<Self, UpstreamError> {
        let patience = target.connection.call_timeout;
        let outgoing =
            Outgoing { method: Method::GET, url: None, body: None, headers: HeaderMap::new(), open_ended: true };
        let Answer::Events(mut events) = upstream.exchange(target, &outgoing).await?.answer else {
            return Err(no_endpoint("is none"));
        };
        let Transport::Sse(base) = &target.connection.transport else {
            return Err(no_endpoint("is not wanted"));
        };
        let deadline = Instant::now() + patience;
        loop {
            let next = timeout_at(deadline, events.next()).await.map_err(|_| UpstreamError::TimedOut(patience))?;
            let event = next.ok_or(UpstreamError::BrokeOff)??;
            if event.name.as_deref() == Some("endpoint") {
                let messages = endpoint(base, event.data.as_deref().unwrap_or_default())?;
                return Ok(Self { events, messages });
            }
        }
    }

    /// Sends a message that wants no answer.
    pub async fn tell(
        &mut self,
        upstream: &Upstream,
        target: Target<'_>,
        message: &Value,
    ) -> Result<(), UpstreamError> {
        let mut outgoing = Outgoing::post(message.to_string(), HeaderMap::new());
        outgoing.url = Some(self.messages.clone());
        upstream.exchange(target, &outgoing).await.map(drop)
    }

    /// Sends a request and waits for its answer.
    pub async fn ask(
        &mut self,
        upstream: &Upstream,
        target: Target<'_>,
        id: &Value,
        message: &Value,
    ) -> Result<Box<RawValue>, UpstreamError> {
        self.tell(upstream, target, message).await?;
        loop {
            let message = self.next(upstream, target).await?;
            if let Ok(outcome) = outcome(message, id) {
                return outcome;
            }
        }
    }

    /// The next message but for those that ask us something, which are answered here.
    pub async fn next(&mut self, upstream: &Upstream, target: Target<'_>) -> Result<Message, UpstreamError> {
        let patience = target.connection.call_timeout;
        let deadline = Instant::now() + patience;
        loop {
            let next = timeout_at(deadline, self.events.next()).await.map_err(|_| UpstreamError::TimedOut(patience))?;
            let Some(data) = next.ok_or(UpstreamError::BrokeOff)??.data else { continue };
            let message = Message::parse(data.as_bytes()).map_err(|error| UpstreamError::NotMcp(error.to_string()))?;
            match answer_to_server(&message) {
                Some(answer) => self.tell(upstream, target, &answer).await?,
                None => return Ok(message),
            }
        }
    }
}

/// Where messages go: a place on the same server, or credentials would go to another one.
fn endpoint(base: &str, said: &str) -> Result<String, UpstreamError> {
    let base = Url::parse(base).map_err(|_| no_endpoint("has no URL"))?;
    let url = base.join(said.trim()).map_err(|_| no_endpoint("names an endpoint that is no URL"))?;
    if url.origin() != base.origin() {
        return Err(no_endpoint("names an endpoint on another server"));
    }
    Ok(url.into())
}

#[cfg(test)]
mod tests {
    use super::endpoint;

    #[test]
    fn messages_go_to_the_server_that_was_configured() {
        let base = "https://mcp.example.com/sse";
        let at = |said| endpoint(base, said).ok();
        assert_eq!(at("/messages/?session_id=1").as_deref(), Some("https://mcp.example.com/messages/?session_id=1"));
        assert_eq!(at("messages").as_deref(), Some("https://mcp.example.com/messages"));
        for other in
            ["https://evil.example/", "//evil.example/m", "http://mcp.example.com/m", "https://mcp.example.com:444/m"]
        {
            assert_eq!(at(other), None, "{other}");
        }
    }
}
