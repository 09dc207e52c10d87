//! What row-level security costs: the runtime's hot queries with it, and in a copy of the database without it.
//! `cargo bench -p agentapi-tests --bench rls` prints transactions per second and their ratio; nothing is asserted here.
//!
//! A transaction is what a request runs: begin, role and user, query, commit. `pgbench` keeps both cores busy, so that what
//! is compared is work and not how fast the kernel wakes up who waits. Three tables: one organization; 21, each on a
//! connection that it keeps, as the runtime does as long as there are enough (`store::shelf`); and 21 in turn on the same
//! four connections, the worst that can be, where Postgres has to plan for each role anew.
#![allow(clippy::print_stdout)]
use agentapi_tests::pg::load::{HOT_QUERIES, HotQuery, Scale, fill, pgbench};
use agentapi_tests::pg::{Database, Organization};
use anyhow::Result;
use sqlx::{AssertSqlSafe, Executor};
use uuid::Uuid;

const ROUNDS: usize = 9;
const SECONDS: u32 = 1;
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
    let mut organizations = vec![acme];
    for n in 1..=OTHERS {
        organizations.push(with.organization(&format!("other-{n}")).await?);
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
    for load in [Load::One, Load::Kept, Load::InTurn] {
        println!("{:<42} {:>10} {:>10} {:>16}", load.title(), "with RLS", "without", "cost of RLS");
        for query in HOT_QUERIES {
            compare(&with, &without, &organizations, session, query, load)?;
        }
    }
    Ok(())
}

/// Who uses which connection.
#[derive(Clone, Copy, PartialEq)]
enum Load {
    One,
    Kept,
    InTurn,
}

impl Load {
    fn title(self) -> &'static str {
        match self {
            Self::One => "transactions/s, one organization",
            Self::Kept => "21 organizations on connections they keep",
            Self::InTurn => "21 organizations in turn on 4 connections",
        }
    }

    fn clients(self, organizations: usize) -> u32 {
        if self == Self::Kept { u32::try_from(organizations).unwrap_or(CLIENTS) } else { CLIENTS }
    }
}

fn compare(
    with: &Database,
    without: &Database,
    organizations: &[Organization],
    session: Uuid,
    query: &HotQuery,
    load: Load,
) -> Result<()> {
    let acme = &organizations[0];
    let asked = script(organizations, query, &query.with_rls(session), load);
    let narrowed = script(organizations, query, &query.without_rls(session, acme.id), load);
    let (mut on, mut off) = (Vec::new(), Vec::new());
    let clients = load.clients(organizations.len());
    // Alternating rounds, so that both see the same weather on the machine.
    for _ in 0..ROUNDS {
        on.push(pgbench(with, &asked, clients, SECONDS)?);
        off.push(pgbench(without, &narrowed, clients, SECONDS)?);
    }
    let (on, off) = (fastest(&on), fastest(&off));
    println!("{:<42} {on:>10.0} {off:>10.0} {:>14.1} %", query.name, (off / on - 1.0) * 100.0);
    Ok(())
}

/// Others are looked at for what is acme's: they find nothing, on the same way. To `pgbench`, a colon before a letter is a
/// variable; in quotes it is the same to `to_char`.
fn script(organizations: &[Organization], query: &HotQuery, text: &str, load: Load) -> String {
    let acme = &organizations[0];
    let user = if query.role == "admin" { acme.admin.id } else { acme.alice.id };
    let set = match load {
        Load::One => "\\set org 0\n".to_owned(),
        Load::Kept => "\\set org :client_id\n".to_owned(),
        Load::InTurn => format!("\\set org random(0, {OTHERS})\n"),
    };
    let text = text.replace(":MI:SS", "\":\"MI\":\"SS");
    let roles = organizations.iter().map(|one| format!("'{}'", one.id_role)).collect::<Vec<_>>().join(", ");
    format!(
        "{set}begin;\nselect set_config('role', (array[{roles}])[:org + 1], true), \
         set_config('app.user_id', '{user}', true), set_config('app.user_role', '{}', true);\n{text};\ncommit;\n",
        query.role
    )
}

/// The round that the machine disturbed least: what is compared is the work.
fn fastest(rounds: &[f64]) -> f64 {
    rounds.iter().copied().fold(0.0, f64::max)
}
