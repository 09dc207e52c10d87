//! Messages of JSON-RPC 2.0 as MCP uses them: read far enough to know what they are, and otherwise left as they came.
//! Pure.

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

/// A message, by what it wants.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// Wants an answer.
    Request {
        /// A string or a number.
        id: Value,
        /// What to do.
        method: String,
        /// With what.
        params: Map<String, Value>,
    },
    /// Wants none.
    Notification {
        /// What happened.
        method: String,
        /// More about it.
        params: Map<String, Value>,
    },
    /// Answers a request of the other side.
    Response {
        /// Whose; null when the request could not be read.
        id: Value,
        /// What came of it.
        outcome: Result<Value, Value>,
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

impl Message {
    /// Reads one message.
    pub fn parse(bytes: &[u8]) -> Result<Self, NotAMessage> {
        let value: Value =
            serde_json::from_slice(bytes).map_err(|error| NotAMessage::Json(error.line(), error.column()))?;
        Self::of(value)
    }

    /// The message in a JSON value.
    pub fn of(value: Value) -> Result<Self, NotAMessage> {
        let Value::Object(mut object) = value else {
            return Err(NotAMessage::Shape("a message is one JSON object; batches are not taken"));
        };
        if object.get("jsonrpc") != Some(&json!("2.0")) {
            return Err(NotAMessage::Shape("a message has \"jsonrpc\": \"2.0\""));
        }
        let id = object.remove("id");
        let Some(method) = object.remove("method") else {
            return response(object, id);
        };
        let Value::String(method) = method else {
            return Err(NotAMessage::Shape("method is a string"));
        };
        let params = match object.remove("params") {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(params)) => params,
            Some(_) => return Err(NotAMessage::Shape("params is an object")),
        };
        match id {
            None => Ok(Self::Notification { method, params }),
            Some(id @ (Value::String(_) | Value::Number(_))) => Ok(Self::Request { id, method, params }),
            Some(_) => Err(NotAMessage::Shape("id is a string or a number")),
        }
    }

    /// The message as JSON: what was read, and nothing beside it.
    pub fn to_value(&self) -> Value {
        match self {
            Self::Request { id, method, params } => request(id, method, params),
            Self::Notification { method, params } => json!({ "jsonrpc": "2.0", "method": method, "params": params }),
            Self::Response { id, outcome: Ok(value) } => result(id, value),
            Self::Response { id, outcome: Err(error) } => json!({ "jsonrpc": "2.0", "id": id, "error": error }),
        }
    }

    /// Whether it answers the request with this id.
    pub fn answers(&self, wanted: &Value) -> bool {
        matches!(self, Self::Response { id, .. } if id == wanted)
    }
}

fn response(mut object: Map<String, Value>, id: Option<Value>) -> Result<Message, NotAMessage> {
    let id = id.unwrap_or(Value::Null);
    match (object.remove("result"), object.remove("error")) {
        (Some(result), None) => Ok(Message::Response { id, outcome: Ok(result) }),
        (None, Some(error)) => Ok(Message::Response { id, outcome: Err(error) }),
        _ => Err(NotAMessage::Shape("a message has a method, a result or an error")),
    }
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
        ] {
            assert!(Message::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
