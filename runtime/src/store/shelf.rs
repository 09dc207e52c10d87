//! Connections that stay with an organization between its transactions. Postgres plans a prepared statement again when the
//! role has changed since, which costs more than most statements do: so whoever comes next from the same organization gets
//! the connection that it had. May touch: connections of the pool.

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use scopeguard::ScopeGuard;
use sqlx::pool::PoolConnection;
use sqlx::{AssertSqlSafe, Executor, PgConnection, PgPool, Postgres};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use uuid::Uuid;

use super::ANSWER;
use crate::auth::Role;

/// A connection that its organization hasn't used for this long goes back to the pool, which closes idle ones.
const KEEP: Duration = Duration::from_secs(30);
/// Connections of the pool that tenants never take: for leaderships, which keep theirs, and for statements without a tenant.
const RESERVED: usize = 5;

/// The tenants' part of the pool.
pub(super) struct Shelf {
    pool: PgPool,
    /// One for each transaction of a tenant at work.
    turns: Arc<Semaphore>,
    limit: usize,
    /// Least recently used first.
    kept: Mutex<VecDeque<Kept>>,
}

struct Kept {
    organization: Uuid,
    since: Instant,
    connection: PoolConnection<Postgres>,
}

/// A connection with a transaction on it. Dropping it rolls back.
pub(super) struct Borrowed(ScopeGuard<Loan, fn(Loan)>);

struct Loan {
    connection: PoolConnection<Postgres>,
    organization: Uuid,
    shelf: Arc<Shelf>,
    turn: OwnedSemaphorePermit,
}

impl Shelf {
    pub(super) fn new(pool: PgPool, max_connections: u32) -> Self {
        let max = usize::try_from(max_connections).unwrap_or(usize::MAX);
        let limit = (max - RESERVED.min(max / 2)).max(1);
        Self { pool, turns: Arc::new(Semaphore::new(limit)), limit, kept: Mutex::default() }
    }

    /// How many transactions of tenants run at the same time.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// Begins a transaction, waiting for a connection no longer than `patience`.
    pub(super) async fn begin(self: &Arc<Self>, entry: &Entry<'_>, patience: Duration) -> sqlx::Result<Borrowed> {
        let organization = entry.organization;
        let turn = tokio::time::timeout(patience, Arc::clone(&self.turns).acquire_owned());
        let turn = turn.await.map_err(|_| sqlx::Error::PoolTimedOut)?.map_err(|_| sqlx::Error::PoolClosed)?;
        let lend = |connection, turn| {
            Borrowed(scopeguard::guard(
                Loan { connection, organization, shelf: Arc::clone(self), turn },
                Loan::roll_back as fn(Loan),
            ))
        };
        let Some(kept) = self.take(organization) else {
            return entry.begun(lend(self.pool.acquire().await?, turn), patience).await;
        };
        let mut borrowed = lend(kept, turn);
        match tokio::time::timeout(ANSWER, entry.begin(&mut borrowed)).await {
            Ok(Ok(())) => return Ok(borrowed),
            Ok(Err(error)) if !is_broken(&error) => return Err(error),
            Ok(Err(_)) | Err(_) => {}
        }
        // Postgres went away since this one was used.
        let Loan { mut connection, turn, .. } = ScopeGuard::into_inner(borrowed.0);
        connection.close_on_drop();
        drop(connection);
        // The others that are kept will be broken too; the pool looks before it gives.
        self.clear();
        entry.begun(lend(self.pool.acquire().await?, turn), patience).await
    }

    /// The connection that the organization had, or when the pool has no more for tenants that of whoever has not used
    /// theirs for the longest time.
    fn take(&self, organization: Uuid) -> Option<PoolConnection<Postgres>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = kept.iter().rposition(|it| it.organization == organization) {
            return kept.remove(own).map(|it| it.connection);
        }
        let at_work = self.limit.saturating_sub(self.turns.available_permits());
        let full = at_work + kept.len() > self.limit;
        if full { kept.pop_front().map(|it| it.connection) } else { None }
    }

    fn put(&self, organization: Uuid, connection: PoolConnection<Postgres>) {
        if self.pool.is_closed() {
            return;
        }
        let since = Instant::now();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_back(Kept { organization, since, connection });
        let old = kept.iter().take_while(|it| since.duration_since(it.since) > KEEP).count();
        let old: Vec<Kept> = kept.drain(..old).collect();
        drop(kept);
        drop(old);
    }

    /// Gives all back to the pool.
    pub(super) fn clear(&self) {
        let kept = std::mem::take(&mut *self.kept.lock().unwrap_or_else(PoisonError::into_inner));
        drop(kept);
    }
}

/// As whom a transaction begins.
pub(super) struct Entry<'a> {
    pub(super) organization: Uuid,
    pub(super) role_name: &'a str,
    pub(super) user_id: Option<Uuid>,
    pub(super) role: Role,
}

impl Entry<'_> {
    async fn begun(&self, mut fresh: Borrowed, patience: Duration) -> sqlx::Result<Borrowed> {
        let begun = tokio::time::timeout(patience, self.begin(&mut fresh)).await;
        begun.map_err(|_| sqlx::Error::PoolTimedOut)??;
        Ok(fresh)
    }

    async fn begin(&self, connection: &mut PgConnection) -> sqlx::Result<()> {
        connection.execute(AssertSqlSafe(self.statement())).await?;
        Ok(())
    }

    /// All in one round trip. The settings end with the transaction, so a connection carries nothing over to the next
    /// tenant. `set local` would do the same, but pg_stat_statements keeps each value of it as a statement of its own.
    fn statement(&self) -> String {
        let role_name = self.role_name.replace('\'', "''");
        let user_id = self.user_id.map(|id| id.to_string()).unwrap_or_default();
        let role = self.role.as_str();
        format!(
            "begin; select set_config('role', '{role_name}', true), set_config('app.user_id', '{user_id}', true), \
             set_config('app.user_role', '{role}', true)"
        )
    }
}

/// Postgres was shut down, or the network between is gone.
fn is_broken(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) => true,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| code.starts_with("57P0")),
        _ => false,
    }
}

impl Borrowed {
    pub(super) async fn commit(mut self) -> sqlx::Result<()> {
        self.execute("commit").await?;
        self.end();
        Ok(())
    }

    pub(super) async fn rollback(mut self) -> sqlx::Result<()> {
        self.execute("rollback").await?;
        self.end();
        Ok(())
    }

    fn end(self) {
        let Loan { connection, organization, shelf, turn } = ScopeGuard::into_inner(self.0);
        shelf.put(organization, connection);
        drop(turn);
    }
}

impl Loan {
    /// In the background, since what was dropped can't wait; the turn lasts until it is done.
    fn roll_back(mut self) {
        let Ok(runtime) = Handle::try_current() else {
            self.connection.close_on_drop();
            return;
        };
        runtime.spawn(async move {
            if let Ok(Ok(_)) = tokio::time::timeout(ANSWER, self.connection.execute("rollback")).await {
                self.shelf.put(self.organization, self.connection);
            } else {
                self.connection.close_on_drop();
            }
            drop(self.turn);
        });
    }
}

impl Deref for Borrowed {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.0.connection
    }
}

impl DerefMut for Borrowed {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.0.connection
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_of_a_role_ends_its_quotes() {
        let entry = Entry {
            organization: Uuid::nil(),
            role_name: "x', true); set role 'postgres",
            user_id: Some(Uuid::nil()),
            role: Role::User,
        };
        assert_eq!(
            entry.statement(),
            "begin; select set_config('role', 'x'', true); set role ''postgres', true), \
             set_config('app.user_id', '00000000-0000-0000-0000-000000000000', true), \
             set_config('app.user_role', 'user', true)"
        );
    }
}
