//! `GET /v1/audit/export`: the whole log as a stream in the order of the chain. A page at a time is read and sent, each
//! in a transaction of its own: the log is append-only, so the pages fit together. May touch: `store`.

use std::sync::Arc;

use async_stream::try_stream;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures::Stream;
use http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use crate::audit::chain::Row;
use crate::audit::ocsf;
use crate::auth::Caller;
use crate::http::App;
use crate::http::error::{Problem, ProblemBody};
use crate::http::extract::{Admin, ApiQuery};
use crate::http::held::COPIES;
use crate::resilience::memory::NoRoom;
use crate::store::StoreError;

/// Rows that are in memory at a time; one has at most about 70 KiB.
const PAGE: i64 = 50;

/// Form of an export.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ExportFormat {
    /// One row per line, with its hash: what `agentapi-runtime audit verify` takes.
    #[default]
    Jsonl,
    /// One event of the Open Cybersecurity Schema Framework per line.
    Ocsf,
}

impl ExportFormat {
    fn line(self, row: &Row) -> Result<String, serde_json::Error> {
        let line = match self {
            Self::Jsonl => serde_json::to_string(row)?,
            Self::Ocsf => ocsf::event(row).to_string(),
        };
        Ok(line + "\n")
    }
}

/// What to export.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ExportQuery {
    /// `jsonl` (if left out) or `ocsf`.
    #[param(inline)]
    format: Option<ExportFormat>,
    /// Only rows after this `seq`, to go on where an earlier export ended.
    #[param(minimum = 0)]
    after: Option<i64>,
}

/// The organization's whole audit log, oldest row first; admins only.
#[utoipa::path(
    get, path = "/v1/audit/export", operation_id = "exportAudit", tag = "audit", params(ExportQuery),
    responses(
        (status = 200, description = "JSON Lines.", body = String, content_type = "application/x-ndjson"),
        (status = 403, description = "You are no admin.", body = ProblemBody,
         content_type = "application/problem+json"),
        (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn export(
    State(app): State<App>,
    Admin(caller): Admin,
    ApiQuery(query): ApiQuery<ExportQuery>,
) -> Result<Response, Problem> {
    let after = query.after.unwrap_or(0);
    if after < 0 {
        return Err(Problem::bad_request("after must be 0 or more."));
    }
    // To the row that is the last one now: a busy log would never end.
    let mut tx = app.store.tenant_tx(&caller.scope()).await?;
    let to = tx.audit_head().await?.seq;
    tx.commit().await?;
    let name = format!("attachment; filename=\"audit-{}.jsonl\"", caller.organization.slug);
    let body = Body::from_stream(lines(app, caller, query.format.unwrap_or_default(), after, to));
    Ok(([(CONTENT_TYPE, "application/x-ndjson".to_owned()), (CONTENT_DISPOSITION, name)], body).into_response())
}

#[derive(Debug, thiserror::Error)]
enum Interrupted {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("a row is no JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the server is shutting down")]
    Leaving,
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    #[error("rows are missing in the database")]
    Gap,
}

/// An error ends the stream without its end, so that no client takes a part for the whole.
fn lines(
    app: App,
    caller: Caller,
    format: ExportFormat,
    mut after: i64,
    to: i64,
) -> impl Stream<Item = Result<Bytes, Interrupted>> {
    try_stream! {
        let closing = Arc::clone(&app);
        while after < to {
            if closing.closing.is_cancelled() {
                Err(Interrupted::Leaving)?;
            }
            let mut tx = app.store.tenant_tx(&caller.scope()).await?;
            let rows = tx.audit_chain(after, to, PAGE).await?;
            tx.commit().await?;
            let Some(last) = rows.last() else {
                tracing::error!(after, to, "rows of the audit log are missing");
                Err(Interrupted::Gap)?;
                break;
            };
            after = last.seq;
            let mut text = String::new();
            for row in &rows {
                text.push_str(&format.line(row)?);
            }
            // Whoever reads slowly waits with it, and with many others like it.
            let _room = closing.held.room(caller.organization.id, COPIES, text.len())?;
            yield Bytes::from(text);
        }
    }
}
