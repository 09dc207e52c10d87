//! The processes of the native cluster: started apart from this one, recorded
//! with their start time, and only ever signalled when pid and start time still
//! belong together.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{progress, sh};

/// What is known about one started process.
#[derive(Serialize, Deserialize, Clone)]
struct Record {
    pid: u32,
    /// Field 22 of `/proc/PID/stat`: with the pid it names one process for good.
    start_time: String,
    command: Vec<String>,
    /// Digest of the configuration file it was started with.
    #[serde(default)]
    config: String,
}

/// The recorded processes, kept in one file.
pub(crate) struct Procs {
    file: PathBuf,
    logs: PathBuf,
    records: BTreeMap<String, Record>,
}

impl Procs {
    /// Reads the records of earlier runs.
    pub(crate) fn open(file: PathBuf, logs: PathBuf) -> Result<Self> {
        let records = match std::fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .with_context(|| format!("{} is damaged: remove it, and stop what it named by hand", file.display()))?,
            Err(_) => BTreeMap::new(),
        };
        Ok(Self { file, logs, records })
    }

    /// Whether the process of that name runs.
    pub(crate) fn alive(&self, name: &str) -> bool {
        self.records.get(name).is_some_and(Record::alive)
    }

    /// The names of all recorded processes.
    pub(crate) fn names(&self) -> Vec<String> {
        self.records.keys().cloned().collect()
    }

    /// The log file of the process.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    /// Starts the process unless it runs with this very command and configuration (the text of
    /// its file, "" for none); a change of either restarts it.
    pub(crate) fn ensure(&mut self, name: &str, program: &Path, args: &[String], config: &str) -> Result<()> {
        let config = hex::encode(&Sha256::digest(config)[..6]);
        let mut command = vec![program.to_string_lossy().into_owned()];
        command.extend_from_slice(args);
        let same = |record: &Record| record.alive() && record.command == command && record.config == config;
        if self.records.get(name).is_some_and(same) {
            return Ok(());
        }
        self.stop(name)?;
        let log = std::fs::File::create(self.log(name))?;
        // setsid: the cluster outlives the terminal that started it. The multi-call
        // programs read their role from argv[0], so the link and not its target is run.
        let child = Command::new("setsid")
            .arg(&command[0])
            .args(args)
            .stdin(Stdio::null())
            .stderr(log.try_clone()?)
            .stdout(log)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let pid = child.id();
        let start_time = start_time(pid).with_context(|| {
            format!("{name} ended at once; its log is {}:\n{}", self.log(name).display(), sh::tail(&self.log(name)))
        })?;
        self.records.insert(name.to_owned(), Record { pid, start_time, command, config });
        self.save()
    }

    /// Fails with the log's end if the process is gone; for use inside polls.
    pub(crate) fn check(&self, name: &str) -> Result<()> {
        if self.alive(name) {
            return Ok(());
        }
        let log = self.log(name);
        anyhow::bail!("{name} has ended; its log is {}, which ends:\n{}", log.display(), sh::tail(&log))
    }

    /// Ends the process: asked first, forced after ten seconds.
    pub(crate) fn stop(&mut self, name: &str) -> Result<()> {
        let Some(record) = self.records.get(name).cloned() else { return Ok(()) };
        for (signal, seconds) in [("-TERM", 10), ("-KILL", 10)] {
            if !record.alive() {
                break;
            }
            let _ = sh::output(Command::new("kill").args([signal, &record.pid.to_string()]));
            let gone = progress::wait_for(name, Duration::from_secs(seconds), || {
                if record.alive() { Err("still running".into()) } else { Ok(()) }
            });
            if signal == "-KILL" {
                gone?;
            }
        }
        self.records.remove(name);
        self.save()
    }

    fn save(&self) -> Result<()> {
        let partial = self.file.with_extension("partial");
        std::fs::write(&partial, serde_json::to_vec_pretty(&self.records)?)?;
        std::fs::rename(&partial, &self.file).with_context(|| format!("cannot write {}", self.file.display()))
    }
}

impl Record {
    fn alive(&self) -> bool {
        start_time(self.pid).is_some_and(|time| time == self.start_time)
    }
}

/// When the process started, in the kernel's ticks; nothing if it is gone or only waits to be reaped.
fn start_time(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, so fields are counted after it.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    if matches!(*fields.first()?, "Z" | "X") {
        return None;
    }
    fields.get(19).map(|time| (*time).to_owned())
}
