//! Rows of the audit log that the operator writes: each in the transaction of the change that it records. May touch:
//! `audit_log`.
use crate::tenancy::{Error, Result, failed};
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

/// Who the rows of this program name.
pub const ACTOR: &str = "system:operator";

/// Something that was done. `detail` never holds a secret or a template.
#[derive(Debug)]
pub struct Entry<'a> {
    /// Did what, such as `workspace.update`.
    pub action: &'a str,
    /// To what kind of thing.
    pub target_kind: &'a str,
    /// To which one.
    pub target_id: &'a str,
    /// More about it, a JSON object.
    pub detail: Value,
}

/// Add a row to the organization's log. What belongs to none changes what is in force for each of them, and only
/// their own log is theirs to read: then it is a row in the log of every living organization.
pub async fn record(tx: &mut PgConnection, organization: Option<Uuid>, entry: &Entry<'_>) -> Result<()> {
    // In one order, so that two of these can't wait for each other.
    let written = sqlx::query(
        "insert into audit_log (org_id, org_slug, actor, action, target_kind, target_id, detail)
         select o.id, o.slug, $2, $3, $4, $5, $6 from organizations o
         where o.id = $1 or ($1 is null and o.deleted_at is null) order by o.id",
    )
    .bind(organization)
    .bind(ACTOR)
    .bind(entry.action)
    .bind(entry.target_kind)
    .bind(entry.target_id)
    .bind(&entry.detail)
    .execute(tx)
    .await
    .map_err(failed("write the audit log"))?;
    if organization.is_some() && written.rows_affected() == 0 {
        return Err(Error::Sql("write the audit log", sqlx::Error::RowNotFound));
    }
    Ok(())
}
