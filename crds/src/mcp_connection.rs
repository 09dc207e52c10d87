//! `McpConnection`: one server of the Model Context Protocol that an organization's agents may use.
use crate::common::{Condition, EnvVar, OrganizationRef, SecretKeyRef, WorkspaceRef};
use crate::workspace::EgressRule;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Desired state of an McpConnection.
#[derive(CustomResource, Clone, Debug, PartialEq, Deserialize, Serialize, KubeSchema)]
#[kube(
    group = "agentapi.dev",
    version = "v1alpha1",
    kind = "McpConnection",
    plural = "mcpconnections",
    namespaced,
    shortname = "mcpc",
    category = "agentapi",
    status = "McpConnectionStatus",
    derive = "PartialEq",
    doc = "McpConnection is one Model Context Protocol server that an Organization's agents may use through the AgentAPI.",
    printcolumn(name = "Organization", type_ = "string", json_path = ".spec.organizationRef.name"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Authorized", type_ = "string", json_path = ".status.conditions[?(@.type==\"Authorized\")].reason"),
    printcolumn(name = "Breaker", type_ = "string", json_path = ".status.conditions[?(@.type==\"BreakerClosed\")].reason"),
    printcolumn(name = "Tools", type_ = "integer", json_path = ".status.toolCount"),
    printcolumn(name = "Pinned", type_ = "string", json_path = ".status.conditions[?(@.type==\"ToolsPinned\")].reason", priority = "1"),
    printcolumn(name = "Protocol", type_ = "string", json_path = ".status.protocolVersion", priority = "1"),
    printcolumn(name = "Probed", type_ = "date", json_path = ".status.lastProbe", priority = "1"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = ("self.metadata.name.matches('^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$')", "an McpConnection's name is 1 to 40 characters of a-z, 0-9 and -, starting with a letter, for example github")
)]
#[serde(rename_all = "camelCase")]
pub struct McpConnectionSpec {
    /// The Organization that this connection belongs to; it can't be changed.
    #[x_kube(validation = ("self == oldSelf", "organizationRef can't be changed; make a new McpConnection instead"))]
    pub organization_ref: OrganizationRef,
    /// Only sessions of this Workspace use the connection. Left out: all of the organization's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace_ref: Option<WorkspaceRef>,
    /// How the server is reached; exactly one.
    pub transport: McpTransport,
    /// How the server is authenticated to; at most one. Left out: not at all.
    #[serde(default)]
    pub auth: McpAuth,
    /// Which of the server's tools agents may see.
    #[serde(default)]
    pub tools: ToolPolicy,
    /// When to stop calling a failing server.
    #[serde(default)]
    pub breaker: Breaker,
    /// Upper limits of waiting.
    #[serde(default)]
    pub timeouts: Timeouts,
}

/// How a server is reached; exactly one field is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("[has(self.streamableHttp), has(self.sse), has(self.stdio)].filter(x, x).size() == 1", "transport needs exactly one of streamableHttp, sse and stdio"))]
pub struct McpTransport {
    /// Streamable HTTP, as in the current MCP specification.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub streamable_http: Option<HttpTransport>,
    /// The older HTTP with server-sent events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sse: Option<HttpTransport>,
    /// A program that runs in a pod of the tenant namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdio: Option<StdioTransport>,
}

/// A server at a URL.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpTransport {
    /// URL of the server's endpoint, for example `https://mcp.example.com/mcp`.
    #[schemars(length(min = 1, max = 2048))]
    #[x_kube(validation = ("self.matches('^https?://[^ @]+$')", "url is an http or https URL without user information, for example https://mcp.example.com/mcp"))]
    pub url: String,
}

/// A server that speaks over standard input and output.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct StdioTransport {
    /// Image with the program.
    #[schemars(length(min = 1, max = 512))]
    pub image: String,
    /// Command to run.
    #[schemars(length(min = 1, max = 64), inner(length(max = 4096)))]
    pub command: Vec<String>,
    /// Arguments of the command.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 4096)))]
    pub args: Vec<String>,
    /// Plain environment of the command.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub env: Vec<EnvVar>,
    /// Secrets in the tenant namespace whose keys become environment of the command, such as an API key.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 253)))]
    #[x_kube(validation = ("self.all(s, !s.startsWith('agentapi-') && !s.endsWith('-session'))", "Secrets that start with agentapi- or end in -session belong to the operator and to sessions; put the program's credentials into a Secret of your own"))]
    pub secret_refs: Vec<String>,
    /// What the program may connect to, as far as the Organization's `allowedEgress` goes. Left out: nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub egress: Vec<EgressRule>,
}

/// How a server is authenticated to; at most one field is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("[has(self.none), has(self.bearer), has(self.apiKey), has(self.oauth)].filter(x, x).size() <= 1", "auth takes at most one of none, bearer, apiKey and oauth"))]
pub struct McpAuth {
    /// No authentication, said explicitly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub none: Option<NoAuth>,
    /// A fixed bearer token (RFC 6750).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bearer: Option<BearerAuth>,
    /// A fixed key in a header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key: Option<ApiKeyAuth>,
    /// Each user's own consent (OAuth 2.1 with PKCE).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oauth: Option<OauthAuth>,
}

/// No authentication.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
pub struct NoAuth {}

/// A fixed bearer token.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct BearerAuth {
    /// Where the token is.
    pub secret_ref: SecretKeyRef,
}

/// A fixed key in a header.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApiKeyAuth {
    /// Name of the header, for example `X-API-Key`.
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(validation = ("self.matches('^[A-Za-z0-9-]+$') && !(self.lowerAscii() in ['host', 'content-length', 'transfer-encoding', 'connection'])", "header is the name of an HTTP header such as X-API-Key, and not one that HTTP itself uses"))]
    pub header: String,
    /// Where the key is.
    pub secret_ref: SecretKeyRef,
}

/// OAuth 2.1 with PKCE.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("!(self.provider in ['Auth0', 'Oidc']) || has(self.issuer) || (self.provider == 'Oidc' && has(self.dynamicRegistration) && self.dynamicRegistration)", "provider Auth0 and Oidc need an issuer, for example issuer: https://login.example.com; Oidc with dynamicRegistration: true may leave it to the server"))]
#[x_kube(validation = ("has(self.clientSecretRef) || (has(self.dynamicRegistration) && self.dynamicRegistration)", "oauth needs clientSecretRef (a registered client) or dynamicRegistration: true"))]
pub struct OauthAuth {
    /// The provider; it decides about endpoints and peculiarities.
    pub provider: OauthProvider,
    /// Issuer of the provider. With provider Oidc and dynamicRegistration it may be left to the server (RFC 9728).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = ("self.matches('^https?://[^ ]+$')", "issuer is the provider's URL, for example https://login.example.com"))]
    pub issuer: Option<String>,
    /// Secret with the keys `clientId` and `clientSecret` in the tenant namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = ("!self.startsWith('agentapi-') && !self.endsWith('-session')", "Secrets that start with agentapi- or end in -session belong to the operator and to sessions; put the client's credentials into a Secret of your own"))]
    pub client_secret_ref: Option<String>,
    /// Scopes to ask for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 256)))]
    pub scopes: Vec<String>,
    /// Register a client at the provider (RFC 7591).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dynamic_registration: Option<bool>,
}

/// Providers of OAuth whose peculiarities we know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[allow(missing_docs)]
pub enum OauthProvider {
    Github,
    Google,
    Azure,
    Auth0,
    Oidc,
}

/// Which tools agents may see.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ToolPolicy {
    /// Only these. Empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 256)))]
    pub allow: Vec<String>,
    /// Never these, also when they are allowed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 256)))]
    pub deny: Vec<String>,
    /// Put the connection into quarantine when a tool's definition changes.
    #[serde(default)]
    pub pin: bool,
}

/// When to stop calling a failing server, and when to try again.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Breaker {
    /// Failures in a row that open the breaker.
    #[serde(default = "five")]
    #[schemars(range(min = 1, max = 100))]
    pub failures: i32,
    /// Successes in a row that close it again.
    #[serde(default = "two")]
    #[schemars(range(min = 1, max = 100))]
    pub successes: i32,
    /// Seconds that it stays open.
    #[serde(default = "thirty")]
    #[schemars(range(min = 1, max = 3600))]
    pub open_seconds: i32,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { failures: five(), successes: two(), open_seconds: thirty() }
    }
}

/// Upper limits of waiting, in seconds.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Timeouts {
    /// Connecting.
    #[serde(default = "thirty")]
    #[schemars(range(min = 1, max = 300))]
    pub connect_seconds: i32,
    /// One tool call.
    #[serde(default = "sixty")]
    #[schemars(range(min = 1, max = 3600))]
    pub tool_seconds: i32,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect_seconds: thirty(), tool_seconds: sixty() }
    }
}

fn two() -> i32 {
    2
}
fn five() -> i32 {
    5
}
fn thirty() -> i32 {
    30
}
fn sixty() -> i32 {
    60
}

/// Observed state of an McpConnection.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct McpConnectionStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Id of the connection in Postgres and in the API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection_id: Option<String>,
    /// Version of the protocol that the server speaks with us.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol_version: Option<String>,
    /// When the runtime looked at the server and found what this status says. Later looks that found the same are not
    /// written down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_probe: Option<Time>,
    /// How many tools the server has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_count: Option<i32>,
    /// The server's tools, the first 256 of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub tools: Vec<ToolStatus>,
    /// Accepted, Ready, Authorized, BreakerClosed, ToolsPinned, and EgressAllowed with stdio.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// A tool of a server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
pub struct ToolStatus {
    /// Its name.
    pub name: String,
    /// Digest of its definition: name, description and schemas.
    pub digest: String,
}

impl McpConnectionSpec {
    /// Secrets of the tenant namespace that the runtime reads for this connection.
    pub fn secrets_of_runtime(&self) -> impl Iterator<Item = &str> {
        let McpAuth { none: _, bearer, api_key, oauth } = &self.auth;
        let keys = [bearer.as_ref().map(|it| &it.secret_ref), api_key.as_ref().map(|it| &it.secret_ref)];
        let client = oauth.as_ref().and_then(|it| it.client_secret_ref.as_deref());
        keys.into_iter().flatten().map(|key| key.name.as_str()).chain(client)
    }
}
