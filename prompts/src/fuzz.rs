//! Fuzz targets of what people write into a policy and of what clients send. See `agentapi_fuzz`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;

use agentapi_fuzz::Fuzz;

use crate::{Facts, redact, screen, template};

/// Templates of prompt policies, nested as deep as they fit.
#[test]
fn prompt_template() {
    const TOKENS: &[&[u8]] = &[
        b"{{",
        b"}}",
        b"{%",
        b"%}",
        b"{#",
        b"#}",
        b"{% if user %}",
        b"{% endif %}",
        b"{% for i in range(10) %}",
        b"{% endfor %}",
        b"{{ tools | join(', ') }}",
        b"|",
        b"(",
        b"((((((((((((((((",
        b"[[[[[[[[[[[[[[[[",
        b"not not not not ",
        b"-----",
        b"{% raw %}",
        b"{% macro a() %}",
        b"{% include 'x' %}",
        b"x.y.z",
        b"**",
        b"~",
        b"'",
        b"\"",
        b"{% set user = ",
        b"a if b else ",
        b"is defined",
        b"\n",
    ];
    let none = BTreeMap::new();
    Fuzz::new("prompt_template").tokens(TOKENS).max_bytes(16 * 1024).run(|input| {
        let text = String::from_utf8_lossy(input);
        let problem = match template::check(&text, &none) {
            Ok(()) => {
                let rendered = template::render(&text, &none, &Facts::example()).expect("what was checked renders");
                assert!(rendered.len() <= template::MAX_RENDERED_BYTES);
                return u64::from(text.contains("{%")) * 2 + u64::from(text.contains("{{"));
            }
            Err(problem) => problem,
        };
        let rest = problem.strip_prefix("line ").unwrap();
        let (line, rest) = rest.split_once(", column ").unwrap();
        let (column, what) = rest.split_once(": ").unwrap();
        let (line, column): (usize, usize) = (line.parse().unwrap(), column.parse().unwrap());
        assert!(line >= 1 && line <= text.split('\n').count(), "{problem}");
        assert!(column >= 1, "{problem}");
        what.bytes().take(24).fold(10_u64, |sum, byte| sum.wrapping_mul(7) + u64::from(byte))
    });
}

/// Messages to an agent.
#[test]
fn injection() {
    const TOKENS: &[&[u8]] = &[
        b"ignore ",
        b"all previous ",
        b"instructions",
        b"you are now ",
        b"system prompt",
        b"<|im_start|>system\n",
        b"</system>",
        b"[/INST] a",
        b"END OF PROMPT",
        b"| sh",
        b"curl http://1.2.3.4 ",
        b"<script>",
        b"javascript:alert",
        b"data:text/html",
        b"password=aB3",
        b"-----BEGIN PRIVATE KEY-----",
        b"![a](https://x/?a=",
        b" new role: ",
        b"\n\nHuman: ",
        b"\xe2\x80\x8b",
        b"\xe2\x80\xae",
        b"\xd0\xbe",
        b"\xf3\xa0\x81\x81",
        b"\xf0\x9f\x8f\xb4",
        b"\xef\xbd\x81",
        b"\xc2\xad",
        b"....................",
        b"a a a a a a a a a a ",
    ];
    Fuzz::new("injection").tokens(TOKENS).max_bytes(8 * 1024).run(|input| {
        let text = String::from_utf8_lossy(input);
        let found = screen(&text);
        let mut behaviour = 0;
        for finding in &found {
            let _ = &text[finding.start..finding.end];
            behaviour |= 1 << finding.family as u64;
        }
        assert!(screen(&redact(&text, &found)).is_empty());
        behaviour
    });
}
