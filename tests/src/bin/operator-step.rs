//! Some steps of the operator in a process of its own, which then kills itself with SIGKILL: for tests that look at
//! what a crash between two steps leaves behind. `operator-step <task> <steps>`; 0 steps: all, and a decent end.

use agentapi_operator::{
    envelope::{MasterKey, MasterKeys},
    metrics::Metrics,
    tenancy,
};
use anyhow::{Context, Result, bail};
use secrecy::SecretString;
use std::process::Command;

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let task = arguments.next().context("which task?")?;
    let steps: u32 = arguments.next().context("how many steps?")?.parse()?;
    let pool = tenancy::pool(&SecretString::from(std::env::var("DATABASE_URL")?))?;
    let metrics = Metrics::new()?;
    let mut done = 0;
    loop {
        let more = match task.as_str() {
            "rewrap" => {
                let keys = MasterKeys::new(MasterKey::new(&[8; 32])?, vec![MasterKey::new(&[7; 32])?]);
                tenancy::keys::rewrap_next(&pool, &keys, &metrics).await?.is_some()
            }
            other => bail!("there is no task {other}"),
        };
        if !more {
            return Ok(());
        }
        done += 1;
        if done == steps {
            Command::new("kill").args(["-KILL", &std::process::id().to_string()]).status()?;
            bail!("still alive");
        }
    }
}
