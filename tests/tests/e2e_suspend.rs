//! Suspended sessions on the cluster: the pod goes, its volume and Secret stay and belong to nobody; a message brings the
//! real Claude Code back to the same conversation; the session's end takes everything away; the runtime's rights reach
//! volumes of sessions and no others.
#![cfg(feature = "cluster")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use agentapi_tests::{
    api::Api,
    cluster::{Cluster, eventually, repo},
    talk::Talk,
};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const READY: Duration = Duration::from_secs(120);
const TENANT: &str = "agentapi-acme";

/// The Workspace, gone with this value.
struct Patient<'a>(&'a Cluster);

impl Patient<'_> {
    fn apply(&self) {
        let yaml = std::fs::read_to_string(repo().join("examples/suspend.yaml")).unwrap();
        self.0.apply(&yaml.replace("maxSessions: 2", "maxSessions: 2\n  warmPool: 1")).unwrap();
    }

    /// `10s` when a session shall be suspended, and `10m` while it is looked at.
    async fn idle_after(&self, time: &str) {
        let patch = json!({"spec": {"suspend": {"idleAfter": time}}}).to_string();
        let args = ["-n", "team-acme", "patch", "workspace", "patient", "--type=merge", "-p", &patch];
        self.0.kubectl(&args).unwrap();
        eventually("the operator has seen it", READY, async || {
            let seen = self.0.get("workspace", Some("team-acme"), "patient")?.unwrap_or_default();
            let observed = seen["status"]["observedGeneration"] == seen["metadata"]["generation"];
            Ok(if observed { Ok(()) } else { Err(seen["status"].to_string()) })
        })
        .await
        .unwrap();
    }
}

impl Drop for Patient<'_> {
    fn drop(&mut self) {
        self.0
            .kubectl(&["-n", "team-acme", "delete", "workspace", "patient", "--ignore-not-found", "--wait=false"])
            .ok();
    }
}

async fn phase(api: &Api, id: &str, wanted: &str) -> Value {
    eventually(&format!("phase {wanted}"), READY, async || {
        let session = api.get(&format!("/v1/sessions/{id}")).await?.expect(200)?;
        Ok(if session["phase"] == wanted { Ok(session) } else { Err(session.to_string()) })
    })
    .await
    .unwrap()
}

/// Turns that the model saw with this text of the user.
async fn turns(requests: &Api, words: &str) -> u64 {
    let seen = requests.get("/requests").await.unwrap().expect(200).unwrap();
    let mine = seen.as_array().into_iter().flatten().rfind(|request| {
        request["user"].as_str().is_some_and(|user| user.contains(words))
            && request["tools"].as_array().is_some_and(|tools| !tools.is_empty())
    });
    mine.and_then(|request| request["entries"].as_u64()).unwrap_or_default()
}

fn owners(cluster: &Cluster, kind: &str, name: &str) -> Option<usize> {
    let object = cluster.get(kind, Some(TENANT), name).unwrap()?;
    Some(object["metadata"]["ownerReferences"].as_array().map_or(0, Vec::len))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspended_session_goes_on_where_it_was() {
    let cluster = Cluster::connect().unwrap();
    cluster.apply(&std::fs::read_to_string(repo().join("examples/acme.yaml")).unwrap()).unwrap();
    let patient = Patient(&cluster);
    patient.apply();
    let alice = Api::new(&cluster.api_url().unwrap(), Some(cluster.token("acme-alice").unwrap())).unwrap();
    alice.end_all().await.unwrap();
    let model = cluster.port_forward("agentapi-demo", "svc/fake-model", 8000).unwrap();
    let requests = Api::new(&model.url(), None).unwrap();
    eventually("a warm pod with its volume", READY, async || {
        let seen = cluster.get("workspace", Some("team-acme"), "patient")?.unwrap_or_default();
        Ok(if seen["status"]["warmPods"] == 1 { Ok(()) } else { Err(seen["status"].to_string()) })
    })
    .await
    .unwrap();
    // A pod whose agent is just being told its prompt is taken by nobody.
    let preview = json!({"workspace": "patient"});
    let preview = alice.post("/v1/prompts/preview", &preview).await.unwrap().expect(200).unwrap();
    cluster.warm_pods_know((TENANT, "patient"), &preview["digest"], READY).await.unwrap();

    // Once from a warm pod, whose volume Kubernetes made, and once from a cold one.
    for round in ["warm", "cold"] {
        let body = json!({"workspace": "patient", "env": {"E2E_WORD": "hunter2"}});
        let talk = Talk::begin(&alice, &body, READY).await.unwrap();
        let id = talk.id.clone();
        let (_, pod) = cluster.session_pod(&id).unwrap().unwrap();
        assert_eq!(pod.starts_with("w-"), round == "warm", "{pod}");
        let (volume, secret) = (format!("{pod}-data"), format!("{pod}-session"));
        let first = format!("first words of {round}");
        let say = async |words: &str| talk.say(&format!("echo: {words}")).await.unwrap();
        assert_eq!(say(&first).await.status, 200);
        talk.says(&first).await.unwrap();
        let before = turns(&requests, &first).await;
        assert!(before > 0);

        patient.idle_after("10s").await;
        phase(&alice, &id, "Suspended").await;
        assert_eq!(cluster.session_pod(&id).unwrap(), None);
        assert_eq!(owners(&cluster, "persistentvolumeclaim", &volume), Some(0), "the volume stays and is nobody's");
        assert_eq!(owners(&cluster, "secret", &secret), Some(0), "the Secret stays and is nobody's");
        let mut events = alice.events(&format!("/v1/sessions/{id}/events"), Some("gone-1")).await.unwrap();
        patient.idle_after("10m").await;

        let then = Instant::now();
        let second = format!("second words of {round}");
        let woken = say(&second).await;
        assert_eq!(woken.status, 200, "{}", woken.body);
        println!("{round}: woken and told in {:?}", then.elapsed());
        talk.says(&second).await.unwrap();
        // The agent itself knows what was said: the model gets the earlier turns again.
        assert!(turns(&requests, &second).await > before, "the conversation began anew");
        assert_eq!(cluster.session_pod(&id).unwrap().unwrap().1, pod);
        // A pod that was woken does not own what it uses: lost while it starts, it would take the session along.
        assert_eq!(owners(&cluster, "persistentvolumeclaim", &volume), Some(0));
        assert_eq!(owners(&cluster, "secret", &secret), Some(0));
        let event = tokio::time::timeout(READY, events.recv()).await.unwrap();
        assert!(event.is_some(), "who followed the suspended session hears of the woken one");
        let env =
            cluster.kubectl(&["-n", TENANT, "exec", &pod, "--", "cat", "/run/agentapi/session/env.json"]).unwrap();
        assert!(env.contains("hunter2"), "the session has its environment");

        // Somebody drains the node: the pod says so before it is gone, and the next message brings it back.
        cluster.kubectl(&["-n", TENANT, "delete", "pod", &pod, "--wait=false"]).unwrap();
        phase(&alice, &id, "Suspended").await;
        assert_eq!(owners(&cluster, "persistentvolumeclaim", &volume), Some(0), "the volume went with the pod");
        let third = format!("third words of {round}");
        assert_eq!(say(&third).await.status, 200);
        talk.says(&third).await.unwrap();
        assert!(turns(&requests, &third).await > before);

        patient.idle_after("10s").await;
        // Suspended once more, it ends without ever having a pod again.
        phase(&alice, &id, "Suspended").await;
        assert_eq!(alice.delete(&format!("/v1/sessions/{id}")).await.unwrap().status, 204);
        phase(&alice, &id, "Ended").await;
        eventually("nothing of it is left", READY, async || {
            let left = (owners(&cluster, "persistentvolumeclaim", &volume), owners(&cluster, "secret", &secret));
            Ok(if left == (None, None) { Ok(()) } else { Err(format!("{left:?}")) })
        })
        .await
        .unwrap();
        patient.idle_after("10m").await;
        if round == "warm" {
            // The next session must not find a warm pod.
            let off = r#"{"spec":{"warmPool":0}}"#;
            cluster.kubectl(&["-n", "team-acme", "patch", "workspace", "patient", "--type=merge", "-p", off]).unwrap();
            eventually("no warm pod", READY, async || {
                let warm = "agentapi.dev/pool=warm,agentapi.dev/workspace=patient";
                let left = cluster.list("pods", TENANT, warm)?.len();
                Ok(if left == 0 { Ok(()) } else { Err(left.to_string()) })
            })
            .await
            .unwrap();
        }
    }
}

#[test]
fn the_runtime_reaches_volumes_of_sessions_and_no_others() {
    let cluster = Cluster::connect().unwrap();
    let runtime = "--as=system:serviceaccount:agentapi-system:agentapi-runtime";
    let claim = |name: &str| {
        json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name, "namespace": TENANT},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}},
        })
        .to_string()
    };
    let create = ["create", "--dry-run=server", runtime, "-f", "-"];
    let allowed = cluster.try_kubectl(&create, &claim("w-e2e-1-data")).unwrap();
    assert!(allowed.ok, "{}", allowed.stderr);
    for name in ["ws-web", "other", "s-1", "data", "x-1-data"] {
        let refused = cluster.try_kubectl(&create, &claim(name)).unwrap();
        assert!(!refused.ok && refused.stderr.contains("volumes of sessions"), "{name}: {}", refused.stderr);
    }
    let read = cluster.try_kubectl(&["-n", TENANT, "get", "pvc", runtime], "").unwrap();
    assert!(!read.ok && read.stderr.contains("forbidden"), "{}", read.stderr);
}
