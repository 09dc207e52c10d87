//! Why a server gave no answer, said so that a user knows what to do. Nothing of what a server or a provider wrote is
//! in the text but short words of its own about an error. Pure.

use std::time::Duration;

use super::connection::Unusable;
use super::credentials::CredentialError;
use crate::outbound::{BodyError, Refused};
use crate::resilience::breaker;
use crate::resilience::bulkhead::Full;
use crate::resilience::memory::NoRoom;

/// Why.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum UpstreamError {
    /// The configuration.
    #[error(transparent)]
    Unusable(#[from] Unusable),
    /// Where it would be.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Who is asking.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    /// It failed too often a moment ago.
    #[error(transparent)]
    BreakerOpen(#[from] breaker::Rejected),
    /// Too many calls.
    #[error(transparent)]
    Busy(#[from] Full),
    /// Too much to hold.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// No connection.
    #[error("the MCP server cannot be reached: {0}")]
    Unreachable(String),
    /// Too slow.
    #[error("the MCP server did not answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// It does not know us.
    #[error("the MCP server refuses the credentials (401); check the connection's auth")]
    Unauthorized,
    /// It knows us and does not let us.
    #[error("the MCP server forbids this (403); the credentials of the connection may lack a scope")]
    Forbidden,
    /// Its session is over.
    #[error("the MCP server has ended the session; connect again")]
    SessionLost,
    /// Another status.
    #[error("the MCP server answers with HTTP status {0}")]
    Status(u16),
    /// A redirect.
    #[error("the MCP server redirects, which is not followed; write the URL that it redirects to")]
    Redirects,
    /// Not the protocol.
    #[error("the MCP server does not speak the protocol: {0}")]
    NotMcp(String),
    /// Too much.
    #[error("the MCP server's answer is longer than {0} bytes; ask for less")]
    TooLarge(usize),
    /// It died in the middle.
    #[error("the MCP server's answer broke off before its end")]
    BrokeOff,
    /// JSON-RPC's own kind of error.
    #[error("the MCP server says: {message}")]
    Rpc {
        /// Its code.
        code: i64,
        /// Its text, cut.
        message: String,
    },
}

impl From<BodyError> for UpstreamError {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::TooLarge(limit) => Self::TooLarge(limit),
            BodyError::Broken(_) => Self::BrokeOff,
        }
    }
}

/// What an outcome says about the health of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It works.
    Healthy,
    /// It does not.
    Failing,
    /// Nothing.
    Unknown,
}

impl UpstreamError {
    /// What it says about the server.
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::Unreachable(_) | Self::TimedOut(_) | Self::NotMcp(_) | Self::BrokeOff => Verdict::Failing,
            Self::Status(status) if *status >= 500 => Verdict::Failing,
            Self::Unusable(_)
            | Self::Refused(_)
            | Self::Credentials(_)
            | Self::BreakerOpen(_)
            | Self::Busy(_)
            | Self::NoRoom(_)
            | Self::Status(429) => Verdict::Unknown,
            _ => Verdict::Healthy,
        }
    }

    /// Whether the same request, sent again at once, may well succeed. It is, if it may be sent twice.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::BrokeOff | Self::Status(429 | 502 | 503 | 504))
    }

    /// A slug, as in problem documents and metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Unusable(_) => "mcp-configuration-unusable",
            Self::Refused(_) => "mcp-address-refused",
            Self::Credentials(CredentialError::NeedsConsent) => "mcp-needs-consent",
            Self::Credentials(CredentialError::Revoked) => "mcp-consent-revoked",
            Self::Credentials(_) => "mcp-no-credentials",
            Self::BreakerOpen(_) => "mcp-breaker-open",
            Self::Busy(_) => "mcp-busy",
            Self::NoRoom(_) => "mcp-no-room",
            Self::Unreachable(_) => "mcp-unreachable",
            Self::TimedOut(_) => "mcp-timeout",
            Self::Unauthorized | Self::Forbidden => "mcp-unauthorized",
            Self::SessionLost => "mcp-session-lost",
            Self::Status(_) | Self::Redirects => "mcp-server-failed",
            Self::NotMcp(_) => "mcp-protocol-error",
            Self::TooLarge(_) => "mcp-answer-too-large",
            Self::BrokeOff => "mcp-answer-broke-off",
            Self::Rpc { .. } => "mcp-error",
        }
    }

    /// When to try again, if that is known.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::BreakerOpen(rejected) => Some(rejected.retry_after),
            Self::Busy(_) | Self::NoRoom(_) => Some(Duration::from_secs(1)),
            Self::Credentials(CredentialError::ProviderDown { retry_after }) => Some(*retry_after),
            _ => None,
        }
    }
}

/// The words of an error within an error of the HTTP client, without URLs and without our own types.
pub fn words(error: &reqwest::Error) -> String {
    let root = std::iter::successors(std::error::Error::source(error), |error| error.source()).last();
    let kind = if error.is_connect() { "no connection" } else { "the exchange failed" };
    root.map_or_else(|| kind.to_owned(), |root| format!("{kind} ({root})"))
}
