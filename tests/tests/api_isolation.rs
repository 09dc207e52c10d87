//! Tenants do not see each other: every route that the OpenAPI document names, with every method, so that a new route
//! cannot be forgotten. And the document itself and the docs page.

use std::collections::BTreeSet;

use agentapi_tests::attack::openapi::{Operation, operations};
use agentapi_tests::serve::{Platform, Replica};
use anyhow::{Context, Result};
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

const SESSION_POD: &str = env!("CARGO_BIN_EXE_session-pod");
const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];

async fn document(replica: &Replica) -> Result<Value> {
    replica.api(None)?.get("/openapi.json").await?.expect(200)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_with_an_id_is_404_for_other_organizations_and_other_users() -> Result<()> {
    let (platform, replica, acme) = Platform::with_acme(SESSION_POD).await?;
    let globex = platform.tenant("globex").await?;
    let owner = replica.api(Some(&globex.alice))?;
    let create = owner.request(Method::POST, "/v1/sessions").header("prefer", "wait=30");
    let session = owner.send(create.json(&json!({"workspace": "main"}))).await?.expect(201)?;
    assert_eq!(session["phase"], "Running");
    let id = session["id"].as_str().context("no id")?;
    let document = document(&replica).await?;
    let paths: BTreeSet<String> = operations(&document)
        .into_iter()
        .map(|operation| operation.path)
        .filter(|path| path.contains("{id}"))
        .collect();
    assert!(paths.len() >= 7, "{paths:?}");

    let strangers = [("acme's admin", &acme.admin), ("acme's user", &acme.alice), ("globex's other user", &globex.bob)];
    for path in &paths {
        let described = &document["paths"][path];
        for method in METHODS {
            for (who, token) in strangers {
                let api = replica.api(Some(token))?;
                let call = |id: &str| {
                    let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap_or(Method::GET);
                    let request = api.request(method, &path.replace("{id}", id));
                    if path.ends_with("/upload") {
                        let file = reqwest::multipart::Part::bytes(b"x".to_vec()).file_name("x");
                        request.multipart(reqwest::multipart::Form::new().part("file", file))
                    } else {
                        request.json(&json!({"content": "x", "type": "user"}))
                    }
                };
                let foreign = api.send(call(id)).await?;
                let nobodys = api.send(call(&Uuid::now_v7().to_string())).await?;
                let wanted = if described.get(method).is_some() { 404 } else { 405 };
                assert_eq!(foreign.status, wanted, "{who}: {method} {path}: {}", foreign.body);
                // A foreign id looks exactly like one that never was.
                let shape = |answer: &agentapi_tests::api::Answer| {
                    (answer.status, answer.problem().to_owned(), answer.body["detail"].clone())
                };
                assert_eq!(shape(&foreign), shape(&nobodys), "{who}: {method} {path}");
            }
        }
    }
    // After all that the session is untouched, and its owner and the owner's admin see it.
    let mine = owner.get(&format!("/v1/sessions/{id}")).await?.expect(200)?;
    assert_eq!(mine["phase"], "Running");
    replica.api(Some(&globex.admin))?.get(&format!("/v1/sessions/{id}")).await?.expect(200)?;
    let listed = replica.api(Some(&acme.admin))?.get("/v1/sessions").await?.expect(200)?;
    assert_eq!(listed["sessions"], json!([]));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_but_the_probes_wants_a_token() -> Result<()> {
    let (_platform, replica, _) = Platform::with_acme(SESSION_POD).await?;
    let api = replica.api(None)?;
    for Operation { path, method, description } in operations(&document(&replica).await?) {
        let method = Method::from_bytes(method.to_uppercase().as_bytes())?;
        let path = path.replace("{id}", &Uuid::now_v7().to_string());
        let answer = api.send(api.request(method.clone(), &path)).await?;
        // `security: [{}]` says in the document that a route is open.
        let open = description["security"] == json!([{}]);
        // Users come back from a provider with a state instead of a token.
        let wanted = match path.as_str() {
            "/live" | "/ready" | "/health" => 200,
            "/v1/oauth/callback" | "/v1/oauth/callback/{connection}" => 400,
            _ => 401,
        };
        assert_eq!((answer.status.as_u16(), open), (wanted, wanted != 401), "{method} {path}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_openapi_document_is_complete_and_consistent() -> Result<()> {
    let (_platform, replica, _) = Platform::with_acme(SESSION_POD).await?;
    let document = document(&replica).await?;
    assert_eq!(document["openapi"].as_str().map(|version| version.starts_with("3.1")), Some(true));
    assert_eq!(document["security"], json!([{"bearer": []}]));
    let mut ids = BTreeSet::new();
    let operations = operations(&document);
    assert!(operations.len() >= 14);
    for Operation { path, method, description: operation } in &operations {
        let what = format!("{method} {path}");
        let id = operation["operationId"].as_str().context(what.clone())?;
        assert!(ids.insert(id.to_owned()), "{what}: operationId {id} is there twice");
        let text = operation["summary"].as_str().or(operation["description"].as_str()).unwrap_or_default();
        assert!(!text.is_empty(), "{what} has no description");
        let named: Vec<_> = operation["parameters"].as_array().into_iter().flatten().collect();
        for part in path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')) {
            assert!(named.iter().any(|it| it["name"] == part && it["in"] == "path"), "{what}: {part} is not described");
        }
        let responses = operation["responses"].as_object().context("no responses")?;
        assert!(responses.keys().any(|status| status.starts_with('2')), "{what}");
        if path.starts_with("/v1/") {
            let problem = &responses["4XX"]["content"]["application/problem+json"];
            assert!(problem.is_object(), "{what}: errors are not described");
        }
    }
    let mut references = Vec::new();
    collect_references(&document, &mut references);
    assert!(!references.is_empty());
    for reference in references {
        let pointer = reference.strip_prefix('#').context("references stay in the document")?;
        assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
    }
    Ok(())
}

fn collect_references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            found.extend(fields.get("$ref").and_then(Value::as_str).map(str::to_owned));
            fields.values().for_each(|value| collect_references(value, found));
        }
        Value::Array(items) => items.iter().for_each(|value| collect_references(value, found)),
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_docs_page_runs_nothing_and_loads_nothing() -> Result<()> {
    let (_platform, replica, _) = Platform::with_acme(SESSION_POD).await?;
    let response = replica.api(None)?.request(Method::GET, "/docs").send().await?;
    assert_eq!(response.status(), 200);
    let policy = response.headers()["content-security-policy"].to_str()?.to_owned();
    assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{policy}");
    assert_eq!(response.headers()["x-content-type-options"], "nosniff");
    let page = response.text().await?;
    for forbidden in ["<script", "src="] {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
    // Schemas are escaped text, and have URLs as examples.
    let shown = page.split("<pre>").map(|part| part.split_once("</pre>").map_or(part, |(_, rest)| rest));
    let shown = shown.collect::<String>();
    assert!(shown.len() < page.len());
    for forbidden in ["http://", "https://"] {
        assert!(!shown.contains(forbidden), "{forbidden}");
    }
    assert!(page.contains("/v1/sessions/{id}/events"));
    Ok(())
}
