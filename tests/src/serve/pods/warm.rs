//! Pods that wait for a session, and what their agents were told.

use std::net::{IpAddr, TcpStream};
use std::time::{Duration, Instant};

use agentapi_crds::names::SESSION_PORT;
use agentapi_prompts::compose::digest;
use agentapi_runtime::pods::{PodError, PodKind, WaitingPod};
use anyhow::{Context, Result};
use uuid::Uuid;

use super::ProcessPods;

impl ProcessPods {
    /// Starts a pod that waits for a session. It takes connections by then: only such are given away on a cluster.
    pub fn warm(&self, organization: &str, workspace: &str) -> Result<String> {
        let name = format!("w-{workspace}-{}", Uuid::new_v4().simple());
        self.spawn(&name, (organization, workspace), PodKind::Warm, None)?;
        let address = (self.address(&name)?, SESSION_PORT);
        let began = Instant::now();
        while let Err(error) = TcpStream::connect(address) {
            if began.elapsed() > Duration::from_secs(60) {
                return Err(error).with_context(|| format!("{name} does not listen"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(name)
    }

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
