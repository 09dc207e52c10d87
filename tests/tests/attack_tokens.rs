//! What a stolen ServiceAccount token of the operator or the runtime can do in a cluster with the chart and the tenant
//! acme: the work of its owner, and nothing beyond. Impersonation takes the place of the theft.
#![cfg(feature = "cluster")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use agentapi_crds::names::{
    SECRET_DATA_KEY, SECRET_DATABASE, SECRET_POSTGRES, SECRET_SESSION_SIGNING, SYSTEM_NAMESPACE,
};
use agentapi_tests::cluster::Cluster;
use serde_json::{Value, json};

const TENANT: &str = "agentapi-acme";
/// Words of the API server when RBAC or an admission policy refuses.
const REFUSALS: &[&str] = &["forbidden", "Forbidden", "ValidatingAdmissionPolicy"];

struct Thief {
    cluster: Cluster,
    identity: String,
}

impl Thief {
    fn of(account: &str) -> Self {
        let identity = format!("--as=system:serviceaccount:{SYSTEM_NAMESPACE}:{account}");
        Self { cluster: Cluster::connect().unwrap(), identity }
    }

    fn run(&self, args: &[&str], stdin: &str) -> Result<String, String> {
        let out = self.cluster.try_kubectl(&[&[self.identity.as_str()], args].concat(), stdin).unwrap();
        if out.ok { Ok(out.stdout) } else { Err(out.stderr) }
    }

    #[track_caller]
    fn refused(&self, args: &[&str]) {
        self.refused_object(args, &Value::Null);
    }

    #[track_caller]
    fn refused_object(&self, args: &[&str], object: &Value) {
        match self.run(args, &object.to_string()) {
            Ok(out) => panic!("kubectl {} {object} worked: {out}", args.join(" ")),
            Err(why) => assert!(REFUSALS.iter().any(|word| why.contains(word)), "refused for another reason: {why}"),
        }
    }

    #[track_caller]
    fn allowed(&self, args: &[&str], object: &Value) {
        if let Err(why) = self.run(args, &object.to_string()) {
            panic!("kubectl {} {object}: {why}", args.join(" "));
        }
    }
}

/// Dry runs pass admission like real requests and leave nothing behind.
const CREATE: &[&str] = &["create", "--dry-run=server", "-f", "-"];
/// A server-side apply reads nothing beforehand: one PATCH, whose answer would hold the object.
const PATCH: &[&str] = &["apply", "--server-side", "--force-conflicts", "--dry-run=server", "-o", "json", "-f", "-"];

fn secret(namespace: &str, name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name, "namespace": namespace } })
}

fn session_pod(change: impl FnOnce(&mut Value)) -> Value {
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "s-attack", "namespace": TENANT, "labels": { "app.kubernetes.io/component": "session" },
        },
        "spec": {
            "serviceAccountName": "session",
            "automountServiceAccountToken": false,
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 10001, "seccompProfile": { "type": "RuntimeDefault" },
            },
            "containers": [{
                "name": "agent",
                "image": "agentapi.dev/session-claude:dev",
                "securityContext": { "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } },
                "resources": {
                    "requests": { "cpu": "10m", "memory": "16Mi" }, "limits": { "cpu": "10m", "memory": "16Mi" },
                },
            }],
            "volumes": [{ "name": "session", "secret": { "secretName": "s-attack-session", "optional": true } }],
        },
    });
    change(&mut pod);
    pod
}

#[test]
fn the_runtimes_token_reads_no_key() {
    let runtime = Thief::of("agentapi-runtime");
    runtime.allowed(CREATE, &secret(TENANT, "s-attack-session"));
    for name in [SECRET_DATA_KEY, SECRET_DATABASE, "a-secret-of-the-team"] {
        runtime.refused(&["-n", TENANT, "get", "secret", name]);
        runtime.refused_object(PATCH, &secret(TENANT, name));
        runtime.refused_object(CREATE, &secret(TENANT, name));
    }
    // Only of what exists: for anything else the answer is that it does not.
    for name in [SECRET_DATA_KEY, SECRET_DATABASE] {
        runtime.refused(&["-n", TENANT, "delete", "secret", name, "--dry-run=server"]);
    }
    runtime.refused(&["-n", TENANT, "get", "secrets"]);
    for name in [SECRET_SESSION_SIGNING, SECRET_POSTGRES] {
        runtime.refused(&["-n", SYSTEM_NAMESPACE, "get", "secret", name]);
        runtime.refused_object(PATCH, &secret(SYSTEM_NAMESPACE, name));
    }
}

#[test]
fn the_runtimes_token_makes_no_pod_but_a_session_pod() {
    let runtime = Thief::of("agentapi-runtime");
    runtime.allowed(CREATE, &session_pod(|_| ()));
    let attacks: &[fn(&mut Value)] = &[
        |pod| pod["metadata"]["labels"] = json!({}),
        |pod| pod["spec"]["serviceAccountName"] = json!("default"),
        |pod| pod["spec"]["automountServiceAccountToken"] = json!(true),
        |pod| pod["spec"]["volumes"][0]["secret"]["secretName"] = json!(SECRET_DATA_KEY),
        |pod| {
            let sources = json!([{ "secret": { "name": SECRET_DATA_KEY } }]);
            pod["spec"]["volumes"][0] = json!({ "name": "p", "projected": { "sources": sources } });
        },
        |pod| pod["spec"]["containers"][0]["envFrom"] = json!([{ "secretRef": { "name": SECRET_DATABASE } }]),
        |pod| {
            let reference = json!({ "secretKeyRef": { "name": SECRET_DATA_KEY, "key": "key" } });
            pod["spec"]["containers"][0]["env"] = json!([{ "name": "KEY", "valueFrom": reference }]);
        },
        |pod| {
            let reference = json!({ "secretRef": { "name": "s-of-somebody-else-session" } });
            pod["spec"]["containers"][0]["envFrom"] = json!([reference]);
        },
        |pod| {
            let reference = json!({ "secretKeyRef": { "name": "s-of-somebody-else-session", "key": "token" } });
            pod["spec"]["initContainers"] = json!([pod["spec"]["containers"][0]]);
            pod["spec"]["initContainers"][0]["name"] = json!("first");
            pod["spec"]["initContainers"][0]["env"] = json!([{ "name": "KEY", "valueFrom": reference }]);
        },
        |pod| {
            let csi = json!({ "driver": "any.example", "nodePublishSecretRef": { "name": SECRET_DATA_KEY } });
            pod["spec"]["volumes"][0] = json!({ "name": "c", "csi": csi });
        },
        |pod| pod["spec"]["imagePullSecrets"] = json!([{ "name": SECRET_DATA_KEY }]),
        |pod| pod["spec"]["volumes"][0] = json!({ "name": "h", "hostPath": { "path": "/" } }),
        |pod| {
            let claim = json!({ "claimName": "s-somebody-data" });
            pod["spec"]["volumes"][0] = json!({ "name": "v", "persistentVolumeClaim": claim });
        },
        |pod| {
            let template = json!({ "spec": claim_spec() });
            pod["spec"]["volumes"][0] = json!({ "name": "v", "ephemeral": { "volumeClaimTemplate": template } });
        },
        |pod| pod["spec"]["hostNetwork"] = json!(true),
        |pod| pod["metadata"]["namespace"] = json!("kube-system"),
        |pod| pod["metadata"]["namespace"] = json!(SYSTEM_NAMESPACE),
    ];
    for attack in attacks {
        runtime.refused_object(CREATE, &session_pod(*attack));
    }
    runtime.refused(&["-n", SYSTEM_NAMESPACE, "get", "pods"]);
    runtime.refused(&["get", "pods", "-A"]);
    runtime.refused(&["get", "namespaces"]);
}

fn claim_spec() -> Value {
    json!({ "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Mi" } } })
}

#[test]
fn the_runtimes_token_makes_no_volume_but_an_empty_one_of_a_session() {
    let runtime = Thief::of("agentapi-runtime");
    let claim = |name: &str, change: fn(&mut Value)| {
        let metadata = json!({ "name": name, "namespace": TENANT });
        let mut claim =
            json!({ "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": claim_spec() });
        change(&mut claim["spec"]);
        claim
    };
    runtime.allowed(CREATE, &claim("s-attack-data", |_| ()));
    for name in ["ws-web", "data-agentapi-postgres-0"] {
        runtime.refused_object(CREATE, &claim(name, |_| ()));
    }
    let attacks: &[fn(&mut Value)] = &[
        |spec| spec["volumeName"] = json!("pv-of-somebody"),
        |spec| spec["dataSource"] = json!({ "kind": "PersistentVolumeClaim", "name": "s-somebody-data" }),
        |spec| spec["dataSourceRef"] = json!({ "kind": "PersistentVolumeClaim", "name": "s-somebody-data" }),
        |spec| spec["selector"] = json!({ "matchLabels": { "a": "b" } }),
        |spec| spec["accessModes"] = json!(["ReadWriteMany"]),
    ];
    for attack in attacks {
        runtime.refused_object(CREATE, &claim("s-attack-data", *attack));
    }
}

#[test]
fn the_operators_token_stays_in_tenants_namespaces() {
    let operator = Thief::of("agentapi-operator");
    let namespace = |name: &str| json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
    operator.allowed(CREATE, &namespace("agentapi-attack"));
    operator.refused_object(CREATE, &namespace("somewhere-else"));
    for name in ["team-acme", "kube-public", SYSTEM_NAMESPACE] {
        operator.refused(&["delete", "namespace", name, "--dry-run=server"]);
        operator.refused_object(PATCH, &namespace(name));
    }
    for namespace in ["kube-system", SYSTEM_NAMESPACE, "team-acme"] {
        operator.refused(&["-n", namespace, "get", "secrets"]);
    }
    operator.refused(&["-n", TENANT, "get", "secret", "a-secret-of-the-team"]);
    operator.refused(&["get", "secrets", "-A"]);
}

#[test]
fn the_operators_token_binds_only_the_tenants_roles_and_only_to_our_accounts() {
    let operator = Thief::of("agentapi-operator");
    let binding = |namespace: &str, role: &str, account: &str, home: &str| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": { "name": "attack", "namespace": namespace },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role },
            "subjects": [{ "kind": "ServiceAccount", "name": account, "namespace": home }],
        })
    };
    operator.allowed(CREATE, &binding(TENANT, "agentapi-runtime-tenant", "agentapi-runtime", SYSTEM_NAMESPACE));
    for (namespace, role, home) in [
        (TENANT, "cluster-admin", SYSTEM_NAMESPACE),
        (TENANT, "edit", SYSTEM_NAMESPACE),
        (TENANT, "agentapi-runtime-tenant", "team-acme"),
        ("kube-system", "agentapi-runtime-tenant", SYSTEM_NAMESPACE),
        (SYSTEM_NAMESPACE, "agentapi-operator-tenant", SYSTEM_NAMESPACE),
        ("team-acme", "agentapi-operator-tenant", SYSTEM_NAMESPACE),
    ] {
        operator.refused_object(CREATE, &binding(namespace, role, "default", home));
    }
    let mut cluster_wide = binding(TENANT, "agentapi-runtime-tenant", "agentapi-runtime", SYSTEM_NAMESPACE);
    cluster_wide["kind"] = json!("ClusterRoleBinding");
    cluster_wide["metadata"] = json!({ "name": "attack" });
    operator.refused_object(CREATE, &cluster_wide);
}

#[test]
fn the_operators_token_gives_the_runtime_named_secrets_of_a_tenant_and_nothing_else() {
    let operator = Thief::of("agentapi-operator");
    let role = |namespace: &str, name: &str, rules: Value| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": { "name": name, "namespace": namespace },
            "rules": rules,
        })
    };
    let get = |names: Value| json!([{ "apiGroups": [""], "resources": ["secrets"], "resourceNames": names, "verbs": ["get"] }]);
    let ours = "agentapi-runtime-mcp";
    operator.allowed(PATCH, &role(TENANT, ours, get(json!(["github-app"]))));
    operator.allowed(PATCH, &role(TENANT, ours, json!([])));
    let bent = |key: &str, value: Value| {
        let mut rules = get(json!(["github-app"]));
        rules[0][key] = value;
        role(TENANT, ours, rules)
    };
    for attack in [
        role(TENANT, ours, get(json!([SECRET_DATA_KEY]))),
        role(TENANT, ours, get(json!([SECRET_DATABASE]))),
        role(TENANT, ours, get(json!(["w-web-1-session"]))),
        role(TENANT, ours, get(json!([]))),
        role(TENANT, "another", get(json!(["github-app"]))),
        role("team-acme", ours, get(json!(["github-app"]))),
        role(SYSTEM_NAMESPACE, ours, get(json!(["github-app"]))),
        bent("verbs", json!(["get", "list"])),
        bent("verbs", json!(["*"])),
        bent("resources", json!(["secrets", "configmaps"])),
        bent("apiGroups", json!(["*"])),
    ] {
        operator.refused_object(PATCH, &attack);
    }
}
