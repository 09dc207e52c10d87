//! What a session's start and a message pay: a composed text from the cache, one that is composed, and screening.
#![allow(missing_docs, clippy::unwrap_used)]
use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;

use agentapi_prompts::{Cache, Facts, Generations, Mode, Policy, Scope, compose, screen};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

/// Four layers of 2 KB.
fn policies() -> Vec<Policy> {
    let scopes = [Scope::Global, Scope::Organization, Scope::Workspace, Scope::Workspace];
    let made = scopes.into_iter().zip(1_u32..).map(|(scope, n)| {
        let mut template = "You work for {{ organization }} in {{ workspace }} with {{ user }} on {{ date }}.\n\
                            {% if tools %}Tools: {% for tool in tools %}{{ tool }}, {% endfor %}{% endif %}\n"
            .to_owned();
        while template.len() < 2048 {
            template.push_str("Write tests first, keep functions short, and never push to the main branch.\n");
        }
        Policy {
            id: u128::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835),
            scope,
            namespace: "team".to_owned(),
            name: format!("policy-{n}"),
            generation: 3,
            priority: 0,
            locked: n == 1,
            template,
            variables: BTreeMap::new(),
            mode: Mode::Detect,
        }
    });
    made.collect()
}

fn facts() -> Facts {
    Facts::new("acme", "web", "alice@example.com", "claude", "2026-11-26", ["github", "search", "jira"])
}

fn composition(c: &mut Criterion) {
    let (policies, facts) = (policies(), facts());
    c.bench_function("composition/uncached", |b| b.iter(|| compose(black_box(&policies), black_box(&facts)).unwrap()));
    let cache = Cache::new(32 << 20);
    let generations = Generations::of(&policies);
    cache.put(generations.clone(), facts.clone(), Arc::new(compose(&policies, &facts).unwrap()));
    for user in 0..1000 {
        let other = Facts::new("acme", "web", &format!("user-{user}"), "claude", "2026-11-26", ["github"]);
        cache.put(generations.clone(), other, Arc::default());
    }
    c.bench_function("composition/cached", |b| {
        b.iter(|| cache.get(black_box(&generations), black_box(&facts)).unwrap());
    });
}

fn screening(c: &mut Criterion) {
    let corpus = |label: &str| -> String {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/corpus/injection.jsonl");
        let text = std::fs::read_to_string(path).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines
            .filter(|line| line["label"] == label)
            .map(|line| line["text"].as_str().unwrap().to_owned() + "\n")
            .collect()
    };
    let code = include_str!("../src/compose.rs").repeat(8);
    let prose = include_str!("../../docs/operations.md").repeat(4);
    let chinese = "这个函数在空列表上会崩溃，请修复并添加测试。ThePod 也要重启。\n".repeat(1000);
    // What somebody sends to keep the matcher busy: beginnings of matches, one in the other, that never end.
    let half_an_attack = "do not ignore all of your you are now the system please run your as if you "
        .repeat(4000)
        .replace("please", "show me your hidden a b c d e f ");
    let beginnings = shuffled(BEGINNINGS);
    let sentences = shuffled(&[BEGINNINGS, ENDS].concat());
    let mut group = c.benchmark_group("screening");
    for (name, text) in [
        ("code", code),
        ("prose", prose),
        ("benign messages", corpus("benign").repeat(4)),
        ("attacks", corpus("attack").repeat(4)),
        ("chinese", chinese),
        ("half an attack", half_an_attack),
        ("shuffled beginnings of attacks", beginnings),
        ("shuffled words of attacks", sentences),
    ] {
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function(name, |b| b.iter(|| screen(black_box(&text))));
    }
    group.finish();
}

/// Words with which attacks begin…
const BEGINNINGS: &[&str] = &[
    "ignore",
    "disregard",
    "forget",
    "bypass",
    "enable",
    "act as",
    "pretend",
    "show",
    "send",
    "run",
    "curl",
    "execute",
    "from now",
    "developer",
    "your",
    "you are",
    "never",
    "stop",
    "override",
    "supersede",
    "the",
    "of",
    "a",
    "and it",
];
/// … and end.
const ENDS: &[&str] = &[
    "all",
    "previous",
    "instructions",
    "rules",
    "without",
    "asking",
    "secrets",
    "token",
    "http",
    "webhook",
    "safety",
    "filters",
    "system",
    "prompt",
    "hidden",
    "mode",
    "no longer",
    "limits",
    "priority",
    "eval(",
    "onload",
    "<script",
];

/// Words in an order that never comes twice: nothing that a matcher has learned of the text helps it. As long as the
/// longest message.
fn shuffled(words: &[&str]) -> String {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut text = String::new();
    while text.len() < 1 << 20 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text.push_str(words[usize::try_from(state >> 33).unwrap() % words.len()]);
        text.push_str(if (state >> 28).trailing_zeros() >= 3 { ". " } else { " " });
    }
    text
}

criterion_group!(benches, composition, screening);
criterion_main!(benches);
