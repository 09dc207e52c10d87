//! Clients that were registered at providers. Only an admin scope sees them. May touch: `oauth_clients`.

use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::crypto::sealed::Sealed;
use crate::store::{StoreError, TenantTx};

/// A registered client.
#[derive(Debug)]
pub struct ClientRow {
    /// Its connection.
    pub connection: Uuid,
    /// Where it is registered.
    pub issuer: String,
    /// Where it is sent back to.
    pub redirect_uri: String,
    /// Id and secret, sealed.
    pub sealed: Vec<u8>,
    /// Whether its secret has not ended.
    pub alive: bool,
}

fn client(row: &PgRow) -> Result<ClientRow, sqlx::Error> {
    Ok(ClientRow {
        connection: row.try_get("connection_id")?,
        issuer: row.try_get("issuer")?,
        redirect_uri: row.try_get("redirect_uri")?,
        sealed: row.try_get("client_ciphertext")?,
        alive: row.try_get("alive")?,
    })
}

impl TenantTx {
    /// The client of a connection.
    pub async fn oauth_client(&mut self, connection: Uuid) -> Result<Option<ClientRow>, StoreError> {
        let row = sqlx::query(
            "select connection_id, issuer, redirect_uri, client_ciphertext,
                    coalesce(expires_at > now() + interval '1 minute', true) as alive
             from oauth_clients where org_id = $1 and connection_id = $2",
        )
        .bind(self.organization_id)
        .bind(connection)
        .fetch_optional(&mut *self.tx)
        .await?;
        Ok(row.as_ref().map(client).transpose()?)
    }

    /// Stores a client in place of the one before. `expires_at` is in seconds since 1970.
    pub async fn put_oauth_client(
        &mut self,
        connection: Uuid,
        issuer: &str,
        redirect_uri: &str,
        sealed: &Sealed,
        expires_at: Option<i64>,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "insert into oauth_clients (org_id, connection_id, issuer, redirect_uri, client_ciphertext, key_id,
                 key_version, expires_at)
             values ($1, $2, $3, $4, $5, $6, $7, to_timestamp($8::bigint))
             on conflict (org_id, connection_id) do update set issuer = excluded.issuer,
                 redirect_uri = excluded.redirect_uri, client_ciphertext = excluded.client_ciphertext,
                 key_id = excluded.key_id, key_version = excluded.key_version, expires_at = excluded.expires_at",
        )
        .bind(self.organization_id)
        .bind(connection)
        .bind(issuer)
        .bind(redirect_uri)
        .bind(&sealed.bytes)
        .bind(&sealed.key_id)
        .bind(sealed.key_version)
        .bind(expires_at)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Some clients of connections after this one that another version of the data key has sealed, locked until the
    /// transaction ends.
    pub async fn clients_of_other_versions(
        &mut self,
        version: i32,
        after: Uuid,
        limit: i64,
    ) -> Result<Vec<ClientRow>, StoreError> {
        let rows = sqlx::query(
            "select connection_id, issuer, redirect_uri, client_ciphertext, true as alive from oauth_clients
             where org_id = $1 and key_version <> $2 and connection_id > $3
             order by connection_id limit $4 for update skip locked",
        )
        .bind(self.organization_id)
        .bind(version)
        .bind(after)
        .bind(limit)
        .fetch_all(&mut *self.tx)
        .await?;
        Ok(rows.iter().map(client).collect::<Result<_, _>>()?)
    }

    /// The same client, sealed anew.
    pub async fn reseal_oauth_client(&mut self, connection: Uuid, sealed: &Sealed) -> Result<(), StoreError> {
        sqlx::query(
            "update oauth_clients set client_ciphertext = $3, key_version = $4 where org_id = $1 and connection_id = $2",
        )
        .bind(self.organization_id)
        .bind(connection)
        .bind(&sealed.bytes)
        .bind(sealed.key_version)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }
}
