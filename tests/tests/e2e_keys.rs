//! All keys are rotated on the real cluster while a session is in use, and the operator is killed in the middle: no
//! request fails, the session goes on, and what the retired key signed opens nothing.
#![cfg(feature = "cluster")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use agentapi_crds::names;
use agentapi_runtime::auth::session_token::SessionTokens;
use agentapi_tests::{
    api::Api,
    cluster::{Cluster, eventually},
    talk::Talk,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::json;
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use uuid::Uuid;

const SYSTEM: &str = names::SYSTEM_NAMESPACE;
const TENANT: &str = "agentapi-acme";
const READY: Duration = Duration::from_secs(120);
const ROTATION: Duration = Duration::from_secs(360);
const SETTLE: &str = "KEY_SETTLE_SECONDS";

type Data = BTreeMap<String, Vec<u8>>;

fn secret(cluster: &Cluster, namespace: &str, name: &str) -> Data {
    let secret = cluster.get("secret", Some(namespace), name).unwrap().expect(name);
    let data = secret["data"].as_object().unwrap().clone();
    data.into_iter().map(|(key, value)| (key, STANDARD.decode(value.as_str().unwrap()).unwrap())).collect()
}

fn text(data: &Data, key: &str) -> String {
    String::from_utf8(data[key].clone()).unwrap()
}

/// The kubelet takes up to a minute and a half to notice a changed Secret, and at once when the pod changes.
fn hurry(cluster: &Cluster) {
    let value = format!("test.agentapi.dev/hurry={}", Uuid::new_v4());
    let pods = "app.kubernetes.io/name=agentapi-runtime";
    let args = ["-n", SYSTEM, "annotate", "pods", "-l", pods, "--overwrite", &value];
    cluster.kubectl(&args).unwrap();
}

/// SIGKILL for all operators at once.
fn kill_operator(cluster: &Cluster) {
    let pods = "app.kubernetes.io/name=agentapi-operator";
    let args = ["-n", SYSTEM, "delete", "pods", "-l", pods, "--force", "--grace-period=0", "--wait=false"];
    cluster.kubectl(&args).unwrap();
}

fn settle(cluster: &Cluster, seconds: &str) {
    let variable = format!("{SETTLE}={seconds}");
    cluster.kubectl(&["-n", SYSTEM, "set", "env", "deployment/agentapi-operator", &variable]).unwrap();
    let roll = ["-n", SYSTEM, "rollout", "status", "deployment/agentapi-operator", "--timeout=120s"];
    cluster.kubectl(&roll).unwrap();
}

fn rotate(cluster: &Cluster, args: &[&str], annotation: &str) {
    let value = format!("{annotation}={}", Uuid::new_v4());
    cluster.kubectl(&[args, &[value.as_str(), "--overwrite"]].concat()).unwrap();
}

/// Asks for the session's status again and again; gives back what went wrong, and how often nothing did.
async fn keep_asking(api: Api, id: String, stop: Arc<AtomicBool>) -> (Vec<String>, usize) {
    let (mut failures, mut answered) = (Vec::new(), 0);
    while !stop.load(Ordering::Relaxed) {
        match api.get(&format!("/v1/sessions/{id}/status")).await {
            Ok(answer) if answer.status == 200 => answered += 1,
            Ok(answer) => failures.push(format!("{} {}", answer.status, answer.body)),
            Err(error) => failures.push(format!("{error:#}")),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    (failures, answered)
}

/// There is one version more, and the new master key opens both.
fn check_data_keys(old_data_key: &Data, old_master: &Data, data_key: &Data, master: &Data) {
    let id_of = |key: &[u8]| agentapi_operator::envelope::MasterKey::new(key).unwrap().id().to_owned();
    assert_eq!(text(data_key, "master-key-id"), id_of(&master["key"]));
    let version = |data: &Data| text(data, "version").parse::<i32>().unwrap();
    assert_eq!(version(data_key), version(old_data_key) + 1);
    // The version before stays, and the new master key opens it, too.
    let old = version(old_data_key);
    assert_eq!(text(data_key, &format!("master-key-id.{old}")), id_of(&master["key"]));
    let open = |keys: &Data, version: i32, wrapped: &str, by: &[u8]| {
        let organization: Uuid = text(keys, "organization-id").parse().unwrap();
        let key = agentapi_operator::envelope::MasterKey::new(by).unwrap();
        secrecy::ExposeSecret::expose_secret(&key.unwrap(organization, version, &keys[wrapped]).unwrap()).to_owned()
    };
    let before = open(old_data_key, old, "wrapped", &old_master["key"]);
    assert_eq!(open(data_key, old, &format!("wrapped.{old}"), &master["key"]), before);
    assert_ne!(open(data_key, old + 1, "wrapped", &master["key"]), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_keys_rotate_while_a_session_is_in_use() {
    let cluster = Cluster::connect().unwrap();
    let url = cluster.api_url().unwrap();
    let api = Api::new(&url, Some(cluster.token("acme-alice").unwrap())).unwrap();
    api.end_all().await.unwrap();
    settle(&cluster, "12");
    let body = api.post("/v1/sessions", &json!({ "workspace": "web" })).await.unwrap().expect(201).unwrap();
    let id = body["id"].as_str().unwrap().to_owned();
    api.stable(&id, READY).await.unwrap();
    let say = async |word: &str| {
        let talk = Talk::of(&api, &id, READY);
        talk.send(&format!("echo: {word}")).await.unwrap();
        let messages = talk.stable().await.unwrap();
        assert!(messages.last().unwrap()["content"].as_str().unwrap().contains(word), "{messages:?}");
    };
    say("before-the-rotation").await;

    let stop = Arc::new(AtomicBool::new(false));
    let client = tokio::spawn(keep_asking(api.clone(), id.clone(), stop.clone()));

    let old_signing = secret(&cluster, SYSTEM, names::SECRET_SESSION_SIGNING);
    let old_master = secret(&cluster, SYSTEM, names::SECRET_MASTER_KEY);
    let old_data_key = secret(&cluster, TENANT, names::SECRET_DATA_KEY);
    let began = Instant::now();
    for name in [names::SECRET_SESSION_SIGNING, names::SECRET_MASTER_KEY] {
        rotate(&cluster, &["-n", SYSTEM, "annotate", "secret", name], names::ANNOTATION_ROTATE_KEY);
    }
    rotate(&cluster, &["annotate", "organization", "acme"], names::ANNOTATION_ROTATE_DATA_KEY);

    // The operators die at the first sight of each step, and the next ones go on.
    let mut killed = Vec::new();
    eventually("the signing key is rotated", ROTATION, async || {
        hurry(&cluster);
        let now = secret(&cluster, SYSTEM, names::SECRET_SESSION_SIGNING);
        for step in [names::KEY_SIGNING_NEXT_PRIVATE, names::KEY_SIGNING_PREVIOUS_PUBLIC] {
            if now.contains_key(step) && !killed.contains(&step) {
                killed.push(step);
                kill_operator(&cluster);
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let keys: Vec<&String> = now.keys().collect();
        let done = keys.len() == 2 && now["public.x"] != old_signing["public.x"];
        Ok(if done { Ok(()) } else { Err(format!("{keys:?}")) })
    })
    .await
    .unwrap();
    assert_eq!(killed.len(), 2, "both steps were seen");
    println!("the signing key: {} s", began.elapsed().as_secs());

    let master = eventually("the master key is rotated", ROTATION, async || {
        let now = secret(&cluster, SYSTEM, names::SECRET_MASTER_KEY);
        let done = now.len() == 1 && now["key"] != old_master["key"];
        Ok(if done { Ok(now) } else { Err(format!("{} keys", now.len())) })
    })
    .await
    .unwrap();
    println!("the master key: {} s", began.elapsed().as_secs());
    let data_key = secret(&cluster, TENANT, names::SECRET_DATA_KEY);
    check_data_keys(&old_data_key, &old_master, &data_key, &master);

    // Neither the session nor anybody's request has noticed.
    say("after-the-rotation").await;
    stop.store(true, Ordering::Relaxed);
    let (failures, answered) = client.await.unwrap();
    assert!(failures.is_empty(), "{} of {} failed: {failures:?}", failures.len(), answered + failures.len());
    assert!(answered > 100, "only {answered} requests");
    println!("{answered} requests, none failed");

    // What the retired key signed is refused, in the pod itself.
    let pods = cluster.list("pods", TENANT, &format!("{}={id}", names::LABEL_SESSION)).unwrap();
    let pod = pods[0]["metadata"]["name"].as_str().unwrap();
    let forward = cluster.port_forward(TENANT, &format!("pod/{pod}"), names::SESSION_PORT).unwrap();
    let status = async |keys: &Data| {
        let token =
            SessionTokens::from_pem(&text(keys, "private.pem")).unwrap().for_pod(id.parse().unwrap(), pod).unwrap();
        Api::new(&forward.url(), Some(token)).unwrap().get("/status").await.unwrap().status.as_u16()
    };
    assert_eq!(status(&secret(&cluster, SYSTEM, names::SECRET_SESSION_SIGNING)).await, 200);
    eventually("the pod refuses the retired key", READY, async || {
        hurry(&cluster);
        let seen = status(&old_signing).await;
        Ok(if seen == 401 { Ok(()) } else { Err(seen.to_string()) })
    })
    .await
    .unwrap();

    let told = cluster.kubectl(&["-n", SYSTEM, "get", "events", "-o", "yaml"]).unwrap();
    for reason in [
        "SigningKeyOffered",
        "SigningKeyPromoted",
        "SigningKeyRetired",
        "MasterKeyAdded",
        "MasterKeyPromoted",
        "MasterKeyRetired",
    ] {
        assert!(told.contains(reason), "no Event {reason}");
    }
    api.delete(&format!("/v1/sessions/{id}")).await.unwrap();
    settle(&cluster, "120");
}
