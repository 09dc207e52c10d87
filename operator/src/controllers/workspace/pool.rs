//! Which warm pods to make and which to take away. Pure. A claimed pod is not in here at all: the list
//! is of pods with the label `pool=warm`, and deletions name the version that was looked at.
use super::build::template_hash;
use agentapi_crds::names;
use k8s_openapi::api::core::v1::{Pod, PodTemplate};
use kube::ResourceExt;

/// What to do about the warm pods.
#[derive(Debug, Default, PartialEq)]
pub struct Plan<'a> {
    /// How many to make.
    pub create: usize,
    /// Which to take away.
    pub delete: Vec<&'a Pod>,
    /// How many are current and ready.
    pub ready: usize,
    /// Outdated ones that stay until their successors are ready.
    pub outdated: usize,
}

/// Decide. Outdated pods serve until current ones are ready to take their place.
pub fn plan<'a>(wanted: usize, template: &PodTemplate, pods: &'a [Pod]) -> Plan<'a> {
    let hash = template_hash(template);
    let alive: Vec<&Pod> = pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect();
    let (ended, alive): (Vec<&Pod>, Vec<&Pod>) = alive.into_iter().partition(|pod| has_ended(pod));
    let (mut current, mut outdated): (Vec<&Pod>, Vec<&Pod>) = alive
        .into_iter()
        .partition(|pod| pod.annotations().get(names::ANNOTATION_TEMPLATE_HASH).map(String::as_str) == hash);
    // Ready ones first, then the older ones: the end of each list is what goes first.
    current.sort_by_key(|pod| (!is_ready(pod), pod.creation_timestamp().map(|time| time.0)));
    outdated.sort_by_key(|pod| !is_ready(pod));
    let mut delete = ended;
    let surplus = current.split_off(current.len().min(wanted));
    delete.extend(surplus);
    let ready = current.iter().filter(|pod| is_ready(pod)).count();
    let ready_outdated = outdated.iter().filter(|pod| is_ready(pod)).count();
    let keep = wanted.saturating_sub(ready).min(ready_outdated);
    delete.extend(outdated.drain(keep..));
    Plan { create: wanted - current.len(), delete, ready, outdated: keep }
}

/// The pod takes requests.
pub fn is_ready(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none()
        && pod
            .status
            .iter()
            .flat_map(|status| status.conditions.iter().flatten())
            .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// The pod runs no more and never will.
pub fn has_ended(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|status| status.phase.as_deref()), Some("Failed" | "Succeeded"))
}

/// Why pods do not get ready, in the words of the kubelet or the scheduler.
pub fn trouble(pods: &[Pod]) -> Option<String> {
    let of_pod = |pod: &Pod| {
        let status = pod.status.as_ref()?;
        // The model router is an init container that stays.
        let mut containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
        let waiting = containers.find_map(|container| {
            let waiting = container.state.as_ref()?.waiting.as_ref()?;
            let reason = waiting.reason.as_deref()?;
            (reason != "ContainerCreating" && reason != "PodInitializing")
                .then(|| format!("{reason}: {}", waiting.message.as_deref().unwrap_or_default()))
        });
        let unscheduled = || {
            status.conditions.iter().flatten().find_map(|condition| {
                (condition.type_ == "PodScheduled" && condition.status == "False")
                    .then(|| condition.message.clone().unwrap_or_default())
            })
        };
        waiting.or_else(unscheduled).map(|why| format!("pod {}: {why}", pod.name_any()))
    };
    pods.iter().filter(|pod| !is_ready(pod)).find_map(of_pod)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn template(hash: &str) -> PodTemplate {
        serde_json::from_value(json!({"metadata": {"annotations": {names::ANNOTATION_TEMPLATE_HASH: hash}}})).unwrap()
    }

    fn pod(name: &str, hash: &str, ready: bool) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": name, "annotations": {names::ANNOTATION_TEMPLATE_HASH: hash}},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
        }))
        .unwrap()
    }

    fn deleted(plan: &Plan) -> Vec<String> {
        plan.delete.iter().map(|pod| pod.name_any()).collect()
    }

    #[test]
    fn missing_ones_are_made_and_surplus_ones_go_unready_first() {
        let pods = [pod("a", "1", false), pod("b", "1", true)];
        assert_eq!(plan(4, &template("1"), &pods).create, 2);
        let fewer = plan(1, &template("1"), &pods);
        assert_eq!((fewer.create, deleted(&fewer)), (0, vec!["a".to_owned()]));
        assert_eq!(deleted(&plan(0, &template("1"), &pods)).len(), 2);
    }

    #[test]
    fn outdated_ones_serve_until_their_successors_are_ready() {
        let before = [pod("a", "1", true), pod("b", "1", true)];
        let first = plan(2, &template("2"), &before);
        assert_eq!((first.create, first.delete.len(), first.outdated), (2, 0, 2));
        let between = [before[0].clone(), before[1].clone(), pod("c", "2", true), pod("d", "2", false)];
        let second = plan(2, &template("2"), &between);
        assert_eq!((second.create, second.delete.len(), second.ready), (0, 1, 1));
        let after = [before[0].clone(), pod("c", "2", true), pod("d", "2", true)];
        assert_eq!(deleted(&plan(2, &template("2"), &after)), ["a"]);
    }

    #[test]
    fn outdated_ones_that_never_got_ready_go_at_once() {
        let pods = [pod("a", "1", false)];
        assert_eq!(deleted(&plan(1, &template("2"), &pods)), ["a"]);
    }

    #[test]
    fn ended_ones_are_replaced_and_those_that_go_are_not_counted() {
        let mut ended = pod("a", "1", false);
        ended.status.as_mut().unwrap().phase = Some("Failed".into());
        let mut going = pod("b", "1", true);
        going.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH));
        let pods = [ended, going];
        let plan = plan(1, &template("1"), &pods);
        assert_eq!((plan.create, deleted(&plan)), (1, vec!["a".to_owned()]));
    }

    #[test]
    fn the_reason_of_the_kubelet_is_passed_on() {
        let mut stuck = pod("a", "1", false);
        stuck.status = serde_json::from_value(json!({"containerStatuses": [{
            "name": "agent", "image": "x", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": "ErrImageNeverPull", "message": "no such image"}}}]}))
        .unwrap();
        assert_eq!(trouble(&[stuck.clone()]).unwrap(), "pod a: ErrImageNeverPull: no such image");
        stuck.status = serde_json::from_value(json!({
            "initContainerStatuses": [{
                "name": "model-router", "image": "x", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"waiting": {"reason": "CreateContainerConfigError", "message": "secret \"google\" not found"}}}],
            "containerStatuses": [{
                "name": "agent", "image": "x", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"waiting": {"reason": "PodInitializing"}}}]}))
        .unwrap();
        assert_eq!(trouble(&[stuck]).unwrap(), "pod a: CreateContainerConfigError: secret \"google\" not found");
        assert_eq!(trouble(&[pod("b", "1", true)]), None);
    }
}
