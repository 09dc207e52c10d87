//! `agentapi-runtime`: picks the subcommand, sets up logs and signals. Everything else is in the library.

use std::io::Write;
use std::process::ExitCode;

use agentapi_runtime::audit_cli::{self, AuditCommand};
use agentapi_runtime::config::ServeConfig;
use agentapi_runtime::http::router;
use agentapi_runtime::serve::Server;
use agentapi_runtime::telemetry::{self, LogConfig};
use anyhow::Context;
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The `AgentAPI`.
#[derive(Parser)]
#[command(name = "agentapi-runtime", version)]
struct Cli {
    #[command(flatten)]
    log: LogConfig,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the API to tenants' clients.
    Serve(Box<ServeConfig>),
    /// Run inside a session pod: own one agent process and serve the coder/agentapi contract for it.
    Session(Box<agentapi_runtime::session::SessionArgs>),
    /// Run inside a probe pod: try what a session pod must not reach, and end.
    Probe(agentapi_runtime::probe::ProbeArgs),
    /// Run inside the pod of a stdio McpConnection: serve a program that speaks over standard input and output by HTTP.
    McpStdio(agentapi_runtime::mcp_stdio::StdioArgs),
    /// Run beside an agent: claude-code-router with the keys of the models, which the agent does not get.
    ModelRouter(agentapi_runtime::model_router::RouterArgs),
    /// Copy this program to where a container of another image finds it.
    Install(agentapi_runtime::mcp_stdio::InstallArgs),
    /// Print the `OpenAPI` document of the API.
    Openapi,
    /// Verify or export an organization's audit log.
    #[command(subcommand)]
    Audit(AuditCommand),
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    telemetry::init(&cli.log)?;
    match cli.command {
        Command::Serve(config) => {
            let shutdown = shutdown_on_signal()?;
            Server::in_cluster(*config).await?.run(shutdown).await;
        }
        Command::Session(args) => {
            let shutdown = shutdown_on_signal()?;
            let config = args.into_config(std::env::vars().collect())?;
            agentapi_runtime::session::run(config, shutdown).await?;
        }
        Command::Audit(command) => return Ok(ExitCode::from(audit_cli::run(command).await)),
        Command::Probe(args) => agentapi_runtime::probe::run(&args).await?,
        Command::McpStdio(args) => agentapi_runtime::mcp_stdio::run(args, shutdown_on_signal()?).await?,
        Command::ModelRouter(args) => {
            agentapi_runtime::model_router::run(args, std::env::vars().collect(), shutdown_on_signal()?).await?;
        }
        Command::Install(args) => agentapi_runtime::mcp_stdio::install(&args.target)?,
        Command::Openapi => {
            let document = router::openapi().to_pretty_json().context("cannot write the OpenAPI document")?;
            writeln!(std::io::stdout(), "{document}").context("cannot print the OpenAPI document")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A token that is cancelled by SIGTERM or SIGINT.
fn shutdown_on_signal() -> anyhow::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen to SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen to SIGINT")?;
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        cancelled.cancel();
    });
    Ok(token)
}
