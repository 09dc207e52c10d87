//! The chart agentapi as helm renders it: least rights, restricted pods, no secret where it does not belong.
//! Needs the program helm (`HELM` or `PATH`); no cluster.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use agentapi_tests::chart::{containers, items, name, of_kind, pod_templates, render, repository, selects, strings};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use std::{collections::BTreeSet, fs};

/// Everything that can be switched on.
const ALL_ON: &[&str] = &[
    "runtime.service.type=NodePort",
    "runtime.service.nodePort=30080",
    "runtime.ingress.enabled=true",
    "runtime.ingress.host=agentapi.example.com",
    "runtime.hs256.existingSecret=hs256",
    "monitoring.serviceMonitor.enabled=true",
    "monitoring.rules.enabled=true",
    "monitoring.dashboards.enabled=true",
];

const EXTERNAL: &[&str] = &["postgres.enabled=false", "database.existingSecret=my-database"];

/// Role, rule and the rest of each rule about Secrets. A change here is a change of what a stolen token can do.
#[test]
fn rights_over_secrets_are_these_and_no_others() {
    let objects = render(ALL_ON).unwrap();
    let mut found = BTreeSet::new();
    for role in of_kind(&objects, "ClusterRole").chain(of_kind(&objects, "Role")) {
        for rule in items(&role["rules"]).iter().filter(|rule| strings(&rule["resources"]).contains(&"secrets")) {
            let kind = role["kind"].as_str().unwrap();
            let (verbs, names) = (strings(&rule["verbs"]).join(" "), strings(&rule["resourceNames"]).join(" "));
            found.insert(format!("{kind} {}: {verbs}: {names}", name(role)));
        }
    }
    let expected = [
        "ClusterRole agentapi-operator-tenant: create: ",
        "ClusterRole agentapi-operator-tenant: get list watch patch delete: agentapi-database agentapi-data-key",
        "ClusterRole agentapi-runtime-tenant: create patch delete: ",
        "Role agentapi-operator: create: ",
        "Role agentapi-operator: get: agentapi-session-signing agentapi-audit-signing agentapi-master-key",
        "Role agentapi-operator: update: agentapi-session-signing agentapi-master-key",
    ];
    assert_eq!(found, expected.map(String::from).into());
    // The two tenant roles are bound per namespace by the operator and never by the chart.
    let bound: BTreeSet<_> = of_kind(&objects, "ClusterRoleBinding")
        .chain(of_kind(&objects, "RoleBinding"))
        .map(|binding| binding["roleRef"]["name"].as_str().unwrap())
        .collect();
    assert_eq!(bound, BTreeSet::from(["agentapi-operator"]));
}

#[test]
fn no_role_has_a_wildcard_or_a_verb_that_leads_to_more() {
    let objects = render(ALL_ON).unwrap();
    for role in of_kind(&objects, "ClusterRole").chain(of_kind(&objects, "Role")) {
        for rule in items(&role["rules"]) {
            let at = format!("{} {rule}", name(role));
            for key in ["apiGroups", "resources", "verbs", "resourceNames", "nonResourceURLs"] {
                assert!(strings(&rule[key]).iter().all(|word| !word.contains('*')), "wildcard: {at}");
            }
            let verbs = strings(&rule["verbs"]);
            assert!(!verbs.contains(&"impersonate"), "{at}");
            // The one Role whose content is narrowed by agentapi-operator-roles, below.
            assert!(
                !verbs.contains(&"escalate") || strings(&rule["resourceNames"]) == ["agentapi-runtime-mcp"],
                "{at}"
            );
            assert!(!verbs.contains(&"bind") || !items(&rule["resourceNames"]).is_empty(), "bind without names: {at}");
            for resource in strings(&rule["resources"]) {
                let inside = ["/exec", "/attach", "/portforward", "/proxy", "/ephemeralcontainers", "/token"];
                assert!(!inside.iter().any(|part| resource.ends_with(part)), "{at}");
            }
        }
    }
}

/// The operator may write into one Role what it may not do itself: then the API server has to look at what it writes.
#[test]
fn who_may_escalate_is_narrowed_by_a_policy_that_is_bound() {
    let objects = render(&[]).unwrap();
    let policy =
        of_kind(&objects, "ValidatingAdmissionPolicy").find(|it| name(it) == "agentapi-operator-roles").unwrap();
    assert_eq!(policy["spec"]["failurePolicy"], "Fail");
    let text = policy["spec"]["validations"].to_string();
    for part in
        ["r.verbs == ['get']", "r.resources == ['secrets']", "r.resourceNames.size() > 0", "agentapi-runtime-mcp"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    let bound = of_kind(&objects, "ValidatingAdmissionPolicyBinding")
        .any(|it| it["spec"]["policyName"] == "agentapi-operator-roles");
    assert!(bound, "the policy is not bound");
}

#[test]
fn every_pod_is_restricted_and_bounded() {
    for settings in [ALL_ON, EXTERNAL] {
        let objects = render(settings).unwrap();
        let templates = pod_templates(&objects);
        assert!(templates.len() >= 2);
        for (pod, template) in templates {
            let spec = &template["spec"];
            let context = &spec["securityContext"];
            assert_eq!(context["runAsNonRoot"], true, "{pod}");
            assert!(context["runAsUser"].as_i64().unwrap() > 0, "{pod}");
            assert_eq!(context["seccompProfile"]["type"], "RuntimeDefault", "{pod}");
            assert_eq!(spec["enableServiceLinks"], false, "{pod}");
            assert!(spec["automountServiceAccountToken"].is_boolean(), "{pod} must say whether it needs a token");
            for key in ["hostNetwork", "hostPID", "hostIPC"] {
                assert!(spec[key].is_null(), "{pod} {key}");
            }
            assert!(items(&spec["volumes"]).iter().all(|volume| volume["hostPath"].is_null()), "{pod}");
            for container in containers(template) {
                let at = format!("{pod}/{}", container["name"]);
                let context = &container["securityContext"];
                assert_eq!(context["allowPrivilegeEscalation"], false, "{at}");
                assert_eq!(context["readOnlyRootFilesystem"], true, "{at}");
                assert_eq!(context["capabilities"], json!({ "drop": ["ALL"] }), "{at}");
                assert!(container["resources"]["limits"]["memory"].is_string(), "{at} has no memory limit");
                assert!(container["resources"]["requests"]["cpu"].is_string(), "{at} has no CPU request");
            }
            for container in items(&spec["containers"]) {
                for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
                    assert!(container[probe].is_object(), "{pod}/{} has no {probe}", container["name"]);
                }
            }
        }
    }
}

#[test]
fn passwords_are_in_the_secret_only() {
    let objects = render(&[]).unwrap();
    let secret = of_kind(&objects, "Secret").next().unwrap();
    let value = |key: &str| String::from_utf8(STANDARD.decode(secret["data"][key].as_str().unwrap()).unwrap()).unwrap();
    let password = |url: &str| url.split([':', '@']).nth(2).unwrap().to_owned();
    let admin = value("postgres-password");
    let passwords: BTreeSet<_> = [
        admin.clone(),
        password(&value("admin-url")),
        password(&value("operator-url")),
        password(&value("runtime-url")),
    ]
    .into();
    assert_eq!(passwords.len(), 3, "the administrator's twice, the operator's, the runtime's");
    assert!(passwords.contains(&admin) && passwords.iter().all(|password| password.len() == 32));
    assert!(value("runtime-url").starts_with("postgres://agentapi_runtime:"));
    for object in objects.iter().filter(|object| object["kind"] != "Secret") {
        let text = object.to_string();
        assert!(!passwords.iter().any(|password| text.contains(password)), "{} {}", object["kind"], name(object));
    }
}

#[test]
fn environment_takes_secrets_by_reference_and_only_what_the_part_needs() {
    let objects = render(ALL_ON).unwrap();
    let mut taken = BTreeSet::new();
    for (pod, template) in pod_templates(&objects) {
        for container in containers(template) {
            assert!(container["envFrom"].is_null(), "{pod}: envFrom takes more than it names");
            for variable in items(&container["env"]) {
                let key = variable["name"].as_str().unwrap();
                let reference = &variable["valueFrom"]["secretKeyRef"];
                let by_name = ["DATABASE_URL", "PASSWORD", "SECRET", "TOKEN"].iter().any(|word| key.contains(word));
                assert!(!by_name || key.ends_with("_FILE") || reference.is_object(), "{pod}: {key} is a plain value");
                if reference.is_object() {
                    let container = container["name"].as_str().unwrap();
                    taken.insert(format!("{container} {}", reference["key"].as_str().unwrap()));
                }
            }
        }
    }
    let expected = [
        "migrate admin-url",
        "migrate operator-url",
        "migrate runtime-url",
        "operator operator-url",
        "runtime runtime-url",
    ];
    assert_eq!(taken, expected.map(String::from).into());
}

/// The API server refuses a server-side apply of a container with two variables of one name.
#[test]
fn no_variable_is_there_twice() {
    let more = ["runtime.outboundOpenRanges={10.0.0.0/8}", "runtime.trustedProxies={10.0.0.0/8}"];
    let objects = render(&[ALL_ON, &more].concat()).unwrap();
    for (pod, template) in pod_templates(&objects) {
        for container in containers(template) {
            let names: Vec<_> = items(&container["env"]).iter().map(|variable| variable["name"].as_str()).collect();
            let unique: BTreeSet<_> = names.iter().collect();
            assert_eq!(unique.len(), names.len(), "{pod}, {}: {names:?}", container["name"]);
        }
    }
}

#[test]
fn every_variable_is_one_that_the_program_reads() {
    let sources = |folder: &str| {
        let files = fs::read_dir(repository(folder)).unwrap().map(|file| file.unwrap().path());
        files.filter(|file| file.is_file()).map(|file| fs::read_to_string(file).unwrap()).collect::<String>()
    };
    let (operator, runtime) = (sources("operator/src"), sources("runtime/src"));
    let objects = render(ALL_ON).unwrap();
    for (pod, template) in pod_templates(&objects) {
        let source = match pod {
            "agentapi-operator" => &operator,
            "agentapi-runtime" => &runtime,
            _ => continue,
        };
        // RUST_LOG is read by tracing-subscriber itself.
        let names = containers(template).flat_map(|container| items(&container["env"])).map(|v| v["name"].as_str());
        for name in names.map(Option::unwrap).filter(|name| *name != "RUST_LOG") {
            assert!(source.contains(&format!("\"{name}\"")), "{pod} reads no {name}");
        }
    }
}

#[test]
fn selectors_select() {
    let objects = render(ALL_ON).unwrap();
    let templates = pod_templates(&objects);
    for object in &objects {
        let kind = object["kind"].as_str().unwrap();
        let selector = match kind {
            "Deployment" | "StatefulSet" | "PodDisruptionBudget" | "Service" => &object["spec"]["selector"],
            "NetworkPolicy" => &object["spec"]["podSelector"],
            _ => continue,
        };
        let selected: Vec<_> =
            templates.iter().filter(|(_, template)| selects(selector, &template["metadata"]["labels"])).collect();
        let wanted = match (kind, name(object)) {
            ("NetworkPolicy", "default-deny") => templates.len(),
            ("NetworkPolicy", "agentapi-control-plane") => 2,
            _ => 1,
        };
        assert_eq!(selected.len(), wanted, "{kind} {}", name(object));
        for port in items(&object["spec"]["ports"]).iter().filter(|_| kind == "Service") {
            let named = selected.iter().flat_map(|(_, template)| containers(template));
            let known =
                named.flat_map(|container| items(&container["ports"])).any(|have| have["name"] == port["targetPort"]);
            assert!(known, "Service {}: nothing has a port {}", name(object), port["targetPort"]);
        }
    }
}

#[test]
fn only_the_public_api_gets_a_port_outside_the_cluster() {
    let objects = render(ALL_ON).unwrap();
    let outside: Vec<_> =
        of_kind(&objects, "Service").filter(|service| service["spec"]["type"] == "NodePort").collect();
    assert_eq!(outside.len(), 1);
    let ports = items(&outside[0]["spec"]["ports"]);
    assert_eq!(ports.len(), 1);
    assert_eq!((&ports[0]["targetPort"], &ports[0]["nodePort"]), (&json!("http"), &json!(30080)));
    let none = render(&[]).unwrap();
    assert!(
        of_kind(&none, "Service")
            .all(|service| ["NodePort", "LoadBalancer"].iter().all(|t| service["spec"]["type"] != *t))
    );
}

#[test]
fn your_own_secret_is_used_and_none_is_made() {
    for settings in [EXTERNAL, &["database.existingSecret=my-database"]] {
        let objects = render(settings).unwrap();
        assert_eq!(of_kind(&objects, "Secret").count(), 0);
        for (pod, template) in pod_templates(&objects) {
            for variable in containers(template).flat_map(|container| items(&container["env"])) {
                let reference = &variable["valueFrom"]["secretKeyRef"];
                assert!(reference.is_null() || reference["name"] == "my-database", "{pod}: {variable}");
            }
        }
    }
    assert_eq!(of_kind(&render(EXTERNAL).unwrap(), "StatefulSet").count(), 0);
}

#[test]
fn settings_that_cannot_work_are_refused_with_what_to_write() {
    let refused = |settings: &[&str]| render(settings).unwrap_err().to_string();
    assert!(refused(&["postgres.enabled=false"]).contains("set database.existingSecret to its name"));
    assert!(refused(&["runtime.ingress.enabled=true"]).contains("runtime.ingress.host is the host name of the API"));
    assert!(refused(&["runtime.replica=3"]).contains("replica"), "a misspelt value must not be ignored");
    assert!(refused(&["operator.extraEnv[0].name=A"]).contains("/operator/extraEnv/0"));
}

#[test]
fn the_runtime_gets_its_time_to_drain() {
    let objects = render(&["runtime.shutdown.delaySeconds=7", "runtime.shutdown.graceSeconds=40"]).unwrap();
    let runtime = of_kind(&objects, "Deployment").find(|object| name(object) == "agentapi-runtime").unwrap();
    assert!(runtime["spec"]["template"]["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap() >= 7 + 40 + 5);
    assert_eq!(runtime["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"], 0);
}

#[test]
fn every_value_is_in_the_schema_and_the_other_way_round() {
    fn paths(value: &Value, at: &str, leaf: &mut BTreeSet<String>, schema: &Value, root: &Value) {
        let schema = schema["$ref"].as_str().map_or(schema, |to| &root["$defs"][to.trim_start_matches("#/$defs/")]);
        let Some(properties) = schema["properties"].as_object().filter(|_| value.is_object()) else {
            return;
        };
        for key in properties.keys().filter(|key| !at.is_empty() || *key != "global") {
            assert!(value.get(key).is_some(), "values.yaml has no {at}{key}");
            paths(&value[key], &format!("{at}{key}."), leaf, &properties[key], root);
        }
        for key in value.as_object().unwrap().keys() {
            leaf.insert(format!("{at}{key}"));
            assert!(properties.contains_key(key), "the schema has no {at}{key}");
        }
    }
    let values: Value =
        serde_yaml::from_str(&fs::read_to_string(repository("charts/agentapi/values.yaml")).unwrap()).unwrap();
    let schema: Value =
        serde_json::from_str(&fs::read_to_string(repository("charts/agentapi/values.schema.json")).unwrap()).unwrap();
    let mut found = BTreeSet::new();
    paths(&values, "", &mut found, &schema, &schema);
    assert!(found.len() > 80, "{}", found.len());
}
