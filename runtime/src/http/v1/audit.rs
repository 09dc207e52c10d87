//! `GET /v1/audit`, for admins. May touch: `store`.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::http::App;
use crate::http::error::{Problem, ProblemBody};
use crate::http::extract::{Admin, ApiQuery};
use crate::store::audit::AuditRow;

const DEFAULT_LIMIT: u16 = 100;
const MAX_LIMIT: u16 = 1000;

/// Something that was done.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditView {
    /// Place in the organization's chain.
    seq: i64,
    /// RFC 3339.
    at: String,
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
    /// Link of the hash chain, hex.
    hash: String,
}

impl From<AuditRow> for AuditView {
    fn from(row: AuditRow) -> Self {
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
            hash: row.hash,
        }
    }
}

/// A page of the audit log.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditPage {
    /// Newest first.
    entries: Vec<AuditView>,
    /// Pass it as `before` to get the next page; not there on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_before: Option<i64>,
}

/// Which entries to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct AuditQuery {
    /// Only entries before this `seq`.
    before: Option<i64>,
    /// Only this action.
    action: Option<String>,
    /// Only about the thing with this id.
    target_id: Option<String>,
    /// Entries per page, 1 to 1000; 100 if left out.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u16>,
}

/// The organization's audit log; admins only.
#[utoipa::path(
    get, path = "/v1/audit", operation_id = "listAudit", tag = "audit", params(AuditQuery),
    responses(
        (status = 200, body = AuditPage),
        (status = 403, description = "You are no admin.", body = ProblemBody,
         content_type = "application/problem+json"),
        (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn list(
    State(app): State<App>,
    Admin(caller): Admin,
    ApiQuery(query): ApiQuery<AuditQuery>,
) -> Result<Json<AuditPage>, Problem> {
    let limit = query.limit.unwrap_or(DEFAULT_LIMIT);
    if !(1..=MAX_LIMIT).contains(&limit) {
        return Err(Problem::bad_request(format!("limit must be 1 to {MAX_LIMIT}.")));
    }
    let mut tx = app.store.tenant_tx(&caller.scope()).await?;
    let (action, target) = (query.action.as_deref(), query.target_id.as_deref());
    let mut rows = tx.audit_rows(query.before, action, target, i64::from(limit) + 1).await?;
    tx.commit().await?;
    let more = rows.len() > usize::from(limit);
    rows.truncate(usize::from(limit));
    let next_before = rows.last().filter(|_| more).map(|row| row.seq);
    Ok(Json(AuditPage { entries: rows.into_iter().map(AuditView::from).collect(), next_before }))
}
