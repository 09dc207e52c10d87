#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::*;
use std::sync::Arc;

use crate::auth::session_token::{SessionTokens, TEST_PEM};
use secrecy::SecretString;

pub(in crate::pods) fn request() -> PodRequest {
    PodRequest {
        session: "01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap(),
        organization: "acme".into(),
        workspace: "coding".into(),
        env: BTreeMap::from([("API_KEY".to_owned(), SecretString::from("hunter2"))]),
        prompt: Some("hello".into()),
        system_prompt: Some("Be kind.".into()),
        tokens: Arc::new(SessionTokens::from_pem(TEST_PEM).unwrap()),
        token_key: "key-1".into(),
    }
}

fn template() -> PodTemplate {
    serde_json::from_value(json!({
        "metadata": {"name": "ws-coding"},
        "template": {
            "metadata": {"labels": {"agentapi.dev/pool": "warm", "x": "y"}, "annotations": {"a": "b"}},
            "spec": {
                "containers": [{"name": "agent"}],
                "volumes": [
                    {"name": "session", "secret": {"secretName": "placeholder", "optional": true}},
                    {"name": "state", "emptyDir": {}}
                ]
            }
        }
    }))
    .unwrap()
}

fn pod(value: serde_json::Value) -> KubePod {
    serde_json::from_value(value).unwrap()
}

#[test]
fn a_cold_pod_mounts_its_own_secret_and_says_whose_it_is() {
    let request = request();
    let name = cold_pod_name(request.session);
    let (pod, claim) = cold_pod(&template(), &name, request.session, "key-1").unwrap();
    assert_eq!(claim, None);
    assert_eq!(pod.labels()[names::LABEL_POOL], names::POOL_COLD);
    assert_eq!(pod.labels()[names::LABEL_SESSION], request.session.to_string());
    assert_eq!(pod.labels()["x"], "y");
    let volumes = pod.spec.unwrap().volumes.unwrap();
    assert_eq!(volumes.len(), 2);
    let secret = volumes.iter().find_map(|volume| volume.secret.clone()).unwrap();
    assert_eq!(secret.secret_name, Some(format!("{name}-session")));
}

#[test]
fn the_environment_is_in_the_secret_and_not_in_the_pod() {
    let request = request();
    let (pod, _) = cold_pod(&template(), "s-1", request.session, "key-1").unwrap();
    let shown = serde_json::to_string(&pod).unwrap();
    assert!(!shown.contains("hunter2") && !shown.contains("Be kind."), "{shown}");
    let secret = session_secret(&request, "s-1", None).unwrap();
    let data = secret.data.unwrap();
    assert_eq!(data["env.json"].0, br#"{"API_KEY":"hunter2"}"#);
    let session: serde_json::Value = serde_json::from_slice(&data["session.json"].0).unwrap();
    assert_eq!((&session["initialPrompt"], &session["systemPrompt"]), (&json!("hello"), &json!("Be kind.")));
    let token = request.tokens.verify_session(std::str::from_utf8(&data["token"].0).unwrap()).unwrap();
    assert_eq!((token.sub, token.pod.as_str()), (request.session, "s-1"));
}

#[test]
fn a_template_without_spec_is_refused_with_a_reason() {
    let mut empty = PodTemplate::default();
    empty.metadata.name = Some("ws-coding".into());
    let error = cold_pod(&empty, "s-1", request().session, "key-1").unwrap_err();
    assert!(error.contains("coding"), "{error}");
}

#[test]
fn a_pod_with_a_volume_that_outlives_it_names_the_volume() {
    let mut template = template();
    let spec = template.template.as_mut().unwrap().spec.as_mut().unwrap();
    let data = json!({"name": "data", "ephemeral": {"volumeClaimTemplate": {
        "metadata": {"labels": {"x": "y"}}, "spec": {"resources": {"requests": {"storage": "2Gi"}}}}}});
    spec.volumes.as_mut().unwrap().push(serde_json::from_value(data).unwrap());
    // A warm one leaves it to Kubernetes, which gives the volume the same name.
    assert!(observed(&agentapi_crds::pod::instantiate(&template, "w-1", names::POOL_WARM)).keeps);
    let (pod, claim) = cold_pod(&template, "w-1", request().session, "key-1").unwrap();
    assert!(observed(&pod).keeps);
    let claim = claim.unwrap();
    assert_eq!((claim.name_any(), claim.labels()["x"].as_str()), ("w-1-data".to_owned(), "y"));
    assert!(claim.spec.unwrap().resources.is_some());
    let volume = pod.spec.unwrap().volumes.unwrap().into_iter().find(|it| it.name == "data").unwrap();
    assert_eq!(volume.ephemeral, None);
    assert_eq!(volume.persistent_volume_claim.unwrap().claim_name, "w-1-data");
}

#[test]
fn states_are_told_apart() {
    let running = pod(json!({"metadata": {"name": "p"}, "status": {"phase": "Running", "podIP": "10.0.0.7",
        "containerStatuses": [{"name": "agent", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"running": {}}}]}}));
    assert_eq!(observed(&running).state, PodState::Running("10.0.0.7".into()));
    let pulling = pod(json!({"metadata": {"name": "p"}, "status": {"phase": "Pending",
        "containerStatuses": [{"name": "agent", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}}]}}));
    assert_eq!(observed(&pulling).state, PodState::Waiting(Some("ErrImagePull: no such image".into())));
    let keyless = pod(json!({"metadata": {"name": "p"}, "status": {"phase": "Pending",
        "initContainerStatuses": [{"name": "model-router", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": "CreateContainerConfigError", "message": "secret \"google\" not found"}}}],
        "containerStatuses": [{"name": "agent", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": "PodInitializing"}}}]}}));
    let why = "CreateContainerConfigError: secret \"google\" not found";
    assert_eq!(observed(&keyless).state, PodState::Waiting(Some(why.into())));
    let unscheduled = pod(json!({"metadata": {"name": "p"}, "status": {"phase": "Pending", "conditions":
        [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no memory"}]}}));
    assert_eq!(observed(&unscheduled).state, PodState::Waiting(Some("Unschedulable: no memory".into())));
    let evicted = pod(json!({"metadata": {"name": "p"}, "status": {"phase": "Failed", "reason": "Evicted"}}));
    assert_eq!(observed(&evicted).state, PodState::Failed("the session's pod ended: Evicted".into()));
    let leaving = pod(json!({"metadata": {"name": "p", "deletionTimestamp": "2026-01-01T00:00:00Z"}}));
    assert_eq!(observed(&leaving).state, PodState::Terminating);
}

#[test]
fn only_ready_pods_that_stay_are_claimed() {
    let ready = json!({"metadata": {"name": "p"}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    assert!(is_ready(&pod(ready.clone())));
    let mut leaving = ready;
    leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    assert!(!is_ready(&pod(leaving)));
    assert!(!is_ready(&pod(json!({"metadata": {"name": "p"}}))));
}
