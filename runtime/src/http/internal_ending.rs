//! `POST /internal/v1/sessions/{id}/ending`: a session pod has been told to end. When it was neither the session's user nor
//! this platform who wanted that, what the session holds is taken over from the pod before it is gone.
//! May touch: `auth::session_token`, `store`, `lifecycle`.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use http::StatusCode;

use super::App;
use super::error::Problem;
use super::extract::{self, SessionId};
use super::internal::admit;
use crate::auth::AuthError;
use crate::store::TenantScope;

/// Answered once it is safe to end.
pub async fn post(State(app): State<App>, SessionId(id): SessionId, request: Request) -> Result<StatusCode, Problem> {
    let peer = request.extensions().get::<SocketAddr>().map(|peer| peer.ip().to_canonical());
    let peer = peer.filter(|_| app.internal.check_pod_address);
    let claims = app
        .tokens
        .verify_session(extract::bearer(request.headers())?)
        .map_err(|_| AuthError::Invalid("the session token is not valid".to_owned()))?;
    if claims.sub != id {
        return Err(Problem::no_such_session());
    }
    let Some(organization) = app.store.organization_by_slug(&claims.org).await? else {
        return Err(Problem::no_such_session());
    };
    let mut tx = app.store.tenant_tx(&TenantScope::system(&organization)).await?;
    let session = tx.session(id).await?.ok_or_else(Problem::no_such_session)?;
    tx.commit().await?;
    admit(&session, &claims, peer)?;
    app.lifecycle.pod_ends(&Arc::new(organization), &session).await?;
    Ok(StatusCode::NO_CONTENT)
}
