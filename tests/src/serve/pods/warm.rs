//! Pods that wait for a session, and what their agents were told.

use std::net::IpAddr;

use agentapi_prompts::compose::digest;
use agentapi_runtime::pods::{PodError, WaitingPod};
use anyhow::{Context, Result};

use super::ProcessPods;

impl ProcessPods {
    /// The address of a pod, whether it has a session or not.
    pub fn address(&self, pod: &str) -> Result<IpAddr> {
        let state = self.state();
        Ok(state.running.get(pod).context("there is no such pod")?.ip.into())
    }

    /// Whether the API has noted that a waiting pod's agent was told this.
    pub fn is_prepared(&self, pod: &str, words: &str) -> bool {
        self.state().running.get(pod).is_some_and(|process| process.prompt_digest == digest(words))
    }

    pub(super) fn waiting_pods(&self, organization: &str) -> Result<Vec<WaitingPod>, PodError> {
        self.check()?;
        let state = self.state();
        let waiting = state.running.iter().filter(|(_, it)| it.session.is_none() && it.organization == organization);
        let waiting = waiting.map(|(name, it)| WaitingPod {
            name: name.clone(),
            workspace: it.workspace.clone(),
            ip: it.ip.to_string(),
            prompt_digest: it.prompt_digest.clone(),
        });
        Ok(waiting.collect())
    }

    pub(super) fn note_prompt(&self, pod: &str, digest: &str) -> Result<(), PodError> {
        self.check()?;
        if let Some(process) = self.state().running.get_mut(pod) {
            digest.clone_into(&mut process.prompt_digest);
        }
        Ok(())
    }
}
