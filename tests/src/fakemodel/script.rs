//! The script language: the user's last text decides the answer. Pure, no I/O.
//!
//! | text | answer |
//! | --- | --- |
//! | `echo: X` | X |
//! | `remember X`, later `recall` | X, found in the history that the request carries |
//! | `read file PATH` | a call of the agent's file-reading tool; its result is quoted back |
//! | `write file PATH: TEXT` | a call of the agent's file-writing tool; its result is quoted back |
//! | `run: COMMAND` | a call of the agent's shell tool; its output is quoted back |
//! | `call TOOL {json}` | a call of any tool on offer |
//! | `slow N` | N words with a pause before each |
//! | `long N` | N numbered lines at once |
//! | `fail STATUS` | that HTTP status |
//! | anything else | a short fixed answer |

use std::time::Duration;

use serde_json::{Value, json};

/// One turn of the history that a request carries.
#[derive(Debug, Clone, PartialEq)]
pub enum Entry {
    /// What the user wrote, without what the agent added around it.
    User(String),
    /// What the model said.
    Assistant(String),
    /// A tool the model called.
    ToolCall(String),
    /// What the tool answered; `failed` if it says so itself.
    ToolResult {
        /// The result as text.
        text: String,
        /// The agent marked it as an error.
        failed: bool,
    },
}

/// A tool on offer.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// The JSON schema of its input.
    pub schema: Value,
}

/// A request, whichever wire format it came in.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Conversation {
    /// The model asked for.
    pub model: String,
    /// Whether a stream was asked for.
    pub stream: bool,
    /// What the model is told before the first turn.
    pub system: String,
    /// The turns, oldest first.
    pub entries: Vec<Entry>,
    /// The tools on offer.
    pub tools: Vec<Tool>,
    /// Beginnings of the names of tools that are called without them.
    pub namespaces: Vec<String>,
}

/// What to answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// A text, each word after a pause.
    Text {
        /// The whole text.
        text: String,
        /// The pause.
        pause: Duration,
    },
    /// A tool call, after a sentence that announces it.
    Tool {
        /// The sentence.
        say: String,
        /// The tool's name.
        name: String,
        /// Its input.
        input: Value,
    },
    /// An HTTP error.
    Fail {
        /// The status.
        status: u16,
        /// The message in the body.
        message: String,
    },
}

impl Conversation {
    /// Adds a user turn unless nothing is left of it without the agent's own reminders.
    pub(super) fn push_user(&mut self, text: &str) {
        // Droid hands on what AGENTS.md says in a reminder.
        if text.contains("<coding_guidelines>") {
            self.push_system(text);
        }
        let text = without_paste_tags(&without_reminders(text));
        if !text.is_empty() {
            self.entries.push(Entry::User(text));
        }
    }

    /// Adds to what the model is told before the first turn.
    pub(super) fn push_system(&mut self, text: &str) {
        if !self.system.is_empty() {
            self.system.push_str("\n\n");
        }
        self.system.push_str(text);
    }

    /// The user's last text.
    pub fn last_user(&self) -> Option<&str> {
        self.entries.iter().rev().find_map(|entry| match entry {
            Entry::User(text) => Some(text.as_str()),
            _ => None,
        })
    }

    fn tool(&self, names: &[&str]) -> Option<&Tool> {
        names.iter().find_map(|name| self.tools.iter().find(|tool| tool.name.eq_ignore_ascii_case(name)))
    }
}

/// Decides the answer to a request.
pub fn reply(conversation: &Conversation, word_delay: Duration) -> Reply {
    let user = conversation.last_user().unwrap_or_default();
    let command = command(user);
    if let Some(Entry::ToolResult { text, failed }) = conversation.entries.last() {
        return said(quote(&command, text, *failed));
    }
    match command {
        Command::Echo(text) => said(text),
        Command::Remember(what) => said(format!("I will remember {what}.")),
        Command::Recall => said(recall(conversation)),
        Command::Read(path) => read(conversation, path),
        Command::Write(path, text) => write(conversation, path, text),
        Command::Run(line) => run(conversation, line, "Let me run that."),
        Command::Call(name, input) => match conversation.tool(&[name]) {
            Some(tool) => Reply::Tool { say: format!("Calling {name}."), name: tool.name.clone(), input },
            None => said(format!("There is no tool {name} on offer.")),
        },
        Command::Slow(words) => Reply::Text { text: counted("word", words, " "), pause: word_delay },
        Command::Long(lines) => said(counted("line", lines, "\n")),
        Command::Fail(status) => Reply::Fail { status, message: format!("asked to fail with {status}") },
        Command::Other => said("Hello from the fake model."),
    }
}

#[derive(Debug, PartialEq)]
enum Command<'a> {
    Echo(&'a str),
    Remember(&'a str),
    Recall,
    Read(&'a str),
    Write(&'a str, &'a str),
    Run(&'a str),
    Call(&'a str, Value),
    Slow(usize),
    Long(usize),
    Fail(u16),
    Other,
}

fn command(text: &str) -> Command<'_> {
    let text = text.trim();
    let after = |prefix: &str| text.strip_prefix(prefix).map(str::trim);
    if let Some(rest) = after("echo:") {
        Command::Echo(rest)
    } else if let Some(rest) = after("remember ") {
        Command::Remember(rest)
    } else if text == "recall" {
        Command::Recall
    } else if let Some(rest) = after("read file ") {
        Command::Read(rest)
    } else if let Some((path, content)) = after("write file ").and_then(|rest| rest.split_once(": ")) {
        Command::Write(path, content)
    } else if let Some(rest) = after("run:") {
        Command::Run(rest)
    } else if let Some((name, input)) = after("call ").and_then(|rest| rest.split_once(' ')) {
        serde_json::from_str(input).map_or(Command::Other, |input| Command::Call(name, input))
    } else if let Some(count) = after("slow ").and_then(|rest| rest.parse().ok()) {
        Command::Slow(count)
    } else if let Some(count) = after("long ").and_then(|rest| rest.parse().ok()) {
        Command::Long(count)
    } else if let Some(status) = after("fail ").and_then(|rest| rest.parse().ok()) {
        Command::Fail(status)
    } else {
        Command::Other
    }
}

fn said(text: impl Into<String>) -> Reply {
    Reply::Text { text: text.into(), pause: Duration::ZERO }
}

fn counted(noun: &str, count: usize, separator: &str) -> String {
    (1..=count).map(|number| format!("{noun} {number}")).collect::<Vec<_>>().join(separator)
}

fn recall(conversation: &Conversation) -> String {
    let remembered = conversation.entries.iter().rev().find_map(|entry| match entry {
        Entry::User(text) => match command(text) {
            Command::Remember(what) => Some(what),
            _ => None,
        },
        _ => None,
    });
    remembered
        .map_or_else(|| "I have nothing to recall.".to_owned(), |what| format!("You asked me to remember {what}."))
}

fn read(conversation: &Conversation, path: &str) -> Reply {
    let say = "Let me read that file.".to_owned();
    if let Some(tool) = conversation.tool(&["Read"]) {
        return Reply::Tool { say, name: tool.name.clone(), input: json!({"file_path": path}) };
    }
    if let Some(tool) = conversation.tool(&["read_file", "read"]) {
        return Reply::Tool { say, name: tool.name.clone(), input: json!({"path": path}) };
    }
    run(conversation, &format!("cat '{}'", path.replace('\'', r"'\''")), &say)
}

fn write(conversation: &Conversation, path: &str, text: &str) -> Reply {
    let say = "Let me write that file.".to_owned();
    if let Some(tool) = conversation.tool(&["Write"]) {
        return Reply::Tool { say, name: tool.name.clone(), input: json!({"file_path": path, "content": text}) };
    }
    if let Some(tool) = conversation.tool(&["write_file", "write"]) {
        return Reply::Tool { say, name: tool.name.clone(), input: json!({"path": path, "content": text}) };
    }
    said("There is no tool to write files on offer.")
}

fn run(conversation: &Conversation, line: &str, say: &str) -> Reply {
    let names = ["Bash", "exec_command", "shell_command", "shell", "container.exec", "run_shell_command", "execute"];
    let Some(tool) = conversation.tool(&names) else {
        return said("There is no tool to run commands on offer.");
    };
    let property = |name: &str| tool.schema.pointer(&format!("/properties/{name}"));
    let mut input = if property("cmd").is_some() {
        json!({"cmd": line})
    } else if property("command").and_then(|schema| schema.get("type")) == Some(&json!("array")) {
        json!({"command": ["bash", "-lc", line]})
    } else if property("description").is_some() {
        json!({"command": line, "description": "Run what the user asked for"})
    } else {
        json!({"command": line})
    };
    // What agents need in order to ask their user: codex runs the rest in a sandbox, droid wants a class of risk.
    let asks = [
        ("sandbox_permissions", "require_escalated"),
        ("justification", "The user asked for it."),
        ("riskLevelReason", "The user asked for it."),
        ("riskLevel", "low"),
    ];
    // Where it asks before each command anyway, Codex says so to the model, and refuses one that wants more.
    let anyway = conversation.system.contains("`approval_policy` is `unless-trusted`");
    for (name, value) in asks.into_iter().skip(if anyway { 2 } else { 0 }) {
        if property(name).is_some() {
            input[name] = json!(value);
        }
    }
    Reply::Tool { say: say.to_owned(), name: tool.name.clone(), input }
}

fn quote(command: &Command<'_>, result: &str, failed: bool) -> String {
    let result = without_reminders(&without_line_numbers(result));
    if failed {
        return format!("The tool failed: {result}");
    }
    match command {
        Command::Read(_) => format!("The file says: \"{result}\""),
        Command::Run(_) => format!("The command printed: \"{result}\""),
        _ => format!("The tool answered: \"{result}\""),
    }
}

/// File-reading tools number the lines (`   12→text` or with a tab); a quote is without the numbers.
fn without_line_numbers(text: &str) -> String {
    let bare = |line: &str| -> Option<String> {
        let (number, rest) = line.split_once(['→', '\t'])?;
        let number = number.trim_start();
        (!number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())).then(|| rest.to_owned())
    };
    let lines: Vec<_> = text.lines().map(|line| bare(line).unwrap_or_else(|| line.to_owned())).collect();
    lines.join("\n")
}

/// Agents put reminders of their own into the user's turn; the script must not see them.
fn without_reminders(text: &str) -> String {
    const OPEN: &str = "<system-reminder>";
    const CLOSE: &str = "</system-reminder>";
    let mut kept = String::new();
    let mut rest = text;
    while let Some((before, inside)) = rest.split_once(OPEN) {
        kept.push_str(before);
        rest = inside.split_once(CLOSE).map_or("", |(_, after)| after);
    }
    kept.push_str(rest);
    kept.trim().to_owned()
}

/// Claude Code wraps what was pasted over several lines in `<pasted_content id="…">` … `</pasted_content id="…">`.
fn without_paste_tags(text: &str) -> String {
    let mut kept = text.to_owned();
    for tag in ["<pasted_content", "</pasted_content"] {
        while let Some(start) = kept.find(tag) {
            let Some(length) = kept[start..].find('>') else { break };
            kept.replace_range(start..=start + length, "");
        }
    }
    kept.trim().to_owned()
}

#[cfg(test)]
mod tests;
