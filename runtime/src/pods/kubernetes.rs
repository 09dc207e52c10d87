//! Session pods in a cluster. A warm pod is claimed with a patch that fails when somebody else was faster; a cold one
//! is made from the workspace's PodTemplate, its Secret first. The API can write Secrets of a tenant namespace but
//! never read them. May touch: pods, podtemplates, secrets and volumes of sessions in tenant namespaces.

use std::collections::BTreeSet;
use std::time::Duration;

use agentapi_crds::names;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Pod as KubePod, PodTemplate, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::wait::await_condition;
use kube::{Client, ResourceExt};
use secrecy::ExposeSecret;
use serde_json::json;
use uuid::Uuid;

use super::{Pod, PodBackend, PodError, PodKind, PodRequest, PodState, Rekey, Shortage, WaitingPod, Wake};
use crate::metrics::Metrics;

#[path = "kubernetes_keeping.rs"]
mod keeping;
#[path = "kubernetes_objects.rs"]
mod objects;

/// The cluster.
pub struct KubernetesPods {
    client: Client,
    metrics: Metrics,
}

fn refused_or_away(error: kube::Error) -> PodError {
    match error {
        kube::Error::Api(status) if matches!(status.code, 400 | 403 | 422) => {
            if let Some(shortage) = Shortage::in_message(&status.message) {
                return PodError::QuotaExceeded(shortage);
            }
            // Admission or a template that the API server does not take: the tenant's admin can act on it.
            PodError::Refused(format!("the cluster refuses the session's pod: {}", status.message))
        }
        other => PodError::Unavailable(other.to_string()),
    }
}

fn is_code(error: &kube::Error, wanted: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == wanted)
}

/// The quota's answer to many writes at a time is 409 too, and nothing was made then.
fn exists(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_already_exists())
}

impl KubernetesPods {
    /// With the client of the pod's own `ServiceAccount`.
    pub fn new(client: Client, metrics: Metrics) -> Self {
        Self { client, metrics }
    }

    fn pods(&self, organization: &str) -> Api<KubePod> {
        Api::namespaced(self.client.clone(), &names::tenant_namespace(organization))
    }

    fn secrets(&self, organization: &str) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &names::tenant_namespace(organization))
    }

    async fn list(&self, organization: &str, selector: &str) -> Result<Vec<KubePod>, PodError> {
        let listed = self.pods(organization).list(&ListParams::default().labels(selector)).await;
        Ok(listed.map_err(refused_or_away)?.items)
    }

    async fn acquire_pod(&self, request: &PodRequest) -> Result<Pod, PodError> {
        let mine = format!("{}={}", names::LABEL_SESSION, request.session);
        let existing = self.list(&request.organization, &mine).await?;
        if let Some(pod) = existing.iter().find(|pod| pod.metadata.deletion_timestamp.is_none()) {
            self.write_secret(request, pod).await?;
            self.own(&request.organization, pod).await?;
            return Ok(objects::observed(pod));
        }
        if let Some(pod) = self.claim_warm(request).await? {
            self.metrics.pod_acquired(PodKind::Warm.as_str());
            self.write_secret(request, &pod).await?;
            return Ok(Pod { kind: PodKind::Warm, ..objects::observed(&pod) });
        }
        let pod = self.create_cold(request).await?;
        self.metrics.pod_acquired(PodKind::Cold.as_str());
        Ok(Pod { kind: PodKind::Cold, ..objects::observed(&pod) })
    }

    async fn claim_warm(&self, request: &PodRequest) -> Result<Option<KubePod>, PodError> {
        let selector =
            format!("{}={},{}={}", names::LABEL_WORKSPACE, request.workspace, names::LABEL_POOL, names::POOL_WARM);
        let mut warm = self.list(&request.organization, &selector).await?;
        warm.retain(objects::is_free);
        // Replicas that look at the same list at the same time start at different places.
        let start = usize::try_from(request.session.as_u128() % (warm.len().max(1) as u128)).unwrap_or(0);
        warm.rotate_left(start);
        let digest = request.prompt_digest();
        warm.sort_by_key(|pod| objects::prompt_digest(pod) != digest);
        let api = self.pods(&request.organization);
        for pod in warm {
            if let Some(claimed) = self.claim(&api, request, &pod).await? {
                return Ok(Some(claimed));
            }
            // Whatever is written to a pod, such as its status, has the same answer as another session's claim.
            let now = api.get_opt(&pod.name_any()).await.map_err(refused_or_away)?;
            if let Some(pod) = now.filter(objects::is_free)
                && let Some(claimed) = self.claim(&api, request, &pod).await?
            {
                return Ok(Some(claimed));
            }
        }
        Ok(None)
    }

    /// None: the pod is not as it was seen.
    async fn claim(
        &self,
        api: &Api<KubePod>,
        request: &PodRequest,
        pod: &KubePod,
    ) -> Result<Option<KubePod>, PodError> {
        let patch = json!({ "metadata": {
            "resourceVersion": pod.resource_version(),
            "labels": { names::LABEL_POOL: names::POOL_CLAIMED, names::LABEL_SESSION: request.session },
            "annotations": { names::ANNOTATION_SESSION_TOKEN_KEY: request.token_key },
        }});
        match api.patch(&pod.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(claimed) => Ok(Some(claimed)),
            Err(error) if is_code(&error, 409) || is_code(&error, 404) => {
                self.metrics.pod_acquired("conflict");
                Ok(None)
            }
            Err(error) => Err(refused_or_away(error)),
        }
    }

    async fn template(&self, organization: &str, workspace: &str) -> Result<PodTemplate, PodError> {
        let templates: Api<PodTemplate> = Api::namespaced(self.client.clone(), &names::tenant_namespace(organization));
        match templates.get_opt(&names::pod_template(workspace)).await {
            Ok(Some(template)) => Ok(template),
            Ok(None) => Err(PodError::Refused(format!(
                "workspace {workspace} is not ready: its pod template does not exist yet; see the Workspace's conditions"
            ))),
            Err(error) => Err(refused_or_away(error)),
        }
    }

    async fn create_cold(&self, request: &PodRequest) -> Result<KubePod, PodError> {
        let organization = &request.organization;
        let template = self.template(organization, &request.workspace).await?;
        let name = objects::cold_pod_name(request.session);
        let (pod, volume) =
            objects::cold_pod(&template, &name, request.session, &request.token_key).map_err(PodError::Refused)?;
        self.create_secret(request, &name, None).await?;
        let made = async {
            if let Some(volume) = &volume {
                self.create_volume(organization, volume).await?;
            }
            self.create_pod(organization, &name, &pod).await
        };
        match made.await {
            Ok(created) => {
                self.own(organization, &created).await?;
                Ok(created)
            }
            Err(error) => {
                self.delete_secret(organization, &names::session_secret(&name)).await?;
                self.delete_volume(organization, &names::session_volume(&name)).await?;
                Err(error)
            }
        }
    }

    async fn create_pod(&self, organization: &str, name: &str, pod: &KubePod) -> Result<KubePod, PodError> {
        let api = self.pods(organization);
        match api.create(&PostParams::default(), pod).await {
            Ok(created) => Ok(created),
            Err(error) if exists(&error) => api.get(name).await.map_err(refused_or_away),
            Err(error) => Err(refused_or_away(error)),
        }
    }

    /// For a pod that exists: its Secret belongs to it from the start.
    async fn write_secret(&self, request: &PodRequest, pod: &KubePod) -> Result<(), PodError> {
        self.create_secret(request, &pod.name_any(), objects::owner(pod)).await
    }

    async fn create_secret(
        &self,
        request: &PodRequest,
        pod: &str,
        owner: Option<OwnerReference>,
    ) -> Result<(), PodError> {
        let secret = objects::session_secret(request, pod, owner)?;
        match self.secrets(&request.organization).create(&PostParams::default(), &secret).await {
            Ok(_) => Ok(()),
            // Written by an earlier attempt; its content comes from the same request.
            Err(error) if exists(&error) => Ok(()),
            Err(error) => Err(refused_or_away(error)),
        }
    }

    async fn patch_keys(&self, organization: &str, pod: &str, rekey: &Rekey) -> Result<(), PodError> {
        self.annotate_keys(organization, pod, None).await?;
        let patch = json!({ "stringData": {
            objects::TOKEN_KEY: rekey.token.expose_secret(),
            names::SESSION_SECRET_PUBLIC_KEYS: rekey.public_keys.join(","),
        }});
        let name = names::session_secret(pod);
        let patched = self.secrets(organization).patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await;
        patched.map(|_| ()).map_err(refused_or_away)
    }

    async fn annotate_keys(&self, organization: &str, pod: &str, rekey: Option<&Rekey>) -> Result<(), PodError> {
        let known = rekey.map(|rekey| names::signing_key_ids(rekey.public_keys.iter().map(String::as_str)));
        let patch = json!({ "metadata": { "annotations": {
            names::ANNOTATION_SESSION_KEYS: known,
            names::ANNOTATION_SESSION_TOKEN_KEY: rekey.map(|rekey| &rekey.token_key),
        }}});
        let patched = self.pods(organization).patch(pod, &PatchParams::default(), &Patch::Merge(&patch)).await;
        patched.map(|_| ()).map_err(refused_or_away)
    }

    async fn delete_secret(&self, organization: &str, name: &str) -> Result<(), PodError> {
        match self.secrets(organization).delete(name, &DeleteParams::default()).await {
            Ok(_) => Ok(()),
            Err(error) if is_code(&error, 404) => Ok(()),
            Err(error) => Err(refused_or_away(error)),
        }
    }

    async fn wait(&self, organization: &str, pod: &str, within: Duration) -> Result<Option<Pod>, PodError> {
        let api = self.pods(organization);
        let settled =
            |pod: Option<&KubePod>| pod.is_none_or(|pod| !matches!(objects::observed(pod).state, PodState::Waiting(_)));
        let waiting = tokio::time::timeout(within, await_condition(api.clone(), pod, settled)).await;
        match waiting {
            Ok(Ok(pod)) => Ok(pod.as_ref().map(objects::observed)),
            Ok(Err(error)) => Err(PodError::Unavailable(error.to_string())),
            Err(_elapsed) => {
                let pod = api.get_opt(pod).await.map_err(refused_or_away)?;
                Ok(pod.as_ref().map(objects::observed))
            }
        }
    }

    async fn list_sessions(&self, organization: &str) -> Result<Vec<(Uuid, Pod)>, PodError> {
        let pods = self.list(organization, names::LABEL_SESSION).await?;
        let session = |pod: &KubePod| pod.labels().get(names::LABEL_SESSION).and_then(|id| id.parse().ok());
        Ok(pods.iter().filter_map(|pod| Some((session(pod)?, objects::observed(pod)))).collect())
    }

    async fn list_waiting(&self, organization: &str) -> Result<Vec<WaitingPod>, PodError> {
        let selector = format!(
            "{}={},{}={}",
            names::LABEL_COMPONENT,
            names::COMPONENT_SESSION,
            names::LABEL_POOL,
            names::POOL_WARM
        );
        Ok(self.list(organization, &selector).await?.iter().filter_map(objects::waiting).collect())
    }

    async fn annotate_prompt(&self, organization: &str, pod: &str, digest: &str) -> Result<(), PodError> {
        let patch = json!({ "metadata": { "annotations": { names::ANNOTATION_PROMPT_DIGEST: digest } } });
        let patched = self.pods(organization).patch(pod, &PatchParams::default(), &Patch::Merge(&patch)).await;
        patched.map(|_| ()).map_err(refused_or_away)
    }

    async fn release_pods(&self, organization: &str, session: Uuid, pod: Option<&str>) -> Result<bool, PodError> {
        let pods = self.list(organization, &format!("{}={session}", names::LABEL_SESSION)).await?;
        // Also what belongs to a cold pod that was never made, and to one that is gone while its session was suspended.
        let mut names: BTreeSet<String> = pods.iter().map(ResourceExt::name_any).collect();
        names.insert(objects::cold_pod_name(session));
        names.extend(pod.map(str::to_owned));
        for name in &names {
            self.delete_secret(organization, &names::session_secret(name)).await?;
            self.delete_volume(organization, &names::session_volume(name)).await?;
        }
        for pod in &pods {
            self.delete_pod(organization, pod).await?;
        }
        Ok(pods.is_empty())
    }

    async fn delete_pod(&self, organization: &str, pod: &KubePod) -> Result<(), PodError> {
        if pod.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        // The same name may already be another pod.
        let same = Preconditions { uid: pod.uid(), resource_version: None };
        let params = DeleteParams { preconditions: Some(same), ..DeleteParams::default() };
        match self.pods(organization).delete(&pod.name_any(), &params).await {
            Ok(_) => Ok(()),
            Err(error) if is_code(&error, 404) || is_code(&error, 409) => Ok(()),
            Err(error) => Err(refused_or_away(error)),
        }
    }

    /// Whether the API server answers.
    pub async fn ping(&self) -> Result<(), PodError> {
        self.client.apiserver_version().await.map(|_| ()).map_err(refused_or_away)
    }
}

impl PodBackend for KubernetesPods {
    fn acquire<'a>(&'a self, request: &'a PodRequest) -> BoxFuture<'a, Result<Pod, PodError>> {
        Box::pin(self.acquire_pod(request))
    }

    fn wait_running<'a>(
        &'a self,
        organization: &'a str,
        pod: &'a str,
        within: Duration,
    ) -> BoxFuture<'a, Result<Option<Pod>, PodError>> {
        Box::pin(self.wait(organization, pod, within))
    }

    fn rekey<'a>(
        &'a self,
        organization: &'a str,
        pod: &'a str,
        rekey: &'a Rekey,
    ) -> BoxFuture<'a, Result<(), PodError>> {
        Box::pin(self.patch_keys(organization, pod, rekey))
    }

    fn rekeyed<'a>(
        &'a self,
        organization: &'a str,
        pod: &'a str,
        rekey: &'a Rekey,
    ) -> BoxFuture<'a, Result<(), PodError>> {
        Box::pin(self.annotate_keys(organization, pod, Some(rekey)))
    }

    fn of_sessions<'a>(&'a self, organization: &'a str) -> BoxFuture<'a, Result<Vec<(Uuid, Pod)>, PodError>> {
        Box::pin(self.list_sessions(organization))
    }

    fn waiting<'a>(&'a self, organization: &'a str) -> BoxFuture<'a, Result<Vec<WaitingPod>, PodError>> {
        Box::pin(self.list_waiting(organization))
    }

    fn prepared<'a>(
        &'a self,
        organization: &'a str,
        pod: &'a str,
        digest: &'a str,
    ) -> BoxFuture<'a, Result<(), PodError>> {
        Box::pin(self.annotate_prompt(organization, pod, digest))
    }

    fn suspend<'a>(&'a self, organization: &'a str, session: Uuid) -> BoxFuture<'a, Result<bool, PodError>> {
        Box::pin(self.suspend_pods(organization, session))
    }

    fn wake<'a>(&'a self, wake: &'a Wake) -> BoxFuture<'a, Result<Pod, PodError>> {
        Box::pin(self.wake_pod(wake))
    }

    fn release<'a>(
        &'a self,
        organization: &'a str,
        session: Uuid,
        pod: Option<&'a str>,
    ) -> BoxFuture<'a, Result<bool, PodError>> {
        Box::pin(self.release_pods(organization, session, pod))
    }
}

#[cfg(test)]
#[path = "kubernetes_tests.rs"]
mod tests;
