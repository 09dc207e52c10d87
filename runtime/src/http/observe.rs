//! One log line and one measurement per request, by route template. May touch: `metrics`, the log.

use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;

use super::App;

/// The middleware. It runs inside the request-id span.
pub(super) async fn middleware(State(app): State<App>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let route = request.extensions().get::<MatchedPath>().map_or("unmatched", MatchedPath::as_str).to_owned();
    let method = request.method().clone();
    let in_flight = app.metrics.in_flight();
    let response = next.run(request).await;
    drop(in_flight);
    let (took, status) = (began.elapsed(), response.status());
    // Probes every few seconds would drown the rest.
    let quiet = matches!(route.as_str(), "/live" | "/ready" | "/health") && status.is_success();
    if !quiet {
        tracing::info!(
            route,
            status = status.as_u16(),
            took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            "answered"
        );
    }
    // Methods are the client's to invent; labels are not.
    let method = match method.as_str() {
        known @ ("GET" | "POST" | "PUT" | "PATCH" | "DELETE" | "HEAD" | "OPTIONS") => known,
        _ => "other",
    };
    app.metrics.request(&route, method, status.as_u16(), took);
    response
}
