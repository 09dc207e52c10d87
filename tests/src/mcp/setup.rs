//! What tests of MCP begin with: a replica that may call servers on this machine, and connections to them.
use super::fastmcp::Fastmcp;
use crate::{
    api::Api,
    serve::{Platform, Replica, Tenant},
};
use anyhow::{Context, Result};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

/// A platform, a replica that may call loopback addresses, and the tenant acme.
pub async fn platform(session_pod: &str) -> Result<(Platform, Replica, Tenant)> {
    let platform = Platform::start(session_pod).await?;
    let replica = replica(&platform).await?;
    let tenant = platform.tenant("acme").await?;
    Ok((platform, replica, tenant))
}

/// One more replica that may call loopback addresses. It looks at no server by itself.
pub async fn replica(platform: &Platform) -> Result<Replica> {
    probing(platform, 0).await
}

/// One that looks at servers so often.
pub async fn probing(platform: &Platform, seconds: u64) -> Result<Replica> {
    let mut config = platform.config();
    config.outbound_open_ranges = vec!["127.0.0.0/8".parse()?];
    config.mcp_probe_seconds = seconds;
    platform.replica_with(config).await
}

/// A configuration to begin with.
pub fn configuration(name: &str, url: &str) -> Value {
    json!({"name": name, "transport": {"streamableHttp": {"url": url}}})
}

/// A FastMCP server that wants a token, which is in a Secret that is for it, and a connection to it that denies the tool
/// `broken`. `transport`: `http` or `sse`.
pub async fn protected(
    platform: &Platform,
    tenant: &Tenant,
    admin: &Api,
    transport: &'static str,
) -> Result<(Fastmcp, String)> {
    let server = Fastmcp::start(transport, Some("s3cret")).await?;
    let name = format!("fixture-{transport}");
    secret(platform, tenant, &name, "s3cret", &server.url())?;
    let field = if transport == "sse" { "sse" } else { "streamableHttp" };
    let body = json!({
        "name": name, "transport": {field: {"url": server.url()}},
        "auth": {"bearer": {"secretRef": {"name": name, "key": "token"}}}, "tools": {"deny": ["broken"]},
    });
    let id = connection(admin, &body).await?;
    Ok((server, id))
}

/// A Secret with a `token` for the server at this URL.
pub fn secret(platform: &Platform, tenant: &Tenant, name: &str, token: &str, url: &str) -> Result<()> {
    let slug = &tenant.organization.slug;
    platform.secrets.set(slug, name, "token", token);
    platform.secrets.allow(slug, name, url.parse::<url::Url>()?.authority());
    Ok(())
}

/// Makes a connection; gives back its id.
pub async fn connection(admin: &Api, body: &Value) -> Result<String> {
    let made = admin.post("/v1/mcp/configurations", body).await?.expect(201)?;
    Ok(made["id"].as_str().context("no id")?.to_owned())
}

/// Connects; gives back the client's id.
pub async fn connect(api: &Api, connection: &str) -> Result<String> {
    let made = api.post("/v1/mcp/connect", &json!({"connection": connection})).await?.expect(201)?;
    Ok(made["id"].as_str().context("no id")?.to_owned())
}

/// What a gateway answered: status, the session that it gives, and the messages.
#[derive(Debug)]
pub struct Exchange {
    /// Status of the answer.
    pub status: u16,
    /// `Mcp-Session-Id`.
    pub session: Option<String>,
    /// A problem document, or messages in their order.
    pub messages: Vec<Value>,
}

impl Exchange {
    /// The last message, which is the answer.
    pub fn answer(&self) -> &Value {
        self.messages.last().unwrap_or(&Value::Null)
    }
}

/// A message through the gateway, as an MCP client sends it.
pub fn posted(api: &Api, connection: &str, session: Option<&str>, message: &Value) -> RequestBuilder {
    let request = api
        .request(Method::POST, &format!("/v1/mcp/gateway/{connection}"))
        .header("accept", "application/json, text/event-stream")
        .header("mcp-protocol-version", "2025-06-18")
        .json(message);
    match session {
        Some(session) => request.header("mcp-session-id", session),
        None => request,
    }
}

/// Sends it and reads what comes back to its end.
pub async fn rpc(api: &Api, connection: &str, session: Option<&str>, message: &Value) -> Result<Exchange> {
    let response = posted(api, connection, session, message).send().await?;
    let header = |name: &str| response.headers().get(name).and_then(|it| it.to_str().ok()).map(str::to_owned);
    let (status, session, kind) = (response.status().as_u16(), header("mcp-session-id"), header("content-type"));
    let text = response.text().await?;
    let messages = if kind.as_deref() == Some("text/event-stream") {
        text.lines().filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok()).collect()
    } else {
        serde_json::from_str(&text).into_iter().collect()
    };
    Ok(Exchange { status, session, messages })
}

/// A request.
pub fn request(id: u64, method: &str, params: Value) -> Value {
    let mut message = json!({"jsonrpc": "2.0", "id": id, "method": method});
    message["params"] = params;
    message
}

/// A call of a tool.
pub fn call(tool: &str, arguments: Value) -> Value {
    let mut params = json!({"name": tool});
    params["arguments"] = arguments;
    request(7, "tools/call", params)
}

/// Opens a session through the gateway; gives back its id.
pub async fn initialize(api: &Api, connection: &str) -> Result<Option<String>> {
    let params =
        json!({"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "tests", "version": "1"}});
    let opened = rpc(api, connection, None, &request(1, "initialize", params)).await?;
    anyhow::ensure!(opened.answer()["result"]["protocolVersion"].is_string(), "{opened:?}");
    let initialized = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
    let told = rpc(api, connection, opened.session.as_deref(), &initialized).await?;
    anyhow::ensure!(told.status == 202, "{told:?}");
    Ok(opened.session)
}
