//! Data keys of organizations: versions, wrapping them anew under another master key, and taking away what nothing
//! uses. Each function is one transaction or less, so that a kill between any two leaves a state that goes on.
use super::{
    Result, failed,
    organization::{Changes, Tenant, audit},
};
use crate::{envelope::MasterKeys, metrics::Metrics};
use serde_json::json;
use sqlx::{PgConnection, PgPool, Row, postgres::PgRow};
use uuid::Uuid;

/// Whoever read a version just before it was replaced has finished with it by then; states of OAuth live 10 minutes.
const SETTLED: &str = "1 hour";

/// A data key as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrappedKey {
    /// Version of the data key.
    pub version: i32,
    /// The wrapped bytes.
    pub wrapped: Vec<u8>,
    /// Which master key wrapped it.
    pub master_key_id: String,
}

/// All versions of an organization's data key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataKeys {
    /// The one that encrypts.
    pub current: WrappedKey,
    /// Those that only open, oldest first.
    pub previous: Vec<WrappedKey>,
}

impl DataKeys {
    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &WrappedKey> {
        std::iter::once(&self.current).chain(&self.previous)
    }

    /// Does each of them open for the organization?
    pub fn check(&self, organization: Uuid, master: &MasterKeys) -> Result<()> {
        for key in self.all() {
            master.unwrap(organization, key.version, &key.master_key_id, &key.wrapped)?;
        }
        Ok(())
    }
}

fn wrapped(row: &PgRow) -> sqlx::Result<WrappedKey> {
    Ok(WrappedKey {
        version: row.try_get("version")?,
        wrapped: row.try_get("wrapped")?,
        master_key_id: row.try_get("master_key_id")?,
    })
}

/// The organization's data keys: those that are stored; else those of its Secret (`kept`), for a database that was
/// restored from before it knew them; else a new one. A new version when the tenant asks for one.
pub(super) async fn ensure(
    tx: &mut PgConnection,
    tenant: &Tenant,
    master: &MasterKeys,
    kept: Option<DataKeys>,
    changes: &mut Changes<'_>,
) -> Result<DataKeys> {
    let stored = stored(tx, tenant.id).await?;
    let Some((keys, rotation)) = stored else {
        // Only keys that were wrapped for this organization open: nobody can slip in others.
        let keys = match kept.filter(|keys| keys.check(tenant.id, master).is_ok()) {
            Some(keys) => keys,
            None => DataKeys { current: fresh(tenant.id, 1, master)?, previous: Vec::new() },
        };
        for key in &keys.previous {
            store(tx, tenant, key, "previous").await?;
        }
        store(tx, tenant, &keys.current, "current").await?;
        changes.made("data_key");
        return Ok(keys);
    };
    if rotation == tenant.data_key_rotation {
        return Ok(keys);
    }
    let current = fresh(tenant.id, keys.current.version + 1, master)?;
    sqlx::query(
        "update tenant_keys set state = 'previous', retired_at = now() where org_id = $1 and state = 'current'",
    )
    .bind(tenant.id)
    .execute(&mut *tx)
    .await
    .map_err(failed("replace the data key"))?;
    store(tx, tenant, &current, "current").await?;
    let detail = json!({"version": current.version, "replaces": keys.current.version});
    audit(tx, tenant.id, &tenant.slug, "organization.rotate-data-key", detail).await?;
    changes.metrics.changed_database("data_key");
    let mut previous = keys.previous;
    previous.push(keys.current);
    Ok(DataKeys { current, previous })
}

async fn stored(tx: &mut PgConnection, organization: Uuid) -> Result<Option<(DataKeys, String)>> {
    let rows = sqlx::query(
        "select version, wrapped, master_key_id, state, rotation from tenant_keys where org_id = $1 order by version",
    )
    .bind(organization)
    .fetch_all(&mut *tx)
    .await
    .map_err(failed("read the data keys"))?;
    let (mut current, mut previous) = (None, Vec::new());
    for row in &rows {
        let key = wrapped(row).map_err(failed("read the data keys"))?;
        if row.try_get::<&str, _>("state").map_err(failed("read the data keys"))? == "current" {
            let rotation: String = row.try_get("rotation").map_err(failed("read the data keys"))?;
            current = Some((key, rotation));
        } else {
            previous.push(key);
        }
    }
    Ok(current.map(|(current, rotation)| (DataKeys { current, previous }, rotation)))
}

fn fresh(organization: Uuid, version: i32, master: &MasterKeys) -> Result<WrappedKey> {
    let key = master.current();
    Ok(WrappedKey { version, wrapped: key.wrap_new(organization, version)?, master_key_id: key.id().to_owned() })
}

async fn store(tx: &mut PgConnection, tenant: &Tenant, key: &WrappedKey, state: &str) -> Result<()> {
    sqlx::query(
        "insert into tenant_keys (org_id, version, wrapped, master_key_id, state, rotation, retired_at)
         values ($1, $2, $3, $4, $5, $6, case when $5 = 'previous' then now() end)",
    )
    .bind(tenant.id)
    .bind(key.version)
    .bind(&key.wrapped)
    .bind(&key.master_key_id)
    .bind(state)
    .bind(&tenant.data_key_rotation)
    .execute(&mut *tx)
    .await
    .map_err(failed("store a data key"))?;
    Ok(())
}

/// A data key that was wrapped anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewrapped {
    /// Its organization.
    pub organization: Uuid,
    /// Its version.
    pub version: i32,
}

/// Wrap one data key that the current master key did not wrap; `None` when there is none left. The row has the old
/// wrapping or the new one, and both master keys are known until no row has the old one.
pub async fn rewrap_next(pool: &PgPool, master: &MasterKeys, metrics: &Metrics) -> Result<Option<Rewrapped>> {
    let mut tx = pool.begin().await.map_err(failed("begin a transaction"))?;
    let row = sqlx::query(
        "select org_id, version, wrapped, master_key_id from tenant_keys where master_key_id <> $1
         order by org_id, version limit 1 for update skip locked",
    )
    .bind(master.current().id())
    .fetch_optional(&mut *tx)
    .await
    .map_err(failed("look for data keys to wrap anew"))?;
    let Some(row) = row else { return Ok(None) };
    let organization: Uuid = row.try_get("org_id").map_err(failed("read a data key"))?;
    let key = wrapped(&row).map_err(failed("read a data key"))?;
    let open = master.unwrap(organization, key.version, &key.master_key_id, &key.wrapped)?;
    sqlx::query("update tenant_keys set wrapped = $3, master_key_id = $4 where org_id = $1 and version = $2")
        .bind(organization)
        .bind(key.version)
        .bind(master.current().wrap(organization, key.version, &open)?)
        .bind(master.current().id())
        .execute(&mut *tx)
        .await
        .map_err(failed("wrap a data key anew"))?;
    tx.commit().await.map_err(failed("commit"))?;
    metrics.changed_database("data_key");
    Ok(Some(Rewrapped { organization, version: key.version }))
}

/// How many data keys each master key wraps, by the master key's id.
pub async fn wrapped_by(pool: &PgPool) -> Result<Vec<(String, i64)>> {
    sqlx::query_as("select master_key_id, count(*) from tenant_keys group by 1 order by 1")
        .fetch_all(pool)
        .await
        .map_err(failed("count the wrapped data keys"))
}

/// Take away versions that encrypted nothing that is still there. Says how many went, by organization.
pub async fn retire_unused(pool: &PgPool, metrics: &Metrics) -> Result<Vec<(Uuid, i32)>> {
    let gone: Vec<(Uuid, i32)> = sqlx::query_as(
        "delete from tenant_keys k where k.state = 'previous' and k.retired_at < now() - $1::interval
           and not exists (select 1 from mcp_oauth_tokens t where t.org_id = k.org_id and t.key_version = k.version)
           and not exists (select 1 from oauth_clients c where c.org_id = k.org_id and c.key_version = k.version)
         returning k.org_id, k.version",
    )
    .bind(SETTLED)
    .fetch_all(pool)
    .await
    .map_err(failed("remove unused data keys"))?;
    for _ in &gone {
        metrics.changed_database("data_key");
    }
    Ok(gone)
}
