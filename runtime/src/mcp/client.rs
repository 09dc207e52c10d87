//! The client: opens a session with a server, whichever version of the protocol it speaks, and asks it. A session is
//! plain data, so that a replica can go on with one that another has opened. May touch: servers, through `upstream`.

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use futures::StreamExt;
use http::{HeaderMap, HeaderValue, Method};
use moka::sync::Cache;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::connection::Transport;
use super::error::{UpstreamError, Verdict};
use super::guards::{Guards, Ticket};
use super::legacy::Legacy;
use super::protocol::{
    STATELESS, Session, answer_to_server, initialize_params, introduction, is_idempotent, outcome, own_info,
    parameter_headers, session_of, standard_headers,
};
use super::rpc::{self, Message, code};
use super::tools::{MAX_TOOLS, Tool, ToolPage};
use super::upstream::{Answer, Outgoing, PROTOCOL_VERSION, Reply, SESSION_ID, Target, Upstream};
use crate::resilience::memory::Room;

/// A server that does not know `server/discover` may not answer at all.
const DISCOVER_PATIENCE: Duration = Duration::from_secs(5);
/// How long a server is remembered to want `initialize`.
const REMEMBERED: Duration = Duration::from_secs(600);
const RETRIES: usize = 2;
const FIRST_DELAY: Duration = Duration::from_millis(100);

/// All tools of a server together are not longer.
const MAX_LIST_BYTES: usize = 8 * 1024 * 1024;
const MOST_PAGES: usize = 50;

/// What a server answered, as it did, and the memory that it takes.
pub struct Answered {
    /// The result.
    pub value: Box<RawValue>,
    /// Has to live as long as what is made of it.
    pub room: Room,
}

/// Asks servers.
pub struct McpClient {
    upstream: Upstream,
    guards: Guards,
    /// Connections, by generation, whose servers want `initialize`.
    initialize: Cache<(Uuid, Uuid, i64), ()>,
}

impl McpClient {
    /// Nobody was asked yet.
    pub fn new(upstream: Upstream) -> Self {
        let initialize = Cache::builder().max_capacity(100_000).time_to_live(REMEMBERED).build();
        Self { upstream, guards: Guards::default(), initialize }
    }

    /// For whoever passes messages on.
    pub fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// Breakers and places.
    pub fn guards(&self) -> &Guards {
        &self.guards
    }

    /// Opens a session.
    pub async fn open(&self, target: Target<'_>) -> Result<Session, UpstreamError> {
        self.guarded(target, true, || self.open_once(target)).await
    }

    /// Asks within a session; what can be asked twice is asked again when that may help.
    pub async fn ask(
        &self,
        target: Target<'_>,
        session: &Session,
        method: &str,
        params: &Map<String, Value>,
    ) -> Result<Answered, UpstreamError> {
        match self.ask_with(target, session, method, params, &HeaderMap::new()).await {
            // Its schema, which we do not have, says which arguments are to be in headers too.
            Err(UpstreamError::Rpc { code: code::HEADER_MISMATCH, .. }) if method == "tools/call" => {
                let listed = self.list_tools(target, session).await?;
                let name = params.get("name").and_then(Value::as_str);
                let arguments = params.get("arguments").unwrap_or(&Value::Null);
                let called = listed.iter().find(|tool| name == Some(&tool.digest.name));
                let extra = called.map(|tool| parameter_headers(&tool.value()["inputSchema"], arguments));
                let extra = extra.into_iter().flatten().collect();
                self.ask_with(target, session, method, params, &extra).await
            }
            other => other,
        }
    }

    async fn ask_with(
        &self,
        target: Target<'_>,
        session: &Session,
        method: &str,
        params: &Map<String, Value>,
        extra: &HeaderMap,
    ) -> Result<Answered, UpstreamError> {
        let call = || self.ask_once(target, session, method, params, extra);
        self.guarded(target, is_idempotent(method), call).await
    }

    /// All tools of a server, of all pages.
    pub async fn list_tools(&self, target: Target<'_>, session: &Session) -> Result<Vec<Tool>, UpstreamError> {
        let (mut tools, mut params, mut bytes) = (Vec::new(), Map::new(), 0);
        let mut room = self.upstream.room(target, 0)?;
        for _ in 0..MOST_PAGES {
            let page = self.ask_with(target, session, "tools/list", &params, &HeaderMap::new()).await?;
            let page = ToolPage::read(&page.value);
            let next = page.next();
            bytes += page.tools.iter().map(|tool| tool.definition.get().len()).sum::<usize>();
            if bytes > MAX_LIST_BYTES {
                return Err(UpstreamError::TooLarge(MAX_LIST_BYTES));
            }
            room.hold(bytes)?;
            tools.extend(page.tools);
            tools.truncate(MAX_TOOLS);
            match next {
                Some(cursor) if tools.len() < MAX_TOOLS => params.insert("cursor".to_owned(), Value::String(cursor)),
                _ => break,
            };
        }
        Ok(tools)
    }

    /// Ends a session; a server that does not know how is left alone.
    pub async fn close(&self, target: Target<'_>, session: &Session) {
        let Some(headers) = session.id.as_ref().and_then(|_| headers(session, "", &Map::new()).ok()) else {
            return;
        };
        let outgoing = Outgoing { method: Method::DELETE, url: None, body: None, headers, open_ended: false };
        if let Err(error) = self.upstream.exchange(target, &outgoing).await {
            tracing::debug!(connection = %target.connection.id, %error, "the server keeps a session");
        }
    }

    /// Runs calls behind the breaker, each with a place of its own.
    async fn guarded<T, F>(
        &self,
        target: Target<'_>,
        again: bool,
        call: impl Fn() -> F + Send + Sync,
    ) -> Result<T, UpstreamError>
    where
        F: Future<Output = Result<T, UpstreamError>> + Send,
        T: Send,
    {
        let once = || async {
            let ticket: Ticket = self.guards.enter(target).await?;
            let outcome = call().await;
            ticket.end(outcome.as_ref().map_or_else(UpstreamError::verdict, |_| Verdict::Healthy));
            outcome
        };
        once.retry(delays(again)).when(UpstreamError::is_passing).await
    }

    /// Sends something whose answer somebody else reads: the ticket is theirs to end.
    pub async fn begin(
        &self,
        target: Target<'_>,
        outgoing: &Outgoing,
        again: bool,
    ) -> Result<(Ticket, Reply), UpstreamError> {
        let once = || async {
            let ticket = self.guards.enter(target).await?;
            match self.upstream.exchange(target, outgoing).await {
                Ok(reply) => Ok((ticket, reply)),
                Err(error) => {
                    ticket.end(error.verdict());
                    Err(error)
                }
            }
        };
        once.retry(delays(again)).when(UpstreamError::is_passing).await
    }

    async fn open_once(&self, target: Target<'_>) -> Result<Session, UpstreamError> {
        let connection = target.connection;
        if matches!(connection.transport, Transport::Sse(_)) {
            let (_, session) = self.open_legacy(target).await?;
            return Ok(session);
        }
        let key = (target.organization.id, connection.id, connection.generation);
        if !self.initialize.contains_key(&key)
            && let Some(session) = self.discover(target).await?
        {
            return Ok(session);
        }
        let session = self.initialize(target).await?;
        self.initialize.insert(key, ());
        Ok(session)
    }

    /// None: it is a server of before, or one that does not know this version.
    async fn discover(&self, target: Target<'_>) -> Result<Option<Session>, UpstreamError> {
        let stateless =
            Session { protocol: STATELESS.to_owned(), id: None, server: Value::Null, capabilities: Value::Null };
        let (nothing, none) = (Map::new(), HeaderMap::new());
        let asking = self.ask_once(target, &stateless, "server/discover", &nothing, &none);
        let found = match tokio::time::timeout(DISCOVER_PATIENCE, asking).await {
            Ok(Ok(found)) => found,
            Err(_)
            | Ok(Err(
                UpstreamError::Rpc { .. }
                | UpstreamError::Status(_)
                | UpstreamError::NotMcp(_)
                | UpstreamError::BrokeOff
                | UpstreamError::SessionLost,
            )) => return Ok(None),
            Ok(Err(error)) => return Err(error),
        };
        let found = introduction(&found.value)?;
        let known = found["supportedVersions"].as_array().is_some_and(|all| all.contains(&json!(STATELESS)));
        Ok(known.then(|| Session {
            server: found["_meta"]["io.modelcontextprotocol/serverInfo"].clone(),
            capabilities: found["capabilities"].clone(),
            ..stateless
        }))
    }

    async fn initialize(&self, target: Target<'_>) -> Result<Session, UpstreamError> {
        let id = json!(0);
        let message = rpc::request(&id, "initialize", &initialize_params());
        let (result, session) = self.round(target, HeaderMap::new(), &id, &message).await?;
        let session = session_of(&result.value, session)?;
        let headers = headers(&session, "notifications/initialized", &Map::new())?;
        let message = rpc::notification("notifications/initialized").to_string();
        self.upstream.exchange(target, &Outgoing::post(message, headers)).await?;
        Ok(session)
    }

    /// A conversation of the older transport, and what the server says of itself in it.
    pub async fn open_legacy(&self, target: Target<'_>) -> Result<(Legacy, Session), UpstreamError> {
        let mut legacy = Legacy::open(&self.upstream, target).await?;
        let id = json!(0);
        let result =
            legacy.ask(&self.upstream, target, &id, &rpc::request(&id, "initialize", &initialize_params())).await?;
        let session = session_of(&result, None)?;
        legacy.tell(&self.upstream, target, &rpc::notification("notifications/initialized")).await?;
        Ok((legacy, session))
    }

    async fn ask_once(
        &self,
        target: Target<'_>,
        session: &Session,
        method: &str,
        params: &Map<String, Value>,
        extra: &HeaderMap,
    ) -> Result<Answered, UpstreamError> {
        let id = json!(1);
        if matches!(target.connection.transport, Transport::Sse(_)) {
            let (mut legacy, _) = self.open_legacy(target).await?;
            let value = legacy.ask(&self.upstream, target, &id, &rpc::request(&id, method, params)).await?;
            drop(legacy);
            let room = self.upstream.room(target, value.get().len())?;
            return Ok(Answered { value, room });
        }
        let mut params = params.clone();
        if session.protocol == STATELESS {
            let meta = params.entry("_meta").or_insert_with(|| json!({}));
            meta["io.modelcontextprotocol/protocolVersion"] = json!(STATELESS);
            meta["io.modelcontextprotocol/clientInfo"] = own_info();
            meta["io.modelcontextprotocol/clientCapabilities"] = json!({});
        }
        let mut headers = headers(session, method, &params)?;
        headers.extend(extra.clone());
        let (result, _) = self.round(target, headers, &id, &rpc::request(&id, method, &params)).await?;
        Ok(result)
    }

    /// One request and its answer over streamable HTTP.
    async fn round(
        &self,
        target: Target<'_>,
        headers: HeaderMap,
        id: &Value,
        message: &Value,
    ) -> Result<(Answered, Option<HeaderValue>), UpstreamError> {
        let reply = self.upstream.exchange(target, &Outgoing::post(message.to_string(), headers.clone())).await?;
        match reply.answer {
            Answer::Accepted => Err(UpstreamError::NotMcp("it has no answer to a request".to_owned())),
            Answer::Json(body) => {
                let answer = Message::parse(&body.bytes).map_err(|error| UpstreamError::NotMcp(error.to_string()))?;
                let value = outcome(answer, id).unwrap_or_else(|_| {
                    Err(UpstreamError::NotMcp("it answers a request that was not sent".to_owned()))
                })?;
                Ok((Answered { value, room: body.room }, reply.session))
            }
            Answer::Events(mut events) => {
                while let Some(event) = events.next().await {
                    let Some(data) = event?.data.filter(|data| !data.trim().is_empty()) else { continue };
                    let message =
                        Message::parse(data.as_bytes()).map_err(|error| UpstreamError::NotMcp(error.to_string()))?;
                    match outcome(message, id) {
                        Ok(result) => {
                            let value = result?;
                            // Its room goes with the stream.
                            drop(events);
                            let room = self.upstream.room(target, value.get().len())?;
                            return Ok((Answered { value, room }, reply.session));
                        }
                        Err(other) => {
                            if let Some(answer) = answer_to_server(&other) {
                                let outgoing = Outgoing::post(answer.to_string(), headers.clone());
                                self.upstream.exchange(target, &outgoing).await?;
                            }
                        }
                    }
                }
                Err(UpstreamError::BrokeOff)
            }
        }
    }
}

fn headers(session: &Session, method: &str, params: &Map<String, Value>) -> Result<HeaderMap, UpstreamError> {
    let value = |text: &str| {
        HeaderValue::from_str(text)
            .map_err(|_| UpstreamError::NotMcp("its session id or version is no header's value".to_owned()))
    };
    let mut headers = HeaderMap::new();
    headers.insert(PROTOCOL_VERSION, value(&session.protocol)?);
    if let Some(id) = &session.id {
        headers.insert(SESSION_ID, value(id)?);
    }
    if session.protocol == STATELESS && !method.is_empty() {
        headers.extend(standard_headers(method, params));
    }
    Ok(headers)
}

fn delays(again: bool) -> ExponentialBuilder {
    let times = if again { RETRIES } else { 0 };
    ExponentialBuilder::default().with_min_delay(FIRST_DELAY).with_max_times(times).with_jitter()
}
