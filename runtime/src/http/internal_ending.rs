//! `POST /internal/v1/sessions/{id}/ending`: a session pod has been told to end. When it was neither the session's user nor
//! this platform who wanted that, what the session holds is taken over from the pod before it is gone.
//! May touch: `auth::session_token`, `store`, `lifecycle`.

use std::sync::Arc;

use axum::extract::{Request, State};
use http::StatusCode;

use super::App;
use super::error::Problem;
use super::extract::SessionId;
use super::internal;
use crate::store::TenantScope;

/// Answered once it is safe to end.
pub async fn post(State(app): State<App>, SessionId(id): SessionId, request: Request) -> Result<StatusCode, Problem> {
    let peer = internal::peer(&app, request.extensions());
    let claims = internal::claims(&app, id, request.headers())?;
    let organization = internal::organization(&app, &claims).await?;
    let mut tx = app.store.tenant_tx(&TenantScope::system(&organization)).await?;
    let session = tx.session(id).await?.ok_or_else(Problem::no_such_session)?;
    tx.commit().await?;
    internal::admit(&session, &claims, peer)?;
    app.lifecycle.pod_ends(&Arc::new(organization), &session).await?;
    Ok(StatusCode::NO_CONTENT)
}
