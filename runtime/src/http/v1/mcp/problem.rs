//! Problems of `/v1/mcp`. Imports nothing but `http::error` and the errors that it turns into problems.

use http::StatusCode;

use crate::http::error::Problem;
use crate::mcp::credentials::CredentialError;
use crate::mcp::error::UpstreamError;
use crate::mcp::policy::Denied;
use crate::mcp::service::McpError;
use crate::resilience::memory::NoRoom;

/// 404.
pub(super) fn no_such_configuration() -> Problem {
    let detail = "There is no MCP connection with this id in your organization.";
    Problem::new(StatusCode::NOT_FOUND, "mcp-configuration-not-found", "MCP connection not found", detail)
}

/// 404.
pub(super) fn no_such_client() -> Problem {
    let detail = "There is no MCP client with this id among those you may see; POST /v1/mcp/connect makes one.";
    Problem::new(StatusCode::NOT_FOUND, "mcp-client-not-found", "MCP client not found", detail)
}

/// 404, which the protocol says means that another session is to be had with `initialize`.
pub(super) fn session_lost() -> Problem {
    let detail = "This session with the MCP server is over, or is not yours; send initialize for a new one.";
    Problem::new(StatusCode::NOT_FOUND, "mcp-session-not-found", "MCP session not found", detail)
}

/// 422.
pub(super) fn no_such_workspace() -> Problem {
    Problem::invalid_field("workspace", "Your organization has no workspace of this name; see GET /v1/workspaces.")
}

/// 409.
pub(super) fn name_taken(name: &str) -> Problem {
    let detail =
        format!("Your organization has a configuration {name:?} already; choose another name or change that one.");
    Problem::new(StatusCode::CONFLICT, "mcp-name-taken", "Name is taken", detail)
}

/// 409.
pub(super) fn managed_by_kubernetes(namespace: &str, name: &str) -> Problem {
    let detail = format!(
        "This connection is the McpConnection {namespace}/{name} in Kubernetes; change it there \
         (kubectl --namespace {namespace} edit mcpconnection {name})."
    );
    Problem::new(StatusCode::CONFLICT, "managed-by-kubernetes", "Managed by Kubernetes", detail)
        .with("namespace", namespace)
        .with("name", name)
}

fn status(error: &UpstreamError) -> (StatusCode, &'static str) {
    match error {
        UpstreamError::Unusable(_) | UpstreamError::Refused(_) => {
            (StatusCode::UNPROCESSABLE_ENTITY, "The connection cannot be used")
        }
        UpstreamError::Credentials(CredentialError::NeedsConsent | CredentialError::Revoked) => {
            (StatusCode::FORBIDDEN, "Consent is needed")
        }
        UpstreamError::Credentials(error) if error.is_passing() => {
            (StatusCode::SERVICE_UNAVAILABLE, "No credentials at the moment")
        }
        UpstreamError::Credentials(_) => (StatusCode::UNPROCESSABLE_ENTITY, "No credentials"),
        UpstreamError::BreakerOpen(_) => (StatusCode::SERVICE_UNAVAILABLE, "MCP server is left alone"),
        UpstreamError::Busy(_) => (StatusCode::TOO_MANY_REQUESTS, "Too many calls"),
        UpstreamError::NoRoom(NoRoom::Share) => (StatusCode::TOO_MANY_REQUESTS, "Too large answers"),
        UpstreamError::NoRoom(NoRoom::All) => (StatusCode::SERVICE_UNAVAILABLE, "Too large answers"),
        UpstreamError::TimedOut(_) => (StatusCode::GATEWAY_TIMEOUT, "MCP server is too slow"),
        // The caller has asked for something that the server does not do, does not have, or does not take.
        UpstreamError::Rpc { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "MCP server refuses"),
        UpstreamError::SessionLost => (StatusCode::CONFLICT, "Session is over"),
        UpstreamError::Unauthorized | UpstreamError::Forbidden => (StatusCode::BAD_GATEWAY, "MCP server refuses us"),
        UpstreamError::Unreachable(_)
        | UpstreamError::Status(_)
        | UpstreamError::Redirects
        | UpstreamError::NotMcp(_)
        | UpstreamError::TooLarge(_)
        | UpstreamError::BrokeOff => (StatusCode::BAD_GATEWAY, "MCP server failed"),
    }
}

impl From<UpstreamError> for Problem {
    fn from(error: UpstreamError) -> Self {
        let (status, title) = status(&error);
        let mut problem = Self::new(status, error.kind(), title, format!("{error}."));
        if let UpstreamError::Rpc { code, .. } = &error {
            problem = problem.with("code", *code);
        }
        match error.retry_after() {
            Some(after) => problem.retry_after(u32::try_from(after.as_secs()).unwrap_or(u32::MAX).max(1)),
            None => problem,
        }
    }
}

impl From<Denied> for Problem {
    fn from(denied: Denied) -> Self {
        let status = match denied {
            Denied::NotAllowed(_) | Denied::NotPinned(_) => StatusCode::FORBIDDEN,
            Denied::Quarantined => StatusCode::CONFLICT,
        };
        Self::new(status, denied.kind(), "Tool is not called", format!("{denied}."))
    }
}

impl From<McpError> for Problem {
    fn from(error: McpError) -> Self {
        match error {
            McpError::Upstream(error) => error.into(),
            McpError::Denied(denied) => denied.into(),
            McpError::Store(error) => error.into(),
        }
    }
}
