//! The operator on a real cluster, as `cargo xtask up` installed it: what it makes, what it repairs within five
//! seconds, that it writes nothing when nothing changes, what it refuses, how it lets go, and who leads.
#![cfg(feature = "cluster")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use agentapi_tests::{
    cluster::eventually,
    tenant::{SETTLE, SYSTEM, Tenant, decoded},
};
use serde_json::{Value, json};
use std::time::Duration;

/// Everything in a tenant namespace that the operator owns.
const OWNED: [(&str, &str); 14] = [
    ("networkpolicy", "default-deny"),
    ("networkpolicy", "session-traffic"),
    ("networkpolicy", "ws-web"),
    ("resourcequota", "organization"),
    ("limitrange", "organization"),
    ("serviceaccount", "session"),
    ("serviceaccount", "default"),
    ("secret", "agentapi-database"),
    ("secret", "agentapi-data-key"),
    ("podtemplate", "ws-web"),
    ("rolebinding", "agentapi-operator-tenant"),
    ("rolebinding", "agentapi-runtime-tenant"),
    ("role", "agentapi-runtime-mcp"),
    ("rolebinding", "agentapi-runtime-mcp"),
];

#[tokio::test]
async fn a_deleted_object_is_back_within_five_seconds() {
    let tenant = Tenant::new("e2e-deleted").await;
    let data_key = tenant.get("secret", "agentapi-data-key").unwrap()["data"].clone();
    for (kind, name) in OWNED {
        let before = tenant.uid(kind, name);
        assert!(!before.is_empty(), "{kind} {name} was never made");
        tenant.cluster.kubectl(&["-n", &tenant.namespace(), "delete", kind, name, "--wait=false"]).unwrap();
        tenant
            .repaired(&format!("delete {kind} {name}"), || {
                let now = tenant.uid(kind, name);
                Ok(!now.is_empty() && now != before)
            })
            .await;
    }
    // A tenant's ciphertexts must not become unreadable because somebody deleted a Secret.
    assert_eq!(tenant.get("secret", "agentapi-data-key").unwrap()["data"], data_key);
    tenant.cluster.kubectl(&["delete", "namespace", &tenant.namespace(), "--timeout=60s"]).unwrap();
    for (kind, name) in OWNED {
        eventually(&format!("{kind} {name} after its namespace"), SETTLE, async || {
            Ok(if tenant.uid(kind, name).is_empty() { Err("missing".to_owned()) } else { Ok(()) })
        })
        .await
        .unwrap();
    }
}

#[tokio::test]
async fn an_edited_object_is_as_it_was_within_five_seconds() {
    let tenant = Tenant::new("e2e-edited").await;
    let namespace = tenant.namespace();
    // What is changed, how, and where the changed value is.
    let edits = [
        ("networkpolicy", "default-deny", r#"{"spec":{"podSelector":{"matchLabels":{"nobody":"has"}}}}"#, "/spec"),
        ("networkpolicy", "ws-web", r#"{"spec":{"egress":[{}]}}"#, "/spec"),
        ("resourcequota", "organization", r#"{"spec":{"hard":{"limits.cpu":"99"}}}"#, "/spec"),
        ("limitrange", "organization", r#"{"spec":{"limits":[]}}"#, "/spec"),
        ("serviceaccount", "session", r#"{"automountServiceAccountToken":true}"#, "/automountServiceAccountToken"),
        ("podtemplate", "ws-web", r#"{"template":{"spec":{"hostNetwork":true}}}"#, "/template"),
        ("podtemplate", "ws-web", r#"{"metadata":{"labels":{"agentapi.dev/workspace":null}}}"#, "/metadata/labels"),
        ("rolebinding", "agentapi-runtime-tenant", r#"{"subjects":[]}"#, "/subjects"),
        ("secret", "agentapi-data-key", r#"{"stringData":{"wrapped":"x"}}"#, "/data"),
        ("networkpolicy", "session-traffic", r#"{"metadata":{"labels":null}}"#, "/metadata/labels"),
    ];
    for (kind, name, patch, place) in edits {
        let value = |object: &Value| object.pointer(place).cloned();
        let before = tenant.get(kind, name).unwrap();
        tenant.cluster.kubectl(&["-n", &namespace, "patch", kind, name, "--type=merge", "-p", patch]).unwrap();
        tenant
            .repaired(&format!("edit {kind} {name}"), || {
                let now = tenant.get(kind, name);
                Ok(now.is_some_and(|now| value(&now) == value(&before)))
            })
            .await;
    }
    for label in ["pod-security.kubernetes.io/enforce=privileged", "agentapi.dev/organization-"] {
        tenant.cluster.kubectl(&["label", "namespace", &namespace, label, "--overwrite"]).unwrap();
        tenant
            .repaired(&format!("label namespace {label}"), || {
                let now = tenant.cluster.get("namespace", None, &namespace)?.unwrap();
                let labels = &now["metadata"]["labels"];
                Ok(labels["pod-security.kubernetes.io/enforce"] == "restricted"
                    && labels["agentapi.dev/organization"] == tenant.slug.as_str())
            })
            .await;
    }
}

#[tokio::test]
async fn the_roles_in_postgres_are_back_within_five_seconds() {
    let tenant = Tenant::new("e2e-roles").await;
    let right = "select count(*) from pg_roles r where rolname in ('org_e2e_roles', 'org_e2e_roles_ro')
        and not rolbypassrls and rolcanlogin = (rolname ~ '_ro$') and exists (select 1 from tenant_roles t
        where t.role_name = r.rolname) and exists (select 1 from pg_auth_members m where m.member = r.oid)";
    assert_eq!(tenant.sql(right), "2");
    for drift in [
        "drop role org_e2e_roles",
        "drop role org_e2e_roles_ro",
        "alter role org_e2e_roles login bypassrls",
        "revoke agentapi_tenant from org_e2e_roles",
        "delete from tenant_roles where role_name = 'org_e2e_roles'",
    ] {
        tenant.sql(drift);
        tenant.repaired(drift, || Ok(tenant.sql(right) == "2")).await;
    }
    // Whoever dropped the read-only role took its password along: the Secret has the new one.
    let secret = || decoded(&tenant.get("secret", "agentapi-database").unwrap()["data"]["password"]);
    let before = secret();
    tenant.sql("drop role org_e2e_roles_ro");
    tenant.repaired("a new password", || Ok(secret() != before)).await;
    let rotate = ["annotate", "organization", "e2e-roles", "agentapi.dev/rotate-credentials=now", "--overwrite"];
    let before = secret();
    tenant.cluster.kubectl(&rotate).unwrap();
    tenant.repaired("a rotated password", || Ok(secret() != before)).await;
}

#[tokio::test]
async fn nothing_is_written_when_nothing_changes() {
    let tenant = Tenant::new("e2e-steady").await;
    // The isolation probes have told what they found for the first time.
    tenant.says("organization", None, &tenant.slug, "IsolationVerified", "True", "Isolated").await;
    eventually("the usage counts the workspace", SETTLE, async || {
        let usage = &tenant.cluster.get("organization", None, &tenant.slug)?.unwrap_or_default()["status"]["usage"];
        Ok(if usage["workspaces"] == 1 { Ok(()) } else { Err(usage.to_string()) })
    })
    .await
    .unwrap();
    let versions = || -> Vec<String> {
        let mut seen: Vec<String> = OWNED
            .iter()
            .filter(|(kind, _)| *kind != "resourcequota")
            .map(|(kind, name)| version(&tenant.get(kind, name).unwrap()))
            .collect();
        seen.push(without_usage(tenant.cluster.get("organization", None, &tenant.slug).unwrap().unwrap()));
        seen.push(version(&tenant.cluster.get("workspace", Some(&tenant.team()), "web").unwrap().unwrap()));
        seen.push(version(&tenant.cluster.get("namespace", None, &tenant.namespace()).unwrap().unwrap()));
        seen
    };
    // What is under way right after the creation comes to an end; a round of probes is one of these things.
    let mut before = versions();
    eventually("the versions stand still for a round of probes", SETTLE, async || {
        tokio::time::sleep(Duration::from_secs(12)).await;
        let now = versions();
        let still = now == before;
        before = now;
        Ok(if still { Ok(()) } else { Err("something was written".to_owned()) })
    })
    .await
    .unwrap();
    // A reason to look at everything, and none to write: an annotation that we do not know.
    let annotate = ["annotate", "organization", &tenant.slug, "example.com/look=1"];
    tenant.cluster.kubectl(&annotate).unwrap();
    // What the probes found is written by others too: where it changed meanwhile, the time is taken again.
    for _ in 0..3 {
        let (found, annotated) = (isolation(&tenant), versions());
        tokio::time::sleep(Duration::from_secs(15)).await;
        let now = versions();
        if isolation(&tenant) == found {
            assert_eq!(now, annotated);
            return;
        }
    }
    panic!("the probes found something else each time: {}", isolation(&tenant));
}

/// What the probes say of the tenant.
fn isolation(tenant: &Tenant) -> Value {
    let object = tenant.cluster.get("organization", None, &tenant.slug).unwrap().unwrap();
    let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    let verified: Vec<&Value> = conditions.filter(|it| it["type"] == "IsolationVerified").collect();
    json!([verified, object["status"]["isolation"]])
}

/// The pod of a probe counts in the quota as long as it runs, so what is used may be told anew at any time.
fn without_usage(mut object: Value) -> String {
    object["metadata"]["resourceVersion"].take();
    object["status"]["usage"].take();
    object.to_string()
}

fn version(object: &Value) -> String {
    let meta = &object["metadata"];
    format!("{} {} {}", object["kind"], meta["name"], meta["resourceVersion"])
}

#[tokio::test]
async fn a_bad_reference_is_named_and_nothing_is_created() {
    let tenant = Tenant::new("e2e-refused").await;
    let team = tenant.team();
    let refused = async |namespace: &str, name: &str, reason: &str| {
        tenant.says("workspace", Some(namespace), name, "Accepted", "False", reason).await;
    };
    tenant.cluster.apply(&Tenant::workspace(&team, "e2e-ghost", "ghost")).unwrap();
    refused(&team, "ghost", "OrganizationNotFound").await;
    tenant.cluster.apply(&Tenant::workspace("default", "e2e-refused", "intruder")).unwrap();
    refused("default", "intruder", "NamespaceNotAllowed").await;
    assert_eq!(tenant.get("podtemplate", "ws-intruder"), None);
    // The quota is of two.
    for name in ["second", "third"] {
        tenant.cluster.apply(&Tenant::workspace(&team, "e2e-refused", name)).unwrap();
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }
    refused(&team, "third", "QuotaExceeded").await;
    assert_eq!(tenant.get("podtemplate", "ws-third"), None);
    // A name that is taken, from a namespace that becomes allowed.
    tenant.cluster.apply(&Tenant::workspace("default", "e2e-refused", "web")).unwrap();
    refused("default", "web", "NamespaceNotAllowed").await;
    let allow = r#"{"spec":{"allowedNamespaces":{"names":["team-e2e-refused","default"]}}}"#;
    tenant.cluster.kubectl(&["patch", "organization", "e2e-refused", "--type=merge", "-p", allow]).unwrap();
    refused("default", "web", "NameConflict").await;
    eventually("an Event", SETTLE, async || {
        let events = tenant.cluster.kubectl(&["-n", "default", "get", "events", "-o", "json"])?;
        let told = events.contains("NameConflict") && events.contains("choose another name");
        Ok(if told { Ok(()) } else { Err("none".to_owned()) })
    })
    .await
    .unwrap();

    let policy = |template: &str| {
        format!(
            "apiVersion: agentapi.dev/v1alpha1\nkind: PromptPolicy\nmetadata: {{name: rules, namespace: {team}}}\n\
             spec: {{scope: Organization, organizationRef: {{name: e2e-refused}}, template: {template:?}}}\n"
        )
    };
    tenant.cluster.apply(&policy("Be kind to {{ user }}.")).unwrap();
    tenant.ready("promptpolicy", Some(&team), "rules").await;
    tenant.cluster.apply(&policy("Be kind.\n{{ user | }}")).unwrap();
    tenant.says("promptpolicy", Some(&team), "rules", "Ready", "False", "TemplateInvalid").await;
    let bad = tenant.cluster.get("promptpolicy", Some(&team), "rules").unwrap().unwrap();
    assert!(bad["status"].to_string().contains("line 2, column 11"), "{}", bad["status"]);
    assert_eq!(tenant.sql("select template from prompt_policies where name = 'rules'"), "Be kind to {{ user }}.");
    for name in ["intruder", "web"] {
        tenant.cluster.kubectl(&["-n", "default", "delete", "workspace", name, "--timeout=60s"]).unwrap();
    }
}

#[tokio::test]
async fn deleting_lets_go_of_everything() {
    let tenant = Tenant::new("e2e-gone").await;
    let team = tenant.team();
    tenant.cluster.kubectl(&["-n", &team, "delete", "workspace", "web", "--timeout=60s"]).unwrap();
    assert_eq!(tenant.get("podtemplate", "ws-web"), None);
    assert_eq!(tenant.get("networkpolicy", "ws-web"), None);
    assert!(tenant.get("networkpolicy", "default-deny").is_some());
    let live = "select count(*) from workspaces where k8s_namespace = 'team-e2e-gone' and deleted_at is null";
    assert_eq!(tenant.sql(live), "0");

    tenant.cluster.kubectl(&["delete", "organization", "e2e-gone", "--timeout=90s"]).unwrap();
    assert_eq!(tenant.cluster.get("namespace", None, &tenant.namespace()).unwrap(), None);
    assert_eq!(tenant.sql("select count(*) from pg_roles where rolname ~ '^org_e2e_gone'"), "0");
    let retained = "select count(*) > 0 from organizations where slug = 'e2e-gone' and deleted_at is not null";
    assert_eq!(tenant.sql(retained), "t");

    tenant.cluster.apply(&tenant.organization("  deletionPolicy: Delete\n")).unwrap();
    tenant.ready("organization", None, "e2e-gone").await;
    let id = tenant.sql("select id from organizations where slug = 'e2e-gone' and deleted_at is null");
    tenant.cluster.kubectl(&["delete", "organization", "e2e-gone", "--timeout=90s"]).unwrap();
    assert_eq!(tenant.sql(&format!("select count(*) from organizations where id = '{id}'")), "0");
    let audit = format!("select count(*) from audit_log where org_id = '{id}' and action = 'organization.delete'");
    assert_eq!(tenant.sql(&audit), "1");
}

#[tokio::test]
async fn what_a_workspace_left_that_is_gone_is_swept() {
    let tenant = Tenant::new("e2e-orphans").await;
    // As if somebody had removed the finalizer of a Workspace by hand.
    let orphan = format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  name: ws-lost\n  namespace: {}\n  \
         labels: {{app.kubernetes.io/managed-by: agentapi-operator, agentapi.dev/organization: e2e-orphans, \
         agentapi.dev/workspace: lost, agentapi.dev/workspace-namespace: {}}}\nspec: {{podSelector: {{}}}}\n",
        tenant.namespace(),
        tenant.team()
    );
    tenant.cluster.apply(&orphan).unwrap();
    tenant.cluster.kubectl(&["annotate", "organization", "e2e-orphans", "example.com/look=1"]).unwrap();
    tenant.repaired("sweep ws-lost", || Ok(tenant.get("networkpolicy", "ws-lost").is_none())).await;
    assert!(tenant.get("networkpolicy", "ws-web").is_some(), "what is wanted stays");
}

#[tokio::test]
async fn when_the_leader_goes_the_other_replica_takes_over() {
    let tenant = Tenant::new("e2e-leader").await;
    let holder = || -> String {
        let lease = tenant.cluster.get("lease", Some(SYSTEM), "agentapi-operator").unwrap().expect("no Lease");
        lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned()
    };
    let leader = holder();
    tenant.cluster.kubectl(&["-n", SYSTEM, "delete", "pod", &leader, "--wait=false"]).unwrap();
    eventually("another replica leads", SETTLE, async || {
        let now = holder();
        Ok(if !now.is_empty() && now != leader { Ok(()) } else { Err(now) })
    })
    .await
    .unwrap();
    // Its name comes first, then what it has to know.
    let path = format!("/api/v1/namespaces/{SYSTEM}/pods/{}:8081/proxy/metrics", holder());
    eventually("the new leader is at work", SETTLE, async || {
        let seen = tenant.cluster.try_kubectl(&["get", "--raw", &path], "")?;
        let done = r#"agentapi_operator_reconciles_total{kind="Organization""#;
        Ok(if seen.stdout.contains(done) { Ok(()) } else { Err(seen.stderr) })
    })
    .await
    .unwrap();
    tenant.cluster.kubectl(&["-n", &tenant.namespace(), "delete", "networkpolicy", "default-deny"]).unwrap();
    eventually("the new leader repairs", Duration::from_secs(10), async || {
        Ok(if tenant.get("networkpolicy", "default-deny").is_some() { Ok(()) } else { Err("missing".to_owned()) })
    })
    .await
    .unwrap();
}
