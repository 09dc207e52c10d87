//! `agentapi-operator`: parses the command line and hands over.
use agentapi_operator::{
    config::Config,
    migrate,
    migrate::MigrateConfig,
    receipt::{self, ReceiptArgs},
    run, telemetry,
};
use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Turns AgentAPI custom resources into namespaces, pods, Postgres roles and Secrets.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the controllers; start two of them, one leads.
    Run(Box<Config>),
    /// Bring roles, database and schema into order; safe to repeat and to start several times at once.
    Migrate(MigrateConfig),
    /// Receipts of organizations that have left.
    Receipt(ReceiptArgs),
}

#[tokio::main]
async fn main() -> ExitCode {
    telemetry::init();
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        tracing::debug!("a TLS provider was installed already");
    }
    let done = match Cli::parse().command {
        Command::Run(config) => run::run(*config).await,
        Command::Migrate(config) => migrate::run(&config).await.map_err(Into::into).map(|report| {
            tracing::info!(?report, "the database is in order");
        }),
        Command::Receipt(arguments) => receipt::run(&arguments).map_err(Into::into),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
