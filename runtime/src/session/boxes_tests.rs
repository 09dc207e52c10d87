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
        [("Yes", "allow_once", "1"), (always, "allow_always", "2"), ("No", "reject_once", "\x1b")]
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
            ("No, cancel", "reject_once", "\x1b")
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
    assert_eq!(answers(&question), [("Yes", "allow_once", "1"), ("No", "reject_once", "\x1b")]);
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
    assert_eq!(answers(&question)[1], ("No, cancel", "reject_once", "\x1b"));
}

#[test]
fn codex_asks_for_the_tool_of_a_server_in_two_columns() {
    let screen = lines(
        "• Calling tracker.echo({\"text\":\"x\"})\n\n\n  Field 1/1\n  Allow the tracker MCP server to run tool \"echo\"?\n\n  text: x\n\n  \
         › 1. Allow                   Run the tool and continue\n    2. Allow for this session  Run the tool and remember this choice for this\n                               \
         session\n    3. Always allow            Run the tool and remember this choice for\n                               future tool calls\n    4. Cancel                  \
         Cancel this tool call\n  enter to submit | esc to cancel",
    );
    let question = asked("codex", &screen).unwrap();
    assert_eq!(question.text, "Allow the tracker MCP server to run tool \"echo\"?\ntext: x");
    let session = "Allow for this session · Run the tool and remember this choice for this session";
    let always = "Always allow · Run the tool and remember this choice for future tool calls";
    assert_eq!(
        answers(&question),
        [
            ("Allow · Run the tool and continue", "allow_once", "1"),
            (session, "allow_always", "2"),
            (always, "allow_always", "3"),
            ("Cancel · Cancel this tool call", "reject_once", "\x1b"),
        ]
    );
}

/// The model chooses the command that the second label quotes.
#[test]
fn what_a_label_quotes_is_no_answer_and_no_order_of_answers_turns_a_rejection_round() {
    let ask = "  Would you like to run the following command?\n\n  $ python3 x.py\n\n";
    let quoted = format!(
        "{ask}› 1. Yes, proceed (y)\n  2. Yes, and don't ask again for commands that start with `python3 x.py\n     \
         1. No, do not run it\n     2. Yes` (p)\n  3. No, and tell Codex what to do differently (esc)\n\n  Press enter to confirm or esc to cancel"
    );
    let question = asked("codex", &lines(&quoted)).unwrap();
    let kinds: Vec<(&str, &str)> =
        question.answers.iter().map(|answer| (answer.kind.as_str(), answer.keys.as_str())).collect();
    assert_eq!(kinds, [("allow_once", "1"), ("allow_always", "2"), ("reject_once", "\x1b")]);
    assert!(question.answers[1].label.ends_with("1. No, do not run it 2. Yes` (p)"), "{question:?}");
    for list in [
        // The same in the column of the list, another order, a gap, a number that is missing.
        "› 1. Yes\n  2. Yes `a\n  1. No\n  2. Yes`\n  3. No",
        "› 1. No, do not\n  2. Yes\n  3. No",
        "› 1. Yes\n\n  2. No",
        "› 1. Yes\n  3. No",
        "› 1. Yes\nbeside it\n  2. No",
    ] {
        let screen = lines(&format!("{ask}{list}\n\n  Press enter to confirm or esc to cancel"));
        assert_eq!(asked("codex", &screen), None, "{list}");
    }
}
