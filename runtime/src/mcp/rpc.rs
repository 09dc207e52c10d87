//! Messages of JSON-RPC 2.0 as MCP uses them: read far enough to know what they are, and otherwise left as they came.
//! Pure.

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

/// JSON-RPC's codes, and MCP's.
pub mod code {
    /// The bytes are no JSON.
    pub const PARSE_ERROR: i64 = -32700;
    /// The JSON is no message.
    pub const INVALID_REQUEST: i64 = -32600;
    /// Nobody here does that.
    pub const METHOD_NOT_FOUND: i64 = -32601;
    /// A parameter is not what it should be.
    pub const INVALID_PARAMS: i64 = -32602;
    /// A header does not say what the message says, or is not there.
    pub const HEADER_MISMATCH: i64 = -32020;
    /// Ours: the server behind the gateway failed, or was not asked.
    pub const SERVER_FAILED: i64 = -32001;
    /// Ours: policy does not let this through.
    pub const REFUSED: i64 = -32003;
}

/// Longest id that is one.
const MAX_ID_BYTES: usize = 4096;

/// A message, by what it wants. What it holds stays text: as a tree it would take up to a hundred times the memory, and
/// most of it is passed on unread.
#[derive(Debug, Clone)]
pub enum Message {
    /// Wants an answer.
    Request {
        /// A string or a number.
        id: Value,
        /// What to do.
        method: String,
        /// With what: an object.
        params: Option<Box<RawValue>>,
    },
    /// Wants none.
    Notification {
        /// What happened.
        method: String,
        /// More about it: an object.
        params: Option<Box<RawValue>>,
    },
    /// Answers a request of the other side.
    Response {
        /// Whose; null when the request could not be read.
        id: Value,
        /// What came of it.
        outcome: Result<Box<RawValue>, Box<RawValue>>,
    },
}

/// What is no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAMessage {
    /// The bytes are no JSON.
    #[error("it is not JSON (line {0}, column {1})")]
    Json(usize, usize),
    /// The JSON is something else.
    #[error("{0}")]
    Shape(&'static str),
}

/// The fields of a message; others are left out.
#[derive(Deserialize)]
struct Envelope {
    #[serde(default, deserialize_with = "present")]
    jsonrpc: Option<Box<RawValue>>,
    #[serde(default, deserialize_with = "present")]
    id: Option<Box<RawValue>>,
    #[serde(default, deserialize_with = "present")]
    method: Option<Box<RawValue>>,
    #[serde(default)]
    params: Option<Box<RawValue>>,
    #[serde(default, deserialize_with = "present")]
    result: Option<Box<RawValue>>,
    #[serde(default, deserialize_with = "present")]
    error: Option<Box<RawValue>>,
}

/// A field that is there, null or not.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(deserializer).map(Some)
}

impl Message {
    /// Reads one message.
    pub fn parse(bytes: &[u8]) -> Result<Self, NotAMessage> {
        let envelope = serde_json::from_slice::<Envelope>(bytes);
        // Serde takes a list for a structure too.
        let is_json = envelope.as_ref().err().is_none_or(serde_json::Error::is_data);
        if is_json && !bytes.trim_ascii_start().starts_with(b"{") {
            return Err(NotAMessage::Shape("a message is one JSON object; batches are not taken"));
        }
        let envelope = envelope.map_err(|error| {
            let twice = NotAMessage::Shape("no field of a message is there twice");
            if error.is_data() { twice } else { NotAMessage::Json(error.line(), error.column()) }
        })?;
        if envelope.jsonrpc.is_none_or(|version| version.get() != "\"2.0\"") {
            return Err(NotAMessage::Shape("a message has \"jsonrpc\": \"2.0\""));
        }
        let Some(method) = envelope.method else {
            let id = envelope.id.map_or(Ok(Value::Null), |id| scalar(&id))?;
            return match (envelope.result, envelope.error) {
                (Some(result), None) => Ok(Self::Response { id, outcome: Ok(result) }),
                (None, Some(error)) => Ok(Self::Response { id, outcome: Err(error) }),
                _ => Err(NotAMessage::Shape("a message has a method, a result or an error")),
            };
        };
        let method = serde_json::from_str(method.get()).map_err(|_| NotAMessage::Shape("method is a string"))?;
        let params = envelope.params;
        if params.as_ref().is_some_and(|params| !params.get().starts_with('{')) {
            return Err(NotAMessage::Shape("params is an object"));
        }
        match envelope.id.map(|id| scalar(&id)).transpose()? {
            None => Ok(Self::Notification { method, params }),
            Some(Value::Null) => Err(NotAMessage::Shape(ID)),
            Some(id) => Ok(Self::Request { id, method, params }),
        }
    }

    /// The message as JSON: what was read, and nothing beside it.
    pub fn to_text(&self) -> String {
        match self {
            Self::Request { id, method, params } => {
                let (method, params) = (Value::from(method.as_str()), text_of(params.as_deref()));
                format!(r#"{{"jsonrpc":"2.0","id":{id},"method":{method},"params":{params}}}"#)
            }
            Self::Notification { method, params } => {
                let (method, params) = (Value::from(method.as_str()), text_of(params.as_deref()));
                format!(r#"{{"jsonrpc":"2.0","method":{method},"params":{params}}}"#)
            }
            Self::Response { id, outcome: Ok(value) } => format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{value}}}"#),
            Self::Response { id, outcome: Err(error) } => format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{error}}}"#),
        }
    }

    /// Whether it answers the request with this id.
    pub fn answers(&self, wanted: &Value) -> bool {
        matches!(self, Self::Response { id, .. } if id == wanted)
    }
}

const ID: &str = "id is a string or a number, of at most 4096 bytes";

/// An id.
fn scalar(id: &RawValue) -> Result<Value, NotAMessage> {
    let short = Some(id.get()).filter(|text| text.len() <= MAX_ID_BYTES);
    match short.and_then(|text| serde_json::from_str(text).ok()) {
        Some(id @ (Value::String(_) | Value::Number(_) | Value::Null)) => Ok(id),
        _ => Err(NotAMessage::Shape(ID)),
    }
}

fn text_of(params: Option<&RawValue>) -> &str {
    params.map_or("{}", RawValue::get)
}

/// The parameters of a request, for whoever has to look at them.
pub fn object(params: Option<&RawValue>) -> Result<Map<String, Value>, NotAMessage> {
    serde_json::from_str(text_of(params)).map_err(|error| NotAMessage::Json(error.line(), error.column()))
}

/// A request.
pub fn request(id: &Value, method: &str, params: &Map<String, Value>) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params })
}

/// A notification.
pub fn notification(method: &str) -> Value {
    json!({ "jsonrpc": "2.0", "method": method })
}

/// The answer that it went well.
pub fn result(id: &Value, result: &Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "result": result })
}

/// The answer that it did not. `kind` is a slug as in problem documents.
pub fn error(id: &Value, code: i64, message: &str, kind: &str) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "error": { "code": code, "message": message, "data": { "type": kind } } })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn kinds_of_messages_are_told_apart() {
        let parse = |text: &str| Message::parse(text.as_bytes());
        assert!(matches!(
            parse(r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#).unwrap(),
            Message::Request { method, .. } if method == "tools/list"
        ));
        assert!(matches!(
            parse(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#).unwrap(),
            Message::Notification { .. }
        ));
        assert!(parse(r#"{"jsonrpc":"2.0","id":"a","result":{}}"#).unwrap().answers(&json!("a")));
        assert!(!parse(r#"{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"x"}}"#).unwrap().answers(&json!(2)));
        assert!(matches!(
            parse(r#"{"jsonrpc":"2.0","id":null,"result":null}"#).unwrap(),
            Message::Response { id: Value::Null, outcome: Ok(result) } if result.get() == "null"
        ));
    }

    #[test]
    fn what_was_read_is_passed_on_and_nothing_beside_it() {
        let passed = |text: &str| Message::parse(text.as_bytes()).unwrap().to_text();
        let smuggled =
            r#"{"jsonrpc":"2.0","id":"a","method":"tools/call","params":{"name":"x"},"Method":"other","x":[1]}"#;
        let wanted = r#"{"jsonrpc":"2.0","id":"a","method":"tools/call","params":{"name":"x"}}"#;
        assert_eq!(passed(smuggled), wanted);
        assert_eq!(passed(wanted), wanted);
        let answer = r#"{"jsonrpc":"2.0","id":1,"result":{"a":[1, 2]}}"#;
        assert_eq!(passed(answer), answer);
        assert_eq!(
            passed(r#"{"method":"m","jsonrpc":"2.0","params":null}"#),
            r#"{"jsonrpc":"2.0","method":"m","params":{}}"#
        );
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for bad in [
            "",
            "{",
            "[]",
            "null",
            "{}",
            r#"{"id":1,"method":"x"}"#,
            r#"{"jsonrpc":"2.0","id":null,"method":"x"}"#,
            r#"{"jsonrpc":"2.0","id":{},"method":"x"}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":2}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"x","params":[]}"#,
            r#"{"jsonrpc":"2.0","id":1}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{},"error":{}}"#,
            r#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#,
            r#"["2.0",1,"ping"]"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"ping","method":"tools/call"}"#,
            r#"{"jsonrpc":"2.0","id":[1],"result":{}}"#,
            r#"{"jsonrpc":"2.0","id":true,"method":"ping"}"#,
        ] {
            assert!(Message::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        let long = format!(r#"{{"jsonrpc":"2.0","id":"{}","result":{{}}}}"#, "x".repeat(MAX_ID_BYTES));
        assert_eq!(Message::parse(long.as_bytes()).unwrap_err(), NotAMessage::Shape(ID));
    }
}
