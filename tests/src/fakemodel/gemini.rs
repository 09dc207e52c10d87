//! Gemini's `generateContent`: parse a request, render a reply whole or as a stream. Pure. The path names the model and
//! whether to stream; [`super::google`] puts both into the body.

use serde_json::{Value, json};

use super::script::{Conversation, Entry, Reply, Tool};
use super::wire::{Frame, field, pieces, text_of, tokens};

/// Reads a request; parts it does not know are skipped.
pub(super) fn parse(body: &Value) -> Result<Conversation, String> {
    let contents = body.get("contents").and_then(Value::as_array).ok_or("contents is not specified")?;
    let mut conversation = Conversation {
        model: field(body, "model").to_owned(),
        stream: body.get("stream").and_then(Value::as_bool).unwrap_or_default(),
        system: body.pointer("/systemInstruction/parts").map(text_of).unwrap_or_default(),
        ..Conversation::default()
    };
    let declared = body.get("tools").and_then(Value::as_array).into_iter().flatten();
    for tool in declared.filter_map(|tool| tool.get("functionDeclarations")?.as_array()).flatten() {
        let schema = tool.get("parametersJsonSchema").or_else(|| tool.get("parameters")).cloned().unwrap_or_default();
        conversation.tools.push(Tool { name: field(tool, "name").to_owned(), schema });
    }
    for content in contents {
        for part in content.get("parts").and_then(Value::as_array).into_iter().flatten() {
            push(&mut conversation, field(content, "role"), part);
        }
    }
    Ok(conversation)
}

fn push(conversation: &mut Conversation, role: &str, part: &Value) {
    if let Some(call) = part.get("functionCall") {
        conversation.entries.push(Entry::ToolCall(field(call, "name").to_owned()));
    } else if let Some(result) = part.pointer("/functionResponse/response") {
        let text = result.get("result").map_or_else(|| result.to_string(), text_of);
        conversation.entries.push(Entry::ToolResult { text, failed: false });
    } else if let Some(text) = part.get("text").and_then(Value::as_str).filter(|text| !text.is_empty()) {
        match role {
            "model" => conversation.entries.push(Entry::Assistant(text.to_owned())),
            _ => conversation.push_user(text),
        }
    }
}

fn response(id: u64, conversation: &Conversation, parts: &Value, last: Option<(usize, usize)>) -> Value {
    let mut candidate = json!({"content": {"role": "model", "parts": parts}, "index": 0});
    let mut body = json!({"modelVersion": conversation.model, "responseId": format!("resp_{id:08}")});
    if let Some((input, output)) = last {
        candidate["finishReason"] = "STOP".into();
        body["usageMetadata"] =
            json!({"promptTokenCount": input, "candidatesTokenCount": output, "totalTokenCount": input + output});
    }
    body["candidates"] = json!([candidate]);
    body
}

fn call(id: u64, name: &str, input: &Value) -> Value {
    json!({"functionCall": {"id": format!("call_{id:08}"), "name": name, "args": input}})
}

/// The answer in one piece.
pub(super) fn whole(id: u64, input: usize, conversation: &Conversation, reply: &Reply) -> Value {
    let (text, parts) = match reply {
        Reply::Text { text, .. } | Reply::Fail { message: text, .. } => (text, json!([{"text": text}])),
        Reply::Tool { say, name, input } => (say, json!([{"text": say}, call(id, name, input)])),
    };
    response(id, conversation, &parts, Some((input, tokens(text))))
}

/// The answer as a stream.
pub(super) fn frames(id: u64, input: usize, conversation: &Conversation, reply: &Reply) -> Vec<Frame> {
    let (text, pause) = match reply {
        Reply::Text { text, pause } => (text, *pause),
        Reply::Tool { say: text, .. } | Reply::Fail { message: text, .. } => (text, std::time::Duration::ZERO),
    };
    let frame = |parts: &Value, last| Frame::bare(response(id, conversation, parts, last).to_string());
    let mut frames: Vec<Frame> =
        pieces(text).into_iter().map(|piece| frame(&json!([{"text": piece}]), None).after(pause)).collect();
    let end = match reply {
        Reply::Tool { name, input, .. } => json!([call(id, name, input)]),
        _ => json!([{"text": ""}]),
    };
    frames.push(frame(&end, Some((input, tokens(text)))));
    frames
}
