//! What all pods that the operator makes have in common: their security contexts, probes, amounts of resources. Pure.
use k8s_openapi::{
    api::core::v1::{Capabilities, HTTPGetAction, PodSecurityContext, Probe, SeccompProfile, SecurityContext},
    apimachinery::pkg::{api::resource::Quantity, util::intstr::IntOrString},
};
use std::collections::BTreeMap;

/// Of a pod whose containers run as this user and group; what Pod Security `restricted` asks for.
pub(super) fn of_user(id: i64) -> PodSecurityContext {
    PodSecurityContext {
        fs_group: Some(id),
        run_as_group: Some(id),
        run_as_non_root: Some(true),
        run_as_user: Some(id),
        seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".into(), localhost_profile: None }),
        ..PodSecurityContext::default()
    }
}

/// Of a container: no more rights than it has, and nothing to write outside its volumes.
pub(super) fn restricted() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".into()]), add: None }),
        read_only_root_filesystem: Some(true),
        ..SecurityContext::default()
    }
}

/// A GET of the container's port of this name.
pub(super) fn probe(path: &str, port: &str, period: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.into()),
            port: IntOrString::String(port.into()),
            scheme: Some("HTTP".into()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        failure_threshold: Some(failures),
        timeout_seconds: Some(2),
        ..Probe::default()
    }
}

/// Amounts by resource.
pub(super) fn quantities(list: [(&str, &str); 3]) -> BTreeMap<String, Quantity> {
    list.map(|(resource, amount)| (resource.to_owned(), Quantity(amount.to_owned()))).into()
}
