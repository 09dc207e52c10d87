//! The log: one JSON object per line on standard error, or text for people. May touch: standard error.

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// How to log.
#[derive(Debug, Clone, Args)]
pub struct LogConfig {
    /// Filter of the log, such as `info,agentapi_runtime=debug`.
    #[arg(long, env = "AGENTAPI_LOG", default_value = "info", global = true)]
    pub log: String,
    /// Form of the log.
    #[arg(long, env = "AGENTAPI_LOG_FORMAT", value_enum, default_value_t = LogFormat::Json, global = true)]
    pub log_format: LogFormat,
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For machines.
    Json,
    /// For people.
    Text,
}

/// The filter cannot be parsed, or logging was set up before.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up the log: {0}")]
pub struct LogError(String);

/// Sets up the log of this process.
pub fn init(config: &LogConfig) -> Result<(), LogError> {
    init_to(config, std::io::stderr)
}

/// The same with another place to write to.
pub fn init_to<W>(config: &LogConfig, writer: W) -> Result<(), LogError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = EnvFilter::try_new(&config.log).map_err(|error| LogError(format!("AGENTAPI_LOG: {error}")))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    let done = match config.log_format {
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(true).with_span_list(false).try_init(),
        LogFormat::Text => builder.try_init(),
    };
    done.map_err(|error| LogError(error.to_string()))
}
