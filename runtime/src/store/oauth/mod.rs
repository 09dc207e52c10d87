//! OAuth: `grants` (tokens), `states` (consents under way) and `clients` (registered at providers). Ciphertexts only, and
//! all times are Postgres's own, so that replicas with different clocks agree. May touch: `mcp_connections` (reading),
//! `mcp_oauth_tokens`, `oauth_states`, `oauth_clients`.

pub mod clients;
pub mod grants;
pub mod states;

use serde_json::Value;
use sqlx::Row;
use uuid::Uuid;

use super::{StoreError, TenantTx};
use crate::mcp::connection::Origin;

/// What matters of a connection here.
#[derive(Debug)]
pub struct TargetRow {
    /// Row id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// Who says what it is.
    pub origin: Origin,
    /// Its spec.
    pub spec: Value,
    /// Address ranges that the organization opens.
    pub open: Vec<String>,
}

impl TenantTx {
    /// A connection.
    pub async fn oauth_target(&mut self, connection: Uuid) -> Result<Option<TargetRow>, StoreError> {
        let row = sqlx::query(
            "select c.id, c.name, c.origin, c.spec, to_jsonb(g) -> 'mcp_open_ranges' as open
             from mcp_connections c join organizations g on g.id = c.org_id where c.org_id = $1 and c.id = $2",
        )
        .bind(self.organization_id)
        .bind(connection)
        .fetch_optional(&mut *self.tx)
        .await?;
        let read = |row: sqlx::postgres::PgRow| -> Result<_, sqlx::Error> {
            let open: Option<Value> = row.try_get("open")?;
            Ok(TargetRow {
                id: row.try_get("id")?,
                name: row.try_get("name")?,
                // Whatever is not a resource's is an admin's.
                origin: if row.try_get::<&str, _>("origin")? == "crd" { Origin::Crd } else { Origin::Api },
                spec: row.try_get("spec")?,
                open: open.and_then(|open| serde_json::from_value(open).ok()).unwrap_or_default(),
            })
        };
        Ok(row.map(read).transpose()?)
    }
}
