//! The continuous proof that tenants can't reach each other: probes that try it with a tenant's own means, again and
//! again, and fences that are compared with what they must be. What is found is written down (status, Event, metric,
//! audit row) before anything is repaired. May touch: Postgres as operator and as a tenant's read-only login, the
//! runtime's two APIs, probe pods, what is foreign in a tenant namespace.
mod access;
mod api;
mod board;
mod database;
pub mod fences;
mod pod;
pub mod ranges;
mod rounds;
mod token;

pub use board::{Board, State};
pub use rounds::watch;

use agentapi_crds::isolation::ProbeResult;

/// One query that reads the catalogue of the database for anything that weakens the fences: one row per finding.
pub const CATALOGUE: &str = include_str!("catalogue.sql");

/// What is tried. The order is that of the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Probe {
    /// Policies, grants, flags, triggers and functions of the database are those of the migrations.
    PostgresFences,
    /// SQL as the tenant's read-only login, with the password of its Secret.
    PostgresLogin,
    /// SQL as the role that the API takes on for the tenant; the runtime does it, since the operator can't.
    PostgresRole,
    /// The APIs with no token, a forged one, and a session token of the tenant on sessions of others.
    Api,
    /// TCP from a pod that is placed as a session pod is.
    SessionNetwork,
    /// The NetworkPolicies of the tenant namespace are the operator's, and no others are there.
    NetworkPolicies,
    /// No RoleBinding of the tenant namespace gives pods of tenants a right.
    RoleBindings,
    /// What the API server answers about rights of the tenant's service accounts, and of ours in its namespace.
    ServiceAccounts,
    /// Pod Security of the tenant namespace.
    PodSecurity,
}

impl Probe {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::PostgresFences,
        Self::PostgresLogin,
        Self::PostgresRole,
        Self::Api,
        Self::SessionNetwork,
        Self::NetworkPolicies,
        Self::RoleBindings,
        Self::ServiceAccounts,
        Self::PodSecurity,
    ];

    /// The name in status, metrics and documents.
    pub fn name(self) -> &'static str {
        match self {
            Self::PostgresFences => "postgres-fences",
            Self::PostgresLogin => "postgres-login",
            Self::PostgresRole => "postgres-role",
            Self::Api => "api",
            Self::SessionNetwork => "session-network",
            Self::NetworkPolicies => "network-policies",
            Self::RoleBindings => "role-bindings",
            Self::ServiceAccounts => "service-accounts",
            Self::PodSecurity => "pod-security",
        }
    }
}

/// What a probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The result.
    pub result: ProbeResult,
    /// For people; the same text for the same finding, or the status would be written all the time.
    pub message: String,
}

impl Outcome {
    /// Everything was refused.
    pub fn passed(message: &str) -> Self {
        Self { result: ProbeResult::Passed, message: message.to_owned() }
    }

    /// It could not be tried.
    pub fn unknown(message: impl Into<String>) -> Self {
        Self { result: ProbeResult::Unknown, message: shortened(message.into()) }
    }

    /// Something came through.
    pub fn breached(findings: &[String]) -> Self {
        Self { result: ProbeResult::Breached, message: shortened(findings.join("; ")) }
    }

    /// Breached, if there are findings.
    pub fn of(findings: &[String], passed: &str) -> Self {
        if findings.is_empty() { Self::passed(passed) } else { Self::breached(findings) }
    }
}

/// A status is no place for a book; the rest is in the log.
fn shortened(mut message: String) -> String {
    if message.len() > 1000 {
        message.truncate(message.floor_char_boundary(1000));
        message.push_str(" …");
    }
    message
}
