//! `agentapi-runtime mcp-stdio`: an MCP server that speaks over standard input and output, behind streamable HTTP. Runs in
//! the pod of a stdio McpConnection, in whatever image the program is in. One process for each MCP session; requests
//! without a session (protocol 2026-07-28) share one. A program that dies ends its session: clients begin another one,
//! and with it another process. Imports nothing from the other rooms; may touch: its own child processes.

mod http;
mod process;
mod session;
mod sessions;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use process::Program;
use sessions::Sessions;

/// Requests in flight get this long when the pod stops.
const DRAIN: Duration = Duration::from_secs(2);

/// What `mcp-stdio` is told.
#[derive(Debug, Clone, clap::Args)]
pub struct StdioArgs {
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1:8090")]
    pub listen: SocketAddr,
    /// Most processes at the same time; beyond, the one that has been idle for longest is ended.
    #[arg(long, default_value_t = 16)]
    pub max_sessions: usize,
    /// Seconds after which a session that nobody uses is ended.
    #[arg(long, default_value_t = 300)]
    pub idle_seconds: u64,
    /// The program and its arguments.
    #[arg(required = true, last = true)]
    pub command: Vec<String>,
}

/// What `install` is told.
#[derive(Debug, Clone, clap::Args)]
pub struct InstallArgs {
    /// Where to put a copy of this program.
    pub target: PathBuf,
}

/// Why it does not run.
#[derive(Debug, thiserror::Error)]
pub enum StdioError {
    /// The address is taken or not ours.
    #[error("cannot listen on {0}: {1}; set --listen to a free address")]
    Listen(SocketAddr, std::io::Error),
    /// The copy could not be made.
    #[error("cannot copy {from} to {to}: {source}; the folder must be there and writable")]
    Install {
        /// This program.
        from: PathBuf,
        /// The target.
        to: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Serves until `stop` is cancelled.
pub async fn run(args: StdioArgs, stop: CancellationToken) -> Result<(), StdioError> {
    let listener = TcpListener::bind(args.listen).await.map_err(|error| StdioError::Listen(args.listen, error))?;
    serve(listener, args, stop).await;
    Ok(())
}

/// The same on a listener that is open already.
pub async fn serve(listener: TcpListener, args: StdioArgs, stop: CancellationToken) {
    let idle = Duration::from_secs(args.idle_seconds.max(1));
    let sessions = Sessions::new(Program::new(args.command), args.max_sessions.max(1), idle);
    let sweeper = tokio::spawn(std::sync::Arc::clone(&sessions).sweep(stop.clone()));
    let closing = stop.clone();
    let mut server = tokio::spawn({
        let router = http::router(std::sync::Arc::clone(&sessions));
        async move { axum::serve(listener, router).with_graceful_shutdown(closing.cancelled_owned()).await }
    });
    tracing::info!(
        program = sessions.program().name(),
        "serving an MCP server that speaks over standard input and output"
    );
    stop.cancelled().await;
    // Event streams end with their sessions.
    sessions.end_all().await;
    if tokio::time::timeout(DRAIN, &mut server).await.is_err() {
        server.abort();
    }
    sweeper.abort();
}

/// Copies this program, so that a container of another image can run it. The image of the runtime has no `cp`.
pub fn install(target: &Path) -> Result<(), StdioError> {
    let from = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe"));
    let failed = |source| StdioError::Install { from: from.clone(), to: target.to_owned(), source };
    // There is one already when the pod's init containers run again, and nobody may write to that.
    match std::fs::remove_file(target) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    std::fs::copy(&from, target).map_err(failed)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o555);
    std::fs::set_permissions(target, mode).map_err(failed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_copy_can_be_run_and_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("agentapi-runtime");
        for _ in 0..2 {
            super::install(&target).unwrap();
            let made = std::fs::metadata(&target).unwrap();
            assert_eq!(made.permissions().mode() & 0o777, 0o555);
            assert_eq!(made.len(), std::fs::metadata(std::env::current_exe().unwrap()).unwrap().len());
        }
        let error = super::install(&folder.path().join("no/such/folder")).unwrap_err().to_string();
        assert!(error.contains("must be there and writable"), "{error}");
    }
}
