//! Consents that are under way: written once, taken once, ten minutes. May touch: `oauth_states`.

use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::crypto::sealed::Sealed;
use crate::store::{StoreError, TenantTx};

/// A consent under way.
#[derive(Debug)]
pub struct StateRow {
    /// For this connection.
    pub connection: Uuid,
    /// By this user.
    pub user: Uuid,
    /// Where the user comes back to.
    pub redirect_uri: String,
    /// What the answer is compared with, sealed.
    pub sealed: Vec<u8>,
}

fn state(row: &PgRow) -> Result<StateRow, sqlx::Error> {
    Ok(StateRow {
        connection: row.try_get("connection_id")?,
        user: row.try_get("user_id")?,
        redirect_uri: row.try_get("redirect_uri")?,
        sealed: row.try_get("pkce_ciphertext")?,
    })
}

impl TenantTx {
    /// Begins a consent; gives back when it ends (RFC 3339).
    pub async fn add_state(
        &mut self,
        hash: &[u8; 32],
        connection: Uuid,
        user: Uuid,
        sealed: &Sealed,
        redirect_uri: &str,
    ) -> Result<String, StoreError> {
        Ok(sqlx::query_scalar(
            "insert into oauth_states (org_id, state_hash, connection_id, user_id, pkce_ciphertext, redirect_uri,
                 created_at, expires_at)
             values ($1, $2, $3, $4, $5, $6, now(), now() + interval '10 minutes')
             returning to_char(expires_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')",
        )
        .bind(self.organization_id)
        .bind(hash.as_slice())
        .bind(connection)
        .bind(user)
        .bind(&sealed.bytes)
        .bind(redirect_uri)
        .fetch_one(&mut *self.tx)
        .await?)
    }

    /// A consent that has not ended.
    pub async fn state(&mut self, hash: &[u8; 32]) -> Result<Option<StateRow>, StoreError> {
        let row = sqlx::query(
            "select connection_id, user_id, redirect_uri, pkce_ciphertext from oauth_states
             where org_id = $1 and state_hash = $2 and expires_at > now()",
        )
        .bind(self.organization_id)
        .bind(hash.as_slice())
        .fetch_optional(&mut *self.tx)
        .await?;
        Ok(row.as_ref().map(state).transpose()?)
    }

    /// The same, and it can't be taken again.
    pub async fn take_state(&mut self, hash: &[u8; 32]) -> Result<Option<StateRow>, StoreError> {
        let row = sqlx::query(
            "delete from oauth_states where org_id = $1 and state_hash = $2 and expires_at > now()
             returning connection_id, user_id, redirect_uri, pkce_ciphertext",
        )
        .bind(self.organization_id)
        .bind(hash.as_slice())
        .fetch_optional(&mut *self.tx)
        .await?;
        Ok(row.as_ref().map(state).transpose()?)
    }

    /// How many consents of a user are under way.
    pub async fn states_of(&mut self, user: Uuid) -> Result<i64, StoreError> {
        Ok(sqlx::query_scalar(
            "select count(*) from oauth_states where org_id = $1 and user_id = $2 and expires_at > now()",
        )
        .bind(self.organization_id)
        .bind(user)
        .fetch_one(&mut *self.tx)
        .await?)
    }

    /// Forgets those that have ended.
    pub async fn forget_states(&mut self) -> Result<u64, StoreError> {
        let done = sqlx::query("delete from oauth_states where org_id = $1 and expires_at <= now()")
            .bind(self.organization_id)
            .execute(&mut *self.tx)
            .await?;
        Ok(done.rows_affected())
    }
}
