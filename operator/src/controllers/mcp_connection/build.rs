//! The objects of a stdio connection in its tenant namespace: one pod with the program behind HTTP, a Service, and who
//! may talk to whom. Pure, and each is a snapshot in the tests.
use super::validate::Accepted;
use crate::{
    controllers::{
        pods::{of_user, probe, quantities, restricted},
        workspace::network::egress_rule,
    },
    egress::Decision,
};
use agentapi_crds::{mcp_connection::StdioTransport, names};
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy},
        core::v1::{
            Container, ContainerPort, EmptyDirVolumeSource, EnvFromSource, EnvVar, PodSpec, PodTemplateSpec,
            ResourceRequirements, SecretEnvSource, Service, ServicePort, ServiceSpec, Volume, VolumeMount,
        },
        networking::v1::{
            NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
            NetworkPolicySpec,
        },
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use kube::api::ObjectMeta;
use std::{collections::BTreeMap, marker::PhantomData};

/// Not written to the cluster yet.
#[derive(Debug)]
pub enum Prepared {}
/// Live in the cluster.
#[derive(Debug)]
pub enum Applied {}

/// User and group of the program; the same as of agents.
const USER: i64 = 10001;
/// Where our own binary is put: the program's image need not have it.
const OURS: &str = "/agentapi";
const BINARY: &str = "/agentapi/agentapi-runtime";
const PORT_NAME: &str = "mcp";
const CONTAINER: &str = "server";

/// Everything that a stdio connection owns.
#[derive(Debug)]
pub struct Server<State> {
    /// Who may talk to whom.
    pub policy: NetworkPolicy,
    /// The program.
    pub deployment: Deployment,
    /// Its address.
    pub service: Service,
    pub(super) state: PhantomData<State>,
}

/// What the operator says in every such pod.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// Image with `agentapi-runtime`.
    pub runtime_image: String,
    /// Where the runtime is.
    pub system_namespace: String,
    /// Where names are looked up.
    pub dns_namespace: String,
}

/// Labels of everything that the connection owns.
fn labels(accepted: &Accepted) -> BTreeMap<String, String> {
    BTreeMap::from([
        (names::LABEL_MANAGED_BY.to_owned(), names::OPERATOR.to_owned()),
        (names::LABEL_COMPONENT.to_owned(), names::COMPONENT_MCP_SERVER.to_owned()),
        (names::LABEL_ORGANIZATION.to_owned(), accepted.tenancy.slug.clone()),
        (names::LABEL_MCP_CONNECTION.to_owned(), accepted.row.name.clone()),
        (names::LABEL_MCP_CONNECTION_NAMESPACE.to_owned(), accepted.row.namespace.clone()),
    ])
}

/// Selects the pods of one connection.
fn selector(accepted: &Accepted) -> BTreeMap<String, String> {
    let mut labels = labels(accepted);
    labels.retain(|label, _| label == names::LABEL_COMPONENT || label.starts_with(names::LABEL_MCP_CONNECTION));
    labels
}

fn meta(accepted: &Accepted) -> ObjectMeta {
    ObjectMeta {
        name: Some(names::mcp_server(&accepted.row.name)),
        namespace: Some(names::tenant_namespace(&accepted.tenancy.slug)),
        labels: Some(labels(accepted)),
        ..ObjectMeta::default()
    }
}

/// Everything that the connection owns; `egress` is what the program may open.
pub fn build(
    stdio: &StdioTransport,
    accepted: &Accepted,
    surroundings: &Surroundings,
    egress: &Decision,
) -> Server<Prepared> {
    Server {
        policy: policy(accepted, surroundings, egress),
        deployment: deployment(stdio, accepted, surroundings),
        service: service(accepted),
        state: PhantomData,
    }
}

fn deployment(stdio: &StdioTransport, accepted: &Accepted, surroundings: &Surroundings) -> Deployment {
    Deployment {
        metadata: meta(accepted),
        spec: Some(DeploymentSpec {
            replicas: Some(1),
            revision_history_limit: Some(0),
            selector: LabelSelector { match_labels: Some(selector(accepted)), ..LabelSelector::default() },
            // Sessions do not survive the pod anyway, and the tenant's quota has room for one.
            strategy: Some(DeploymentStrategy { type_: Some("Recreate".into()), rolling_update: None }),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta { labels: Some(labels(accepted)), ..ObjectMeta::default() }),
                spec: Some(pod_spec(stdio, surroundings)),
            },
            ..DeploymentSpec::default()
        }),
        status: None,
    }
}

fn pod_spec(stdio: &StdioTransport, surroundings: &Surroundings) -> PodSpec {
    let empty = |name: &str, size: &str| Volume {
        name: name.into(),
        empty_dir: Some(EmptyDirVolumeSource { size_limit: Some(Quantity(size.into())), medium: None }),
        ..Volume::default()
    };
    PodSpec {
        automount_service_account_token: Some(false),
        init_containers: Some(vec![installer(surroundings)]),
        containers: vec![program(stdio)],
        enable_service_links: Some(false),
        security_context: Some(of_user(USER)),
        service_account_name: Some(names::SESSION_SERVICE_ACCOUNT.into()),
        termination_grace_period_seconds: Some(10),
        volumes: Some(vec![empty("agentapi", "256Mi"), empty("tmp", "1Gi")]),
        ..PodSpec::default()
    }
}

/// Puts our binary where the program's container finds it.
fn installer(surroundings: &Surroundings) -> Container {
    Container {
        name: "agentapi".into(),
        image: Some(surroundings.runtime_image.clone()),
        image_pull_policy: Some("IfNotPresent".into()),
        command: Some(["agentapi-runtime", "install", BINARY].map(Into::into).into()),
        resources: Some(resources([("cpu", "500m"), ("memory", "64Mi"), ("ephemeral-storage", "256Mi")])),
        security_context: Some(restricted()),
        volume_mounts: Some(vec![mount("agentapi", OURS, false)]),
        ..Container::default()
    }
}

fn program(stdio: &StdioTransport) -> Container {
    let listen = format!("0.0.0.0:{}", names::MCP_STDIO_PORT);
    let ours = [BINARY, "mcp-stdio", "--listen", &listen, "--"].map(ToOwned::to_owned).into_iter();
    let theirs = stdio.command.iter().chain(&stdio.args).map(|word| dollars_doubled(word));
    let variable =
        |name: &str, value: &str| EnvVar { name: name.into(), value: Some(dollars_doubled(value)), value_from: None };
    let mut env: Vec<EnvVar> = stdio.env.iter().map(|it| variable(&it.name, &it.value)).collect();
    // The root file system is read-only, and programs want to write somewhere.
    if !stdio.env.iter().any(|it| it.name == "HOME") {
        env.push(variable("HOME", "/tmp"));
    }
    let secrets = stdio.secret_refs.iter().map(|name| EnvFromSource {
        secret_ref: Some(SecretEnvSource { name: name.clone(), optional: Some(false) }),
        ..EnvFromSource::default()
    });
    Container {
        name: CONTAINER.into(),
        image: Some(stdio.image.clone()),
        image_pull_policy: Some("IfNotPresent".into()),
        command: Some(ours.chain(theirs).collect()),
        env: Some(env),
        env_from: Some(secrets.collect()),
        ports: Some(vec![ContainerPort {
            container_port: i32::from(names::MCP_STDIO_PORT),
            name: Some(PORT_NAME.into()),
            protocol: Some("TCP".into()),
            ..ContainerPort::default()
        }]),
        readiness_probe: Some(probe("/live", PORT_NAME, 1, 3)),
        liveness_probe: Some(probe("/live", PORT_NAME, 10, 3)),
        resources: Some(resources([("cpu", "1"), ("memory", "512Mi"), ("ephemeral-storage", "2Gi")])),
        security_context: Some(restricted()),
        volume_mounts: Some(vec![mount("agentapi", OURS, true), mount("tmp", "/tmp", false)]),
        working_dir: Some("/tmp".into()),
        ..Container::default()
    }
}

/// Kubernetes expands `$(NAME)` and halves `$$` in commands and values; what people wrote is meant as it stands.
fn dollars_doubled(value: &str) -> String {
    value.replace('$', "$$")
}

fn mount(name: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: name.into(),
        mount_path: path.into(),
        read_only: Some(true).filter(|_| read_only),
        ..VolumeMount::default()
    }
}

fn resources(limits: [(&str, &str); 3]) -> ResourceRequirements {
    ResourceRequirements {
        limits: Some(quantities(limits)),
        requests: Some(quantities([("cpu", "50m"), ("memory", "64Mi"), ("ephemeral-storage", "64Mi")])),
        claims: None,
    }
}

fn service(accepted: &Accepted) -> Service {
    Service {
        metadata: meta(accepted),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".into()),
            selector: Some(selector(accepted)),
            ports: Some(vec![ServicePort {
                name: Some(PORT_NAME.into()),
                port: i32::from(names::MCP_STDIO_PORT),
                protocol: Some("TCP".into()),
                target_port: Some(IntOrString::String(PORT_NAME.into())),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

/// Only the runtime gets in. Out goes what the Organization lets the connection open, and then names are looked up.
fn policy(accepted: &Accepted, surroundings: &Surroundings, egress: &Decision) -> NetworkPolicy {
    let matching = |label: &str, value: &str| LabelSelector {
        match_labels: Some([(label.to_owned(), value.to_owned())].into()),
        ..LabelSelector::default()
    };
    let port = |protocol: &str, port: u16| NetworkPolicyPort {
        protocol: Some(protocol.into()),
        port: Some(IntOrString::Int(i32::from(port))),
        end_port: None,
    };
    let in_namespace = |namespace: &str| Some(matching("kubernetes.io/metadata.name", namespace));
    let runtime = NetworkPolicyPeer {
        namespace_selector: in_namespace(&surroundings.system_namespace),
        pod_selector: Some(matching("app.kubernetes.io/name", names::RUNTIME)),
        ..NetworkPolicyPeer::default()
    };
    let dns = NetworkPolicyEgressRule {
        to: Some(vec![NetworkPolicyPeer {
            namespace_selector: in_namespace(&surroundings.dns_namespace),
            ..NetworkPolicyPeer::default()
        }]),
        ports: Some(vec![port("UDP", 53), port("TCP", 53)]),
    };
    let mut open: Vec<NetworkPolicyEgressRule> = egress.open.iter().map(egress_rule).collect();
    if !open.is_empty() {
        open.insert(0, dns);
    }
    NetworkPolicy {
        metadata: meta(accepted),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(LabelSelector { match_labels: Some(selector(accepted)), ..LabelSelector::default() }),
            policy_types: Some(vec!["Ingress".into(), "Egress".into()]),
            ingress: Some(vec![NetworkPolicyIngressRule {
                from: Some(vec![runtime]),
                ports: Some(vec![port("TCP", names::MCP_STDIO_PORT)]),
            }]),
            egress: Some(open),
        }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{
        controllers::{
            mcp_connection::validate::{tests::files, validate},
            workspace::tests::tenancy,
        },
        egress::{self, Closed},
    };

    fn prepared(connection: &agentapi_crds::McpConnection) -> Server<Prepared> {
        let surroundings = Surroundings {
            runtime_image: "agentapi.dev/runtime:dev".into(),
            system_namespace: names::SYSTEM_NAMESPACE.into(),
            dns_namespace: "kube-system".into(),
        };
        let accepted = validate(connection, Ok(tenancy()), None, []).unwrap();
        let stdio = connection.spec.transport.stdio.as_ref().unwrap();
        let closed = Closed::new(["10.244.0.0/16".parse().unwrap()], names::SYSTEM_NAMESPACE);
        let decision = egress::decide(&stdio.egress, tenancy().allowed_egress.as_deref(), &closed);
        build(stdio, &accepted, &surroundings, &decision)
    }

    #[test]
    fn a_program() {
        let Server { policy, deployment, service, state: _ } = prepared(&files());
        insta::assert_yaml_snapshot!("deployment", deployment);
        insta::assert_yaml_snapshot!("service", service);
        insta::assert_yaml_snapshot!("policy", policy);
    }

    #[test]
    fn a_program_that_opens_nothing_looks_up_no_names_either() {
        let mut connection = files();
        connection.spec.transport.stdio.as_mut().unwrap().egress.clear();
        assert_eq!(prepared(&connection).policy.spec.unwrap().egress, Some(vec![]));
    }

    #[test]
    fn nothing_that_people_write_is_expanded_by_kubernetes() {
        let pod = prepared(&files()).deployment.spec.unwrap().template.spec.unwrap();
        let command = pod.containers[0].command.clone().unwrap();
        assert_eq!(command.last().unwrap(), "/tmp/$$HOME");
        let log = pod.containers[0].env.iter().flatten().find(|it| it.name == "LOG").unwrap().value.clone();
        assert_eq!(log.as_deref(), Some("$$(cat)"));
    }
}
