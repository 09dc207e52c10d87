//! Python with fastmcp, for MCP servers that are real, and the server of the demo (`images/mcp-server/server.py`).
use crate::cluster::repo;
use anyhow::{Result, bail};
use std::{env, path::PathBuf};

/// The Python that has fastmcp: `FASTMCP`, or the one that `cargo xtask test` has made.
///
/// # Errors
/// When there is none.
pub fn python() -> Result<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(".cache")));
    let made = cache.map(|cache| cache.join("agentapi/fastmcp/bin/python"));
    match env::var_os("FASTMCP").map(PathBuf::from).or(made).filter(|python| python.exists()) {
        Some(python) => Ok(python),
        None => bail!(
            "there is no Python with fastmcp: `cargo xtask test --only fast` makes one, or set FASTMCP to the python of a \
             virtual environment with images/mcp-server/requirements.txt"
        ),
    }
}

/// The demo's server; see the variables that it reads.
pub fn server() -> PathBuf {
    repo().join("images/mcp-server/server.py")
}
