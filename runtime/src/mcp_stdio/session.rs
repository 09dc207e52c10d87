//! One program and the requests that it is working on. Ids and progress tokens are made unique on the way in and are
//! the client's again on the way out, so that several clients can share a program.
//!
//! Clients that share one do not know of each other, and must not: none of them can cancel what another one has asked
//! (it closes the stream of its own request), answer what the program asks, or get a message that is not about its own
//! request.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::process::Program;

/// Messages that wait for a client that does not read.
const WAITING: usize = 64;
/// Codes of JSON-RPC: for what is wrong inside of the server, and for what nobody here does.
const INTERNAL_ERROR: i32 = -32603;
const METHOD_NOT_FOUND: i32 = -32601;
/// Where a message of the version without sessions says which request it belongs to.
const SUBSCRIPTION: &str = "/params/_meta/io.modelcontextprotocol~1subscriptionId";

/// A program and who waits for it.
pub(super) struct Session {
    input: mpsc::Sender<Value>,
    state: Mutex<State>,
    next_id: AtomicU64,
    /// Cancelled when the program ends, or ends the program.
    stop: CancellationToken,
    gone: CancellationToken,
    _end: DropGuard,
    /// Several clients use it, each request by itself. Whoever goes away has cancelled: there is no session in which the
    /// answer could be asked for.
    shared: bool,
}

struct State {
    requests: HashMap<u64, Request>,
    /// The stream for what belongs to no request.
    listener: Option<mpsc::Sender<Value>>,
    used: Instant,
}

/// A request that the program has not answered yet.
struct Request {
    id: Value,
    progress_token: Option<Value>,
    client: mpsc::Sender<Value>,
}

/// What comes back for one request: notifications, and at last the answer.
pub(super) struct Answers {
    session: Arc<Session>,
    number: u64,
    id: Value,
    messages: mpsc::Receiver<Value>,
    answered: bool,
}

impl Session {
    /// Starts the program. `shared`: by several clients, without a session of the protocol.
    pub(super) fn start(program: &Program, shared: bool) -> std::io::Result<Arc<Self>> {
        let stop = CancellationToken::new();
        let process = program.start(stop.clone())?;
        let session = Arc::new(Self {
            input: process.input,
            state: Mutex::new(State { requests: HashMap::new(), listener: None, used: Instant::now() }),
            next_id: AtomicU64::new(1),
            _end: stop.clone().drop_guard(),
            stop,
            gone: process.gone,
            shared,
        });
        let weak = Arc::downgrade(&session);
        let mut output = process.output;
        tokio::spawn(async move {
            while let Some(message) = output.recv().await {
                let Some(session) = weak.upgrade() else { return };
                session.pass_back(message).await;
            }
            // Whoever waits sees the end of the channel; whoever comes later sees that it has ended.
            if let Some(session) = weak.upgrade() {
                session.end();
                let mut state = session.lock();
                state.requests.clear();
                state.listener = None;
            }
        });
        Ok(session)
    }

    /// Has the program ended?
    pub(super) fn has_ended(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Ends the program.
    pub(super) fn end(&self) {
        self.stop.cancel();
    }

    /// Waits until the program, and all that it has started, is gone.
    pub(super) async fn gone(&self) {
        self.gone.cancelled().await;
    }

    /// Since when nobody has used it; `None` while somebody does.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let state = self.lock();
        let listened = state.listener.as_ref().is_some_and(|listener| !listener.is_closed());
        (state.requests.is_empty() && !listened).then_some(state.used)
    }

    /// Passes a request on.
    pub(super) async fn request(self: &Arc<Self>, mut message: Value) -> Answers {
        let number = self.next_id.fetch_add(1, Ordering::Relaxed);
        let id = message["id"].take();
        message["id"] = number.into();
        let token =
            message.pointer_mut("/params/_meta/progressToken").map(|token| std::mem::replace(token, number.into()));
        let (client, messages) = mpsc::channel(WAITING);
        {
            let mut state = self.lock();
            state.used = Instant::now();
            state.requests.insert(number, Request { id: id.clone(), progress_token: token, client });
        }
        if self.has_ended() || self.input.send(message).await.is_err() {
            self.lock().requests.remove(&number);
        }
        Answers { session: Arc::clone(self), number, id, messages, answered: false }
    }

    /// Passes a notification, or the answer to a request of the program, on. Not to a shared program: nobody could tell
    /// whether it is for whoever sends it to say.
    pub(super) async fn tell(&self, mut message: Value) {
        if self.shared {
            return;
        }
        if message["method"] == "notifications/cancelled" {
            let wanted = message["params"]["requestId"].clone();
            let request = {
                let mut state = self.lock();
                let number = state.requests.iter().find(|(_, it)| it.id == wanted).map(|(number, _)| *number);
                number.and_then(|number| Some((number, state.requests.remove(&number)?)))
            };
            let Some((number, request)) = request else { return };
            message["params"]["requestId"] = number.into();
            // A server does not answer what was cancelled, and the client's stream has to end.
            let _ = request.client.send(error(&request.id, "the request was cancelled")).await;
        }
        self.lock().used = Instant::now();
        // A program that has ended hears nothing.
        let _ = self.input.send(message).await;
    }

    /// The stream of what belongs to no request; the newest listener has it.
    pub(super) fn listen(&self) -> mpsc::Receiver<Value> {
        let (listener, messages) = mpsc::channel(WAITING);
        let mut state = self.lock();
        state.used = Instant::now();
        // A program that has ended closes the stream at once.
        state.listener = Some(listener).filter(|_| !self.has_ended());
        messages
    }

    async fn pass_back(&self, mut message: Value) {
        let client = {
            let mut state = self.lock();
            state.used = Instant::now();
            if message.get("method").is_none() {
                let Some(request) = message["id"].as_u64().and_then(|number| state.requests.remove(&number)) else {
                    tracing::debug!("the program answered what nobody asked");
                    return;
                };
                message["id"] = request.id;
                Some(request.client)
            } else if message["method"] == "notifications/progress" {
                let number = message["params"]["progressToken"].as_u64();
                let request = number.and_then(|number| state.requests.get(&number));
                if let Some(token) = request.and_then(|request| request.progress_token.clone()) {
                    message["params"]["progressToken"] = token;
                }
                request.map(|request| request.client.clone())
            } else if self.shared {
                let subscription = message.pointer_mut(SUBSCRIPTION);
                let number = subscription.as_ref().and_then(|number| number.as_u64());
                let request = number.and_then(|number| state.requests.get(&number));
                if let (Some(place), Some(request)) = (subscription, request) {
                    *place = request.id.clone();
                }
                request.filter(|_| message.get("id").is_none()).map(|request| request.client.clone())
            } else {
                // It may belong to the only request there is; with several nobody could tell whose it is.
                let listener = state.listener.clone().filter(|listener| !listener.is_closed());
                listener.or_else(|| {
                    let mut requests = state.requests.values();
                    requests.next().filter(|_| requests.next().is_none()).map(|request| request.client.clone())
                })
            }
        };
        match client {
            // Gone meanwhile.
            Some(client) => drop(client.send(message).await),
            // It would wait for ever.
            None if self.shared && message.get("method").is_some() => self.decline(&message["id"]),
            None => {}
        }
    }

    /// Says that nobody is there to be asked.
    fn decline(&self, id: &Value) {
        if !id.is_null() {
            let mut declined = error(id, "there is no client to ask without a session");
            declined["error"]["code"] = METHOD_NOT_FOUND.into();
            // A program that does not read has other troubles.
            let _ = self.input.try_send(declined);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Answers {
    /// The next message; `None` after the answer. A program that ends without one answers with an error.
    pub(super) async fn next(&mut self) -> Option<Value> {
        if self.answered {
            return None;
        }
        let message = self.messages.recv().await.unwrap_or_else(|| {
            error(&self.id, "the program of this MCP server has ended; look at the log of its pod, and connect again")
        });
        self.answered = message.get("method").is_none();
        Some(message)
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        if self.answered || !self.session.shared || self.session.lock().requests.remove(&self.number).is_none() {
            return;
        }
        let cancelled = json!({
            "jsonrpc": "2.0", "method": "notifications/cancelled",
            "params": {"requestId": self.number, "reason": "the client has gone away"},
        });
        // A program that reads so slowly finishes the work in vain.
        let _ = self.session.input.try_send(cancelled);
    }
}

/// An answer that says what is wrong.
pub(super) fn error(id: &Value, message: &str) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "error": {"code": INTERNAL_ERROR, "message": message}})
}
