//! `GET /internal/v1/sessions/{id}/connections`: a session pod asks which MCP connections its agent has. Names and ids
//! only; what is behind them, and with which credentials, stays here. May touch: `auth::session_token`, `store`.

use axum::Json;
use axum::extract::State;
use http::{HeaderMap, StatusCode};
use serde::Serialize;
use uuid::Uuid;

use super::App;
use super::error::Problem;
use super::extract::SessionId;
use super::internal;
use crate::store::TenantScope;

/// The connections of a session.
#[derive(Debug, Serialize)]
pub struct Connections {
    connections: Vec<Connection>,
}

#[derive(Debug, Serialize)]
struct Connection {
    id: Uuid,
    name: String,
}

/// Those of the session's workspace and those of the whole organization.
pub async fn list(
    State(app): State<App>,
    SessionId(id): SessionId,
    headers: HeaderMap,
) -> Result<Json<Connections>, Problem> {
    let claims = internal::claims(&app, id, &headers)?;
    let organization = internal::organization(&app, &claims).await?;
    let scope = TenantScope { platform: false, ..TenantScope::system(&organization) };
    let mut tx = app.store.tenant_tx(&scope).await?;
    let Some(session) = tx.session(id).await? else {
        return Err(Problem::no_such_session());
    };
    if session.over_seconds.is_some() {
        let detail = "The session is over; it has no connections any more.";
        return Err(Problem::new(StatusCode::CONFLICT, "session-over", "Session is over", detail));
    }
    // A pod that is being claimed asks before its row names it: it needs the answer to start its agent.
    if session.pod_name.is_some_and(|pod| pod != claims.pod) {
        let detail = "Only the session's own pod may ask for its connections.";
        return Err(Problem::new(StatusCode::FORBIDDEN, "wrong-pod", "Wrong pod", detail));
    }
    let rows = tx.session_connections(id).await?;
    let connections = rows.into_iter().map(|(id, name)| Connection { id, name }).collect();
    Ok(Json(Connections { connections }))
}
