//! Clients: a user connects to a server and disconnects; any replica goes on where another one was.
//! May touch: `store`, `mcp`.

use axum::Json;
use axum::extract::State;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::ClientId;
use super::problem::no_such_client;
use super::used::load;
use crate::audit::{Client, Entry, action};
use crate::auth::Caller;
use crate::http::App;
use crate::http::error::{Problem, ProblemBody};
use crate::http::extract::{ApiJson, ApiQuery};
use crate::http::paging::Page;
use crate::http::v1::sessions::decode_cursor;
use crate::mcp::protocol::Session;
use crate::mcp::upstream::Target;
use crate::store::TenantTx;
use crate::store::clients::StoredClient;

const DEFAULT_LIMIT: u16 = 50;
const MAX_LIMIT: u16 = 200;
const MAX_CLIENTS: i64 = 100;

/// Whom to connect to.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Connect {
    /// Id of a configuration.
    connection: Uuid,
}

/// Which client.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Disconnect {
    /// Id of a client.
    client: Uuid,
}

/// A user's session with a server.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClientView {
    /// Its id; the other client routes take it.
    id: Uuid,
    /// The configuration that it was opened with.
    connection: Uuid,
    /// Version of the protocol that the server speaks.
    #[schema(example = "2025-11-25")]
    protocol_version: String,
    /// What the server says of itself.
    server: Value,
    /// What it can do.
    capabilities: Value,
    /// RFC 3339.
    created_at: String,
    /// RFC 3339.
    used_at: String,
}

impl From<StoredClient> for ClientView {
    fn from(row: StoredClient) -> Self {
        let text = |name: &str| row.session[name].clone();
        Self {
            id: row.id,
            connection: row.connection_id,
            protocol_version: row.session["protocol"].as_str().unwrap_or_default().to_owned(),
            server: text("server"),
            capabilities: text("capabilities"),
            created_at: row.created_at,
            used_at: row.used_at,
        }
    }
}

/// A page of clients.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClientPage {
    /// Newest first.
    clients: Vec<ClientView>,
    /// Pass it as `cursor` to get the next page; not there on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// Which clients to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ClientQuery {
    /// Only those of this configuration.
    connection: Option<Uuid>,
    /// Clients per page, 1 to 200; 50 if left out.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u16>,
    /// `nextCursor` of the page before.
    cursor: Option<String>,
}

/// Connects to a server as yourself; at most 100 clients each. One that is not used for a day is forgotten.
#[utoipa::path(
    post, path = "/v1/mcp/connect", operation_id = "connectMcp", tag = "mcp", request_body = Connect,
    responses(
        (status = 201, body = ClientView),
        (status = 502, description = "The server failed.", body = ProblemBody, content_type = "application/problem+json"),
        (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn connect(
    State(app): State<App>,
    caller: Caller,
    client: Client,
    ApiJson(body): ApiJson<Connect>,
) -> Result<(StatusCode, Json<ClientView>), Problem> {
    let loaded = load(&app, &caller, body.connection).await?;
    let connection = &loaded.connection;
    let target = Target { organization: &caller.organization, user: Some(caller.user_id), connection };
    let session: Session = app.mcp.open(target).await?;
    let id = Uuid::now_v7();
    let mut tx = app.store.tenant_tx(&caller.scope()).await?;
    let used = tx.count_clients().await?;
    if used >= MAX_CLIENTS {
        let detail = format!("You have {used} MCP clients already; disconnect some.");
        return Err(Problem::quota_exceeded(detail, "user.mcpClients", MAX_CLIENTS, used));
    }
    tx.insert_client(id, connection.id, connection.generation, &json!(session)).await?;
    audit(&mut tx, &caller, &client, action::MCP_CONNECT, id, connection.id).await?;
    let row = tx.client(id).await?.ok_or_else(no_such_client)?;
    tx.commit().await?;
    Ok((StatusCode::CREATED, Json(row.into())))
}

/// Ends a client.
#[utoipa::path(
    post, path = "/v1/mcp/disconnect", operation_id = "disconnectMcp", tag = "mcp", request_body = Disconnect,
    responses(
        (status = 204, description = "It is gone."),
        (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn disconnect(
    State(app): State<App>,
    caller: Caller,
    client: Client,
    ApiJson(body): ApiJson<Disconnect>,
) -> Result<StatusCode, Problem> {
    end(&app, &caller, &client, body.client).await
}

async fn audit(
    tx: &mut TenantTx,
    caller: &Caller,
    client: &Client,
    action: &str,
    id: Uuid,
    connection: Uuid,
) -> Result<(), Problem> {
    let (origin, id) = (client.origin(&caller.subject), id.to_string());
    let detail = json!({ "connection": connection });
    tx.audit(&Entry { origin: &origin, action, target_kind: "mcp-client", target_id: Some(&id), detail }).await?;
    Ok(())
}

async fn end(app: &App, caller: &Caller, client: &Client, id: Uuid) -> Result<StatusCode, Problem> {
    let mut tx = app.store.tenant_tx(&caller.scope()).await?;
    let row = tx.client(id).await?.ok_or_else(no_such_client)?;
    if !tx.delete_client(id).await? {
        return Err(no_such_client());
    }
    audit(&mut tx, caller, client, action::MCP_DISCONNECT, id, row.connection_id).await?;
    let stored = tx.connection(row.connection_id).await?;
    tx.commit().await?;
    // Said to the server too, but only with the user's own credentials.
    let loaded = stored.and_then(|stored| app.mcp.read(&caller.organization, stored).ok());
    let session = serde_json::from_value::<Session>(row.session).ok();
    if let (Some(loaded), Some(session), true) = (loaded, session, row.user_id == caller.user_id) {
        let connection = &loaded.connection;
        let target = Target { organization: &caller.organization, user: Some(caller.user_id), connection };
        app.mcp.client().close(target, &session).await;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Clients that you may see: your own, or as an admin all of your organization.
#[utoipa::path(
    get, path = "/v1/mcp/clients", operation_id = "listMcpClients", tag = "mcp", params(ClientQuery),
    responses(
        (status = 200, body = ClientPage),
        (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn list(
    State(app): State<App>,
    caller: Caller,
    ApiQuery(query): ApiQuery<ClientQuery>,
) -> Result<Json<ClientPage>, Problem> {
    let page = Page::of(query.limit, DEFAULT_LIMIT, MAX_LIMIT)?;
    let before = query.cursor.as_deref().map(decode_cursor).transpose()?;
    let mut tx = app.store.tenant_tx(&caller.scope()).await?;
    let mut rows = tx.clients(query.connection, before, page.to_read()).await?;
    tx.commit().await?;
    let next_cursor = page.cut(&mut rows).map(|last| URL_SAFE_NO_PAD.encode(last.id.as_bytes()));
    Ok(Json(ClientPage { clients: rows.into_iter().map(ClientView::from).collect(), next_cursor }))
}

/// One client.
#[utoipa::path(
    get, path = "/v1/mcp/client/{id}", operation_id = "getMcpClient", tag = "mcp",
    params(("id" = Uuid, Path, description = "Client")),
    responses(
        (status = 200, body = ClientView),
        (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn get(State(app): State<App>, caller: Caller, ClientId(id): ClientId) -> Result<Json<ClientView>, Problem> {
    let mut tx = app.store.tenant_tx(&caller.scope()).await?;
    let row = tx.client(id).await?;
    tx.commit().await?;
    Ok(Json(row.ok_or_else(no_such_client)?.into()))
}

/// Ends a client, as `POST /v1/mcp/disconnect` does.
#[utoipa::path(
    delete, path = "/v1/mcp/client/{id}", operation_id = "deleteMcpClient", tag = "mcp",
    params(("id" = Uuid, Path, description = "Client")),
    responses(
        (status = 204, description = "It is gone."),
        (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn delete(
    State(app): State<App>,
    caller: Caller,
    client: Client,
    ClientId(id): ClientId,
) -> Result<StatusCode, Problem> {
    end(&app, &caller, &client, id).await
}
