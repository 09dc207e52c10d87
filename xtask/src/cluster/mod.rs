//! `cargo xtask cluster`: the Kubernetes that the project is tried on.

mod kind;
mod native;
mod procs;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};
use clap::{Subcommand, ValueEnum};

use crate::progress::step;
use crate::{gobuild, mounts, paths, sh};

/// Arguments of `cargo xtask cluster`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Start the cluster, or finish what an earlier run left undone.
    Up {
        /// Which cluster to use.
        #[arg(long, value_enum, default_value_t = Flavor::Auto)]
        cluster: Flavor,
    },
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

/// The ways to get a cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Flavor {
    /// What works here: a running one, else kind, else native.
    #[default]
    Auto,
    /// kind, with your Docker or one of our own.
    Kind,
    /// Kubernetes straight on this machine (needs root on Linux).
    Native,
    /// The cluster that KUBECONFIG names; nothing is started, and nothing is built.
    Existing,
}

/// Runs the command.
pub(crate) fn main(args: &Args) -> Result<()> {
    match &args.action {
        Action::Up { cluster } => up(*cluster)?,
        Action::Down => down()?,
        Action::Load { tars } => tars.iter().try_for_each(|tar| load(tar))?,
        Action::Kubeconfig => println!("{}", paths::kubeconfig()?.display()),
    }
    Ok(())
}

/// Starts the cluster and says how to reach it.
pub(crate) fn up(wanted: Flavor) -> Result<()> {
    match wanted {
        Flavor::Auto => auto()?,
        Flavor::Kind => kind::up()?,
        Flavor::Native => native::up()?,
        Flavor::Existing => existing()?,
    }
    let kubeconfig = paths::kubeconfig()?;
    println!("\nThe cluster is up.\n  export KUBECONFIG={}", kubeconfig.display());
    println!("  export PATH={}:$PATH   # kubectl and helm", paths::bin()?.display());
    Ok(())
}

/// What runs already, else kind, else native with a sentence why.
fn auto() -> Result<()> {
    if native::running()? {
        return native::up();
    }
    if kind::running()? {
        return kind::up();
    }
    let reason = match kind::obstacle()? {
        Some(reason) => reason,
        None => match kind::up() {
            Ok(()) => return Ok(()),
            Err(error) => {
                kind::down()?;
                format!("kind did not come up: {error:#}")
            }
        },
    };
    println!("  using the native cluster instead: {reason}");
    native::up()
}

/// Copies the current context after seeing that its cluster answers: what the person switches to later is not ours.
fn existing() -> Result<()> {
    if native::running()? || kind::running()? {
        let own = paths::kubeconfig()?;
        bail!("a cluster of ours runs, whose kubeconfig is {}: `cargo xtask down` first", own.display())
    }
    step("the cluster of your kubeconfig", || {
        sh::output(Command::new("kubectl").args(["--request-timeout=10s", "get", "--raw", "/readyz"]))?;
        let context = sh::output(Command::new("kubectl").args(["config", "view", "--minify", "--flatten"]))?;
        native::write_private(&paths::kubeconfig()?, context.as_bytes())
    })
}

/// The helm of this machine, else one that is built now.
pub(crate) fn helm() -> Result<PathBuf> {
    match sh::which("helm") {
        Some(program) => Ok(program),
        None => gobuild::build(&gobuild::HELM),
    }
}

/// Removes the cluster.
pub(crate) fn down() -> Result<()> {
    kind::down()?;
    native::down()?;
    // Notes of which images the cluster has: a new one has none.
    let _ = std::fs::remove_dir_all(paths::cache()?.join("loaded"));
    Ok(())
}

/// Loads one image tar.
pub(crate) fn load(tar: &Path) -> Result<()> {
    let native = native::running()?;
    if !native && !kind::running()? {
        bail!("no cluster of ours is running: start one with `cargo xtask cluster up`");
    }
    step(&format!("load {}", tar.display()), || if native { native::load(tar) } else { kind::load(tar) })
}

/// Unmounts everything below the folder, deepest first.
fn unmount_below(root: &Path) {
    for point in mounts::below(root).unwrap_or_default() {
        let _ = sh::output(Command::new("umount").arg("-l").arg(point));
    }
}

/// Whether this process and its children may have `CAP_SYS_RESOURCE` (bit 24).
fn has_sys_resource() -> bool {
    std::fs::read_to_string("/proc/self/status")
        .unwrap_or_default()
        .lines()
        .find_map(|line| line.strip_prefix("CapBnd:"))
        .and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
        .is_none_or(|bits| bits & (1 << 24) != 0)
}
