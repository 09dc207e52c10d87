//! One replica at a time: a Postgres advisory lock that lives as long as its connection. May touch: one connection of
//! the pool for as long as the lock is held.

use sqlx::Postgres;
use sqlx::pool::PoolConnection;
use tokio::time::timeout;

use super::{ANSWER, Store, StoreError};

/// First key of every advisory lock of this program; the second one names the job.
const NAMESPACE: i32 = 7001;
/// The session reconciler's job.
pub const SESSION_RECONCILER: i32 = 1;
/// The job of whoever looks at MCP servers.
pub const MCP_PROBER: i32 = 3;
/// The upkeep of OAuth's rows.
pub const OAUTH_UPKEEP: i32 = 2;

/// Held while this value lives and its connection works.
pub struct Leadership {
    connection: PoolConnection<Postgres>,
    job: i32,
}

impl Store {
    /// Takes the lock if nobody has it.
    pub async fn try_lead(&self, job: i32) -> Result<Option<Leadership>, StoreError> {
        let mut connection = self.pool.acquire().await?;
        // A session-level lock outlives whoever forgets it: this connection never goes back to the pool.
        connection.close_on_drop();
        let locked: bool = sqlx::query_scalar("select pg_try_advisory_lock($1, $2)")
            .bind(NAMESPACE)
            .bind(job)
            .fetch_one(&mut *connection)
            .await?;
        Ok(locked.then_some(Leadership { connection, job }))
    }
}

impl Leadership {
    /// Whether the connection, and with it the lock, is still there.
    pub async fn confirm(&mut self) -> Result<(), StoreError> {
        let answer = timeout(ANSWER, sqlx::query("select 1").execute(&mut *self.connection)).await;
        answer.map_err(|_| sqlx::Error::PoolTimedOut)??;
        Ok(())
    }

    /// Gives the lock to the next replica at once.
    pub async fn resign(mut self) -> Result<(), StoreError> {
        sqlx::query("select pg_advisory_unlock($1, $2)")
            .bind(NAMESPACE)
            .bind(self.job)
            .execute(&mut *self.connection)
            .await?;
        Ok(())
    }
}
