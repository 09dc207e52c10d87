//! `cargo xtask chaos`: kill -9 of every part of the running installation, and what was lost: nothing.
use agentapi_tests::chaos::{self, Victim};
use anyhow::Result;
use clap::Parser;

/// Kill every part of the cluster of `cargo xtask up`, each in the middle of a turn and of a reconcile.
#[derive(Parser)]
struct Args {
    /// How often each part is killed.
    #[arg(long, default_value_t = 1)]
    rounds: usize,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    chaos::run(&Victim::all(), args.rounds).await.map(drop)
}
