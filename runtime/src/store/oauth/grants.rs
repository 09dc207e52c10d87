//! What a user, or an admin for all of an organization, has allowed at a provider. May touch: `mcp_oauth_tokens`.

use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::crypto::sealed::Sealed;
use crate::store::{StoreError, TenantTx};

/// One grant. Seconds are from now, by the clock of Postgres.
#[derive(Debug, Clone)]
pub struct GrantRow {
    /// Row id.
    pub id: Uuid,
    /// Its connection.
    pub connection: Uuid,
    /// Whose; none: the organization's.
    pub user: Option<Uuid>,
    /// Sealed access token; none when the grant is revoked.
    pub access: Option<Vec<u8>>,
    /// Sealed refresh token, if there is one.
    pub refresh: Option<Vec<u8>>,
    /// The provider that gave it.
    pub issuer: Option<String>,
    /// The MCP server that it is for.
    pub resource: Option<String>,
    /// What the provider calls that server, if it has a name for it.
    pub audience: Option<String>,
    /// How often it was exchanged.
    pub refreshes: i64,
    /// How long the access token is good; none: the provider does not say.
    pub seconds_left: Option<f64>,
    /// When the provider may be asked again, if it failed.
    pub retry_in: Option<f64>,
    /// Whether somebody is at the provider with the refresh token.
    pub leased: bool,
    /// Whether it was revoked, here or there.
    pub revoked: bool,
}

/// Tokens as they are stored.
#[derive(Debug)]
pub struct SealedTokens {
    /// Access token.
    pub access: Sealed,
    /// Refresh token.
    pub refresh: Option<Sealed>,
    /// How long the access token is good.
    pub expires_in: Option<f64>,
    /// What it is good for; none: as before.
    pub scopes: Option<Vec<String>>,
}

/// Which grant a consent makes.
#[derive(Debug)]
pub struct NewGrant<'a> {
    /// For this connection.
    pub connection: Uuid,
    /// Of this user; none: of the organization.
    pub user: Option<Uuid>,
    /// From this provider.
    pub issuer: &'a str,
    /// For this MCP server.
    pub resource: &'a str,
    /// What the provider calls that server, if it has a name for it.
    pub audience: Option<&'a str>,
}

/// How the grants of a connection stand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GrantCounts {
    /// Good, or can be refreshed.
    pub live: i64,
    /// Good, can't be refreshed, and end soon.
    pub ending: i64,
    /// Revoked.
    pub revoked: i64,
}

/// Columns of [`GrantRow`]; `sqlx::query` takes literals only, hence a macro.
macro_rules! select_grant {
    ($rest:literal) => {
        concat!(
            "select id, connection_id, user_id, access_ciphertext, refresh_ciphertext, issuer, resource, audience,
                    refreshes,                    extract(epoch from expires_at - now())::float8 as seconds_left,
                    extract(epoch from retry_at - now())::float8 as retry_in,
                    coalesce(lease_until > now(), false) as leased, revoked_at is not null as revoked
             from mcp_oauth_tokens ",
            $rest
        )
    };
}

fn grant(row: &PgRow) -> Result<GrantRow, sqlx::Error> {
    Ok(GrantRow {
        id: row.try_get("id")?,
        connection: row.try_get("connection_id")?,
        user: row.try_get("user_id")?,
        access: row.try_get("access_ciphertext")?,
        refresh: row.try_get("refresh_ciphertext")?,
        issuer: row.try_get("issuer")?,
        resource: row.try_get("resource")?,
        audience: row.try_get("audience")?,
        refreshes: row.try_get("refreshes")?,
        seconds_left: row.try_get("seconds_left")?,
        retry_in: row.try_get("retry_in")?,
        leased: row.try_get("leased")?,
        revoked: row.try_get("revoked")?,
    })
}

impl TenantTx {
    /// The grant that a user's calls go with: their own before the organization's, a live one before a revoked one.
    pub async fn grant(&mut self, connection: Uuid, user: Option<Uuid>) -> Result<Option<GrantRow>, StoreError> {
        let row = sqlx::query(select_grant!(
            "where org_id = $1 and connection_id = $2 and (user_id = $3 or user_id is null)
             order by revoked_at is not null, user_id nulls last limit 1"
        ))
        .bind(self.organization_id)
        .bind(connection)
        .bind(user)
        .fetch_optional(&mut *self.tx)
        .await?;
        Ok(row.as_ref().map(grant).transpose()?)
    }

    /// Exactly this user's grant, or exactly the organization's, locked until the transaction ends.
    pub async fn own_grant(&mut self, connection: Uuid, user: Option<Uuid>) -> Result<Option<GrantRow>, StoreError> {
        let row = sqlx::query(select_grant!(
            "where org_id = $1 and connection_id = $2 and user_id is not distinct from $3 for update"
        ))
        .bind(self.organization_id)
        .bind(connection)
        .bind(user)
        .fetch_optional(&mut *self.tx)
        .await?;
        Ok(row.as_ref().map(grant).transpose()?)
    }

    /// Stores what a consent has brought; whatever was there before is gone.
    pub async fn put_grant(&mut self, new: &NewGrant<'_>, tokens: &SealedTokens) -> Result<(), StoreError> {
        sqlx::query(
            "insert into mcp_oauth_tokens as t (org_id, id, connection_id, user_id, access_ciphertext,
                 refresh_ciphertext, key_id, key_version, scopes, expires_at, issuer, resource, audience)
             values ($1, $2, $3, $4, $5, $6, $7, $8, coalesce($9::text[], '{}'), now() + $10 * interval '1 second', $11, $12, $13)
             on conflict on constraint mcp_oauth_tokens_one_each do update set
                 access_ciphertext = excluded.access_ciphertext, refresh_ciphertext = excluded.refresh_ciphertext,
                 key_id = excluded.key_id, key_version = excluded.key_version, scopes = excluded.scopes,
                 expires_at = excluded.expires_at, issuer = excluded.issuer, resource = excluded.resource,
                 audience = excluded.audience,                 refreshes = t.refreshes + 1, lease = null, lease_until = null, failures = 0, retry_at = null,
                 revoked_at = null",
        )
        .bind(self.organization_id)
        .bind(Uuid::now_v7())
        .bind(new.connection)
        .bind(new.user)
        .bind(&tokens.access.bytes)
        .bind(tokens.refresh.as_ref().map(|sealed| &sealed.bytes))
        .bind(&tokens.access.key_id)
        .bind(tokens.access.key_version)
        .bind(&tokens.scopes)
        .bind(tokens.expires_in)
        .bind(new.issuer)
        .bind(new.resource)
        .bind(new.audience)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Takes the right to go to the provider with the refresh token; `seen` is the grant as the caller knows it. False:
    /// somebody else has it or has been there since, or the provider is given a pause.
    pub async fn lease_grant(&mut self, seen: &GrantRow, lease: Uuid, seconds: f64) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "update mcp_oauth_tokens set lease = $4, lease_until = now() + $5 * interval '1 second'
             where org_id = $1 and id = $2 and refreshes = $3 and revoked_at is null
               and (lease_until is null or lease_until <= now()) and (retry_at is null or retry_at <= now())",
        )
        .bind(self.organization_id)
        .bind(seen.id)
        .bind(seen.refreshes)
        .bind(lease)
        .bind(seconds)
        .execute(&mut *self.tx)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Stores what the holder of the lease has brought. False: the lease is another's, or the grant was revoked.
    pub async fn renew_grant(&mut self, id: Uuid, lease: Uuid, tokens: &SealedTokens) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "update mcp_oauth_tokens set access_ciphertext = $4, refresh_ciphertext = $5, key_id = $6, key_version = $7,
                 scopes = coalesce($8::text[], scopes), expires_at = now() + $9 * interval '1 second',
                 refreshes = refreshes + 1, lease = null, lease_until = null, failures = 0, retry_at = null
             where org_id = $1 and id = $2 and lease = $3 and revoked_at is null",
        )
        .bind(self.organization_id)
        .bind(id)
        .bind(lease)
        .bind(&tokens.access.bytes)
        .bind(tokens.refresh.as_ref().map(|sealed| &sealed.bytes))
        .bind(&tokens.access.key_id)
        .bind(tokens.access.key_version)
        .bind(&tokens.scopes)
        .bind(tokens.expires_in)
        .execute(&mut *self.tx)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Gives the lease back after a failure of the provider. `wait` says how long, from the number of failures before.
    pub async fn pause_grant(
        &mut self,
        id: Uuid,
        lease: Uuid,
        wait: impl FnOnce(usize) -> f64,
    ) -> Result<Option<f64>, StoreError> {
        let failures: Option<i32> = sqlx::query_scalar(
            "select failures from mcp_oauth_tokens where org_id = $1 and id = $2 and lease = $3 for update",
        )
        .bind(self.organization_id)
        .bind(id)
        .bind(lease)
        .fetch_optional(&mut *self.tx)
        .await?;
        let Some(failures) = failures else { return Ok(None) };
        let seconds = wait(usize::try_from(failures).unwrap_or_default());
        sqlx::query(
            "update mcp_oauth_tokens set lease = null, lease_until = null, failures = failures + 1,
                 retry_at = now() + $3 * interval '1 second'
             where org_id = $1 and id = $2",
        )
        .bind(self.organization_id)
        .bind(id)
        .bind(seconds)
        .execute(&mut *self.tx)
        .await?;
        Ok(Some(seconds))
    }

    /// Takes the tokens out of a grant for good; the row stays to say so. With a lease: only while it is held.
    pub async fn erase_grant(&mut self, id: Uuid, lease: Option<Uuid>) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "update mcp_oauth_tokens set access_ciphertext = null, refresh_ciphertext = null, revoked_at = now(),
                 expires_at = null, lease = null, lease_until = null, failures = 0, retry_at = null
             where org_id = $1 and id = $2 and revoked_at is null and ($3::uuid is null or lease = $3)",
        )
        .bind(self.organization_id)
        .bind(id)
        .bind(lease)
        .execute(&mut *self.tx)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// How the grants of a connection stand; those that end within so many seconds are ending.
    pub async fn grant_counts(&mut self, connection: Uuid, soon: f64) -> Result<GrantCounts, StoreError> {
        let row = sqlx::query(
            "select count(*) filter (where revoked_at is null and not coalesce(ending, false)) as live,
                    count(*) filter (where ending and expires_at > now()) as ending,
                    count(*) filter (where revoked_at is not null) as revoked
             from (select revoked_at, expires_at, revoked_at is null and refresh_ciphertext is null
                          and expires_at <= now() + $3 * interval '1 second' as ending
                   from mcp_oauth_tokens where org_id = $1 and connection_id = $2) grants",
        )
        .bind(self.organization_id)
        .bind(connection)
        .bind(soon)
        .fetch_one(&mut *self.tx)
        .await?;
        Ok(GrantCounts { live: row.try_get("live")?, ending: row.try_get("ending")?, revoked: row.try_get("revoked")? })
    }

    /// Some grants with ids after this one that another version of the data key has sealed, locked until the transaction
    /// ends.
    pub async fn grants_of_other_versions(
        &mut self,
        version: i32,
        after: Uuid,
        limit: i64,
    ) -> Result<Vec<GrantRow>, StoreError> {
        let rows = sqlx::query(select_grant!(
            "where org_id = $1 and key_version <> $2 and id > $3 order by id limit $4 for update skip locked"
        ))
        .bind(self.organization_id)
        .bind(version)
        .bind(after)
        .bind(limit)
        .fetch_all(&mut *self.tx)
        .await?;
        Ok(rows.iter().map(grant).collect::<Result<_, _>>()?)
    }

    /// The same tokens, sealed anew.
    pub async fn reseal_grant(
        &mut self,
        id: Uuid,
        access: Option<&Sealed>,
        refresh: Option<&Sealed>,
        version: i32,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "update mcp_oauth_tokens set access_ciphertext = $3, refresh_ciphertext = $4, key_version = $5
             where org_id = $1 and id = $2",
        )
        .bind(self.organization_id)
        .bind(id)
        .bind(access.map(|sealed| &sealed.bytes))
        .bind(refresh.map(|sealed| &sealed.bytes))
        .bind(version)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }
}
