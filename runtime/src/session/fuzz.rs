//! Fuzz targets of what a session reads from outside: the agent's terminal, its screen, a client's `Last-Event-ID`,
//! multipart uploads, claims and saved state. See `agentapi_fuzz`; `cargo xtask fuzz` runs them for longer.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use agentapi_fuzz::Fuzz;
use jiff::Timestamp;

use super::{
    agents::{AgentProfile, profile},
    claim::Claim,
    events::{Body, Hub, Status},
    format,
    http::upload,
    messages::{Conversation, Role},
    screen::{COLUMNS, ROWS, Terminal},
    state::State,
};

const TERMINAL: &[&[u8]] = &[
    b"\x1b[",
    b"\x1b[2J",
    b"\x1b[3J",
    b"\x1b[H",
    b"\x1b[1000;80H",
    b"\x1b[?1049h",
    b"\x1b[?1049l",
    b"\x1b[?6h",
    b"\x1b[5;10r",
    b"\x1b[1000L",
    b"\x1b[1000M",
    b"\x1b[65535b",
    b"\x1b[65535@",
    b"\x1b[65535P",
    b"\x1b[65535X",
    b"\x1b[65535S",
    b"\x1b[65535T",
    b"\x1b[1;80H\xe5\xad\x97",
    b"\x1b7",
    b"\x1b8",
    b"\x1bc",
    b"\x1bM",
    b"\x1bD",
    b"\x1b]0;",
    b"\x1b]11;?\x07",
    b"\x1bP",
    b"\x1b\\",
    b"\x1b[6n",
    b"\x1b[38;2;1;2;3m",
    b"\r\n",
    b"\t",
    b"\x08",
    b"\x0b",
    b"\xe5\xad\x97",
    b"\xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x92\xbb",
    b"e\xcc\x81",
    b"\xff",
    b"\xc3",
];

/// Characters that the shapes of `format` look for.
const SCREEN: &[&[u8]] = &[
    "─".as_bytes(),
    "────────────────".as_bytes(),
    "╭──────╮".as_bytes(),
    "│ > ".as_bytes(),
    "╰──────╯".as_bytes(),
    "❯ ".as_bytes(),
    "› ".as_bytes(),
    "┃".as_bytes(),
    b"\n",
    b"\n\n",
    b"> ",
    b"esc to interrupt",
    b"Esc to cancel",
    b"\n  1. Yes\n  2. No\n",
    b"Do you want to ",
    b"Enter select",
    b"[Pasted text #1 +3 lines]",
    "●".as_bytes(),
    "⎿".as_bytes(),
    "✻".as_bytes(),
    b"  ",
    b"\t",
    "\u{a0}".as_bytes(),
];

const AGENTS: [&str; 13] = [
    "aider", "amazonq", "amp", "auggie", "claude", "codex", "copilot", "cursor", "custom", "droid", "gemini", "goose",
    "opencode",
];

fn profiles() -> Vec<AgentProfile> {
    AGENTS.iter().map(|name| profile(name).unwrap()).collect()
}

/// Small numbers for how much there is of something.
fn bucket(count: usize) -> u64 {
    u64::from(usize::BITS - count.leading_zeros())
}

/// Bytes as an agent's process writes them, in any pieces.
#[test]
fn terminal() {
    Fuzz::new("terminal").tokens(TERMINAL).run(|input| {
        // The first byte decides where the reads end.
        let (step, bytes) = input.split_first().map_or((1, input), |(first, rest)| (usize::from(*first).max(1), rest));
        let (mut whole, mut pieces) = (Terminal::new(), Terminal::new());
        let mut replies = whole.feed(bytes).len();
        let mut in_pieces = 0;
        for piece in bytes.chunks(step) {
            in_pieces += pieces.feed(piece).len();
        }
        let frame = whole.frame();
        assert_eq!(frame, pieces.frame(), "the pieces in which output arrives change what is shown");
        assert!(replies <= in_pieces, "answers were lost");
        assert!(frame.lines.len() <= 4000 + usize::from(ROWS));
        assert!(frame.screen().len() <= usize::from(ROWS));
        whole.mark();
        assert!(whole.frame().lines.len() <= usize::from(ROWS));
        // Whatever came before, a full reset gives a terminal that works.
        replies += whole.feed(b"\x18\x1b\\\x1bc\x1b[?1049l\x1bcworks").len();
        assert_eq!(whole.frame().screen_text(), "works");
        let longest = frame.lines.iter().map(|line| line.chars().count()).max().unwrap_or(0);
        bucket(frame.lines.len()) << 24
            | bucket(frame.screen_start) << 16
            | bucket(longest.min(usize::from(COLUMNS) * 8)) << 8
            | bucket(replies) << 4
            | u64::from(frame.bracketed_paste)
    });
}

/// A screen, what was on it before, and what the user wrote, for each agent.
#[test]
fn screen() {
    let profiles = profiles();
    Fuzz::new("screen").tokens(SCREEN).run(|input| {
        let text = String::from_utf8_lossy(input);
        let mut parts = text.splitn(3, '\u{1}');
        let mut lines = || parts.next().unwrap_or_default().lines().map(str::to_owned).collect::<Vec<_>>();
        let (user, before, after) = (lines().join("\n"), lines(), lines());
        let mut behaviour = 0_u64;
        for profile in &profiles {
            let body = format::body(profile, &after);
            assert!(body.len() <= after.len());
            let reply = format::reply(profile, &format::body(profile, &before), &after, &user);
            assert!(reply.lines().count() <= after.len());
            let look = format::look(profile, &after);
            let mut conversation = Conversation::new(Timestamp::UNIX_EPOCH);
            conversation.observe(profile, &before, Timestamp::UNIX_EPOCH);
            conversation.user_message(profile, &user, &before, Timestamp::UNIX_EPOCH);
            conversation.observe(profile, &after, Timestamp::UNIX_EPOCH);
            conversation.settle(Timestamp::UNIX_EPOCH);
            let roles: Vec<Role> = conversation.messages().iter().map(|message| message.role).collect();
            assert_eq!(roles, [Role::Agent, Role::User, Role::Agent]);
            assert_eq!(conversation.messages()[1].content, user);
            let seen = bucket(body.len()) * 64 + bucket(reply.len()) * 4 + look as u64;
            behaviour = behaviour.wrapping_mul(31).wrapping_add(seen);
        }
        behaviour
    });
}

/// An agent's data file, and a screen that is read with it.
#[test]
fn agent_file() {
    const TOKENS: &[&[u8]] = &[
        br#""permission":{"footers":[""],"starts":[],"options":"numbered","reject":""}"#,
        br#""permission":{"footers":[" "],"starts":[""],"asks":[""],"options":"framed","reject":""}"#,
        br#""input_box":"#,
        br#"{"kind":"rules","prompts":[""]}"#,
        br#"{"kind":"prompt","prompts":["> "],"footer":3}"#,
        br#"{"kind":"frame","contains":[]}"#,
        br#"{"kind":"bar","bar":""}"#,
        br#""noise":[{}]"#,
        br#""echo_prefixes":[""]"#,
        br#""paste_placeholders":[""]"#,
        br#""dynamic_header_rows":99999"#,
        br#""ready":{"any":[""]}"#,
        br#""rows_above_box":18446744073709551615"#,
        br#""any_screen_is_ready":true"#,
        b"null",
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
    ];
    let screen: Vec<String> =
        ["╭────╮", "│ > hi │", "╰────╯", "────────────────────", "> ", "────────────────────", "", "┃ x", "words"]
            .map(str::to_owned)
            .to_vec();
    Fuzz::new("agent_file").tokens(TOKENS).run(|input| match serde_json::from_slice::<AgentProfile>(input) {
        Err(error) => error.column().min(64) as u64,
        Ok(profile) => {
            let reply = format::reply(&profile, &screen[..3], &screen, "hi");
            1000 + bucket(reply.len()) * 8 + format::look(&profile, &screen) as u64
        }
    });
}

/// The id with which a client comes back.
#[test]
fn last_event_id() {
    let hub = Hub::new("e1".to_owned(), Some("e0-7".to_owned()));
    for _ in 0..2000 {
        hub.publish(Body::Status { status: Status::Stable, agent_type: "custom".to_owned() });
    }
    Fuzz::new("last_event_id").tokens(&[b"e1", b"-", b"e1-", b"e1-2000", b"+", b" "]).max_bytes(256).run(|input| {
        let text = String::from_utf8_lossy(input);
        let subscription = hub.subscribe(Some(&text));
        assert_eq!(subscription.sequence, 2000);
        let Some(missed) = subscription.missed else { return 0 };
        // Only an id that the hub made is resumed from, and nothing is left out behind it.
        let number: u64 = text.strip_prefix("e1-").expect("another sequence's id").parse().unwrap();
        assert!((976..=2000).contains(&number), "{number}");
        assert_eq!(missed.len() as u64, 2000 - number);
        assert!(missed.iter().map(|event| event.sequence).eq(number + 1..=2000));
        1 + bucket(missed.len())
    });
}

/// A multipart body as a client sends it.
#[test]
fn multipart() {
    const TOKENS: &[&[u8]] = &[
        b"--b\r\n",
        b"\r\n--b--\r\n",
        b"--b",
        b"\r\n\r\n",
        b"\r\n",
        b"Content-Disposition: form-data; name=\"file\"; filename=\"",
        b"name=\"file\"",
        b"filename*=UTF-8''",
        b"%2e%2e%2f",
        b"../",
        b"..\\",
        b"\"",
        b"\\\"",
        b"Content-Type: ",
        b"Content-Transfer-Encoding: base64",
        b"Content-Encoding: gzip",
        b"\xe2\x80\xae",
        b"\0",
        b";",
        b"\n",
    ];
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    Fuzz::new("multipart").tokens(TOKENS).run(|input| {
        match runtime.block_on(upload::parse_form(input.to_vec(), "b")) {
            Err(status) => u64::from(status.as_u16()),
            Ok((name, content)) => {
                assert!(!name.is_empty() && name.len() <= 200, "{name:?}");
                assert!(!name.contains(['/', '\\', '\0']) && !name.starts_with('.'), "{name:?}");
                assert!(!name.chars().any(char::is_control), "{name:?}");
                assert!(content.len() <= input.len());
                1000 + bucket(name.len()) * 64 + bucket(content.len())
            }
        }
    });
}

/// Claims come from the API, from a Secret and, like the saved state, from a folder that the agent can write to.
#[test]
fn claim_and_state() {
    const TOKENS: &[&[u8]] = &[
        br#""sessionId":"#,
        br#""env":{"A":"b"}"#,
        br#""token":null"#,
        br#""initialPrompt":"#,
        br#""version":1"#,
        br#""messages":["#,
        br#"{"id":0,"content":"","role":"agent","time":"2026-01-01T00:00:00Z"}"#,
        br#""role":"user""#,
        br#""AGENTAPI_X""#,
        br#""initial_prompt_state":"sending""#,
        br#""resume":"asked""#,
        b"null",
        b"[",
        b"]",
        b"{",
        b"}",
        b",",
        br#""\ud800""#,
    ];
    Fuzz::new("claim_and_state").tokens(TOKENS).run(|input| {
        let mut behaviour = 0;
        if let Ok(claim) = serde_json::from_slice::<Claim>(input) {
            behaviour |= 1;
            if claim.validate().is_ok() {
                behaviour |= 2;
                for (name, value) in claim.plain_env() {
                    assert!(!name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0'));
                }
            }
        }
        if let Ok(state) = serde_json::from_slice::<State>(input) {
            let messages = Conversation::restore(state.messages, Timestamp::UNIX_EPOCH).messages().to_vec();
            // Ids are places in the conversation, whatever the file says.
            assert!(messages.iter().enumerate().all(|(place, message)| message.id == place));
            behaviour |= 4 | bucket(messages.len()) << 3;
        }
        behaviour
    });
}
