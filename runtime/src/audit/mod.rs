//! What is recorded about a change, and who made it. The rows themselves are `store::audit`. Imports nothing.

pub mod chain;

use serde_json::Value;

/// Who or what made a change, from where.
#[derive(Debug, Clone)]
pub struct Origin {
    /// `user:<subject>` or `system:<part>`.
    pub actor: String,
    /// Request that made it.
    pub request_id: Option<String>,
    /// Peer address.
    pub source_ip: Option<String>,
    /// Client's `User-Agent`, cut to what the column takes.
    pub user_agent: Option<String>,
}

impl Origin {
    /// A part of the platform itself.
    pub fn system(part: &str) -> Self {
        Self { actor: format!("system:{part}"), request_id: None, source_ip: None, user_agent: None }
    }
}

/// One row to write. `detail` never holds environment values, prompts or tokens.
#[derive(Debug)]
pub struct Entry<'a> {
    /// Who.
    pub origin: &'a Origin,
    /// Did what, such as `session.create`.
    pub action: &'a str,
    /// To what kind of thing.
    pub target_kind: &'a str,
    /// To which one.
    pub target_id: Option<&'a str>,
    /// More about it, a JSON object.
    pub detail: Value,
}
