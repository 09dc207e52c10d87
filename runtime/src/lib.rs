//! The `AgentAPI` itself: `serve` for tenants' clients, `session` inside a session pod.

pub mod audit;
pub mod audit_cli;
pub mod auth;
pub mod config;
pub mod crypto;
mod google_credentials;
pub mod http;
pub mod lifecycle;
pub mod mcp;
pub mod mcp_stdio;
pub mod metrics;
pub mod model_router;
pub mod oauth;
pub mod outbound;
pub mod pods;
pub mod probe;
pub mod prompt;
pub mod resilience;
pub mod serve;
pub mod session;
pub mod store;
pub mod telemetry;
