//! Each fence between tenants is broken on purpose on the real cluster: IsolationVerified goes False and names the probe,
//! there are an Event, a metric and an audit row, the fence is put back, and the condition returns to True.
#![cfg(feature = "cluster")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use agentapi_tests::{
    cluster::{Cluster, eventually},
    tenant::Tenant,
};
use serde_json::Value;
use std::time::{Duration, Instant};

const SYSTEM: &str = "agentapi-system";
/// examples/demo/values.yaml: a round every 10 s. A loaded machine needs some seconds more.
const PERIOD: Duration = Duration::from_secs(20);
/// A breach stays visible for a period, and the next round has to come.
const HEALED: Duration = Duration::from_secs(60);

fn verified(cluster: &Cluster, slug: &str) -> (String, String) {
    let object = cluster.get("organization", None, slug).unwrap().expect("the Organization");
    let condition =
        object["status"]["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == "IsolationVerified");
    let text = |key: &str| condition.map_or("", |c| c[key].as_str().unwrap_or_default()).to_owned();
    (text("status"), text("message"))
}

async fn becomes(cluster: &Cluster, slug: &str, wanted: &str, part: &str, limit: Duration) -> String {
    eventually(&format!("IsolationVerified of {slug} is {wanted} with {part:?}"), limit, async || {
        let (status, message) = verified(cluster, slug);
        Ok(if status == wanted && message.contains(part) { Ok(message) } else { Err(format!("{status}: {message}")) })
    })
    .await
    .unwrap()
}

/// The probe's counter on the replica that leads.
fn breaches(cluster: &Cluster, slug: &str, probe: &str) -> u64 {
    let lease = cluster.get("lease", Some(SYSTEM), "agentapi-operator").unwrap().expect("the Lease");
    let leader = lease["spec"]["holderIdentity"].as_str().unwrap().to_owned();
    let path = format!("/api/v1/namespaces/{SYSTEM}/pods/{leader}:8081/proxy/metrics");
    let text = cluster.kubectl(&["get", "--raw", &path]).unwrap();
    let line = format!("agentapi_operator_isolation_breaches_total{{organization=\"{slug}\",probe=\"{probe}\"}} ");
    text.lines().find_map(|l| l.strip_prefix(&line)).and_then(|number| number.parse().ok()).unwrap_or_default()
}

struct Fence<'a> {
    probe: &'a str,
    finding: &'a str,
    down: &'a dyn Fn(),
    stands: &'a dyn Fn() -> bool,
}

/// Takes a fence down and sees everything that must follow.
async fn break_and_heal(tenant: &Tenant, fence: Fence<'_>) {
    let (cluster, slug) = (&tenant.cluster, tenant.slug.as_str());
    let Fence { probe, finding, down, stands } = fence;
    becomes(cluster, slug, "True", "", HEALED).await;
    assert!(stands(), "{finding}: the fence is down before the test");
    let (counted, began) = (breaches(cluster, slug, probe), Instant::now());
    down();
    let message = becomes(cluster, slug, "False", finding, PERIOD).await;
    assert!(message.contains(&format!("{probe}: ")), "{message}");
    let seen = began.elapsed();
    eventually(&format!("{finding}: repaired"), PERIOD, async || {
        Ok(if stands() { Ok(()) } else { Err("not yet".into()) })
    })
    .await
    .unwrap();
    println!(
        "{probe} ({finding}): seen after {} ms, repaired after {} ms",
        seen.as_millis(),
        began.elapsed().as_millis()
    );
    eventually(&format!("{finding}: counted"), PERIOD, async || {
        let now = breaches(cluster, slug, probe);
        Ok(if now > counted { Ok(()) } else { Err(format!("{now}")) })
    })
    .await
    .unwrap();
    // Events are sent in the background.
    eventually(&format!("{finding}: an Event"), PERIOD, async || {
        let events: Value = serde_json::from_str(&cluster.kubectl(&["get", "events", "-A", "-o", "json"])?)?;
        let told = events["items"].as_array().into_iter().flatten().any(|event| {
            event["reason"] == "IsolationBreached"
                && event["involvedObject"]["name"] == slug
                && event["message"].as_str().is_some_and(|note| note.contains(finding))
        });
        Ok(if told { Ok(()) } else { Err("none".to_owned()) })
    })
    .await
    .unwrap();
    let audit = format!(
        "select count(*) > 0 from audit_log where org_slug = '{slug}' and action = 'organization.isolation-breached'
         and detail ->> 'probe' = '{probe}' and position($x${finding}$x$ in detail ->> 'finding') > 0"
    );
    eventually(&format!("{finding}: a row in the audit log"), PERIOD, async || {
        let there = tenant.sql(&audit);
        Ok(if there == "t" { Ok(()) } else { Err(there) })
    })
    .await
    .unwrap();
    becomes(cluster, slug, "True", "", HEALED).await;
    // Nothing of this has made the tenant unusable.
    let ready = cluster.condition("organization", None, slug, "Ready").unwrap();
    assert_eq!(ready.map(|(status, _)| status).as_deref(), Some("True"));
}

#[tokio::test]
async fn fences_in_postgres() {
    let tenant = Tenant::new("e2e-fences").await;
    let yes = |query: &str| tenant.sql(query) == "t";
    for (finding, down, stands) in [
        (
            "policy sessions_read on public.sessions is missing",
            "drop policy sessions_read on sessions",
            "select exists (select from pg_policies where policyname = 'sessions_read')",
        ),
        (
            "row-level security of public.messages was changed",
            "alter table messages no force row level security",
            "select relforcerowsecurity from pg_class where oid = 'messages'::regclass",
        ),
        (
            "select on table public.mcp_oauth_tokens for agentapi_tenant_ro was added",
            "grant select on mcp_oauth_tokens to agentapi_tenant_ro",
            "select not has_table_privilege('agentapi_tenant_ro', 'mcp_oauth_tokens', 'select')",
        ),
        (
            "trigger audit_log_append_only on public.audit_log was changed",
            "alter table audit_log disable trigger audit_log_append_only",
            "select tgenabled = 'O' from pg_trigger where tgname = 'audit_log_append_only'
             and tgrelid = 'audit_log'::regclass",
        ),
    ] {
        let fence =
            Fence { probe: "postgres-fences", finding, down: &|| drop(tenant.sql(down)), stands: &|| yes(stands) };
        break_and_heal(&tenant, fence).await;
    }
}

#[tokio::test]
async fn fences_in_the_cluster() {
    let tenant = Tenant::new("e2e-cluster-fences").await;
    let (cluster, namespace) = (&tenant.cluster, tenant.namespace());
    let patch = |kind: &str, name: &str, patch: &str| {
        cluster.kubectl(&["-n", &namespace, "patch", kind, name, "--type=merge", "-p", patch]).unwrap();
    };
    let missing = |kind: &str, name: &str| tenant.get(kind, name).is_none();
    break_and_heal(
        &tenant,
        Fence {
            probe: "network-policies",
            finding: "NetworkPolicy default-deny is missing",
            down: &|| drop(cluster.kubectl(&["-n", &namespace, "delete", "networkpolicy", "default-deny"]).unwrap()),
            stands: &|| !missing("networkpolicy", "default-deny"),
        },
    )
    .await;
    break_and_heal(
        &tenant,
        Fence {
            probe: "network-policies",
            finding: "NetworkPolicy ws-web was changed by somebody else",
            down: &|| patch("networkpolicy", "ws-web", r#"{"spec":{"egress":[{}]}}"#),
            stands: &|| tenant.get("networkpolicy", "ws-web").unwrap()["spec"]["egress"][0]["to"].is_array(),
        },
    )
    .await;
    let open = format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: open, namespace: {namespace}}}\n\
         spec: {{podSelector: {{}}, policyTypes: [Ingress, Egress], ingress: [{{}}], egress: [{{}}]}}\n"
    );
    break_and_heal(
        &tenant,
        Fence {
            probe: "network-policies",
            finding: "NetworkPolicy open is not the operator's",
            down: &|| cluster.apply(&open).unwrap(),
            stands: &|| missing("networkpolicy", "open"),
        },
    )
    .await;
    let binding = format!(
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\nmetadata: {{name: helpful, namespace: {namespace}}}\n\
         roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: edit}}\n\
         subjects: [{{kind: ServiceAccount, name: session, namespace: {namespace}}}]\n"
    );
    break_and_heal(
        &tenant,
        Fence {
            probe: "role-bindings",
            finding: "RoleBinding helpful gives ServiceAccount session the role edit",
            down: &|| cluster.apply(&binding).unwrap(),
            stands: &|| missing("rolebinding", "helpful"),
        },
    )
    .await;
    let label = "pod-security.kubernetes.io/enforce";
    break_and_heal(
        &tenant,
        Fence {
            probe: "pod-security",
            finding: "is privileged and not restricted",
            down: &|| {
                let value = format!("{label}=privileged");
                drop(cluster.kubectl(&["label", "namespace", &namespace, &value, "--overwrite"]).unwrap());
            },
            stands: &|| {
                let live = cluster.get("namespace", None, &namespace).unwrap().unwrap();
                live["metadata"]["labels"][label] == "restricted"
            },
        },
    )
    .await;
}

/// A right that a binding of the whole cluster gives is the platform team's to take back: it is told, and stays told.
#[tokio::test]
async fn what_the_operator_can_not_repair_stays_visible() {
    let tenant = Tenant::new("e2e-rights").await;
    let (cluster, slug) = (&tenant.cluster, tenant.slug.as_str());
    becomes(cluster, slug, "True", "", HEALED).await;
    let binding = format!(
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata: {{name: e2e-rights}}\n\
         roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}}\n\
         subjects: [{{kind: ServiceAccount, name: session, namespace: {}}}]\n",
        tenant.namespace()
    );
    cluster.apply(&binding).unwrap();
    let message = becomes(cluster, slug, "False", "session may get secrets in all namespaces", HEALED).await;
    assert!(message.contains("service-accounts: "), "{message}");
    cluster.kubectl(&["delete", "clusterrolebinding", "e2e-rights"]).unwrap();
    becomes(cluster, slug, "True", "", HEALED).await;
}

/// A probe pod is placed as the pods of sessions are, is nobody's session, and finds nothing. What it would find is not
/// seen here, since a fence that is down is back before a pod has started: its judgement has a test of its own.
#[tokio::test]
async fn the_probe_pod_is_placed_as_a_session_pod_and_is_no_session() {
    let tenant = Tenant::new("e2e-probe").await;
    let (cluster, namespace) = (&tenant.cluster, tenant.namespace());
    let pod = eventually("a probe pod", HEALED, async || {
        // The first one may come before the Workspace is in place.
        let pods = cluster.list("pods", &namespace, "agentapi.dev/pool=probe,agentapi.dev/workspace=web")?;
        Ok(pods.into_iter().next().ok_or_else(|| "none".to_owned()))
    })
    .await
    .unwrap();
    let labels = &pod["metadata"]["labels"];
    assert_eq!(labels["app.kubernetes.io/component"], "session");
    assert_eq!(labels["agentapi.dev/workspace"], "web");
    assert!(labels["agentapi.dev/session"].is_null());
    assert_eq!(pod["spec"]["automountServiceAccountToken"], false);
    let mounts = &pod["spec"]["containers"][0]["volumeMounts"];
    assert!(mounts.as_array().is_none_or(Vec::is_empty), "{mounts}");
    becomes(cluster, &tenant.slug, "True", "", HEALED).await;
    let object = cluster.get("organization", None, &tenant.slug).unwrap().unwrap();
    let probes = object["status"]["isolation"]["probes"].as_array().unwrap().clone();
    assert_eq!(probes.len(), 9, "{probes:?}");
    assert!(probes.iter().all(|probe| probe["result"] == "Passed"), "{probes:?}");
    // Usage is counted in rounds of its own.
    eventually("usage without a session", HEALED, async || {
        let organization = cluster.get("organization", None, &tenant.slug)?.unwrap_or_default();
        let workspace = cluster.get("workspace", Some(&tenant.team()), "web")?.unwrap_or_default();
        let counted = [&organization["status"]["usage"]["sessions"], &workspace["status"]["sessions"]];
        Ok(if counted == [&Value::from(0), &Value::from(0)] { Ok(()) } else { Err(format!("{counted:?}")) })
    })
    .await
    .unwrap();
}

/// Rules that lead into the cluster or that the Organization does not list are named and not in force; the others are.
#[tokio::test]
async fn egress_is_cut_down_to_what_is_allowed() {
    let tenant = Tenant::new("e2e-egress").await;
    let (cluster, team) = (&tenant.cluster, tenant.team());
    let egress = r#"{"spec":{"egress":[{"cidr":"0.0.0.0/0","ports":[443]},{"cidr":"169.254.169.254/32"},
        {"namespace":"agentapi-demo"},{"cidr":"203.0.113.0/24"}]}}"#;
    cluster.kubectl(&["-n", &team, "patch", "workspace", "web", "--type=merge", "-p", egress]).unwrap();
    tenant.says("workspace", Some(&team), "web", "EgressAllowed", "False", "EgressNotAllowed").await;
    let object = cluster.get("workspace", Some(&team), "web").unwrap().unwrap();
    let conditions = object["status"]["conditions"].as_array().unwrap();
    let message = conditions.iter().find(|c| c["type"] == "EgressAllowed").unwrap()["message"].as_str().unwrap();
    assert!(message.contains("egress[1] (169.254.169.254/32) lies in 169.254.0.0/16"), "{message}");
    assert!(message.contains("egress[2] (namespace agentapi-demo) is not in spec.allowedEgress"), "{message}");
    assert!(!message.contains("egress[0]") && !message.contains("egress[3]"), "{message}");
    let policy = tenant.get("networkpolicy", "ws-web").unwrap();
    let rules = policy["spec"]["egress"].as_array().unwrap();
    assert_eq!(rules.len(), 2, "{policy}");
    let except = rules[0]["to"][0]["ipBlock"]["except"].as_array().unwrap();
    let excepted = |range: &str| except.iter().any(|each| each == range);
    assert!(excepted("169.254.0.0/16") && except.len() >= 4, "pods, Services and nodes: {except:?}");
    // With 0.0.0.0/0 open to all ports, a probe pod with this Workspace's labels still reaches nothing that it must not.
    let all = r#"{"spec":{"egress":[{"cidr":"0.0.0.0/0"}]}}"#;
    cluster.kubectl(&["-n", &team, "patch", "workspace", "web", "--type=merge", "-p", all]).unwrap();
    tenant.says("workspace", Some(&team), "web", "EgressAllowed", "True", "Accepted").await;
    let seen = || {
        cluster
            .list("pods", &tenant.namespace(), "agentapi.dev/pool=probe")
            .unwrap()
            .first()
            .map(|pod| pod["metadata"]["name"].as_str().unwrap_or_default().to_owned())
    };
    let before = seen();
    eventually("a probe pod after the change", HEALED, async || {
        let now = seen();
        Ok(if now.is_some() && now != before { Ok(()) } else { Err(format!("{now:?}")) })
    })
    .await
    .unwrap();
    eventually("its result", HEALED, async || Ok(if seen().is_none() { Ok(()) } else { Err("it runs".to_owned()) }))
        .await
        .unwrap();
    becomes(cluster, &tenant.slug, "True", "", HEALED).await;
    let list = r#"{"spec":{"allowedEgress":[]}}"#;
    cluster.kubectl(&["patch", "organization", &tenant.slug, "--type=merge", "-p", list]).unwrap();
    tenant.says("workspace", Some(&team), "web", "EgressAllowed", "False", "EgressNotAllowed").await;
}
