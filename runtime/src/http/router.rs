//! Which route goes to which handler, and what surrounds them all. May touch: all of `http`.

use std::sync::LazyLock;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{get, post, put};
use http::HeaderValue;
use http::header::{CACHE_CONTROL, CONNECTION, HeaderName, TRANSFER_ENCODING, X_CONTENT_TYPE_OPTIONS};
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{ComponentsBuilder, InfoBuilder, OpenApi, OpenApiBuilder, SecurityRequirement, Server};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::Problem;
use super::{
    App, connect, docs, extract, health, held, internal, internal_connections, internal_ending, internal_permissions,
    isolation, observe, rate_limit, request_id, v1,
};
use crate::oauth::CONNECT_PATH;

fn described() -> OpenApiRouter<App> {
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .bearer_format("JWT")
        .description(Some("Access token of your organization's identity provider."))
        .build();
    let components = ComponentsBuilder::new().security_scheme("bearer", SecurityScheme::Http(bearer)).build();
    let info = InfoBuilder::new()
        .title("AgentAPI")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some("Coding agents of your organization, each in a pod of its own, behind one API."))
        .build();
    let document = OpenApiBuilder::new()
        .info(info)
        .servers(Some([Server::new("/")]))
        .components(Some(components))
        .security(Some([SecurityRequirement::new("bearer", [] as [&str; 0])]))
        .build();
    OpenApiRouter::with_openapi(document)
        .routes(routes!(v1::sessions::list, v1::create_session::create))
        .routes(routes!(v1::sessions::get, v1::sessions::delete))
        .routes(routes!(v1::agent::status))
        .routes(routes!(v1::agent::messages))
        .routes(routes!(v1::agent::message))
        .routes(routes!(v1::agent::events))
        .routes(routes!(v1::agent::upload))
        .routes(routes!(v1::agent::screen))
        .routes(routes!(v1::permissions::list))
        .routes(routes!(v1::permissions::answer))
        .routes(routes!(v1::permissions::cancel))
        .routes(routes!(v1::workspaces::list))
        .routes(routes!(v1::prompts::preview_prompt))
        .routes(routes!(v1::audit::list))
        .routes(routes!(v1::audit::export::export))
        .routes(routes!(v1::audit::checkpoints::list))
        .routes(routes!(v1::audit::checkpoints::keys))
        .routes(routes!(v1::mcp::configurations::create, v1::mcp::configurations::list))
        .routes(routes!(
            v1::mcp::configurations::get,
            v1::mcp::configurations::replace,
            v1::mcp::configurations::delete
        ))
        .routes(routes!(v1::mcp::test::test))
        .routes(routes!(v1::mcp::clients::connect))
        .routes(routes!(v1::mcp::clients::disconnect))
        .routes(routes!(v1::mcp::clients::list))
        .routes(routes!(v1::mcp::clients::get, v1::mcp::clients::delete))
        .routes(routes!(v1::mcp::calls::list_tools))
        .routes(routes!(v1::mcp::calls::call_tool))
        .routes(routes!(v1::mcp::calls::list_resources))
        .routes(routes!(v1::mcp::calls::read_resource))
        .routes(routes!(v1::mcp::calls::list_prompts))
        .routes(routes!(v1::mcp::calls::get_prompt))
        .routes(routes!(v1::mcp::gateway::post, v1::mcp::gateway::get, v1::mcp::gateway::delete))
        .routes(routes!(v1::oauth::init))
        .routes(routes!(v1::oauth::callback))
        .routes(routes!(v1::oauth::callback_of))
        .routes(routes!(v1::oauth::refresh))
        .routes(routes!(v1::oauth::revoke))
        .routes(routes!(health::health))
        .routes(routes!(health::ready))
        .routes(routes!(health::live))
}

static DOCUMENT: LazyLock<OpenApi> = LazyLock::new(|| described().into_openapi());

/// The `OpenAPI` document, made from the handlers themselves.
pub fn openapi() -> &'static OpenApi {
    &DOCUMENT
}

/// The public API.
pub fn public(app: &App) -> Router {
    let (router, _) = described().split_for_parts();
    let router = router
        .route("/openapi.json", get(docs::openapi_json))
        .route("/docs", get(docs::page))
        .route(CONNECT_PATH, get(connect::page).post(connect::leave))
        .layer(DefaultBodyLimit::max(extract::MAX_JSON_BYTES));
    surrounded(router, app)
}

/// The API for session pods.
pub fn internal(app: &App) -> Router {
    let router = Router::new()
        .route("/internal/v1/sessions/{id}/messages", put(internal::put_messages))
        .route("/internal/v1/sessions/{id}/connections", get(internal_connections::list))
        .route("/internal/v1/sessions/{id}/ending", post(internal_ending::post))
        .route("/internal/v1/sessions/{id}/permissions", post(internal_permissions::post))
        .route("/internal/v1/isolation", post(isolation::probe))
        .route(
            "/v1/mcp/gateway/{connection}",
            post(v1::mcp::gateway::internal_post)
                .get(v1::mcp::gateway::internal_get)
                .delete(v1::mcp::gateway::internal_delete),
        )
        .layer(DefaultBodyLimit::max(internal::MAX_TRANSCRIPT_BYTES));
    surrounded(router, app)
}

/// Metrics and probes on a port that is not for users.
pub fn metrics(app: &App) -> Router {
    Router::new()
        .route("/metrics", get(health::metrics))
        .route("/live", get(health::live))
        .route("/ready", get(health::ready))
        .with_state(App::clone(app))
}

fn surrounded(router: Router<App>, app: &App) -> Router {
    router
        .fallback(|| async { Problem::no_such_route() })
        .method_not_allowed_fallback(|| async { Problem::method_not_allowed() })
        .layer(CatchPanicLayer::custom(extract::panicked))
        .layer(from_fn_with_state(App::clone(app), held::middleware))
        .layer(from_fn_with_state(App::clone(app), rate_limit::middleware))
        .layer(from_fn_with_state(App::clone(app), observe::middleware))
        .layer(from_fn(defensive_headers))
        .layer(from_fn(request_id::middleware))
        .with_state(App::clone(app))
}

/// No sniffing; and nothing of a tenant in a shared cache, unless a handler says otherwise.
async fn defensive_headers(request: axum::extract::Request, next: axum::middleware::Next) -> axum::response::Response {
    // Whoever stands before this server may have understood another end of the body (RFC 9112, 6.1): what it takes for
    // the rest of this request must not become the next one.
    let ambiguous = request.headers().contains_key(TRANSFER_ENCODING);
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    if ambiguous {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    let defaults: [(HeaderName, &'static str); 2] = [(X_CONTENT_TYPE_OPTIONS, "nosniff"), (CACHE_CONTROL, "no-store")];
    for (name, value) in defaults {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    #[test]
    fn the_committed_document_is_the_current_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");
        let current = super::openapi().to_pretty_json().unwrap() + "\n";
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(path, &current).unwrap();
        }
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        let command = "UPDATE_DOCS=1 cargo test -p agentapi-runtime --lib committed_document";
        assert!(committed == current, "docs/openapi.json is out of date; run: {command}");
    }
}
