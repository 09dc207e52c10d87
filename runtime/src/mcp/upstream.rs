//! One exchange with a server: a message there, an answer back, over streamable HTTP. Whoever calls decides what the
//! message says; this adds credentials (and others once, after a 401), and limits size and time of what comes back.
//! May touch: the server, through `outbound`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use reqwest::{Client, RequestBuilder, Response};
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::connection::{Connection, Transport};
use super::credentials::{CredentialError, Credentials};
use super::error::{UpstreamError, words};
use super::sse::{Event, Parser};
use crate::outbound::{Outbound, Refused, read_held};
use crate::resilience::memory::{Memory, Room};
use crate::store::identity::Organization;

/// Longest answer, and longest event of one.
pub const MAX_ANSWER_BYTES: usize = 8 * 1024 * 1024;
/// Memory for answers, of all organizations and of one, in one replica: two of the longest for each.
const ALL_ANSWERS: usize = 256 * 1024 * 1024;
const ANSWERS_OF_AN_ORGANIZATION: usize = 64 * 1024 * 1024;
/// What comes is there up to so many times: as it was read, as a buffer that grows, as an answer, as it goes on.
const COPIES: usize = 4;
/// A server that goes on telling about its progress may take this many times as long as one that is silent.
pub(super) const PATIENCE: u32 = 10;

/// Name of the header that says which session a message belongs to.
pub const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");
/// Name of the header that says which version of the protocol it is in.
pub const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");
/// Name of the header with the id of the last event that was seen.
pub const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
const EVENT_STREAM: &str = "text/event-stream";

/// Whom to call, for whom.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    /// The tenant.
    pub organization: &'a Arc<Organization>,
    /// Whose grant is used; nobody's when the platform asks.
    pub user: Option<Uuid>,
    /// The server.
    pub connection: &'a Connection,
}

/// What goes there.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// POST for messages, GET for the server's own stream, DELETE for the end of a session.
    pub method: Method,
    /// Another URL of the same server than the connection's.
    pub url: Option<String>,
    /// The message.
    pub body: Option<Bytes>,
    /// Headers of the protocol.
    pub headers: HeaderMap,
    /// The answer is a stream that stays open, however long nothing comes.
    pub open_ended: bool,
}

impl Outgoing {
    /// A message.
    pub fn post(message: impl Into<Bytes>, headers: HeaderMap) -> Self {
        Self { method: Method::POST, url: None, body: Some(message.into()), headers, open_ended: false }
    }
}

/// What comes back.
pub enum Answer {
    /// Nothing more: it was a notification, or the end of a session.
    Accepted,
    /// One message.
    Json(Held),
    /// Messages as they come.
    Events(Events),
}

/// Bytes and the memory that they take.
pub struct Held {
    /// The bytes.
    pub bytes: Bytes,
    /// Has to live as long as what is made of them.
    pub room: Room,
}

/// Events of a stream; it ends after an error.
pub type Events = BoxStream<'static, Result<Event, UpstreamError>>;

/// An answer and the session that the server put it in.
pub struct Reply {
    /// The session, when the server says one.
    pub session: Option<HeaderValue>,
    /// The answer.
    pub answer: Answer,
}

/// Calls servers.
#[derive(Clone)]
pub struct Upstream {
    outbound: Outbound,
    inside: Client,
    credentials: Arc<dyn Credentials>,
    memory: Arc<Memory<Uuid>>,
}

impl Upstream {
    /// `inside` is for addresses that the platform itself makes: pods that run a tenant's program.
    pub fn new(outbound: Outbound, inside: Client, credentials: Arc<dyn Credentials>) -> Self {
        let memory = Arc::new(Memory::new(ALL_ANSWERS, ANSWERS_OF_AN_ORGANIZATION));
        Self { outbound, inside, credentials, memory }
    }

    /// The way out.
    pub fn outbound(&self) -> &Outbound {
        &self.outbound
    }

    /// What shows servers who is asking.
    pub fn credentials(&self) -> &dyn Credentials {
        self.credentials.as_ref()
    }

    /// Room for what came for this one, as far as it is not in an answer of ours.
    pub fn room(&self, target: Target<'_>, bytes: usize) -> Result<Room, UpstreamError> {
        let mut room = self.memory.room(target.organization.id, COPIES);
        room.hold(bytes)?;
        Ok(room)
    }

    /// Sends it and gives back the answer as far as it is not a stream. The whole exchange, but for the rest of a
    /// stream, takes no longer than the connection's call may.
    pub async fn exchange(&self, target: Target<'_>, outgoing: &Outgoing) -> Result<Reply, UpstreamError> {
        let patience = target.connection.call_timeout;
        let deadline = Instant::now() + patience;
        let exchange = async {
            let response = self.send(target, outgoing).await?;
            let session = response.headers().get(SESSION_ID).cloned();
            let answer = read(response, outgoing, patience, self.room(target, 0)?).await?;
            Ok(Reply { session, answer })
        };
        timeout_at(deadline, exchange).await.unwrap_or(Err(UpstreamError::TimedOut(patience)))
    }

    async fn send(&self, target: Target<'_>, outgoing: &Outgoing) -> Result<Response, UpstreamError> {
        let Target { organization, user, connection } = target;
        let mut credentials = self.credentials.headers(organization, user, connection).await?;
        for attempt in 0..2 {
            let mut request = self.request(connection, outgoing)?;
            for (name, value) in &credentials {
                request = request.header(name, value);
            }
            let response = request.send().await.map_err(|error| failed(&error))?;
            if response.status() != StatusCode::UNAUTHORIZED {
                return Ok(response);
            }
            if attempt > 0 || !self.credentials.rejected(organization, user, connection, &credentials).await {
                break;
            }
            credentials = self.credentials.headers(organization, user, connection).await?;
        }
        // Whoever could be asked for consent should be.
        Err(match self.credentials.headers(organization, user, connection).await {
            Err(error @ (CredentialError::NeedsConsent | CredentialError::Revoked)) => error.into(),
            _ => UpstreamError::Unauthorized,
        })
    }

    fn request(&self, connection: &Connection, outgoing: &Outgoing) -> Result<RequestBuilder, UpstreamError> {
        let method = outgoing.method.clone();
        let request = match (&connection.transport, &outgoing.url) {
            (Transport::Stdio(url), _) => self.inside.request(method, url),
            (_, Some(url)) | (Transport::StreamableHttp(url) | Transport::Sse(url), None) => {
                self.outbound.request(method, url, &connection.open, connection.connect_timeout)?
            }
        };
        let request = request.headers(outgoing.headers.clone());
        let accept = if outgoing.method == Method::GET { EVENT_STREAM } else { "application/json, text/event-stream" };
        let request = request.header(ACCEPT, accept);
        Ok(match &outgoing.body {
            Some(body) => request.header(CONTENT_TYPE, "application/json").body(body.clone()),
            None => request,
        })
    }
}

fn failed(error: &reqwest::Error) -> UpstreamError {
    match Refused::within(error) {
        Some(refused) => refused.clone().into(),
        None => UpstreamError::Unreachable(words(error)),
    }
}

fn media_type(response: &Response) -> String {
    let value = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

async fn read(
    response: Response,
    outgoing: &Outgoing,
    patience: Duration,
    room: Room,
) -> Result<Answer, UpstreamError> {
    let status = response.status();
    let kind = media_type(&response);
    match status.as_u16() {
        202 | 204 => return Ok(Answer::Accepted),
        200..=299 => {}
        300..=399 => return Err(UpstreamError::Redirects),
        403 => return Err(UpstreamError::Forbidden),
        404 if outgoing.headers.contains_key(SESSION_ID) => return Err(UpstreamError::SessionLost),
        // A refusal in the protocol's own words is an answer; servers send it with all kinds of 4xx.
        400..=499 if kind == "application/json" && status != StatusCode::TOO_MANY_REQUESTS => {
            let body = whole(response, room).await?;
            return if is_rpc_error(&body.bytes) {
                Ok(Answer::Json(body))
            } else {
                Err(UpstreamError::Status(status.as_u16()))
            };
        }
        other => return Err(UpstreamError::Status(other)),
    }
    if outgoing.method == Method::DELETE {
        return Ok(Answer::Accepted);
    }
    match kind.as_str() {
        EVENT_STREAM => Ok(Answer::Events(events(response.bytes_stream(), outgoing.open_ended, patience, room))),
        "application/json" => {
            let body = whole(response, room).await?;
            Ok(if body.bytes.is_empty() { Answer::Accepted } else { Answer::Json(body) })
        }
        // Some servers say 200 with nothing to a notification.
        "" if response.content_length() == Some(0) => Ok(Answer::Accepted),
        other => {
            let other: String = other.chars().filter(char::is_ascii_graphic).take(64).collect();
            Err(UpstreamError::NotMcp(format!(
                "it answers with the media type {other:?} and not with application/json or text/event-stream"
            )))
        }
    }
}

fn is_rpc_error(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Refusal {
        #[serde(rename = "error")]
        _error: Coded,
    }
    #[derive(Deserialize)]
    struct Coded {
        #[serde(rename = "code")]
        _code: i64,
    }
    serde_json::from_slice::<Refusal>(body).is_ok()
}

async fn whole(response: Response, mut room: Room) -> Result<Held, UpstreamError> {
    let bytes = read_held(response, MAX_ANSWER_BYTES, |bytes| Ok::<_, UpstreamError>(room.hold(bytes)?)).await?;
    Ok(Held { bytes, room })
}

/// The events of a body. Each has the call's time, and all together some times that, unless the stream is to stay open.
fn events(
    body: impl Stream<Item = Result<Bytes, reqwest::Error>> + Send + 'static,
    open_ended: bool,
    patience: Duration,
    mut room: Room,
) -> Events {
    let last = Instant::now() + patience * PATIENCE;
    async_stream::stream! {
        let mut body = Box::pin(body);
        let mut parser = Parser::new(MAX_ANSWER_BYTES);
        let mut until = Instant::now() + patience;
        loop {
            let next = if open_ended { Ok(body.next().await) } else { timeout_at(until.min(last), body.next()).await };
            let chunk = match next {
                Ok(Some(Ok(chunk))) => chunk,
                Ok(None) => return,
                Ok(Some(Err(_))) => {
                    yield Err(UpstreamError::BrokeOff);
                    return;
                }
                Err(_) => {
                    yield Err(UpstreamError::TimedOut(patience));
                    return;
                }
            };
            let Ok(events) = parser.feed(&chunk) else {
                yield Err(UpstreamError::TooLarge(MAX_ANSWER_BYTES));
                return;
            };
            if let Err(full) = room.hold(parser.size() + events.iter().map(Event::size).sum::<usize>()) {
                yield Err(full.into());
                return;
            }
            for event in events {
                // Comments are no sign of progress: a server could send them for ever.
                if event.data.is_some() {
                    until = Instant::now() + patience;
                }
                yield Ok(event);
            }
        }
    }
    .boxed()
}
