//! A team that may write custom resources in its own namespace and wants more: payloads in every field that becomes a
//! name, a command, an environment, an image or an address. Each is refused with a reason, or stands in the tenant's own
//! namespace exactly as it was written.
#![cfg(feature = "cluster")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use agentapi_tests::attack::payloads;
use agentapi_tests::cluster::{Cluster, eventually};
use serde_json::{Value, json};

const TEAM: &str = "team-acme";
const TENANT: &str = "agentapi-acme";
const SETTLE: Duration = Duration::from_secs(60);

fn object(kind: &str, name: &str, spec: &Value) -> Value {
    let mut metadata = json!({ "name": name });
    if kind != "Organization" {
        metadata["namespace"] = json!(TEAM);
    }
    json!({ "apiVersion": "agentapi.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec })
}

fn workspace(change: impl FnOnce(&mut Value)) -> Value {
    let mut spec = json!({
        "organizationRef": { "name": "acme" }, "maxSessions": 1,
        "agent": { "type": "Claude", "image": "agentapi.dev/session-claude:dev" },
    });
    change(&mut spec);
    object("Workspace", "attack", &spec)
}

fn connection(change: impl FnOnce(&mut Value)) -> Value {
    let url = json!({ "url": "https://mcp.example.com/mcp" });
    let mut spec = json!({ "organizationRef": { "name": "acme" }, "transport": { "streamableHttp": url } });
    change(&mut spec);
    object("McpConnection", "attack", &spec)
}

fn organization(change: impl FnOnce(&mut Value)) -> Value {
    let identity = json!({ "issuer": "https://login.example.com", "audience": "agentapi" });
    let mut spec = json!({ "displayName": "Attack", "identity": identity });
    change(&mut spec);
    object("Organization", "attack", &spec)
}

fn dry_run(cluster: &Cluster, object: &Value) -> Result<(), String> {
    let out = cluster.try_kubectl(&["create", "--dry-run=server", "-f", "-"], &object.to_string()).unwrap();
    if out.ok { Ok(()) } else { Err(out.stderr) }
}

/// Names of everything that could be made by mistake, outside of the tenant's own namespace.
fn elsewhere(cluster: &Cluster) -> BTreeSet<String> {
    let kinds = "secrets,configmaps,serviceaccounts,roles,rolebindings,podtemplates,networkpolicies,persistentvolumeclaims,namespaces,\
                 clusterroles,clusterrolebindings";
    let names = cluster.kubectl(&[
        "get",
        kinds,
        "-A",
        "--no-headers",
        "-o",
        "custom-columns=K:.kind,S:.metadata.namespace,N:.metadata.name",
    ]);
    let names = names.unwrap();
    let own = |line: &&str| line.split_whitespace().nth(1) != Some(TENANT);
    // Helm's and the credentials' rotation is not what this looks for; names do not change by it.
    names.lines().filter(own).map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn what_no_honest_resource_says_is_refused_at_the_door() {
    let cluster = Cluster::connect().unwrap();
    for good in [workspace(|_| ()), connection(|_| ()), organization(|_| ())] {
        dry_run(&cluster, &good).unwrap();
    }
    let mut bad: Vec<Value> = Vec::new();
    for name in [
        "../x",
        "a/b",
        "A",
        "a.b",
        "a_b",
        "-a",
        "a-",
        "kube-system;",
        "a\nb",
        "'; drop table x; --",
        "$(id)",
        "{{x}}",
        "ａ",
    ] {
        for good in [workspace(|_| ()), connection(|_| ()), organization(|_| ())] {
            let mut named = good;
            named["metadata"]["name"] = json!(name);
            bad.push(named);
        }
    }
    for name in ["system", "demo", "acme-ro"] {
        let mut taken = organization(|_| ());
        taken["metadata"]["name"] = json!(name);
        bad.push(taken);
    }
    for namespace in ["agentapi-globex", "agentapi-system", "", "a/b", "*"] {
        bad.push(workspace(|spec| spec["egress"] = json!([{ "namespace": namespace }])));
    }
    for cidr in
        ["0.0.0.0/33", "10.0.0.0", "x", "10.0.0.0/8,0.0.0.0/0", "10.0.0.0/8\n", "::ffff:10.0.0.1/200", "010.0.0.0/8"]
    {
        bad.push(workspace(|spec| spec["egress"] = json!([{ "cidr": cidr }])));
    }
    for port in [0, -1, 65536] {
        bad.push(workspace(|spec| spec["egress"] = json!([{ "cidr": "203.0.113.0/24", "ports": [port] }])));
    }
    for name in ["AGENTAPI_LISTEN", "AGENTAPI_SESSION_PUBLIC_KEY", "A=B", "A B", "", "1A", "A-B", "$(X)", "A\n"] {
        bad.push(workspace(|spec| spec["agent"]["env"] = json!([{ "name": name, "value": "x" }])));
    }
    for secret in ["agentapi-database", "agentapi-data-key", "s-0192-session", ""] {
        bad.push(workspace(|spec| spec["agent"]["secretRefs"] = json!([secret])));
        bad.push(connection(|spec| {
            spec["auth"] = json!({ "bearer": { "secretRef": { "name": secret, "key": "k" } } });
        }));
    }
    for url in [
        "file:///etc/passwd",
        "gopher://x/",
        "javascript:alert(1)",
        "http://user:pass@x/",
        "http://x/ y",
        "//x",
        "",
        "ftp://x",
        "http:x",
    ] {
        bad.push(connection(|spec| spec["transport"] = json!({ "sse": { "url": url } })));
    }
    for header in ["Host", "Content-Length", "X: y", "X\r\nY", "", "transfer-encoding", "X Y"] {
        let auth = json!({ "apiKey": { "header": header, "secretRef": { "name": "s", "key": "k" } } });
        bad.push(connection(|spec| spec["auth"] = auth));
    }
    for address in ["file:///etc/passwd", "gopher://x", "data:,x", "x", "http:// x", "ldap://x"] {
        bad.push(organization(|spec| spec["identity"]["jwksUri"] = json!(address)));
        bad.push(organization(|spec| spec["identity"]["issuer"] = json!(address)));
    }
    bad.push(workspace(|spec| spec["agent"]["type"] = json!("Claude; id")));
    bad.push(workspace(|spec| spec["idleTimeout"] = json!("30m; id")));
    bad.push(workspace(|spec| spec["agent"]["command"] = json!(["x".repeat(5000)])));
    let mut taken = Vec::new();
    for object in bad {
        match dry_run(&cluster, &object) {
            Ok(()) => taken.push(object["metadata"]["name"].to_string() + &object["spec"].to_string()),
            // Refused for what it says, and not because the server broke over it.
            Err(why) => assert!(!why.contains("Internal error") && !why.contains("panic"), "{object}: {why}"),
        }
    }
    assert!(taken.is_empty(), "accepted:\n{}", taken.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_accepted_stands_as_it_was_written_and_nowhere_else() {
    let cluster = Cluster::connect().unwrap();
    let remove = || {
        for kind in ["workspace", "mcpconnection", "promptpolicy"] {
            let args = ["-n", TEAM, "delete", kind, "attack", "--ignore-not-found", "--timeout=60s"];
            assert!(cluster.try_kubectl(&args, "").unwrap().ok);
        }
    };
    remove();
    let before = elsewhere(&cluster);
    // NUL can't be in an environment, and kubectl reads what it is given as YAML, which knows no control characters.
    let canary: SocketAddr = "127.0.0.1:9".parse().unwrap();
    let texts = payloads::all(canary).into_iter().map(|payload| payload.text);
    let texts: Vec<String> =
        texts.filter(|text| text.len() < 1000 && !text.contains(['\0', '\u{9b}', '\u{feff}'])).take(60).collect();
    let env: Vec<Value> =
        texts.iter().enumerate().map(|(n, text)| json!({ "name": format!("P{n}"), "value": text })).collect();
    let command: Vec<&String> = texts.iter().take(60).collect();
    let mut attack = workspace(|spec| {
        spec["agent"]["env"] = json!(env);
        spec["agent"]["command"] = json!(command);
        spec["agent"]["image"] = json!("agentapi.dev/session-claude:dev");
        spec["agent"]["secretRefs"] = json!(["../../agentapi-system/agentapi-postgres", "a-secret-of-the-team"]);
        spec["runtimeClassName"] = Value::Null;
    });
    // What the team writes about its own object must not reach the objects that are made from it.
    attack["metadata"]["labels"] = json!({
        "agentapi.dev/organization": "globex", "app.kubernetes.io/component": "session", "app.kubernetes.io/managed-by": "agentapi-operator",
    });
    attack["metadata"]["annotations"] =
        json!({ "agentapi.dev/template-hash": "x", "agentapi.dev/rotate-credentials": "now" });
    let applied = cluster.try_kubectl(&["apply", "--server-side", "-f", "-"], &attack.to_string()).unwrap();
    assert!(applied.ok, "{}", applied.stderr);
    eventually("the operator has looked at it", SETTLE, async || {
        let seen = cluster.get("workspace", Some(TEAM), "attack")?.unwrap_or_default();
        let observed = seen["status"]["observedGeneration"] == seen["metadata"]["generation"];
        Ok(if observed { Ok(()) } else { Err(seen["status"].to_string()) })
    })
    .await
    .unwrap();
    if let Some(template) = cluster.get("podtemplate", Some(TENANT), "ws-attack").unwrap() {
        let container = &template["template"]["spec"]["containers"][0];
        let value = |name: &str| {
            let found = container["env"].as_array().unwrap().iter().find(|variable| variable["name"] == name);
            found.and_then(|variable| variable["value"].as_str()).unwrap_or_default().to_owned()
        };
        for (n, text) in texts.iter().enumerate() {
            // Doubled, every $ comes out of the kubelet as one, whatever follows it.
            assert_eq!(value(&format!("P{n}")), text.replace('$', "$$"), "{text:?}");
        }
        let argv: Vec<String> = serde_json::from_str(&value("AGENTAPI_AGENT_COMMAND").replace("$$", "$")).unwrap();
        assert!(argv.iter().eq(command.iter().copied()), "{argv:?}");
        assert_eq!(container["command"], json!(["agentapi-runtime", "session"]));
        assert_eq!(template["metadata"]["labels"]["agentapi.dev/organization"], "acme");
        assert_ne!(template["metadata"]["annotations"]["agentapi.dev/template-hash"], "x");
    }
    // Another tenant's organization, a policy for everybody, and an organization that is not there.
    let foreign =
        json!({ "organizationRef": { "name": "globex" }, "transport": { "sse": { "url": "https://x.example.com" } } });
    let global = json!({ "scope": "Global", "template": "{{ self }} {% for i in range(1000000000) %}x{% endfor %}" });
    for (kind, spec) in [("McpConnection", foreign), ("PromptPolicy", global)] {
        let object = object(kind, "attack", &spec);
        let applied = cluster.try_kubectl(&["apply", "--server-side", "-f", "-"], &object.to_string()).unwrap();
        assert!(applied.ok, "{}", applied.stderr);
        eventually(&format!("{kind} is not accepted"), SETTLE, async || {
            let seen = cluster.condition(&kind.to_lowercase(), Some(TEAM), "attack", "Accepted")?;
            Ok(if seen.as_ref().is_some_and(|(status, _)| status == "False") {
                Ok(())
            } else {
                Err(format!("{seen:?}"))
            })
        })
        .await
        .unwrap();
    }
    remove();
    eventually("nothing of it is left in the tenant's namespace", SETTLE, async || {
        Ok(if cluster.get("podtemplate", Some(TENANT), "ws-attack")?.is_none() {
            Ok(())
        } else {
            Err("still there".to_owned())
        })
    })
    .await
    .unwrap();
    let after = elsewhere(&cluster);
    // Other parts of the cluster live on; what counts is what names this attack.
    let made: Vec<&String> =
        after.difference(&before).filter(|name| name.contains("attack") || name.contains("acme")).collect();
    assert!(made.is_empty(), "made outside of the tenant's namespace: {made:?}");
}
