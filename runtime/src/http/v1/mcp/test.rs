//! `POST /v1/mcp/test`: does a connection work? Nothing is kept but the row in the audit log. May touch: `store`, `mcp`.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;
use uuid::Uuid;

use super::body::Configuration;
use super::problem::no_such_configuration;
use crate::audit::{Client, Entry, action};
use crate::http::App;
use crate::http::error::{Problem, ProblemBody};
use crate::http::extract::{Admin, ApiJson};
use crate::mcp::connection::{Identity, Origin};
use crate::mcp::policy::ToolDigest;
use crate::mcp::service::{Loaded, McpError, digests};
use crate::mcp::upstream::Target;
use crate::outbound::Ranges;
use crate::store::connections::StoredConnection;

/// What to try; exactly one.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"configuration": {
    "name": "search", "transport": {"streamableHttp": {"url": "https://mcp.example.com/mcp"}},
    "auth": {"bearer": {"secretRef": {"name": "search", "key": "token"}}},
}}))]
pub struct TestRequest {
    /// Id of a configuration.
    connection: Option<Uuid>,
    /// A configuration that is not made yet.
    configuration: Option<Configuration>,
}

/// What came of it.
#[derive(Debug, Default, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TestResult {
    /// Whether the server could be reached, knows us and speaks the protocol.
    ok: bool,
    /// What is wrong, as in problem documents.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "mcp-unreachable")]
    error: Option<&'static str>,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    /// Version of the protocol that it speaks.
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol_version: Option<String>,
    /// What it says of itself.
    #[serde(skip_serializing_if = "Value::is_null")]
    server: Value,
    /// Its tools, all of them.
    tools: Vec<ToolDigest>,
}

/// Calls a server as you: opens a session, lists its tools, ends it. Admins only. The answer is 200 whether it works.
#[utoipa::path(
    post, path = "/v1/mcp/test", operation_id = "testMcp", tag = "mcp", request_body = TestRequest,
    responses(
        (status = 200, body = TestResult),
        (status = 403, description = "Only admins may.", body = ProblemBody, content_type = "application/problem+json"),
        (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn test(
    State(app): State<App>,
    Admin(caller): Admin,
    client: Client,
    ApiJson(body): ApiJson<TestRequest>,
) -> Result<Json<TestResult>, Problem> {
    let organization = &caller.organization;
    let mut tx = app.store.tenant_tx(&caller.scope()).await?;
    let stored = match (body.connection, body.configuration) {
        (Some(id), None) => tx.connection(id).await?.ok_or_else(no_such_configuration)?,
        (None, Some(configuration)) => {
            let open = tx.open_ranges().await?;
            let ranges = Ranges::new(open.iter().filter_map(|range| range.parse().ok()));
            let outbound = app.mcp.client().upstream().outbound();
            let (_, spec) = configuration.validate(&organization.slug, outbound, &ranges)?;
            // An id of its own: a test that fails is not the fault of a connection in use.
            let identity = Identity {
                id: Uuid::now_v7(),
                name: configuration.name,
                origin: Origin::Api,
                namespace: None,
                workspace_id: None,
                generation: 0,
            };
            StoredConnection {
                identity,
                workspace: None,
                spec,
                created_at: String::new(),
                updated_at: String::new(),
                open,
                observation: None,
            }
        }
        _ => return Err(Problem::invalid_field(".", "Send exactly one of connection and configuration.")),
    };
    let id = stored.identity.id.to_string();
    let entry = Entry {
        origin: &client.origin(&caller.subject),
        action: action::MCP_CONNECTION_TEST,
        target_kind: "McpConnection",
        target_id: body.connection.is_some().then_some(id.as_str()),
        detail: json!({ "name": stored.identity.name, "transport": stored.spec["transport"] }),
    };
    tx.audit(&entry).await?;
    tx.commit().await?;
    let tried = match app.mcp.read(organization, stored) {
        Ok(Loaded { connection, .. }) => {
            try_it(&app, Target { organization, user: Some(caller.user_id), connection: &connection }).await
        }
        Err(unusable) => Err(unusable.into()),
    };
    match tried {
        Ok(result) => Ok(Json(result)),
        Err(McpError::Store(error)) => Err(error.into()),
        Err(error) => Ok(Json(TestResult {
            error: Some(error.kind()),
            detail: Some(format!("{error}.")),
            ..TestResult::default()
        })),
    }
}

async fn try_it(app: &App, target: Target<'_>) -> Result<TestResult, McpError> {
    // Not through the service: the names of what is not saved are no labels of metrics.
    let client = app.mcp.client();
    let session = client.open(target).await?;
    let tools = if session.capabilities["tools"].is_null() {
        Vec::new()
    } else {
        digests(&client.list_tools(target, &session).await?)
    };
    client.close(target, &session).await;
    Ok(TestResult {
        ok: true,
        protocol_version: Some(session.protocol),
        server: session.server,
        tools,
        ..TestResult::default()
    })
}
