//! A tenant in a real Postgres: what `ensure` makes, what it repairs, what `remove` leaves, and that no password is
//! ever in the server's log.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use agentapi_operator::{
    envelope::{MasterKey, MasterKeys},
    metrics::Metrics,
    records,
    tenancy::{
        self, Meaning, credentials,
        organization::{Tenant, ensure, opens_login, set_read_password},
    },
};
use agentapi_tests::pg::{Database, Server, ServerOptions, wanted as tenant};
use secrecy::{ExposeSecret, SecretString};
use sqlx::{Connection, Executor, PgConnection, PgPool};
use std::sync::Arc;

struct Fixture {
    server: Arc<Server>,
    database: Database,
    pool: PgPool,
    master: MasterKeys,
    metrics: Arc<Metrics>,
}

impl Fixture {
    /// Roles belong to the server: a server of its own.
    async fn new() -> Self {
        let server = Server::start(ServerOptions { log_statements: true, ..ServerOptions::default() }).await.unwrap();
        let database = Database::create_on(server.clone()).await.unwrap();
        let pool = tenancy::pool(&SecretString::from(database.operator_url())).unwrap();
        let metrics = Metrics::new().unwrap();
        Self { server, database, pool, master: MasterKey::new(&[7; 32]).unwrap().into(), metrics }
    }

    async fn ensure(&self, tenant: &Tenant) -> tenancy::Result<tenancy::organization::Ensured> {
        ensure(&self.pool, tenant, &self.master, None, &self.metrics).await
    }

    async fn admin(&self, statement: &str) {
        self.database.admin(statement).await.unwrap();
    }

    async fn number(&self, query: &str) -> i64 {
        self.database.scalar(query).await.unwrap()
    }

    fn changes(&self) -> String {
        let text = String::from_utf8(self.metrics.render().unwrap()).unwrap();
        text.lines().filter(|line| line.contains("database_writes_total{")).collect::<Vec<_>>().join("\n")
    }
}

#[tokio::test]
async fn the_second_time_nothing_is_written() {
    let fixture = Fixture::new().await;
    let acme = tenant("acme");
    let first = fixture.ensure(&acme).await.unwrap();
    let made = fixture.changes();
    assert!(made.contains("role"), "{made}");
    let second = fixture.ensure(&acme).await.unwrap();
    assert_eq!(fixture.changes(), made);
    assert_eq!(first.data_keys, second.data_keys);
    assert!(records::snapshot(&fixture.pool).await.unwrap().organizations.iter().any(|row| row.id == acme.id));
}

#[tokio::test]
async fn the_read_only_role_logs_in_reads_its_own_and_writes_nothing() {
    let fixture = Fixture::new().await;
    let (acme, globex) = (tenant("acme"), tenant("globex"));
    assert_eq!(fixture.ensure(&acme).await.unwrap().password_digest, None);
    fixture.ensure(&globex).await.unwrap();
    let password = credentials::new_password().unwrap();
    set_read_password(&fixture.pool, &acme, &password, &fixture.metrics).await.unwrap();
    let known = fixture.ensure(&acme).await.unwrap().password_digest;
    assert_eq!(known, Some(credentials::digest(&password)));

    let url = fixture.server.url("org_acme_ro", password.expose_secret(), fixture.database.name());
    let mut reader = PgConnection::connect(&url).await.unwrap();
    let slugs: Vec<String> = sqlx::query_scalar("select slug from organizations").fetch_all(&mut reader).await.unwrap();
    assert_eq!(slugs, ["acme"]);
    // Also when it turns off what makes its transactions read-only by default.
    reader.execute("set default_transaction_read_only = off").await.unwrap();
    let refused = reader.execute("update organizations set display_name = 'x'").await.unwrap_err();
    assert!(refused.to_string().contains("permission denied"), "{refused}");
    assert!(reader.execute("set role org_globex").await.is_err());

    // It may change its own password, nobody can forbid that; the operator finds out by trying the one it knows.
    assert_eq!(opens_login(&fixture.pool, &acme, &password).await, Some(true));
    reader.execute("alter role org_acme_ro password 'stolen'").await.unwrap();
    assert_eq!(opens_login(&fixture.pool, &acme, &password).await, Some(false));
    fixture.admin("alter role org_acme_ro connection limit 0").await;
    set_read_password(&fixture.pool, &acme, &password, &fixture.metrics).await.unwrap();
    assert_eq!(opens_login(&fixture.pool, &acme, &password).await, None, "says nothing about the password");
    fixture.admin("alter role org_acme_ro connection limit 10").await;

    let wrong = fixture.server.url("org_acme_ro", "wrong", fixture.database.name());
    assert!(PgConnection::connect(&wrong).await.is_err());
    let log = fixture.server.log().unwrap();
    assert!(log.contains("alter role"), "the log has statements");
    assert!(!log.contains(password.expose_secret()), "the password is in the log");
}

#[tokio::test]
async fn drift_is_put_right() {
    let fixture = Fixture::new().await;
    let acme = tenant("acme");
    let key = fixture.ensure(&acme).await.unwrap().data_keys;
    let id_role = format!("{{{}}}", acme.id);
    for role in ["org_acme", &id_role] {
        drift_of_is_put_right(&fixture, &acme, role).await;
    }
    fixture.admin("delete from tenant_roles where role_name = 'org_acme'").await;
    fixture.ensure(&acme).await.unwrap();
    assert_eq!(fixture.number("select count(*) from tenant_roles").await, 2);
    assert_eq!(fixture.ensure(&acme).await.unwrap().data_keys, key, "the data key never changes");
}

async fn drift_of_is_put_right(fixture: &Fixture, acme: &Tenant, role: &str) {
    let right = format!(
        "select count(*) from pg_roles r where rolname = '{role}' and not rolcanlogin and not rolbypassrls
                 and not rolcreaterole and (select array_agg(roleid::regrole::text) from pg_auth_members
                 where member = r.oid) = array['agentapi_tenant'] and (select array_agg(member::regrole::text)
                 from pg_auth_members where roleid = r.oid) = array['agentapi_runtime']"
    );
    assert_eq!(fixture.number(&right).await, 1);
    for drift in [
        "alter role ROLE login createrole",
        "alter role ROLE bypassrls",
        "revoke ROLE from agentapi_runtime",
        "create role meddler; grant ROLE to meddler",
        "create role lure; grant lure to ROLE",
        "drop role ROLE",
    ] {
        let drift = drift.replace("ROLE", &format!("\"{role}\""));
        fixture.admin(&drift).await;
        assert_eq!(fixture.number(&right).await, 0, "{drift} is no drift");
        fixture.ensure(acme).await.unwrap();
        assert_eq!(fixture.number(&right).await, 1, "after {drift}");
        fixture.admin("drop role if exists meddler; drop role if exists lure").await;
    }
}

#[tokio::test]
async fn two_organizations_never_share_an_identity() {
    let fixture = Fixture::new().await;
    fixture.ensure(&tenant("acme")).await.unwrap();
    let twin = Tenant { org_claim_value: "acme".into(), ..tenant("twin") };
    let error = fixture.ensure(&twin).await.unwrap_err();
    assert_eq!(error.meaning(), Meaning::IdentityConflict, "{error}");
    assert_eq!(fixture.number("select count(*) from pg_roles where rolname ~ '^org_twin'").await, 0);
}

#[tokio::test]
async fn a_restored_database_takes_the_data_key_from_the_secret_if_it_is_the_tenants_own() {
    let fixture = Fixture::new().await;
    let (acme, globex) = (tenant("acme"), tenant("globex"));
    let key = fixture.ensure(&acme).await.unwrap().data_keys;
    let foreign = fixture.ensure(&globex).await.unwrap().data_keys;
    let restore = async |kept| {
        fixture.admin("delete from tenant_keys").await;
        ensure(&fixture.pool, &acme, &fixture.master, Some(kept), &fixture.metrics).await.unwrap().data_keys
    };
    assert_eq!(restore(key.clone()).await, key);
    let fresh = restore(foreign.clone()).await;
    assert!(fresh != foreign && fresh != key, "another tenant's key is not taken");
}

#[tokio::test]
async fn another_master_key_is_noticed() {
    let fixture = Fixture::new().await;
    let acme = tenant("acme");
    fixture.ensure(&acme).await.unwrap();
    let other: MasterKeys = MasterKey::new(&[8; 32]).unwrap().into();
    let error = ensure(&fixture.pool, &acme, &other, None, &fixture.metrics).await.unwrap_err();
    assert!(error.to_string().contains("does not open"), "{error}");
}
