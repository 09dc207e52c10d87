//! `/openapi.json`, and `/docs`: the same as a page for people, rendered here from the document. The page has no
//! script and loads nothing, and its Content-Security-Policy says so. May touch: nothing.

use std::fmt::Write;
use std::sync::LazyLock;

use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::router;

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;\
color:#1b1f24;background:#fff}code,pre{font:14px/1.4 ui-monospace,monospace}pre{background:#f3f4f6;padding:.75rem;\
overflow:auto;border-radius:6px}table{border-collapse:collapse;width:100%;margin:.5rem 0}td,th{text-align:left;\
vertical-align:top;padding:.25rem .75rem .25rem 0;border-bottom:1px solid #e5e7eb}section{margin:2rem 0}\
.method{display:inline-block;min-width:4.5rem;font-weight:700}summary{cursor:pointer}a{color:#0550ae}\
@media(prefers-color-scheme:dark){body{color:#e6edf3;background:#0d1117}pre{background:#161b22}\
td,th{border-color:#30363d}a{color:#79c0ff}}";

static JSON: LazyLock<String> = LazyLock::new(|| router::openapi().to_json().unwrap_or_default());
static PAGE: LazyLock<String> = LazyLock::new(|| render(&serde_json::from_str(&JSON).unwrap_or_default()));
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = STANDARD.encode(Sha256::digest(STYLE.as_bytes()));
    format!(
        "default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
});

/// `GET /openapi.json`
pub async fn openapi_json() -> Response {
    ([(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "public, max-age=60")], JSON.as_str()).into_response()
}

/// `GET /docs`
pub async fn page() -> Response {
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CACHE_CONTROL, "public, max-age=60"),
        (CONTENT_SECURITY_POLICY, POLICY.as_str()),
    ];
    (headers, PAGE.as_str()).into_response()
}

/// Text that is safe between tags and in double quotes.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

/// Writing to a String cannot fail; this keeps the calls short.
macro_rules! put {
    ($page:expr, $($arg:tt)*) => {
        let _ = write!($page, $($arg)*);
    };
}

fn render(document: &Value) -> String {
    let (title, version) = (escape(text(document, "/info/title")), escape(text(document, "/info/version")));
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title><style>{STYLE}</style></head>\
         <body><h1>{title} {version}</h1><p>{}</p><p>Send <code>Authorization: Bearer &lt;token&gt;</code>. The \
         machine-readable form of this page is <a href=\"/openapi.json\">/openapi.json</a>.</p>",
        escape(text(document, "/info/description"))
    );
    let operations =
        entries(&document["paths"]).flat_map(|(path, item)| entries(item).map(move |(method, it)| (path, method, it)));
    for (path, method, operation) in operations.filter(|(_, _, it)| it.is_object()) {
        render_operation(&mut page, path, method, operation);
    }
    page.push_str("<h2>Types</h2>");
    for (name, schema) in entries(&document["components"]["schemas"]) {
        let pretty = serde_json::to_string_pretty(schema).unwrap_or_default();
        let name = escape(name);
        put!(page, "<details id=\"{name}\"><summary>{name}</summary><pre>{}</pre></details>", escape(&pretty));
    }
    page.push_str("</body></html>");
    page
}

fn render_operation(page: &mut String, path: &str, method: &str, operation: &Value) {
    let method = escape(&method.to_uppercase());
    let summary = text(operation, "/summary");
    let about = if summary.is_empty() { text(operation, "/description") } else { summary };
    put!(page, "<section><h3><span class=\"method\">{method}</span> <code>{}</code></h3>", escape(path));
    put!(page, "<p>{}</p>", escape(about));
    let parameters: Vec<&Value> = operation["parameters"].as_array().into_iter().flatten().collect();
    let body = operation.pointer("/requestBody/content");
    if !parameters.is_empty() || body.is_some() {
        page.push_str("<table><tr><th>Input</th><th>Where</th><th>About</th></tr>");
        for parameter in parameters {
            let (name, place) = (escape(text(parameter, "/name")), escape(text(parameter, "/in")));
            let about = escape(text(parameter, "/description"));
            put!(page, "<tr><td><code>{name}</code></td><td>{place}</td><td>{about}</td></tr>");
        }
        for (kind, media) in body.map(entries).into_iter().flatten() {
            let schema = type_link(media);
            put!(page, "<tr><td>{schema}</td><td>body</td><td><code>{}</code></td></tr>", escape(kind));
        }
        page.push_str("</table>");
    }
    page.push_str("<table><tr><th>Status</th><th>Body</th><th>About</th></tr>");
    for (status, response) in entries(&operation["responses"]) {
        let body = response["content"].as_object().and_then(|content| content.values().next()).map(type_link);
        let about = escape(text(response, "/description"));
        put!(page, "<tr><td>{}</td><td>{}</td><td>{about}</td></tr>", escape(status), body.unwrap_or_default());
    }
    page.push_str("</table></section>");
}

fn type_link(media: &Value) -> String {
    let name = text(media, "/schema/$ref").rsplit('/').next().unwrap_or_default();
    if name.is_empty() {
        return String::new();
    }
    let name = escape(name);
    format!("<a href=\"#{name}\">{name}</a>")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_page_shows_every_route_and_runs_nothing() {
        let document: Value = serde_json::from_str(&JSON).unwrap();
        for (path, _) in entries(&document["paths"]) {
            assert!(PAGE.contains(&format!("<code>{path}</code>")), "{path}");
        }
        assert!(!PAGE.contains("<script"));
        assert!(POLICY.starts_with("default-src 'none'"));
    }

    #[test]
    fn what_comes_from_the_document_is_escaped() {
        let document = serde_json::json!({"info": {"title": "<b>&\""}, "paths": {}});
        assert!(render(&document).contains("&lt;b&gt;&amp;&quot;"));
    }
}
