//! Two replicas of the runtime on the real cluster: what one creates the other serves, and a rolling restart
//! loses no request.
#![cfg(feature = "cluster")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use agentapi_tests::{
    api::Api,
    cluster::{Cluster, PortForward, eventually},
};
use serde_json::json;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

const SYSTEM: &str = "agentapi-system";
const READY: Duration = Duration::from_secs(90);

fn replicas(cluster: &Cluster) -> Vec<String> {
    let pods = cluster.list("pods", SYSTEM, "app.kubernetes.io/name=agentapi-runtime").unwrap();
    pods.iter()
        .filter(|p| p["metadata"]["deletionTimestamp"].is_null())
        .map(|p| p["metadata"]["name"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_of_one_replica_is_usable_through_the_other() {
    let cluster = Cluster::connect().unwrap();
    let token = cluster.token("acme-alice").unwrap();
    Api::new(&cluster.api_url().unwrap(), Some(token.clone())).unwrap().end_all().await.unwrap();
    let names = replicas(&cluster);
    assert_eq!(names.len(), 2, "{names:?}");
    let forwards: Vec<PortForward> =
        names.iter().map(|name| cluster.port_forward(SYSTEM, &format!("pod/{name}"), 8080).unwrap()).collect();
    let [one, other] = [0, 1].map(|i| Api::new(&forwards[i].url(), Some(token.clone())).unwrap());

    let body = one.post("/v1/sessions", &json!({ "workspace": "web" })).await.unwrap().expect(201).unwrap();
    let id = body["id"].as_str().unwrap().to_owned();
    other.stable(&id, READY).await.unwrap();
    let path = format!("/v1/sessions/{id}");
    let said = json!({ "content": "echo: through the other", "type": "user" });
    other.post(&format!("{path}/message"), &said).await.unwrap().expect(200).unwrap();
    let messages = one.stable(&id, READY).await.unwrap();
    assert!(messages.last().unwrap()["content"].as_str().unwrap().contains("through the other"), "{messages:?}");
    assert!(matches!(other.delete(&path).await.unwrap().status.as_u16(), 202 | 204));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_loses_no_request() {
    let cluster = Cluster::connect().unwrap();
    let api = Api::new(&cluster.api_url().unwrap(), Some(cluster.token("acme-alice").unwrap())).unwrap();
    api.end_all().await.unwrap();
    let body = api.post("/v1/sessions", &json!({ "workspace": "web" })).await.unwrap().expect(201).unwrap();
    let id = body["id"].as_str().unwrap().to_owned();
    api.stable(&id, READY).await.unwrap();

    let stop = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicUsize::new(0));
    let client = tokio::spawn({
        let (api, id, stop, answered) = (api.clone(), id.clone(), stop.clone(), answered.clone());
        async move {
            let mut failures = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                match api.get(&format!("/v1/sessions/{id}/status")).await {
                    Ok(answer) if answer.status == 200 => {
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(answer) => failures.push(format!("{} {}", answer.status, answer.body)),
                    Err(error) => failures.push(format!("{error:#}")),
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            failures
        }
    });
    let before = replicas(&cluster);
    cluster.kubectl(&["-n", SYSTEM, "rollout", "restart", "deployment/agentapi-runtime"]).unwrap();
    let roll = ["-n", SYSTEM, "rollout", "status", "deployment/agentapi-runtime", "--timeout=180s"];
    cluster.kubectl(&roll).unwrap();
    eventually("the old replicas are gone", READY, async || {
        let now = replicas(&cluster);
        Ok(if before.iter().any(|old| now.contains(old)) { Err(format!("{now:?}")) } else { Ok(()) })
    })
    .await
    .unwrap();
    let said = json!({ "content": "echo: after the restart", "type": "user" });
    api.post(&format!("/v1/sessions/{id}/message"), &said).await.unwrap().expect(200).unwrap();
    stop.store(true, Ordering::Relaxed);
    let failures = client.await.unwrap();
    let answered = answered.load(Ordering::Relaxed);
    assert!(answered > 50, "only {answered} requests were answered");
    assert!(failures.is_empty(), "{} of {} requests failed: {failures:?}", failures.len(), answered + failures.len());
    api.delete(&format!("/v1/sessions/{id}")).await.unwrap();
}
