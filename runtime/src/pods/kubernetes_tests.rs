#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::*;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use kube::client::Body;
use rstest::rstest;
use serde_json::Value;

use super::objects::tests::request;

fn waiting(version: &str, pool: &str) -> Value {
    json!({
        "metadata": {"name": "w-1", "resourceVersion": version, "labels": {"agentapi.dev/pool": pool}},
        "status": {"podIP": "10.0.0.1", "phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

#[rstest]
#[case::its_status_was_written("warm", Some("w-1"), 2)]
#[case::another_session_has_it("claimed", None, 1)]
#[tokio::test]
async fn a_warm_pod_that_was_written_to_is_looked_at_again(
    #[case] pool: &'static str,
    #[case] taken: Option<&str>,
    #[case] patches: usize,
) {
    let patched = Arc::new(Mutex::new(0));
    let count = Arc::clone(&patched);
    let server = tower::service_fn(move |call: http::Request<Body>| {
        let count = Arc::clone(&count);
        async move {
            let (method, path) = (call.method().clone(), call.uri().path().to_owned());
            let body: Value =
                serde_json::from_slice(&call.into_body().collect_bytes().await.unwrap()).unwrap_or_default();
            let (status, answer) = if method == http::Method::PATCH {
                *count.lock().unwrap() += 1;
                if body["metadata"]["resourceVersion"] == "2" {
                    (200, waiting("3", "claimed"))
                } else {
                    (409, json!({"status": "Failure", "reason": "Conflict", "message": "modified", "code": 409}))
                }
            } else if path.ends_with("/pods") {
                (200, json!({"metadata": {}, "items": [waiting("1", "warm")]}))
            } else {
                (200, waiting("2", pool))
            };
            let answer = http::Response::builder().status(status).body(Body::from(answer.to_string().into_bytes()));
            Ok::<_, Infallible>(answer.unwrap())
        }
    });
    let pods = KubernetesPods::new(Client::new(server, "default"), Metrics::new().unwrap());
    let claimed = pods.claim_warm(&request()).await.unwrap();
    assert_eq!(claimed.map(|pod| pod.name_any()).as_deref(), taken);
    assert_eq!(*patched.lock().unwrap(), patches);
}

#[rstest]
#[case::made_by_an_earlier_attempt("AlreadyExists", true)]
#[case::refused_by_a_quota_that_many_write_to("Conflict", false)]
#[tokio::test]
async fn only_what_is_there_counts_as_made(#[case] reason: &'static str, #[case] made: bool) {
    let server = tower::service_fn(move |_: http::Request<Body>| async move {
        let answer = json!({"status": "Failure", "reason": reason, "message": "x", "code": 409}).to_string();
        let answer = http::Response::builder().status(409).body(Body::from(answer.into_bytes()));
        Ok::<_, Infallible>(answer.unwrap())
    });
    let pods = KubernetesPods::new(Client::new(server, "default"), Metrics::new().unwrap());
    let secret = pods.create_secret(&request(), "s-1", None).await;
    let volume = pods.create_volume("acme", &serde_json::from_value(json!({"metadata": {"name": "v"}})).unwrap()).await;
    for done in [secret, volume] {
        assert!(if made { done.is_ok() } else { matches!(done, Err(PodError::Unavailable(_))) }, "{done:?}");
    }
}
