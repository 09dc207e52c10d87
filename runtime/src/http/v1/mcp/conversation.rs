//! A request of the gateway behind the older transport: it has a conversation of its own with the server, so that any
//! replica can serve it, and whichever replica hears that it was cancelled tells the one that holds it. May touch:
//! `mcp`, `store`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::OptionFuture;
use http::{HeaderMap, HeaderValue};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use super::party::Party;
use super::relay::Relay;
use crate::http::App;
use crate::http::error::Problem;
use crate::mcp::cancellations::{self, Watch};
use crate::mcp::error::UpstreamError;
use crate::mcp::guards::Ticket;
use crate::mcp::legacy::Legacy;
use crate::mcp::protocol::Session;
use crate::mcp::rpc::{self, Message, code};
use crate::mcp::sse::Event;
use crate::mcp::upstream::{Answer, Events, Held, Reply, SESSION_ID};

/// How long a server may take to say that it has cancelled a request; it does not have to.
const GRACE: Duration = Duration::from_secs(2);

impl Relay {
    /// Opens the conversation.
    pub(super) async fn converse(&self, message: Value, headers: &HeaderMap) -> Result<(Ticket, Reply), UpstreamError> {
        let (client, target) = (self.app.mcp.client(), self.party.target(&self.loaded));
        // Listens before the server is called: the client may change its mind meanwhile.
        let request = session_in(headers).map(|session| cancellations::name(session, &self.id));
        let watch = request.map(|request| self.app.mcp.cancellations().of(request));
        let ticket = client.guards().enter(target).await?;
        let own = |session, answer: Value| -> Result<Reply, UpstreamError> {
            let bytes = Bytes::from(answer.to_string());
            let room = client.upstream().room(target, bytes.len())?;
            Ok(Reply { session, answer: Answer::Json(Held { bytes, room }) })
        };
        let opened = async {
            if self.method == "initialize" {
                let session = client.open_legacy(target).await?.1;
                // Ours: it tells the requests of one client from those of another.
                let name = HeaderValue::from_str(&Uuid::new_v4().simple().to_string()).ok();
                return own(name, initialized(&self.id, &session));
            }
            if self.method == "ping" {
                return own(None, rpc::result(&self.id, &json!({})));
            }
            let (mut legacy, _) = client.open_legacy(target).await?;
            legacy.tell(client.upstream(), target, &message).await?;
            Ok(Reply { session: None, answer: Answer::Events(self.conversation(legacy, watch)) })
        };
        match opened.await {
            Ok(reply) => Ok((ticket, reply)),
            Err(error) => {
                ticket.end(UpstreamError::verdict(&error));
                Err(error)
            }
        }
    }

    /// What comes on the older transport's stream until the answer, as events of the newer one.
    fn conversation(&self, mut legacy: Legacy, mut watch: Option<Watch>) -> Events {
        let (app, party, loaded, id) =
            (Arc::clone(&self.app), self.party.clone(), self.loaded.clone(), self.id.clone());
        let event = |data: String| Event { data: Some(data), ..Event::default() };
        async_stream::stream! {
            let (upstream, target) = (app.mcp.client().upstream(), party.target(&loaded));
            let mut last = None;
            loop {
                let next = tokio::select! {
                    next = legacy.next(upstream, target) => next,
                    Some(()) = OptionFuture::from(watch.as_mut().map(Watch::cancelled)) => {
                        watch = None;
                        last = Some(Instant::now() + GRACE);
                        let mut note = rpc::notification("notifications/cancelled");
                        note["params"] = json!({ "requestId": id });
                        if let Err(error) = legacy.tell(upstream, target, &note).await {
                            yield Err(error);
                            return;
                        }
                        continue;
                    }
                    Some(()) = OptionFuture::from(last.map(sleep_until)) => {
                        let text = "the request was cancelled";
                        yield Ok(event(rpc::error(&id, code::SERVER_FAILED, text, "mcp-cancelled").to_string()));
                        return;
                    }
                };
                let (data, is_last) = match next {
                    Ok(message) => (message.to_text(), message.answers(&id)),
                    Err(error) => {
                        yield Err(error);
                        return;
                    }
                };
                yield Ok(event(data));
                if is_last {
                    return;
                }
            }
        }
        .boxed()
    }
}

fn initialized(id: &Value, session: &Session) -> Value {
    let Session { protocol, server, capabilities, .. } = session;
    rpc::result(id, &json!({ "protocolVersion": protocol, "serverInfo": server, "capabilities": capabilities }))
}

/// The gateway's own name for a client's session, which the gateway has signed.
fn session_in(headers: &HeaderMap) -> Option<&str> {
    headers.get(SESSION_ID)?.to_str().ok()
}

/// A notification of the client's: whoever holds the conversation of a cancelled request is told. Nobody waits for
/// anything else between requests, nor for what comes without a session: it could be about anybody's request.
pub(super) async fn notified(app: &App, party: &Party, headers: &HeaderMap, message: &Message) -> Result<(), Problem> {
    let (Message::Notification { method, params }, Some(session)) = (message, session_in(headers)) else {
        return Ok(());
    };
    let params = rpc::object(params.as_deref()).unwrap_or_default();
    let Some(id) = params.get("requestId").filter(|_| method == "notifications/cancelled") else { return Ok(()) };
    let mut tx = app.store.tenant_tx(&party.caller.scope()).await?;
    tx.tell_cancelled(&cancellations::name(session, id)).await?;
    Ok(tx.commit().await?)
}
