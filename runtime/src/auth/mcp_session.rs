//! Ids of sessions with MCP servers as the gateway gives them to clients. Pure.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Caller;

/// A session with an MCP server, as the gateway gives its id to a client: good for the user and the connection that it
/// was opened by and for, at every replica.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct McpSession {
    sub: Uuid,
    org: Uuid,
    connection: Uuid,
    /// The server's own id.
    pub session: String,
}

impl McpSession {
    /// Of this user with this connection's server.
    pub fn new(caller: &Caller, connection: Uuid, session: &str) -> Self {
        Self { sub: caller.user_id, org: caller.organization.id, connection, session: session.to_owned() }
    }

    /// Whether it is this user's with this connection's server.
    pub fn is_of(&self, caller: &Caller, connection: Uuid) -> bool {
        self.sub == caller.user_id && self.org == caller.organization.id && self.connection == connection
    }
}
