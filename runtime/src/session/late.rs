//! MCP servers that could not be had when the agent started: they are asked for until the runtime says which they are;
//! then the agent starts again, or its user is told.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::{group::Exit, host::Host, mcp::AskError, sync};

/// Asks on after each start without an answer, until `stop`.
pub(super) async fn ask_on(host: Arc<Host>, stop: CancellationToken) {
    while stop.run_until_cancelled(host.mcp.wanting.notified()).await.is_some() {
        let mut pauses = sync::backoff();
        let differ = loop {
            let pause = pauses.next().unwrap_or(sync::REFUSED_PAUSE);
            let asking = async {
                tokio::time::sleep(pause).await;
                // An agent that is just being started has what it will know.
                let starts = host.claiming.lock().await;
                host.ask_for_connections().await.map(|differ| differ.then_some(starts))
            };
            match stop.run_until_cancelled(asking).await {
                None => return,
                Some(Ok(differ)) => break differ,
                Some(Err(AskError::Final(_))) => break None,
                Some(Err(AskError::Passing(_) | AskError::Later(_))) => {}
            }
        };
        if let Some(_starts) = differ {
            // Nobody types into an agent that is about to go.
            let Some(_typing) = stop.run_until_cancelled(host.typing.lock()).await else { return };
            host.learn_late().await;
        }
    }
}

impl Host {
    async fn learn_late(self: &Arc<Self>) {
        let in_use = {
            let inner = self.lock();
            !inner.untouched || inner.conversation.begun()
        };
        if in_use {
            tracing::warn!("the agent goes on without its MCP servers");
            self.notify(
                "The MCP servers could not be had when the agent started; it has them after its next start.".to_owned(),
            );
            return;
        }
        tracing::info!("the agent starts again with its MCP servers");
        if let Err(error) = self.start_agent().await {
            tracing::error!(%error, "the agent cannot be started with its MCP servers");
            self.fail(Exit { code: 127, signal: None });
        }
    }
}
