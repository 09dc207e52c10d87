//! The fake model endpoint as a program: the image `fake-model`, and by hand beside an agent on a developer's machine.

use std::net::SocketAddr;
use std::time::Duration;

use agentapi_tests::fakemodel::{Config, router};
use anyhow::Context as _;
use clap::Parser;

/// A model endpoint without a model (Anthropic Messages, `OpenAI` chat completions and responses).
#[derive(Parser)]
#[command(version)]
struct Options {
    /// Where to listen.
    #[arg(long, env = "FAKE_MODEL_LISTEN", default_value = "0.0.0.0:8000")]
    listen: SocketAddr,
    /// The only API key to accept; any key if unset.
    #[arg(long, env = "FAKE_MODEL_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Milliseconds between two words of a `slow N` answer.
    #[arg(long, env = "FAKE_MODEL_WORD_DELAY_MS", default_value_t = 200)]
    word_delay_ms: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().json().init();
    let options = Options::parse();
    let config = Config {
        api_key: options.api_key,
        word_delay: Duration::from_millis(options.word_delay_ms),
        ..Config::default()
    };
    let listener = tokio::net::TcpListener::bind(options.listen)
        .await
        .with_context(|| format!("cannot listen on {}; choose another with --listen", options.listen))?;
    tracing::info!(listen = %listener.local_addr()?, "fake model is ready");
    axum::serve(listener, router(config)).with_graceful_shutdown(stopped()).await?;
    Ok(())
}

/// Resolves at SIGTERM or Ctrl-C.
async fn stopped() {
    let terminate = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => {
                signal.recv().await;
            }
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = terminate => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}
