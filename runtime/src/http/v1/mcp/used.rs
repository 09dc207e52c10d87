//! A user's client while it is used: its row, its connection, its session with the server. A session that the server
//! has forgotten is opened again, once. May touch: `store`, `mcp`.

use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::problem::{no_such_client, no_such_configuration};
use crate::auth::Caller;
use crate::http::App;
use crate::http::error::Problem;
use crate::mcp::client::Answered;
use crate::mcp::error::UpstreamError;
use crate::mcp::protocol::Session;
use crate::mcp::service::{Loaded, McpError};
use crate::mcp::upstream::Target;
use crate::store::clients::StoredClient;

/// A client that is used.
pub(super) struct Used {
    pub(super) row: StoredClient,
    pub(super) loaded: Loaded,
    pub(super) session: Session,
}

/// A connection of the caller's organization.
pub(super) async fn load(app: &App, caller: &Caller, id: Uuid) -> Result<Loaded, Problem> {
    let mut tx = app.store.tenant_tx(&caller.scope()).await?;
    let stored = tx.connection(id).await?;
    tx.commit().await?;
    let stored = stored.ok_or_else(no_such_configuration)?;
    Ok(app.mcp.read(&caller.organization, stored).map_err(McpError::from)?)
}

impl Used {
    /// The caller's own client: admins see others', but their grants are not an admin's to use.
    pub(super) async fn load(app: &App, caller: &Caller, id: Uuid) -> Result<Self, Problem> {
        let mut tx = app.store.tenant_tx(&caller.scope()).await?;
        let row = tx.client(id).await?.filter(|row| row.user_id == caller.user_id).ok_or_else(no_such_client)?;
        let stored = tx.connection(row.connection_id).await?.ok_or_else(no_such_client)?;
        tx.commit().await?;
        let loaded = app.mcp.read(&caller.organization, stored).map_err(McpError::from)?;
        let session: Session = serde_json::from_value(row.session.clone()).map_err(|_| no_such_client())?;
        let mut used = Self { row, loaded, session };
        if used.row.generation != used.loaded.connection.generation {
            used.reopen(app, caller).await?;
        }
        Ok(used)
    }

    pub(super) fn target<'a>(&'a self, caller: &'a Caller) -> Target<'a> {
        Target { organization: &caller.organization, user: Some(caller.user_id), connection: &self.loaded.connection }
    }

    async fn reopen(&mut self, app: &App, caller: &Caller) -> Result<(), McpError> {
        self.session = app.mcp.open(self.target(caller)).await?;
        Ok(())
    }

    /// Asks the server. A server that has lost the session has done nothing yet, so asking again is safe.
    pub(super) async fn ask(
        &mut self,
        app: &App,
        caller: &Caller,
        method: &str,
        params: &Map<String, Value>,
    ) -> Result<Answered, McpError> {
        let first = app.mcp.ask(self.target(caller), &self.session, method, params).await;
        match first {
            Err(McpError::Upstream(UpstreamError::SessionLost)) => {
                self.reopen(app, caller).await?;
                app.mcp.ask(self.target(caller), &self.session, method, params).await
            }
            other => other,
        }
    }

    /// Keeps the session for the next request.
    pub(super) async fn keep(&self, app: &App, caller: &Caller) -> Result<(), Problem> {
        let mut tx = app.store.tenant_tx(&caller.scope()).await?;
        tx.client_used(self.row.id, self.loaded.connection.generation, &json!(self.session)).await?;
        tx.commit().await?;
        Ok(())
    }
}
