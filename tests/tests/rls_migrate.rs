//! `agentapi-operator migrate` against a real Postgres.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]
use agentapi_operator::migrate::{self, Error, MIGRATOR, Report};
use agentapi_tests::pg::{Database, Server, ServerOptions};
use secrecy::{ExposeSecret, SecretString};
use sqlx::{Connection, Executor, PgConnection};

#[tokio::test(flavor = "multi_thread")]
async fn four_at_once_then_again() {
    let server = Server::start(ServerOptions { log_statements: true, ..ServerOptions::default() }).await.unwrap();
    let config = server.migrate_config("agentapi");
    let runs = futures::future::join_all((0..4).map(|_| migrate::run(&config))).await;
    let reports: Vec<Report> = runs.into_iter().map(Result::unwrap).collect();
    let all = i64::try_from(MIGRATOR.iter().count()).unwrap();
    assert!(all > 0);
    assert_eq!(reports.iter().filter(|r| r.created_database).count(), 1, "{reports:?}");
    assert_eq!(reports.iter().map(|r| r.applied).sum::<i64>(), all, "{reports:?}");

    let again = migrate::run(&config).await.unwrap();
    assert_eq!(again, Report { created_database: false, applied: 0, hardened: true });

    // All statements are in this log; none shows a password.
    let log = server.log().unwrap();
    assert!(log.contains("alter role"), "statements are not logged, so this test sees nothing");
    for url in [&config.operator_url, &config.runtime_url] {
        let url = url::Url::parse(url.expose_secret()).unwrap();
        assert!(!log.contains(url.password().unwrap()), "the server log shows a password");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_password_in_the_url_becomes_the_password() {
    let server = Server::start(ServerOptions::default()).await.unwrap();
    let db = Database::create_on(server.clone()).await.unwrap();
    let mut config = server.migrate_config(db.name());
    let old = config.runtime_url.clone();
    config.runtime_url = SecretString::from(server.url(migrate::RUNTIME_ROLE, "n%2Fw%25p%27w", db.name()));
    migrate::run(&config).await.unwrap();
    PgConnection::connect(config.runtime_url.expose_secret()).await.unwrap();
    let refused = PgConnection::connect(old.expose_secret()).await.unwrap_err();
    assert!(refused.to_string().contains("password authentication failed"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drifted_role_is_put_right_by_a_superuser() {
    let server = Server::start(ServerOptions::default()).await.unwrap();
    let db = Database::create_on(server.clone()).await.unwrap();
    let mut admin = PgConnection::connect(&db.admin_url()).await.unwrap();
    admin.execute("alter role agentapi_runtime bypassrls inherit createrole").await.unwrap();
    migrate::run(&server.migrate_config(db.name())).await.unwrap();
    let (bypass, inherit, createrole): (bool, bool, bool) = sqlx::query_as(
        "select rolbypassrls, rolinherit, rolcreaterole from pg_roles where rolname = 'agentapi_runtime'",
    )
    .fetch_one(&mut admin)
    .await
    .unwrap();
    assert_eq!((bypass, inherit, createrole), (false, false, false));
}

#[tokio::test(flavor = "multi_thread")]
async fn createrole_and_createdb_are_enough() {
    let server = Server::start(ServerOptions::default()).await.unwrap();
    let mut superuser = PgConnection::connect(&server.admin_url("postgres")).await.unwrap();
    superuser.execute("create role dba login createrole createdb password 'dba'").await.unwrap();
    let mut config = server.migrate_config("agentapi");
    config.admin_url = SecretString::from(server.url("dba", "dba", "postgres"));
    let report = migrate::run(&config).await.unwrap();
    assert!(report.created_database && !report.hardened && report.applied > 0, "{report:?}");

    // Such an administrator can't take BYPASSRLS away: the run stops and says who can.
    superuser.execute("alter role agentapi_runtime bypassrls").await.unwrap();
    let error = migrate::run(&config).await.unwrap_err();
    assert!(matches!(&error, Error::TooPowerful { .. }), "{error}");
    assert!(error.to_string().contains("ALTER ROLE agentapi_runtime NOBYPASSRLS"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_was_there_first_is_taken_over() {
    let server = Server::start(ServerOptions::default()).await.unwrap();
    let mut superuser = PgConnection::connect(&server.admin_url("postgres")).await.unwrap();
    superuser.execute("create database agentapi").await.unwrap();
    let mut config = server.migrate_config("agentapi");
    config.admin_url = SecretString::from(server.admin_url("agentapi"));
    let report = migrate::run(&config).await.unwrap();
    assert!(!report.created_database && report.applied > 0, "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_administrator_may_name_the_database_that_is_missing() {
    let server = Server::start(ServerOptions::default()).await.unwrap();
    let mut config = server.migrate_config("agentapi");
    config.admin_url = SecretString::from(server.admin_url("agentapi"));
    assert!(migrate::run(&config).await.unwrap().created_database);
}

#[tokio::test(flavor = "multi_thread")]
async fn waits_for_a_server_and_gives_up_with_the_reason() {
    let server = Server::start(ServerOptions::default()).await.unwrap();
    let mut config = server.migrate_config("agentapi");
    config.wait_seconds = 1;
    config.admin_url = SecretString::from("postgres://postgres:secret-canary@127.0.0.1:1/postgres");
    let error = migrate::run(&config).await.unwrap_err();
    assert!(matches!(&error, Error::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("127.0.0.1:1") && !error.to_string().contains("canary"), "{error}");

    config.admin_url = SecretString::from(server.url("postgres", "wrong-canary", "postgres"));
    let error = migrate::run(&config).await.unwrap_err();
    assert!(matches!(&error, Error::Refused { .. }), "{error}");
    assert!(!error.to_string().contains("canary"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_harness_makes_an_organization_through_the_real_logins() {
    let db = Database::create().await.unwrap();
    let acme = db.organization("acme").await.unwrap();
    let mut ro = PgConnection::connect(&db.read_only_url(&acme)).await.unwrap();
    let people: i64 = sqlx::query_scalar("select count(*) from users").fetch_one(&mut ro).await.unwrap();
    assert_eq!(people, 3);
}
