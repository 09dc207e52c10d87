//! Metrics, alerts, the dashboard and what the documentation says of them: the same names everywhere, queries that Prometheus
//! takes. Needs the program promtool (`PROMTOOL` or `PATH`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use agentapi_tests::chart::{program, repository};
use serde_json::{Value, json};
use std::{collections::BTreeSet, fs, process::Command};

/// Where the metrics are made.
const SOURCES: [&str; 3] = ["operator/src/metrics.rs", "runtime/src/metrics.rs", "runtime/src/metrics/connections.rs"];
const DASHBOARD: &str = "charts/agentapi/dashboards/agentapi.json";

fn read(path: &str) -> String {
    fs::read_to_string(repository(path)).unwrap()
}

/// Names of metrics in a text; of a histogram without what Prometheus puts behind it.
fn metrics(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("agentapi_")).map(|word| word.trim_end_matches("_bucket")).collect()
}

/// Those that the programs export: whatever is written there in quotation marks.
fn exported() -> BTreeSet<String> {
    let sources = SOURCES.map(read).concat();
    let names = sources.split('"').filter(|text| {
        text.starts_with("agentapi_") && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    });
    names.map(str::to_owned).collect()
}

fn panels() -> Vec<Value> {
    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).unwrap();
    dashboard["panels"].as_array().unwrap().clone()
}

fn promtool(args: &[&str], file: &std::path::Path) {
    let output = Command::new(program("PROMTOOL", "promtool").unwrap()).args(args).arg(file).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
}

#[test]
fn every_metric_has_a_panel_and_a_line_in_the_documentation_and_there_are_no_others() {
    let exported = exported();
    assert!(exported.len() > 25, "{exported:?}");
    for file in [DASHBOARD, "charts/agentapi/alerts/agentapi.rules.yaml", "docs/operations.md"] {
        let text = read(file);
        let named = metrics(&text);
        for metric in &named {
            assert!(exported.contains(*metric), "{file}: nothing exports {metric}");
        }
        if !file.contains("alerts") {
            let missing: Vec<_> = exported.iter().filter(|metric| !named.contains(metric.as_str())).collect();
            assert!(missing.is_empty(), "{file} has nothing of {missing:?}");
        }
    }
}

#[test]
fn every_panel_asks_what_prometheus_understands_and_has_a_place_of_its_own() {
    let panels = panels();
    let mut rules = Vec::new();
    let mut taken = BTreeSet::new();
    let mut ids = BTreeSet::new();
    for panel in &panels {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: its id is another panel's");
        let place = |name: &str| panel["gridPos"][name].as_u64().unwrap();
        for (x, y) in (0..place("w")).flat_map(|x| (0..place("h")).map(move |y| (x, y))) {
            assert!(taken.insert((place("x") + x, place("y") + y)), "{title} lies over another panel");
            assert!(place("x") + x < 24, "{title} is beyond the edge");
        }
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().unwrap();
            assert!(query.contains(r#"namespace="$namespace""#), "{title} asks about every installation: {query}");
            let query = query.replace("$__rate_interval", "5m").replace("$namespace", "agentapi-system");
            rules.push(json!({"record": format!("panel:{}", rules.len()), "expr": query}));
        }
    }
    assert!(rules.len() > 30, "{}", rules.len());
    let file = tempfile::NamedTempFile::with_suffix(".yaml").unwrap();
    let groups = json!({"groups": [{"name": "panels", "rules": rules}]});
    fs::write(file.path(), serde_yaml::to_string(&groups).unwrap()).unwrap();
    promtool(&["check", "rules"], file.path());
}

#[test]
fn alerts_fire_when_they_should() {
    promtool(&["test", "rules"], &repository("charts/agentapi/alerts/tests/agentapi.test.yaml"));
}
