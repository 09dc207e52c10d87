#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use rstest::rstest;

use super::*;
use crate::session::agents::profile;

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

fn message(agent: &str, before: &str, after: &str, user: &str) -> String {
    let profile = profile(agent).unwrap();
    reply(&profile, &body(&profile, &lines(before)), &lines(after), user)
}

const RULE: &str = "────────────────────────────────────────────────────────────────────────────────";

#[test]
fn only_new_lines_are_the_reply() {
    assert_eq!(message("custom", "Hello\n> ", "Hello\n> hi\nnice\nto meet\n> ", "hi"), "nice\nto meet");
}

#[test]
fn a_reply_equal_to_the_last_one_is_found() {
    let before = "Hello\n> hi\nnice\n> ";
    assert_eq!(message("custom", before, &format!("{before}hi\nnice\n> "), "hi"), "nice");
}

#[test]
fn lines_above_that_the_agent_rewrites_are_not_part_of_the_reply() {
    let shown = |verb: &str, end: &str| {
        let tools = (0..9).map(|i| format!("● {verb} file {i}")).collect::<Vec<_>>().join("\n");
        format!("{tools}\n\n{end}{RULE}\n❯ \n{RULE}\n  ? for shortcuts")
    };
    let (before, after) = (shown("Reading", ""), shown("Read", "❯ hi\n\n● Hello\n\n"));
    assert_eq!(message("claude", &before, &after, "hi"), "● Hello");
}

#[test]
fn a_quote_of_the_input_in_the_reply_stays() {
    let after = format!("❯ hi\n\n● You said:\n  ❯ hi\n  and I heard it\n{RULE}\n❯ \n{RULE}");
    assert_eq!(message("claude", "", &after, "hi"), "● You said:\n  ❯ hi\n  and I heard it");
}

#[test]
fn wrapped_and_reformatted_input_is_stripped() {
    let user = "Look at this, please, and be careful with the edges:\n\n```rust\nfn main() {}\n```\n\n- one\n- two";
    let after =
        "❯ Look at this, please, and be\n  careful with the edges:\n\n  fn main() {}\n\n  • one\n  • two\n\n● Done.";
    assert_eq!(message("claude", "", after, user), "● Done.");
}

#[test]
fn a_reply_that_follows_the_echo_directly_is_kept() {
    let after = "❯ read it\n\n  Read 1 file (ctrl+o to expand)\n\n● It says hello.";
    assert_eq!(message("claude", "", after, "read it"), "  Read 1 file (ctrl+o to expand)\n\n● It says hello.");
}

#[test]
fn a_placeholder_stands_for_a_long_paste() {
    let user = (0..50).map(|i| format!("line {i}")).collect::<Vec<_>>().join("\n");
    assert_eq!(message("claude", "", "❯ [Pasted text #1 +49 lines]\n\n● ok", &user), "● ok");
}

#[test]
fn input_without_letters_is_stripped_too() {
    assert_eq!(message("custom", "", "> ???\nWhat?\n> ", "???"), "What?");
    assert_eq!(message("custom", "", "> 你好\n你好！\n> ", "你好"), "你好！");
}

#[test]
fn spinners_are_no_text() {
    let after = format!("❯ hi\n\n●\n\n✽ Ruminating… (3s · ↓ 16 tokens)\n\n{RULE}\n❯ \n{RULE}\n  esc to interrupt");
    assert_eq!(message("claude", "", &after, "hi"), "");
    let codex = "› hi\n\n• Hello.\n\n  Worked for <1s • 12:43\n\n› Ask Codex to do anything\n\n  ? for shortcuts";
    assert_eq!(message("codex", "", codex, "hi"), "• Hello.");
    // A list item with an ellipsis is text: it is indented.
    assert_eq!(message("claude", "", "❯ hi\n● List:\n  * and so on…", "hi"), "● List:\n  * and so on…");
}

#[rstest]
#[case::rules("claude", &format!("text\n{RULE}\n❯ \n{RULE}\n  ? for shortcuts"))]
#[case::rules_with_input("claude", &format!("text\n{RULE}\n❯ several\n  lines\n{RULE}\n  ⏸ manual mode on"))]
#[case::frame("gemini", "text\n╭──────────╮\n│ > Type   │\n╰──────────╯\n~/work   gemini-2.5-pro")]
#[case::prompt_with_footer("codex", "text\n\n› Find a bug\n\n  ? for shortcuts")]
#[case::prompt("aider", &format!("text\n{RULE}\n> "))]
#[case::repl("custom", "text\n>>> ")]
#[case::square_frame("cursor", "text\n┌──────────┐\n│ → Plan   │\n└──────────┘\n  Auto")]
#[case::bar("opencode", "text\n┃\n┃  Ask anything\n┃\n  enter send")]
#[case::droid("droid", "text\n╭──────────╮\n│ >        │\n╰──────────╯\n ? for help")]
fn the_input_box_is_no_text_and_means_ready(#[case] agent: &str, #[case] screen: &str) {
    let profile = profile(agent).unwrap();
    assert_eq!(body(&profile, &lines(screen)), ["text"]);
    assert_eq!(look(&profile, &lines(screen)), Look::Waiting);
}

#[test]
fn a_table_in_a_reply_is_no_input_box() {
    let text = "● Here:\n  ┌──────┬──────┐\n  │ a    │ b    │\n  └──────┴──────┘";
    assert_eq!(body(&profile("claude").unwrap(), &lines(text)), lines(text));
}

#[test]
fn a_working_or_asking_agent_is_not_ready_and_its_words_do_not_matter() {
    let claude = profile("claude").unwrap();
    let busy = lines(&format!("text\n{RULE}\n❯ \n{RULE}\n  esc to interrupt"));
    assert_eq!(look(&claude, &busy), Look::Working);
    let says_so = lines(&format!("● Press esc to interrupt\n{RULE}\n❯ \n{RULE}\n  ? for shortcuts"));
    assert_eq!(look(&claude, &says_so), Look::Waiting);
    let asks = lines(&format!("text\n{RULE}\n Bash command\n Do you want to proceed?\n ❯ 1. Yes\n   2. No"));
    assert_eq!(look(&claude, &asks), Look::Other);
    assert_eq!(look(&claude, &[]), Look::Other);
}
