//! `cargo xtask bench session`: from POST /v1/sessions to an agent that is ready, on warm and on cold pods; and
//! `cargo xtask bench wake`: from a message to a suspended session to an agent that has it.
use agentapi_tests::{
    api::Api,
    cluster::{Cluster, eventually, repo},
};
use anyhow::{Context, Result};
use clap::Parser;
use serde_json::json;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(120);

/// Measure session create to agent ready on the cluster of `cargo xtask up`.
#[derive(Parser)]
struct Args {
    /// Sessions of each kind.
    #[arg(long, default_value_t = 30)]
    runs: usize,
    /// Wake suspended sessions instead.
    #[arg(long)]
    wake: bool,
}

/// Milliseconds of one session.
struct Sample {
    created: f64,
    running: f64,
    stable: f64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let cluster = Cluster::connect()?;
    let url = cluster.api_url()?;
    if args.wake {
        return wake(&cluster, &url, args.runs).await;
    }
    let kinds = [("warm", "acme-alice", "team-acme", "web"), ("cold", "globex-gina", "team-globex", "research")];
    println!(
        "{:<6}{:>6}  {:>22}  {:>22}  {:>22}",
        "pods", "runs", "201 p50/p95/p99 ms", "Running p50/p95/p99", "stable p50/p95/p99"
    );
    for (pods, client, namespace, workspace) in kinds {
        let api = Api::new(&url, Some(cluster.token(client)?))?;
        let mut samples = Vec::with_capacity(args.runs);
        for run in 0..args.runs {
            if pods == "warm" {
                warm_pod_waits(&cluster, namespace, workspace).await?;
            }
            let sample = one(&api, workspace).await.with_context(|| format!("{pods} run {run}"))?;
            eprintln!(
                "{pods} {:>2}: 201 {:.0} ms, Running {:.0} ms, stable {:.0} ms",
                run + 1,
                sample.created,
                sample.running,
                sample.stable
            );
            samples.push(sample);
        }
        let column = |pick: fn(&Sample) -> f64| {
            let mut values: Vec<f64> = samples.iter().map(pick).collect();
            values.sort_by(f64::total_cmp);
            format!("{:.0}/{:.0}/{:.0}", rank(&values, 50), rank(&values, 95), rank(&values, 99))
        };
        println!(
            "{pods:<6}{:>6}  {:>22}  {:>22}  {:>22}",
            samples.len(),
            column(|s| s.created),
            column(|s| s.running),
            column(|s| s.stable)
        );
    }
    Ok(())
}

/// One session that is suspended and woken again and again, with more to remember each time.
async fn wake(cluster: &Cluster, url: &str, runs: usize) -> Result<()> {
    let example = std::fs::read_to_string(repo().join("examples/suspend.yaml"))?;
    cluster.apply(&example.replace("idleAfter: 10m", "idleAfter: 10s"))?;
    let api = Api::new(url, Some(cluster.token("acme-alice")?))?;
    let body = eventually("a session", LIMIT, async || {
        let answer = api.post("/v1/sessions", &json!({ "workspace": "patient" })).await?;
        Ok(if answer.status == 201 { Ok(answer.body) } else { Err(answer.body.to_string()) })
    })
    .await?;
    let path = format!("/v1/sessions/{}", body["id"].as_str().context("no id")?);
    let mut values = Vec::with_capacity(runs);
    for run in 1..=runs {
        poll("Suspended", async || Ok(api.get(&path).await?.body["phase"] == "Suspended")).await?;
        let start = Instant::now();
        let message = json!({ "content": format!("echo: number {run}"), "type": "user" });
        api.post(&format!("{path}/message"), &message).await?.expect(200)?;
        values.push(start.elapsed().as_secs_f64() * 1000.0);
        eprintln!("wake {run:>2}: {:.0} ms", values.last().copied().unwrap_or(f64::NAN));
    }
    values.sort_by(f64::total_cmp);
    let [p50, p95, p99] = [50, 95, 99].map(|percent| rank(&values, percent));
    println!("wake   {runs:>5}  message to an agent that has it, p50/p95/p99 ms: {p50:.0}/{p95:.0}/{p99:.0}");
    api.delete(&path).await?;
    cluster.kubectl(&["-n", "team-acme", "delete", "workspace", "patient"])?;
    Ok(())
}

/// The nearest-rank percentile of sorted values.
fn rank(sorted: &[f64], percent: usize) -> f64 {
    let index = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(index).copied().unwrap_or(f64::NAN)
}

async fn warm_pod_waits(cluster: &Cluster, namespace: &str, workspace: &str) -> Result<()> {
    eventually("a warm pod", LIMIT, async || {
        let object = cluster.get("workspace", Some(namespace), workspace)?.context("the sample tenant is gone")?;
        let ready = object["status"]["warmPods"].as_i64().unwrap_or_default();
        let wanted = object["spec"]["warmPool"].as_i64().unwrap_or_default();
        Ok(if ready >= wanted && ready > 0 { Ok(()) } else { Err(format!("{ready} of {wanted} warm pods")) })
    })
    .await
}

async fn one(api: &Api, workspace: &str) -> Result<Sample> {
    let start = Instant::now();
    let since = |start: Instant| start.elapsed().as_secs_f64() * 1000.0;
    let body = api.post("/v1/sessions", &json!({ "workspace": workspace })).await?.expect(201)?;
    let created = since(start);
    let path = format!("/v1/sessions/{}", body["id"].as_str().context("no id")?);
    poll("Running", async || Ok(api.get(&path).await?.body["phase"] == "Running")).await?;
    let running = since(start);
    let status = format!("{path}/status");
    poll("stable", async || Ok(api.get(&status).await?.body["status"] == "stable")).await?;
    let stable = since(start);
    poll("an answer to DELETE", async || Ok(matches!(api.delete(&path).await?.status.as_u16(), 202 | 204 | 404)))
        .await?;
    poll("the end", async || {
        let answer = api.get(&path).await?;
        Ok(answer.status == 404 || answer.body["phase"] == "Ended")
    })
    .await?;
    Ok(Sample { created, running, stable })
}

/// Polls every 5 ms at first and every 25 ms later: short beside what is measured, and within the request rate that a
/// user has, which holds for this client too.
async fn poll(what: &str, mut done: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !done().await? {
        anyhow::ensure!(start.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
        let pause = if start.elapsed() < Duration::from_millis(500) { 5 } else { 25 };
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_percentile_is_the_nearest_rank() {
        let values: Vec<f64> = (1..=30).map(f64::from).collect();
        let picked: Vec<f64> = [50, 95, 99, 100].map(|p| super::rank(&values, p)).to_vec();
        assert_eq!(picked, [15.0, 29.0, 30.0, 30.0]);
    }
}
