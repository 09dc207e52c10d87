//! Types and reasons of the conditions in our status, so that people and alerts can rely on the words.

/// Everything the object asks for is in place.
pub const READY: &str = "Ready";
/// The spec and its references are allowed; nothing is created while this is `False`.
pub const ACCEPTED: &str = "Accepted";
/// The tenant namespace and everything in it is in place.
pub const NAMESPACE_READY: &str = "NamespaceReady";
/// The organization's row, roles and grants are in place in Postgres.
pub const DATABASE_READY: &str = "DatabaseReady";

/// No probe of the tenant's isolation came through, and every fence is as it must be.
pub const ISOLATION_VERIFIED: &str = "IsolationVerified";
/// Everything that the Workspace wants to reach may be reached.
pub const EGRESS_ALLOWED: &str = "EgressAllowed";
/// The server of an `McpConnection` lets the runtime in.
pub const AUTHORIZED: &str = "Authorized";
/// The circuit breaker of an `McpConnection` lets calls through.
pub const BREAKER_CLOSED: &str = "BreakerClosed";
/// The tools of an `McpConnection` are those that were pinned.
pub const TOOLS_PINNED: &str = "ToolsPinned";

/// Reasons; each is the `reason` of a condition above.
pub mod reason {
    /// Everything is in place.
    pub const RECONCILED: &str = "Reconciled";
    /// The spec and its references are allowed.
    pub const ACCEPTED: &str = "Accepted";
    /// Work is under way; nothing to do.
    pub const PROGRESSING: &str = "Progressing";
    /// `organizationRef` names an Organization that does not exist.
    pub const ORGANIZATION_NOT_FOUND: &str = "OrganizationNotFound";
    /// The Organization exists and is not `Ready` yet.
    pub const ORGANIZATION_NOT_READY: &str = "OrganizationNotReady";
    /// The Organization is being deleted.
    pub const ORGANIZATION_DELETING: &str = "OrganizationDeleting";
    /// The Organization's `allowedNamespaces` does not admit this namespace.
    pub const NAMESPACE_NOT_ALLOWED: &str = "NamespaceNotAllowed";
    /// `workspaceRef` names a Workspace that does not exist in this namespace.
    pub const WORKSPACE_NOT_FOUND: &str = "WorkspaceNotFound";
    /// Another object of the same organization has the name already.
    pub const NAME_CONFLICT: &str = "NameConflict";
    /// The Organization has as many Workspaces as its quota admits.
    pub const QUOTA_EXCEEDED: &str = "QuotaExceeded";
    /// Another Organization has the same issuer and claim value already.
    pub const IDENTITY_CONFLICT: &str = "IdentityConflict";
    /// The namespace that the organization needs belongs to somebody else.
    pub const NAMESPACE_CONFLICT: &str = "NamespaceConflict";
    /// A value passed the schema and is still not usable; the message says which.
    pub const INVALID: &str = "Invalid";
    /// The template does not parse; the message has line and column.
    pub const TEMPLATE_INVALID: &str = "TemplateInvalid";
    /// A Global policy outside the operator's namespace.
    pub const SCOPE_NOT_ALLOWED: &str = "ScopeNotAllowed";
    /// Postgres can't be reached or refused; it is tried again.
    pub const DATABASE_UNAVAILABLE: &str = "DatabaseUnavailable";
    /// The Kubernetes API refused a write; it is tried again.
    pub const APPLY_FAILED: &str = "ApplyFailed";
    /// Every isolation probe was refused.
    pub const ISOLATED: &str = "Isolated";
    /// An isolation probe came through, or a fence was not as it must be; the message names the probe.
    pub const ISOLATION_BREACHED: &str = "IsolationBreached";
    /// An isolation probe could not run; the message says why.
    pub const ISOLATION_UNKNOWN: &str = "IsolationUnknown";
    /// A rule of `spec.egress` is not allowed; the message says which and why. The others are in force.
    pub const EGRESS_NOT_ALLOWED: &str = "EgressNotAllowed";
    /// Nobody has looked at the server for a long time.
    pub const PROBE_OVERDUE: &str = "ProbeOverdue";
    /// The pod that runs the server's program is not ready; the message says why.
    pub const SERVER_NOT_READY: &str = "ServerNotReady";
    /// The server can't be reached, or it fails.
    pub const UNREACHABLE: &str = "Unreachable";
    /// The server's address is one that tenants may not name.
    pub const ADDRESS_REFUSED: &str = "AddressRefused";
    /// The server speaks no MCP that we understand.
    pub const PROTOCOL_ERROR: &str = "ProtocolError";
    /// The server wants credentials that are missing, or that it refuses.
    pub const NEEDS_CREDENTIALS: &str = "NeedsCredentials";
    /// Nobody has consented yet.
    pub const NEEDS_CONSENT: &str = "NeedsConsent";
    /// The consent ends soon and can't be renewed without a person.
    pub const EXPIRING: &str = "Expiring";
    /// The consent was taken back.
    pub const REVOKED: &str = "Revoked";
    /// The server lets the runtime in.
    pub const AUTHORIZED: &str = "Authorized";
    /// The connection has no `auth`.
    pub const NO_AUTHENTICATION: &str = "NoAuthentication";
    /// Calls go through.
    pub const BREAKER_CLOSED: &str = "BreakerClosed";
    /// Calls are refused until the server has had a rest.
    pub const BREAKER_OPEN: &str = "BreakerOpen";
    /// A few calls go through to see whether the server is well again.
    pub const BREAKER_HALF_OPEN: &str = "BreakerHalfOpen";
    /// The tools are those that were pinned.
    pub const TOOLS_PINNED: &str = "ToolsPinned";
    /// `tools.pin` is off.
    pub const NOT_PINNED: &str = "NotPinned";
    /// Tools are not what they were when they were pinned; the connection is in quarantine.
    pub const TOOLS_CHANGED: &str = "ToolsChanged";
    /// The object is being deleted; the message says what is left.
    pub const DELETING: &str = "Deleting";
}
