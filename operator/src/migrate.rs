//! `agentapi-operator migrate`: roles, database and schema, from an empty server or an old version. Safe to repeat and
//! to start several times at once. May touch: Postgres as the administrator; nothing else in the project has that URL.
use crate::scram;
use secrecy::{ExposeSecret, SecretString};
use sqlx::{
    AssertSqlSafe, Connection, Executor, PgConnection,
    postgres::{PgConnectOptions, PgDatabaseError},
};
use std::time::Duration;
use tokio::time::{Instant, sleep};
use url::Url;

/// Role of the operator; policies name it.
pub const OPERATOR_ROLE: &str = "agentapi_operator";
/// Role of the API; policies name it.
pub const RUNTIME_ROLE: &str = "agentapi_runtime";

/// The schema. Public so that tests can compare a database with it.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!("../migrations");

/// Who may connect to the database; for whoever makes one from a template, which has everything but this.
pub const DATABASE_RIGHTS: &str = include_str!("migrate/database.sql");

/// Advisory locks: of the roles, in the administrator's database, and of the schema, in its own. Two keys, since both
/// may be one database and the two connections must not wait for each other.
const ROLES_LOCK: i64 = 0x6167_656e_7461_7069;
const SCHEMA_LOCK: i64 = ROLES_LOCK + 1;

/// Settings of `agentapi-operator migrate`.
#[derive(Clone, Debug, clap::Args)]
pub struct MigrateConfig {
    /// Connection URL of a superuser, or of a role with CREATEROLE and CREATEDB.
    #[arg(long, env = "ADMIN_DATABASE_URL", hide_env_values = true)]
    pub admin_url: SecretString,
    /// Connection URL that the operator will use; its password becomes that of `agentapi_operator`.
    #[arg(long, env = "OPERATOR_DATABASE_URL", hide_env_values = true)]
    pub operator_url: SecretString,
    /// Connection URL that the runtime will use; its password becomes that of `agentapi_runtime`.
    #[arg(long, env = "RUNTIME_DATABASE_URL", hide_env_values = true)]
    pub runtime_url: SecretString,
    /// Seconds to wait for Postgres, and for another `migrate` that is at work.
    #[arg(long, env = "MIGRATE_WAIT_SECONDS", default_value_t = 300)]
    pub wait_seconds: u32,
}

/// What a run found and did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// The database was not there before.
    pub created_database: bool,
    /// Migrations that this run applied.
    pub applied: i64,
    /// The administrator is a superuser, so that advisory locks and large objects could be closed to tenants.
    pub hardened: bool,
}

/// Why the schema is not in place.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A URL can't be used.
    #[error("{variable}: {reason}")]
    Url {
        /// Environment variable that holds it.
        variable: &'static str,
        /// What to write instead.
        reason: String,
    },
    /// Postgres did not come up.
    #[error(
        "Postgres at {at} can't be used after {waited:?}: {source}; is it running, and is a network policy in between?"
    )]
    Unreachable {
        /// host:port.
        at: String,
        /// Time spent.
        waited: Duration,
        /// Last answer.
        #[source]
        source: sqlx::Error,
    },
    /// Waiting makes no sense.
    #[error("Postgres at {at} refuses the login of {user}: {source}; compare user and password with the Secret")]
    Refused {
        /// host:port.
        at: String,
        /// Who tried.
        user: String,
        /// Its answer.
        #[source]
        source: sqlx::Error,
    },
    /// Another run holds the lock and does not finish.
    #[error("another migrate has been at work for {0:?}; look at its log, or end its connection in pg_stat_activity")]
    Busy(Duration),
    /// The administrator can't do it.
    #[error("{step}: {source}; the administrator needs SUPERUSER, or CREATEROLE and CREATEDB")]
    Step {
        /// What was tried.
        step: &'static str,
        /// Its answer.
        #[source]
        source: sqlx::Error,
    },
    /// A role could walk through the fences.
    #[error(
        "role {role} has {attribute}, which switches row-level security off; run ALTER ROLE {role} NO{attribute} as a superuser"
    )]
    TooPowerful {
        /// Its name.
        role: String,
        /// What it has.
        attribute: &'static str,
    },
    /// No verifier for a password.
    #[error("{variable}: {source}")]
    Password {
        /// Environment variable that holds it.
        variable: &'static str,
        /// What is wrong with it.
        #[source]
        source: scram::Error,
    },
    /// A migration failed; its transaction was rolled back.
    #[error("schema: {0}")]
    Schema(#[from] sqlx::migrate::MigrateError),
}

/// A login taken from one of the URLs.
struct Login {
    variable: &'static str,
    options: PgConnectOptions,
    role: &'static str,
    verifier: String,
    database: String,
}

/// Brings server, roles and schema up to this version.
pub async fn run(config: &MigrateConfig) -> Result<Report, Error> {
    let wait = Duration::from_secs(u64::from(config.wait_seconds));
    let admin = options("ADMIN_DATABASE_URL", &config.admin_url)?;
    let operator = login("OPERATOR_DATABASE_URL", &config.operator_url, OPERATOR_ROLE)?;
    let runtime = login("RUNTIME_DATABASE_URL", &config.runtime_url, RUNTIME_ROLE)?;
    if operator.database != runtime.database {
        let reason = format!("names database {:?}, the operator's names {:?}", runtime.database, operator.database);
        return Err(Error::Url { variable: runtime.variable, reason });
    }

    let mut server = connect_to_server(&admin, wait).await?;
    lock(&mut server, ROLES_LOCK, wait).await?;
    retry_races("create the roles", async || server.execute(include_str!("migrate/roles.sql")).await.map(drop)).await?;
    for login in [&operator, &runtime] {
        set_password(&mut server, login).await?;
    }
    refuse_too_powerful(&mut server).await?;
    let created_database = create_database(&mut server, &operator.database).await?;

    let target = admin.clone().database(&operator.database);
    let mut database = connect(&target, wait).await?;
    // Again, in the one database that all runs share: the first connection may be to another one.
    lock(&mut database, SCHEMA_LOCK, wait).await?;
    let hardened = harden::harden(&mut database).await?;
    let applied = migrate_schema(&mut database).await?;
    database.close().await.map_err(step("close the connection"))?;

    // The two programs will log in with exactly these URLs: better to fail here than in their restart loops.
    for login in [&operator, &runtime] {
        let connection = connect(&login.options, wait).await?;
        connection.close().await.map_err(step("close the connection"))?;
    }
    // The lock goes with its connection.
    server.close().await.map_err(step("close the connection"))?;
    tracing::info!(database = operator.database, applied, created_database, hardened, "the schema is in place");
    Ok(Report { created_database, applied, hardened })
}

fn step(step: &'static str) -> impl Fn(sqlx::Error) -> Error {
    move |source| Error::Step { step, source }
}

fn options(variable: &'static str, url: &SecretString) -> Result<PgConnectOptions, Error> {
    // sqlx's message names the part that is wrong and never the URL.
    url.expose_secret().parse::<PgConnectOptions>().map(|o| o.application_name("agentapi-migrate")).map_err(|error| {
        Error::Url { variable, reason: format!("{error}; write postgres://user:password@host:5432/database") }
    })
}

fn login(variable: &'static str, secret: &SecretString, role: &'static str) -> Result<Login, Error> {
    let options = options(variable, secret)?;
    let wrong = |reason: String| Error::Url { variable, reason };
    let url = Url::parse(secret.expose_secret()).map_err(|error| wrong(error.to_string()))?;
    if options.get_username() != role {
        return Err(wrong(format!("the user must be {role}: the policies of the schema name it")));
    }
    let database = options.get_database().unwrap_or_default().to_owned();
    if database.is_empty() || !database.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_') {
        return Err(wrong("the database must be a name of a-z, 0-9 and _, for example agentapi".to_owned()));
    }
    let password = percent_decode(url.password().unwrap_or_default())
        .ok_or_else(|| wrong("the password has a % that starts no %XX escape; write %25 for %".to_owned()))?;
    let verifier = scram::verifier(&password).map_err(|source| Error::Password { variable, source })?;
    Ok(Login { variable, options, role, verifier, database })
}

/// `url` hands out passwords as they were written.
fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first == b'%' {
            bytes.push(hex::decode(tail.get(..2)?).ok()?.first().copied()?);
            rest = tail.get(2..)?;
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}

fn at(options: &PgConnectOptions) -> String {
    format!("{}:{}", options.get_host(), options.get_port())
}

/// SQLSTATE of an answer.
fn code(error: &sqlx::Error) -> Option<&str> {
    error.as_database_error()?.try_downcast_ref::<PgDatabaseError>().map(PgDatabaseError::code)
}

/// The administrator's own database, or `postgres` when that is the one still to be created.
async fn connect_to_server(admin: &PgConnectOptions, wait: Duration) -> Result<PgConnection, Error> {
    match connect(admin, wait).await {
        Err(Error::Refused { source, .. }) if code(&source) == Some("3D000") => {
            connect(&admin.clone().database("postgres"), wait).await
        }
        other => other,
    }
}

async fn connect(options: &PgConnectOptions, wait: Duration) -> Result<PgConnection, Error> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(200);
    loop {
        let source = match PgConnection::connect_with(options).await {
            Ok(connection) => return Ok(connection),
            Err(source) => source,
        };
        // 28: authentication, 3D: no such database, 42: no CONNECT privilege. Time does not cure these.
        if code(&source).is_some_and(|c| c.starts_with("28") || c.starts_with("3D") || c.starts_with("42")) {
            return Err(Error::Refused { at: at(options), user: options.get_username().to_owned(), source });
        }
        if start.elapsed() + pause > wait {
            return Err(Error::Unreachable { at: at(options), waited: start.elapsed(), source });
        }
        tracing::info!(at = at(options), waited_seconds = start.elapsed().as_secs(), %source, "waiting for Postgres");
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(5));
    }
}

async fn lock(server: &mut PgConnection, key: i64, wait: Duration) -> Result<(), Error> {
    let start = Instant::now();
    let mut told = false;
    loop {
        let locked: bool = sqlx::query_scalar("select pg_try_advisory_lock($1)")
            .bind(key)
            .fetch_one(&mut *server)
            .await
            .map_err(step("take the lock of migrate"))?;
        if locked {
            return Ok(());
        }
        if start.elapsed() > wait {
            return Err(Error::Busy(start.elapsed()));
        }
        if !told {
            tracing::info!("another migrate is at work; waiting until it is done");
            told = true;
        }
        sleep(Duration::from_millis(250)).await;
    }
}

/// Roles belong to the server: an operator at work, or a `migrate` of another database that does not share our lock,
/// may write the same catalogue row.
async fn retry_races(
    what: &'static str,
    mut statement: impl AsyncFnMut() -> Result<(), sqlx::Error>,
) -> Result<(), Error> {
    let mut tries = 0_u32;
    loop {
        match statement().await {
            Ok(()) => return Ok(()),
            // tuple concurrently updated, duplicate object, unique violation
            Err(error) if tries < 20 && matches!(code(&error), Some("XX000" | "42710" | "23505")) => {
                tries += 1;
                sleep(Duration::from_millis(25) * tries).await;
            }
            Err(source) => return Err(Error::Step { step: what, source }),
        }
    }
}

async fn set_password(server: &mut PgConnection, login: &Login) -> Result<(), Error> {
    retry_races("set the passwords", async || {
        let mut tx = server.begin().await?;
        sqlx::query("select set_config('agentapi.role', $1, true), set_config('agentapi.verifier', $2, true)")
            .bind(login.role)
            .bind(&login.verifier)
            .execute(&mut *tx)
            .await?;
        tx.execute(include_str!("migrate/password.sql")).await?;
        tx.commit().await
    })
    .await
}

async fn refuse_too_powerful(server: &mut PgConnection) -> Result<(), Error> {
    let found: Option<(String, bool)> = sqlx::query_as(
        "select rolname::text, rolsuper from pg_roles
         where rolname in ('agentapi_owner', 'agentapi_operator', 'agentapi_runtime', 'agentapi_tenant',
                           'agentapi_tenant_ro') and (rolsuper or rolbypassrls) limit 1",
    )
    .fetch_optional(server)
    .await
    .map_err(step("look at the roles"))?;
    match found {
        Some((role, superuser)) => {
            Err(Error::TooPowerful { role, attribute: if superuser { "SUPERUSER" } else { "BYPASSRLS" } })
        }
        None => Ok(()),
    }
}

/// Makes the database, or takes over one that somebody else made.
async fn create_database(server: &mut PgConnection, name: &str) -> Result<bool, Error> {
    let owner: Option<String> =
        sqlx::query_scalar("select pg_get_userbyid(datdba)::text from pg_database where datname = $1")
            .bind(name)
            .fetch_optional(&mut *server)
            .await
            .map_err(step("look for the database"))?;
    // `login` let through nothing but a-z, 0-9 and _.
    let statement = match owner.as_deref() {
        Some("agentapi_owner") => return Ok(false),
        Some(_) => format!("alter database \"{name}\" owner to agentapi_owner"),
        None => format!("create database \"{name}\" owner agentapi_owner encoding 'UTF8' template template0"),
    };
    match server.execute(AssertSqlSafe(statement)).await {
        Ok(_) => Ok(owner.is_none()),
        // Somebody with another lock was faster.
        Err(error) if matches!(code(&error), Some("42P04" | "23505")) => Ok(false),
        Err(source) => Err(Error::Step { step: "create the database", source }),
    }
}

async fn migrate_schema(database: &mut PgConnection) -> Result<i64, Error> {
    database.execute("set role agentapi_owner").await.map_err(step("become agentapi_owner"))?;
    database.execute(DATABASE_RIGHTS).await.map_err(step("set the rights on the database"))?;
    let before = applied(database).await?;
    fences::before(database, before < i64::try_from(MIGRATOR.iter().count()).unwrap_or(i64::MAX)).await?;
    MIGRATOR.run(&mut *database).await?;
    fences::after(database).await?;
    Ok(applied(database).await? - before)
}

async fn applied(database: &mut PgConnection) -> Result<i64, Error> {
    // to_regclass: before the first run there is no table to ask.
    let known: bool = sqlx::query_scalar("select to_regclass('public._sqlx_migrations') is not null")
        .fetch_one(&mut *database)
        .await
        .map_err(step("look for earlier migrations"))?;
    if !known {
        return Ok(0);
    }
    sqlx::query_scalar("select count(*) from public._sqlx_migrations where success")
        .fetch_one(database)
        .await
        .map_err(step("look for earlier migrations"))
}

mod fences;
mod harden;

#[cfg(test)]
mod tests;
