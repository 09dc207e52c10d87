//! `spec.agent.model` on the real cluster: Claude Code in session pods, on Vertex AI and through the router beside it, against
//! the demo's model; what is missing is said; the agent has no key of the router; the router's traffic obeys the egress list.
#![cfg(feature = "cluster")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use agentapi_tests::{
    api::Api,
    cluster::{Cluster, eventually, repo},
    fakemodel::{self, Recorded},
    models::google_credentials,
    talk::Talk,
};
use serde_json::{Value, json};
use std::time::Duration;

const READY: Duration = Duration::from_secs(120);
const TEAM: &str = "team-acme";
const TENANT: &str = "agentapi-acme";
const MODEL: &str = "http://fake-model.agentapi-demo.svc.cluster.local:8000";
const KEY: &str = "e2e-key-of-the-upstream";
const SECRET: &str = "e2e-models";

/// The workspaces and the Secret of this test, gone with it.
struct Cleaned<'a>(&'a Cluster, &'static str);

impl Drop for Cleaned<'_> {
    fn drop(&mut self) {
        let Self(cluster, name) = self;
        cluster.kubectl(&["-n", TEAM, "delete", "workspace", name, "--ignore-not-found", "--timeout=60s"]).ok();
        cluster.kubectl(&["-n", TENANT, "delete", "secret", &secret(name), "--ignore-not-found"]).ok();
    }
}

fn secret(workspace: &str) -> String {
    format!("{SECRET}-{workspace}")
}

fn workspace(name: &str, warm: u32, model: &Value) -> String {
    json!({
        "apiVersion": "agentapi.dev/v1alpha1", "kind": "Workspace", "metadata": {"name": name, "namespace": TEAM},
        "spec": {
            "organizationRef": {"name": "acme"},
            "agent": {"type": "Claude", "image": "agentapi.dev/session-claude:dev", "model": model},
            "maxSessions": 2, "warmPool": warm,
            "resources": {"requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}},
            "egress": [{"namespace": "agentapi-demo", "ports": [8000]}],
        },
    })
    .to_string()
}

fn give_credentials(cluster: &Cluster, workspace: &str) {
    let name = secret(workspace);
    let object = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": TENANT},
        "stringData": {"credentials.json": google_credentials(MODEL), "key": KEY},
    });
    cluster.apply(&object.to_string()).unwrap();
}

async fn says(cluster: &Cluster, name: &str, status: &str, words: &str) {
    eventually(&format!("workspace {name} Ready={status} with «{words}»"), READY, async || {
        let object = cluster.get("workspace", Some(TEAM), name)?.unwrap_or_default();
        let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let ready = conditions.into_iter().find(|it| it["type"] == "Ready").unwrap_or_default();
        let fits = ready["status"] == status && ready["message"].as_str().unwrap_or_default().contains(words);
        Ok(if fits { Ok(()) } else { Err(ready.to_string()) })
    })
    .await
    .unwrap();
}

fn acme(cluster: &Cluster) -> Api {
    cluster.apply(&std::fs::read_to_string(repo().join("examples/acme.yaml")).unwrap()).unwrap();
    Api::new(&cluster.api_url().unwrap(), Some(cluster.token("acme-alice").unwrap())).unwrap()
}

/// A session of two turns; gives back its id and what the model was asked in it.
async fn two_turns(cluster: &Cluster, api: &Api, workspace: &str, word: &str) -> (String, Vec<Recorded>) {
    let talk = Talk::begin(api, &json!({"workspace": workspace}), READY).await.unwrap();
    talk.turn(&format!("remember the word {word}")).await.unwrap();
    let said = talk.turn("recall").await.unwrap();
    assert!(said.contains(word), "{said}");
    let forward = cluster.port_forward("agentapi-demo", "deploy/fake-model", 8000).unwrap();
    let seen = fakemodel::recorded(&forward.url()).await.unwrap();
    (talk.id, seen.into_iter().filter(|it| it.user.contains(word) || it.reply.contains(word)).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claude_talks_to_vertex_from_its_pod() {
    let cluster = Cluster::connect().unwrap();
    let api = acme(&cluster);
    let name = "e2e-vertex";
    let _cleaned = Cleaned(&cluster, name);
    give_credentials(&cluster, name);
    let model = json!({"provider": "Vertex", "name": "claude-sonnet-4-5", "region": "us-east5", "projectId": "acme-ai",
        "baseUrl": format!("{MODEL}/v1"), "credentialsSecretRef": {"name": secret(name), "key": "credentials.json"}});
    cluster.apply(&workspace(name, 0, &model)).unwrap();
    says(&cluster, name, "True", "").await;
    let (session, seen) = two_turns(&cluster, &api, name, "osprey-3").await;
    let path = "/v1/projects/acme-ai/locations/us-east5/publishers/anthropic/models/claude-sonnet-4-5:";
    assert!(seen.iter().any(|it| it.path.starts_with(path)), "{seen:?}");
    api.delete(&format!("/v1/sessions/{session}")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claude_talks_to_gemini_through_the_router_and_has_no_key() {
    let cluster = Cluster::connect().unwrap();
    let api = acme(&cluster);
    let name = "e2e-routed";
    let _cleaned = Cleaned(&cluster, name);
    let reference = |key: &str| json!({"name": secret(name), "key": key});
    let (google, chat) =
        (json!({"upstream": "google", "model": "gemini-2.5-pro"}), json!({"upstream": "chat", "model": "qwen3"}));
    let model = json!({"provider": "Router", "router": {
        "image": "agentapi.dev/model-router:dev",
        "upstreams": [
            {"name": "google", "type": "VertexGemini", "baseUrl": MODEL, "region": "us-central1", "projectId": "acme-ai",
             "credentialsSecretRef": reference("credentials.json")},
            {"name": "chat", "type": "OpenAICompatible", "baseUrl": format!("{MODEL}/v1"), "credentialsSecretRef": reference("key")},
        ],
        "routes": {"default": google, "background": chat},
    }});
    cluster.apply(&workspace(name, 1, &model)).unwrap();
    // Without the Secret nothing starts, and the condition says which one is missing.
    says(&cluster, name, "False", &format!("secret \"{}\" not found", secret(name))).await;
    give_credentials(&cluster, name);
    says(&cluster, name, "True", "1 of 1").await;

    let (session, seen) = two_turns(&cluster, &api, name, "kestrel-9").await;
    let path =
        "/v1beta1/projects/acme-ai/locations/us-central1/publishers/google/models/gemini-2.5-pro:streamGenerateContent";
    assert!(seen.iter().any(|it| it.path == path && it.auth == "authorization"), "{seen:?}");

    // In the agent's container: no key in any environment or file, none from the router.
    let (_, pod) = cluster.session_pod(&session).unwrap().unwrap();
    let run = |container: &str, command: &[&str]| {
        let mut args = vec!["-n", TENANT, "exec", &pod, "-c", container, "--"];
        args.extend(command);
        cluster.try_kubectl(&args, "").unwrap()
    };
    let environments =
        run("agent", &["sh", "-c", "cat /proc/[0-9]*/environ; env; grep -rs e2e-key /home /state /tmp /workspace"]);
    assert!(environments.stdout.contains("ANTHROPIC_BASE_URL=http://127.0.0.1:3456"), "{environments:?}");
    for secret in [KEY, "external_account"] {
        assert!(!environments.stdout.contains(secret), "{secret} is in the agent's container");
    }
    let asked = run("agent", &["curl", "-s", "-m", "5", "-w", "%{http_code}", "http://127.0.0.1:3456/api/config"]);
    assert!(asked.stdout.ends_with("404") && !asked.stdout.contains(KEY), "{asked:?}");

    // The router is in the same pod and under the same list: the model's port is open and nothing else.
    let reaches = |url: &str| {
        let script = format!(
            "fetch('{url}',{{signal:AbortSignal.timeout(4000)}}).then(()=>console.log('open'),()=>console.log('closed'))"
        );
        run("model-router", &["node", "-e", &script]).stdout.trim().to_owned()
    };
    eventually("the model's port is open", READY, async || {
        let seen = reaches(&format!("{MODEL}/health"));
        Ok(if seen == "open" { Ok(()) } else { Err(seen) })
    })
    .await
    .unwrap();
    assert_eq!(reaches("http://oidc.agentapi-demo.svc.cluster.local:9000/.well-known/openid-configuration"), "closed");

    api.delete(&format!("/v1/sessions/{session}")).await.unwrap();
}
