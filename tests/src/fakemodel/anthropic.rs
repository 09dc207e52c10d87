//! Anthropic Messages: parse a request, render a reply whole or as a stream. Pure.

use serde_json::{Value, json};

use super::script::{Conversation, Entry, Reply, Tool};
use super::wire::{Frame, field, pieces, text_of, tokens};

/// Reads a request; blocks it does not know are skipped, as a model's endpoint grows new ones.
pub(super) fn parse(body: &Value) -> Result<Conversation, String> {
    let messages = body.get("messages").and_then(Value::as_array).ok_or("messages: field required")?;
    if body.get("max_tokens").and_then(Value::as_u64).is_none() {
        return Err("max_tokens: field required".to_owned());
    }
    let mut conversation = Conversation {
        model: field(body, "model").to_owned(),
        stream: body.get("stream").and_then(Value::as_bool).unwrap_or_default(),
        system: body.get("system").map(text_of).unwrap_or_default(),
        ..Conversation::default()
    };
    for tool in body.get("tools").and_then(Value::as_array).into_iter().flatten() {
        let schema = tool.get("input_schema").cloned().unwrap_or_default();
        conversation.tools.push(Tool { name: field(tool, "name").to_owned(), schema });
    }
    for message in messages {
        let role = field(message, "role");
        let content = message.get("content").ok_or("content: field required")?;
        match content.as_array() {
            Some(blocks) => blocks.iter().for_each(|block| push(&mut conversation, role, block)),
            None => push(&mut conversation, role, &json!({"type": "text", "text": text_of(content)})),
        }
    }
    Ok(conversation)
}

fn push(conversation: &mut Conversation, role: &str, block: &Value) {
    match (role, field(block, "type")) {
        ("user", "text") => conversation.push_user(field(block, "text")),
        ("assistant", "text") => conversation.entries.push(Entry::Assistant(field(block, "text").to_owned())),
        ("assistant", "tool_use") => conversation.entries.push(Entry::ToolCall(field(block, "name").to_owned())),
        ("user", "tool_result") => conversation.entries.push(Entry::ToolResult {
            text: block.get("content").map(text_of).unwrap_or_default(),
            failed: block.get("is_error").and_then(Value::as_bool).unwrap_or_default(),
        }),
        _ => {}
    }
}

fn usage(input: usize, output: usize) -> Value {
    json!({"input_tokens": input, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": output})
}

/// The text, the tool call if any, and why the turn ends.
fn parts(reply: &Reply) -> (&str, Option<(&str, &Value)>, &'static str) {
    match reply {
        Reply::Text { text, .. } => (text, None, "end_turn"),
        Reply::Tool { say, name, input } => (say, Some((name, input)), "tool_use"),
        Reply::Fail { message, .. } => (message, None, "end_turn"),
    }
}

/// The answer in one piece.
pub(super) fn whole(id: u64, input: usize, conversation: &Conversation, reply: &Reply) -> Value {
    let (text, tool, stop_reason) = parts(reply);
    let mut content = vec![json!({"type": "text", "text": text})];
    if let Some((name, arguments)) = tool {
        content.push(json!({"type": "tool_use", "id": format!("toolu_{id:08}"), "name": name, "input": arguments}));
    }
    json!({"id": format!("msg_{id:08}"), "type": "message", "role": "assistant", "model": conversation.model,
        "content": content, "stop_reason": stop_reason, "stop_sequence": null, "usage": usage(input, tokens(text))})
}

/// The answer as a stream.
pub(super) fn frames(id: u64, input: usize, conversation: &Conversation, reply: &Reply) -> Vec<Frame> {
    let (text, tool, stop_reason) = parts(reply);
    let pause = match reply {
        Reply::Text { pause, .. } => *pause,
        _ => std::time::Duration::ZERO,
    };
    let start = json!({"id": format!("msg_{id:08}"), "type": "message", "role": "assistant", "model": conversation.model,
        "content": [], "stop_reason": null, "stop_sequence": null, "usage": usage(input, 1)});
    let mut frames = vec![
        Frame::named("message_start", &json!({"type": "message_start", "message": start})),
        block_start(0, &json!({"type": "text", "text": ""})),
        Frame::named("ping", &json!({"type": "ping"})),
    ];
    for piece in pieces(text) {
        frames.push(block_delta(0, &json!({"type": "text_delta", "text": piece})).after(pause));
    }
    frames.push(block_stop(0));
    if let Some((name, arguments)) = tool {
        let head = json!({"type": "tool_use", "id": format!("toolu_{id:08}"), "name": name, "input": {}});
        frames.push(block_start(1, &head));
        frames.push(block_delta(1, &json!({"type": "input_json_delta", "partial_json": arguments.to_string()})));
        frames.push(block_stop(1));
    }
    frames.push(Frame::named(
        "message_delta",
        &json!({"type": "message_delta",
        "delta": {"stop_reason": stop_reason, "stop_sequence": null}, "usage": usage(input, tokens(text))}),
    ));
    frames.push(Frame::named("message_stop", &json!({"type": "message_stop"})));
    frames
}

fn block_start(index: usize, block: &Value) -> Frame {
    Frame::named("content_block_start", &json!({"type": "content_block_start", "index": index, "content_block": block}))
}

fn block_delta(index: usize, delta: &Value) -> Frame {
    Frame::named("content_block_delta", &json!({"type": "content_block_delta", "index": index, "delta": delta}))
}

fn block_stop(index: usize) -> Frame {
    Frame::named("content_block_stop", &json!({"type": "content_block_stop", "index": index}))
}
