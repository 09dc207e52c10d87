//! SIGTERM and SIGINT as one token, and the deadline after which we leave without waiting. (kube's own
//! `shutdown_on_signal` hangs while the first LIST has not succeeded.)
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// How long reconciles in flight may take after the signal; less than the pod's grace period.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// A token that is cancelled by SIGTERM or SIGINT.
pub fn token() -> std::io::Result<CancellationToken> {
    let token = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let cancelled = token.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("shutting down");
        cancelled.cancel();
    });
    Ok(token)
}
