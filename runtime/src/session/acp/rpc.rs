//! JSON-RPC 2.0, a message a line, as the Agent Client Protocol has it. Of our own: the crate of the protocol turns on
//! `preserve_order` of `serde_json` for the whole program, and the audit chain hashes objects in the order of their keys.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt, AsyncWrite, AsyncWriteExt},
    sync::{mpsc, oneshot},
};

/// Messages that may wait for an agent that does not read.
const OUT_QUEUE: usize = 256;
/// A longer line is not a message; an agent may send a file that it edits, before and after.
const MAX_LINE_BYTES: usize = 32 * 1024 * 1024;
/// So much of what is not a message is logged, and of an error told.
const MAX_LOGGED: usize = 500;

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// The agent says so.
    #[error("{message}{}", details(.data.as_ref()))]
    Refused {
        /// JSON-RPC's code.
        code: i64,
        /// For people.
        message: String,
        /// More about it.
        data: Option<Value>,
    },
    /// The agent has ended.
    #[error("the agent has ended")]
    Closed,
    /// The agent does not read.
    #[error("the agent does not read its input")]
    Full,
}

fn details(data: Option<&Value>) -> String {
    let text = match data {
        None | Some(Value::Null) => return String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Object(fields)) if fields.get("message").is_some_and(Value::is_string) => {
            fields["message"].as_str().unwrap_or_default().to_owned()
        }
        Some(other) => other.to_string(),
    };
    format!(": {}", beginning(&text, MAX_LOGGED))
}

/// The first bytes of a text.
pub(super) fn beginning(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

/// What comes from the other side besides answers.
#[derive(Debug, PartialEq)]
pub(super) enum Incoming {
    /// Wants no answer.
    Notification { method: String, params: Value },
    /// Wants one, with this id.
    Request { id: Value, method: String, params: Value },
}

#[derive(Deserialize)]
struct Wire {
    #[serde(default)]
    id: Option<Value>,
    #[serde(default)]
    method: Option<String>,
    #[serde(default)]
    params: Value,
    #[serde(default)]
    result: Value,
    #[serde(default)]
    error: Option<WireError>,
}

#[derive(Deserialize)]
struct WireError {
    #[serde(default)]
    code: i64,
    #[serde(default)]
    message: String,
    #[serde(default)]
    data: Option<Value>,
}

type Waiting = HashMap<u64, oneshot::Sender<Result<Value, CallError>>>;

/// The other side.
pub(super) struct Peer {
    out: mpsc::Sender<String>,
    /// `None` once nothing comes any more.
    waiting: Mutex<Option<Waiting>>,
    next: AtomicU64,
}

/// An answer that is on its way.
pub(super) struct Answer(oneshot::Receiver<Result<Value, CallError>>);

impl Answer {
    /// Waits for it.
    pub(super) async fn get(self) -> Result<Value, CallError> {
        self.0.await.unwrap_or(Err(CallError::Closed))
    }
}

impl Peer {
    /// A peer, and what is to be written to it.
    pub(super) fn new() -> (Self, mpsc::Receiver<String>) {
        let (out, queue) = mpsc::channel(OUT_QUEUE);
        (Self { out, waiting: Mutex::new(Some(HashMap::new())), next: AtomicU64::new(1) }, queue)
    }

    fn waiting(&self) -> MutexGuard<'_, Option<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a request; the answer is waited for apart from that.
    pub(super) fn call(&self, method: &str, params: &Value) -> Result<Answer, CallError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        self.waiting().as_mut().ok_or(CallError::Closed)?.insert(id, answer);
        let sent = self.send(&json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}));
        if sent.is_err()
            && let Some(waiting) = self.waiting().as_mut()
        {
            waiting.remove(&id);
        }
        sent.map(|()| Answer(answered))
    }

    /// Sends a notification.
    pub(super) fn notify(&self, method: &str, params: &Value) -> Result<(), CallError> {
        self.send(&json!({"jsonrpc": "2.0", "method": method, "params": params}))
    }

    /// Answers a request.
    pub(super) fn respond(&self, id: &Value, result: Result<Value, (i64, &str)>) {
        let message = match result {
            Ok(result) => json!({"jsonrpc": "2.0", "id": id, "result": result}),
            Err((code, message)) => json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message}}),
        };
        if let Err(error) = self.send(&message) {
            tracing::warn!(%error, "an answer does not reach the agent");
        }
    }

    fn send(&self, message: &Value) -> Result<(), CallError> {
        self.out.try_send(message.to_string()).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => CallError::Full,
            mpsc::error::TrySendError::Closed(_) => CallError::Closed,
        })
    }

    /// Takes in a line. Answers go to who waits for them, the rest comes back. `Err`: it is no message.
    pub(super) fn line(&self, line: &[u8]) -> Result<Option<Incoming>, serde_json::Error> {
        let Wire { id, method, params, result, error } = serde_json::from_slice(line)?;
        if let Some(method) = method {
            return Ok(Some(match id {
                Some(id) => Incoming::Request { id, method, params },
                None => Incoming::Notification { method, params },
            }));
        }
        let known = id.and_then(|id| id.as_u64());
        let waiting = known.and_then(|id| self.waiting().as_mut()?.remove(&id));
        if let Some(waiting) = waiting {
            let answer = match error {
                Some(WireError { code, message, data }) => {
                    let message = beginning(&message, MAX_LOGGED).to_owned();
                    Err(CallError::Refused { code, message, data })
                }
                None => Ok(result),
            };
            // Whoever asked may have gone.
            let _ = waiting.send(answer);
        }
        Ok(None)
    }

    /// Reads until the other side closes; then nobody waits for an answer any more.
    pub(super) async fn read(&self, from: impl AsyncBufRead + Unpin, mut on: impl FnMut(Incoming)) {
        let mut from = from;
        let mut line = Vec::new();
        loop {
            match next_line(&mut from, &mut line).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    tracing::error!(%error, "the agent's output cannot be read");
                    break;
                }
            }
            match self.line(&line) {
                Ok(Some(incoming)) => on(incoming),
                Ok(None) => {}
                // Programs greet, warn and print where they should not.
                Err(_) if line.iter().all(u8::is_ascii_whitespace) => {}
                Err(_) => {
                    let text = String::from_utf8_lossy(&line);
                    tracing::warn!(text = beginning(&text, MAX_LOGGED), "the agent wrote what is no message");
                }
            }
        }
        self.waiting().take();
    }
}

/// Reads a line. False at the end. What is too long for a line is skipped.
async fn next_line(from: &mut (impl AsyncBufRead + Unpin), line: &mut Vec<u8>) -> std::io::Result<bool> {
    line.clear();
    let mut too_long = false;
    loop {
        let chunk = from.fill_buf().await?;
        if chunk.is_empty() {
            return Ok(!line.is_empty());
        }
        let end = chunk.iter().position(|byte| *byte == b'\n');
        let part = &chunk[..end.unwrap_or(chunk.len())];
        too_long |= line.len() + part.len() > MAX_LINE_BYTES;
        if too_long {
            line.clear();
        } else {
            line.extend_from_slice(part);
        }
        let used = end.map_or(chunk.len(), |end| end + 1);
        from.consume(used);
        if end.is_none() {
            continue;
        }
        if !too_long {
            return Ok(true);
        }
        tracing::error!("a message of the agent is longer than {MAX_LINE_BYTES} bytes; skipped");
        too_long = false;
    }
}

/// Writes messages until there are no more or the other side has closed.
pub(super) async fn write(mut to: impl AsyncWrite + Unpin, mut queue: mpsc::Receiver<String>) {
    while let Some(mut message) = queue.recv().await {
        message.push('\n');
        let written = async {
            to.write_all(message.as_bytes()).await?;
            to.flush().await
        };
        if written.await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[tokio::test]
    async fn answers_find_their_callers_in_any_order_and_noise_is_skipped() {
        let (peer, mut queue) = Peer::new();
        let first = peer.call("one", &json!({"a": 1})).unwrap();
        let second = peer.call("two", &Value::Null).unwrap();
        let sent: Value = serde_json::from_str(&queue.recv().await.unwrap()).unwrap();
        assert_eq!(sent, json!({"jsonrpc": "2.0", "id": 1, "method": "one", "params": {"a": 1}}));
        let input = concat!(
            "npm warn something\n\n",
            r#"{"jsonrpc":"2.0","id":2,"error":{"code":-1,"message":"no","data":{"message":"really"}}}"#,
            "\n",
            r#"{"jsonrpc":"2.0","id":"x","method":"ask","params":{}}"#,
            "\r\n",
            r#"{"jsonrpc":"2.0","method":"tell"}"#,
            "\n",
            r#"{"jsonrpc":"2.0","id":77,"result":1}"#,
            "\n",
            r#"{"jsonrpc":"2.0","id":1,"result":{"b":2}}"#,
        );
        let mut seen = Vec::new();
        peer.read(input.as_bytes(), |incoming| seen.push(incoming)).await;
        assert_eq!(second.get().await.unwrap_err().to_string(), "no: really");
        assert_eq!(first.get().await.unwrap(), json!({"b": 2}));
        let ask = Incoming::Request { id: json!("x"), method: "ask".to_owned(), params: json!({}) };
        assert_eq!(seen, [ask, Incoming::Notification { method: "tell".to_owned(), params: Value::Null }]);
        assert!(matches!(peer.call("late", &Value::Null), Err(CallError::Closed)), "nobody answers any more");
    }

    #[tokio::test]
    async fn callers_do_not_wait_for_an_agent_that_has_ended_or_does_not_read() {
        let (peer, queue) = Peer::new();
        let answer = peer.call("one", &Value::Null).unwrap();
        peer.read(&b"{}\n"[..], |_| ()).await;
        assert!(matches!(answer.get().await, Err(CallError::Closed)));
        for _ in 1..OUT_QUEUE {
            peer.notify("n", &Value::Null).unwrap();
        }
        assert!(matches!(peer.notify("n", &Value::Null), Err(CallError::Full)));
        drop(queue);
        assert!(matches!(peer.notify("n", &Value::Null), Err(CallError::Closed)));
    }

    #[tokio::test]
    async fn a_line_without_end_takes_no_memory_and_the_next_one_is_read() {
        let (peer, _queue) = Peer::new();
        let mut input = vec![b'x'; MAX_LINE_BYTES + 1];
        input.extend_from_slice(b"\n{\"method\":\"tell\"}\n");
        let mut seen = 0;
        peer.read(&input[..], |_| seen += 1).await;
        assert_eq!(seen, 1);
    }
}
