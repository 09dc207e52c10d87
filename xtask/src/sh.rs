//! Running programs: output goes to a log file, and a failure names the log and
//! shows its end, so that nobody has to search.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// Lines of a log that an error message repeats.
const TAIL: usize = 15;

/// Runs to the end with both outputs in `log`.
pub(crate) fn logged(command: &mut Command, log: &Path) -> Result<()> {
    let out = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let err = out.try_clone()?;
    let shown = show(command);
    let status = command
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .status()
        .with_context(|| format!("cannot start `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed ({status}); its log is {}, which ends:\n{}", log.display(), tail(log));
    }
    Ok(())
}

/// Runs to the end and gives back standard output; standard error becomes the message of a failure.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let shown = show(command);
    let Output { status, stdout, stderr } =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed ({status}): {}", String::from_utf8_lossy(&stderr).trim());
    }
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}

/// Like [`output`], with the answer as a `Result` of texts for polling.
pub(crate) fn probe(command: &mut Command) -> std::result::Result<String, String> {
    output(command).map_err(|error| format!("{error:#}"))
}

/// Finds a program on PATH or in the system folders that a plain user's PATH leaves out.
pub(crate) fn which(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin"].map(Into::into))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// The last lines of a log, without the stack trace that a Go program may have put below its error.
pub(crate) fn tail(log: &Path) -> String {
    let text = std::fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().take_while(|line| !line.starts_with("Stack Trace")).collect();
    lines[lines.len().saturating_sub(TAIL)..].join("\n")
}

fn show(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    words.join(" ")
}
