#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use std::{fmt::Write as _, path::PathBuf, sync::LazyLock};

use proptest::prelude::*;
use serde::Deserialize;

use super::*;
use crate::session::{agents::profile, screen::Terminal};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

#[test]
fn the_first_screen_is_message_zero() {
    let custom = profile("custom").unwrap();
    let mut conversation = Conversation::new(at(0));
    assert_eq!(conversation.messages().len(), 1);
    assert_eq!(conversation.observe(&custom, &lines("Hello\n> "), at(1)), Some(0));
    assert_eq!(conversation.observe(&custom, &lines("Hello\n> "), at(2)), None);
    assert_eq!(conversation.messages()[0].content, "Hello");
    assert_eq!(conversation.messages()[0].time, at(1));
}

#[test]
fn a_silent_agent_still_gets_its_turn() {
    let custom = profile("custom").unwrap();
    let mut conversation = Conversation::new(at(0));
    conversation.user_message(&custom, "x", &lines("> "), at(1));
    assert_eq!(conversation.observe(&custom, &lines("> x\n> "), at(2)), None);
    assert_eq!(conversation.settle(at(3)), Some(2));
    assert_eq!(conversation.settle(at(4)), None);
    assert_eq!(conversation.messages()[2].role, Role::Agent);
}

#[test]
fn after_a_restart_old_messages_stay_and_ids_go_on() {
    let custom = profile("custom").unwrap();
    let mut conversation = Conversation::new(at(0));
    conversation.observe(&custom, &lines("Hello\n> "), at(0));
    conversation.user_message(&custom, "a", &lines("Hello\n> "), at(1));
    conversation.observe(&custom, &lines("Hello\n> a\nanswer\n> "), at(2));
    let saved = conversation.messages().to_vec();

    let mut restored = Conversation::restore(saved.clone(), at(9));
    assert_eq!(restored.observe(&custom, &lines("Hello again\n> "), at(10)), None);
    assert_eq!(restored.settle(at(10)), None);
    assert_eq!(restored.messages(), saved);
    assert_eq!(restored.user_message(&custom, "b", &lines("Hello again\n> "), at(11)), 3);
    assert_eq!(restored.observe(&custom, &lines("Hello again\n> b\nmore\n> "), at(12)), Some(4));
    assert_eq!(restored.messages()[4].content, "more");
}

#[test]
fn a_conversation_that_has_not_begun_starts_over() {
    let mut saved = Conversation::new(at(0)).messages().to_vec();
    saved[0].content = "old screen".to_owned();
    let mut restored = Conversation::restore(saved, at(1));
    assert_eq!(restored.observe(&profile("custom").unwrap(), &lines("new screen"), at(2)), Some(0));
}

#[derive(Deserialize)]
struct Step {
    name: String,
    paste: Option<String>,
    #[serde(default = "yes")]
    enter: bool,
    offset: usize,
}

fn yes() -> bool {
    true
}

static RECORDING: LazyLock<(Vec<u8>, Vec<Step>)> = LazyLock::new(|| {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/screens/claude");
    let steps = std::fs::read(folder.join("steps.json")).unwrap();
    (std::fs::read(folder.join("session.bytes")).unwrap(), serde_json::from_slice(&steps).unwrap())
});

static UNCUT: LazyLock<Conversation> = LazyLock::new(|| replay(&[]));

/// Plays a recording as the host would see it, with a snapshot after each of `cuts`.
fn replay(cuts: &[usize]) -> Conversation {
    let (bytes, steps) = &*RECORDING;
    let claude = profile("claude").unwrap();
    let mut terminal = Terminal::new();
    let mut conversation = Conversation::new(at(0));
    let mut position = 0;
    let mut typed: Option<(String, Vec<String>)> = None;
    let mut second = 0;
    for step in steps {
        second += 1;
        if let Some(paste) = &step.paste {
            terminal.mark();
            typed = Some((paste.clone(), terminal.frame().screen().to_vec()));
        }
        // What is only typed is not sent; the host does not look at the screen then.
        if step.enter
            && let Some((text, before)) = typed.take()
        {
            conversation.user_message(&claude, &text, &before, at(second));
        }
        let mut ends: Vec<usize> = cuts.iter().copied().filter(|cut| (position..step.offset).contains(cut)).collect();
        ends.push(step.offset);
        for end in ends {
            terminal.feed(&bytes[position..end]);
            position = end;
            if typed.is_none() {
                conversation.observe(&claude, &terminal.frame().lines, at(second));
            }
        }
        if typed.is_none() {
            conversation.settle(at(second));
        }
    }
    conversation
}

#[test]
fn claude_conversation_as_recorded() {
    let mut text = String::new();
    for message in UNCUT.messages() {
        writeln!(text, "=== {} {:?}\n{}", message.id, message.role, message.content).unwrap();
    }
    insta::assert_snapshot!(text);
}

#[test]
fn the_emulator_shows_what_an_independent_one_shows() {
    let (bytes, steps) = &*RECORDING;
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/screens/claude/screens");
    let mut terminal = Terminal::new();
    let mut position = 0;
    for (index, step) in steps.iter().enumerate() {
        terminal.feed(&bytes[position..step.offset]);
        position = step.offset;
        let expected = std::fs::read_to_string(folder.join(format!("{:02}-{}.txt", index + 1, step.name))).unwrap();
        let shown: Vec<String> =
            terminal.frame().screen().iter().map(|line| line.trim_end_matches([' ', '\u{a0}']).to_owned()).collect();
        let expected: Vec<String> =
            expected.trim_end().lines().map(|line| line.trim_end_matches([' ', '\u{a0}']).to_owned()).collect();
        assert_eq!(shown, expected, "step {}", step.name);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    /// However the bytes arrive and whenever the screen is looked at, the messages come out the same.
    #[test]
    fn chunks_do_not_matter(mut cuts in prop::collection::vec(0usize..58_778, 0..20)) {
        cuts.sort_unstable();
        let contents = |conversation: &Conversation| -> Vec<(Role, String)> {
            conversation.messages().iter().map(|message| (message.role, message.content.clone())).collect()
        };
        prop_assert_eq!(contents(&replay(&cuts)), contents(&UNCUT));
    }
}
