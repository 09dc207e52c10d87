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
use super::upstream::{Answer, Events, Outgoing, PATIENCE, Target, Upstream};

/// A conversation.
pub struct Legacy {
    events: Events,
    /// When it is over, whatever goes on in it.
    last: Instant,
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
        let last = Instant::now() + patience * PATIENCE;
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
                return Ok(Self { events, last, messages });
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
        let deadline = self.last.min(Instant::now() + patience);
        loop {
            let heard = timeout_at(deadline, self.hear()).await;
            let message = heard.map_err(|_| UpstreamError::TimedOut(patience))??;
            match answer_to_server(&message) {
                Some(answer) => self.tell(upstream, target, &answer).await?,
                None => return Ok(message),
            }
        }
    }

    async fn hear(&mut self) -> Result<Message, UpstreamError> {
        loop {
            let Some(data) = self.events.next().await.ok_or(UpstreamError::BrokeOff)??.data else { continue };
            return Message::parse(data.as_bytes()).map_err(|error| UpstreamError::NotMcp(error.to_string()));
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
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::mcp::connection::{Connection, Identity, Origin, Place};
    use crate::mcp::credentials::NoOauth;
    use crate::mcp::sse::Event;
    use crate::outbound::{Outbound, Ranges};
    use crate::store::identity::Organization;
    use serde_json::json;
    use std::sync::Arc;
    use std::time::Duration;
    use uuid::Uuid;

    #[tokio::test]
    async fn a_server_that_tells_of_progress_for_ever_is_left() {
        let identity = Identity {
            id: Uuid::nil(),
            name: "endless".to_owned(),
            origin: Origin::Api,
            namespace: None,
            workspace_id: None,
            generation: 1,
        };
        let place = Place { organization: "acme", cluster_domain: "cluster.local" };
        let spec = json!({"transport": {"sse": {"url": "https://mcp.example.com/sse"}}});
        let mut connection = Connection::read(place, identity, &spec, Ranges::default()).unwrap();
        connection.call_timeout = Duration::from_secs(60);
        let organization = Arc::new(Organization::for_tests("acme"));
        let target = Target { organization: &organization, user: None, connection: &connection };
        let upstream = Upstream::new(Outbound::new(Ranges::default()), reqwest::Client::new(), Arc::new(NoOauth));
        let progress = json!({"jsonrpc": "2.0", "method": "notifications/progress", "params": {}}).to_string();
        let events = futures::stream::unfold((), move |()| {
            let event = Event { data: Some(progress.clone()), ..Event::default() };
            async move {
                tokio::time::sleep(Duration::from_millis(1)).await;
                Some((Ok(event), ()))
            }
        });
        let last = Instant::now() + Duration::from_secs(1);
        let mut legacy = Legacy { events: events.boxed(), last, messages: String::new() };
        let mut heard = 0;
        let end = loop {
            match legacy.next(&upstream, target).await {
                Ok(_) => heard += 1,
                Err(error) => break error,
            }
            assert!(Instant::now() < last + Duration::from_secs(10), "it goes on");
        };
        assert_eq!(end, UpstreamError::TimedOut(connection.call_timeout));
        assert!(heard > 0);
    }

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
