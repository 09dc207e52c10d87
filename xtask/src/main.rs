//! `cargo xtask`: the only place of the project that knows about machines.
//!
//! One module per command; a command adds its variant and its line in `main`,
//! nothing else here. The shared helpers are `paths` (where state lives), `sh`
//! (running programs with a log), `progress` (what the person sees) and
//! `debian` (system packages).

mod cluster;
mod debian;
mod gobuild;
mod image_tar;
mod images;
mod paths;
mod progress;
mod sh;

use clap::{Parser, Subcommand};

/// Set-up and tests of the `AgentAPI` operator.
#[derive(Parser)]
#[command(name = "cargo xtask", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start, fill and remove the Kubernetes cluster that everything is tried on.
    Cluster(cluster::Args),
    /// Build the images of the project as tars.
    Images(images::Args),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Cluster(args) => cluster::main(&args),
        Command::Images(args) => images::main(&args),
    }
}
