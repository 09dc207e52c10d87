//! The audit log. Rows are added in the transaction of the change that they record; Postgres numbers, stamps and
//! chains them. May touch: `audit_log`.

use serde_json::Value;
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::{StoreError, TenantTx};
use crate::audit::Entry;

/// A row of the audit log.
#[derive(Debug, Clone)]
pub struct AuditRow {
    /// Place in the organization's chain.
    pub seq: i64,
    /// RFC 3339, UTC.
    pub at: String,
    /// Who.
    pub actor: String,
    /// Did what.
    pub action: String,
    /// To what kind of thing.
    pub target_kind: String,
    /// To which one.
    pub target_id: Option<String>,
    /// In which request.
    pub request_id: Option<String>,
    /// From where.
    pub source_ip: Option<String>,
    /// With what.
    pub user_agent: Option<String>,
    /// More about it.
    pub detail: Value,
    /// Link of the chain, hex.
    pub hash: String,
}

impl AuditRow {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            seq: row.try_get("seq")?,
            at: row.try_get("at")?,
            actor: row.try_get("actor")?,
            action: row.try_get("action")?,
            target_kind: row.try_get("target_kind")?,
            target_id: row.try_get("target_id")?,
            request_id: row.try_get("request_id")?,
            source_ip: row.try_get("source_ip")?,
            user_agent: row.try_get("user_agent")?,
            detail: row.try_get("detail")?,
            hash: row.try_get("hash")?,
        })
    }
}

impl TenantTx {
    /// Adds a row.
    pub async fn audit(&mut self, entry: &Entry<'_>) -> Result<(), StoreError> {
        sqlx::query(
            "insert into audit_log (org_id, actor, action, target_kind, target_id, request_id, source_ip, user_agent,
                                    detail)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        )
        .bind(self.organization_id)
        .bind(entry.origin.actor.as_str())
        .bind(entry.action)
        .bind(entry.target_kind)
        .bind(entry.target_id)
        .bind(entry.origin.request_id.as_deref())
        .bind(entry.origin.source_ip.as_deref())
        .bind(entry.origin.user_agent.as_deref())
        .bind(&entry.detail)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Newest rows first, older than `before`. Policies show rows to admins only.
    pub async fn audit_rows(
        &mut self,
        before: Option<i64>,
        action: Option<&str>,
        target_id: Option<&str>,
        limit: i64,
    ) -> Result<Vec<AuditRow>, StoreError> {
        let rows = sqlx::query(
            "select seq, to_char(at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') as at, actor, action,
                    target_kind, target_id, request_id, source_ip, user_agent, detail, encode(hash, 'hex') as hash
             from audit_log
             where ($1::bigint is null or seq < $1) and ($2::text is null or action = $2)
               and ($3::text is null or target_id = $3)
             order by seq desc limit $4",
        )
        .bind(before)
        .bind(action)
        .bind(target_id)
        .bind(limit)
        .fetch_all(&mut *self.tx)
        .await?;
        Ok(rows.iter().map(AuditRow::from_row).collect::<Result<_, _>>()?)
    }
}
