//! Words of the protocol: what our messages and their headers say, and what servers' answers mean. Pure.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Number, Value, json};

use super::error::UpstreamError;
use super::rpc::{self, Message, code};

/// The version without `initialize` and without sessions.
pub const STATELESS: &str = "2026-07-28";
/// The newest version with `initialize`; servers answer with an older one that they know.
const INITIALIZE: &str = "2025-11-25";
/// Longest answer to `initialize` and `server/discover`.
const MAX_INTRODUCTION_BYTES: usize = 48 * 1024;
/// Arguments of one call that are repeated in headers.
const MAX_PARAMETER_HEADERS: usize = 64;
const METHOD: HeaderName = HeaderName::from_static("mcp-method");
const NAME: HeaderName = HeaderName::from_static("mcp-name");

/// A session with a server, or the knowledge that there is none to be had.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Session {
    /// Version of the protocol.
    pub protocol: String,
    /// The server's name for it.
    pub id: Option<String>,
    /// What the server says of itself.
    pub server: Value,
    /// What it can do.
    pub capabilities: Value,
}

/// What we say of ourselves.
pub(super) fn own_info() -> Value {
    json!({ "name": "agentapi", "version": env!("CARGO_PKG_VERSION") })
}

/// Whether a request may be sent twice.
pub fn is_idempotent(method: &str) -> bool {
    matches!(
        method,
        "ping"
            | "server/discover"
            | "tools/list"
            | "resources/list"
            | "resources/templates/list"
            | "resources/read"
            | "prompts/list"
            | "prompts/get"
            | "completion/complete"
    )
}

/// Headers of the stateless version that say what the message says, for whoever stands in between.
pub fn standard_headers(method: &str, params: &Map<String, Value>) -> Vec<(HeaderName, HeaderValue)> {
    let name = match method {
        "tools/call" | "prompts/get" => params.get("name"),
        "resources/read" | "resources/subscribe" | "resources/unsubscribe" => params.get("uri"),
        "tasks/get" | "tasks/update" | "tasks/cancel" => params.get("taskId"),
        _ => None,
    };
    let name = name.and_then(Value::as_str).map(header_text);
    let texts = [(METHOD, Some(header_text(method))), (NAME, name)];
    texts.into_iter().filter_map(|(name, text)| Some((name, HeaderValue::from_str(&text?).ok()?))).collect()
}

/// Headers that repeat those arguments of a tool which its schema marks with `x-mcp-header`: the first ones, since a map of
/// headers takes no more than some thousands.
pub(super) fn parameter_headers(schema: &Value, arguments: &Value) -> Vec<(HeaderName, HeaderValue)> {
    let mut headers = marked(schema, arguments);
    headers.truncate(MAX_PARAMETER_HEADERS);
    headers
}

fn marked(schema: &Value, arguments: &Value) -> Vec<(HeaderName, HeaderValue)> {
    let mut headers = Vec::new();
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let argument = &arguments[name];
        let text = match argument {
            Value::String(text) => Some(text.clone()),
            Value::Bool(_) | Value::Number(_) => Some(argument.to_string()),
            _ => None,
        };
        match (property["x-mcp-header"].as_str(), text) {
            (Some(header), Some(text)) => {
                let header = format!("mcp-param-{}", header.to_ascii_lowercase()).parse();
                headers.extend(header.ok().zip(HeaderValue::from_str(&header_text(&text)).ok()));
            }
            _ => headers.extend(marked(property, argument)),
        }
    }
    headers
}

pub(super) fn initialize_params() -> Map<String, Value> {
    let mut params = Map::new();
    params.insert("protocolVersion".to_owned(), json!(INITIALIZE));
    params.insert("capabilities".to_owned(), json!({}));
    params.insert("clientInfo".to_owned(), own_info());
    params
}

/// What a server says of itself, as a tree. It is kept, and shown: not for ever, and Postgres takes no NUL.
pub(super) fn introduction(result: &RawValue) -> Result<Value, UpstreamError> {
    let text = result.get();
    if text.len() > MAX_INTRODUCTION_BYTES {
        return Err(UpstreamError::TooLarge(MAX_INTRODUCTION_BYTES));
    }
    let value = serde_json::from_str(text).ok().filter(|_| !text.contains("\\u0000"));
    value.ok_or_else(|| UpstreamError::NotMcp("what it says of itself cannot be read".to_owned()))
}

pub(super) fn session_of(result: &RawValue, id: Option<HeaderValue>) -> Result<Session, UpstreamError> {
    let result = introduction(result)?;
    let unreadable = || UpstreamError::NotMcp("it answers initialize without a version or session id".to_owned());
    let protocol = result["protocolVersion"].as_str().filter(|it| it.len() <= 64).ok_or_else(unreadable)?;
    let id = id.map(|id| id.to_str().map(str::to_owned)).transpose().map_err(|_| unreadable())?;
    Ok(Session {
        protocol: protocol.to_owned(),
        id,
        server: result["serverInfo"].clone(),
        capabilities: result["capabilities"].clone(),
    })
}

/// What came of the request with this id; a message that is about something else comes back.
pub(super) fn outcome(message: Message, wanted: &Value) -> Result<Result<Box<RawValue>, UpstreamError>, Message> {
    #[derive(Default, Deserialize)]
    struct Fault {
        code: Option<Number>,
        message: Option<String>,
    }
    match message {
        Message::Response { id, outcome } if id == *wanted || (id.is_null() && outcome.is_err()) => Ok(outcome
            .map_err(|error| {
                let fault: Fault = serde_json::from_str(error.get()).unwrap_or_default();
                UpstreamError::Rpc {
                    code: fault.code.and_then(|code| code.as_i64()).unwrap_or(code::SERVER_FAILED),
                    message: plain(fault.message.as_deref().unwrap_or("an error without a message")),
                }
            })),
        other => Err(other),
    }
}

/// What is said to a server that asks us something: that we live, and that there is nobody to ask.
pub(super) fn answer_to_server(message: &Message) -> Option<Value> {
    match message {
        Message::Request { id, method, .. } if method == "ping" => Some(rpc::result(id, &json!({}))),
        Message::Request { id, method, .. } => {
            let text = format!("{} is not supported by this client", plain(method));
            Some(rpc::error(id, code::METHOD_NOT_FOUND, &text, "not-supported"))
        }
        _ => None,
    }
}

/// A server's text for people: without control characters, and not for ever.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(500).collect()
}

/// As a header can hold it: what is not plain ASCII goes in Base64.
fn header_text(text: &str) -> String {
    let plain = text.bytes().all(|byte| (0x20..=0x7e).contains(&byte))
        && !text.starts_with(' ')
        && !text.ends_with(' ')
        && !text.starts_with("=?base64?");
    if plain { text.to_owned() } else { format!("=?base64?{}?=", STANDARD.encode(text)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_into_headers_as_they_are_or_in_base64() {
        assert_eq!(header_text("search_repos"), "search_repos");
        assert_eq!(header_text("größe"), "=?base64?Z3LDtsOfZQ==?=");
        assert_eq!(header_text("x\r\nx-injected: yes"), "=?base64?eA0KeC1pbmplY3RlZDogeWVz?=");
        assert_eq!(header_text(" x"), "=?base64?IHg=?=");
    }

    #[test]
    fn marked_arguments_go_into_headers_too() {
        let schema = json!({"properties": {
            "region": {"type": "string", "x-mcp-header": "Region"}, "plain": {"type": "string"},
            "deep": {"type": "object", "properties": {"limit": {"type": "integer", "x-mcp-header": "Limit"}}},
            "absent": {"type": "string", "x-mcp-header": "Absent"}, "bad": {"type": "string", "x-mcp-header": "a b"},
        }});
        let arguments = json!({"region": "zürich", "plain": "x", "deep": {"limit": 3}, "bad": "x"});
        let mut headers = parameter_headers(&schema, &arguments);
        headers.sort_by(|a, b| a.0.as_str().cmp(b.0.as_str()));
        let shown: Vec<_> =
            headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap_or_default())).collect();
        assert_eq!(shown, [("mcp-param-limit", "3"), ("mcp-param-region", "=?base64?esO8cmljaA==?=")]);
        let names: Vec<String> = (0..40_000).map(|n| format!("p{n}")).collect();
        let properties: Map<String, Value> =
            names.iter().map(|name| (name.clone(), json!({ "x-mcp-header": name }))).collect();
        let arguments: Map<String, Value> = names.iter().map(|name| (name.clone(), json!(1))).collect();
        let headers = parameter_headers(&json!({ "properties": properties }), &Value::Object(arguments));
        let headers: http::HeaderMap = headers.into_iter().collect();
        assert_eq!(headers.len(), MAX_PARAMETER_HEADERS);
    }

    #[test]
    fn a_servers_words_are_cut_and_have_no_control_characters() {
        let bad = json!({"jsonrpc": "2.0", "id": 1, "error": {"code": -1, "message": "a\u{1b}[31m\n".repeat(200)}});
        let Ok(message) = Message::parse(bad.to_string().as_bytes()) else { unreachable!("it is one") };
        let Ok(Err(UpstreamError::Rpc { message, .. })) = outcome(message, &json!(1)) else { unreachable!("an error") };
        assert!(message.len() <= 500 && !message.chars().any(char::is_control), "{message}");
    }

    #[test]
    fn a_server_that_asks_is_answered() {
        let request = |method: &str| Message::Request { id: json!("s1"), method: method.to_owned(), params: None };
        assert_eq!(answer_to_server(&request("ping")).map(|it| it["result"].clone()), Some(json!({})));
        let refused = answer_to_server(&request("sampling/createMessage")).unwrap_or_default();
        assert_eq!(refused["error"]["code"], code::METHOD_NOT_FOUND);
    }
}
