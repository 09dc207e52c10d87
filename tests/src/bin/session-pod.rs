//! The session host as a process of its own, for API tests that run without a cluster. It is the same code as
//! `agentapi-runtime session`; Cargo hands tests the binaries of their own package only.

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    session: agentapi_runtime::session::SessionArgs,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let config = Cli::parse().session.into_config(std::env::vars().collect())?;
    let shutdown = CancellationToken::new();
    let (mut terminate, cancelled) = (signal(SignalKind::terminate())?, shutdown.clone());
    tokio::spawn(async move {
        terminate.recv().await;
        cancelled.cancel();
    });
    agentapi_runtime::session::run(config, shutdown).await?;
    Ok(())
}
