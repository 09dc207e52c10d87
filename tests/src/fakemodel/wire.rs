//! What the three wire formats share: server-sent events with pauses, tokens, and text taken out of content values.

use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use serde_json::Value;

/// One server-sent event, after a pause.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Frame {
    pub(super) wait: Duration,
    pub(super) event: Option<&'static str>,
    pub(super) data: String,
}

impl Frame {
    /// An event with a name, as Anthropic and `OpenAI` responses send them.
    pub(super) fn named(event: &'static str, data: &Value) -> Self {
        Self { wait: Duration::ZERO, event: Some(event), data: data.to_string() }
    }

    /// An event with data only, as `OpenAI` chat completions send them.
    pub(super) fn bare(data: impl Into<String>) -> Self {
        Self { wait: Duration::ZERO, event: None, data: data.into() }
    }

    pub(super) fn after(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }
}

/// Sends the frames as `text/event-stream`, each after its own pause.
pub(super) fn sse(frames: Vec<Frame>) -> Response {
    let stream = async_stream::stream! {
        for frame in frames {
            if !frame.wait.is_zero() {
                tokio::time::sleep(frame.wait).await;
            }
            let event = Event::default().data(frame.data);
            yield Ok::<_, Infallible>(match frame.event {
                Some(name) => event.event(name),
                None => event,
            });
        }
    };
    Sse::new(stream).keep_alive(KeepAlive::default()).into_response()
}

/// A stand-in for a tokenizer: the same text always costs the same.
pub(super) fn tokens(text: &str) -> usize {
    text.len().div_ceil(4)
}

/// The pieces in which a text is streamed; together they are the text.
pub(super) fn pieces(text: &str) -> Vec<&str> {
    text.split_inclusive(' ').collect()
}

/// The text of a `content` value: a string, or the text parts of an array, in order.
pub(super) fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts
            .iter()
            .filter_map(|part| part.as_str().or_else(|| part.get("text").and_then(Value::as_str)))
            .collect::<Vec<_>>()
            .join("\n"),
        _ => String::new(),
    }
}

/// A string field of an object, or nothing.
pub(super) fn field<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}
