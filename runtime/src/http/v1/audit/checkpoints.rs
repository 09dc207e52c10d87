//! `GET /v1/audit/checkpoints` and `GET /v1/audit/keys`: what an auditor keeps elsewhere. May touch: `store`.

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::audit::checkpoint::jwk;
use crate::http::App;
use crate::http::error::{Problem, ProblemBody};
use crate::http::extract::{Admin, ApiQuery};
use crate::http::paging::Page;
use crate::store::audit::StoredCheckpoint;

const DEFAULT_LIMIT: u16 = 1000;
const MAX_LIMIT: u16 = 10_000;

/// At a time, the log ended with this row.
#[derive(Debug, Serialize, ToSchema)]
pub struct CheckpointView {
    /// Number of the row.
    seq: i64,
    /// Its hash, hex.
    hash: String,
    /// RFC 3339.
    #[schema(value_type = String)]
    at: Timestamp,
    /// Name of the key that signed it.
    kid: String,
    /// The same, signed: a JWS in compact form, type `agentapi-checkpoint+jwt`. Only this proves anything.
    statement: String,
}

impl From<StoredCheckpoint> for CheckpointView {
    fn from(checkpoint: StoredCheckpoint) -> Self {
        let StoredCheckpoint { seq, hash, at, kid, statement } = checkpoint;
        Self { seq, hash, at, kid, statement }
    }
}

/// Signed checkpoints.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Checkpoints {
    /// Oldest first.
    checkpoints: Vec<CheckpointView>,
    /// Pass it as `after` to get the next page; not there on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_after: Option<i64>,
}

/// Which checkpoints to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct CheckpointQuery {
    /// Only checkpoints of rows after this `seq`.
    #[param(minimum = 0)]
    after: Option<i64>,
    /// Checkpoints per page, 1 to 10000; 1000 if left out.
    #[param(minimum = 1, maximum = 10000)]
    limit: Option<u16>,
}

/// Signed checkpoints of the organization's audit log; admins only.
#[utoipa::path(
    get, path = "/v1/audit/checkpoints", operation_id = "listAuditCheckpoints", tag = "audit",
    params(CheckpointQuery),
    responses(
        (status = 200, body = Checkpoints),
        (status = 403, description = "You are no admin.", body = ProblemBody,
         content_type = "application/problem+json"),
        (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn list(
    State(app): State<App>,
    Admin(caller): Admin,
    ApiQuery(query): ApiQuery<CheckpointQuery>,
) -> Result<Json<Checkpoints>, Problem> {
    let after = query.after.unwrap_or(0);
    if after < 0 {
        return Err(Problem::bad_request("after must be 0 or more."));
    }
    let page = Page::of(query.limit, DEFAULT_LIMIT, MAX_LIMIT)?;
    let mut tx = app.store.tenant_tx(&caller.scope()).await?;
    let mut found = tx.audit_checkpoints(after, page.to_read()).await?;
    tx.commit().await?;
    let next_after = page.cut(&mut found).map(|checkpoint| checkpoint.seq);
    Ok(Json(Checkpoints { checkpoints: found.into_iter().map(CheckpointView::from).collect(), next_after }))
}

/// A JSON Web Key Set (RFC 7517).
#[derive(Debug, Serialize, ToSchema)]
pub struct KeySet {
    /// Ed25519 keys (RFC 8037); `kid` is the key's thumbprint (RFC 7638).
    #[schema(value_type = Vec<Object>)]
    keys: Vec<serde_json::Value>,
}

/// Public keys of the checkpoints; admins only. Keep them: keys that come with the log prove nothing.
#[utoipa::path(
    get, path = "/v1/audit/keys", operation_id = "listAuditKeys", tag = "audit",
    responses(
        (status = 200, body = KeySet),
        (status = 403, description = "You are no admin.", body = ProblemBody,
         content_type = "application/problem+json"),
        (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn keys(State(app): State<App>, Admin(caller): Admin) -> Result<Json<KeySet>, Problem> {
    let mut tx = app.store.tenant_tx(&caller.scope()).await?;
    let keys = tx.audit_keys().await?;
    tx.commit().await?;
    Ok(Json(KeySet { keys: keys.iter().map(|(kid, key)| jwk(kid, key)).collect() }))
}
