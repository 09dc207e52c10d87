//! `cargo xtask bench mcp`: how long connecting takes, what the gateway adds to a call of a tool, direct and through it
//! in turns, and what a session with an MCP server costs in memory. Real FastMCP, real oidc-provider, real Postgres, no
//! cluster; everything on this machine.
#![allow(clippy::cast_precision_loss)]
use agentapi_tests::{
    api::Api,
    mcp::{
        fastmcp::Fastmcp,
        setup::{call, configuration, connect, connection, initialize, rpc},
    },
    oauth::{World, agent::Decision},
    serve::{Platform, Replica},
};
use anyhow::{Context, Result, ensure};
use clap::Parser;
use reqwest::Method;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Measure the MCP gateway.
#[derive(Parser)]
struct Args {
    /// Calls of each kind; the last hundredth of them is what p99 is made of.
    #[arg(long, default_value_t = 10_000)]
    calls: usize,
    /// Connects of each kind.
    #[arg(long, default_value_t = 100)]
    connects: usize,
    /// Organizations.
    #[arg(long, default_value_t = 100)]
    organizations: usize,
    /// Sessions of each.
    #[arg(long, default_value_t = 10)]
    sessions: usize,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    // No sessions of agents here, so no pods: the path is not looked at.
    let world = World::start("session-pod").await?;
    let platform = &world.platform;
    let mut config = platform.config();
    config.outbound_open_ranges = vec!["127.0.0.0/8".parse()?];
    config.db_max_connections = 16;
    let replica = platform.replica_with(config).await?;
    let server = Fastmcp::start("http", None).await?;
    connecting(&world, &server, args.connects).await?;
    latency(&world, &replica, &server, args.calls).await?;
    memory(platform, &replica, &server, &args).await
}

fn heading(what: &str) {
    println!("{what:<24}{:>8}{:>12}{:>12}", "times", "p50 ms", "p99 ms");
}

fn row(name: &str, values: &mut [f64]) {
    println!("{name:<24}{:>8}{:>12.2}{:>12.2}", values.len(), rank(values, 50), rank(values, 99));
}

/// `POST /v1/mcp/connect` to a connection with OAuth: at a replica that has done it before, and at one that has done
/// nothing yet, with an access token that has ended.
async fn connecting(world: &World, server: &Fastmcp, times: usize) -> Result<()> {
    let oauth = json!({"clientSecretRef": "client_secret_basic", "url": server.url()});
    let id = world.connection(&world.acme, "connecting", &oauth).await?;
    let alice = Some(world.acme.alice.as_str());
    world.consent(&world.replica.api(alice)?, id, Decision::Allow).await?.expect(200)?;
    let once = async |replica: &Replica| -> Result<f64> {
        let api = replica.api(alice)?;
        let began = Instant::now();
        let client = connect(&api, &id.to_string()).await?;
        let took = began.elapsed().as_secs_f64() * 1000.0;
        // A user has a hundred clients at most.
        let gone = api.post("/v1/mcp/disconnect", &json!({ "client": client })).await?;
        ensure!(gone.status == 204, "{}", gone.body);
        Ok(took)
    };
    let (mut warm, mut cold) = (Vec::new(), Vec::new());
    for number in 0..times + 20 {
        let took = once(&world.replica).await?;
        if number >= 20 {
            warm.push(took);
        }
    }
    let before = world.oidc.refreshes();
    for _ in 0..times {
        let replica = world.another_replica().await?;
        world.admin("update mcp_oauth_tokens set expires_at = now() - interval '5 seconds'").await?;
        cold.push(once(&replica).await?);
        replica.stop().await?;
    }
    ensure!(world.oidc.refreshes() == before + times, "{} refreshes", world.oidc.refreshes() - before);
    heading("connect");
    row("warm", &mut warm);
    row("cold, with a refresh", &mut cold);
    Ok(())
}

/// The nearest-rank percentile, in milliseconds.
fn rank(values: &mut [f64], percent: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    let index = (values.len() * percent).div_ceil(100).saturating_sub(1);
    values.get(index).copied().unwrap_or(f64::NAN)
}

async fn latency(world: &World, replica: &Replica, server: &Fastmcp, calls: usize) -> Result<()> {
    let api = replica.api(Some(&world.acme.admin))?;
    let id = connection(&api, &configuration("fixture", &server.url())).await?;
    let session = initialize(&api, &id).await?;
    let direct = Direct::open(&server.url()).await?;
    let (mut straight, mut through) = (Vec::new(), Vec::new());
    for number in 0..calls + 20 {
        let message = call("echo", json!({"text": number.to_string()}));
        let began = Instant::now();
        direct.send(&message).await?;
        let took = began.elapsed();
        let began = Instant::now();
        let answer = rpc(&api, &id, session.as_deref(), &message).await?;
        ensure!(answer.answer()["result"].is_object(), "{answer:?}");
        // The first ones warm both ways up.
        if number >= 20 {
            straight.push(took.as_secs_f64() * 1000.0);
            through.push(began.elapsed().as_secs_f64() * 1000.0);
        }
    }
    println!();
    heading("tools/call");
    row("direct", &mut straight);
    row("through the gateway", &mut through);
    let added = |percent| rank(&mut through.clone(), percent) - rank(&mut straight.clone(), percent);
    println!("{:<32}{:>12.2}{:>12.2}", "added", added(50), added(99));
    Ok(())
}

/// A client without the gateway.
struct Direct {
    http: reqwest::Client,
    url: String,
    session: String,
}

impl Direct {
    async fn open(url: &str) -> Result<Self> {
        let http = reqwest::Client::builder().no_proxy().build()?;
        let params = json!({"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "bench", "version": "1"}});
        let message = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params});
        let accept = "application/json, text/event-stream";
        let answer = http.post(url).header("accept", accept).json(&message).send().await?;
        let session = answer.headers().get("mcp-session-id").context("no session")?.to_str()?.to_owned();
        let direct = Self { http, url: url.to_owned(), session };
        direct.send(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"})).await?;
        Ok(direct)
    }

    async fn send(&self, message: &Value) -> Result<()> {
        let request = self.http.post(&self.url).header("accept", "application/json, text/event-stream");
        let request = request.header("mcp-session-id", &self.session).header("mcp-protocol-version", "2025-06-18");
        let answer = request.json(message).send().await?;
        ensure!(answer.status().is_success(), "{}", answer.status());
        answer.bytes().await?;
        Ok(())
    }
}

/// Resident memory of this process, in KiB.
fn resident() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

async fn memory(platform: &Platform, replica: &Replica, server: &Fastmcp, args: &Args) -> Result<()> {
    let mut tenants: Vec<(Api, String)> = Vec::new();
    for number in 0..args.organizations {
        let tenant = platform.tenant(&format!("o{number}")).await?;
        let api = replica.api(Some(&tenant.admin))?;
        let id = connection(&api, &configuration("fixture", &server.url())).await?;
        tenants.push((api, id));
    }
    let before = resident()?;
    let (began, mut streams) = (Instant::now(), Vec::new());
    for _ in 0..args.sessions {
        for (api, id) in &tenants {
            let session = initialize(api, id).await?.context("no session")?;
            let answer = rpc(api, id, Some(&session), &call("echo", json!({"text": "hi"}))).await?;
            ensure!(answer.answer()["result"].is_object(), "{answer:?}");
            let stream = api.request(Method::GET, &format!("/v1/mcp/gateway/{id}"));
            let stream = stream.header("mcp-session-id", session).header("accept", "text/event-stream").send().await?;
            ensure!(stream.status() == 200, "{}", stream.status());
            streams.push(stream);
        }
    }
    let took = began.elapsed();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let sessions = streams.len();
    let more = resident()?.saturating_sub(before);
    println!(
        "\n{sessions} sessions of {} organizations, each with an open stream: {:.1} KiB a session (gateway and the \
         client that measures, in one process: the gateway's part is less), {:.0} sessions/s",
        args.organizations,
        more as f64 / sessions as f64,
        sessions as f64 / took.as_secs_f64()
    );
    Ok(())
}
