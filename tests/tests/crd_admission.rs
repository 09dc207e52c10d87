//! Each file of `tests/bad` is refused by the real API server, with the message that the file expects.
#![cfg(feature = "cluster")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use agentapi_tests::cluster::{Cluster, repo};

#[test]
fn every_bad_example_is_refused_with_a_message_that_helps() {
    let cluster = Cluster::connect().unwrap();
    let mut seen = 0;
    for entry in std::fs::read_dir(repo().join("tests/bad")).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let expected =
            text.lines().next().unwrap().strip_prefix("# expect: ").unwrap_or_else(|| {
                panic!("{}: the first line must be `# expect: <part of the message>`", path.display())
            });
        let out = cluster.try_kubectl(&["apply", "--dry-run=server", "--validate=strict", "-f", "-"], &text).unwrap();
        assert!(!out.ok, "{} was accepted: {}", path.display(), out.stdout);
        assert!(out.stderr.contains(expected), "{}: expected «{expected}», got «{}»", path.display(), out.stderr);
        seen += 1;
    }
    assert!(seen >= 30, "only {seen} bad examples");
}

#[test]
fn every_field_is_explained() {
    let cluster = Cluster::connect().unwrap();
    for kind in ["organizations", "workspaces", "mcpconnections", "promptpolicies"] {
        let text = cluster.kubectl(&["explain", "--recursive", &format!("{kind}.spec")]).unwrap();
        assert!(text.contains("FIELDS:"), "{text}");
        let crd = cluster.get("crd", None, &format!("{kind}.agentapi.dev")).unwrap().unwrap();
        let spec = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        undocumented(kind, spec);
    }
}

fn undocumented(path: &str, schema: &serde_json::Value) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        assert!(field["description"].as_str().is_some_and(|d| d.len() > 3), "{path} has no description");
        undocumented(&path, field);
        undocumented(&path, &field["items"]);
    }
}
