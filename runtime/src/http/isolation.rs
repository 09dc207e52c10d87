//! The one route of the internal API that is for the operator: it tries, as the tenant's writing role, to cross into other
//! organizations. The operator can't take that role on, and must not. May touch: `auth::session_token`, `store`.

use axum::Json;
use axum::extract::State;
use http::HeaderMap;
use serde::Serialize;

use super::App;
use super::error::Problem;
use super::extract;
use crate::auth::AuthError;

/// What came through; nothing, when all is well.
#[derive(Debug, Serialize)]
pub struct Findings {
    findings: Vec<String>,
}

/// `POST /internal/v1/isolation`
pub async fn probe(State(app): State<App>, headers: HeaderMap) -> Result<Json<Findings>, Problem> {
    let slug = app
        .tokens
        .verify_isolation(extract::bearer(&headers)?)
        .map_err(|_| AuthError::Invalid("the token of the isolation probe is not valid".to_owned()))?;
    let Some(organization) = app.store.organization_by_slug(&slug).await? else {
        return Err(Problem::no_such_session());
    };
    Ok(Json(Findings { findings: app.store.probe_isolation(&organization).await? }))
}
