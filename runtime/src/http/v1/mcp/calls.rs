//! What a user's client asks its server: tools, resources, prompts. May touch: `store`, `mcp`.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;
use uuid::Uuid;

use super::used::Used;
use super::{CallRecord, body_in};
use crate::audit::Client;
use crate::auth::Caller;
use crate::http::App;
use crate::http::error::{Problem, ProblemBody};
use crate::http::extract::ApiJson;
use crate::mcp::client::Answered;
use crate::mcp::service::McpError;
use crate::mcp::tools::{MAX_NAME_BYTES, ToolPage, is_name};

const MAX_TEXT_BYTES: usize = 4096;

/// What to list.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ListRequest {
    /// Id of a client.
    client: Uuid,
    /// `nextCursor` of the page before.
    cursor: Option<String>,
}

/// What to call.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CallTool {
    /// Id of a client.
    client: Uuid,
    /// Name of a tool.
    #[schema(example = "search")]
    name: String,
    /// What the tool's schema asks for.
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, String>)]
    arguments: Map<String, Value>,
}

/// What to read.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReadResource {
    /// Id of a client.
    client: Uuid,
    /// URI of a resource, as the server lists it.
    #[schema(example = "file:///README.md")]
    uri: String,
}

/// What to get.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GetPrompt {
    /// Id of a client.
    client: Uuid,
    /// Name of a prompt.
    #[schema(example = "review")]
    name: String,
    /// What the prompt asks for.
    #[serde(default)]
    arguments: BTreeMap<String, String>,
}

/// The server's own answer.
#[derive(ToSchema)]
#[schema(value_type = Object)]
pub struct ServerAnswer(Answered);

impl IntoResponse for ServerAnswer {
    fn into_response(self) -> Response {
        let Answered { value, room } = self.0;
        let text: Box<str> = value.into();
        ([(CONTENT_TYPE, "application/json")], body_in(room, text.into())).into_response()
    }
}

/// One page of the server's tools, without those that the connection does not let through.
#[utoipa::path(
    post, path = "/v1/mcp/list_tools", operation_id = "listMcpTools", tag = "mcp", request_body = ListRequest,
    responses(
        (status = 200, body = ServerAnswer),
        (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn list_tools(
    State(app): State<App>,
    caller: Caller,
    ApiJson(body): ApiJson<ListRequest>,
) -> Result<ServerAnswer, Problem> {
    let mut used = Used::load(&app, &caller, body.client).await?;
    ensure_pinned(&app, &caller, &mut used).await?;
    let mut answer = used.ask(&app, &caller, "tools/list", &cursor(body.cursor)?).await?;
    let mut page = ToolPage::read(&answer.value);
    app.mcp.seen(&caller.organization, &mut used.loaded, &page.digests(), false).await?;
    used.loaded.filter(&mut page);
    answer.value = page.to_raw().ok_or_else(Problem::internal)?;
    used.keep(&app, &caller).await?;
    Ok(ServerAnswer(answer))
}

async fn ensure_pinned(app: &App, caller: &Caller, used: &mut Used) -> Result<(), McpError> {
    let mut loaded = used.loaded.clone();
    app.mcp.ensure_pinned(used.target(caller), &mut loaded).await?;
    used.loaded = loaded;
    Ok(())
}

fn cursor(cursor: Option<String>) -> Result<Map<String, Value>, Problem> {
    let mut params = Map::new();
    if let Some(cursor) = cursor {
        text("cursor", &cursor, MAX_TEXT_BYTES)?;
        params.insert("cursor".to_owned(), Value::String(cursor));
    }
    Ok(params)
}

fn text(field: &str, text: &str, most: usize) -> Result<(), Problem> {
    if text.is_empty() || text.len() > most || text.contains('\0') {
        return Err(Problem::invalid_field(field, format!("{field} has 1 to {most} bytes and no NUL.")));
    }
    Ok(())
}

fn tool_name(name: &str) -> Result<(), Problem> {
    if !is_name(name) {
        let detail = format!("name has 1 to {MAX_NAME_BYTES} bytes and no control characters.");
        return Err(Problem::invalid_field("name", detail));
    }
    Ok(())
}

/// Calls a tool. The answer is the server's; a tool that failed says so in it with `isError`.
#[utoipa::path(
    post, path = "/v1/mcp/call_tool", operation_id = "callMcpTool", tag = "mcp", request_body = CallTool,
    responses(
        (status = 200, body = ServerAnswer),
        (status = 403, description = "The connection does not let this tool through, or consent is needed.",
         body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "The connection is in quarantine.", body = ProblemBody,
         content_type = "application/problem+json"),
        (status = 503, description = "The server has failed too often a moment ago.", body = ProblemBody,
         content_type = "application/problem+json"),
        (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn call_tool(
    State(app): State<App>,
    caller: Caller,
    client: Client,
    ApiJson(body): ApiJson<CallTool>,
) -> Result<ServerAnswer, Problem> {
    tool_name(&body.name)?;
    let mut used = Used::load(&app, &caller, body.client).await?;
    ensure_pinned(&app, &caller, &mut used).await?;
    let (origin, arguments) = (client.origin(&caller.subject), Value::Object(body.arguments));
    let connection = used.loaded.connection.clone();
    let record = CallRecord { origin: &origin, connection: &connection, tool: &body.name, arguments: &arguments };
    if let Err(denied) = used.loaded.check(&body.name) {
        record.write(&app, &caller.scope(), Some(denied.kind())).await?;
        return Err(denied.into());
    }
    record.write(&app, &caller.scope(), None).await?;
    let mut params = Map::new();
    params.insert("name".to_owned(), json!(body.name));
    params.insert("arguments".to_owned(), arguments.clone());
    let asked = used.ask(&app, &caller, "tools/call", &params).await;
    if let Err(error) = &asked {
        record.write(&app, &caller.scope(), Some(error.kind())).await?;
    }
    let answer = asked?;
    used.keep(&app, &caller).await?;
    Ok(ServerAnswer(answer))
}

/// Asks for what has nothing to do with tools.
async fn plain(
    app: &App,
    caller: &Caller,
    client: Uuid,
    method: &str,
    params: &Map<String, Value>,
) -> Result<ServerAnswer, Problem> {
    let mut used = Used::load(app, caller, client).await?;
    let answer = used.ask(app, caller, method, params).await?;
    used.keep(app, caller).await?;
    Ok(ServerAnswer(answer))
}

/// One page of the server's resources.
#[utoipa::path(
    post, path = "/v1/mcp/list_resources", operation_id = "listMcpResources", tag = "mcp", request_body = ListRequest,
    responses(
        (status = 200, body = ServerAnswer),
        (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn list_resources(
    State(app): State<App>,
    caller: Caller,
    ApiJson(body): ApiJson<ListRequest>,
) -> Result<ServerAnswer, Problem> {
    plain(&app, &caller, body.client, "resources/list", &cursor(body.cursor)?).await
}

/// Reads a resource.
#[utoipa::path(
    post, path = "/v1/mcp/read_resource", operation_id = "readMcpResource", tag = "mcp", request_body = ReadResource,
    responses(
        (status = 200, body = ServerAnswer),
        (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn read_resource(
    State(app): State<App>,
    caller: Caller,
    ApiJson(body): ApiJson<ReadResource>,
) -> Result<ServerAnswer, Problem> {
    text("uri", &body.uri, MAX_TEXT_BYTES)?;
    let mut params = Map::new();
    params.insert("uri".to_owned(), Value::String(body.uri));
    plain(&app, &caller, body.client, "resources/read", &params).await
}

/// One page of the server's prompts.
#[utoipa::path(
    post, path = "/v1/mcp/list_prompts", operation_id = "listMcpPrompts", tag = "mcp", request_body = ListRequest,
    responses(
        (status = 200, body = ServerAnswer),
        (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn list_prompts(
    State(app): State<App>,
    caller: Caller,
    ApiJson(body): ApiJson<ListRequest>,
) -> Result<ServerAnswer, Problem> {
    plain(&app, &caller, body.client, "prompts/list", &cursor(body.cursor)?).await
}

/// Gets a prompt.
#[utoipa::path(
    post, path = "/v1/mcp/get_prompt", operation_id = "getMcpPrompt", tag = "mcp", request_body = GetPrompt,
    responses(
        (status = 200, body = ServerAnswer),
        (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn get_prompt(
    State(app): State<App>,
    caller: Caller,
    ApiJson(body): ApiJson<GetPrompt>,
) -> Result<ServerAnswer, Problem> {
    text("name", &body.name, MAX_NAME_BYTES)?;
    let mut params = Map::new();
    params.insert("name".to_owned(), Value::String(body.name));
    params.insert("arguments".to_owned(), json!(body.arguments));
    plain(&app, &caller, body.client, "prompts/get", &params).await
}
