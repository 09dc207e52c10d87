//! `OpenAI` chat completions: parse a request, render a reply whole or as a stream. Pure.

use serde_json::{Value, json};

use super::script::{Conversation, Entry, Reply, Tool};
use super::wire::{Frame, field, pieces, text_of, tokens};

/// Reads a request; roles and parts it does not know are skipped.
pub(super) fn parse(body: &Value) -> Result<Conversation, String> {
    let messages = body.get("messages").and_then(Value::as_array).ok_or("you must provide a messages parameter")?;
    let mut conversation = Conversation {
        model: field(body, "model").to_owned(),
        stream: body.get("stream").and_then(Value::as_bool).unwrap_or_default(),
        ..Conversation::default()
    };
    for function in
        body.get("tools").and_then(Value::as_array).into_iter().flatten().filter_map(|tool| tool.get("function"))
    {
        let schema = function.get("parameters").cloned().unwrap_or_default();
        conversation.tools.push(Tool { name: field(function, "name").to_owned(), schema });
    }
    for message in messages {
        let text = message.get("content").map(text_of).unwrap_or_default();
        match field(message, "role") {
            "user" => conversation.push_user(&text),
            "tool" => conversation.entries.push(Entry::ToolResult { text, failed: false }),
            "assistant" => {
                if !text.is_empty() {
                    conversation.entries.push(Entry::Assistant(text));
                }
                for call in message.get("tool_calls").and_then(Value::as_array).into_iter().flatten() {
                    let name = call.pointer("/function/name").and_then(Value::as_str).unwrap_or_default();
                    conversation.entries.push(Entry::ToolCall(name.to_owned()));
                }
            }
            _ => {}
        }
    }
    Ok(conversation)
}

fn usage(input: usize, output: usize) -> Value {
    json!({"prompt_tokens": input, "completion_tokens": output, "total_tokens": input + output})
}

fn call(id: u64, name: &str, input: &Value) -> Value {
    json!({"index": 0, "id": format!("call_{id:08}"), "type": "function",
        "function": {"name": name, "arguments": input.to_string()}})
}

fn envelope(id: u64, object: &str, conversation: &Conversation) -> Value {
    json!({"id": format!("chatcmpl-{id:08}"), "object": object, "created": 1_767_225_600, "model": conversation.model})
}

/// The answer in one piece.
pub(super) fn whole(id: u64, input: usize, conversation: &Conversation, reply: &Reply) -> Value {
    let (message, finish, text) = match reply {
        Reply::Text { text, .. } | Reply::Fail { message: text, .. } => {
            (json!({"role": "assistant", "content": text}), "stop", text)
        }
        Reply::Tool { say, name, input } => {
            (json!({"role": "assistant", "content": say, "tool_calls": [call(id, name, input)]}), "tool_calls", say)
        }
    };
    let mut body = envelope(id, "chat.completion", conversation);
    body["choices"] = json!([{"index": 0, "message": message, "logprobs": null, "finish_reason": finish}]);
    body["usage"] = usage(input, tokens(text));
    body
}

/// The answer as a stream; the last data is `[DONE]`.
pub(super) fn frames(id: u64, input: usize, conversation: &Conversation, reply: &Reply) -> Vec<Frame> {
    let chunk = |delta: &Value, finish: Option<&str>| {
        let mut body = envelope(id, "chat.completion.chunk", conversation);
        body["choices"] = json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish}]);
        Frame::bare(body.to_string())
    };
    let (text, pause) = match reply {
        Reply::Text { text, pause } => (text, *pause),
        Reply::Tool { say: text, .. } | Reply::Fail { message: text, .. } => (text, std::time::Duration::ZERO),
    };
    let mut frames = vec![chunk(&json!({"role": "assistant", "content": ""}), None)];
    for piece in pieces(text) {
        frames.push(chunk(&json!({"content": piece}), None).after(pause));
    }
    let finish = match reply {
        Reply::Tool { name, input, .. } => {
            frames.push(chunk(&json!({"tool_calls": [call(id, name, input)]}), None));
            "tool_calls"
        }
        _ => "stop",
    };
    frames.push(chunk(&json!({}), Some(finish)));
    let mut last = envelope(id, "chat.completion.chunk", conversation);
    last["choices"] = json!([]);
    last["usage"] = usage(input, tokens(text));
    frames.push(Frame::bare(last.to_string()));
    frames.push(Frame::bare("[DONE]"));
    frames
}
