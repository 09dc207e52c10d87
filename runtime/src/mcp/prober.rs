//! Looks at every connection's server now and then, and at once when the connection was changed, so that what is wrong
//! is seen before somebody needs it. One replica does it. What it sees is kept in Postgres, where the operator and the
//! API read it. May touch: `store`, servers through the client.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::credentials::{AuthState, CredentialError};
use super::error::UpstreamError;
use super::policy::ToolDigest;
use super::service::{Mcp, McpError, digests};
use super::upstream::Target;
use crate::store::identity::Organization;
use crate::store::leader::{Leadership, MCP_PROBER};
use crate::store::observations::Look;
use crate::store::{StoreError, TenantScope};

/// How often it is looked for connections that are due.
const TICK: Duration = Duration::from_secs(2);
/// Servers that are looked at at a time.
const AT_A_TIME: usize = 16;
/// A look takes no longer, whatever the connection says about calls.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs until `stop`.
pub async fn run(mcp: Arc<Mcp>, every: Duration, stop: CancellationToken) {
    let mut leadership: Option<Leadership> = None;
    while stop.run_until_cancelled(tokio::time::sleep(TICK)).await.is_some() {
        let lost = match &mut leadership {
            Some(leadership) => leadership.confirm().await.is_err(),
            None => true,
        };
        if lost {
            leadership = mcp.store().try_lead(MCP_PROBER).await.unwrap_or_default();
        }
        if leadership.is_some() {
            let round = stop.run_until_cancelled(round(&mcp, every)).await;
            if let Some(Err(error)) = round {
                tracing::warn!(%error, "cannot look at MCP servers");
            }
        }
    }
    if let Some(leadership) = leadership {
        // Otherwise the connection's end does it.
        let _ = leadership.resign().await;
    }
}

async fn round(mcp: &Arc<Mcp>, every: Duration) -> Result<(), StoreError> {
    let mut due = Vec::new();
    for organization in mcp.store().organizations().await? {
        let organization = Arc::new(organization);
        match due_of(mcp, &organization, every).await {
            Ok(ids) => due.extend(ids.into_iter().map(|id| (Arc::clone(&organization), id))),
            // One that is leaving must not keep the others from being looked at.
            Err(error) => tracing::debug!(%error, organization = organization.slug, "cannot see its connections"),
        }
    }
    let looks = futures::stream::iter(due).map(async |(organization, id)| {
        if let Err(error) = look_at(mcp, &organization, id).await {
            tracing::warn!(%error, organization = organization.slug, connection = %id, "cannot keep what was seen");
        }
    });
    looks.buffer_unordered(AT_A_TIME).collect::<()>().await;
    Ok(())
}

async fn due_of(mcp: &Mcp, organization: &Organization, every: Duration) -> Result<Vec<Uuid>, StoreError> {
    let mut tx = mcp.store().tenant_tx(&TenantScope::system(organization)).await?;
    let due = tx.connections_to_look_at(every.as_secs_f64()).await?;
    tx.delete_idle_clients().await?;
    tx.commit().await?;
    Ok(due)
}

/// What was seen, as it is kept.
#[derive(Debug, Default)]
struct Sight {
    state: &'static str,
    message: Option<String>,
    tools: Option<Vec<ToolDigest>>,
    protocol: Option<String>,
}

async fn look_at(mcp: &Mcp, organization: &Arc<Organization>, id: Uuid) -> Result<(), StoreError> {
    let mut tx = mcp.store().tenant_tx(&TenantScope::system(organization)).await?;
    let stored = tx.connection(id).await?;
    tx.commit().await?;
    let Some(stored) = stored else { return Ok(()) };
    let generation = stored.identity.generation;
    let mut loaded = match mcp.read(organization, stored) {
        Ok(loaded) => loaded,
        Err(unusable) => {
            let sight = Sight { state: "Unusable", message: Some(unusable.to_string()), ..Sight::default() };
            return keep(mcp, organization, id, generation, &sight, "closed", None).await;
        }
    };
    let target = Target { organization, user: None, connection: &loaded.connection };
    let auth = mcp.client().upstream().credentials().state(organization, &loaded.connection).await;
    let sight = match tokio::time::timeout(PATIENCE, see(mcp, target)).await {
        Ok(Ok(sight)) => sight,
        Ok(Err(McpError::Store(error))) => return Err(error),
        Ok(Err(error)) => failure(&error, auth),
        Err(_) => failure(&UpstreamError::TimedOut(PATIENCE).into(), auth),
    };
    let breaker = mcp.client().guards().state(target).as_str();
    keep(mcp, organization, id, generation, &sight, breaker, auth).await?;
    match sight.tools {
        Some(tools) => mcp.seen(organization, &mut loaded, &tools, true).await,
        None => Ok(()),
    }
}

async fn see(mcp: &Mcp, target: Target<'_>) -> Result<Sight, McpError> {
    let session = mcp.open(target).await?;
    let client = mcp.client();
    let tools = if session.capabilities["tools"].is_null() {
        Ok(Vec::new())
    } else {
        client.list_tools(target, &session).await.map(|tools| digests(&tools))
    };
    client.close(target, &session).await;
    Ok(Sight { state: "Ready", tools: Some(tools?), protocol: Some(session.protocol), message: None })
}

fn failure(error: &McpError, auth: Option<AuthState>) -> Sight {
    let consented = matches!(auth, Some(AuthState::Authorized | AuthState::Expiring));
    let state = match error {
        // Users have their own grants, and none of them is ours to use.
        McpError::Upstream(UpstreamError::Credentials(CredentialError::NeedsConsent)) if consented => "Ready",
        McpError::Upstream(error) => state(error),
        McpError::Denied(_) | McpError::Store(_) => "Failing",
    };
    Sight { state, message: (state != "Ready").then(|| error.to_string()), ..Sight::default() }
}

fn state(error: &UpstreamError) -> &'static str {
    match error {
        UpstreamError::Unusable(_) => "Unusable",
        UpstreamError::Refused(_) => "AddressRefused",
        UpstreamError::Credentials(CredentialError::NeedsConsent) => "NeedsConsent",
        UpstreamError::Credentials(CredentialError::Revoked) => "ConsentRevoked",
        UpstreamError::Credentials(_) => "NoCredentials",
        UpstreamError::BreakerOpen(_) => "BreakerOpen",
        UpstreamError::Unreachable(_) => "Unreachable",
        UpstreamError::TimedOut(_) => "TimedOut",
        UpstreamError::Unauthorized | UpstreamError::Forbidden => "Unauthorized",
        UpstreamError::NotMcp(_) => "ProtocolError",
        _ => "Failing",
    }
}

async fn keep(
    mcp: &Mcp,
    organization: &Organization,
    id: Uuid,
    generation: i64,
    sight: &Sight,
    breaker: &str,
    auth: Option<AuthState>,
) -> Result<(), StoreError> {
    let look = Look {
        generation,
        state: sight.state,
        message: sight.message.as_deref(),
        tools: sight.tools.as_deref(),
        breaker,
        auth_state: auth.map(AuthState::as_str),
        protocol: sight.protocol.as_deref(),
    };
    let mut tx = mcp.store().tenant_tx(&TenantScope::system(organization)).await?;
    // It may have been removed meanwhile.
    if tx.connection(id).await?.is_some() {
        tx.observe(id, &look).await?;
    }
    tx.commit().await
}
