//! What one organization's flood does to another one: a quiet organization's latencies alone, and beside one that sends
//! ten times what it may, in alternating rounds. Real Postgres, two real replicas, everything on this machine, the
//! driver too. `cargo bench -p agentapi-tests --bench fairness [-- --max-ratio 1.2]`; under a minute.
#![allow(clippy::print_stdout)]
use agentapi_tests::serve::{Platform, Replica, Tenant};
use anyhow::{Result, ensure};
use reqwest::{Client, StatusCode};
use serde_json::json;
use std::{
    num::NonZeroU32,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};

const ROUNDS: usize = 6;
const ROUND: Duration = Duration::from_millis(3500);
/// Requests per second of the quiet organization.
const QUIET: u32 = 80;
/// What the noisy one may send, and how many times that it does.
const ALLOWED: u32 = 50;
const TIMES: u32 = 10;

/// A kind of load: who, where, how often.
#[derive(Clone)]
struct Load {
    http: Client,
    bases: Arc<[String]>,
    token: String,
    per_second: u32,
    writes: bool,
}

/// What came back.
#[derive(Default)]
struct Seen {
    latencies: Vec<Duration>,
    refused: usize,
    failed: usize,
}

impl Load {
    fn new(replicas: &[Replica], token: &str, per_second: u32, writes: bool) -> Result<Self> {
        let bases = replicas.iter().map(|replica| format!("http://{}", replica.addresses.public)).collect();
        let http = Client::builder().no_proxy().timeout(Duration::from_secs(20)).build()?;
        Ok(Self { http, bases, token: token.to_owned(), per_second, writes })
    }

    /// Sends at a fixed rate, whether answers come or not; latency counts from when a request was due.
    async fn run(&self, until: Instant) -> Seen {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let mut ticks = interval(Duration::from_secs(1) / self.per_second);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut calls = tokio::task::JoinSet::new();
        for number in 0.. {
            let due = ticks.tick().await;
            if due >= until {
                break;
            }
            let (load, seen) = (self.clone(), Arc::clone(&seen));
            calls.spawn(async move {
                let status = load.one(number).await;
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                match status {
                    Ok(StatusCode::TOO_MANY_REQUESTS) => seen.refused += 1,
                    Ok(status) if status.is_success() => seen.latencies.push(due.elapsed()),
                    _ => seen.failed += 1,
                }
            });
        }
        while calls.join_next().await.is_some() {}
        std::mem::take(&mut *seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn one(&self, number: usize) -> Result<StatusCode> {
        let base = &self.bases[number % self.bases.len()];
        let request = match number / self.bases.len() % 5 {
            // The workspace is full: each of these waits for the organization's lock, counts, and is refused.
            0 if self.writes => self.http.post(format!("{base}/v1/sessions")).json(&json!({"workspace": "main"})),
            0 => self.http.get(format!("{base}/v1/workspaces")),
            _ => self.http.get(format!("{base}/v1/sessions?limit=20")),
        };
        let response = request.bearer_auth(&self.token).send().await?;
        let status = response.status();
        response.bytes().await?;
        Ok(status)
    }
}

fn percentile(latencies: &mut [Duration], percent: usize) -> Duration {
    latencies.sort_unstable();
    latencies.get(latencies.len().saturating_sub(1) * percent / 100).copied().unwrap_or_default()
}

/// As many sessions as the workspace takes, whose pods never come.
async fn fill(platform: &Platform, replica: &Replica, tenant: &Tenant) -> Result<()> {
    platform.pods.set_away(true);
    for _ in 0..5 {
        replica.api(Some(&tenant.alice))?.post("/v1/sessions", &json!({"workspace": "main"})).await?.expect(201)?;
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    // `cargo test --all-targets` starts benches too, without this flag.
    let arguments: Vec<String> = std::env::args().collect();
    if !arguments.iter().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let limit = arguments.iter().position(|argument| argument == "--max-ratio");
    let limit: Option<f64> = limit.and_then(|at| arguments.get(at + 1)).map(|text| text.parse()).transpose()?;

    let platform = Platform::start(env!("CARGO_BIN_EXE_session-pod")).await?;
    let (quiet, noisy) = (platform.tenant("quiet").await?, platform.tenant("noisy").await?);
    let own = json!({"requestsPerSecond": ALLOWED, "perUser": {"requestsPerSecond": ALLOWED}, "sessions": 10});
    let change = "update organizations set quota = $2::jsonb where slug = $1";
    platform.operator(change, &[&noisy.organization.slug, &own.to_string()]).await?;
    let mut config = platform.config();
    (config.db_max_connections, config.start_deadline_seconds) = (16, 600);
    config.replicas = NonZeroU32::MIN.saturating_add(1);
    let replicas = [platform.replica_with(config.clone()).await?, platform.replica_with(config).await?];
    for tenant in [&quiet, &noisy] {
        fill(&platform, &replicas[0], tenant).await?;
    }
    let calm = Load::new(&replicas, &quiet.alice, QUIET, false)?;
    let flood = Load::new(&replicas, &noisy.alice, ALLOWED * TIMES, true)?;
    println!("quiet: {QUIET}/s; noisy: {}/s, of which {ALLOWED}/s are allowed; rounds of {ROUND:?}", ALLOWED * TIMES);
    calm.run(Instant::now() + Duration::from_secs(2)).await;

    println!(
        "{:<8} {:>12} {:>12} {:>7}   {:>9} {:>9}",
        "round", "p99 alone", "p99 beside", "ratio", "let in", "refused"
    );
    let (mut all_alone, mut all_beside, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        let mut alone = calm.run(Instant::now() + ROUND).await;
        // The flood's first burst is part of what the quiet one has to bear.
        let until = Instant::now() + ROUND;
        let (mut beside, flooding) = tokio::join!(calm.run(until), flood.run(until));
        ensure!(
            alone.failed + alone.refused + beside.failed + beside.refused == 0,
            "the quiet organization was refused"
        );
        ensure!(flooding.failed == 0, "{} requests of the noisy organization got no proper answer", flooding.failed);
        let (one, two) = (percentile(&mut alone.latencies, 99), percentile(&mut beside.latencies, 99));
        let ratio = two.as_secs_f64() / one.as_secs_f64();
        println!(
            "{round:<8} {one:>12.1?} {two:>12.1?} {ratio:>7.2}   {:>9} {:>9}",
            flooding.latencies.len(),
            flooding.refused
        );
        ratios.push(ratio);
        all_alone.append(&mut alone.latencies);
        all_beside.append(&mut beside.latencies);
        sleep_until(Instant::now() + Duration::from_millis(200)).await;
    }
    for percent in [50, 90, 99] {
        let (one, two) = (percentile(&mut all_alone, percent), percentile(&mut all_beside, percent));
        let (name, ratio) = (format!("p{percent}, all"), two.as_secs_f64() / one.as_secs_f64());
        println!("{name:<8} {one:>12.1?} {two:>12.1?} {ratio:>7.2}");
    }
    ratios.sort_by(f64::total_cmp);
    let median = f64::midpoint(ratios[(ROUNDS - 1) / 2], ratios[ROUNDS / 2]);
    println!("median ratio of the rounds' p99: {median:.2}");
    sleep(Duration::from_millis(100)).await;
    if let Some(limit) = limit {
        ensure!(median <= limit, "the flood changes p99 by more than {limit}: {median:.2}");
    }
    Ok(())
}
