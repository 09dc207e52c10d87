//! The `AgentAPI` itself: `serve` for tenants' clients, `session` inside a session pod.

pub mod session;
