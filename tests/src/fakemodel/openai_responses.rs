//! `OpenAI` responses: parse a request, render a reply whole or as a stream. Pure.

use std::time::Duration;

use serde_json::{Value, json};

use super::script::{Conversation, Entry, Reply, Tool};
use super::wire::{Frame, field, pieces, text_of, tokens};

/// Reads a request; items it does not know (reasoning, for one) are skipped.
pub(super) fn parse(body: &Value) -> Result<Conversation, String> {
    let input = body.get("input").ok_or("missing required parameter: 'input'")?;
    let mut conversation = Conversation {
        model: field(body, "model").to_owned(),
        stream: body.get("stream").and_then(Value::as_bool).unwrap_or_default(),
        system: field(body, "instructions").to_owned(),
        ..Conversation::default()
    };
    for tool in list(body, "tools") {
        match field(tool, "type") {
            "function" => conversation.tools.push(function(tool, "")),
            // Codex has the tools of each MCP server in one.
            "namespace" => {
                let prefix = format!("{}__", field(tool, "name"));
                conversation.tools.extend(list(tool, "tools").map(|inner| function(inner, &prefix)));
                conversation.namespaces.push(prefix);
            }
            _ => {}
        }
    }
    match input.as_array() {
        Some(items) => items.iter().for_each(|item| push(&mut conversation, item)),
        None => conversation.push_user(&text_of(input)),
    }
    Ok(conversation)
}

fn list<'a>(value: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    value.get(name).and_then(Value::as_array).into_iter().flatten()
}

fn function(tool: &Value, prefix: &str) -> Tool {
    let schema = tool.get("parameters").cloned().unwrap_or_default();
    Tool { name: format!("{prefix}{}", field(tool, "name")), schema }
}

fn push(conversation: &mut Conversation, item: &Value) {
    let content = || item.get("content").map(text_of).unwrap_or_default();
    match (field(item, "type"), field(item, "role")) {
        // Codex hands on what AGENTS.md says in a turn of the user.
        ("message" | "", "user") if content().starts_with("# AGENTS.md instructions") => {
            conversation.push_system(&content());
        }
        ("message" | "", "developer" | "system") => conversation.push_system(&content()),
        ("message" | "", "user") => conversation.push_user(&content()),
        ("message" | "", "assistant") => conversation.entries.push(Entry::Assistant(content())),
        ("function_call", _) => conversation.entries.push(Entry::ToolCall(field(item, "name").to_owned())),
        ("function_call_output", _) => conversation
            .entries
            .push(Entry::ToolResult { text: item.get("output").map(output_text).unwrap_or_default(), failed: false }),
        _ => {}
    }
}

/// Shell tools answer with JSON text that has the output inside, or with the output after a header.
fn output_text(output: &Value) -> String {
    let text = text_of(output);
    if let Ok(Value::Object(object)) = serde_json::from_str::<Value>(&text)
        && let Some(inner) = object.get("output").and_then(Value::as_str)
    {
        return inner.to_owned();
    }
    text.split_once("\nOutput:\n").map_or(text.clone(), |(_, inner)| inner.to_owned())
}

fn usage(input: usize, output: usize) -> Value {
    json!({"input_tokens": input, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": input + output})
}

fn message(id: u64, text: &str) -> Value {
    json!({"type": "message", "id": format!("msg_{id:08}"), "status": "completed", "role": "assistant",
        "content": [{"type": "output_text", "text": text, "annotations": []}]})
}

fn call(id: u64, conversation: &Conversation, name: &str, input: &Value) -> Value {
    let mut call = json!({"type": "function_call", "id": format!("fc_{id:08}"), "call_id": format!("call_{id:08}"),
        "status": "completed", "name": name, "arguments": input.to_string()});
    for prefix in &conversation.namespaces {
        if let Some(inner) = name.strip_prefix(prefix) {
            call["name"] = json!(inner);
            call["namespace"] = json!(prefix.trim_end_matches('_'));
        }
    }
    call
}

fn items(id: u64, conversation: &Conversation, reply: &Reply) -> (String, Vec<Value>) {
    match reply {
        Reply::Text { text, .. } | Reply::Fail { message: text, .. } => (text.clone(), vec![message(id, text)]),
        Reply::Tool { say, name, input } => (say.clone(), vec![message(id, say), call(id, conversation, name, input)]),
    }
}

fn response(id: u64, conversation: &Conversation, status: &str, output: &[Value], usage: &Value) -> Value {
    json!({"id": format!("resp_{id:08}"), "object": "response", "created_at": 1_767_225_600, "status": status,
        "error": null, "incomplete_details": null, "model": conversation.model, "output": output, "usage": usage,
        "parallel_tool_calls": false, "tool_choice": "auto", "tools": [], "metadata": {}})
}

/// The answer in one piece.
pub(super) fn whole(id: u64, input: usize, conversation: &Conversation, reply: &Reply) -> Value {
    let (text, output) = items(id, conversation, reply);
    response(id, conversation, "completed", &output, &usage(input, tokens(&text)))
}

/// The answer as a stream.
pub(super) fn frames(id: u64, input: usize, conversation: &Conversation, reply: &Reply) -> Vec<Frame> {
    let (text, output) = items(id, conversation, reply);
    let pause = match reply {
        Reply::Text { pause, .. } => *pause,
        _ => Duration::ZERO,
    };
    let mut stream = Numbered::default();
    let started = response(id, conversation, "in_progress", &[], &Value::Null);
    stream.push("response.created", json!({"response": started}), Duration::ZERO);
    stream.push("response.in_progress", json!({"response": started}), Duration::ZERO);
    for (index, item) in output.iter().enumerate() {
        let mut opened = item.clone();
        opened["status"] = json!("in_progress");
        if field(item, "type") == "message" {
            opened["content"] = json!([]);
            stream.push("response.output_item.added", json!({"output_index": index, "item": opened}), Duration::ZERO);
            stream.text(index, item, &text, pause);
        } else {
            opened["arguments"] = json!("");
            stream.push("response.output_item.added", json!({"output_index": index, "item": opened}), Duration::ZERO);
            let place = |key: &str, value: &Value| json!({"item_id": item["id"], "output_index": index, key: value});
            stream.push("response.function_call_arguments.delta", place("delta", &item["arguments"]), Duration::ZERO);
            stream.push(
                "response.function_call_arguments.done",
                place("arguments", &item["arguments"]),
                Duration::ZERO,
            );
        }
        stream.push("response.output_item.done", json!({"output_index": index, "item": item}), Duration::ZERO);
    }
    let done = response(id, conversation, "completed", &output, &usage(input, tokens(&text)));
    stream.push("response.completed", json!({"response": done}), Duration::ZERO);
    stream.frames
}

/// Frames with their type and a running number, which clients of this format check.
#[derive(Default)]
struct Numbered {
    frames: Vec<Frame>,
}

impl Numbered {
    fn push(&mut self, event: &'static str, mut data: Value, wait: Duration) {
        data["type"] = json!(event);
        data["sequence_number"] = json!(self.frames.len());
        self.frames.push(Frame::named(event, &data).after(wait));
    }

    fn text(&mut self, index: usize, item: &Value, text: &str, pause: Duration) {
        let place = |key: &str, value: Value| json!({"item_id": item["id"], "output_index": index, "content_index": 0, key: value});
        let part = |text: &str| json!({"type": "output_text", "text": text, "annotations": []});
        self.push("response.content_part.added", place("part", part("")), Duration::ZERO);
        for piece in pieces(text) {
            self.push("response.output_text.delta", place("delta", json!(piece)), pause);
        }
        self.push("response.output_text.done", place("text", json!(text)), Duration::ZERO);
        self.push("response.content_part.done", place("part", part(text)), Duration::ZERO);
    }
}
