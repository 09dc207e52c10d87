//! What the API and the prober do with connections: load one, ask its server, and keep to its policy about tools.
//! May touch: `store`, servers through the client, metrics.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Map, Value, json};

use super::cancellations::Cancellations;
use super::client::{Answered, McpClient};
use super::connection::{Connection, Place, Unusable};
use super::error::UpstreamError;
use super::policy::{self, Denied, Pins, ToolDigest};
use super::protocol::Session;
use super::tools::{Tool, ToolPage};
use super::upstream::Target;
use crate::audit::{Entry, Origin as Who, action};
use crate::metrics::Metrics;
use crate::outbound::Ranges;
use crate::store::connections::StoredConnection;
use crate::store::identity::Organization;
use crate::store::observations::Look;
use crate::store::{Store, StoreError, TenantScope};

/// Why something did not work.
#[derive(Debug, thiserror::Error)]
pub enum McpError {
    /// The server, or the way there.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// The connection's policy.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// Postgres.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<Unusable> for McpError {
    fn from(unusable: Unusable) -> Self {
        Self::Upstream(unusable.into())
    }
}

impl McpError {
    /// A slug, as in problem documents and metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Upstream(error) => error.kind(),
            Self::Denied(denied) => denied.kind(),
            Self::Store(_) => "database",
        }
    }
}

/// A connection that is about to be used.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// What it is.
    pub connection: Connection,
    /// Its pinned tools, if there are any of this generation.
    pub pins: Option<Pins>,
    /// A pinned tool has changed.
    pub quarantined: bool,
}

impl Loaded {
    /// Whether a tool may be called.
    pub fn check(&self, tool: &str) -> Result<(), Denied> {
        policy::check(&self.connection.tools, self.pins.as_ref(), self.quarantined, tool)
    }

    /// Whether its tools are to be pinned and nobody has seen them yet.
    pub fn wants_pins(&self) -> bool {
        self.connection.tools.pin && self.pins.is_none()
    }

    /// Leaves what may be called.
    pub fn filter(&self, page: &mut ToolPage) {
        policy::filter(&self.connection.tools, self.pins.as_ref(), self.quarantined, page);
    }
}

/// Changed tools whose names are recorded.
const MOST_NAMED: usize = 16;

/// Names and digests of tools.
pub fn digests(tools: &[Tool]) -> Vec<ToolDigest> {
    tools.iter().map(|tool| tool.digest.clone()).collect()
}

/// All of MCP.
pub struct Mcp {
    client: McpClient,
    store: Store,
    metrics: Metrics,
    cluster_domain: String,
    cancellations: Cancellations,
}

fn pins_of(tools: &[ToolDigest]) -> Pins {
    tools.iter().map(|tool| (tool.name.clone(), tool.digest.clone())).collect()
}

impl Mcp {
    /// With these parts.
    pub fn new(client: McpClient, store: Store, metrics: Metrics, cluster_domain: String) -> Arc<Self> {
        Arc::new(Self { client, store, metrics, cluster_domain, cancellations: Cancellations::default() })
    }

    /// Where connections are.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// For whoever passes messages on.
    pub fn client(&self) -> &McpClient {
        &self.client
    }

    /// Requests that were cancelled, at whichever replica.
    pub fn cancellations(&self) -> &Cancellations {
        &self.cancellations
    }

    /// Reads a row.
    pub fn read(&self, organization: &Organization, stored: StoredConnection) -> Result<Loaded, Unusable> {
        let open = Ranges::new(stored.open.iter().filter_map(|range| range.parse().ok()));
        let place = Place { organization: &organization.slug, cluster_domain: &self.cluster_domain };
        let connection = Connection::read(place, stored.identity, &stored.spec, open)?;
        let seen = stored.observation.filter(|seen| seen.generation == connection.generation);
        let pins = seen.as_ref().and_then(|seen| seen.pinned.as_deref()).map(pins_of);
        Ok(Loaded { connection, pins, quarantined: seen.is_some_and(|seen| seen.quarantined) })
    }

    /// Asks for something that has nothing to do with tools.
    pub async fn ask(
        &self,
        target: Target<'_>,
        session: &Session,
        method: &str,
        params: &Map<String, Value>,
    ) -> Result<Answered, McpError> {
        let began = Instant::now();
        let asked = self.client.ask(target, session, method, params).await;
        self.told(target, method, asked.as_ref().err().map(UpstreamError::kind), began);
        Ok(asked?)
    }

    /// Opens a session.
    pub async fn open(&self, target: Target<'_>) -> Result<Session, McpError> {
        let began = Instant::now();
        let opened = self.client.open(target).await;
        self.told(target, "initialize", opened.as_ref().err().map(UpstreamError::kind), began);
        Ok(opened?)
    }

    /// Metrics of a call that is over.
    pub fn told(&self, target: Target<'_>, method: &str, failure: Option<&'static str>, began: Instant) {
        let Target { organization, connection, .. } = target;
        self.metrics.mcp_call(&organization.slug, &connection.name, method, failure.unwrap_or("ok"), began.elapsed());
        let state = self.client.guards().state(target);
        self.metrics.mcp_breaker(&organization.slug, &connection.name, state);
    }

    /// Where tools are pinned and none are yet, looks at them first.
    pub async fn ensure_pinned(&self, target: Target<'_>, loaded: &mut Loaded) -> Result<(), McpError> {
        if !loaded.wants_pins() {
            return Ok(());
        }
        let session = self.open(target).await?;
        let listed = self.client.list_tools(target, &session).await;
        self.client.close(target, &session).await;
        Ok(self.seen(target.organization, loaded, &digests(&listed?), true).await?)
    }

    /// Tools were seen: the first ones are pinned, if they are all there are; changed ones put the connection into
    /// quarantine.
    pub async fn seen(
        &self,
        organization: &Organization,
        loaded: &mut Loaded,
        tools: &[ToolDigest],
        all: bool,
    ) -> Result<(), StoreError> {
        let connection = &loaded.connection;
        if !connection.tools.pin {
            return Ok(());
        }
        let Some(pins) = &loaded.pins else {
            if all {
                loaded.pins = Some(self.pin(organization, connection, tools).await?);
            }
            return Ok(());
        };
        let changed = policy::changed(pins, tools);
        if !changed.is_empty() && !loaded.quarantined {
            self.quarantine(organization, connection, &changed).await?;
        }
        loaded.quarantined |= !changed.is_empty();
        Ok(())
    }

    /// The pins afterwards, which may be another replica's.
    async fn pin(
        &self,
        organization: &Organization,
        connection: &Connection,
        tools: &[ToolDigest],
    ) -> Result<Pins, StoreError> {
        let mut tx = self.store.tenant_tx(&TenantScope::system(organization)).await?;
        let look = Look {
            generation: connection.generation,
            state: "Ready",
            tools: Some(tools),
            breaker: "closed",
            ..Look::default()
        };
        let stored = tx.connection(connection.id).await?;
        let known = stored.and_then(|it| it.observation).is_some_and(|seen| seen.generation == connection.generation);
        if !known {
            tx.observe(connection.id, &look).await?;
        }
        tx.pin(connection.id, connection.generation, tools).await?;
        let pinned = tx.connection(connection.id).await?.and_then(|stored| stored.observation?.pinned);
        tx.commit().await?;
        Ok(pins_of(pinned.as_deref().unwrap_or(tools)))
    }

    async fn quarantine(
        &self,
        organization: &Organization,
        connection: &Connection,
        changed: &[String],
    ) -> Result<(), StoreError> {
        // A row of the audit log has an end: a server with many long names must not keep itself out of quarantine.
        let recorded = &changed[..changed.len().min(MOST_NAMED)];
        let names = changed.iter().take(10).map(String::as_str).collect::<Vec<_>>().join(", ");
        let why = format!(
            "the definition of {names} has changed since it was pinned; look at the change, then change the connection \
             (any field) to pin the tools anew"
        );
        let mut tx = self.store.tenant_tx(&TenantScope::system(organization)).await?;
        if tx.quarantine(connection.id, connection.generation, &why).await? {
            let id = connection.id.to_string();
            tx.audit(&Entry {
                origin: &Who::system("mcp"),
                action: action::MCP_QUARANTINE,
                target_kind: "McpConnection",
                target_id: Some(&id),
                detail: json!({ "name": connection.name, "tools": recorded, "changed": changed.len() }),
            })
            .await?;
            tracing::warn!(organization = organization.slug, connection = connection.name, tools = names, "quarantine");
        }
        tx.commit().await
    }
}
