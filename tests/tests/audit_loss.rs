//! No loss window: whoever kills what, and when, each audit row that was acknowledged is there afterwards, and the
//! chains are whole. A real Postgres of its own that keeps its promises (fsync, synchronous_commit), and SIGKILL.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::collections::{BTreeSet, HashSet};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentapi_runtime::audit::chain::verify;
use agentapi_runtime::store::audit::{chain, heads};
use agentapi_tests::pg::{Database, Organization, Server, ServerOptions, become_tenant};
use anyhow::{Context, Result};
use sqlx::{Connection, Executor, PgConnection};
use tokio::time::sleep;
use uuid::Uuid;

const WRITERS: usize = 8;
const ORGANIZATIONS: usize = 4;
/// Environment of the child process: URL of the runtime's login, role and id of the organization.
const CHILD: &str = "AUDIT_LOSS_CHILD";

async fn server() -> Result<Database> {
    Database::create_on(Server::start(ServerOptions { durable: true, ..ServerOptions::default() }).await?).await
}

/// One transaction with a change and its row. Acknowledged when this returns.
async fn write(connection: &mut PgConnection, organization: &Organization, id: &str) -> Result<(), sqlx::Error> {
    let mut tx = connection.begin().await?;
    become_tenant(&mut tx, organization, None, "admin")
        .await
        .map_err(|error| sqlx::Error::Protocol(error.to_string()))?;
    sqlx::query("update organizations set admission_lock = not admission_lock").execute(&mut *tx).await?;
    sqlx::query(
        "insert into audit_log (actor, action, target_kind, target_id) values ('system:test', 'a', 'test', $1)",
    )
    .bind(id)
    .execute(&mut *tx)
    .await?;
    tx.commit().await
}

/// Everything that was acknowledged is there, once, and each chain is whole up to its head.
async fn nothing_is_lost(
    db: &Database,
    organizations: &[Organization],
    acknowledged: &HashSet<String>,
) -> Result<usize> {
    let mut admin = db.connect(&db.admin_url()).await?;
    // One moment: the writers may be at it again.
    admin.execute("begin isolation level repeatable read").await?;
    let heads = heads(&mut admin).await?;
    let (mut found, mut rows_in_all) = (BTreeSet::new(), 0);
    for organization in organizations {
        let (.., head) = heads.iter().find(|(id, ..)| *id == organization.id).context("a head")?;
        let rows = chain(&mut admin, organization.id, 0, i64::MAX, i64::MAX).await?;
        assert_eq!(verify(organization.id, &rows, Some(head)).map_err(|fault| fault.to_string()), Ok(head.clone()));
        for id in rows.iter().filter_map(|row| row.target_id.clone()).filter(|id| id.starts_with("w-")) {
            assert!(found.insert(id.clone()), "{id} is there twice");
            rows_in_all += 1;
        }
    }
    let lost: Vec<_> = acknowledged.iter().filter(|id| !found.contains(*id)).collect();
    assert!(lost.is_empty(), "{} acknowledged rows are lost, for example {:?}", lost.len(), lost.first());
    Ok(rows_in_all)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_postgres_loses_no_acknowledged_row() -> Result<()> {
    let db = server().await?;
    let mut organizations = Vec::new();
    for n in 0..ORGANIZATIONS {
        organizations.push(db.organization(&format!("loss-{n}")).await?);
    }
    let acknowledged = Arc::new(Mutex::new(HashSet::new()));
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (db, organization) = (db.clone(), organizations[writer % ORGANIZATIONS].clone());
            let (acknowledged, stop) = (Arc::clone(&acknowledged), Arc::clone(&stop));
            tokio::spawn(async move {
                let (mut count, mut breaks) = (0, 0);
                while !stop.load(Ordering::Relaxed) {
                    // As the runtime's pool: a broken connection is replaced.
                    let Ok(mut connection) = db.connect(&db.runtime_url()).await else {
                        sleep(Duration::from_millis(50)).await;
                        continue;
                    };
                    while !stop.load(Ordering::Relaxed) {
                        let id = format!("w-{writer}-{count}");
                        count += 1;
                        if write(&mut connection, &organization, &id).await.is_err() {
                            breaks += 1;
                            break;
                        }
                        acknowledged.lock().unwrap().insert(id);
                    }
                }
                breaks
            })
        })
        .collect();
    // How many rows each writer has had acknowledged.
    let counts = || {
        let acknowledged = acknowledged.lock().unwrap();
        let of = |writer| acknowledged.iter().filter(|id| id.starts_with(&format!("w-{writer}-"))).count();
        (0..WRITERS).map(of).collect::<Vec<_>>()
    };
    for round in 1..=3 {
        // In the middle of it: some hundred rows later than the last time, and everybody is connected again.
        let before = counts();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(120);
        loop {
            let now = counts();
            let all = now.iter().zip(&before).all(|(now, before)| now > before);
            if all && now.iter().sum::<usize>() >= before.iter().sum::<usize>() + 200 {
                break;
            }
            assert!(tokio::time::Instant::now() < deadline, "the writers do not write: {before:?}, {now:?}");
            sleep(Duration::from_millis(5)).await;
        }
        db.server().crash().await?;
        let so_far = acknowledged.lock().unwrap().clone();
        nothing_is_lost(&db, &organizations, &so_far).await.with_context(|| format!("crash {round}"))?;
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        assert!(writer.await? >= 3, "a writer did not notice that the server was killed: this test would see nothing");
    }
    let all = acknowledged.lock().unwrap().clone();
    let rows = nothing_is_lost(&db, &organizations, &all).await?;
    assert!(rows >= all.len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_writer_loses_no_acknowledged_row_and_leaves_no_half_one() -> Result<()> {
    let db = server().await?;
    let organization = db.organization("loss").await?;
    let mut acknowledged = HashSet::new();
    for round in 0..3 {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--ignored", "--exact", "--nocapture", "the_writer_that_is_killed"])
            .env(CHILD, format!("{} {} {} {round}", db.runtime_url(), organization.id_role, organization.id))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let lines = BufReader::new(child.stdout.take().context("its output")?).lines();
        let mut seen = 0;
        for line in lines {
            let Ok(line) = line else { break };
            if let Some(id) = line.trim().strip_prefix("done ") {
                acknowledged.insert(id.to_owned());
                seen += 1;
            }
            // SIGKILL. What it had printed before is still read, to the end of the pipe.
            if seen == 100 {
                child.kill()?;
            }
        }
        child.wait()?;
        assert!(seen >= 100, "it wrote only {seen} rows");
        nothing_is_lost(&db, std::slice::from_ref(&organization), &acknowledged).await?;
    }
    Ok(())
}

/// Not a test: the process that the test above kills.
#[tokio::test]
#[ignore = "started by a_killed_writer_loses_no_acknowledged_row_and_leaves_no_half_one"]
async fn the_writer_that_is_killed() -> Result<()> {
    let Ok(task) = std::env::var(CHILD) else { return Ok(()) };
    let [url, role, id, round] = task.split(' ').collect::<Vec<_>>()[..] else { panic!("{CHILD} has four words") };
    let mut connection = PgConnection::connect(url).await?;
    let user = agentapi_tests::pg::User { id: Uuid::nil(), subject: String::new(), role: "user" };
    let organization = Organization {
        id: id.parse()?,
        slug: String::new(),
        role: String::new(),
        id_role: role.to_owned(),
        read_only_role: String::new(),
        read_only_password: String::new(),
        workspace: Uuid::nil(),
        admin: user.clone(),
        alice: user.clone(),
        bob: user,
    };
    for n in 0.. {
        let id = format!("w-child-{round}-{n}");
        write(&mut connection, &organization, &id).await?;
        let mut out = std::io::stdout().lock();
        writeln!(out, "done {id}")?;
        out.flush()?;
    }
    Ok(())
}
