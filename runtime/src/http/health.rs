//! Probes and metrics. May touch: `store` (ping), metrics.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::CONTENT_TYPE;
use serde::Serialize;

use super::App;
use super::error::{Problem, ProblemBody};

/// A probe must not wait longer than its caller.
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// State of this replica.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Health {
    /// `ok`.
    #[schema(example = "ok")]
    status: &'static str,
    /// Version of the server.
    version: &'static str,
}

const OK: Health = Health { status: "ok", version: env!("CARGO_PKG_VERSION") };

/// Whether the process works.
#[utoipa::path(get, path = "/live", operation_id = "isLive", tag = "health", security(()), responses((status = 200, body = Health)))]
pub async fn live() -> Json<Health> {
    Json(OK)
}

/// Whether this replica should get requests: Postgres answers and it is not shutting down.
#[utoipa::path(get, path = "/ready", operation_id = "isReady", tag = "health", security(()), responses(
    (status = 200, body = Health),
    (status = 503, body = ProblemBody, content_type = "application/problem+json"),
))]
pub async fn ready(State(app): State<App>) -> Result<Json<Health>, Problem> {
    if app.leaving.is_cancelled() {
        return Err(Problem::unavailable("shutting-down", "This replica is shutting down.", 1));
    }
    check(&app).await
}

/// Whether the API works; the same as /ready for people, without regard to a shutdown.
#[utoipa::path(get, path = "/health", operation_id = "getHealth", tag = "health", security(()), responses(
    (status = 200, body = Health),
    (status = 503, body = ProblemBody, content_type = "application/problem+json"),
))]
pub async fn health(State(app): State<App>) -> Result<Json<Health>, Problem> {
    check(&app).await
}

async fn check(app: &App) -> Result<Json<Health>, Problem> {
    match tokio::time::timeout(PING_TIMEOUT, app.store.ping()).await {
        Ok(Ok(())) => Ok(Json(OK)),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(Problem::unavailable("database-unavailable", "The database does not answer in time.", 2)),
    }
}

/// Metrics in the Prometheus text format; on its own port.
pub async fn metrics(State(app): State<App>) -> Response {
    match app.metrics.render() {
        Ok(text) => ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "cannot render metrics");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
