//! What the person sees: one line per step, with the seconds it took. While it runs there is a spinner if there is a
//! terminal to draw on, and otherwise a line from time to time, so that a log of CI shows what is waited for.

use std::io::IsTerminal;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};

/// How often a step that goes on is mentioned where no spinner can turn.
const STILL: Duration = Duration::from_secs(30);

/// Runs one step and prints `ok <name> <seconds>`, or `failed` with the reason left to the caller.
pub(crate) fn step<T>(name: &str, body: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    if !std::io::stderr().is_terminal() {
        let result = mentioned(name, start, body);
        return ended(name, start, result);
    }
    let spinner = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("  {spinner} {msg} {elapsed}") {
        spinner.set_style(style);
    }
    spinner.set_message(name.to_owned());
    spinner.enable_steady_tick(Duration::from_millis(120));
    let result = body();
    spinner.finish_and_clear();
    ended(name, start, result)
}

/// Runs `body` and says every now and then that it still does.
fn mentioned<T>(name: &str, start: Instant, body: impl FnOnce() -> Result<T>) -> Result<T> {
    let (done, waits) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while waits.recv_timeout(STILL) == Err(RecvTimeoutError::Timeout) {
                println!("  ...    {name} ({:.0} s so far)", start.elapsed().as_secs_f64());
            }
        });
        let result = body();
        drop(done);
        result
    })
}

fn ended<T>(name: &str, start: Instant, result: Result<T>) -> Result<T> {
    let outcome = if result.is_ok() { "ok" } else { "failed" };
    println!("  {outcome:<6} {name} ({:.1} s)", start.elapsed().as_secs_f64());
    result.with_context(|| format!("step \"{name}\""))
}

/// Polls `ready` until it says yes; the error says what was last seen.
pub(crate) fn wait_for(
    what: &str,
    limit: Duration,
    mut ready: impl FnMut() -> std::result::Result<(), String>,
) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        match ready() {
            Ok(()) => return Ok(()),
            Err(seen) if Instant::now() >= deadline => {
                anyhow::bail!("{what}: not there after {} s; last seen: {}", limit.as_secs(), seen.trim())
            }
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}
