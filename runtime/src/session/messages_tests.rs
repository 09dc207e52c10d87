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

/// What an agent wrote to its terminal, and what was typed meanwhile. See `tests/fixtures/screens/README.md`.
struct Recording {
    agent: &'static str,
    bytes: Vec<u8>,
    steps: Vec<Step>,
}

fn folder(agent: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/screens").join(agent)
}

static RECORDINGS: LazyLock<Vec<Recording>> = LazyLock::new(|| {
    let read = |agent| {
        let steps = std::fs::read(folder(agent).join("steps.json")).unwrap();
        let bytes = std::fs::read(folder(agent).join("session.bytes")).unwrap();
        Recording { agent, bytes, steps: serde_json::from_slice(&steps).unwrap() }
    };
    ["claude", "codex", "droid"].map(read).into()
});

static UNCUT: LazyLock<Vec<Conversation>> =
    LazyLock::new(|| RECORDINGS.iter().map(|recording| replay(recording, &[], |_, _| ())).collect());

/// Plays a recording as the host would see it, with a snapshot after each of `cuts`; `between` may do something to the
/// terminal after each step.
fn replay(recording: &Recording, cuts: &[usize], between: impl Fn(&mut Terminal, &Step)) -> Conversation {
    let profile = profile(recording.agent).unwrap();
    let mut terminal = Terminal::new();
    let mut conversation = Conversation::new(at(0));
    let mut position = 0;
    let mut typed: Option<(String, Vec<String>)> = None;
    let mut second = 0;
    for step in &recording.steps {
        second += 1;
        if let Some(paste) = &step.paste {
            terminal.mark();
            typed = Some((paste.clone(), terminal.frame().screen().to_vec()));
        }
        // What is only typed is not sent; the host does not look at the screen then.
        if step.enter
            && let Some((text, before)) = typed.take()
        {
            conversation.user_message(&profile, &text, &before, at(second));
        }
        let mut ends: Vec<usize> = cuts.iter().copied().filter(|cut| (position..step.offset).contains(cut)).collect();
        ends.push(step.offset);
        for end in ends {
            terminal.feed(&recording.bytes[position..end]);
            position = end;
            if typed.is_none() {
                conversation.observe(&profile, &terminal.frame().lines, at(second));
            }
        }
        between(&mut terminal, step);
        if typed.is_none() {
            conversation.observe(&profile, &terminal.frame().lines, at(second));
            conversation.settle(at(second));
        }
    }
    conversation
}

fn contents(conversation: &Conversation) -> Vec<(Role, String)> {
    conversation.messages().iter().map(|message| (message.role, message.content.clone())).collect()
}

#[test]
fn conversations_as_recorded() {
    for (recording, conversation) in RECORDINGS.iter().zip(&*UNCUT) {
        let mut text = String::new();
        for message in conversation.messages() {
            writeln!(text, "=== {} {:?}\n{}", message.id, message.role, message.content).unwrap();
        }
        insta::assert_snapshot!(format!("{}_conversation_as_recorded", recording.agent), text);
    }
}

#[test]
fn every_message_is_answered_and_an_answer_that_was_given_before_is_given_again() {
    for (recording, conversation) in RECORDINGS.iter().zip(&*UNCUT) {
        let messages = conversation.messages();
        let typed: Vec<&String> = recording.steps.iter().filter_map(|step| step.paste.as_ref()).collect();
        let users: Vec<&String> =
            messages.iter().filter(|message| message.role == Role::User).map(|message| &message.content).collect();
        assert_eq!(users, typed, "{}", recording.agent);
        assert!(messages.iter().enumerate().all(|(index, it)| (it.role == Role::Agent) == (index % 2 == 0)));
        let answers: Vec<&String> =
            messages.windows(2).filter(|pair| pair[0].content == "recall").map(|pair| &pair[1].content).collect();
        assert_eq!(answers.len(), 2, "{}", recording.agent);
        assert_eq!(answers[0], answers[1], "{}", recording.agent);
        assert!(answers[0].contains("the blue door"), "{}: {answers:?}", recording.agent);
        // Neither the user's words nor the agent's frame are in an answer.
        for pair in messages.windows(2).filter(|pair| pair[0].role == Role::User) {
            let answer = &pair[1].content;
            let words = answer.trim_start_matches(|c: char| !c.is_alphanumeric());
            assert!(!words.starts_with(&pair[0].content), "{}: {answer}", recording.agent);
            assert!(
                !answer.contains("? for ") && !answer.contains("esc to interrupt"),
                "{}: {answer}",
                recording.agent
            );
        }
    }
}

#[test]
fn the_emulator_shows_what_an_independent_one_shows() {
    for recording in &*RECORDINGS {
        let mut terminal = Terminal::new();
        let mut position = 0;
        for (index, step) in recording.steps.iter().enumerate() {
            terminal.feed(&recording.bytes[position..step.offset]);
            position = step.offset;
            let file = folder(recording.agent).join("screens").join(format!("{:02}-{}.txt", index + 1, step.name));
            let expected = std::fs::read_to_string(file).unwrap();
            let trimmed = |line: &str| line.trim_end_matches([' ', '\u{a0}']).to_owned();
            let shown: Vec<String> = terminal.frame().screen().iter().map(|line| trimmed(line)).collect();
            let expected: Vec<String> = expected.trim_end().lines().map(trimmed).collect();
            assert_eq!(shown, expected, "{}, step {}", recording.agent, step.name);
        }
    }
}

/// An agent that draws everything anew, as some do when their window changes or their history is folded.
fn redraw(terminal: &mut Terminal) {
    let shown = terminal.frame().screen().join("\r\n");
    terminal.feed(format!("\x1b[2J\x1b[3J\x1b[H{shown}").as_bytes());
}

#[test]
fn drawing_everything_anew_changes_no_message() {
    for (recording, uncut) in RECORDINGS.iter().zip(&*UNCUT) {
        for name in ["long", "slow-done", "same-again", "interrupted"] {
            // The cursor is elsewhere afterwards, so what the agent draws next does not fit: only what is there counts.
            let last = recording.steps.iter().position(|step| step.name == name).unwrap();
            let steps = serde_json::from_slice::<Vec<Step>>(
                &std::fs::read(folder(recording.agent).join("steps.json")).unwrap(),
            );
            let steps = steps.unwrap().into_iter().take(last + 1).collect();
            let short = Recording { agent: recording.agent, bytes: recording.bytes.clone(), steps };
            let drawn = replay(&short, &[], |terminal, step| {
                if step.name == name {
                    redraw(terminal);
                }
            });
            let drawn = contents(&drawn);
            assert_eq!(drawn, contents(uncut)[..drawn.len()], "{} after {name}", recording.agent);
        }
    }
}

#[test]
fn ten_megabytes_of_a_reply_keep_their_end_and_the_messages_before() {
    let custom = profile("custom").unwrap();
    let mut terminal = Terminal::new();
    let mut conversation = Conversation::new(at(0));
    terminal.feed(b"Hello\r\n> ");
    conversation.observe(&custom, &terminal.frame().lines, at(0));
    terminal.mark();
    conversation.user_message(&custom, "much", terminal.frame().screen(), at(1));
    terminal.feed(b"much\r\n");
    let mut sent = 0;
    let mut line = 0;
    while sent < 10 * 1024 * 1024 {
        let mut chunk = String::new();
        for _ in 0..1000 {
            line += 1;
            writeln!(chunk, "line {line} of a reply that is longer than anybody wants to read it\r").unwrap();
        }
        sent += chunk.len();
        terminal.feed(chunk.as_bytes());
    }
    terminal.feed(b"> ");
    conversation.observe(&custom, &terminal.frame().lines, at(2));
    let messages = conversation.messages();
    assert_eq!(messages[0].content, "Hello");
    assert!(
        messages[2].content.ends_with(&format!("line {line} of a reply that is longer than anybody wants to read it"))
    );
    assert!(messages[2].content.len() < 1024 * 1024);
    // The next turn is as if nothing had been.
    terminal.mark();
    conversation.user_message(&custom, "little", terminal.frame().screen(), at(3));
    terminal.feed(b"little\r\nok\r\n> ");
    conversation.observe(&custom, &terminal.frame().lines, at(4));
    assert_eq!(conversation.messages()[4].content, "ok");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    /// However the bytes arrive and whenever the screen is looked at, the messages come out the same.
    #[test]
    fn chunks_do_not_matter(agent in 0usize..3, cuts in prop::collection::vec(0f64..1.0, 0..20)) {
        let recording = &RECORDINGS[agent];
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| (cut * recording.bytes.len() as f64) as usize).collect();
        cuts.sort_unstable();
        prop_assert_eq!(contents(&replay(recording, &cuts, |_, _| ())), contents(&UNCUT[agent]));
    }

    /// Characters of any width and any words: what the agent said is what its message says.
    #[test]
    fn any_words_come_through(words in prop::collection::vec("[a-z0-9é你字👍カ]{1,20}", 1..40)) {
        let custom = profile("custom").unwrap();
        let mut terminal = Terminal::new();
        let mut conversation = Conversation::new(at(0));
        terminal.feed(b"> ");
        conversation.user_message(&custom, "QUESTION", terminal.frame().screen(), at(1));
        terminal.feed(format!("QUESTION\r\n{}\r\n> ", words.join("\r\n")).as_bytes());
        conversation.observe(&custom, &terminal.frame().lines, at(2));
        prop_assert_eq!(&conversation.messages()[2].content, &words.join("\n"));
    }
}
