//! What the audit log costs: durable rows per second of 16 writers over 100 organizations, beside plain inserts into a
//! table of the same shape without chain, trigger or policy, in the same run on the same server.
//! `cargo bench -p agentapi-tests --bench audit` prints a table; nothing is asserted here.
//!
//! A *transaction* is what the runtime does: BEGIN, take on the tenant's role, INSERT, COMMIT, four round trips, durable
//! when it is acknowledged (fsync and synchronous_commit are on). A *row* is a row of the log. How many rows a transaction
//! has is in the table: one is a single change; a batch is one INSERT of many rows. `pgbench` is the client, so that what
//! is measured is the server and not this program.
#![allow(clippy::print_stdout)]
use agentapi_tests::pg::load::pgbench;
use agentapi_tests::pg::{Database, Server, ServerOptions};
use anyhow::Result;
use sqlx::{Connection, Executor, PgConnection};

const WRITERS: u32 = 16;
const ORGANIZATIONS: u32 = 100;
const SECONDS: u32 = 8;
const BATCHES: [u32; 3] = [1, 10, 100];
const ROUNDS: u32 = 2;

/// No checkpoint of Postgres in the middle of a measurement.
const SETTINGS: &[&str] = &["-c", "max_wal_size=4GB", "-c", "checkpoint_timeout=30min", "-c", "wal_buffers=16MB"];

/// The same columns, keys and checks; what a tenant may do with it is not the question.
const PLAIN: &str = "
    set role agentapi_owner;
    create table plain_log (like audit_log including all);
    alter table plain_log alter org_id drop default, alter prev_hash set default sha256(''),
        alter hash set default sha256(''), alter at set default now(), alter db_role set default 'x',
        alter org_slug set default 'x';
    create sequence plain_seq cache 100;
    alter table plain_log alter seq set default nextval('plain_seq');
    grant insert on plain_log to agentapi_tenant;
    grant usage on sequence plain_seq to agentapi_tenant;
    reset role";

#[tokio::main]
async fn main() -> Result<()> {
    // `cargo test --all-targets` starts benches too, without this flag.
    if !std::env::args().any(|a| a == "--bench") {
        return Ok(());
    }
    let options = ServerOptions { durable: true, settings: SETTINGS, ..ServerOptions::default() };
    let db = Database::create_on(Server::start(options).await?).await?;
    for n in 1..=ORGANIZATIONS {
        db.organization(&format!("bench-{n}")).await?;
    }
    let mut admin = PgConnection::connect(&db.admin_url()).await?;
    sqlx::raw_sql(PLAIN).execute(&mut admin).await?;
    admin.execute("vacuum analyze").await?;
    println!("{WRITERS} writers, {ORGANIZATIONS} organizations, fsync and synchronous_commit on, {SECONDS} s each");
    println!(
        "{:>20} {:>14} {:>14} {:>14} {:>14} {:>7}",
        "rows per transaction", "audit tx/s", "audit rows/s", "plain tx/s", "plain rows/s", "ratio"
    );
    for batch in BATCHES {
        // Alternating, so that both see the same weather on the machine; the better of the rounds.
        let (mut audit, mut plain) = (0.0_f64, 0.0_f64);
        for _ in 0..ROUNDS {
            audit = audit.max(pgbench(&db, &script("audit_log", batch), WRITERS, SECONDS)?);
            plain = plain.max(pgbench(&db, &script("plain_log", batch), WRITERS, SECONDS)?);
        }
        let rows = f64::from(batch);
        println!(
            "{batch:>20} {audit:>14.0} {:>14.0} {plain:>14.0} {:>14.0} {:>7.2}",
            audit * rows,
            plain * rows,
            audit / plain
        );
    }
    let broken: i64 = sqlx::query_scalar(
        "select count(*) from (select hash <> app.audit_hash(a) or prev_hash <> lag(hash, 1, decode(repeat('00', 32), 'hex'))
                               over (partition by org_id order by seq) as broken from audit_log a) rows where broken",
    )
    .fetch_one(&mut admin)
    .await?;
    let rows: i64 = sqlx::query_scalar("select count(*) from audit_log").fetch_one(&mut admin).await?;
    println!("{rows} rows in {ORGANIZATIONS} chains afterwards, {broken} of them broken");
    admin.close().await?;
    Ok(())
}

/// One transaction of pgbench.
fn script(table: &str, batch: u32) -> String {
    let org = if table == "plain_log" { "org_id, " } else { "" };
    let value = if table == "plain_log" {
        "('00000000-0000-0000-0000-' || lpad(cast(:org as text), 12, '0'))::uuid, "
    } else {
        ""
    };
    format!(
            "\\set org random(1, {ORGANIZATIONS})
             begin;
             select set_config('role', 'org_bench_' || cast(:org as text), true), set_config('app.user_id', '', true), set_config('app.user_role', 'user', true);
             insert into {table} ({org}actor, action, target_kind, target_id, request_id, source_ip, user_agent, detail) select {value}'somebody@example.com', 'session.message', 'session', '01980000-0000-7000-8000-000000000000', '01980000-0000-7000-8000-000000000001', '203.0.113.7', 'curl/7.88.1', '{{\"type\": \"user\", \"bytes\": 120}}' from generate_series(1, {batch});
             commit;
            "
        )
}
