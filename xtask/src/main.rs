//! `cargo xtask`: the only place of the project that knows about machines.
//!
//! One module per command; a command adds its variant and its line in `main`,
//! nothing else here. The shared helpers are `paths` (where state lives), `sh`
//! (running programs with a log), `progress` (what the person sees) and
//! `debian` (system packages); `cache` keeps the state folder small, and `mounts`
//! tells what is mounted in it.

mod cache;
mod cluster;
mod debian;
mod gobuild;
mod image_tar;
mod images;
mod mounts;
mod paths;
mod progress;
mod sh;
mod test;
mod up;

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
    /// Make the cluster, install everything, apply two sample tenants and print what to type next.
    Up(up::Args),
    /// Remove the cluster with everything in it.
    Down(up::DownArgs),
    /// Run the tests: lint, then those without a cluster, then those on the cluster.
    Test(test::Args),
    /// Measure on the running cluster.
    Bench(test::BenchArgs),
    /// Kill every part of the running installation with SIGKILL and see that nothing acknowledged is lost.
    Chaos(test::ChaosArgs),
    /// Feed the parsers of what comes from outside with mutated inputs, for as long as you like.
    Fuzz(test::FuzzArgs),
    /// Write the generated files again.
    Gen,
    /// Print an access token of the demo's identity provider.
    Token(up::TokenArgs),
    /// Start, fill and remove the Kubernetes cluster that everything is tried on.
    Cluster(cluster::Args),
    /// Build the images of the project as tars.
    Images(images::Args),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Up(args) => up::main(&args),
        Command::Down(args) => up::down(&args),
        Command::Test(args) => test::main(&args),
        Command::Bench(args) => test::bench(&args),
        Command::Chaos(args) => test::chaos(&args),
        Command::Fuzz(args) => test::fuzz(&args),
        Command::Gen => test::generate(),
        Command::Token(args) => up::token(&args),
        Command::Cluster(args) => cluster::main(&args),
        Command::Images(args) => images::main(&args),
    }
}
