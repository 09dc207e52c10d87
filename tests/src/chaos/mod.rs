//! Chaos: processes of a running installation are killed with SIGKILL, each while a message turn and a reconcile are
//! under way; after each kill it is checked that nothing that was acknowledged is lost, that no row is another
//! tenant's, and how long it took until everything worked again.
//! May touch: the cluster of `cargo xtask up`, and processes that its containers or its process list name.

mod check;
mod kill;
mod work;

pub use kill::Victim;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::cluster::Cluster;
use work::Work;

/// Everything works again within this time, or the round fails.
const RECOVERY: Duration = Duration::from_secs(120);

/// One line of the report.
#[derive(Clone, Debug)]
pub struct Line {
    /// What was killed.
    pub what: String,
    /// Seconds until a message turn was answered again.
    pub turn: f64,
    /// Seconds until the change that was made around the kill was in place.
    pub reconcile: f64,
    /// Messages and sessions that were acknowledged so far, all of which are still there.
    pub kept: usize,
}

/// Kills each victim `rounds` times, then leaves the operator away for a while. Prints a line per kill and gives all back.
///
/// # Errors
/// When something that was acknowledged is lost, a row is another tenant's, or it does not recover.
pub async fn run(victims: &[Victim], rounds: usize) -> Result<Vec<Line>> {
    let cluster = Cluster::connect()?;
    let mut work = Work::start(&cluster).await?;
    let result = storm(&cluster, &mut work, victims, rounds).await;
    // Also after a failure: the next run finds the cluster as this one did.
    let ended = work.finish(&cluster).await;
    let lines = result?;
    ended?;
    print(&lines);
    Ok(lines)
}

async fn storm(cluster: &Cluster, work: &mut Work, victims: &[Victim], rounds: usize) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    check::all(cluster, work).await.context("before the first kill")?;
    for round in 1..=rounds {
        for victim in victims {
            println!("round {round} of {rounds}: kill -9 of {victim}");
            let line = one(cluster, work, *victim).await.with_context(|| format!("kill -9 of {victim}"))?;
            println!("  turn again after {:.1} s, change in place after {:.1} s", line.turn, line.reconcile);
            lines.push(line);
        }
        println!("round {round} of {rounds}: no operator at all");
        let line = without_operator(cluster, work).await.context("without the operator")?;
        println!("  change in place {:.1} s after it came back", line.reconcile);
        lines.push(line);
    }
    Ok(lines)
}

async fn one(cluster: &Cluster, work: &mut Work, victim: Victim) -> Result<Line> {
    // The change is applied first, so that it is being reconciled, and the message is acknowledged, so that it must stay.
    let change = work.change(cluster)?;
    work.say().await.context("the message before the kill")?;
    let killed = Instant::now();
    victim.kill(cluster, work.session_pod(cluster)?.as_deref())?;
    work.say_through_the_storm(Duration::from_secs(3)).await;
    victim.help(cluster).await?;
    let turn = work.recovered(killed, RECOVERY).await?;
    work.changed(cluster, &change, RECOVERY).await?;
    let reconcile = killed.elapsed().as_secs_f64();
    let kept = check::all(cluster, work).await?;
    Ok(Line { what: format!("kill -9 {victim}"), turn, reconcile, kept })
}

/// With the operator scaled to nothing, sessions start and go on, and `kubectl apply` is taken.
async fn without_operator(cluster: &Cluster, work: &mut Work) -> Result<Line> {
    let replicas = kill::scale_operator(cluster, 0)?;
    let outcome = async {
        kill::operator_gone(cluster).await?;
        let began = Instant::now();
        work.say().await?;
        let turn = work.recovered(began, RECOVERY).await?;
        work.new_session().await.context("a new session")?;
        let change = work.change(cluster).context("kubectl apply")?;
        anyhow::Ok((turn, change))
    }
    .await;
    kill::scale_operator(cluster, replicas.max(1))?;
    let (turn, change) = outcome?;
    let back = Instant::now();
    work.changed(cluster, &change, RECOVERY).await?;
    let reconcile = back.elapsed().as_secs_f64();
    let kept = check::all(cluster, work).await?;
    Ok(Line { what: "operator away".to_owned(), turn, reconcile, kept })
}

fn print(lines: &[Line]) {
    println!("\n{:<24}{:>16}{:>20}{:>20}", "what happened", "turn again s", "change in place s", "acknowledged, kept");
    for line in lines {
        println!("{:<24}{:>16.1}{:>20.1}{:>20}", line.what, line.turn, line.reconcile, line.kept);
    }
}
