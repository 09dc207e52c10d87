//! Traffic of a tenant namespace: none, but for what each session needs. Pure; in the snapshots of `build`.
use super::build::meta;
use crate::{config::Config, tenancy::organization::Tenant};
use agentapi_crds::names;
use k8s_openapi::{
    api::networking::v1::{
        NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
        NetworkPolicySpec,
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};

/// Nothing in, nothing out.
pub(super) fn default_deny(tenant: &Tenant) -> NetworkPolicy {
    NetworkPolicy {
        metadata: meta(tenant, "default-deny"),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(LabelSelector::default()),
            policy_types: Some(vec!["Ingress".into(), "Egress".into()]),
            ..NetworkPolicySpec::default()
        }),
    }
}

/// What session pods need: DNS and the runtime.
pub(super) fn session_traffic(tenant: &Tenant, config: &Config) -> NetworkPolicy {
    let runtime = NetworkPolicyPeer {
        namespace_selector: Some(selector("kubernetes.io/metadata.name", &config.system_namespace)),
        pod_selector: Some(selector("app.kubernetes.io/name", names::RUNTIME)),
        ..NetworkPolicyPeer::default()
    };
    let dns = NetworkPolicyPeer {
        namespace_selector: Some(selector("kubernetes.io/metadata.name", &config.dns_namespace)),
        ..NetworkPolicyPeer::default()
    };
    NetworkPolicy {
        metadata: meta(tenant, "session-traffic"),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(selector(names::LABEL_COMPONENT, names::COMPONENT_SESSION)),
            policy_types: Some(vec!["Ingress".into(), "Egress".into()]),
            ingress: Some(vec![NetworkPolicyIngressRule {
                from: Some(vec![runtime.clone()]),
                ports: Some(vec![port("TCP", names::SESSION_PORT)]),
            }]),
            egress: Some(vec![
                NetworkPolicyEgressRule { to: Some(vec![dns]), ports: Some(vec![port("UDP", 53), port("TCP", 53)]) },
                NetworkPolicyEgressRule {
                    to: Some(vec![runtime]),
                    ports: Some(vec![port("TCP", names::RUNTIME_INTERNAL_PORT)]),
                },
            ]),
        }),
    }
}

fn selector(label: &str, value: &str) -> LabelSelector {
    LabelSelector { match_labels: Some([(label.to_owned(), value.to_owned())].into()), ..LabelSelector::default() }
}

fn port(protocol: &str, port: u16) -> NetworkPolicyPort {
    NetworkPolicyPort {
        protocol: Some(protocol.to_owned()),
        port: Some(IntOrString::Int(i32::from(port))),
        ..NetworkPolicyPort::default()
    }
}
