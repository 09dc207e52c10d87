//! The objects of a Workspace in its tenant namespace. Pure, and each is a snapshot in the tests.
use super::validate::Accepted;
use super::{keeping, model, network::egress_policy};
use crate::controllers::pods::{of_user, probe, restricted};
use crate::egress::Decision;
use agentapi_crds::{Workspace, names, names::env, pod::SESSION_VOLUME};
use k8s_openapi::{
    api::{
        core::v1::{
            Container, ContainerPort, EmptyDirVolumeSource, EnvFromSource, EnvVar, EnvVarSource, ObjectFieldSelector,
            PersistentVolumeClaim, PersistentVolumeClaimSpec, PersistentVolumeClaimVolumeSource, PodSpec, PodTemplate,
            PodTemplateSpec, ResourceRequirements, SecretEnvSource, SecretVolumeSource, Volume,
            VolumeResourceRequirements,
        },
        networking::v1::NetworkPolicy,
    },
    apimachinery::pkg::api::resource::Quantity,
};
use kube::api::ObjectMeta;
use sha2::{Digest, Sha256};
use std::{collections::BTreeMap, marker::PhantomData};

/// Not written to the cluster yet.
#[derive(Debug)]
pub enum Prepared {}
/// Live in the cluster.
#[derive(Debug)]
pub enum Applied {}

/// User and group of session pods.
const AGENT: i64 = 10001;
const STATE: &str = "/state";
const WORKDIR: &str = "/workspace";
const HOME: &str = "/home/agent";
const SECRETS: &str = "/run/agentapi/session";
/// What a session may write to the node's disk, all its folders, logs and layers together.
const EPHEMERAL: &str = "10Gi";

/// Everything that a Workspace owns, besides its warm pods.
#[derive(Debug)]
pub struct Resources<State> {
    /// What pods are made from.
    pub template: PodTemplate,
    /// What the agent may connect to.
    pub egress: NetworkPolicy,
    /// The volume of the working folder, if the Workspace has one.
    pub volume: Option<PersistentVolumeClaim>,
    pub(super) state: PhantomData<State>,
}

/// What the operator says in every pod.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// Base URL of the runtime's internal API.
    pub runtime_internal_url: String,
    /// Keys that session tokens are checked with, sorted.
    pub session_public_keys: Vec<String>,
}

/// Labels of everything that a Workspace owns.
pub fn labels(accepted: &Accepted) -> BTreeMap<String, String> {
    BTreeMap::from([
        (names::LABEL_MANAGED_BY.to_owned(), names::OPERATOR.to_owned()),
        (names::LABEL_ORGANIZATION.to_owned(), accepted.tenancy.slug.clone()),
        (names::LABEL_WORKSPACE.to_owned(), accepted.name.clone()),
        (names::LABEL_WORKSPACE_NAMESPACE.to_owned(), accepted.namespace.clone()),
    ])
}

/// Labels of session pods.
fn pod_labels(accepted: &Accepted) -> BTreeMap<String, String> {
    let mut labels = labels(accepted);
    labels.insert(names::LABEL_COMPONENT.to_owned(), names::COMPONENT_SESSION.to_owned());
    labels
}

/// Digest of the template that a `PodTemplate` carries.
pub fn template_hash(template: &PodTemplate) -> Option<&str> {
    template.metadata.annotations.as_ref()?.get(names::ANNOTATION_TEMPLATE_HASH).map(String::as_str)
}

/// Everything that the Workspace owns; `egress` is what it may open.
pub fn build(
    workspace: &Workspace,
    accepted: &Accepted,
    surroundings: &Surroundings,
    egress: &Decision,
) -> Resources<Prepared> {
    // A rotation of the signing key waits for the pods that do not know the next key.
    let known = names::signing_key_ids(surroundings.session_public_keys.iter().map(String::as_str));
    let spec = PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(pod_labels(accepted)),
            annotations: Some([(names::ANNOTATION_SESSION_KEYS.to_owned(), known)].into()),
            ..ObjectMeta::default()
        }),
        spec: Some(pod_spec(workspace, accepted, surroundings)),
    };
    let hash = hex::encode(&Sha256::digest(serde_json::to_string(&spec).unwrap_or_default())[..8]);
    let mut metadata = meta(accepted);
    metadata.annotations = Some([(names::ANNOTATION_TEMPLATE_HASH.to_owned(), hash)].into());
    Resources {
        template: PodTemplate { metadata, template: Some(spec) },
        egress: egress_policy(accepted, egress),
        volume: volume(workspace, accepted),
        state: PhantomData,
    }
}

pub(super) fn meta(accepted: &Accepted) -> ObjectMeta {
    ObjectMeta {
        name: Some(names::pod_template(&accepted.name)),
        namespace: Some(names::tenant_namespace(&accepted.tenancy.slug)),
        labels: Some(labels(accepted)),
        ..ObjectMeta::default()
    }
}

fn pod_spec(workspace: &Workspace, accepted: &Accepted, surroundings: &Surroundings) -> PodSpec {
    PodSpec {
        automount_service_account_token: Some(false),
        containers: vec![container(workspace, surroundings)],
        enable_service_links: Some(false),
        init_containers: model::sidecar(&workspace.spec.agent).map(|router| vec![router]),
        restart_policy: Some("Always".into()),
        runtime_class_name: workspace.spec.runtime_class_name.clone(),
        security_context: Some(of_user(AGENT)),
        service_account_name: Some(names::SESSION_SERVICE_ACCOUNT.into()),
        termination_grace_period_seconds: Some(10),
        volumes: Some(volumes(workspace, accepted)),
        ..PodSpec::default()
    }
}

fn container(workspace: &Workspace, surroundings: &Surroundings) -> Container {
    let kept = keeping::kept(workspace);
    let mount = |name: &str, path: &str| keeping::mount(kept, name, path);
    let mut secret = mount(SESSION_VOLUME, SECRETS);
    secret.read_only = Some(true);
    let secrets = workspace.spec.agent.secret_refs.iter().map(|name| EnvFromSource {
        secret_ref: Some(SecretEnvSource { name: name.clone(), optional: Some(false) }),
        ..EnvFromSource::default()
    });
    Container {
        name: names::SESSION_CONTAINER.into(),
        image: Some(workspace.spec.agent.image.clone()),
        image_pull_policy: Some("IfNotPresent".into()),
        command: Some(vec!["agentapi-runtime".into(), "session".into()]),
        env: Some(environment(workspace, surroundings)),
        env_from: Some(secrets.collect()),
        ports: Some(vec![ContainerPort {
            container_port: i32::from(names::SESSION_PORT),
            name: Some(names::SESSION_PORT_NAME.into()),
            protocol: Some("TCP".into()),
            ..ContainerPort::default()
        }]),
        readiness_probe: Some(probe("/internal/ready", names::SESSION_PORT_NAME, 1, 3)),
        liveness_probe: Some(probe("/internal/live", names::SESSION_PORT_NAME, 10, 3)),
        resources: Some(resources(workspace)),
        security_context: Some(restricted()),
        volume_mounts: Some(vec![
            mount("state", STATE),
            mount("workspace", WORKDIR),
            mount("home", HOME),
            mount("tmp", "/tmp"),
            secret,
        ]),
        ..Container::default()
    }
}

fn environment(workspace: &Workspace, surroundings: &Surroundings) -> Vec<EnvVar> {
    let agent = &workspace.spec.agent;
    let plain = |name: &str, value: String| EnvVar { name: name.into(), value: Some(value), value_from: None };
    let mut variables = vec![
        plain(env::LISTEN, format!("0.0.0.0:{}", names::SESSION_PORT)),
        plain(env::AGENT_TYPE, agent.r#type.as_str().into()),
        plain(env::TRANSPORT, agent.transport.as_str().into()),
        plain(env::PERMISSIONS, agent.permissions.default.as_str().into()),
        plain(env::PERMISSION_TIMEOUT, agent.permissions.timeout.clone()),
        plain(env::SESSION_PUBLIC_KEY, surroundings.session_public_keys.join(",")),
        plain(env::RUNTIME_INTERNAL_URL, surroundings.runtime_internal_url.clone()),
        plain(env::STATE_DIR, STATE.into()),
        plain(env::WORKDIR, WORKDIR.into()),
        plain(env::SESSION_SECRET_DIR, SECRETS.into()),
        EnvVar {
            name: env::POD_NAME.into(),
            value: None,
            value_from: Some(EnvVarSource {
                field_ref: Some(ObjectFieldSelector {
                    api_version: Some("v1".into()),
                    field_path: "metadata.name".into(),
                }),
                ..EnvVarSource::default()
            }),
        },
    ];
    if !keeping::kept(workspace).is_empty() {
        variables.push(plain(env::STATE_RESERVE, keeping::RESERVE_BYTES.to_string()));
    }
    if let Some(command) = &agent.command {
        let json = serde_json::Value::from(command.clone()).to_string();
        variables.push(plain(env::AGENT_COMMAND, dollars_doubled(&json)));
    }
    if !agent.env.iter().any(|variable| variable.name == "HOME") {
        variables.push(plain("HOME", HOME.into()));
    }
    variables.extend(model::environment(agent));
    variables.extend(agent.env.iter().map(|variable| plain(&variable.name, dollars_doubled(&variable.value))));
    variables
}

/// Kubernetes expands `$(NAME)` and halves `$$` in values; what people wrote is meant as it stands.
fn dollars_doubled(value: &str) -> String {
    value.replace('$', "$$")
}

/// What the Workspace says, completed with our own limits: no container runs without.
fn resources(workspace: &Workspace) -> ResourceRequirements {
    let wanted = workspace.spec.resources.clone().unwrap_or_default();
    let mut limits = wanted.limits.unwrap_or_default();
    for (resource, default) in [("cpu", "2"), ("memory", "2Gi"), ("ephemeral-storage", EPHEMERAL)] {
        limits.entry(resource.into()).or_insert_with(|| Quantity(default.into()));
    }
    // A request above a limit of the Workspace would be refused: then the limit is the request.
    let own_limits = workspace.spec.resources.as_ref().and_then(|own| own.limits.clone()).unwrap_or_default();
    let mut requests = wanted.requests.unwrap_or_default();
    for (resource, default) in [("cpu", "100m"), ("memory", "256Mi"), ("ephemeral-storage", "256Mi")] {
        let fallback = own_limits.get(resource).cloned().unwrap_or_else(|| Quantity(default.into()));
        requests.entry(resource.into()).or_insert(fallback);
    }
    ResourceRequirements { limits: Some(limits), requests: Some(requests), claims: wanted.claims }
}

fn volumes(workspace: &Workspace, accepted: &Accepted) -> Vec<Volume> {
    let empty = |name: &str, size: &str| Volume {
        name: name.into(),
        empty_dir: Some(EmptyDirVolumeSource { size_limit: Some(Quantity(size.into())), medium: None }),
        ..Volume::default()
    };
    let mut work = empty("workspace", EPHEMERAL);
    if workspace.spec.storage.is_some() {
        work.empty_dir = None;
        work.persistent_volume_claim = Some(PersistentVolumeClaimVolumeSource {
            claim_name: names::pod_template(&accepted.name),
            read_only: None,
        });
    }
    // The real name is that of the pod: agentapi_crds::pod::instantiate.
    let session = Volume {
        name: SESSION_VOLUME.into(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(names::session_secret("pod")),
            optional: Some(true),
            default_mode: Some(0o440),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    };
    let mut volumes = vec![empty("state", "1Gi"), work, empty("home", "4Gi"), empty("tmp", "2Gi"), session];
    let kept = keeping::kept(workspace);
    volumes.retain(|volume| !kept.contains(&volume.name.as_str()));
    volumes.extend(keeping::volume(workspace, accepted));
    volumes.extend(model::volume(&workspace.spec.agent));
    volumes
}

fn volume(workspace: &Workspace, accepted: &Accepted) -> Option<PersistentVolumeClaim> {
    let storage = workspace.spec.storage.as_ref()?;
    Some(PersistentVolumeClaim {
        metadata: meta(accepted),
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".into()]),
            storage_class_name: storage.storage_class_name.clone(),
            resources: Some(VolumeResourceRequirements {
                requests: Some([("storage".to_owned(), storage.size.clone())].into()),
                limits: None,
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::controllers::workspace::tests::{accepted, egress, surroundings, web};
    use serde_json::json;

    #[test]
    fn a_workspace() {
        let Resources { template, egress, volume, state: _ } = build(&web(), &accepted(), &surroundings(), &egress());
        assert!(volume.is_none());
        insta::assert_yaml_snapshot!("template", template);
        insta::assert_yaml_snapshot!("egress", egress);
    }

    #[test]
    fn with_storage_the_working_folder_is_a_volume() {
        let mut workspace = web();
        workspace.spec.storage = serde_json::from_value(json!({"size": "5Gi"})).unwrap();
        let resources = build(&workspace, &accepted(), &surroundings(), &egress());
        insta::assert_yaml_snapshot!("volume", resources.volume);
        let pod = resources.template.template.unwrap().spec.unwrap();
        let work = pod.volumes.unwrap().into_iter().find(|volume| volume.name == "workspace").unwrap();
        assert_eq!(work.persistent_volume_claim.unwrap().claim_name, "ws-web");
    }

    #[test]
    fn a_session_that_may_be_suspended_has_a_volume_of_its_own() {
        let mut workspace = web();
        workspace.spec.suspend =
            serde_json::from_value(json!({"idleAfter": "10m", "storageClassName": "fast"})).unwrap();
        let shown = |workspace: &Workspace| {
            let resources = build(workspace, &accepted(), &surroundings(), &egress());
            let pod = resources.template.template.unwrap().spec.unwrap();
            (pod.volumes.unwrap(), pod.containers.into_iter().next().unwrap().volume_mounts.unwrap())
        };
        insta::assert_yaml_snapshot!("kept", shown(&workspace));
        let reserve = |workspace: &Workspace| {
            let variables = environment(workspace, &surroundings());
            variables.into_iter().find(|it| it.name == env::STATE_RESERVE).and_then(|it| it.value)
        };
        assert_eq!((reserve(&workspace).as_deref(), reserve(&web())), (Some("33554432"), None));
        // The working folder of all sessions stays where it is.
        workspace.spec.storage = serde_json::from_value(json!({"size": "5Gi"})).unwrap();
        let (volumes, mounts) = shown(&workspace);
        let work = mounts.iter().find(|mount| mount.mount_path == WORKDIR).unwrap();
        assert_eq!((work.name.as_str(), work.sub_path.as_deref()), ("workspace", None));
        assert!(volumes.iter().any(|volume| volume.name == "workspace" && volume.persistent_volume_claim.is_some()));
    }

    #[test]
    fn what_pods_are_made_of_decides_the_hash_and_nothing_else_does() {
        let hash = |workspace: &Workspace| {
            let resources = build(workspace, &accepted(), &surroundings(), &egress());
            template_hash(&resources.template).unwrap().to_owned()
        };
        let mut more_warm = web();
        more_warm.spec.warm_pool += 1;
        assert_eq!(hash(&web()), hash(&more_warm));
        let mut other_image = web();
        other_image.spec.agent.image = "agentapi.dev/session-claude:next".into();
        assert_ne!(hash(&web()), hash(&other_image));
    }

    #[test]
    fn values_of_the_environment_are_not_expanded_by_kubernetes() {
        let mut workspace = web();
        workspace.spec.agent.env =
            serde_json::from_value(json!([{"name": "X", "value": "$(HOME) $$(HOME) costs $5"}])).unwrap();
        let variables = environment(&workspace, &surroundings());
        let x = variables.iter().find(|variable| variable.name == "X").unwrap();
        assert_eq!(x.value.as_deref(), Some("$$(HOME) $$$$(HOME) costs $$5"));
    }

    #[test]
    fn a_request_never_exceeds_the_limit_of_the_workspace() {
        let mut workspace = web();
        workspace.spec.resources = serde_json::from_value(json!({"limits": {"memory": "128Mi"}})).unwrap();
        let resources = resources(&workspace);
        assert_eq!(resources.requests.unwrap()["memory"], Quantity("128Mi".into()));
        assert_eq!(resources.limits.unwrap()["cpu"], Quantity("2".into()));
    }
}
