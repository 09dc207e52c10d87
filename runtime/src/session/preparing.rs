//! What the runtime tells a pod beside its session: the system prompt of the workspace while the pod waits for a
//! session, so that the agent need not start again when one comes; and words for whoever follows the session.

use std::sync::Arc;

use super::{claiming::ClaimRefused, events::Body, group::Exit, host::Host};

impl Host {
    /// Starts the waiting agent again with this system prompt, unless it has it already.
    pub(super) async fn prepare(self: &Arc<Self>, system_prompt: Option<String>) -> Result<(), ClaimRefused> {
        let _one_at_a_time = self.claiming.lock().await;
        if self.session_id().is_some() {
            return Err(ClaimRefused::Taken);
        }
        {
            let mut inner = self.lock();
            if inner.system_prompt == system_prompt {
                return Ok(());
            }
            inner.system_prompt = system_prompt;
        }
        tracing::info!("the agent that waits starts again with the workspace's prompt");
        self.start_agent().await.inspect_err(|_| self.fail(Exit { code: 127, signal: None }))?;
        Ok(())
    }

    /// What the platform has to say to them. It says it again when it does not know that it was heard.
    pub(super) fn notice(&self, message: String) {
        let before = self.lock().notice.replace(message.clone());
        if before.as_ref() != Some(&message) {
            self.notify(message);
        }
    }

    /// Tells everybody who follows the session.
    pub(super) fn notify(&self, message: String) {
        self.hub.publish(Body::Error { message, level: "warning", time: (self.config.now)() });
    }
}
