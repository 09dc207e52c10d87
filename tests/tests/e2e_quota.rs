//! What the tenant namespace's own ResourceQuota refuses is a 429 that names the quota, and the same request works when
//! the Organization was given room.
#![cfg(feature = "cluster")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use agentapi_tests::{
    api::Api,
    cluster::{Cluster, eventually},
};
use anyhow::Result;
use reqwest::Method;
use serde_json::{Value, json};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);
const TENANT: &str = "agentapi-globex";

/// As in examples/globex.yaml.
const CORES: &str = "8";

/// What the ResourceQuota says for so many cores: the pod of the isolation probes has its share on top.
fn with_the_probes(cores: &str) -> String {
    format!("{cores}200m")
}

fn give(cluster: &Cluster, cores: &str) -> Result<String> {
    let patch = json!({ "spec": { "quota": { "cpu": cores } } }).to_string();
    cluster.kubectl(&["patch", "organization", "globex", "--type=merge", "-p", &patch])
}

/// Gives globex so many cores, and waits until the API server holds it to them.
async fn cores(cluster: &Cluster, cores: &str) {
    give(cluster, cores).unwrap();
    eventually(&format!("a quota of {cores} cores"), SOON, async || {
        let quotas = cluster.list("resourcequotas", TENANT, "")?;
        // What was there before is counted off: nothing but a probe's pod may be in use.
        let held = quotas.iter().any(|quota| {
            let (hard, used) = (&quota["status"]["hard"]["limits.cpu"], &quota["status"]["used"]["limits.cpu"]);
            *hard == with_the_probes(cores) && (cores == CORES || used == "0" || used == "200m")
        });
        Ok(if held { Ok(()) } else { Err(json!(quotas).to_string()) })
    })
    .await
    .unwrap();
}

/// Whatever happens, the tenant of the examples has its quota afterwards.
struct AsBefore<'a>(&'a Cluster);

impl Drop for AsBefore<'_> {
    fn drop(&mut self) {
        give(self.0, CORES).ok();
    }
}

#[tokio::test]
async fn the_clusters_own_refusal_is_a_429_that_names_the_quota() {
    let cluster = Cluster::connect().unwrap();
    let api = Api::new(&cluster.api_url().unwrap(), Some(cluster.token("globex-gina").unwrap())).unwrap();
    api.end_all().await.unwrap();
    let _restored = AsBefore(&cluster);
    // Room for one session's pod of two cores.
    cores(&cluster, "2").await;
    let first = api.post("/v1/sessions", &json!({ "workspace": "research" })).await.unwrap();
    assert_eq!(first.status, 201, "{}", first.body);
    // The second one waits three seconds for a pod, and not for a machine that starts an agent.
    api.stable(first.body["id"].as_str().unwrap(), SOON).await.unwrap();

    let key = format!("quota-{}", uuid::Uuid::now_v7());
    let post = || {
        api.request(Method::POST, "/v1/sessions")
            .header("idempotency-key", &key)
            .json(&json!({ "workspace": "research" }))
    };
    let response = post().send().await.unwrap();
    assert_eq!(response.status(), 429);
    assert!(response.headers().contains_key("retry-after"));
    let problem: Value = response.json().await.unwrap();
    assert!(problem["type"].as_str().unwrap().ends_with("/quota-exceeded"), "{problem}");
    assert_eq!(
        (&problem["quota"], &problem["limit"]),
        (&json!("limits.cpu"), &json!(with_the_probes("2"))),
        "{problem}"
    );

    cores(&cluster, CORES).await;
    let created = eventually("the same request is taken", SOON, async || {
        let answer = api.send(post()).await?;
        Ok(if answer.status == 201 { Ok(answer.body) } else { Err(answer.body.to_string()) })
    })
    .await
    .unwrap();
    let id = created["id"].as_str().unwrap().to_owned();
    api.stable(&id, SOON).await.unwrap();
    api.end_all().await.unwrap();
}
