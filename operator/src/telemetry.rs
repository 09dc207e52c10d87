//! Logs: JSON lines by default, text for people at a terminal. `RUST_LOG` filters.
use tracing_subscriber::EnvFilter;

/// Start logging; called once, first.
pub fn init() {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,sqlx=warn,kube_runtime=warn"));
    let text = std::env::var("LOG_FORMAT").is_ok_and(|format| format == "text");
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if text {
        builder.init();
    } else {
        builder.json().flatten_event(true).with_current_span(true).init();
    }
}
