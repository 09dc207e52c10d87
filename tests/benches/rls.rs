//! What row-level security costs: the runtime's hot queries with it, and in a copy of the database without it.
//! `cargo bench -p agentapi-tests --bench rls` prints medians and their ratio; nothing is asserted here.
#![allow(clippy::print_stdout)]
use agentapi_tests::pg::load::{HOT_QUERIES, HotQuery, Scale, fill};
use agentapi_tests::pg::{Database, Organization, become_tenant};
use anyhow::Result;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use std::time::{Duration, Instant};
use uuid::Uuid;

const ROUNDS: usize = 30;
const PER_ROUND: usize = 50;

#[tokio::main]
async fn main() -> Result<()> {
    // `cargo test --all-targets` starts benches too, without this flag.
    if !std::env::args().any(|a| a == "--bench") {
        return Ok(());
    }
    let with = Database::create().await?;
    let acme = with.organization("acme").await?;
    let scale = Scale { organizations: 100, sessions: 200, messages: 20, audit: 500 };
    println!("filling: {scale:?}");
    let session = fill(&with, scale, acme.id, acme.alice.id, acme.workspace).await?;
    let without = with.copy().await?;
    let mut admin = without.connect(&without.admin_url()).await?;
    let tables: Vec<String> = sqlx::query_scalar("select oid::regclass::text from pg_class where relforcerowsecurity")
        .fetch_all(&mut admin)
        .await?;
    for table in tables {
        admin.execute(AssertSqlSafe(format!("alter table {table} disable row level security"))).await?;
    }
    admin.execute("vacuum analyze").await?;

    let mut a = with.connect(&with.runtime_url()).await?;
    let mut b = without.connect(&without.runtime_url()).await?;
    println!("{:<42} {:>12} {:>12} {:>7}", "median of a query in an open transaction", "with RLS", "without", "ratio");
    for query in HOT_QUERIES {
        // Alternating rounds, so that both see the same weather on the machine.
        let (mut on, mut off) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            on.extend(round(&mut a, &acme, query, query.with_rls, session).await?);
            off.extend(round(&mut b, &acme, query, query.without_rls, session).await?);
        }
        let (on, off) = (median(on), median(off));
        println!("{:<42} {on:>12.1?} {off:>12.1?} {:>7.3}", query.name, on.as_secs_f64() / off.as_secs_f64());
    }
    Ok(())
}

async fn round(
    connection: &mut PgConnection,
    acme: &Organization,
    query: &HotQuery,
    text: &'static str,
    session: Uuid,
) -> Result<Vec<Duration>> {
    let user = if query.role == "admin" { acme.admin.id } else { acme.alice.id };
    let mut tx = connection.begin().await?;
    become_tenant(&mut tx, acme, Some(user), query.role).await?;
    let mut times = Vec::with_capacity(PER_ROUND);
    for _ in 0..PER_ROUND {
        let start = Instant::now();
        let rows = sqlx::query(text).bind(session).bind(acme.id).fetch_all(&mut *tx).await?;
        times.push(start.elapsed());
        anyhow::ensure!(!rows.is_empty(), "{} found nothing", query.name);
    }
    tx.rollback().await?;
    Ok(times)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
