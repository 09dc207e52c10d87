//! Clients of MCP servers that users have opened. May touch: `mcp_clients`.

use serde_json::Value;
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::{StoreError, TenantTx};

/// A client.
#[derive(Debug, Clone)]
pub struct StoredClient {
    /// Row id.
    pub id: Uuid,
    /// Whose server it talks to.
    pub connection_id: Uuid,
    /// The user who opened it.
    pub user_id: Uuid,
    /// Generation of the connection that it was opened with.
    pub generation: i64,
    /// The session with the server.
    pub session: Value,
    /// RFC 3339, UTC.
    pub created_at: String,
    /// RFC 3339, UTC.
    pub used_at: String,
}

/// Columns of [`StoredClient`]; `sqlx::query` takes literals only, hence a macro.
macro_rules! select_client {
    ($rest:literal) => {
        concat!(
            "select id, connection_id, user_id, generation, session,
                    to_char(created_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"') as created_at,
                    to_char(used_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"') as used_at
             from mcp_clients ",
            $rest
        )
    };
}

impl StoredClient {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            id: row.try_get("id")?,
            connection_id: row.try_get("connection_id")?,
            user_id: row.try_get("user_id")?,
            generation: row.try_get("generation")?,
            session: row.try_get("session")?,
            created_at: row.try_get("created_at")?,
            used_at: row.try_get("used_at")?,
        })
    }
}

impl TenantTx {
    /// Keeps a client of the scope's user.
    pub async fn insert_client(
        &mut self,
        id: Uuid,
        connection: Uuid,
        generation: i64,
        session: &Value,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "insert into mcp_clients (org_id, id, connection_id, user_id, generation, session)
             values ($1, $2, $3, $4, $5, $6)",
        )
        .bind(self.organization_id)
        .bind(id)
        .bind(connection)
        .bind(self.user_id)
        .bind(generation)
        .bind(session)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// A client that the scope may see.
    pub async fn client(&mut self, id: Uuid) -> Result<Option<StoredClient>, StoreError> {
        let row = sqlx::query(select_client!("where id = $1")).bind(id).fetch_optional(&mut *self.tx).await?;
        Ok(row.as_ref().map(StoredClient::from_row).transpose()?)
    }

    /// Newest first.
    pub async fn clients(
        &mut self,
        connection: Option<Uuid>,
        before: Option<Uuid>,
        limit: i64,
    ) -> Result<Vec<StoredClient>, StoreError> {
        let rows = sqlx::query(select_client!(
            "where ($1::uuid is null or connection_id = $1) and ($2::uuid is null or id < $2) order by id desc limit $3"
        ))
        .bind(connection)
        .bind(before)
        .bind(limit)
        .fetch_all(&mut *self.tx)
        .await?;
        Ok(rows.iter().map(StoredClient::from_row).collect::<Result<_, _>>()?)
    }

    /// How many the scope's user has.
    pub async fn count_clients(&mut self) -> Result<i64, StoreError> {
        let count = sqlx::query_scalar("select count(*) from mcp_clients where user_id = $1");
        Ok(count.bind(self.user_id).fetch_one(&mut *self.tx).await?)
    }

    /// The client is used, perhaps with another session than before. Written at most every minute.
    pub async fn client_used(&mut self, id: Uuid, generation: i64, session: &Value) -> Result<(), StoreError> {
        sqlx::query(
            "update mcp_clients set used_at = now(), generation = $2, session = $3
             where id = $1 and (generation <> $2 or session <> $3 or used_at < now() - interval '1 minute')",
        )
        .bind(id)
        .bind(generation)
        .bind(session)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Forgets a client. False: there is none.
    pub async fn delete_client(&mut self, id: Uuid) -> Result<bool, StoreError> {
        let done = sqlx::query("delete from mcp_clients where id = $1").bind(id).execute(&mut *self.tx).await?;
        Ok(done.rows_affected() == 1)
    }

    /// Forgets clients that nobody has used for a day.
    pub async fn delete_idle_clients(&mut self) -> Result<(), StoreError> {
        sqlx::query("delete from mcp_clients where used_at < now() - interval '1 day'").execute(&mut *self.tx).await?;
        Ok(())
    }
}
