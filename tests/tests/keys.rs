//! Keys in a real Postgres: another master key, with a real process killed after each row and within one, versions of
//! a data key, and what a rotation leaves of the read-only role's connections.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use agentapi_operator::{
    envelope::{MasterKey, MasterKeys},
    metrics::Metrics,
    tenancy::{
        self, credentials,
        keys::{DataKeys, retire_unused, rewrap_next, wrapped_by},
        organization::{Tenant, ensure, set_read_password},
    },
};
use agentapi_tests::{
    cluster::eventually,
    pg::{Database, Server, ServerOptions, wanted},
};
use secrecy::{ExposeSecret, SecretString};
use sqlx::{Connection, PgConnection, PgPool};
use std::{
    os::unix::process::ExitStatusExt,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

const STEP: &str = env!("CARGO_BIN_EXE_operator-step");
const SIGKILL: i32 = 9;

struct Fixture {
    database: Database,
    pool: PgPool,
    metrics: Arc<Metrics>,
}

impl Fixture {
    /// Roles belong to the server: a server of its own.
    async fn new() -> Self {
        let database = Database::create_on(Server::start(ServerOptions::default()).await.unwrap()).await.unwrap();
        let pool = tenancy::pool(&SecretString::from(database.operator_url())).unwrap();
        Self { database, pool, metrics: Metrics::new().unwrap() }
    }

    async fn admin(&self, statement: &str) {
        self.database.admin(statement).await.unwrap();
    }

    async fn number(&self, query: &str) -> i64 {
        self.database.scalar(query).await.unwrap()
    }

    async fn ensure(&self, tenant: &Tenant, keys: &MasterKeys) -> DataKeys {
        ensure(&self.pool, tenant, keys, None, &self.metrics).await.unwrap().data_keys
    }

    /// A process that does so many steps of the rotation and is killed.
    fn rewrap(&self, steps: u32) -> Child {
        Command::new(STEP)
            .args(["rewrap", &steps.to_string()])
            .env_clear()
            .env("DATABASE_URL", self.database.operator_url())
            .env("PATH", "/usr/bin:/bin")
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap()
    }
}

fn key(byte: u8) -> MasterKey {
    MasterKey::new(&[byte; 32]).unwrap()
}

/// What `operator-step` works with: 8 wraps, 7 is its predecessor.
fn both() -> MasterKeys {
    MasterKeys::new(key(8), vec![key(7)])
}

fn tenant(slug: &str, data_key_rotation: &str) -> Tenant {
    Tenant { data_key_rotation: data_key_rotation.into(), ..wanted(slug) }
}

fn open(keys: &MasterKeys, tenant: &Tenant, data_keys: &DataKeys) -> Vec<[u8; 32]> {
    let open = |key: &tenancy::keys::WrappedKey| {
        *keys.unwrap(tenant.id, key.version, &key.master_key_id, &key.wrapped).unwrap().expose_secret()
    };
    data_keys.all().map(open).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_key_rotation_goes_on_after_each_kill_and_every_key_can_be_read_at_all_times() {
    let fixture = Fixture::new().await;
    let tenants: Vec<Tenant> = (0..5).map(|n| tenant(&format!("acme{n}"), "")).collect();
    let before = MasterKeys::from(key(7));
    let mut plain = Vec::new();
    for tenant in &tenants {
        plain.push(open(&before, tenant, &fixture.ensure(tenant, &before).await));
    }
    let readable = async |when: &str| {
        for (tenant, plain) in tenants.iter().zip(&plain) {
            assert_eq!(&open(&both(), tenant, &fixture.ensure(tenant, &both()).await), plain, "{when}");
        }
    };
    readable("before").await;

    // Between two rows.
    for row in 1..=2_i64 {
        assert_eq!(fixture.rewrap(1).wait().unwrap().signal(), Some(SIGKILL));
        assert_eq!(wrapped_by(&fixture.pool).await.unwrap().len(), 2);
        let new = format!("select count(*) from tenant_keys where master_key_id = '{}'", key(8).id());
        assert_eq!(fixture.number(&new).await, row);
        readable(&format!("after row {row}")).await;
    }
    // Within a row: it has the new wrapping and is not committed.
    fixture
        .admin(
            "create function slow() returns trigger language plpgsql as
             'begin perform pg_sleep(600); return new; end';
             create trigger slow before update on tenant_keys for each row execute function slow()",
        )
        .await;
    let mut child = fixture.rewrap(0);
    eventually("the process is within a row", Duration::from_secs(60), async || {
        let asleep = "select count(*) from pg_stat_activity where wait_event = 'PgSleep'";
        Ok(if fixture.number(asleep).await == 1 { Ok(()) } else { Err("not yet".into()) })
    })
    .await
    .unwrap();
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(SIGKILL));
    fixture.admin("select pg_terminate_backend(pid) from pg_stat_activity where wait_event = 'PgSleep'").await;
    fixture.admin("drop trigger slow on tenant_keys").await;
    readable("after a kill within a row").await;

    // Whoever comes next finishes, and a second time there is nothing to do.
    assert!(fixture.rewrap(0).wait().unwrap().success());
    readable("at the end").await;
    assert_eq!(wrapped_by(&fixture.pool).await.unwrap(), [(key(8).id().to_owned(), 5)]);
    assert_eq!(rewrap_next(&fixture.pool, &both(), &fixture.metrics).await.unwrap(), None);
    // Now the old key may go.
    let after = MasterKeys::from(key(8));
    for (tenant, plain) in tenants.iter().zip(&plain) {
        assert_eq!(&open(&after, tenant, &fixture.ensure(tenant, &after).await), plain);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_no_known_master_key_opens_stops_the_rotation_and_stays_as_it_is() {
    let fixture = Fixture::new().await;
    fixture.ensure(&tenant("acme", ""), &MasterKeys::from(key(6))).await;
    let error = rewrap_next(&fixture.pool, &both(), &fixture.metrics).await.unwrap_err();
    assert!(error.to_string().contains("restore the master key"), "{error}");
    assert_eq!(wrapped_by(&fixture.pool).await.unwrap(), [(key(6).id().to_owned(), 1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_key_gets_a_new_version_and_the_old_one_stays_until_nothing_needs_it() {
    let fixture = Fixture::new().await;
    let keys = both();
    let mut acme = tenant("acme", "");
    let first = fixture.ensure(&acme, &keys).await;
    acme.data_key_rotation = "2026-11-24".into();
    let second = fixture.ensure(&acme, &keys).await;
    assert_eq!((second.current.version, &second.previous), (2, &vec![first.current.clone()]));
    assert_eq!(fixture.ensure(&acme, &keys).await, second, "asked for once, made once");
    let [new, old] = open(&keys, &acme, &second)[..] else { panic!("two versions") };
    assert_ne!(new, old);
    assert_eq!(fixture.number("select count(*) from audit_log where action = 'organization.rotate-data-key'").await, 1);

    // A token that version 1 encrypted keeps it.
    fixture
        .admin(&format!(
            "insert into mcp_connections (org_id, id, name, origin, transport) values ('{0}', '{0}', 'c', 'api', 'sse');
             insert into mcp_oauth_tokens (org_id, id, connection_id, access_ciphertext, key_id, key_version)
             values ('{0}', '{0}', '{0}', decode(repeat('00', 32), 'hex'), '{0}', 1);
             insert into oauth_clients (org_id, connection_id, issuer, redirect_uri, client_ciphertext, key_id, key_version)
             values ('{0}', '{0}', 'https://x', 'https://x', decode(repeat('00', 32), 'hex'), '{0}', 1)",
            acme.id
        ))
        .await;
    let retired = async || retire_unused(&fixture.pool, &fixture.metrics).await.unwrap();
    assert_eq!(retired().await, [], "somebody may just be reading it");
    fixture.admin("update tenant_keys set retired_at = now() - interval '2 hours' where version = 1").await;
    assert_eq!(retired().await, [], "a token needs it");
    fixture.admin("update mcp_oauth_tokens set key_version = 2").await;
    assert_eq!(retired().await, [], "a client needs it");
    fixture.admin("update oauth_clients set key_version = 2").await;
    assert_eq!(retired().await, [(acme.id, 1)]);
    let DataKeys { current, previous } = fixture.ensure(&acme, &keys).await;
    assert_eq!((current, previous), (second.current, vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_database_takes_all_versions_from_the_secret() {
    let fixture = Fixture::new().await;
    let mut acme = tenant("acme", "");
    fixture.ensure(&acme, &both()).await;
    acme.data_key_rotation = "2".into();
    let known = fixture.ensure(&acme, &both()).await;
    fixture.admin("delete from tenant_keys").await;
    let restored = ensure(&fixture.pool, &acme, &both(), Some(known.clone()), &fixture.metrics).await.unwrap();
    assert_eq!(restored.data_keys, known);
    assert_eq!(fixture.ensure(&acme, &both()).await, known);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_survive_another_password_and_the_old_one_opens_no_new_ones() {
    let fixture = Fixture::new().await;
    let acme = tenant("acme", "");
    fixture.ensure(&acme, &both()).await;
    let [old, new] = [0, 1].map(|_| credentials::new_password().unwrap());
    let url = |password: &SecretString| {
        fixture.database.server().url("org_acme_ro", password.expose_secret(), fixture.database.name())
    };
    set_read_password(&fixture.pool, &acme, &old, &fixture.metrics).await.unwrap();
    let mut open = PgConnection::connect(&url(&old)).await.unwrap();
    set_read_password(&fixture.pool, &acme, &new, &fixture.metrics).await.unwrap();
    let slug: String = sqlx::query_scalar("select slug from organizations").fetch_one(&mut open).await.unwrap();
    assert_eq!(slug, "acme");
    assert!(PgConnection::connect(&url(&old)).await.is_err());
    assert!(PgConnection::connect(&url(&new)).await.is_ok());
}
