//! `agentapi-runtime session`: runs inside a session pod, owns one agent process, in a terminal or over the Agent Client
//! Protocol, and serves the coder/agentapi contract for it. Imports nothing from the other rooms; talks to the runtime only through its
//! internal API.

mod acp;
mod agents;
mod asking;
mod boxes;
mod claim;
mod claiming;
mod config;
mod decisions;
mod events;
mod format;
#[cfg(test)]
mod fuzz;
mod group;
mod host;
mod http;
mod late;
mod mcp;
mod messages;
mod permissions;
mod preparing;
mod pty;
mod reap;
mod reserve;
mod saving;
mod screen;
mod seed;
mod send;
mod starting;
mod state;
mod sync;
mod token;
pub mod tools;
mod track;
mod transport;

use std::{sync::Arc, time::Duration};

use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use config::{ConfigError, SessionArgs, SessionConfig, Timing};
use host::Host;
pub use permissions::{Policy, Rule};
pub use transport::Transport;

/// Clients of `/events` get this long to receive the last event before the process ends.
const LAST_EVENTS: Duration = Duration::from_millis(300);
/// Requests in flight get this long when the host stops.
const DRAIN: Duration = Duration::from_secs(2);

/// Why a session host ends, or does not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration makes no sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The agent's profile.
    #[error(transparent)]
    Agent(#[from] agents::AgentError),
    /// Nobody knows how the agent is made to speak ACP.
    #[error(
        "it is not known how {agent} is started to speak ACP; give the workspace agent.command, or use transport pty"
    )]
    NoAcp {
        /// Agent type.
        agent: String,
    },
    /// The public key.
    #[error(transparent)]
    Key(#[from] token::KeyError),
    /// The state folder.
    #[error(transparent)]
    State(#[from] state::StateError),
    /// The claim in the Secret or the state folder.
    #[error(transparent)]
    Claim(#[from] claim::ClaimError),
    /// The state folder and the Secret name different sessions.
    #[error("the state folder belongs to session {state} but the Secret to session {secret}; delete the pod")]
    OtherSession {
        /// Session in the state folder.
        state: String,
        /// Session in the Secret.
        secret: String,
    },
    /// The agent could not be started.
    #[error(transparent)]
    Start(#[from] host::StartError),
    /// The address is taken or not ours.
    #[error("cannot listen on {address}: {source}; set AGENTAPI_LISTEN to a free address")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The relay to MCP servers.
    #[error("cannot listen on the loopback address for the agent's MCP servers: {0}")]
    Relay(std::io::Error),
    /// The agent has ended by itself; the kubelet restarts the container.
    #[error("the agent ended with code {code}{}", signal.as_ref().map(|s| format!(" ({s})")).unwrap_or_default())]
    AgentExited {
        /// Exit code.
        code: u32,
        /// Signal.
        signal: Option<String>,
    },
}

/// Runs a session until `shutdown` is cancelled or the agent ends.
pub async fn run(config: SessionConfig, shutdown: CancellationToken) -> Result<(), Error> {
    // The agent runs as the same user: without this it could trace this process and read its memory, its environment
    // and its open files. The agent's own process is reset by exec.
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "the agent may look into this process");
    }
    // Logged here, where the log is JSON, and not only where the process ends.
    serve(config, shutdown).await.inspect_err(|error| tracing::error!(%error, "the session host ends"))
}

async fn serve(config: SessionConfig, shutdown: CancellationToken) -> Result<(), Error> {
    let verifier = config
        .public_key
        .as_deref()
        .map(|keys| token::Verifier::new(keys, &config.pod_name, config.secret_dir.as_deref()))
        .transpose()?;
    if verifier.is_none() {
        tracing::warn!("no session key: every local process may use this session");
    }
    let address = config.listen;
    let listener = TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })?;
    let host = Host::open(config)?;

    // The background work ends with `background`, the HTTP side with `serving`.
    let background = CancellationToken::new();
    let serving = CancellationToken::new();
    let tasks = tokio_util::task::TaskTracker::new();
    tasks.spawn(Arc::clone(&host).track(background.clone()));
    tasks.spawn(Arc::clone(&host).save_on_change(background.clone()));
    tasks.spawn(sync::push_on_change(Arc::clone(&host), background.clone()));
    tasks.spawn(decisions::push_as_they_come(Arc::clone(&host), background.clone()));
    tasks.spawn(reap::reap_orphans(Arc::clone(&host), background.clone()));
    tasks.spawn(late::ask_on(Arc::clone(&host), background.clone()));
    let local = listener.local_addr().map_err(|source| Error::Listen { address, source })?;
    let app = http::router(Arc::clone(&host), verifier, serving.clone());
    let mut server = tokio::spawn({
        let serving = serving.clone();
        async move { axum::serve(listener, app).with_graceful_shutdown(serving.cancelled_owned()).await }
    });
    tracing::info!(address = %local, agent = host.agent_type(), "session host is listening");
    mcp::serve_relay(&host, serving.clone()).await.map_err(Error::Relay)?;
    host.begin().await?;

    let mut failure = host.failure();
    let exit = tokio::select! {
        () = shutdown.cancelled() => None,
        exit = failure.wait_for(Option::is_some) => exit.ok().and_then(|exit| exit.clone()),
    };
    background.cancel();
    tasks.close();
    match &exit {
        None => {
            tracing::info!("stopping");
            tokio::join!(host.stop(), sync::push_last(&host), decisions::push_last(&host), sync::tell_end(&host));
        }
        Some(_) => {
            tokio::join!(
                host.persist(),
                sync::push_last(&host),
                decisions::push_last(&host),
                tokio::time::sleep(LAST_EVENTS)
            );
        }
    }
    serving.cancel();
    if tokio::time::timeout(DRAIN, &mut server).await.is_err() {
        tracing::warn!("requests did not end in time; closing their connections");
        server.abort();
    }
    tasks.wait().await;
    exit.map_or(Ok(()), |exit| Err(Error::AgentExited { code: exit.code, signal: exit.signal }))
}
