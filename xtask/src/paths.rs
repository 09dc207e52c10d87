//! Where things live: the repository, and one state folder of the user outside
//! `target/`, so that `cargo clean` does not orphan a running cluster.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The root of the repository.
pub(crate) fn repo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// `$XDG_CACHE_HOME/agentapi`, else `~/.cache/agentapi`; made if it is missing.
pub(crate) fn cache() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()) {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(std::env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set: set one")?)
            .join(".cache"),
    };
    ensure(base.join("agentapi"))
}

/// The kubeconfig that `cluster up` writes and every other command reads.
pub(crate) fn kubeconfig() -> Result<PathBuf> {
    Ok(cache()?.join("kubeconfig"))
}

/// Folder with a fixed path to the programs of the project: kubectl, helm, kind.
pub(crate) fn bin() -> Result<PathBuf> {
    ensure(cache()?.join("bin"))
}

/// Folder for log files of builds and one-off commands.
pub(crate) fn logs() -> Result<PathBuf> {
    ensure(cache()?.join("log"))
}

/// Makes the folder and gives it back.
pub(crate) fn ensure(dir: PathBuf) -> Result<PathBuf> {
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}
