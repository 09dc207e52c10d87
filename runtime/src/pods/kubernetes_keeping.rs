//! What a session keeps while it is suspended: its Secret and its volume. While a pod has them they go with it, so that
//! nothing is left of a session whose end nobody saw; before a pod is given up they are taken over from it.

use agentapi_crds::names;
use agentapi_crds::pod::DATA_VOLUME;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod as KubePod};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::{Resource, ResourceExt};
use secrecy::ExposeSecret;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{KubernetesPods, exists, is_code, objects, refused_or_away};
use crate::pods::{Pod, PodError, PodKind, Wake};

/// Goes with nobody.
fn nobodys() -> Value {
    json!({ "metadata": { "ownerReferences": null } })
}

fn gone(what: &str) -> PodError {
    PodError::Refused(format!("the suspended session's {what} is gone, so it cannot go on; end it and create another"))
}

/// False: there is no such object.
async fn patch<K>(api: &Api<K>, name: &str, patch: &Value) -> Result<bool, PodError>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug,
{
    match api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(_) => Ok(true),
        Err(error) if is_code(&error, 404) => Ok(false),
        Err(error) => Err(refused_or_away(error)),
    }
}

impl KubernetesPods {
    fn volumes(&self, organization: &str) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.client.clone(), &names::tenant_namespace(organization))
    }

    pub(super) async fn create_volume(
        &self,
        organization: &str,
        volume: &PersistentVolumeClaim,
    ) -> Result<(), PodError> {
        match self.volumes(organization).create(&PostParams::default(), volume).await {
            Ok(_) => Ok(()),
            Err(error) if exists(&error) => Ok(()),
            Err(error) => Err(refused_or_away(error)),
        }
    }

    pub(super) async fn delete_volume(&self, organization: &str, name: &str) -> Result<(), PodError> {
        match self.volumes(organization).delete(name, &DeleteParams::default()).await {
            Ok(_) => Ok(()),
            Err(error) if is_code(&error, 404) => Ok(()),
            Err(error) => Err(refused_or_away(error)),
        }
    }

    /// The pod has its Secret and its volume: they go with it.
    pub(super) async fn own(&self, organization: &str, pod: &KubePod) -> Result<(), PodError> {
        let owners = json!({ "metadata": { "ownerReferences": [objects::owner(pod)] } });
        self.owners(organization, pod, &owners).await
    }

    async fn owners(&self, organization: &str, pod: &KubePod, owners: &Value) -> Result<(), PodError> {
        let name = pod.name_any();
        patch(&self.secrets(organization), &names::session_secret(&name), owners).await?;
        if objects::observed(pod).keeps {
            patch(&self.volumes(organization), &names::session_volume(&name), owners).await?;
        }
        Ok(())
    }

    pub(super) async fn suspend_pods(&self, organization: &str, session: Uuid) -> Result<bool, PodError> {
        let pods = self.list(organization, &format!("{}={session}", names::LABEL_SESSION)).await?;
        for pod in &pods {
            // First: what a pod has goes with it.
            self.owners(organization, pod, &nobodys()).await?;
            self.delete_pod(organization, pod).await?;
        }
        Ok(pods.is_empty())
    }

    pub(super) async fn wake_pod(&self, wake: &Wake) -> Result<Pod, PodError> {
        let (organization, name) = (wake.organization.as_str(), wake.pod.as_str());
        let secret = json!({ "stringData": {
            objects::TOKEN_KEY: wake.rekey.token.expose_secret(),
            names::SESSION_SECRET_PUBLIC_KEYS: wake.rekey.public_keys.join(","),
        }});
        if !patch(&self.secrets(organization), &names::session_secret(name), &secret).await? {
            return Err(gone("Secret"));
        }
        let template = self.template(organization, &wake.workspace).await?;
        let (mut pod, volume) =
            objects::cold_pod(&template, name, wake.session, &wake.rekey.token_key).map_err(PodError::Refused)?;
        let known = names::signing_key_ids(wake.rekey.public_keys.iter().map(String::as_str));
        pod.annotations_mut().insert(names::ANNOTATION_SESSION_KEYS.to_owned(), known);
        if volume.is_none() {
            let workspace = &wake.workspace;
            return Err(PodError::Refused(format!(
                "workspace {workspace} keeps no volumes of sessions any more; put spec.suspend back to wake this session"
            )));
        }
        // Nobody's, as it is already: what matters is whether it is there. An empty one in its place is of no use.
        if !patch(&self.volumes(organization), &names::session_volume(name), &nobodys()).await? {
            return Err(gone(&format!("volume ({DATA_VOLUME})")));
        }
        let created = self.create_pod(organization, name, &pod).await?;
        if created.metadata.deletion_timestamp.is_some() {
            return Err(PodError::Unavailable("the session's earlier pod is not gone yet".to_owned()));
        }
        // The pod does not own what it uses: if it is lost while it starts, the session's volume is not.
        self.metrics.pod_acquired("woken");
        Ok(Pod { kind: PodKind::Woken, ..objects::observed(&created) })
    }
}
