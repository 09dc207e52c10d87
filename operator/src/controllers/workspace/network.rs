//! What a Workspace's agents may connect to, as a NetworkPolicy. Pure; its snapshot is with the other objects.
use super::build::meta;
use super::validate::Accepted;
use crate::egress::{Decision, Destination, Opening};
use agentapi_crds::names;
use k8s_openapi::{
    api::networking::v1::{
        IPBlock, NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use std::collections::BTreeMap;

pub(super) fn egress_policy(accepted: &Accepted, egress: &Decision) -> NetworkPolicy {
    let matched = BTreeMap::from([
        (names::LABEL_COMPONENT.to_owned(), names::COMPONENT_SESSION.to_owned()),
        (names::LABEL_WORKSPACE.to_owned(), accepted.name.clone()),
    ]);
    NetworkPolicy {
        metadata: meta(accepted),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(LabelSelector { match_labels: Some(matched), ..LabelSelector::default() }),
            policy_types: Some(vec!["Egress".into()]),
            egress: Some(egress.open.iter().map(egress_rule).collect()),
            ingress: None,
        }),
    }
}

/// One opening as a rule.
pub(crate) fn egress_rule(opening: &Opening) -> NetworkPolicyEgressRule {
    let peer = match &opening.to {
        Destination::Addresses(range, except) => NetworkPolicyPeer {
            ip_block: Some(IPBlock {
                cidr: range.to_string(),
                except: Some(except.iter().map(ToString::to_string).collect::<Vec<_>>())
                    .filter(|list| !list.is_empty()),
            }),
            ..NetworkPolicyPeer::default()
        },
        Destination::Namespace(namespace) => NetworkPolicyPeer {
            namespace_selector: Some(LabelSelector {
                match_labels: Some([("kubernetes.io/metadata.name".to_owned(), namespace.clone())].into()),
                ..LabelSelector::default()
            }),
            ..NetworkPolicyPeer::default()
        },
    };
    let ports = opening.ports.iter().map(|port| NetworkPolicyPort {
        protocol: Some("TCP".into()),
        port: Some(IntOrString::Int(*port)),
        end_port: None,
    });
    NetworkPolicyEgressRule {
        to: Some(vec![peer]),
        ports: Some(ports.collect::<Vec<_>>()).filter(|ports| !ports.is_empty()),
    }
}
