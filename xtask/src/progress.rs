//! What the person sees: one line per step, with the seconds it took, and a
//! spinner while it runs if there is a terminal to draw on.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};

/// Runs one step and prints `ok <name> <seconds>`, or `failed` with the reason left to the caller.
pub(crate) fn step<T>(name: &str, body: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let spinner = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("  {spinner} {msg} {elapsed}") {
        spinner.set_style(style);
    }
    spinner.set_message(name.to_owned());
    spinner.enable_steady_tick(Duration::from_millis(120));
    let result = body();
    spinner.finish_and_clear();
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
