//! Waiting pods whose agents have the prompt of their workspace already: a session that is told the same does not start
//! its agent again. After an edit of a policy the agents that wait start again, and no user waits for it.

use std::collections::HashMap;
use std::sync::Arc;

use agentapi_prompts::Composed;

use super::{Lifecycle, LifecycleError};
use crate::pods::WaitingPod;
use crate::store::TenantScope;
use crate::store::identity::Organization;

/// Of a session that nobody has asked for. Where a policy names its user the text differs, and the agent starts again.
const NOBODY: &str = "";

impl Lifecycle {
    /// Brings the waiting pods of an organization up to date, in the background.
    pub(super) async fn prepare_warm(self: &Arc<Self>, organization: &Organization) -> Result<(), LifecycleError> {
        let mut tx = self.store.tenant_tx(&TenantScope::system(organization)).await?;
        let mut prompts: HashMap<String, Arc<Composed>> = HashMap::new();
        for workspace in tx.workspaces_with_warm_pods().await? {
            match self.prompts.compose(&mut tx, organization, &workspace, NOBODY).await {
                Ok(composed) => {
                    prompts.insert(workspace.name, composed);
                }
                // No session starts either, and its creator is told why.
                Err(error) => tracing::debug!(workspace = workspace.name, %error, "its waiting pods stay as they are"),
            }
        }
        tx.commit().await?;
        if prompts.is_empty() {
            return Ok(());
        }
        for pod in self.pods.waiting(&organization.slug).await? {
            if let Some(composed) = prompts.get(&pod.workspace).filter(|it| it.digest != pod.prompt_digest) {
                let (lifecycle, slug, composed) = (Arc::clone(self), organization.slug.clone(), Arc::clone(composed));
                self.tasks.spawn(async move { lifecycle.prepare_one(&slug, &pod, &composed).await });
            }
        }
        Ok(())
    }

    /// May run twice at once for one pod: the second finds the agent as it is to be.
    async fn prepare_one(&self, organization: &str, pod: &WaitingPod, composed: &Composed) {
        // A pod that was taken meanwhile, or that does not listen yet, is no news; the next round looks again.
        if let Err(error) = self.agents.prepare(&pod.name, &pod.ip, &composed.text).await {
            tracing::debug!(pod = pod.name, %error, "a waiting pod did not take its workspace's prompt");
            return;
        }
        // An agent that starts again takes a moment, and the kubelet longer to see that: the next round looks again.
        if !matches!(self.agents.is_ready(&pod.ip).await, Ok(true)) {
            return;
        }
        if let Err(error) = self.pods.prepared(organization, &pod.name, &composed.digest).await {
            tracing::debug!(pod = pod.name, %error, "cannot note the prompt of a waiting pod");
        }
    }
}
