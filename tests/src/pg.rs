//! A real Postgres for tests: one throw-away server per test process, one migrated database per test.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! let db = agentapi_tests::pg::Database::create().await?;      // migrated, with the two platform logins
//! let acme = db.organization("acme").await?;                    // rows, roles, users, a workspace
//! let runtime = db.connect(&db.runtime_url()).await?;           // as agentapi_runtime
//! # Ok(()) }
//! ```
//! Roles belong to the server and not to a database: tests share `org_acme`. A test that changes or drops roles takes
//! a server of its own (`Database::create_on(Server::start(...))`) or a slug of its own (`unique_slug`).
use agentapi_operator::migrate::{self, MigrateConfig};
use anyhow::{Context, Result, bail};
use secrecy::SecretString;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

pub mod catalogue;
pub mod load;
mod tenant;
mod world;
pub use tenant::{MASTER_KEY, Organization, User, become_tenant, wanted};
pub use world::World;

/// How to start a [`Server`].
#[derive(Clone, Copy, Debug, Default)]
pub struct ServerOptions {
    /// Write every statement to the log, for tests that look for secrets in it.
    pub log_statements: bool,
    /// Keep what was committed through a crash, as a server in production does. It costs time.
    pub durable: bool,
    /// More settings: `-c` and `name=value`.
    pub settings: &'static [&'static str],
}

/// A Postgres that goes away with this value, or with the process.
#[derive(Debug)]
pub struct Server {
    port: u16,
    directory: PathBuf,
    password: String,
    process: Child,
    control: Mutex<Option<ChildStdin>>,
    template: tokio::sync::OnceCell<()>,
    databases: AtomicU32,
}

/// For tests that lose nothing when the machine stops: they are gone then.
const QUICK: &[&str] = &["-c", "fsync=off", "-c", "full_page_writes=off", "-c", "synchronous_commit=off"];
const DURABLE: &[&str] = &["-c", "fsync=on", "-c", "full_page_writes=on", "-c", "synchronous_commit=on"];
/// What `server.sh` writes to the log when it has killed the server.
const CRASHED: &str = "server.sh: killed";

static SHARED: tokio::sync::OnceCell<Arc<Server>> = tokio::sync::OnceCell::const_new();

impl Server {
    /// The server of this test process, started by whoever asks first.
    pub async fn shared() -> Result<Arc<Server>> {
        SHARED.get_or_try_init(|| Server::start(ServerOptions::default())).await.cloned()
    }

    /// A server of one's own.
    pub async fn start(options: ServerOptions) -> Result<Arc<Server>> {
        // A port that was free a moment ago may be taken when Postgres binds it.
        for _ in 0..4 {
            let server = Self::spawn(options)?;
            if server.wait_until_up().await? {
                return Ok(Arc::new(server));
            }
        }
        bail!("Postgres found no free port in four tries")
    }

    fn spawn(options: ServerOptions) -> Result<Server> {
        let port = crate::ports::reserve()?;
        let password = Uuid::new_v4().simple().to_string();
        let bin = bin_dir()?;
        let mut command = Command::new("sh");
        if is_root() {
            // Postgres refuses to run as root; Debian's package brings the user.
            command = Command::new("setpriv");
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--", "sh"]);
        }
        let mut process = command
            .args(["-c", include_str!("pg/server.sh"), "server.sh"])
            .arg(&bin)
            .arg(port.to_string())
            .args(if options.durable { DURABLE } else { QUICK })
            .args(options.settings)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C.UTF-8")
            .env("TMPDIR", std::env::temp_dir())
            .env("PGPASSWORD", &password)
            .env("LOG_STATEMENT", if options.log_statements { "all" } else { "none" })
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("can't start Postgres; is Debian's postgresql-15 installed?")?;
        let stdout = process.stdout.take().context("no standard output")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        if line.is_empty() {
            bail!("initdb failed: {:?}; its output is above", process.wait()?);
        }
        let directory = PathBuf::from(line.trim());
        Ok(Server {
            control: Mutex::new(process.stdin.take()),
            port,
            directory,
            password,
            process,
            template: tokio::sync::OnceCell::new(),
            databases: AtomicU32::new(0),
        })
    }

    /// False: the port was taken after all.
    async fn wait_until_up(&self) -> Result<bool> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let error = match PgConnection::connect(&self.admin_url("postgres")).await {
                Ok(connection) => {
                    connection.close().await?;
                    return Ok(true);
                }
                Err(error) => error,
            };
            let log = self.log()?;
            if log.contains("could not bind") {
                return Ok(false);
            }
            if Instant::now() > deadline {
                bail!("Postgres did not come up: {error}\n{log}");
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Kills the server, without a word (SIGKILL), and starts it again on what is on the disk.
    pub async fn crash(&self) -> Result<()> {
        let crashes = || anyhow::Ok(self.log()?.matches(CRASHED).count());
        let before = crashes()?;
        {
            let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
            control.as_mut().context("the server is going")?.write_all(b"crash\n")?;
        }
        let deadline = Instant::now() + Duration::from_secs(30);
        while crashes()? == before {
            anyhow::ensure!(Instant::now() < deadline, "the server was not killed");
            sleep(Duration::from_millis(10)).await;
        }
        anyhow::ensure!(self.wait_until_up().await?, "another process took the port");
        Ok(())
    }

    /// What the server has logged so far.
    pub fn log(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.directory.join("log"))?)
    }

    /// Its port on the loopback address.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// URL of the superuser.
    pub fn admin_url(&self, database: &str) -> String {
        self.url("postgres", &self.password, database)
    }

    /// URL of any login.
    pub fn url(&self, user: &str, password: &str, database: &str) -> String {
        format!("postgres://{user}:{password}@127.0.0.1:{}/{database}", self.port)
    }

    /// What `agentapi-operator migrate` gets for a database of this server.
    pub fn migrate_config(&self, database: &str) -> MigrateConfig {
        MigrateConfig {
            admin_url: SecretString::from(self.admin_url("postgres")),
            operator_url: SecretString::from(self.url(migrate::OPERATOR_ROLE, &self.operator_password(), database)),
            runtime_url: SecretString::from(self.url(migrate::RUNTIME_ROLE, &self.runtime_password(), database)),
            wait_seconds: 60,
        }
    }

    fn operator_password(&self) -> String {
        format!("op-{}", self.password)
    }

    fn runtime_password(&self) -> String {
        format!("rt-{}", self.password)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The end of its standard input tells the script to clean up.
        drop(self.control.lock().unwrap_or_else(PoisonError::into_inner).take());
        let _ = self.process.wait();
    }
}

/// A migrated database, gone with its server.
#[derive(Clone, Debug)]
pub struct Database {
    server: Arc<Server>,
    name: String,
}

impl Database {
    /// A database on the server of this process.
    pub async fn create() -> Result<Database> {
        Self::create_on(Server::shared().await?).await
    }

    /// A database on this server.
    pub async fn create_on(server: Arc<Server>) -> Result<Database> {
        server
            .template
            .get_or_try_init(async || {
                migrate::run(&server.migrate_config("agentapi_template")).await.context("migrating the template")?;
                anyhow::Ok(())
            })
            .await?;
        Self::from_template(server, "agentapi_template").await
    }

    /// A copy with all rows; nobody may be connected to this one.
    pub async fn copy(&self) -> Result<Database> {
        Self::from_template(self.server.clone(), &self.name).await
    }

    async fn from_template(server: Arc<Server>, template: &str) -> Result<Database> {
        let name = format!("t{}", server.databases.fetch_add(1, Ordering::Relaxed));
        let mut admin = PgConnection::connect(&server.admin_url("postgres")).await?;
        admin
            .execute(AssertSqlSafe(format!("create database {name} template {template} owner agentapi_owner")))
            .await?;
        // Rights on a database are not part of its template.
        let mut connection = PgConnection::connect(&server.admin_url(&name)).await?;
        connection.execute("set role agentapi_owner").await?;
        connection.execute(migrate::DATABASE_RIGHTS).await?;
        connection.close().await?;
        admin.close().await?;
        Ok(Database { server, name })
    }

    /// Its server.
    pub fn server(&self) -> &Arc<Server> {
        &self.server
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// URL of the superuser.
    pub fn admin_url(&self) -> String {
        self.server.admin_url(&self.name)
    }

    /// URL of `agentapi_operator`.
    pub fn operator_url(&self) -> String {
        self.server.url(migrate::OPERATOR_ROLE, &self.server.operator_password(), &self.name)
    }

    /// URL of `agentapi_runtime`.
    pub fn runtime_url(&self) -> String {
        self.server.url(migrate::RUNTIME_ROLE, &self.server.runtime_password(), &self.name)
    }

    /// URL of an organization's read-only login.
    pub fn read_only_url(&self, organization: &Organization) -> String {
        self.server.url(&organization.read_only_role, &organization.read_only_password, &self.name)
    }

    /// One connection.
    pub async fn connect(&self, url: &str) -> Result<PgConnection> {
        Ok(PgConnection::connect(url).await?)
    }

    /// Runs statements with all rights; gives back how many rows they changed.
    pub async fn admin(&self, statements: &str) -> Result<u64> {
        let mut admin = PgConnection::connect(&self.admin_url()).await?;
        Ok(admin.execute(AssertSqlSafe(statements.to_owned())).await?.rows_affected())
    }

    /// The one value that a query gives to somebody with all rights.
    pub async fn scalar<T>(&self, query: &str) -> Result<T>
    where
        T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
    {
        let mut admin = PgConnection::connect(&self.admin_url()).await?;
        Ok(sqlx::query_scalar(AssertSqlSafe(query.to_owned())).fetch_one(&mut admin).await?)
    }

    /// An organization's read-only login as an attacker uses it: the setting that makes its transactions read-only is
    /// a courtesy which it may switch off.
    pub async fn connect_read_only(&self, organization: &Organization) -> Result<PgConnection> {
        let mut connection = self.connect(&self.read_only_url(organization)).await?;
        connection.execute("set default_transaction_read_only = off").await?;
        Ok(connection)
    }

    /// A name that no other test of this process uses.
    pub fn unique_slug(&self, prefix: &str) -> String {
        format!("{prefix}-{}", self.name)
    }
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0)
}

/// Where `initdb` and `postgres` are: `AGENTAPI_TEST_PG_BIN`, or Debian's place.
pub fn bin_dir() -> Result<PathBuf> {
    let candidates = std::env::var_os("AGENTAPI_TEST_PG_BIN")
        .map(PathBuf::from)
        .into_iter()
        .chain(["17", "16", "15"].map(|v| Path::new("/usr/lib/postgresql").join(v).join("bin")));
    candidates
        .into_iter()
        .find(|dir| dir.join("initdb").exists())
        .context("no Postgres found; apt-get install postgresql-15, or set AGENTAPI_TEST_PG_BIN to its bin directory")
}
