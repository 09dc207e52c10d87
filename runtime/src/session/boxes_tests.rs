#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use std::path::PathBuf;

use rstest::rstest;

use super::*;
use crate::session::{
    agents::profile,
    format::{Look, look},
};

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

/// A recorded screen of an agent, by the name of its step.
fn recorded(agent: &str, step: &str) -> Vec<String> {
    let folder =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/screens").join(agent).join("screens");
    // The file's name begins with the step's number.
    let is_it = |path: &PathBuf| {
        path.file_stem().unwrap().to_str().unwrap().split_once('-').is_some_and(|(_, name)| name == step)
    };
    let file = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).find(is_it).unwrap();
    lines(&std::fs::read_to_string(file).unwrap())
}

fn asked(agent: &str, screen: &[String]) -> Option<Question> {
    question(profile(agent).unwrap().permission.as_ref().unwrap(), screen)
}

fn answers(question: &Question) -> Vec<(&str, &str, &str)> {
    question.answers.iter().map(|it| (it.label.as_str(), it.kind.as_str(), it.keys.as_str())).collect()
}

#[test]
fn claude_asks_for_a_command_and_for_a_file() {
    let screen = recorded("claude", "permission");
    let command = asked("claude", &screen).unwrap();
    assert_eq!(command.title, "Bash command");
    assert_eq!(
        command.text,
        "Bash command\nRun what the user asked for\ntouch made-here && ls\nDo you want to proceed?"
    );
    let always = "Yes, and always allow access to /workspace from this project";
    assert_eq!(
        answers(&command),
        [("Yes", "allow_once", "1"), (always, "allow_always", "2"), ("No", "reject_once", "3")]
    );
    let file = asked("claude", &recorded("claude", "write-permission")).unwrap();
    assert_eq!(file.text, "Create file\nnew.txt\n1 some text\nDo you want to create new.txt?");
    assert_eq!(
        file.answers[1].label,
        "Yes, and switch to accept edits (auto-approve file edits and common file commands) for this session (shift+tab)"
    );
    assert_eq!(file.answers[1].kind, "allow_always");
}

#[test]
fn codex_asks_with_numbers_and_droid_in_a_frame() {
    let codex = asked("codex", &recorded("codex", "permission")).unwrap();
    assert_eq!(codex.title, "Would you like to run the following command?");
    assert!(codex.text.contains("$ touch made-here && ls"), "{}", codex.text);
    let kinds: Vec<&str> = codex.answers.iter().map(|answer| answer.kind.as_str()).collect();
    assert_eq!((kinds.first(), kinds.last()), (Some(&"allow_once"), Some(&"reject_once")));
    assert_eq!(codex.answers[0].keys, "1");
    let droid = asked("droid", &recorded("droid", "permission")).unwrap();
    assert_eq!(droid.title, "Command to approve · low risk");
    assert!(droid.text.contains("touch made-here && ls"), "{}", droid.text);
    let always = "Yes, and always allow low impact commands (file edits and read-only commands)";
    assert_eq!(
        answers(&droid),
        [
            ("Yes, allow", "allow_once", "\r"),
            (always, "allow_always", "\x1b[B\r"),
            ("No, cancel", "reject_once", "\x1b[B\x1b[B\r")
        ]
    );
}

#[rstest]
#[case("claude")]
#[case("codex")]
#[case("droid")]
fn only_a_box_is_a_question_and_it_takes_no_message(#[case] agent: &str) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/screens").join(agent);
    let mut boxes = 0;
    for entry in std::fs::read_dir(folder.join("screens")).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let screen = lines(&std::fs::read_to_string(entry.path()).unwrap());
        let is_box = name.ends_with("permission.txt");
        assert_eq!(asked(agent, &screen).is_some(), is_box, "{agent} {name}");
        if is_box {
            assert_eq!(look(&profile(agent).unwrap(), &screen), Look::Other, "{agent} {name}");
            boxes += 1;
        }
    }
    assert!(boxes >= 2, "{agent}: {boxes} boxes");
}

#[test]
fn a_list_in_what_is_asked_about_is_no_answer() {
    let screen = lines(
        "────────────────────\n Write file\n 1. one\n 2. two\n Do you want to create it?\n ❯ 1. Yes\n   2. No\n\n Esc to cancel",
    );
    let question = asked("claude", &screen).unwrap();
    assert_eq!(answers(&question), [("Yes", "allow_once", "1"), ("No", "reject_once", "2")]);
    assert_eq!(question.text, "Write file\n1. one\n2. two\nDo you want to create it?");
}

#[test]
fn what_only_says_the_same_words_is_no_box() {
    for text in [
        "● I see: Do you want to proceed?\n  1. Yes\n  2. No\n────────────────────\n❯ \n────────────────────\n  ? for shortcuts",
        "────────────────────\n Pick a theme\n ❯ 1. Dark\n   2. Light\n\n Esc to cancel",
        "────────────────────\n Do you want to proceed?\n ❯ 1. Yes\n\n Esc to cancel",
        "",
    ] {
        assert_eq!(asked("claude", &lines(text)), None, "{text}");
    }
}

#[test]
fn droid_asks_for_a_file_and_for_what_is_not_known_yet() {
    let frame = "╭──────────────╮\n│  Yes, allow  │\n│  No, cancel  │\n╰──────────────╯\n  ↑↓ navigate   Enter select   Esc cancel";
    let create =
        format!("   Create new.txt\nCreate new.txt: (+1 added)\n\n╭─────╮\n│  1   some text │\n╰─────╯\n\n{frame}");
    let question = asked("droid", &lines(&create)).unwrap();
    assert_eq!(question.text, "Create new.txt: (+1 added)\n1   some text");
    let other = format!("⛬  Calling it.\n\nSomething new to approve\n{frame}");
    let question = asked("droid", &lines(&other)).unwrap();
    assert!(question.text.ends_with("Something new to approve"), "{}", question.text);
    assert_eq!(answers(&question)[1], ("No, cancel", "reject_once", "\u{1b}[B\r"));
}
