//! `cargo xtask cluster`: the Kubernetes that the project is tried on.

mod native;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Subcommand;

use crate::paths;
use crate::progress::step;

/// Arguments of `cargo xtask cluster`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Start the cluster, or finish what an earlier run left undone.
    Up,
    /// Remove the cluster and everything that it left on this machine.
    Down,
    /// Load image tars into the cluster's node.
    Load {
        /// Tars as written by `docker save` or `cargo xtask images`.
        #[arg(required = true)]
        tars: Vec<PathBuf>,
    },
    /// Print the path of the kubeconfig.
    Kubeconfig,
}

/// Runs the command.
pub(crate) fn main(args: &Args) -> Result<()> {
    match &args.action {
        Action::Up => up()?,
        Action::Down => down()?,
        Action::Load { tars } => tars.iter().try_for_each(|tar| load(tar))?,
        Action::Kubeconfig => println!("{}", paths::kubeconfig()?.display()),
    }
    Ok(())
}

/// Starts the cluster and says how to reach it.
pub(crate) fn up() -> Result<()> {
    native::up()?;
    let kubeconfig = paths::kubeconfig()?;
    println!("\nThe cluster is up.\n  export KUBECONFIG={}", kubeconfig.display());
    println!("  export PATH={}:$PATH   # kubectl and helm", paths::bin()?.display());
    Ok(())
}

/// Removes the cluster.
pub(crate) fn down() -> Result<()> {
    native::down()
}

/// Loads one image tar.
pub(crate) fn load(tar: &std::path::Path) -> Result<()> {
    if !native::running()? {
        bail!("no cluster is running: start one with `cargo xtask cluster up`");
    }
    step(&format!("load {}", tar.display()), || native::load(tar))
}
