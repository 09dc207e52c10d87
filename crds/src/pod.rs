//! How a session pod comes out of a Workspace's `PodTemplate`: the one place that the operator (warm
//! pods) and the runtime (cold pods) share, so that both kinds are the same pod. Pure.
use crate::names;
use k8s_openapi::api::core::v1::{Pod, PodTemplate, SecretVolumeSource, Volume};
use kube::api::ObjectMeta;
use std::collections::BTreeMap;

/// Name of the volume that holds the session's Secret; the template carries a placeholder.
pub const SESSION_VOLUME: &str = "session";

/// Name of the volume with what a session keeps while it is suspended. In the template it is made with each pod and goes
/// with it; who suspends the session takes it over from the pod.
pub const DATA_VOLUME: &str = "data";

/// A pod called `name` in pool `pool` ([`names::POOL_WARM`] or [`names::POOL_COLD`]), made from `template`.
/// It mounts the Secret [`names::session_secret`] of its own name, which may appear later.
pub fn instantiate(template: &PodTemplate, name: &str, pool: &str) -> Pod {
    let inner = template.template.clone().unwrap_or_default();
    let inner_meta = inner.metadata.unwrap_or_default();
    let mut labels: BTreeMap<String, String> = inner_meta.labels.unwrap_or_default();
    labels.insert(names::LABEL_POOL.into(), pool.into());
    let mut annotations = inner_meta.annotations.unwrap_or_default();
    if let Some(hash) = template.metadata.annotations.as_ref().and_then(|a| a.get(names::ANNOTATION_TEMPLATE_HASH)) {
        annotations.insert(names::ANNOTATION_TEMPLATE_HASH.into(), hash.clone());
    }
    let mut spec = inner.spec;
    if let Some(spec) = &mut spec {
        let secret = Volume {
            name: SESSION_VOLUME.into(),
            secret: Some(SecretVolumeSource {
                secret_name: Some(names::session_secret(name)),
                optional: Some(true),
                default_mode: Some(0o440),
                ..SecretVolumeSource::default()
            }),
            ..Volume::default()
        };
        let volumes = spec.volumes.get_or_insert_default();
        volumes.retain(|volume| volume.name != SESSION_VOLUME);
        volumes.push(secret);
    }
    Pod {
        metadata: ObjectMeta {
            name: Some(name.into()),
            namespace: template.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        },
        spec,
        status: None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use k8s_openapi::api::core::v1::{PodSpec, PodTemplateSpec};

    #[test]
    fn a_pod_mounts_the_secret_of_its_own_name() {
        let template = PodTemplate {
            metadata: ObjectMeta {
                namespace: Some("agentapi-acme".into()),
                annotations: Some([(names::ANNOTATION_TEMPLATE_HASH.to_owned(), "h1".to_owned())].into()),
                ..ObjectMeta::default()
            },
            template: Some(PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some([(names::LABEL_WORKSPACE.to_owned(), "web".to_owned())].into()),
                    ..ObjectMeta::default()
                }),
                spec: Some(PodSpec {
                    volumes: Some(vec![Volume { name: SESSION_VOLUME.into(), ..Volume::default() }]),
                    ..PodSpec::default()
                }),
            }),
        };
        let pod = instantiate(&template, "s-0192", names::POOL_COLD);
        let volumes = pod.spec.unwrap().volumes.unwrap();
        assert_eq!(volumes.len(), 1);
        assert_eq!(volumes[0].secret.as_ref().unwrap().secret_name.as_deref(), Some("s-0192-session"));
        let labels = pod.metadata.labels.unwrap();
        assert_eq!(labels[names::LABEL_POOL], names::POOL_COLD);
        assert_eq!(labels[names::LABEL_WORKSPACE], "web");
        assert_eq!(pod.metadata.annotations.unwrap()[names::ANNOTATION_TEMPLATE_HASH], "h1");
        assert_eq!(pod.metadata.namespace.as_deref(), Some("agentapi-acme"));
    }
}
