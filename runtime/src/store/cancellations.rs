//! Word from one replica to all of them that a request was cancelled. Postgres carries it and keeps nothing: whoever is
//! away meanwhile does not hear of it. May touch: one connection besides those of the pool.

use std::time::Duration;

use sqlx::Executor;
use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::time::timeout;

use super::{ACQUIRE_TIMEOUT, ANSWER, Store, StoreError, TenantTx};

const CHANNEL: &str = "agentapi_mcp_cancelled";
/// Whoever only listens never notices that the other side is gone: after this long without a word it is asked.
const QUIET: Duration = Duration::from_secs(30);

/// What all replicas say.
pub struct Cancellations(PgListener);

impl Store {
    /// Listens from now on.
    pub async fn cancellations(&self) -> Result<Cancellations, StoreError> {
        // Held for as long as the process runs: requests have the pool for themselves.
        let own = PgPoolOptions::new()
            .max_connections(1)
            .max_lifetime(None)
            .idle_timeout(None)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect_lazy_with(self.pool.connect_options().as_ref().clone());
        let mut listener = PgListener::connect_with(&own).await?;
        listener.listen(CHANNEL).await?;
        Ok(Cancellations(listener))
    }
}

impl Cancellations {
    /// The name of the next request that was cancelled.
    pub async fn next(&mut self) -> Result<String, StoreError> {
        loop {
            if let Ok(said) = timeout(QUIET, self.0.try_recv()).await {
                if let Some(said) = said? {
                    return Ok(said.payload().to_owned());
                }
                tracing::warn!("the connection was lost: of what was cancelled meanwhile nothing is heard");
            } else {
                timeout(ANSWER, self.0.execute("select 1")).await.map_err(|_| sqlx::Error::PoolTimedOut)??;
            }
        }
    }
}

impl TenantTx {
    /// Tells all replicas, this one too, when the transaction ends well.
    pub async fn tell_cancelled(&mut self, request: &str) -> Result<(), StoreError> {
        sqlx::query("select pg_notify($1, $2)").bind(CHANNEL).bind(request).execute(&mut *self.tx).await?;
        Ok(())
    }
}
