//! The audit log. Rows are added in the transaction of the change that they record; Postgres numbers, stamps and
//! chains them. May touch: `audit_log`, `audit_heads`, `audit_checkpoints`.

use jiff::Timestamp;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row as _};
use uuid::Uuid;

use super::{Store, StoreError, TenantScope, TenantTx};
use crate::audit::Entry;
use crate::audit::chain::{Head, Row};

/// Columns of [`Row`]; `sqlx::query` takes literals only, hence a macro.
macro_rules! select_row {
    ($rest:literal) => {
        concat!(
            "select org_id, seq, org_slug, (extract(epoch from at) * 1000000)::bigint as micros, db_role, actor, action,
                    target_kind, target_id, request_id, source_ip, user_agent, detail, config_digest,
                    encode(prev_hash, 'hex') as prev_hash, encode(hash, 'hex') as hash
             from audit_log ",
            $rest
        )
    };
}

/// A page of the log, newest first. `$1` is the number before which it begins, `$2` to `$8` are filters (action, actor, kind
/// and id of the target, request, since, until), `$9` is how many.
pub const AUDIT_BACK: &str = select_row!(
    "where ($1::bigint is null or seq < $1) and ($2::text is null or action = $2)
       and ($3::text is null or actor = $3) and ($4::text is null or target_kind = $4)
       and ($5::text is null or target_id = $5) and ($6::text is null or request_id = $6)
       and ($7::text is null or at >= $7::timestamptz) and ($8::text is null or at < $8::timestamptz)
     order by seq desc limit $9"
);

fn from_row(row: &PgRow) -> Result<Row, StoreError> {
    let at = Timestamp::from_microsecond(row.try_get("micros")?).map_err(|_| StoreError::Corrupt("audit_log.at"))?;
    Ok(Row {
        org_id: row.try_get("org_id")?,
        seq: row.try_get("seq")?,
        org_slug: row.try_get("org_slug")?,
        at,
        db_role: row.try_get("db_role")?,
        actor: row.try_get("actor")?,
        action: row.try_get("action")?,
        target_kind: row.try_get("target_kind")?,
        target_id: row.try_get("target_id")?,
        request_id: row.try_get("request_id")?,
        source_ip: row.try_get("source_ip")?,
        user_agent: row.try_get("user_agent")?,
        detail: row.try_get("detail")?,
        config_digest: row.try_get("config_digest")?,
        prev_hash: row.try_get("prev_hash")?,
        hash: row.try_get("hash")?,
    })
}

/// Which rows a list shows.
#[derive(Debug, Default)]
pub struct AuditFilter<'a> {
    /// Only this action.
    pub action: Option<&'a str>,
    /// Only by this one.
    pub actor: Option<&'a str>,
    /// Only about things of this kind.
    pub target_kind: Option<&'a str>,
    /// Only about this thing.
    pub target_id: Option<&'a str>,
    /// Only of this request.
    pub request_id: Option<&'a str>,
    /// Not before this time.
    pub since: Option<Timestamp>,
    /// Before this time.
    pub until: Option<Timestamp>,
    /// Where the page begins.
    pub page: AuditPage,
    /// At most this many.
    pub limit: i64,
}

/// A page of the log and its direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuditPage {
    /// Newest first, older than this row if there is one.
    Back(Option<i64>),
    /// Oldest first, newer than this row.
    On(i64),
}

impl Default for AuditPage {
    fn default() -> Self {
        Self::Back(None)
    }
}

/// A signed checkpoint, as it is stored.
#[derive(Debug, Clone)]
pub struct StoredCheckpoint {
    /// Number of the row that was the last one.
    pub seq: i64,
    /// Its hash, hex.
    pub hash: String,
    /// When.
    pub at: Timestamp,
    /// Name of the key.
    pub kid: String,
    /// What was signed, with its signature.
    pub statement: String,
}

/// Rows of an organization in the order of the chain: the next ones after `after`, up to `to`.
pub async fn chain(
    connection: &mut PgConnection,
    organization: Uuid,
    after: i64,
    to: i64,
    limit: i64,
) -> Result<Vec<Row>, StoreError> {
    let rows = sqlx::query(select_row!("where org_id = $1 and seq > $2 and seq <= $3 order by seq limit $4"))
        .bind(organization)
        .bind(after)
        .bind(to)
        .bind(limit)
        .fetch_all(connection)
        .await?;
    rows.iter().map(from_row).collect()
}

/// The ends of the logs that the connection may see, with the names of their organizations.
pub async fn heads(connection: &mut PgConnection) -> Result<Vec<(Uuid, String, Head)>, StoreError> {
    let rows =
        sqlx::query("select org_id, org_slug, seq, encode(hash, 'hex') as hash from audit_heads order by org_slug")
            .fetch_all(connection)
            .await?;
    let read = |row: &PgRow| -> Result<_, sqlx::Error> {
        let head = Head { seq: row.try_get("seq")?, hash: row.try_get("hash")? };
        Ok((row.try_get("org_id")?, row.try_get("org_slug")?, head))
    };
    Ok(rows.iter().map(read).collect::<Result<_, _>>()?)
}

impl Store {
    /// Records what changes nothing in Postgres: it is done elsewhere, or it was refused.
    pub async fn record(&self, scope: &TenantScope<'_>, entry: &Entry<'_>) -> Result<(), StoreError> {
        let mut tx = self.tenant_tx(scope).await?;
        tx.audit(entry).await?;
        tx.commit().await
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
        .bind(entry.origin.client.request_id.as_deref())
        .bind(entry.origin.client.source_ip.as_deref())
        .bind(entry.origin.client.user_agent.as_deref())
        .bind(&entry.detail)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// A page of rows. Policies show rows to admins only.
    pub async fn audit_rows(&mut self, filter: &AuditFilter<'_>) -> Result<Vec<Row>, StoreError> {
        // Two statements, since the direction decides how the index is read.
        let (query, cursor) = match filter.page {
            AuditPage::Back(before) => (sqlx::query(AUDIT_BACK), before),
            AuditPage::On(after) => (
                sqlx::query(select_row!(
                    "where seq > $1::bigint and ($2::text is null or action = $2)
                       and ($3::text is null or actor = $3) and ($4::text is null or target_kind = $4)
                       and ($5::text is null or target_id = $5) and ($6::text is null or request_id = $6)
                       and ($7::text is null or at >= $7::timestamptz) and ($8::text is null or at < $8::timestamptz)
                     order by seq limit $9"
                )),
                Some(after),
            ),
        };
        let rows = query
            .bind(cursor)
            .bind(filter.action)
            .bind(filter.actor)
            .bind(filter.target_kind)
            .bind(filter.target_id)
            .bind(filter.request_id)
            .bind(filter.since.map(|time| time.to_string()))
            .bind(filter.until.map(|time| time.to_string()))
            .bind(filter.limit)
            .fetch_all(&mut *self.tx)
            .await?;
        rows.iter().map(from_row).collect()
    }

    /// The end of the organization's log.
    pub async fn audit_head(&mut self) -> Result<Head, StoreError> {
        Ok(heads(&mut self.tx).await?.into_iter().next().map_or_else(Head::start, |(_, _, head)| head))
    }

    /// The next rows of the organization's log, in the order of the chain.
    pub async fn audit_chain(&mut self, after: i64, to: i64, limit: i64) -> Result<Vec<Row>, StoreError> {
        chain(&mut self.tx, self.organization_id, after, to, limit).await
    }

    /// Signed checkpoints after this row, oldest first.
    pub async fn audit_checkpoints(&mut self, after: i64, limit: i64) -> Result<Vec<StoredCheckpoint>, StoreError> {
        let rows = sqlx::query(
            "select seq, encode(hash, 'hex') as hash, extract(epoch from at)::bigint as seconds, kid, statement
             from audit_checkpoints where seq > $1 order by seq limit $2",
        )
        .bind(after)
        .bind(limit)
        .fetch_all(&mut *self.tx)
        .await?;
        let read = |row: &PgRow| -> Result<StoredCheckpoint, StoreError> {
            Ok(StoredCheckpoint {
                seq: row.try_get("seq")?,
                hash: row.try_get("hash")?,
                at: Timestamp::from_second(row.try_get("seconds")?)
                    .map_err(|_| StoreError::Corrupt("audit_checkpoints.at"))?,
                kid: row.try_get("kid")?,
                statement: row.try_get("statement")?,
            })
        };
        rows.iter().map(read).collect()
    }

    /// The public keys that have signed the organization's checkpoints, by name.
    pub async fn audit_keys(&mut self) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let rows = sqlx::query("select distinct kid, public_key from audit_checkpoints order by kid")
            .fetch_all(&mut *self.tx)
            .await?;
        let read = |row: &PgRow| -> Result<_, sqlx::Error> { Ok((row.try_get("kid")?, row.try_get("public_key")?)) };
        Ok(rows.iter().map(read).collect::<Result<_, _>>()?)
    }
}
