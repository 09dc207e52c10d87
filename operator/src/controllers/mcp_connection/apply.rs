//! Writes what `build` prepared and looks how the program's pod is. Exhaustive destructuring: an object that is built
//! and not applied here does not compile.
use super::build::{Applied, Prepared, Server};
use crate::{
    apply::Ownership,
    context::Context,
    drift::{self, Owner},
    error::{Error, Result},
    isolation::fences,
};
use agentapi_crds::names;
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Pod, Service},
    networking::v1::NetworkPolicy,
};
use kube::{
    Api, ResourceExt,
    api::{ListParams, ObjectMeta},
    runtime::reflector::ObjectRef,
};
use std::marker::PhantomData;

/// Write the policy, the program and its address. The policy first: the program never runs without it. One that is missing
/// although it `was_in_place` is a breach.
pub async fn apply(
    context: &Context,
    slug: &str,
    prepared: Server<Prepared>,
    was_in_place: bool,
) -> Result<Server<Applied>> {
    let Server { policy, deployment, service, state: _ } = prepared;
    let namespace = deployment.namespace().unwrap_or_default();
    let client = || context.client.clone();
    let applier = &context.applier;
    Ok(Server {
        policy: fences::apply_policy(context, slug, policy, was_in_place).await?,
        deployment: applier.apply(&Api::namespaced(client(), &namespace), deployment, Ownership::Exclusive).await?,
        service: applier.apply(&Api::namespaced(client(), &namespace), service, Ownership::Exclusive).await?,
        state: PhantomData,
    })
}

/// Does the program of this version run? `None`: yes. Else why not.
pub async fn trouble(context: &Context, deployment: &Deployment) -> Result<Option<String>> {
    if is_available(deployment) {
        return Ok(None);
    }
    let (namespace, labels) = (deployment.namespace().unwrap_or_default(), deployment.labels());
    let label = |name: &str| labels.get(name).cloned().unwrap_or_default();
    let selector = format!(
        "{}={},{}={},{}={}",
        names::LABEL_COMPONENT,
        names::COMPONENT_MCP_SERVER,
        names::LABEL_MCP_CONNECTION,
        label(names::LABEL_MCP_CONNECTION),
        names::LABEL_MCP_CONNECTION_NAMESPACE,
        label(names::LABEL_MCP_CONNECTION_NAMESPACE),
    );
    let pods = Api::<Pod>::namespaced(context.client.clone(), &namespace);
    let listed = pods.list(&ListParams::default().labels(&selector)).await;
    let pods = listed.map_err(|error| Error::kube("list", "Pod", selector, error))?.items;
    Ok(Some(why(deployment, &pods)))
}

/// One pod of the version that was asked for is up.
fn is_available(deployment: &Deployment) -> bool {
    deployment.status.as_ref().is_some_and(|status| {
        status.observed_generation >= deployment.metadata.generation
            && status.updated_replicas == Some(1)
            && status.available_replicas == Some(1)
            && status.replicas == Some(1)
    })
}

/// In Kubernetes' own words: what a container waits for, how it ended, or why there is no pod.
fn why(deployment: &Deployment, pods: &[Pod]) -> String {
    let statuses = pods.iter().filter_map(|pod| pod.status.as_ref());
    let containers = statuses
        .clone()
        .flat_map(|status| status.init_container_statuses.iter().chain(&status.container_statuses).flatten());
    let said = |reason: &Option<String>, message: &Option<String>| {
        let reason = reason.clone()?;
        Some(message.as_ref().map_or_else(|| reason.clone(), |message| format!("{reason}: {message}")))
    };
    let of_container = containers
        .filter_map(|container| {
            let state = container.state.as_ref()?;
            let waiting = state.waiting.as_ref().and_then(|it| said(&it.reason, &it.message));
            waiting.or_else(|| state.terminated.as_ref().and_then(|it| said(&it.reason, &it.message)))
        })
        .find(|why| why != "PodInitializing" && why != "ContainerCreating" && !why.starts_with("Completed"));
    let of_pod = || {
        let conditions = statuses.clone().flat_map(|status| status.conditions.iter().flatten());
        conditions
            .filter(|condition| condition.type_ == "PodScheduled" && condition.status == "False")
            .find_map(|it| said(&it.reason, &it.message))
    };
    // Over the quota, or refused by admission.
    let of_deployment = || {
        let conditions = deployment.status.iter().flat_map(|status| status.conditions.iter().flatten());
        conditions
            .filter(|condition| condition.type_ == "ReplicaFailure" && condition.status == "True")
            .find_map(|it| said(&it.reason, &it.message))
    };
    let why = of_container.or_else(of_pod).or_else(of_deployment);
    let (name, namespace) = (deployment.name_any(), deployment.namespace().unwrap_or_default());
    match why {
        Some(why) => format!("the program's pod is not ready ({why}); see kubectl -n {namespace} logs deploy/{name}"),
        None => "the program's pod is starting".to_owned(),
    }
}

/// Take away what the connection owns in the tenant namespace, or what nobody wants any more.
pub async fn remove(context: &Context, tenant_namespace: &str, name: &str, namespace: &str) -> Result<()> {
    sweep(context, tenant_namespace, &of(name, namespace), |_| false).await
}

/// Take away the connection's program alone.
pub async fn remove_program(context: &Context, tenant_namespace: &str, name: &str, namespace: &str) -> Result<()> {
    let deployments = Api::<Deployment>::namespaced(context.client.clone(), tenant_namespace);
    context.applier.sweep(&deployments, &of(name, namespace), |_| false).await
}

fn of(name: &str, namespace: &str) -> String {
    format!("{}={name},{}={namespace}", names::LABEL_MCP_CONNECTION, names::LABEL_MCP_CONNECTION_NAMESPACE)
}

/// Take away what belongs to connections that are gone although we did not see them go.
pub async fn sweep_orphans(context: &Context, tenant_namespace: &str) -> Result<()> {
    let owned = format!("{}={},{}", names::LABEL_MANAGED_BY, names::OPERATOR, names::LABEL_MCP_CONNECTION_NAMESPACE);
    let wanted = |meta: &ObjectMeta| match drift::owner(meta) {
        Some(Owner::Connection(namespace, name)) => {
            context.stores.connections.get(&ObjectRef::new(&name).within(&namespace)).is_some()
        }
        _ => true,
    };
    sweep(context, tenant_namespace, &owned, wanted).await
}

async fn sweep(
    context: &Context,
    tenant_namespace: &str,
    owned: &str,
    wanted: impl Fn(&ObjectMeta) -> bool + Copy,
) -> Result<()> {
    let (client, applier) = (&context.client, &context.applier);
    applier.sweep(&Api::<Service>::namespaced(client.clone(), tenant_namespace), owned, wanted).await?;
    applier.sweep(&Api::<Deployment>::namespaced(client.clone(), tenant_namespace), owned, wanted).await?;
    applier.sweep(&Api::<NetworkPolicy>::namespaced(client.clone(), tenant_namespace), owned, wanted).await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn deployment(status: &serde_json::Value) -> Deployment {
        serde_json::from_value(json!({
            "metadata": {"name": "agentapi-mcp-files", "namespace": "agentapi-acme", "generation": 2}, "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn only_the_version_that_was_asked_for_counts() {
        let up = json!({"observedGeneration": 2, "replicas": 1, "updatedReplicas": 1, "availableReplicas": 1});
        assert!(is_available(&deployment(&up)));
        let old = json!({"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1, "availableReplicas": 1});
        assert!(!is_available(&deployment(&old)));
        let replacing = json!({"observedGeneration": 2, "replicas": 1, "availableReplicas": 1});
        assert!(!is_available(&deployment(&replacing)));
    }

    #[test]
    fn the_reason_is_the_one_that_kubernetes_gives() {
        let pod = |status: serde_json::Value| -> Pod {
            serde_json::from_value(json!({"metadata": {}, "status": status})).unwrap()
        };
        let image = pod(json!({
            "initContainerStatuses": [{"name": "agentapi", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}],
            "containerStatuses": [{"name": "server", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}}],
        }));
        let said = why(&deployment(&json!({})), &[image]);
        assert!(said.contains("(ErrImagePull: no such image)") && said.contains("agentapi-mcp-files"), "{said}");
        let quota = deployment(&json!({"conditions": [{"type": "ReplicaFailure", "status": "True",
            "reason": "FailedCreate", "message": "exceeded quota: organization"}]}));
        assert!(why(&quota, &[]).contains("exceeded quota"), "{}", why(&quota, &[]));
        assert_eq!(why(&deployment(&json!({})), &[]), "the program's pod is starting");
    }
}
