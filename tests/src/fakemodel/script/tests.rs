#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use rstest::rstest;

use super::*;

fn asked(entries: &[Entry], tools: Vec<Tool>) -> Reply {
    let conversation = Conversation { entries: entries.to_vec(), tools, ..Conversation::default() };
    reply(&conversation, Duration::from_millis(5))
}

fn user(text: &str) -> Entry {
    Entry::User(text.to_owned())
}

fn tool(name: &str, schema: Value) -> Tool {
    Tool { name: name.to_owned(), schema }
}

#[rstest]
#[case("echo: one\ntwo", "one\ntwo")]
#[case("remember the blue door", "I will remember the blue door.")]
#[case("recall", "I have nothing to recall.")]
#[case("long 2", "line 1\nline 2")]
#[case("good morning", "Hello from the fake model.")]
#[case("run: ls", "There is no tool to run commands on offer.")]
fn a_text_is_answered(#[case] text: &str, #[case] answer: &str) {
    assert_eq!(asked(&[user(text)], vec![]), said(answer));
}

#[test]
fn recall_needs_the_history_in_the_request() {
    let history = [user("remember a"), user("remember b"), Entry::Assistant("ok".into()), user("recall")];
    assert_eq!(asked(&history, vec![]), said("You asked me to remember b."));
}

#[rstest]
#[case(tool("Read", json!({})), json!({"file_path": "/a b"}))]
#[case(tool("read_file", json!({})), json!({"path": "/a b"}))]
#[case(tool("exec_command", json!({"properties": {"cmd": {}}})), json!({"cmd": "cat '/a b'"}))]
#[case(tool("shell", json!({"properties": {"command": {"type": "array"}}})), json!({"command": ["bash", "-lc", "cat '/a b'"]}))]
#[case(tool("shell_command", json!({"properties": {"command": {"type": "string"}}})), json!({"command": "cat '/a b'"}))]
fn a_file_is_read_with_the_agents_own_tool(#[case] offered: Tool, #[case] expected: Value) {
    let name_offered = offered.name.clone();
    let Reply::Tool { name, input, .. } = asked(&[user("read file /a b")], vec![offered]) else {
        panic!("no tool was called");
    };
    assert_eq!((name, input), (name_offered, expected));
}

#[test]
fn a_tool_result_is_quoted_without_line_numbers_and_reminders() {
    let result = "     1→alpha\n     2\tbeta\n3\t<system-reminder>be careful</system-reminder>";
    let history = [
        user("read file /x"),
        Entry::ToolCall("Read".into()),
        Entry::ToolResult { text: result.into(), failed: false },
    ];
    assert_eq!(asked(&history, vec![]), said("The file says: \"alpha\nbeta\""));
}

#[test]
fn a_failed_tool_is_said_to_have_failed() {
    let history = [user("run: false"), Entry::ToolResult { text: "exit 1".into(), failed: true }];
    assert_eq!(asked(&history, vec![]), said("The tool failed: exit 1"));
}

#[test]
fn slow_pauses_and_fail_fails() {
    let slow = Reply::Text { text: "word 1 word 2".into(), pause: Duration::from_millis(5) };
    assert_eq!(asked(&[user("slow 2")], vec![]), slow);
    assert!(matches!(asked(&[user("fail 529")], vec![]), Reply::Fail { status: 529, .. }));
}

#[test]
fn reminders_of_the_agent_are_not_the_users_words() {
    let mut conversation = Conversation::default();
    conversation.push_user("echo: hi");
    conversation.push_user("<system-reminder>echo: no</system-reminder>\n");
    assert_eq!(conversation.last_user(), Some("echo: hi"));
}

#[test]
fn pasted_text_is_the_users_text() {
    let mut conversation = Conversation::default();
    conversation.push_user("<pasted_content id=\"0a\">\necho: 1\n\n2\n</pasted_content id=\"0a\">");
    assert_eq!(conversation.last_user(), Some("echo: 1\n\n2"));
}
