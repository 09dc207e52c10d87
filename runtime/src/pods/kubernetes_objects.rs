//! Pure: the objects that the API writes into a tenant namespace, and what a pod's status means.

use std::collections::BTreeMap;

use agentapi_crds::names;
use agentapi_crds::pod::{DATA_VOLUME, instantiate};
use agentapi_prompts::compose;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod as KubePod, PodTemplate, Secret,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::ResourceExt;
use secrecy::ExposeSecret;
use serde_json::json;
use uuid::Uuid;

use crate::auth::session_token::SessionTokenError;
use crate::pods::{Pod, PodKind, PodRequest, PodState, WaitingPod};

/// Key of the session token in a session's Secret.
pub(super) const TOKEN_KEY: &str = "token";

/// A cold pod's name says which session it is for, so a second attempt finds it.
pub(super) fn cold_pod_name(session: Uuid) -> String {
    format!("s-{}", session.simple())
}

/// The pod of a session, from its workspace's template, and the volume that outlives it, where the workspace has such.
pub(super) fn cold_pod(
    template: &PodTemplate,
    name: &str,
    session: Uuid,
    token_key: &str,
) -> Result<(KubePod, Option<PersistentVolumeClaim>), String> {
    let mut pod = instantiate(template, name, names::POOL_COLD);
    let Some(spec) = &mut pod.spec else {
        return Err(format!("the pod template {} has no spec", template.name_any()));
    };
    // Kubernetes would make the volume with the pod and bind the one's life to the other's. This pod may be the second
    // with the volume, so it names it.
    let data = spec.volumes.iter_mut().flatten().find(|volume| volume.name == DATA_VOLUME);
    let claim = data.and_then(|volume| {
        let claim = volume.ephemeral.take()?.volume_claim_template?;
        let claim_name = names::session_volume(name);
        volume.persistent_volume_claim =
            Some(PersistentVolumeClaimVolumeSource { claim_name: claim_name.clone(), read_only: None });
        let metadata = ObjectMeta { name: Some(claim_name), ..claim.metadata.unwrap_or_default() };
        Some(PersistentVolumeClaim { metadata, spec: Some(claim.spec), status: None })
    });
    pod.labels_mut().insert(names::LABEL_SESSION.to_owned(), session.to_string());
    pod.annotations_mut().insert(names::ANNOTATION_SESSION_TOKEN_KEY.to_owned(), token_key.to_owned());
    Ok((pod, claim))
}

/// What the pod learns about its session, also after a container restart.
pub(super) fn session_secret(
    request: &PodRequest,
    pod: &str,
    owner: Option<OwnerReference>,
) -> Result<Secret, SessionTokenError> {
    let token = request.token(pod)?;
    let env: BTreeMap<&str, &str> =
        request.env.iter().map(|(key, value)| (key.as_str(), value.expose_secret())).collect();
    let session = json!({
        "id": request.session,
        "organization": request.organization,
        "workspace": request.workspace,
        "initialPrompt": request.prompt,
        "systemPrompt": request.system_prompt,
    });
    let data = BTreeMap::from([
        ("env.json".to_owned(), ByteString(json!(env).to_string().into_bytes())),
        ("session.json".to_owned(), ByteString(session.to_string().into_bytes())),
        (TOKEN_KEY.to_owned(), ByteString(token.expose_secret().as_bytes().to_vec())),
    ]);
    let labels = BTreeMap::from([
        (names::LABEL_MANAGED_BY.to_owned(), names::OPERATOR.to_owned()),
        (names::LABEL_COMPONENT.to_owned(), names::COMPONENT_SESSION.to_owned()),
        (names::LABEL_SESSION.to_owned(), request.session.to_string()),
        (names::LABEL_WORKSPACE.to_owned(), request.workspace.clone()),
    ]);
    Ok(Secret {
        metadata: ObjectMeta {
            name: Some(names::session_secret(pod)),
            labels: Some(labels),
            owner_references: owner.map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        type_: Some("Opaque".to_owned()),
        data: Some(data),
        ..Secret::default()
    })
}

/// The pod as an owner, so that what belongs to it goes with it.
pub(super) fn owner(pod: &KubePod) -> Option<OwnerReference> {
    Some(OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Pod".to_owned(),
        name: pod.metadata.name.clone()?,
        uid: pod.metadata.uid.clone()?,
        ..OwnerReference::default()
    })
}

/// Digest of the system prompt that the agent of a waiting pod was started with: of none, until it was told one.
pub(super) fn prompt_digest(pod: &KubePod) -> String {
    pod.annotations().get(names::ANNOTATION_PROMPT_DIGEST).cloned().unwrap_or_else(|| compose::digest(""))
}

/// A waiting pod that runs.
pub(super) fn waiting(pod: &KubePod) -> Option<WaitingPod> {
    let PodState::Running(ip) = state(pod) else { return None };
    let workspace = pod.labels().get(names::LABEL_WORKSPACE)?.clone();
    Some(WaitingPod { name: pod.name_any(), workspace, ip, prompt_digest: prompt_digest(pod) })
}

/// A pod that takes a session at once.
pub(super) fn is_free(pod: &KubePod) -> bool {
    pod.labels().get(names::LABEL_POOL).is_some_and(|pool| pool == names::POOL_WARM) && is_ready(pod)
}

fn is_ready(pod: &KubePod) -> bool {
    let status = pod.status.as_ref();
    let mut conditions = status.and_then(|status| status.conditions.as_ref()).into_iter().flatten();
    pod.metadata.deletion_timestamp.is_none()
        && conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// What a pod is doing.
pub(super) fn observed(pod: &KubePod) -> Pod {
    let kind = match pod.labels().get(names::LABEL_POOL).map(String::as_str) {
        Some(names::POOL_COLD) => PodKind::Cold,
        _ => PodKind::Warm,
    };
    let says = |name: &str| pod.annotations().get(name).cloned().unwrap_or_default();
    Pod {
        name: pod.name_any(),
        kind,
        state: state(pod),
        known_keys: says(names::ANNOTATION_SESSION_KEYS),
        token_key: says(names::ANNOTATION_SESSION_TOKEN_KEY),
        keeps: volumes(pod).any(|name| name == DATA_VOLUME),
    }
}

fn volumes(pod: &KubePod) -> impl Iterator<Item = &str> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.map(|volume| volume.name.as_str())
}

fn state(pod: &KubePod) -> PodState {
    if pod.metadata.deletion_timestamp.is_some() {
        return PodState::Terminating;
    }
    let Some(status) = &pod.status else {
        return PodState::Waiting(None);
    };
    let agent = status.container_statuses.iter().flatten().find(|status| status.name == names::SESSION_CONTAINER);
    if let Some(phase @ ("Failed" | "Succeeded")) = status.phase.as_deref() {
        let terminated = agent.and_then(|agent| agent.state.as_ref()).and_then(|state| state.terminated.as_ref());
        let why = match (&status.reason, &status.message, terminated) {
            (Some(reason), Some(message), _) => format!("{reason}: {message}"),
            (Some(reason), None, _) => reason.clone(),
            (None, _, Some(end)) => {
                format!("{} (exit code {})", end.reason.as_deref().unwrap_or("ended"), end.exit_code)
            }
            _ => phase.to_owned(),
        };
        return PodState::Failed(format!("the session's pod ended: {why}"));
    }
    let runs = agent.and_then(|agent| agent.state.as_ref()).is_some_and(|state| state.running.is_some());
    match (&status.pod_ip, runs) {
        (Some(ip), true) => PodState::Running(ip.clone()),
        _ => PodState::Waiting(waits_for(pod)),
    }
}

/// Why a pod does not run yet, in Kubernetes' own words.
fn waits_for(pod: &KubePod) -> Option<String> {
    let status = pod.status.as_ref()?;
    // The model router is an init container that stays; while it waits, the agent only says that it does too.
    let waiting = status
        .init_container_statuses
        .iter()
        .chain(&status.container_statuses)
        .flatten()
        .filter_map(|status| status.state.as_ref()?.waiting.as_ref())
        .find_map(|waiting| Some((waiting.reason.clone()?, waiting.message.clone())));
    let unscheduled = || {
        let condition =
            status.conditions.iter().flatten().find(|it| it.type_ == "PodScheduled" && it.status == "False");
        condition.and_then(|it| Some((it.reason.clone()?, it.message.clone())))
    };
    let (reason, message) = waiting.or_else(unscheduled)?;
    Some(message.map_or_else(|| reason.clone(), |message| format!("{reason}: {message}")))
}

#[cfg(test)]
#[path = "kubernetes_objects_tests.rs"]
pub(super) mod tests;
