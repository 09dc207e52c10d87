//! One request of the gateway on its way: behind the breaker, again when that is safe, and its answer back as it comes,
//! with the list of tools cut to what the connection lets through. May touch: `mcp`, the audit log.

use std::time::{Duration, Instant};

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::StreamExt;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, HeaderName, StatusCode};
use serde_json::{Map, Value};
use tokio::sync::OwnedSemaphorePermit;

use super::gateway::{json_response, wrapped};
use super::party::Party;
use super::{CallRecord, body_in, problem};
use crate::http::App;
use crate::http::error::Problem;
use crate::mcp::connection::Transport;
use crate::mcp::error::{UpstreamError, Verdict};
use crate::mcp::guards::Ticket;
use crate::mcp::protocol::is_idempotent;
use crate::mcp::rpc::{self, Message, NotAMessage, code};
use crate::mcp::service::Loaded;
use crate::mcp::sse::Event;
use crate::mcp::tools::ToolPage;
use crate::mcp::upstream::{Answer, Events, Held, Outgoing, SESSION_ID};

/// A stream on which nothing comes for so long gets a comment: proxies cut silent connections.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Its answer is the server's own stream, in the version without sessions.
const LISTEN: &str = "subscriptions/listen";

/// A request that was admitted.
pub(super) struct Relay {
    pub(super) app: App,
    pub(super) party: Party,
    pub(super) loaded: Loaded,
    pub(super) id: Value,
    pub(super) method: String,
    pub(super) params: Map<String, Value>,
}

impl Relay {
    pub(super) async fn run(self, message: Value, headers: HeaderMap) -> Result<Response, Problem> {
        let began = Instant::now();
        let (client, target) = (self.app.mcp.client(), self.party.target(&self.loaded));
        let sent = if matches!(self.loaded.connection.transport, Transport::Sse(_)) {
            self.converse(message, &headers).await
        } else {
            let open_ended = self.method == LISTEN;
            let outgoing = Outgoing { open_ended, ..Outgoing::post(message.to_string(), headers) };
            client.begin(target, &outgoing, is_idempotent(&self.method)).await
        };
        let (ticket, reply) = match sent {
            Ok(sent) => sent,
            Err(error) => {
                self.over(Some(&error), began).await;
                if error == UpstreamError::SessionLost {
                    return Err(problem::session_lost());
                }
                return Ok(json_response(failure(&self.id, &error), None));
            }
        };
        let session = reply.session.as_ref().and_then(|session| wrapped(&self.app, &self.party, &self.loaded, session));
        match reply.answer {
            Answer::Accepted => {
                self.end(ticket, None, began).await;
                Ok(StatusCode::ACCEPTED.into_response())
            }
            Answer::Json(Held { bytes, room }) => {
                let (answer, error) = self.look_at(&bytes).await;
                drop(bytes);
                self.end(ticket, error.as_ref(), began).await;
                Ok(json_response(body_in(room, answer), session))
            }
            Answer::Events(events) if self.method == LISTEN => {
                let place = client.guards().enter_stream(target.organization.id).await;
                self.end(ticket, None, began).await;
                Ok(stream(&self.app, events, place?, Opened::By(self.id.clone())))
            }
            Answer::Events(events) => {
                let closing = self.app.closing.clone();
                let body = self.pass_on(events, ticket, began).take_until(closing.cancelled_owned());
                Ok(event_response(Body::from_stream(body), session))
            }
        }
    }

    fn pass_on(
        mut self,
        mut events: Events,
        ticket: Ticket,
        began: Instant,
    ) -> impl futures::Stream<Item = Result<Bytes, std::convert::Infallible>> + Send + 'static {
        async_stream::stream! {
            let (mut ticket, mut error) = (Some(ticket), None);
            loop {
                let event = match tokio::time::timeout(KEEP_ALIVE, events.next()).await {
                    Err(_) => {
                        yield Ok(Event::default().encode());
                        continue;
                    }
                    Ok(None) => break,
                    Ok(Some(Err(failed))) => {
                        error = Some(failed);
                        break;
                    }
                    Ok(Some(Ok(event))) => event,
                };
                match self.event(event).await {
                    Ok((event, last)) => {
                        // What comes after the answer is nobody's failure, and whoever has it may close at once.
                        if last && let Some(ticket) = ticket.take() {
                            self.end(ticket, None, began).await;
                        }
                        yield Ok(event.encode());
                    }
                    Err(failed) => {
                        error = Some(failed);
                        break;
                    }
                }
            }
            if let Some(ticket) = ticket {
                let error = error.unwrap_or(UpstreamError::BrokeOff);
                self.end(ticket, Some(&error), began).await;
                let text = failure(&self.id, &error);
                yield Ok(Event { data: Some(text), ..Event::default() }.encode());
            }
        }
    }

    /// An event as it goes on, and whether it has the answer.
    async fn event(&mut self, event: Event) -> Result<(Event, bool), UpstreamError> {
        match Brings::of(&event, Some(&self.id)) {
            Brings::Nothing => Ok((event, false)),
            Brings::NoMessage(error) => Err(UpstreamError::NotMcp(error.to_string())),
            // It would get to the agent without having been looked at.
            Brings::AnswerToOthers(_) => Ok((Event { data: None, ..event }, false)),
            Brings::Message(message) => Ok((Event { data: Some(message.to_text()), ..event }, false)),
            Brings::Answer(message) => Ok((Event { data: Some(self.filtered(message).await), ..event }, true)),
        }
    }

    /// The answer in a body, or what is said in its place.
    async fn look_at(&self, body: &Bytes) -> (String, Option<UpstreamError>) {
        match Message::parse(body) {
            Ok(message @ Message::Response { .. }) if message.answers(&self.id) => (self.filtered(message).await, None),
            // A server that could not read the id answers with null.
            Ok(message @ Message::Response { id: Value::Null, outcome: Err(_) }) => (message.to_text(), None),
            Ok(_) => {
                let error = UpstreamError::NotMcp("its answer is a request, or answers another one".to_owned());
                (failure(&self.id, &error), Some(error))
            }
            Err(error) => {
                let error = UpstreamError::NotMcp(error.to_string());
                (failure(&self.id, &error), Some(error))
            }
        }
    }

    /// A list of tools without those that are not let through; anything else as it is.
    async fn filtered(&self, message: Message) -> String {
        match message {
            Message::Response { id, outcome: Ok(result) } if self.method == "tools/list" => {
                let page = ToolPage::read(&result);
                // Both in memory would be one copy more than there is room for.
                drop(result);
                listed(&self.app, &self.party, &self.loaded, id, page).await
            }
            other => other.to_text(),
        }
    }

    async fn end(&self, ticket: Ticket, error: Option<&UpstreamError>, began: Instant) {
        ticket.end(error.map_or(Verdict::Healthy, UpstreamError::verdict));
        self.over(error, began).await;
    }

    /// Metrics, and the audit row of a call that has failed.
    async fn over(&self, error: Option<&UpstreamError>, began: Instant) {
        let kind = error.map(UpstreamError::kind);
        self.app.mcp.told(self.party.target(&self.loaded), &self.method, kind, began);
        let (Some(kind), "tools/call") = (kind, self.method.as_str()) else { return };
        let record = CallRecord {
            origin: &self.party.origin,
            connection: &self.loaded.connection,
            tool: self.params.get("name").and_then(Value::as_str).unwrap_or_default(),
            arguments: self.params.get("arguments").unwrap_or(&Value::Null),
        };
        if let Err(error) = record.write(&self.app, &self.party.caller.scope(), Some(kind)).await {
            tracing::error!(%error, connection = %self.loaded.connection.id, "a failed call is not in the audit log");
        }
    }
}

/// What is left of a list of tools.
async fn listed(app: &App, party: &Party, loaded: &Loaded, id: Value, mut page: ToolPage) -> String {
    let mut loaded = loaded.clone();
    if let Err(error) = app.mcp.seen(&party.caller.organization, &mut loaded, &page.digests(), false).await {
        tracing::warn!(%error, connection = %loaded.connection.id, "cannot keep what was seen of its tools");
    }
    loaded.filter(&mut page);
    match page.to_raw() {
        Some(left) => Message::Response { id, outcome: Ok(left) }.to_text(),
        None => failure(&id, &UpstreamError::NotMcp("its list of tools cannot be read".to_owned())),
    }
}

fn failure(id: &Value, error: &UpstreamError) -> String {
    rpc::error(id, code::SERVER_FAILED, &error.to_string(), error.kind()).to_string()
}

fn event_response(body: Body, session: Option<HeaderValue>) -> Response {
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    // Proxies that collect what they pass on would hold progress back.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    if let Some(session) = session {
        headers.insert(SESSION_ID, session);
    }
    response
}

/// What an event brings to whoever has asked.
enum Brings {
    /// A comment, or an id.
    Nothing,
    /// The answer.
    Answer(Message),
    /// A message of the server's own.
    Message(Message),
    /// An answer to what somebody else has asked, or nobody.
    AnswerToOthers(Message),
    /// Something else.
    NoMessage(NotAMessage),
}

impl Brings {
    fn of(event: &Event, asked: Option<&Value>) -> Self {
        let Some(data) = event.data.as_ref().filter(|data| !data.trim().is_empty()) else { return Self::Nothing };
        match Message::parse(data.as_bytes()) {
            Err(error) => Self::NoMessage(error),
            Ok(message) if asked.is_some_and(|id| message.answers(id)) => Self::Answer(message),
            Ok(message @ Message::Response { .. }) => Self::AnswerToOthers(message),
            Ok(message) => Self::Message(message),
        }
    }
}

/// Why a stream of the server's own was opened.
pub(super) enum Opened {
    /// For what it says of itself.
    ByItself,
    /// By this request.
    By(Value),
    /// To go on with an earlier one that has broken off: what it still brings may be the answer that was waited for.
    Again(Party, Box<Loaded>),
}

impl Opened {
    /// An event as it goes on, if it does: an answer only to who has asked for it.
    async fn passes(&self, app: &App, event: Event) -> Option<Event> {
        let asked = if let Self::By(id) = self { Some(id) } else { None };
        let message = match Brings::of(&event, asked) {
            Brings::NoMessage(_) => return None,
            Brings::AnswerToOthers(message) => message,
            _ => return Some(event),
        };
        let Self::Again(party, loaded) = self else { return None };
        let text = match message {
            // What was asked is known to the other side alone, so a list of tools is told by its form.
            Message::Response { id, outcome: Ok(result) } => match ToolPage::parse(&result) {
                Some(page) if page.has_tools() => {
                    drop(result);
                    listed(app, party, loaded, id, page).await
                }
                Some(_) => Message::Response { id, outcome: Ok(result) }.to_text(),
                None => failure(&id, &UpstreamError::NotMcp("its answer cannot be read".to_owned())),
            },
            other => other.to_text(),
        };
        Some(Event { data: Some(text), ..event })
    }
}

/// The server's own stream, as it comes.
pub(super) fn stream(app: &App, mut events: Events, place: OwnedSemaphorePermit, opened: Opened) -> Response {
    let (held, app, closing) = (app.metrics.stream(), App::clone(app), app.closing.clone());
    let body = async_stream::stream! {
        let _held = (held, place);
        loop {
            match tokio::time::timeout(KEEP_ALIVE, events.next()).await {
                Err(_) => yield Ok::<_, std::convert::Infallible>(Event::default().encode()),
                Ok(Some(Ok(event))) => {
                    if let Some(event) = opened.passes(&app, event).await {
                        yield Ok(event.encode());
                    }
                }
                // The other side connects again, with the id of the last event.
                Ok(None | Some(Err(_))) => return,
            }
        }
    };
    event_response(Body::from_stream(body.take_until(closing.cancelled_owned())), None)
}
