//! What row-level security costs: the runtime's hot queries with it, and in a copy of the database without it.
//! `cargo bench -p agentapi-tests --bench rls` prints transactions per second and their ratio; nothing is asserted here.
//!
//! A transaction is what a request runs: begin, role and user, query, commit. `pgbench` keeps both cores busy, so that what
//! is compared is work and not how fast the kernel wakes up who waits. The connections stay with their organization, as the
//! runtime's do as long as there are enough (`store::shelf`).
#![allow(clippy::print_stdout)]
use agentapi_tests::pg::load::{HOT_QUERIES, HotQuery, Scale, fill, pgbench};
use agentapi_tests::pg::{Database, Organization};
use anyhow::Result;
use sqlx::{AssertSqlSafe, Executor};
use uuid::Uuid;

const ROUNDS: usize = 9;
const SECONDS: u32 = 1;
const CLIENTS: u32 = 4;

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
    println!("{:<42} {:>10} {:>10} {:>16}", "transactions/s", "with RLS", "without", "cost of RLS");
    for query in HOT_QUERIES {
        compare(&with, &without, &acme, session, query)?;
    }
    Ok(())
}

fn compare(
    with: &Database,
    without: &Database,
    organization: &Organization,
    session: Uuid,
    query: &HotQuery,
) -> Result<()> {
    let asked = script(organization, query, &query.with_rls(session));
    let narrowed = script(organization, query, &query.without_rls(session, organization.id));
    let (mut on, mut off) = (Vec::new(), Vec::new());
    // Alternating rounds, so that both see the same weather on the machine.
    for _ in 0..ROUNDS {
        on.push(pgbench(with, &asked, CLIENTS, SECONDS)?);
        off.push(pgbench(without, &narrowed, CLIENTS, SECONDS)?);
    }
    let (on, off) = (fastest(&on), fastest(&off));
    println!("{:<42} {on:>10.0} {off:>10.0} {:>14.1} %", query.name, (off / on - 1.0) * 100.0);
    Ok(())
}

/// To `pgbench`, a colon before a letter is a variable; in quotes it is the same to `to_char`.
fn script(organization: &Organization, query: &HotQuery, text: &str) -> String {
    let user = if query.role == "admin" { organization.admin.id } else { organization.alice.id };
    let text = text.replace(":MI:SS", "\":\"MI\":\"SS");
    format!(
        "begin;\nselect set_config('role', '{}', true), set_config('app.user_id', '{user}', true), \
         set_config('app.user_role', '{}', true);\n{text};\ncommit;\n",
        organization.id_role, query.role
    )
}

/// The round that the machine disturbed least: what is compared is the work.
fn fastest(rounds: &[f64]) -> f64 {
    rounds.iter().copied().fold(0.0, f64::max)
}
