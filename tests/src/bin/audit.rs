//! What an auditor runs, as a process of its own. It is the same code as `agentapi-runtime audit`; Cargo hands tests the
//! binaries of their own package only.

use agentapi_runtime::audit_cli::{AuditCommand, run};
use clap::Parser;
use std::process::ExitCode;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: AuditCommand,
}

#[tokio::main]
async fn main() -> ExitCode {
    ExitCode::from(run(Cli::parse().command).await)
}
