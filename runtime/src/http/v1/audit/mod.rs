//! `/v1/audit` and what is below it, for admins: the list here, the export and the checkpoints in files of their own.
//! May touch: `store`.

pub mod checkpoints;
pub mod export;

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::audit::chain::{Head, Row};
use crate::http::App;
use crate::http::error::{Problem, ProblemBody};
use crate::http::extract::{Admin, ApiQuery};
use crate::http::paging::Page;
use crate::store::audit::{AuditFilter, AuditPage};

const DEFAULT_LIMIT: u16 = 100;
const MAX_LIMIT: u16 = 1000;
/// So many rows are read at a time, and after so many bytes of details the page ends before its limit: a row may have 64 KiB.
const AT_A_TIME: i64 = 100;
const MOST_BYTES: usize = 4 * 1024 * 1024;
/// Longest value of a filter: the longest that a column takes.
const MAX_FILTER_CHARS: usize = 512;

/// Something that was done.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditView {
    /// Place in the organization's chain.
    seq: i64,
    /// RFC 3339.
    #[schema(value_type = String, example = "2026-01-31T12:00:00.123456Z")]
    at: Timestamp,
    /// Who.
    #[schema(example = "user:alice")]
    actor: String,
    /// Did what.
    #[schema(example = "session.create")]
    action: String,
    /// To what kind of thing.
    target_kind: String,
    /// To which one.
    target_id: Option<String>,
    /// In which request.
    request_id: Option<String>,
    /// From where.
    source_ip: Option<String>,
    /// With what.
    user_agent: Option<String>,
    /// More about it.
    #[schema(value_type = Object)]
    detail: serde_json::Value,
    /// Digest of the configuration in force: the generations of the organization, its workspaces, connections and
    /// prompt policies.
    config_digest: Option<String>,
    /// Link of the hash chain, hex.
    hash: String,
}

impl From<Row> for AuditView {
    fn from(row: Row) -> Self {
        Self {
            seq: row.seq,
            at: row.at,
            actor: row.actor,
            action: row.action,
            target_kind: row.target_kind,
            target_id: row.target_id,
            request_id: row.request_id,
            source_ip: row.source_ip,
            user_agent: row.user_agent,
            detail: row.detail,
            config_digest: row.config_digest,
            hash: row.hash,
        }
    }
}

/// The newest link of the chain; keep it to notice later that newer rows are missing.
#[derive(Debug, Serialize, ToSchema)]
pub struct HeadView {
    /// Number of the newest row.
    seq: i64,
    /// Its hash, hex.
    hash: String,
}

impl From<Head> for HeadView {
    fn from(head: Head) -> Self {
        Self { seq: head.seq, hash: head.hash }
    }
}

/// A page of the audit log.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditEntries {
    /// Newest first; with `after`, oldest first.
    entries: Vec<AuditView>,
    /// Pass it as `before` to get the next page; not there on the last one, and not with `after`.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_before: Option<i64>,
    /// Pass it as `after` to get the next page; only with `after`, and not on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_after: Option<i64>,
    /// The end of the whole log.
    head: HeadView,
}

/// Which entries to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct AuditQuery {
    /// Only entries before this `seq`, newest first.
    #[param(minimum = 1)]
    before: Option<i64>,
    /// Only entries after this `seq`, oldest first. Not together with `before`.
    #[param(minimum = 0)]
    after: Option<i64>,
    /// Only this action, such as `session.create`.
    action: Option<String>,
    /// Only by this actor, such as `user:alice`.
    actor: Option<String>,
    /// Only about things of this kind, such as `session` or `Workspace`.
    target_kind: Option<String>,
    /// Only about the thing with this id.
    target_id: Option<String>,
    /// Only of the request with this `x-request-id`.
    request_id: Option<String>,
    /// Only entries of this time (RFC 3339) or later.
    #[param(example = "2026-01-31T12:00:00Z")]
    since: Option<String>,
    /// Only entries before this time (RFC 3339).
    #[param(example = "2026-02-01T00:00:00+01:00")]
    until: Option<String>,
    /// Entries per page, 1 to 1000; 100 if left out. A page may have fewer where they are long.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u16>,
}

impl AuditQuery {
    fn filter(&self, rows: Page) -> Result<AuditFilter<'_>, Problem> {
        let page = match (self.before, self.after) {
            (Some(_), Some(_)) => return Err(Problem::bad_request("Give before or after, not both.")),
            (Some(before), None) if before < 1 => return Err(Problem::bad_request("before must be 1 or more.")),
            (_, Some(after)) if after < 0 => return Err(Problem::bad_request("after must be 0 or more.")),
            (before, None) => AuditPage::Back(before),
            (None, Some(after)) => AuditPage::On(after),
        };
        let (since, until) = (time("since", self.since.as_deref())?, time("until", self.until.as_deref())?);
        if let (Some(since), Some(until)) = (since, until)
            && since >= until
        {
            return Err(Problem::bad_request("since must be before until."));
        }
        Ok(AuditFilter {
            action: text("action", self.action.as_deref())?,
            actor: text("actor", self.actor.as_deref())?,
            target_kind: text("targetKind", self.target_kind.as_deref())?,
            target_id: text("targetId", self.target_id.as_deref())?,
            request_id: text("requestId", self.request_id.as_deref())?,
            since,
            until,
            page,
            limit: rows.to_read(),
        })
    }
}

/// Postgres text holds no NUL, and no row has an empty or a longer value.
fn text<'a>(name: &str, value: Option<&'a str>) -> Result<Option<&'a str>, Problem> {
    match value {
        Some(value) if value.is_empty() || value.contains('\0') || value.chars().count() > MAX_FILTER_CHARS => {
            let detail = format!("{name} must have 1 to {MAX_FILTER_CHARS} characters and no NUL; or leave it out.");
            Err(Problem::bad_request(detail))
        }
        value => Ok(value),
    }
}

fn time(name: &str, value: Option<&str>) -> Result<Option<Timestamp>, Problem> {
    let parse = |value: &str| {
        value.parse::<Timestamp>().map_err(|_| {
            let detail = format!(
                "{name} must be a time as in RFC 3339, like 2026-01-31T12:00:00Z; write a + in a query string as %2B."
            );
            Problem::bad_request(detail)
        })
    };
    value.map(parse).transpose()
}

/// The organization's audit log; admins only.
#[utoipa::path(
    get, path = "/v1/audit", operation_id = "listAudit", tag = "audit", params(AuditQuery),
    responses(
        (status = 200, body = AuditEntries),
        (status = 403, description = "You are no admin.", body = ProblemBody,
         content_type = "application/problem+json"),
        (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn list(
    State(app): State<App>,
    Admin(caller): Admin,
    ApiQuery(query): ApiQuery<AuditQuery>,
) -> Result<Json<AuditEntries>, Problem> {
    let page = Page::of(query.limit, DEFAULT_LIMIT, MAX_LIMIT)?;
    let mut filter = query.filter(page)?;
    let mut parts = page.in_parts(AT_A_TIME, MOST_BYTES);
    let mut tx = app.store.tenant_tx(&caller.scope()).await?;
    while let Some(limit) = parts.to_read() {
        filter.limit = limit;
        let rows = tx.audit_rows(&filter).await?;
        if let Some(last) = parts.add(rows, limit, |row| row.detail.to_string().len()) {
            filter.page = match filter.page {
                AuditPage::Back(_) => AuditPage::Back(Some(last.seq)),
                AuditPage::On(_) => AuditPage::On(last.seq),
            };
        }
    }
    let head = tx.audit_head().await?;
    tx.commit().await?;
    let (rows, cursor) = parts.end(|row| row.seq);
    let (next_before, next_after) = match filter.page {
        AuditPage::Back(_) => (cursor, None),
        AuditPage::On(_) => (None, cursor),
    };
    let entries = rows.into_iter().map(AuditView::from).collect();
    Ok(Json(AuditEntries { entries, next_before, next_after, head: head.into() }))
}
