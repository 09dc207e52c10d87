//! The HTTP APIs: the public one under `v1`, the internal one for session pods, and what both need.
//! May touch: `auth`, `store`, `lifecycle`, `mcp`, `pods::agent`, `prompt`, `metrics`. Nobody but
//! `serve` imports it.

mod client;
mod connect;
pub mod docs;
pub mod error;
pub mod extract;
#[cfg(test)]
mod fuzz;
mod head_deadline;
pub mod health;
pub mod held;
pub mod internal;
pub mod internal_connections;
pub mod internal_ending;
pub mod internal_permissions;
pub mod isolation;
mod linger;
mod multipart;
mod observe;
mod paging;
mod proxy;
pub mod rate_limit;
pub mod request_id;
pub mod router;
mod screening;
pub mod server;
pub mod streams;
pub mod transcript_budget;
pub mod v1;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::audit::proxies::Proxies;
use crate::auth::Authenticator;
use crate::auth::session_token::SessionTokens;
use crate::lifecycle::Lifecycle;
use crate::mcp::service::Mcp;
use crate::metrics::Metrics;
use crate::oauth::OAuth;
use crate::pods::agent::Agents;
use crate::prompt::Prompts;
use crate::store::Store;

/// What handlers work with.
pub struct AppState {
    /// Postgres.
    pub store: Store,
    /// Bearer tokens.
    pub authenticator: Authenticator,
    /// Tokens to and from pods.
    pub tokens: Arc<SessionTokens>,
    /// Sessions' lives.
    pub lifecycle: Arc<Lifecycle>,
    /// Calls to pods.
    pub agents: Agents,
    /// MCP servers.
    pub mcp: Arc<Mcp>,
    /// What sessions are told.
    pub prompts: Arc<Prompts>,
    /// Whose word about the client's address is taken.
    pub proxies: Proxies,
    /// Limits of request rates.
    pub rates: rate_limit::RateLimits,
    /// Limits of memory.
    pub held: held::Held,
    /// Limits of open event streams.
    pub streams: streams::Streams,
    /// Users' consents to MCP servers, where they are configured.
    pub oauth: Option<Arc<OAuth>>,
    /// What session pods may do.
    pub internal: internal::InternalApi,
    /// Counters.
    pub metrics: Metrics,
    /// Cancelled when this replica should no longer get requests.
    pub leaving: CancellationToken,
    /// Cancelled when streams must end.
    pub closing: CancellationToken,
}

/// Shared by all handlers.
pub type App = Arc<AppState>;
