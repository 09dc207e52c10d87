//! `/v1/mcp`: connections to MCP servers, a client for each user, and the gateway for agents.
//! May touch: `store`, `mcp`.

mod body;
pub mod calls;
pub mod clients;
pub mod configurations;
mod conversation;
pub mod gateway;
mod party;
mod problem;
mod relay;
pub mod test;
mod used;

use axum::body::Body;
use axum::extract::{FromRequestParts, Path};
use bytes::Bytes;
use http::request::Parts;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::audit::{Entry, Origin, action};
use crate::http::App;
use crate::http::error::Problem;
use crate::mcp::connection::Connection;
use crate::mcp::policy;
use crate::resilience::memory::Room;
use crate::store::{StoreError, TenantScope, TenantTx};

/// The id in `/v1/mcp/configurations/{id}` and `/v1/mcp/gateway/{connection}`.
pub struct ConfigurationId(pub Uuid);

impl<S: Send + Sync> FromRequestParts<S> for ConfigurationId {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let id = Path::<String>::from_request_parts(parts, state).await.ok().and_then(|Path(text)| text.parse().ok());
        id.map(Self).ok_or_else(problem::no_such_configuration)
    }
}

/// The id in `/v1/mcp/client/{id}`.
pub struct ClientId(pub Uuid);

impl<S: Send + Sync> FromRequestParts<S> for ClientId {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let id = Path::<String>::from_request_parts(parts, state).await.ok().and_then(|Path(text)| text.parse().ok());
        id.map(Self).ok_or_else(problem::no_such_client)
    }
}

/// Text as a body, with the memory that it takes until it is sent.
fn body_in(room: Room, text: String) -> Body {
    struct InRoom(String, #[allow(dead_code)] Room);
    impl AsRef<[u8]> for InRoom {
        fn as_ref(&self) -> &[u8] {
            self.0.as_bytes()
        }
    }
    Body::from(Bytes::from_owner(InRoom(text, room)))
}

/// A call of a tool, for the audit log: before it is made, and again when it was refused or has failed. The arguments
/// are the tenant's business; their digest shows afterwards which they were.
struct CallRecord<'a> {
    origin: &'a Origin,
    connection: &'a Connection,
    tool: &'a str,
    arguments: &'a Value,
}

impl CallRecord<'_> {
    async fn write(&self, app: &App, scope: &TenantScope<'_>, failure: Option<&str>) -> Result<(), StoreError> {
        let mut tx = app.store.tenant_tx(scope).await?;
        self.write_in(&mut tx, failure).await?;
        tx.commit().await
    }

    async fn write_in(&self, tx: &mut TenantTx, failure: Option<&str>) -> Result<(), StoreError> {
        let id = self.connection.id.to_string();
        let mut detail = json!({
            "connection": self.connection.name, "tool": self.tool, "arguments": policy::digest(self.arguments),
        });
        if let Some(failure) = failure {
            detail["reason"] = json!(failure);
        }
        let action = if failure.is_some() { action::MCP_TOOL_CALL_FAIL } else { action::MCP_TOOL_CALL };
        tx.audit(&Entry { origin: self.origin, action, target_kind: "McpConnection", target_id: Some(&id), detail })
            .await
    }
}
