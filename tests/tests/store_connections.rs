//! Which connection a transaction of a tenant gets, and what becomes of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]
use agentapi_runtime::store::identity::Organization;
use agentapi_runtime::store::leader::SESSION_RECONCILER;
use agentapi_runtime::store::{Store, TenantScope};
use agentapi_tests::cluster::eventually;
use agentapi_tests::pg::{Database, Server, ServerOptions};
use secrecy::SecretString;
use sqlx::{Connection, PgConnection};
use std::collections::BTreeSet;
use std::time::Duration;

struct Fixture {
    store: Store,
    organizations: Vec<Organization>,
    admin: PgConnection,
}

impl Fixture {
    async fn new(organizations: usize, max_connections: u32) -> Self {
        let db = Database::create().await.unwrap();
        let store = Store::connect(&SecretString::from(db.runtime_url()), max_connections).unwrap();
        let mut found = Vec::new();
        for n in 0..organizations {
            let slug = format!("shelf-{n}");
            db.organization(&slug).await.unwrap();
            found.push(store.organization_by_slug(&slug).await.unwrap().unwrap());
        }
        Self { store, organizations: found, admin: db.connect(&db.admin_url()).await.unwrap() }
    }

    /// Server processes that have a transaction open.
    async fn at_work(&mut self) -> Vec<i32> {
        let pids =
            "select pid from pg_stat_activity where datname = current_database() and state = 'idle in transaction'
                    and application_name = 'agentapi-runtime'";
        sqlx::query_scalar(pids).fetch_all(&mut self.admin).await.unwrap()
    }

    async fn connections(&mut self) -> i64 {
        let count = "select count(*) from pg_stat_activity where datname = current_database()
                     and application_name = 'agentapi-runtime'";
        sqlx::query_scalar(count).fetch_one(&mut self.admin).await.unwrap()
    }

    /// The server process behind one transaction of this organization.
    async fn used_by(&mut self, n: usize) -> i32 {
        let tx = self.store.tenant_tx(&TenantScope::system(&self.organizations[n])).await.unwrap();
        let pids = self.at_work().await;
        tx.commit().await.unwrap();
        assert_eq!(pids.len(), 1, "{pids:?}");
        pids[0]
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_organization_gets_the_connection_that_it_had() {
    let mut fixture = Fixture::new(3, 16).await;
    let first = [fixture.used_by(0).await, fixture.used_by(1).await, fixture.used_by(2).await];
    assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), 3, "{first:?}");
    for n in [2, 0, 1, 1, 0, 2, 0, 1, 2] {
        assert_eq!(fixture.used_by(n).await, first[n]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn more_organizations_than_connections_share_them() {
    let mut fixture = Fixture::new(6, 4).await;
    for round in 0..3 {
        for n in 0..6 {
            assert!(fixture.used_by(n).await > 0, "round {round}");
        }
    }
    let all = (0..200).map(|n| {
        let (store, organization) = (fixture.store.clone(), fixture.organizations[n % 6].clone());
        tokio::spawn(async move {
            let tx = store.tenant_tx(&TenantScope::system(&organization)).await.unwrap();
            // Some end well, some are dropped.
            if n % 3 == 0 { drop(tx) } else { tx.commit().await.unwrap() }
        })
    });
    for one in all.collect::<Vec<_>>() {
        one.await.unwrap();
    }
    assert!(fixture.connections().await <= 4);
    // Statements without a tenant still find one.
    fixture.store.ping().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_dropped_is_rolled_back() {
    let mut fixture = Fixture::new(1, 8).await;
    let tx = fixture.store.tenant_tx(&TenantScope::system(&fixture.organizations[0])).await.unwrap();
    assert_eq!(fixture.at_work().await.len(), 1);
    drop(tx);
    let gone = async {
        while !fixture.at_work().await.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone).await.expect("the transaction is still open");
    tokio::time::timeout(Duration::from_secs(10), fixture.store.close())
        .await
        .expect("a connection was never given back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_cut_its_connections_is_not_noticed() {
    let mut fixture = Fixture::new(3, 16).await;
    for n in 0..3 {
        fixture.used_by(n).await;
    }
    let cut: i64 = sqlx::query_scalar(
        "select count(pg_terminate_backend(pid, 5000)) from pg_stat_activity where datname = current_database()
         and application_name = 'agentapi-runtime'",
    )
    .fetch_one(&mut fixture.admin)
    .await
    .unwrap();
    assert!(cut >= 3);
    for n in 0..3 {
        fixture.used_by(n).await;
    }
}

fn signal(pid: i32, name: &str) {
    let sent = std::process::Command::new("kill").args([name, &pid.to_string()]).status().unwrap();
    assert!(sent.success());
}

/// As when the machine of Postgres lost its power: nothing comes back, not even a refusal.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_process_that_says_nothing_is_left() {
    let mut fixture = Fixture::new(1, 16).await;
    let silent = fixture.used_by(0).await;
    signal(silent, "-STOP");
    let other = tokio::time::timeout(Duration::from_secs(20), fixture.used_by(0)).await;
    signal(silent, "-CONT");
    assert_ne!(other.expect("still waiting for it"), silent);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_organization_is_not_asked_for_again_and_again_and_one_that_is_gone_is_gone_soon() {
    let mut fixture = Fixture::new(1, 8).await;
    assert!(fixture.store.organization_by_slug("nobody").await.unwrap().is_none());
    let slug = fixture.organizations[0].slug.clone();
    let mut locked = fixture.admin.begin().await.unwrap();
    sqlx::query("lock table organizations in access exclusive mode").execute(&mut *locked).await.unwrap();
    // Nothing that has to be read can be read now.
    let reads = fixture.store.organization_by_slug("nobody");
    assert!(tokio::time::timeout(Duration::from_millis(300), reads).await.is_err());
    let asked = (0..200).map(|_| fixture.store.organization_by_slug(&slug));
    let known = tokio::time::timeout(Duration::from_secs(2), futures::future::join_all(asked)).await.unwrap();
    assert!(known.iter().all(|it| it.as_ref().unwrap().is_some()));
    locked.rollback().await.unwrap();
    let delete = "update organizations set deleted_at = now() where slug = $1";
    sqlx::query(delete).bind(&slug).execute(&mut fixture.admin).await.unwrap();
    eventually("nobody finds it", Duration::from_secs(30), async || {
        let found = fixture.store.organization_by_slug(&slug).await?;
        Ok(found.map_or(Ok(()), |_| Err("it is there".to_owned())))
    })
    .await
    .unwrap();
}

/// Else a replica would wait for it, and neither lead nor let another one lead.
#[tokio::test(flavor = "multi_thread")]
async fn the_lead_is_given_up_when_its_connection_says_nothing() {
    let mut fixture = Fixture::new(0, 16).await;
    let mut leadership = fixture.store.try_lead(SESSION_RECONCILER).await.unwrap().unwrap();
    leadership.confirm().await.unwrap();
    let holder = "select pid from pg_locks where locktype = 'advisory' and granted
                  and database = (select oid from pg_database where datname = current_database())";
    let holder: i32 = sqlx::query_scalar(holder).fetch_one(&mut fixture.admin).await.unwrap();
    signal(holder, "-STOP");
    let confirmed = tokio::time::timeout(Duration::from_secs(20), leadership.confirm()).await;
    signal(holder, "-CONT");
    confirmed.expect("still waiting for it").expect_err("nothing was said");
}

/// By itself, Postgres takes two hours to see that a replica's machine is gone, and keeps its locks meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn postgres_looks_whether_replicas_are_still_there() {
    let server = Server::start(ServerOptions { log_statements: true, ..ServerOptions::default() }).await.unwrap();
    let db = Database::create_on(std::sync::Arc::clone(&server)).await.unwrap();
    let store = Store::connect(&SecretString::from(db.runtime_url()), 4).unwrap();
    store.ping().await.unwrap();
    assert!(server.log().unwrap().contains("set tcp_keepalives_idle = 10;"), "not said by the runtime");
    let operator = agentapi_operator::tenancy::pool(&SecretString::from(db.operator_url())).unwrap();
    for (setting, value) in [("tcp_keepalives_idle", "10"), ("tcp_user_timeout", "30000"), ("statement_timeout", "10s")]
    {
        let show = sqlx::AssertSqlSafe(format!("show {setting}"));
        assert_eq!(sqlx::query_scalar::<_, String>(show).fetch_one(&operator).await.unwrap(), value, "{setting}");
    }
}

/// As when Postgres starts again, or a proxy between drops what is quiet.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_listens_goes_on_after_the_connection_was_cut() {
    let mut fixture = Fixture::new(1, 16).await;
    let mut listening = fixture.store.cancellations().await.unwrap();
    let cut = "select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = current_database()
               and query like 'LISTEN%'";
    assert!(sqlx::query_scalar::<_, bool>(cut).fetch_one(&mut fixture.admin).await.unwrap());
    let (store, organization) = (fixture.store.clone(), fixture.organizations[0].clone());
    // Said again and again: what is said while nobody listens is heard by nobody.
    let telling = tokio::spawn(async move {
        loop {
            let mut tx = store.tenant_tx(&TenantScope::system(&organization)).await.unwrap();
            tx.tell_cancelled("the request").await.unwrap();
            tx.commit().await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let heard = tokio::time::timeout(Duration::from_secs(30), listening.next()).await;
    telling.abort();
    assert_eq!(heard.expect("deaf").unwrap(), "the request");
}
