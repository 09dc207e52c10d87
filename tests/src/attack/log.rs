//! The runtime's log of this process, in memory and in the same form as in a pod.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use agentapi_runtime::telemetry::{self, LogConfig, LogFormat};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use tracing_subscriber::fmt::MakeWriter;

/// Everything that was logged since [`Log::capture`].
#[derive(Clone, Debug, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Log {
    /// Takes the process's log, with as much detail as the filter says. Once per process.
    ///
    /// # Errors
    /// When the log is set up already.
    pub fn capture(filter: &str) -> Result<Self> {
        let log = Self::default();
        let config = LogConfig { log: filter.to_owned(), log_format: LogFormat::Json };
        telemetry::init_to(&config, log.clone())?;
        Ok(log)
    }

    /// The log as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// One record per line.
    ///
    /// # Errors
    /// When a line is something else: somebody wrote a line of their own into the log.
    pub fn records(&self) -> Result<Vec<Value>> {
        let text = self.text();
        text.lines()
            .map(|line| {
                let record: Value = serde_json::from_str(line).with_context(|| format!("not a record: {line:?}"))?;
                if !record["timestamp"].is_string() || !record["level"].is_string() || !record["target"].is_string() {
                    bail!("not a record of ours: {line}");
                }
                Ok(record)
            })
            .collect()
    }
}
