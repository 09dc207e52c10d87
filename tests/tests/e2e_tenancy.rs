//! Two tenants on the real cluster: each route of the live OpenAPI document answers 404 for the other's ids, pods are
//! locked down as the API server sees them, and a session pod can't be reached or used without its token.
#![cfg(feature = "cluster")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use agentapi_tests::{
    api::Api,
    cluster::{Cluster, eventually},
};
use reqwest::Method;
use serde_json::{Value, json};
use std::time::Duration;

const READY: Duration = Duration::from_secs(90);

async fn session(api: &Api, workspace: &str) -> String {
    let body = api.post("/v1/sessions", &json!({ "workspace": workspace })).await.unwrap().expect(201).unwrap();
    let id = body["id"].as_str().unwrap().to_owned();
    api.stable(&id, READY).await.unwrap();
    id
}

/// A body that the route would take from its owner, so that only the id can be the reason for the refusal.
fn fill(request: reqwest::RequestBuilder, operation: &Value) -> reqwest::RequestBuilder {
    let content = &operation["requestBody"]["content"];
    if content["multipart/form-data"].is_object() {
        let part = reqwest::multipart::Part::bytes(b"x".to_vec()).file_name("x.txt");
        request.multipart(reqwest::multipart::Form::new().part("file", part))
    } else if content["application/json"].is_object() {
        request.json(&json!({ "content": "echo: hello", "type": "user" }))
    } else {
        request
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_route_answers_404_for_the_other_tenants_ids() {
    let cluster = Cluster::connect().unwrap();
    let url = cluster.api_url().unwrap();
    let client = |name: &str| Api::new(&url, Some(cluster.token(name).unwrap())).unwrap();
    let (alice, bob, gina) = (client("acme-alice"), client("acme-bob"), client("globex-gina"));
    let admins = [client("acme-admin"), client("globex-admin")];
    alice.end_all().await.unwrap();
    gina.end_all().await.unwrap();
    let (mine, theirs) = (session(&alice, "web").await, session(&gina, "research").await);

    let document = Api::new(&url, None).unwrap().get("/openapi.json").await.unwrap().expect(200).unwrap();
    let mut tried = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        if !path.contains("{id}") {
            continue;
        }
        for (method, operation) in item.as_object().unwrap() {
            let Ok(method) = Method::from_bytes(method.to_uppercase().as_bytes()) else { continue };
            // Another organization's user and admin, and a user of the same organization who is not the owner.
            for (caller, id) in
                [(&alice, &theirs), (&admins[0], &theirs), (&gina, &mine), (&admins[1], &mine), (&bob, &mine)]
            {
                let request = fill(caller.request(method.clone(), &path.replace("{id}", id)), operation);
                let answer = caller.send(request).await.unwrap();
                assert_eq!(answer.status.as_u16(), 404, "{method} {path}: {}", answer.body);
                assert_eq!(answer.content_type, "application/problem+json", "{method} {path}");
                tried += 1;
            }
            let anonymous = Api::new(&url, None).unwrap();
            let request = fill(anonymous.request(method.clone(), &path.replace("{id}", &mine)), operation);
            assert_eq!(anonymous.send(request).await.unwrap().status.as_u16(), 401, "{method} {path}");
        }
    }
    assert!(tried >= 40, "the document has only {tried} cases with an id");

    // Nothing was harmed by the attempts, not even by DELETE.
    for (api, id) in [(&alice, &mine), (&gina, &theirs)] {
        let body = api.get(&format!("/v1/sessions/{id}")).await.unwrap().expect(200).unwrap();
        assert_eq!(body["phase"], "Running", "{body}");
        let messages = api.stable(id, READY).await.unwrap();
        assert!(!json!(messages).to_string().contains("echo: hello"), "a foreign message arrived: {messages:?}");
        api.delete(&format!("/v1/sessions/{id}")).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn session_pods_are_locked_down() {
    let cluster = Cluster::connect().unwrap();
    let url = cluster.api_url().unwrap();
    let alice = Api::new(&url, Some(cluster.token("acme-alice").unwrap())).unwrap();
    alice.end_all().await.unwrap();
    let id = session(&alice, "web").await;
    let pods = cluster.list("pods", "agentapi-acme", &format!("agentapi.dev/session={id}")).unwrap();
    let (pod, spec) = (&pods[0]["metadata"]["name"], &pods[0]["spec"]);
    assert_eq!(spec["automountServiceAccountToken"], false);
    assert_eq!(spec["securityContext"]["runAsNonRoot"], true);
    assert_eq!(spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    for container in spec["containers"].as_array().unwrap() {
        let context = &container["securityContext"];
        assert_eq!(context["readOnlyRootFilesystem"], true);
        assert_eq!(context["allowPrivilegeEscalation"], false);
        assert_eq!(context["capabilities"]["drop"], json!(["ALL"]));
        assert!(
            container["resources"]["limits"]["memory"].is_string()
                && container["resources"]["limits"]["cpu"].is_string()
        );
        for variable in container["env"].as_array().into_iter().flatten() {
            let name = variable["name"].as_str().unwrap();
            assert!(!name.contains("TOKEN") && !name.contains("PRIVATE"), "a secret in the pod spec: {name}");
        }
    }
    let pod = pod.as_str().unwrap();
    let inside = |command: &str| {
        cluster.try_kubectl(&["-n", "agentapi-acme", "exec", pod, "--", "sh", "-c", command], "").unwrap()
    };
    assert!(!inside("touch /usr/x").ok, "the root file system is writable");
    assert!(!inside("ls /var/run/secrets/kubernetes.io/serviceaccount/token").ok, "there is a service account token");
    assert_eq!(inside("id -u").stdout.trim(), "10001");

    // The contract inside the pod is closed without the runtime's token.
    for path in ["/status", "/messages", "/internal/screen", "/events"] {
        let code = inside(&format!("curl -s -o /dev/null -m 3 -w '%{{http_code}}' http://127.0.0.1:3284{path}"));
        assert_eq!(code.stdout.trim(), "401", "{path}: {}", code.stderr);
    }
    // And the network is closed but for DNS, the runtime and the egress list.
    for (what, target, open) in [
        ("the model of the egress list", "http://fake-model.agentapi-demo.svc.cluster.local:8000/health", true),
        ("the runtime's internal port", "http://agentapi-runtime.agentapi-system.svc.cluster.local:8090/", true),
        ("the identity provider", "http://oidc.agentapi-demo.svc.cluster.local:9000/", false),
        ("Postgres", "http://agentapi-postgres.agentapi-system.svc.cluster.local:5432/", false),
        ("the API server", "https://kubernetes.default.svc.cluster.local/", false),
        ("the metadata address", "http://169.254.169.254/", false),
    ] {
        // 6: no name, of which DNS may be the cause; 7: refused, 28: timed out; else something answered.
        eventually(&format!("{what}: open: {open}"), READY, async || {
            let out = inside(&format!("curl -sk -o /dev/null --connect-timeout 2 -m 4 {target}; echo $?"));
            let Ok(code) = out.stdout.trim().parse::<i32>() else { return Ok(Err(format!("{out:?}"))) };
            assert!(open || matches!(code, 6 | 7 | 28), "{what}: curl exit {code}");
            let told = code != 6 && open != matches!(code, 7 | 28);
            Ok(if told { Ok(()) } else { Err(format!("curl exit {code}")) })
        })
        .await
        .unwrap();
    }
    alice.delete(&format!("/v1/sessions/{id}")).await.unwrap();
}
