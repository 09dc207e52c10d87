//! The wrapped data keys of an organization. May touch: `tenant_keys`, reading.

use sqlx::Row;
use sqlx::postgres::PgRow;

use super::{StoreError, TenantTx};
use crate::crypto::WrappedKey;

impl TenantTx {
    /// All versions.
    pub async fn wrapped_keys(&mut self) -> Result<Vec<WrappedKey>, StoreError> {
        let rows = sqlx::query(
            "select version, wrapped, master_key_id, state = 'current' as current from tenant_keys where org_id = $1",
        )
        .bind(self.organization_id)
        .fetch_all(&mut *self.tx)
        .await?;
        let read = |row: &PgRow| -> Result<_, sqlx::Error> {
            Ok(WrappedKey {
                version: row.try_get("version")?,
                wrapped: row.try_get("wrapped")?,
                master_key_id: row.try_get("master_key_id")?,
                current: row.try_get("current")?,
            })
        };
        Ok(rows.iter().map(read).collect::<Result<_, _>>()?)
    }
}
