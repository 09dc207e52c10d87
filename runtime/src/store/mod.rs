//! All SQL of the API. A tenant's rows are reached through `Store::tenant_tx` and nothing else: the transaction takes
//! on the tenant's database role, and row-level security does the rest. May touch: Postgres.

pub mod audit;
pub mod cancellations;
pub mod clients;
pub mod connections;
pub mod identity;
pub mod isolation;
pub mod keys;
pub mod leader;
pub mod messages;
pub mod oauth;
pub mod observations;
mod phase;
pub mod prompts;
pub mod sessions;
mod shelf;
pub mod suspension;
pub mod users;
pub mod workspaces;

use std::sync::Arc;
use std::time::Duration;

use moka::future::Cache;
use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Executor, PgPool};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use uuid::Uuid;

use crate::auth::Role;
use identity::Organization;
use shelf::{Borrowed, Entry, Shelf};

/// Connections that are kept open.
const MIN_CONNECTIONS: u32 = 2;
/// A request that waits longer for a connection is answered with 503.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(8);
/// A connection that answers a word later than this is broken: a server that lost its power says nothing.
const ANSWER: Duration = Duration::from_secs(3);
/// For Postgres, which would give a replica whose machine is gone two hours: the lead that it has and its rows stay locked
/// meanwhile. Not among the options of the connection, which a pooler in front refuses.
const NOTICE_WHO_IS_GONE: &str = "set tcp_keepalives_idle = 10; set tcp_keepalives_interval = 5; \
    set tcp_keepalives_count = 3; set tcp_user_timeout = 30000";
/// How long a changed or deleted organization may go unnoticed where it is looked for by its slug.
const BY_SLUG_TTL: Duration = Duration::from_secs(3);
/// A request that waits longer behind others of its organization is answered with 429.
const SHARE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the database gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot be reached, or all connections are busy for too long.
    #[error("the database cannot be reached: {0}")]
    Unavailable(sqlx::Error),
    /// The tenant itself keeps all connections that it may have busy.
    #[error("the organization has too many requests at work")]
    TenantBusy,
    /// The tenant's role is gone: the organization was deleted.
    #[error("the organization's database role no longer exists")]
    TenantGone,
    /// The organization is being deleted and takes no new sessions.
    #[error("the organization is being deleted")]
    Leaving,
    /// A value that came from outside and that Postgres cannot hold, such as text with a NUL byte.
    #[error("the database cannot hold this value: {0}")]
    Value(sqlx::Error),
    /// A statement failed.
    #[error("database: {0}")]
    Database(sqlx::Error),
    /// A value in a row is not one that this version knows.
    #[error("unexpected value in the database: {0}")]
    Corrupt(&'static str),
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::Io(_) | sqlx::Error::Tls(_) => {
                Self::Unavailable(error)
            }
            sqlx::Error::Database(database) => match database.code().as_deref() {
                Some(code) if is_away(code) => Self::Unavailable(error),
                Some("55000") if database.constraint() == Some("sessions_not_while_draining") => Self::Leaving,
                // Data exceptions, and what a check or a length refuses.
                Some(code) if code.starts_with("22") || code == "23514" => Self::Value(error),
                _ => Self::Database(error),
            },
            _ => Self::Database(error),
        }
    }
}

/// The server is shutting down, crashed or starting (57P0x), the connection broke (08), there are too many (53300), or
/// this login or database does not exist yet (28, 3D000): `agentapi-operator migrate` makes them.
fn is_away(code: &str) -> bool {
    ["57P0", "08", "28"].iter().any(|class| code.starts_with(class)) || matches!(code, "53300" | "3D000")
}

/// Which rows a transaction may see.
#[derive(Debug, Clone, Copy)]
pub struct TenantScope<'a> {
    /// The tenant.
    pub organization: &'a Organization,
    /// The user; without one only an admin scope sees rows that belong to users.
    pub user_id: Option<Uuid>,
    /// Admins see all users' rows of the organization.
    pub role: Role,
    /// On behalf of the platform and not of somebody of the tenant: does not wait behind the tenant's own requests.
    pub platform: bool,
}

impl<'a> TenantScope<'a> {
    /// The platform itself at work for a tenant, such as the loop that ends idle sessions.
    pub fn system(organization: &'a Organization) -> Self {
        Self { organization, user_id: None, role: Role::Admin, platform: true }
    }
}

/// The database.
#[derive(Clone)]
pub struct Store {
    pool: PgPool,
    shelf: Arc<Shelf>,
    shares: Cache<Uuid, Arc<Semaphore>>,
    share: usize,
    by_slug: Cache<String, Arc<Organization>>,
}

/// A transaction that sees one tenant's rows. Dropping it rolls back.
pub struct TenantTx {
    tx: Borrowed,
    /// The tenant's share of connections is one smaller while this lives.
    _share: Option<OwnedSemaphorePermit>,
    organization_id: Uuid,
    user_id: Option<Uuid>,
    role: Role,
}

impl Store {
    /// Sets up the pool; connections are made when they are needed.
    pub fn connect(url: &SecretString, max_connections: u32) -> Result<Self, StoreError> {
        let options: PgConnectOptions = url.expose_secret().parse()?;
        let options = options.application_name("agentapi-runtime");
        let pool = PgPoolOptions::new()
            .max_connections(max_connections)
            // Made in the background: a probe or a request that gives up must not take a half-made connection with it.
            .min_connections(MIN_CONNECTIONS.min(max_connections))
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .idle_timeout(Duration::from_secs(300))
            .after_connect(|connection, _| {
                Box::pin(async move { connection.execute(NOTICE_WHO_IS_GONE).await.map(drop) })
            })
            .connect_lazy_with(options);
        let shelf = Arc::new(Shelf::new(pool.clone(), max_connections));
        // One tenant's burst must leave connections for the others.
        let share = (shelf.limit() / 2).max(1);
        let shares = Cache::builder().max_capacity(10_000).build();
        let by_slug = Cache::builder().max_capacity(10_000).time_to_live(BY_SLUG_TTL).build();
        Ok(Self { pool, shelf, shares, share, by_slug })
    }

    /// Whether the database answers.
    pub async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query("select 1").execute(&self.pool).await?;
        Ok(())
    }

    /// Closes the pool.
    pub async fn close(&self) {
        self.shelf.clear();
        self.pool.close().await;
    }

    /// Begins a transaction as the tenant's role.
    pub async fn tenant_tx(&self, scope: &TenantScope<'_>) -> Result<TenantTx, StoreError> {
        let share = if scope.platform { None } else { Some(self.share_of(scope.organization.id).await?) };
        let entry = Entry {
            organization: scope.organization.id,
            role_name: &scope.organization.role_name,
            user_id: scope.user_id,
            role: scope.role,
        };
        let tx = self.shelf.begin(&entry, ACQUIRE_TIMEOUT).await.map_err(role_gone)?;
        let (organization_id, user_id, role) = (scope.organization.id, scope.user_id, scope.role);
        Ok(TenantTx { tx, _share: share, organization_id, user_id, role })
    }

    async fn share_of(&self, organization: Uuid) -> Result<OwnedSemaphorePermit, StoreError> {
        let share = self.shares.get_with(organization, async { Arc::new(Semaphore::new(self.share)) }).await;
        match tokio::time::timeout(SHARE_TIMEOUT, share.acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) | Err(_) => Err(StoreError::TenantBusy),
        }
    }
}

/// Taking on a role that was dropped or revoked.
fn role_gone(error: sqlx::Error) -> StoreError {
    match error.as_database_error().and_then(|database| database.code().map(std::borrow::Cow::into_owned)).as_deref() {
        Some("22023" | "42704" | "42501") => StoreError::TenantGone,
        _ => error.into(),
    }
}

impl TenantTx {
    /// Makes the changes last.
    pub async fn commit(self) -> Result<(), StoreError> {
        Ok(self.tx.commit().await?)
    }

    /// The tenant.
    pub fn organization_id(&self) -> Uuid {
        self.organization_id
    }

    /// One at a time within the organization, until the transaction ends.
    pub async fn lock_organization(&mut self) -> Result<(), StoreError> {
        sqlx::query("select app.lock_organization()").execute(&mut *self.tx).await?;
        Ok(())
    }

    /// For a few statements within a user's transaction that must see the whole organization, such as counting for
    /// a quota. `end_widened` goes back.
    async fn widen(&mut self) -> Result<(), StoreError> {
        self.set_role(Role::Admin).await
    }

    async fn end_widened(&mut self) -> Result<(), StoreError> {
        self.set_role(self.role).await
    }

    async fn set_role(&mut self, role: Role) -> Result<(), StoreError> {
        sqlx::query("select set_config('app.user_role', $1, true)").bind(role.as_str()).execute(&mut *self.tx).await?;
        Ok(())
    }
}
