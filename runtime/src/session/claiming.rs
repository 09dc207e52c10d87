//! Gives a pod to a session, once: saves the claim, then hands environment, token and prompts to the host.

use std::sync::{Arc, atomic::Ordering};

use secrecy::{ExposeSecret, SecretString};

use super::{
    claim::Claim,
    group::Exit,
    host::{Host, StartError},
    state::{PromptState, StateError},
};

/// The pod belongs to another session.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClaimRefused {
    /// Another session has it.
    #[error("this pod belongs to another session; claim another pod")]
    Taken,
    /// The claim could not be saved.
    #[error(transparent)]
    State(#[from] StateError),
    /// The agent does not start with this environment.
    #[error(transparent)]
    Start(#[from] StartError),
}

impl Host {
    /// Gives the pod to a session. Again for the same session is fine.
    pub(super) async fn claim(self: &Arc<Self>, claim: Claim) -> Result<(), ClaimRefused> {
        let _one_at_a_time = self.claiming.lock().await;
        match self.session_id() {
            Some(id) if id == claim.session_id => return self.renew(&claim),
            Some(_) => return Err(ClaimRefused::Taken),
            None => {}
        }
        self.state_dir.save_claim(&claim)?;
        let needs_restart = {
            let mut inner = self.lock();
            inner.session_id = Some(claim.session_id.clone());
            inner.token.clone_from(&claim.token);
            if let Some(prompt) = claim.initial_prompt.as_ref().filter(|prompt| !prompt.trim().is_empty()) {
                inner.prompt = Some(prompt.clone());
                inner.prompt_state = PromptState::Pending;
            }
            let env = claim.plain_env();
            // An agent reads its system prompt when it starts, and the one that waits here has started without.
            let differs = env != inner.env || claim.system_prompt != inner.system_prompt;
            inner.env = env;
            inner.system_prompt = claim.system_prompt;
            self.refresh(&mut inner);
            self.changes.send_modify(|count| *count += 1);
            differs
        };
        let needs_restart = self.load_connections().await || needs_restart;
        tracing::info!(session = claim.session_id, needs_restart, "claimed");
        if needs_restart {
            // A pod without an agent is of no use to anybody: the container ends and starts again.
            self.start_agent().await.inspect_err(|_| self.fail(Exit { code: 127, signal: None }))?;
        }
        self.persist().await;
        self.spawn_initial_prompt();
        Ok(())
    }

    /// The same session again: only a new token is news.
    fn renew(&self, claim: &Claim) -> Result<(), ClaimRefused> {
        if let Some(token) = &claim.token {
            let known = self.lock().token.as_ref().is_some_and(|known| known.expose_secret() == token.expose_secret());
            if !known {
                self.state_dir.save_claim(claim)?;
                self.take_token(token.clone());
            }
        }
        Ok(())
    }

    /// The state may outlive the pod, and the claim's environment is not for a disk: the mounted Secret has it, once it is
    /// there, and the next process reads it from there.
    pub(super) fn leave_claim_to_secret(&self) {
        let Some(folder) = self.config.secret_dir.as_deref() else { return };
        let mounted = Claim::from_secret_dir(folder).ok().flatten();
        if mounted.is_some_and(|claim| Some(claim.session_id) == self.session_id())
            && let Err(error) = self.state_dir.remove_claim()
        {
            tracing::warn!(%error, "the claim stays in the state folder");
        }
    }

    /// Takes another session token; the Secret has it too, for a container that restarts.
    pub(super) fn take_token(&self, token: SecretString) {
        {
            let mut inner = self.lock();
            inner.token = Some(token);
            self.token_told.store(true, Ordering::Relaxed);
        }
        self.changes.send_modify(|count| *count += 1);
    }

    /// Takes a renewed token from the mounted Secret. True when there is one.
    pub(super) fn reload_token(&self) -> bool {
        let Some(folder) = self.config.secret_dir.as_deref() else { return false };
        let Ok(Some(claim)) = Claim::from_secret_dir(folder) else { return false };
        let mut inner = self.lock();
        // The runtime says each change, and the Secret comes up to a minute and a half after it.
        if self.token_told.load(Ordering::Relaxed) {
            return false;
        }
        let Some(token) = claim.token.filter(|_| inner.session_id.as_ref() == Some(&claim.session_id)) else {
            return false;
        };
        let renewed = inner.token.as_ref().is_none_or(|known| known.expose_secret() != token.expose_secret());
        inner.token = Some(token);
        renewed
    }
}
