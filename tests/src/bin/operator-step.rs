//! Some steps of the operator in a process of its own, which then kills itself with SIGKILL: for tests that look at
//! what a crash between two steps leaves behind. `operator-step <task> <steps>`; 0 steps: all, and a decent end.

use agentapi_crds::common::DeletionPolicy;
use agentapi_operator::{
    envelope::{MasterKey, MasterKeys},
    metrics::Metrics,
    signing::Signer,
    tenancy::{
        self,
        offboarding::{Leaving, Outcome},
    },
};
use anyhow::{Context, Result, bail};
use k8s_openapi::jiff::Timestamp;
use secrecy::SecretString;
use sqlx::PgPool;
use std::process::Command;

/// One step for the organization `<id> <name> <policy>`; false when all are done.
async fn offboard(pool: &PgPool, leaving: &[String]) -> Result<bool> {
    let [id, slug, policy] = leaving else { bail!("which organization?") };
    let now = Timestamp::now();
    let policy = if policy == "Delete" { DeletionPolicy::Delete } else { DeletionPolicy::Retain };
    let leaving = Leaving { id: id.parse()?, slug: slug.clone(), policy, requested_at: now, drain_until: now };
    let signer = Signer::from_pem(include_bytes!("operator-step.pem"))?;
    let outcome = tenancy::offboarding::step(pool, &leaving, &signer, now, async || None).await?;
    Ok(matches!(outcome, Outcome::Did(_)))
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let task = arguments.next().context("which task?")?;
    let steps: u32 = arguments.next().context("how many steps?")?.parse()?;
    let pool = tenancy::pool(&SecretString::from(std::env::var("DATABASE_URL")?))?;
    let metrics = Metrics::new()?;
    let leaving: Vec<String> = arguments.collect();
    let mut done = 0;
    loop {
        let more = match task.as_str() {
            "rewrap" => {
                let keys = MasterKeys::new(MasterKey::new(&[8; 32])?, vec![MasterKey::new(&[7; 32])?]);
                tenancy::keys::rewrap_next(&pool, &keys, &metrics).await?.is_some()
            }
            "offboard" => offboard(&pool, &leaving).await?,
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
