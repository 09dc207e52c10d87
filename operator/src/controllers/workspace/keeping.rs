//! What a session keeps while it is suspended: a volume of its own, made with its pod. Pure.
use super::{build::labels, validate::Accepted};
use agentapi_crds::{Workspace, pod::DATA_VOLUME};
use k8s_openapi::{
    api::core::v1::{
        EphemeralVolumeSource, PersistentVolumeClaimSpec, PersistentVolumeClaimTemplate, Volume, VolumeMount,
        VolumeResourceRequirements,
    },
    apimachinery::pkg::api::resource::Quantity,
};
use kube::api::ObjectMeta;

/// Kept back on the volume, so that an agent that fills it does not keep the conversation from being saved.
pub(super) const RESERVE_BYTES: u64 = 32 << 20;

/// Folders of a session that outlive its pod. The conversation without the agent's home, or the other way round, would
/// be of no use, so they are on one volume.
pub(super) fn kept(workspace: &Workspace) -> &'static [&'static str] {
    match (&workspace.spec.suspend, &workspace.spec.storage) {
        (None, _) => &[],
        (Some(_), None) => &["state", "home", "workspace"],
        // The working folder is on the volume of the whole workspace.
        (Some(_), Some(_)) => &["state", "home"],
    }
}

/// The volume of each session.
pub(super) fn volume(workspace: &Workspace, accepted: &Accepted) -> Option<Volume> {
    let suspend = workspace.spec.suspend.as_ref()?;
    let storage: (String, Quantity) = ("storage".to_owned(), suspend.size.clone());
    let claim = PersistentVolumeClaimTemplate {
        metadata: Some(ObjectMeta { labels: Some(labels(accepted)), ..ObjectMeta::default() }),
        spec: PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".into()]),
            storage_class_name: suspend.storage_class_name.clone(),
            resources: Some(VolumeResourceRequirements { requests: Some([storage].into()), limits: None }),
            ..PersistentVolumeClaimSpec::default()
        },
    };
    Some(Volume {
        name: DATA_VOLUME.into(),
        ephemeral: Some(EphemeralVolumeSource { volume_claim_template: Some(claim) }),
        ..Volume::default()
    })
}

/// A folder of the session at `path`: on its volume, if it is kept there.
pub(super) fn mount(kept: &[&str], name: &str, path: &str) -> VolumeMount {
    let own = VolumeMount { name: name.into(), mount_path: path.into(), ..VolumeMount::default() };
    if kept.contains(&name) {
        return VolumeMount { name: DATA_VOLUME.into(), sub_path: Some(name.into()), ..own };
    }
    own
}
