//! `cargo xtask cluster`: the Kubernetes that the project is tried on.

use anyhow::Result;
use clap::Subcommand;

use crate::paths;

/// Arguments of `cargo xtask cluster`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Print the path of the kubeconfig.
    Kubeconfig,
}

/// Runs the command.
pub(crate) fn main(args: &Args) -> Result<()> {
    match args.action {
        Action::Kubeconfig => println!("{}", paths::kubeconfig()?.display()),
    }
    Ok(())
}
