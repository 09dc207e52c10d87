//! What row-level security costs: the runtime's hot queries with it, and in a copy of the database without it.
//! `cargo bench -p agentapi-tests --bench rls` prints transactions per second and their ratio; nothing is asserted here.
//!
//! A transaction is what a request runs: begin, role and user, query, commit. `pgbench` keeps both cores busy, so that what
//! is compared is work and not how fast the kernel wakes up who waits. Two tables: one organization all the time, whose
//! plans Postgres keeps; and all in turn on the same connections, where it has to plan for each role anew.
#![allow(clippy::print_stdout)]
use agentapi_tests::pg::load::{HOT_QUERIES, HotQuery, Scale, fill, pgbench};
use agentapi_tests::pg::{Database, Organization};
use anyhow::Result;
use sqlx::{AssertSqlSafe, Executor};
use uuid::Uuid;

const ROUNDS: usize = 5;
const SECONDS: u32 = 2;
const CLIENTS: u32 = 4;
const OTHERS: usize = 20;

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
    for n in 1..=OTHERS {
        with.organization(&format!("other-{n}")).await?;
    }
    let without = with.copy().await?;
    let mut admin = without.connect(&without.admin_url()).await?;
    let tables: Vec<String> = sqlx::query_scalar("select oid::regclass::text from pg_class where relforcerowsecurity")
        .fetch_all(&mut admin)
        .await?;
    for table in tables {
        admin.execute(AssertSqlSafe(format!("alter table {table} disable row level security"))).await?;
    }
    admin.execute("vacuum analyze").await?;
    for many in [false, true] {
        let title = if many { "transactions/s, 21 organizations in turn" } else { "transactions/s, one organization" };
        println!("{title:<42} {:>10} {:>10} {:>16}", "with RLS", "without", "cost of RLS");
        for query in HOT_QUERIES {
            compare(&with, &without, &acme, session, query, many)?;
        }
    }
    Ok(())
}

fn compare(
    with: &Database,
    without: &Database,
    acme: &Organization,
    session: Uuid,
    query: &HotQuery,
    many: bool,
) -> Result<()> {
    let text = |sql: &str| {
        sql.replace("                   ", " ")
            .replace("$1", &format!("'{session}'"))
            .replace("$2", &format!("'{}'", acme.id))
    };
    let (mut on, mut off) = (Vec::new(), Vec::new());
    // Alternating rounds, so that both see the same weather on the machine.
    for _ in 0..ROUNDS {
        on.push(pgbench(with, &script(acme, query, &text(query.with_rls), many), CLIENTS, SECONDS)?);
        off.push(pgbench(without, &script(acme, query, &text(query.without_rls), many), CLIENTS, SECONDS)?);
    }
    let (on, off) = (median(on), median(off));
    println!("{:<42} {on:>10.0} {off:>10.0} {:>14.1} %", query.name, (off / on - 1.0) * 100.0);
    Ok(())
}

/// Others are looked at for what is acme's: they find nothing, on the same way.
fn script(acme: &Organization, query: &HotQuery, text: &str, many: bool) -> String {
    let user = if query.role == "admin" { acme.admin.id } else { acme.alice.id };
    let (set, role) = if many {
        (
            format!("\\set org random(0, {OTHERS})\n"),
            "case when :org = 0 then 'org_acme' else 'org_other_' || cast(:org as text) end",
        )
    } else {
        (String::new(), "'org_acme'")
    };
    format!(
        "{set}begin;\nselect set_config('role', {role}, true), set_config('app.user_id', '{user}', true), \
         set_config('app.user_role', '{}', true);\n{text};\ncommit;\n",
        query.role
    )
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
