//! The table of values in the chart's README is made from values.yaml; this fails when they differ.
//! `UPDATE_DOCS=1 cargo test -p agentapi-tests --test chart_docs` writes it anew.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use agentapi_tests::chart::repository;
use serde_json::Value;
use std::{env, fmt::Write, fs};

const BEGIN: &str = "<!-- values: begin -->\n";
const END: &str = "<!-- values: end -->\n";

/// One row per key with a `# --` comment above it.
fn table(text: &str) -> String {
    let values: Value = serde_yaml::from_str(text).unwrap();
    let mut rows = String::from("| Value | Default | Meaning |\n|---|---|---|\n");
    let (mut path, mut comment): (Vec<(usize, &str)>, Option<&str>) = (Vec::new(), None);
    for line in text.lines() {
        let indent = line.len() - line.trim_start().len();
        let line = line.trim_start();
        if let Some(meaning) = line.strip_prefix("# -- ") {
            comment = Some(meaning);
            continue;
        }
        let Some((key, _)) = line.split_once(':').filter(|_| !line.starts_with(['#', '-'])) else {
            continue;
        };
        while path.last().is_some_and(|(outer, _)| *outer >= indent) {
            path.pop();
        }
        path.push((indent, key));
        if let Some(meaning) = comment.take() {
            let keys: Vec<_> = path.iter().map(|(_, key)| *key).collect();
            let value = keys.iter().fold(&values, |value, key| &value[*key]);
            writeln!(rows, "| `{}` | `{value}` | {} |", keys.join("."), meaning.replace('|', "\\|")).unwrap();
        }
    }
    rows
}

/// Keys without a comment of their own or of a key around them.
fn undocumented(value: &Value, at: &str, table: &str, missing: &mut Vec<String>) {
    for (key, value) in value.as_object().into_iter().flatten() {
        let path = format!("{at}{key}");
        if !table.contains(&format!("| `{path}` |")) {
            match value {
                Value::Object(inner) if !inner.is_empty() => undocumented(value, &format!("{path}."), table, missing),
                _ => missing.push(path),
            }
        }
    }
}

#[test]
fn the_table_of_values_is_current_and_complete() {
    let text = fs::read_to_string(repository("charts/agentapi/values.yaml")).unwrap();
    let table = table(&text);
    let mut missing = Vec::new();
    undocumented(&serde_yaml::from_str(&text).unwrap(), "", &table, &mut missing);
    assert!(missing.is_empty(), "values.yaml says nothing about {missing:?}; write a comment that starts with '# -- '");

    let file = repository("charts/agentapi/README.md");
    let readme = fs::read_to_string(&file).unwrap();
    let (before, rest) = readme.split_once(BEGIN).unwrap();
    let (_, after) = rest.split_once(END).unwrap();
    let current = format!("{before}{BEGIN}{table}{END}{after}");
    if env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&file, &current).unwrap();
    } else if readme != current {
        panic!(
            "charts/agentapi/README.md differs from values.yaml; run UPDATE_DOCS=1 cargo test -p agentapi-tests --test chart_docs"
        );
    }
}
