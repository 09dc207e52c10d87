//! What row-level security costs: the runtime's hot queries with it, and in a copy of the database without it.
//! `cargo bench -p agentapi-tests --bench rls` prints medians and their ratio; nothing is asserted here.
//!
//! Three tables, all from the same run: the query alone in a transaction that is open already; the whole transaction that
//! a request runs (begin, role and user, query, commit), which is what a user pays; and the whole transaction against one
//! that needs no role at all, because nothing would tell tenants apart.
#![allow(clippy::print_stdout)]
use agentapi_tests::pg::load::{HOT_QUERIES, HotQuery, Scale, fill};
use agentapi_tests::pg::{Database, Organization, become_tenant};
use anyhow::Result;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use std::time::{Duration, Instant};
use uuid::Uuid;

const ROUNDS: usize = 30;
const PER_ROUND: usize = 50;

/// What is timed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Query,
    Transaction,
    WithoutRole,
}

impl Shape {
    fn title(self) -> &'static str {
        match self {
            Self::Query => "a query in an open transaction",
            Self::Transaction => "begin, role and user, query, commit",
            Self::WithoutRole => "the same, against one without a role",
        }
    }
}

struct Bench {
    acme: Organization,
    session: Uuid,
    with: PgConnection,
    without: PgConnection,
    bare: PgConnection,
}

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
    let mut bench = Bench {
        acme,
        session,
        with: with.connect(&with.runtime_url()).await?,
        without: without.connect(&without.runtime_url()).await?,
        // A superuser's: nothing is checked.
        bare: admin,
    };
    for shape in [Shape::Query, Shape::Transaction, Shape::WithoutRole] {
        println!("{:<42} {:>12} {:>12} {:>7}", shape.title(), "with RLS", "without", "ratio");
        for query in HOT_QUERIES {
            bench.compare(shape, query).await?;
        }
    }
    Ok(())
}

impl Bench {
    async fn compare(&mut self, shape: Shape, query: &HotQuery) -> Result<()> {
        let baseline = if shape == Shape::WithoutRole { &mut self.bare } else { &mut self.without };
        // Alternating rounds, so that both see the same weather on the machine.
        let (mut on, mut off) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let role = Some(&self.acme);
            on.extend(round(&mut self.with, role, shape, query, query.with_rls, self.session, self.acme.id).await?);
            let role = role.filter(|_| shape != Shape::WithoutRole);
            off.extend(round(baseline, role, shape, query, query.without_rls, self.session, self.acme.id).await?);
        }
        let (on, off) = (median(on), median(off));
        println!("{:<42} {on:>12.1?} {off:>12.1?} {:>7.3}", query.name, on.as_secs_f64() / off.as_secs_f64());
        Ok(())
    }
}

async fn round(
    connection: &mut PgConnection,
    role: Option<&Organization>,
    shape: Shape,
    query: &HotQuery,
    text: &'static str,
    session: Uuid,
    organization: Uuid,
) -> Result<Vec<Duration>> {
    let mut times = Vec::with_capacity(PER_ROUND);
    let transactions = if shape == Shape::Query { 1 } else { PER_ROUND };
    for _ in 0..transactions {
        let whole = Instant::now();
        let mut tx = connection.begin().await?;
        if let Some(acme) = role {
            let user = if query.role == "admin" { acme.admin.id } else { acme.alice.id };
            become_tenant(&mut tx, acme, Some(user), query.role).await?;
        }
        for _ in 0..PER_ROUND / transactions {
            let start = Instant::now();
            let rows = sqlx::query(text).bind(session).bind(organization).fetch_all(&mut *tx).await?;
            if shape == Shape::Query {
                times.push(start.elapsed());
            }
            anyhow::ensure!(!rows.is_empty(), "{} found nothing", query.name);
        }
        tx.commit().await?;
        if shape != Shape::Query {
            times.push(whole.elapsed());
        }
    }
    Ok(times)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
