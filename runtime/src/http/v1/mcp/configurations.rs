//! `/v1/mcp/configurations`: connections of an organization, whoever made them. Those of McpConnection resources are
//! shown here and changed with `kubectl`. May touch: `store`, `mcp`.

use axum::Json;
use axum::extract::{FromRequest, Request, State};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use http::header::LOCATION;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::body::Configuration;
use super::problem::{managed_by_kubernetes, name_taken, no_such_configuration, no_such_workspace};
use crate::audit::{Client, Entry, action};
use crate::auth::Caller;
use crate::http::App;
use crate::http::error::{Problem, ProblemBody};
use crate::http::extract::{self, Admin, ApiJson, ApiQuery};
use crate::http::paging::Page;
use crate::http::v1::sessions::decode_cursor;
use crate::mcp::connection::Origin;
use crate::mcp::policy::ToolDigest;
use crate::outbound::Ranges;
use crate::store::TenantTx;
use crate::store::connections::{ConnectionFilter, NewConnection, Observation, StoredConnection};

use super::ConfigurationId;

const DEFAULT_LIMIT: u16 = 50;
const MAX_LIMIT: u16 = 200;
/// So many connections are read at a time, and after so many tools the page ends before its limit.
const AT_A_TIME: i64 = 8;
const MOST_TOOLS: usize = 4000;
/// More connections than anybody needs, fewer than would keep the prober busy.
const MAX_CONFIGURATIONS: i64 = 1000;

/// A connection to an MCP server.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigurationView {
    /// Its id; the gateway and the client routes take it.
    id: Uuid,
    /// Its name.
    #[schema(example = "search")]
    name: String,
    /// `api`: made here. `crd`: an McpConnection resource, changed with kubectl only.
    origin: Origin,
    /// Namespace of the resource.
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    /// Only sessions of this workspace use it.
    #[serde(skip_serializing_if = "Option::is_none")]
    workspace: Option<String>,
    /// Where the server is.
    transport: Value,
    /// How it is authenticated to; names of Secrets, never what is in them.
    auth: Value,
    /// Which of its tools are seen.
    tools: Value,
    /// When it is left alone after failures.
    breaker: Value,
    /// Upper limits of waiting.
    timeouts: Value,
    /// Grows with each change.
    generation: i64,
    /// RFC 3339.
    created_at: String,
    /// RFC 3339.
    updated_at: String,
    /// What was last seen of the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<ConfigurationStatus>,
}

/// What was last seen of a server.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigurationStatus {
    /// RFC 3339.
    observed_at: String,
    /// Generation of the configuration that it was looked at with.
    observed_generation: i64,
    /// `Ready`, or what is wrong.
    #[schema(example = "Ready")]
    state: String,
    /// More about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    /// Its tools, all of them.
    tools: Vec<ToolDigest>,
    /// A pinned tool has changed: calls are refused.
    quarantined: bool,
    /// `closed`, `open` or `half-open`.
    #[schema(example = "closed")]
    breaker: String,
    /// `NeedsConsent`, `Authorized`, `Expiring` or `Revoked`.
    #[serde(skip_serializing_if = "Option::is_none")]
    auth_state: Option<String>,
    /// Version of the protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol_version: Option<String>,
}

impl From<Observation> for ConfigurationStatus {
    fn from(seen: Observation) -> Self {
        Self {
            observed_at: seen.observed_at,
            observed_generation: seen.generation,
            state: seen.state,
            message: seen.message,
            tools: seen.tools,
            quarantined: seen.quarantined,
            breaker: seen.breaker,
            auth_state: seen.auth_state,
            protocol_version: seen.protocol,
        }
    }
}

impl From<StoredConnection> for ConfigurationView {
    fn from(mut stored: StoredConnection) -> Self {
        let mut part = |name: &str| stored.spec.get_mut(name).map_or_else(|| json!({}), Value::take);
        Self {
            transport: part("transport"),
            auth: part("auth"),
            tools: part("tools"),
            breaker: part("breaker"),
            timeouts: part("timeouts"),
            id: stored.identity.id,
            name: stored.identity.name,
            origin: stored.identity.origin,
            namespace: stored.identity.namespace,
            workspace: stored.workspace,
            generation: stored.identity.generation,
            created_at: stored.created_at,
            updated_at: stored.updated_at,
            status: stored.observation.map(ConfigurationStatus::from),
        }
    }
}

/// A page of configurations.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigurationPage {
    /// By id.
    configurations: Vec<ConfigurationView>,
    /// Pass it as `cursor` to get the next page; not there on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// Which configurations to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ConfigurationQuery {
    /// Only those made here (`api`) or those of resources (`crd`).
    origin: Option<Origin>,
    /// Only those of this name.
    name: Option<String>,
    /// Only those for this workspace.
    workspace: Option<String>,
    /// Only those with this transport: streamableHttp, sse or stdio.
    transport: Option<String>,
    /// Configurations per page, 1 to 200; 50 if left out. A page may have fewer where servers have thousands of tools.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u16>,
    /// `nextCursor` of the page before.
    cursor: Option<String>,
}

/// Address ranges that the caller's organization opens.
async fn opened(tx: &mut TenantTx) -> Result<Ranges, Problem> {
    Ok(Ranges::new(tx.open_ranges().await?.iter().filter_map(|range| range.parse().ok())))
}

async fn workspace_id(tx: &mut TenantTx, name: Option<&str>) -> Result<Option<Uuid>, Problem> {
    match name {
        None => Ok(None),
        Some(name) => Ok(Some(tx.workspace_id(name).await?.ok_or_else(no_such_workspace)?)),
    }
}

/// Makes a connection. Admins only; an organization has at most 1000.
#[utoipa::path(
    post, path = "/v1/mcp/configurations", operation_id = "createMcpConfiguration", tag = "mcp",
    request_body = Configuration,
    responses(
        (status = 201, body = ConfigurationView, headers(("Location" = String, description = "The configuration."))),
        (status = 403, description = "Only admins may.", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "There is one of this name.", body = ProblemBody,
         content_type = "application/problem+json"),
        (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn create(
    State(app): State<App>,
    Admin(caller): Admin,
    client: Client,
    ApiJson(body): ApiJson<Configuration>,
) -> Result<Response, Problem> {
    let mut tx = app.store.tenant_tx(&caller.scope()).await?;
    let open = opened(&mut tx).await?;
    let (transport, spec) = body.validate(&caller.organization.slug, app.mcp.client().upstream().outbound(), &open)?;
    let workspace_id = workspace_id(&mut tx, body.workspace.as_deref()).await?;
    let used = tx.count_own_connections().await?;
    if used >= MAX_CONFIGURATIONS {
        let detail = format!("Your organization has {used} configurations already; delete some that nobody uses.");
        return Err(Problem::quota_exceeded(detail, "organization.mcpConfigurations", MAX_CONFIGURATIONS, used));
    }
    let id = Uuid::now_v7();
    let new = NewConnection { name: &body.name, workspace_id, transport, spec: &spec };
    if !tx.insert_connection(id, &new).await? {
        return Err(name_taken(&body.name));
    }
    audit(&mut tx, &caller, &client, action::MCP_CONNECTION_CREATE, id, &body.name, Some(&spec)).await?;
    let stored = tx.connection(id).await?.ok_or_else(no_such_configuration)?;
    tx.commit().await?;
    let location = [(LOCATION, format!("/v1/mcp/configurations/{id}"))];
    Ok((StatusCode::CREATED, location, Json(ConfigurationView::from(stored))).into_response())
}

/// Connections of your organization, those of resources too.
#[utoipa::path(
    get, path = "/v1/mcp/configurations", operation_id = "listMcpConfigurations", tag = "mcp",
    params(ConfigurationQuery),
    responses(
        (status = 200, body = ConfigurationPage),
        (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn list(
    State(app): State<App>,
    caller: Caller,
    ApiQuery(query): ApiQuery<ConfigurationQuery>,
) -> Result<Json<ConfigurationPage>, Problem> {
    let page = Page::of(query.limit, DEFAULT_LIMIT, MAX_LIMIT)?;
    let mut filter = ConnectionFilter {
        origin: query.origin,
        name: query.name.as_deref(),
        workspace: query.workspace.as_deref(),
        transport: query.transport.as_deref(),
        after: query.cursor.as_deref().map(decode_cursor).transpose()?,
        limit: 0,
    };
    let mut parts = page.in_parts(AT_A_TIME, MOST_TOOLS);
    let mut tx = app.store.tenant_tx(&caller.scope()).await?;
    while let Some(limit) = parts.to_read() {
        filter.limit = limit;
        let stored = tx.connections(&filter).await?;
        let tools = |it: &StoredConnection| it.observation.as_ref().map_or(0, |seen| seen.tools.len());
        filter.after = parts.add(stored, limit, tools).map(|last| last.identity.id);
    }
    tx.commit().await?;
    let (stored, next_cursor) = parts.end(|last| URL_SAFE_NO_PAD.encode(last.identity.id.as_bytes()));
    Ok(Json(ConfigurationPage {
        configurations: stored.into_iter().map(ConfigurationView::from).collect(),
        next_cursor,
    }))
}

/// One connection.
#[utoipa::path(
    get, path = "/v1/mcp/configurations/{id}", operation_id = "getMcpConfiguration", tag = "mcp",
    params(("id" = Uuid, Path, description = "Configuration")),
    responses(
        (status = 200, body = ConfigurationView),
        (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn get(
    State(app): State<App>,
    caller: Caller,
    ConfigurationId(id): ConfigurationId,
) -> Result<Json<ConfigurationView>, Problem> {
    let mut tx = app.store.tenant_tx(&caller.scope()).await?;
    let stored = tx.connection(id).await?;
    tx.commit().await?;
    Ok(Json(stored.ok_or_else(no_such_configuration)?.into()))
}

/// Changes a connection that was made here: all of it, what is left out gets its default. Pinned tools are pinned anew.
#[utoipa::path(
    put, path = "/v1/mcp/configurations/{id}", operation_id = "replaceMcpConfiguration", tag = "mcp",
    params(("id" = Uuid, Path, description = "Configuration")), request_body = Configuration,
    responses(
        (status = 200, body = ConfigurationView),
        (status = 403, description = "Only admins may.", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "A resource says what it is, or there is another one of this name.",
         body = ProblemBody, content_type = "application/problem+json"),
        (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn replace(
    State(app): State<App>,
    caller: Caller,
    ConfigurationId(id): ConfigurationId,
    client: Client,
    request: Request,
) -> Result<Json<ConfigurationView>, Problem> {
    // Whether it is there comes first: who may not see it learns nothing from what else is wrong.
    let (head, body) = request.into_parts();
    own(&app, &caller, &client, id, &head).await?;
    let ApiJson(body) = ApiJson::<Configuration>::from_request(Request::from_parts(head, body), &app).await?;
    let mut tx = app.store.tenant_tx(&caller.scope()).await?;
    let open = opened(&mut tx).await?;
    let (transport, spec) = body.validate(&caller.organization.slug, app.mcp.client().upstream().outbound(), &open)?;
    let workspace_id = workspace_id(&mut tx, body.workspace.as_deref()).await?;
    let new = NewConnection { name: &body.name, workspace_id, transport, spec: &spec };
    if !tx.update_connection(id, &new).await? {
        return Err(name_taken(&body.name));
    }
    audit(&mut tx, &caller, &client, action::MCP_CONNECTION_UPDATE, id, &body.name, Some(&spec)).await?;
    let stored = tx.connection(id).await?.ok_or_else(no_such_configuration)?;
    tx.commit().await?;
    Ok(Json(stored.into()))
}

/// Removes a connection that was made here, with everybody's consents and clients.
#[utoipa::path(
    delete, path = "/v1/mcp/configurations/{id}", operation_id = "deleteMcpConfiguration", tag = "mcp",
    params(("id" = Uuid, Path, description = "Configuration")),
    responses(
        (status = 204, description = "It is gone."),
        (status = 403, description = "Only admins may.", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "A resource says what it is.", body = ProblemBody,
         content_type = "application/problem+json"),
        (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn delete(
    State(app): State<App>,
    caller: Caller,
    ConfigurationId(id): ConfigurationId,
    client: Client,
    request: Request,
) -> Result<StatusCode, Problem> {
    let (head, _) = request.into_parts();
    let stored = own(&app, &caller, &client, id, &head).await?;
    let mut tx = app.store.tenant_tx(&caller.scope()).await?;
    if !tx.delete_connection(id).await? {
        return Err(no_such_configuration());
    }
    audit(&mut tx, &caller, &client, action::MCP_CONNECTION_DELETE, id, &stored.identity.name, None).await?;
    tx.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A connection that the caller may change through the API.
async fn own(
    app: &App,
    caller: &Caller,
    client: &Client,
    id: Uuid,
    head: &http::request::Parts,
) -> Result<StoredConnection, Problem> {
    let mut tx = app.store.tenant_tx(&caller.scope()).await?;
    let stored = tx.connection(id).await?.ok_or_else(no_such_configuration)?;
    tx.commit().await?;
    extract::admin_only(app, caller, client, &head.method, &head.extensions).await?;
    match (&stored.identity.origin, &stored.identity.namespace) {
        (Origin::Api, _) => Ok(stored),
        (Origin::Crd, namespace) => {
            Err(managed_by_kubernetes(namespace.as_deref().unwrap_or_default(), &stored.identity.name))
        }
    }
}

async fn audit(
    tx: &mut TenantTx,
    caller: &Caller,
    client: &Client,
    action: &str,
    id: Uuid,
    name: &str,
    spec: Option<&Value>,
) -> Result<(), Problem> {
    let id = id.to_string();
    let mut detail = json!({ "name": name, "origin": "api" });
    if let Some(spec) = spec {
        // Where it is and how it is authenticated to: names of Secrets, which are no secrets.
        detail["transport"] = spec["transport"].clone();
        detail["auth"] = spec["auth"].clone();
        detail["tools"] = spec["tools"].clone();
    }
    let origin = client.origin(&caller.subject);
    tx.audit(&Entry { origin: &origin, action, target_kind: "McpConnection", target_id: Some(&id), detail }).await?;
    Ok(())
}
