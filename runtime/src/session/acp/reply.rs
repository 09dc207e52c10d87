//! An agent's turn as text: what it says, the tools that it uses with what came of them, its plan. Pure; takes the
//! protocol's `session/update`s and gives the whole text of the message.

use std::fmt::Write;

use serde_json::Value;

use super::rpc::beginning;

/// The runtime stores messages up to this size.
const MAX_REPLY_BYTES: usize = 1024 * 1024;
/// Of a tool's output so much is part of the message.
const MAX_OUTPUT_BYTES: usize = 4 * 1024;
/// And so many lines.
const MAX_OUTPUT_LINES: usize = 40;
/// Blocks of one turn; what comes after them is left out.
const MAX_BLOCKS: usize = 4000;

/// What the agent has said and done in its turn so far.
#[derive(Debug, Default)]
pub(in crate::session) struct Reply {
    blocks: Vec<Block>,
    /// Of all text, about.
    bytes: usize,
}

#[derive(Debug)]
enum Block {
    /// Chunks of one message of the agent, which may name it.
    Text { message: Option<String>, text: String },
    /// A call of a tool.
    Tool(Tool),
    /// What the agent has in mind.
    Plan(String),
    /// What this host has to say about the turn.
    Note(String),
}

impl Block {
    /// The call with this id, if that is what this is.
    fn call(&mut self, id: &str) -> Option<&mut Tool> {
        match self {
            Self::Tool(tool) if tool.id == id => Some(tool),
            _ => None,
        }
    }
}

#[derive(Debug, Default)]
struct Tool {
    id: String,
    title: String,
    kind: String,
    status: String,
    output: String,
}

/// What people are shown of a tool call.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Shown {
    pub title: String,
    pub kind: String,
}

impl Reply {
    /// Takes in an update. False: the message stays as it is.
    pub(super) fn update(&mut self, update: &Value) -> bool {
        match text(update, "sessionUpdate") {
            "agent_message_chunk" => self.chunk(update),
            "tool_call" | "tool_call_update" => {
                self.tool(update);
                true
            }
            "plan" => self.plan(update),
            // What it thinks, which commands and modes it has, what it costs.
            _ => false,
        }
    }

    fn chunk(&mut self, update: &Value) -> bool {
        let content = spoken(&update["content"]);
        if content.is_empty() || self.bytes >= MAX_REPLY_BYTES {
            return false;
        }
        self.bytes += content.len();
        let named = update["messageId"].as_str();
        match self.blocks.last_mut() {
            Some(Block::Text { message, text }) if message.as_deref() == named => text.push_str(&content),
            _ => self.push(Block::Text { message: named.map(str::to_owned), text: content }),
        }
        true
    }

    /// A call, or what has changed of one: fields that are left out stay as they are. Also the call in a request for
    /// permission, which may come before the call itself.
    pub(super) fn tool(&mut self, call: &Value) -> Shown {
        let id = text(call, "toolCallId");
        let place = self.blocks.iter().rposition(|block| matches!(block, Block::Tool(tool) if tool.id == id));
        let place = place.unwrap_or_else(|| {
            self.push(Block::Tool(Tool { id: id.to_owned(), ..Tool::default() }));
            self.blocks.len() - 1
        });
        // Another block: there was no room for this one.
        let Some(tool) = self.blocks.get_mut(place).and_then(|block| block.call(id)) else {
            return Shown { title: text(call, "title").to_owned(), kind: "other".to_owned() };
        };
        for (field, value) in [("title", &mut tool.title), ("kind", &mut tool.kind), ("status", &mut tool.status)] {
            let new = text(call, field);
            if !new.is_empty() {
                beginning(new, MAX_OUTPUT_BYTES).clone_into(value);
            }
        }
        if let Some(output) = output(call) {
            self.bytes = (self.bytes + output.len()).saturating_sub(tool.output.len());
            tool.output = output;
        }
        let or = |text: &str, default: &str| if text.is_empty() { default.to_owned() } else { text.to_owned() };
        Shown { title: or(&tool.title, "a tool"), kind: or(&tool.kind, "other") }
    }

    /// A call that is not allowed; the agent may not say so itself.
    pub(super) fn rejected(&mut self, id: &str) {
        if let Some(tool) = self.blocks.iter_mut().rev().find_map(|block| block.call(id)) {
            "rejected".clone_into(&mut tool.status);
        }
    }

    fn plan(&mut self, update: &Value) -> bool {
        let mut lines = String::new();
        for entry in update["entries"].as_array().into_iter().flatten().take(MAX_OUTPUT_LINES) {
            let mark = match text(entry, "status") {
                "completed" => 'x',
                "in_progress" => '~',
                _ => ' ',
            };
            let _ = writeln!(lines, "- [{mark}] {}", beginning(text(entry, "content"), MAX_OUTPUT_BYTES));
        }
        let lines = lines.trim_end().to_owned();
        // A plan is always told as a whole.
        match self.blocks.iter_mut().rev().find(|block| matches!(block, Block::Plan(_))) {
            Some(known) => *known = Block::Plan(lines),
            None => self.push(Block::Plan(lines)),
        }
        true
    }

    /// What the turn ended with, where that was not the end of it.
    pub(super) fn note(&mut self, note: String) {
        // Always told: it says why there is no more.
        self.blocks.push(Block::Note(note));
    }

    fn push(&mut self, block: Block) {
        if self.blocks.len() < MAX_BLOCKS {
            self.blocks.push(block);
        }
    }

    /// The message.
    pub(super) fn render(&self) -> String {
        let mut whole = String::new();
        for block in &self.blocks {
            let part = match block {
                Block::Text { text, .. } | Block::Plan(text) | Block::Note(text) => text.trim().to_owned(),
                Block::Tool(tool) => tool.render(),
            };
            if part.is_empty() {
                continue;
            }
            if !whole.is_empty() {
                whole.push_str("\n\n");
            }
            whole.push_str(&part);
        }
        if whole.len() > MAX_REPLY_BYTES {
            const CUT: &str = "\n\n[the rest is left out]";
            whole.truncate(whole.floor_char_boundary(MAX_REPLY_BYTES - CUT.len()));
            whole.push_str(CUT);
        }
        whole
    }
}

impl Tool {
    fn render(&self) -> String {
        let title = if self.title.is_empty() { "a tool" } else { self.title.as_str() };
        let about = [self.kind.as_str(), self.status.as_str()].into_iter().filter(|part| !part.is_empty());
        let about = about.collect::<Vec<_>>().join(", ").replace('_', " ");
        let mut part = format!("[tool] {}", title.trim());
        if !about.is_empty() {
            let _ = write!(part, " ({about})");
        }
        for line in self.output.lines() {
            let _ = write!(part, "\n  {line}");
        }
        part
    }
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

/// A content block as text.
fn spoken(content: &Value) -> String {
    match text(content, "type") {
        "text" => text(content, "text").to_owned(),
        "resource_link" => format!("[{}]({})", text(content, "name"), text(content, "uri")),
        "resource" => text(&content["resource"], "text").to_owned(),
        kind @ ("image" | "audio") => format!("[{kind}]"),
        _ => String::new(),
    }
}

/// What came of a tool, if this update says it.
fn output(call: &Value) -> Option<String> {
    let mut whole = String::new();
    match call["content"].as_array() {
        Some(items) if !items.is_empty() => {
            for item in items {
                let part = match text(item, "type") {
                    "content" => spoken(&item["content"]),
                    "diff" => format!("changes {}", text(item, "path")),
                    _ => continue,
                };
                whole.push_str(beginning(part.trim_end(), MAX_OUTPUT_BYTES));
                whole.push('\n');
            }
        }
        _ => whole.push_str(beginning(call["rawOutput"].as_str()?, MAX_OUTPUT_BYTES)),
    }
    let short = beginning(&whole, MAX_OUTPUT_BYTES);
    let mut lines: Vec<&str> = short.trim_end().lines().collect();
    let cut = short.len() < whole.len() || lines.len() > MAX_OUTPUT_LINES;
    lines.truncate(MAX_OUTPUT_LINES);
    if cut {
        lines.push("…");
    }
    Some(lines.join("\n"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use serde_json::json;

    use super::*;

    fn chunk(text: &str, message: Option<&str>) -> Value {
        let content = json!({"type": "text", "text": text});
        json!({"sessionUpdate": "agent_message_chunk", "content": content, "messageId": message})
    }

    #[test]
    fn a_turn_reads_in_the_order_in_which_it_happened() {
        let mut reply = Reply::default();
        for update in [
            chunk("Let me ", Some("m1")),
            chunk("look.", Some("m1")),
            json!({"sessionUpdate": "agent_thought_chunk", "content": {"type": "text", "text": "hm"}}),
            json!({"sessionUpdate": "tool_call", "toolCallId": "t1", "title": "Preparing…", "kind": "edit",
                   "status": "pending", "content": []}),
            json!({"sessionUpdate": "tool_call", "toolCallId": "t2", "title": "ls", "kind": "execute",
                   "status": "in_progress"}),
            json!({"sessionUpdate": "tool_call_update", "toolCallId": "t1", "title": "Write a.txt",
                   "content": [{"type": "diff", "path": "a.txt", "oldText": null, "newText": "x"}]}),
            json!({"sessionUpdate": "tool_call_update", "toolCallId": "t1", "status": "completed"}),
            json!({"sessionUpdate": "tool_call_update", "toolCallId": "t2", "status": "failed",
                   "rawOutput": "no such\nfolder\n"}),
            json!({"sessionUpdate": "plan", "entries": [{"content": "one", "status": "pending"}]}),
            json!({"sessionUpdate": "plan", "entries": [{"content": "one", "status": "completed"}]}),
            chunk("Done.", Some("m1")),
            chunk("Really.", Some("m2")),
        ] {
            reply.update(&update);
        }
        reply.note("[cancelled]".to_owned());
        let expected = "Let me look.\n\n[tool] Write a.txt (edit, completed)\n  changes a.txt\n\n\
                        [tool] ls (execute, failed)\n  no such\n  folder\n\n- [x] one\n\nDone.\n\nReally.\n\n[cancelled]";
        assert_eq!(reply.render(), expected);
    }

    #[test]
    fn a_call_that_is_first_heard_of_in_a_request_for_permission_is_shown_once() {
        let mut reply = Reply::default();
        let shown = reply.tool(&json!({"toolCallId": "c", "title": "rm -r /", "kind": "execute", "status": "pending"}));
        assert_eq!(shown, Shown { title: "rm -r /".to_owned(), kind: "execute".to_owned() });
        reply.rejected("c");
        assert_eq!(reply.render(), "[tool] rm -r / (execute, rejected)");
        reply.update(&json!({"sessionUpdate": "tool_call", "toolCallId": "c", "status": "failed"}));
        assert_eq!(reply.render(), "[tool] rm -r / (execute, failed)");
        assert_eq!(reply.tool(&json!({})), Shown { title: "a tool".to_owned(), kind: "other".to_owned() });
    }

    #[test]
    fn long_turns_and_long_outputs_are_cut_and_say_so() {
        let mut reply = Reply::default();
        let output = "line\n".repeat(100_000);
        reply.update(&json!({"sessionUpdate": "tool_call", "toolCallId": "t", "title": "cat", "rawOutput": output}));
        assert_eq!(reply.render().lines().count(), 2 + MAX_OUTPUT_LINES);
        assert!(reply.render().ends_with("  …"));
        let many = "ü".repeat(100_000);
        for _ in 0..20 {
            reply.update(&chunk(&many, None));
        }
        let whole = reply.render();
        assert!(whole.len() <= MAX_REPLY_BYTES && whole.ends_with("[the rest is left out]"), "{}", whole.len());
        for number in 0..2 * MAX_BLOCKS {
            reply.update(&json!({"sessionUpdate": "tool_call", "toolCallId": number.to_string()}));
        }
        assert!(reply.blocks.len() <= MAX_BLOCKS);
    }
}
