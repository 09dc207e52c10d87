//! What an admin writes about a connection, and how it is checked. It becomes the same spec that an McpConnection
//! resource has, so that everything behind it is one. Pure.

use agentapi_crds::mcp_connection::OauthProvider;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::http::error::Problem;
use crate::mcp::secrets::may_be_named;
use crate::outbound::{Outbound, Ranges};

const MAX_TOOLS: usize = 256;
const MAX_SCOPES: usize = 64;
/// Headers that HTTP or the protocol itself uses.
const RESERVED: &[&str] = &[
    "host",
    "content-length",
    "content-type",
    "transfer-encoding",
    "connection",
    "accept",
    "cookie",
    "te",
    "upgrade",
    "mcp-session-id",
    "mcp-protocol-version",
    "mcp-method",
    "mcp-name",
    "last-event-id",
];

/// A connection to an MCP server.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Configuration {
    /// 1 to 40 characters of a-z, 0-9 and -, beginning with a letter.
    #[schema(example = "search")]
    pub name: String,
    /// Only sessions of this workspace use it. Left out: all of the organization's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "main")]
    pub workspace: Option<String>,
    /// Where the server is; exactly one.
    pub transport: TransportBody,
    /// How it is authenticated to; at most one.
    #[serde(default)]
    pub auth: AuthBody,
    /// Which of its tools are seen.
    #[serde(default)]
    pub tools: ToolsBody,
    /// When it is left alone after failures.
    #[serde(default)]
    pub breaker: BreakerBody,
    /// Upper limits of waiting.
    #[serde(default)]
    pub timeouts: TimeoutsBody,
}

/// Where a server is; exactly one field.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schema(example = json!({"streamableHttp": {"url": "https://mcp.example.com/mcp"}}))]
pub struct TransportBody {
    /// Streamable HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub streamable_http: Option<UrlBody>,
    /// HTTP with server-sent events, as in the protocol's version 2024-11-05.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sse: Option<UrlBody>,
    /// Only for a better message than that the field is unknown.
    #[serde(default, skip_serializing)]
    #[schema(ignore)]
    stdio: Option<Value>,
}

/// A server at a URL.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UrlBody {
    /// `https://`, or `http://` in address ranges that your organization opens.
    #[schema(example = "https://mcp.example.com/mcp")]
    pub url: String,
}

/// How a server is authenticated to; at most one field. Credentials themselves are in Secrets of your tenant namespace.
#[derive(Debug, Clone, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schema(example = json!({"apiKey": {"header": "X-API-Key", "secretRef": {"name": "search", "key": "token"}}}))]
pub struct AuthBody {
    /// Not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub none: Option<NoneBody>,
    /// `Authorization: Bearer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bearer: Option<BearerBody>,
    /// A header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key: Option<ApiKeyBody>,
    /// Each user's own consent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oauth: Option<OauthBody>,
}

/// No authentication, said explicitly.
#[derive(Debug, Clone, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NoneBody {}

/// A fixed bearer token.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct BearerBody {
    /// Where it is.
    pub secret_ref: SecretRefBody,
}

/// A fixed key in a header.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ApiKeyBody {
    /// Name of the header.
    #[schema(example = "X-API-Key")]
    pub header: String,
    /// Where the key is.
    pub secret_ref: SecretRefBody,
}

/// One key of a Secret of your tenant namespace.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SecretRefBody {
    /// Name of the Secret.
    #[schema(example = "search")]
    pub name: String,
    /// Key in the Secret.
    #[schema(example = "token")]
    pub key: String,
}

/// OAuth 2.1 with PKCE.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct OauthBody {
    /// Github, Google, Azure, Auth0 or Oidc.
    #[schema(value_type = String, example = "Oidc")]
    pub provider: OauthProvider,
    /// URL of the provider; Auth0 needs it, and Oidc does without dynamicRegistration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// Secret with the keys `clientId` and `clientSecret`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_secret_ref: Option<String>,
    /// Scopes to ask for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scopes: Vec<String>,
    /// Register a client at the provider (RFC 7591).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dynamic_registration: Option<bool>,
}

/// Which tools are seen.
#[derive(Debug, Clone, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ToolsBody {
    /// Only these. Empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
    /// Never these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<String>,
    /// Refuse all tools when the definition of one changes, until the configuration is changed.
    #[serde(default)]
    pub pin: bool,
}

/// When a failing server is left alone.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct BreakerBody {
    /// Failures in a row that open it, 1 to 100.
    pub failures: i32,
    /// Successes in a row that close it again, 1 to 100.
    pub successes: i32,
    /// Seconds that it stays open, 1 to 3600.
    pub open_seconds: i32,
}

impl Default for BreakerBody {
    fn default() -> Self {
        Self { failures: 5, successes: 2, open_seconds: 30 }
    }
}

/// Upper limits of waiting.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct TimeoutsBody {
    /// Of connecting, 1 to 300.
    pub connect_seconds: i32,
    /// Of one call, 1 to 3600.
    pub tool_seconds: i32,
}

impl Default for TimeoutsBody {
    fn default() -> Self {
        Self { connect_seconds: 30, tool_seconds: 60 }
    }
}

impl Configuration {
    /// The kind of its transport, and its spec.
    pub fn validate(
        &self,
        organization: &str,
        outbound: &Outbound,
        open: &Ranges,
    ) -> Result<(&'static str, Value), Problem> {
        let well_formed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let ends = self.name.starts_with(|c: char| c.is_ascii_lowercase()) && !self.name.ends_with('-');
        if !ends || self.name.len() > 40 || !self.name.chars().all(well_formed) {
            let detail = "name has 1 to 40 characters of a-z, 0-9 and -, begins with a letter and does not end with -.";
            return Err(Problem::invalid_field("name", detail));
        }
        let kind = self.transport.validate(outbound, open)?;
        self.auth.validate(outbound, open)?;
        for (field, names) in [("tools.allow", &self.tools.allow), ("tools.deny", &self.tools.deny)] {
            texts(field, names, MAX_TOOLS)?;
        }
        for (field, number, most) in [
            ("breaker.failures", self.breaker.failures, 100),
            ("breaker.successes", self.breaker.successes, 100),
            ("breaker.openSeconds", self.breaker.open_seconds, 3600),
            ("timeouts.connectSeconds", self.timeouts.connect_seconds, 300),
            ("timeouts.toolSeconds", self.timeouts.tool_seconds, 3600),
        ] {
            if !(1..=most).contains(&number) {
                return Err(Problem::invalid_field(field, format!("{field} is 1 to {most}.")));
            }
        }
        let mut spec = json!({
            "organizationRef": { "name": organization },
            "transport": self.transport, "auth": self.auth, "tools": self.tools, "breaker": self.breaker,
            "timeouts": self.timeouts,
        });
        if let Some(workspace) = &self.workspace {
            spec["workspaceRef"] = json!({ "name": workspace });
        }
        Ok((kind, spec))
    }
}

impl TransportBody {
    fn validate(&self, outbound: &Outbound, open: &Ranges) -> Result<&'static str, Problem> {
        if self.stdio.is_some() {
            let detail =
                "A program runs in a pod, which only an McpConnection resource can ask for; kubectl apply one.";
            return Err(Problem::invalid_field("transport.stdio", detail));
        }
        let (kind, url) = match (&self.streamable_http, &self.sse) {
            (Some(http), None) => ("streamableHttp", &http.url),
            (None, Some(http)) => ("sse", &http.url),
            _ => {
                let detail = "transport needs exactly one of streamableHttp and sse.";
                return Err(Problem::invalid_field("transport", detail));
            }
        };
        reachable(&format!("transport.{kind}.url"), url, outbound, open)?;
        Ok(kind)
    }
}

fn reachable(field: &str, url: &str, outbound: &Outbound, open: &Ranges) -> Result<(), Problem> {
    match outbound.check(url, open) {
        Ok(_) => Ok(()),
        Err(refused) => Err(Problem::invalid_field(field, format!("{refused}."))),
    }
}

impl AuthBody {
    fn validate(&self, outbound: &Outbound, open: &Ranges) -> Result<(), Problem> {
        let Self { none, bearer, api_key, oauth } = self;
        let said = [none.is_some(), bearer.is_some(), api_key.is_some(), oauth.is_some()];
        if said.iter().filter(|said| **said).count() > 1 {
            return Err(Problem::invalid_field("auth", "auth takes at most one of none, bearer, apiKey and oauth."));
        }
        if let Some(bearer) = bearer {
            bearer.secret_ref.validate("auth.bearer.secretRef")?;
        }
        if let Some(ApiKeyBody { header, secret_ref }) = api_key {
            let letters = !header.is_empty() && header.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
            if !letters || header.len() > 128 || RESERVED.contains(&header.to_ascii_lowercase().as_str()) {
                let detail = "header is the name of an HTTP header such as X-API-Key, and none that HTTP or MCP uses.";
                return Err(Problem::invalid_field("auth.apiKey.header", detail));
            }
            secret_ref.validate("auth.apiKey.secretRef")?;
        }
        if let Some(oauth) = oauth {
            oauth.validate(outbound, open)?;
        }
        Ok(())
    }
}

impl OauthBody {
    fn validate(&self, outbound: &Outbound, open: &Ranges) -> Result<(), Problem> {
        texts("auth.oauth.scopes", &self.scopes, MAX_SCOPES)?;
        match &self.issuer {
            Some(issuer) => reachable("auth.oauth.issuer", issuer, outbound, open)?,
            // The server itself says who protects it (RFC 9728).
            None if self.provider == OauthProvider::Oidc && self.dynamic_registration == Some(true) => {}
            None if matches!(self.provider, OauthProvider::Auth0 | OauthProvider::Oidc) => {
                let detail = "The providers Auth0 and Oidc need an issuer, such as https://login.example.com; Oidc with \
                              dynamicRegistration: true may leave it to the server.";
                return Err(Problem::invalid_field("auth.oauth.issuer", detail));
            }
            None => {}
        }
        match &self.client_secret_ref {
            Some(name) => secret_name("auth.oauth.clientSecretRef", name),
            None if self.dynamic_registration == Some(true) => Ok(()),
            None => {
                let detail = "oauth needs clientSecretRef (a registered client) or dynamicRegistration: true.";
                Err(Problem::invalid_field("auth.oauth.clientSecretRef", detail))
            }
        }
    }
}

impl SecretRefBody {
    fn validate(&self, field: &str) -> Result<(), Problem> {
        secret_name(&format!("{field}.name"), &self.name)?;
        let well_formed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if self.key.is_empty() || self.key.len() > 253 || !self.key.chars().all(well_formed) {
            let detail = "A Secret's key has 1 to 253 characters of A-Z, a-z, 0-9, -, _ and the full stop.";
            return Err(Problem::invalid_field(format!("{field}.key"), detail));
        }
        Ok(())
    }
}

fn secret_name(field: &str, name: &str) -> Result<(), Problem> {
    let well_formed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    let ends = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if !name.chars().all(well_formed) || !name.starts_with(ends) || !name.ends_with(ends) || name.len() > 253 {
        let detail = "A Secret's name has 1 to 253 characters of a-z, 0-9, - and the full stop.";
        return Err(Problem::invalid_field(field, detail));
    }
    if !may_be_named(name) {
        let detail = "Secrets that begin with agentapi- or end in -session belong to the platform and to sessions; put \
                      the credential into a Secret of your own.";
        return Err(Problem::invalid_field(field, detail));
    }
    Ok(())
}

fn texts(field: &str, texts: &[String], most: usize) -> Result<(), Problem> {
    if texts.len() > most {
        return Err(Problem::invalid_field(field, format!("{field} takes at most {most} entries.")));
    }
    if texts.iter().any(|text| text.is_empty() || text.len() > 256 || text.chars().any(char::is_control)) {
        return Err(Problem::invalid_field(field, format!("An entry of {field} has 1 to 256 printable characters.")));
    }
    Ok(())
}
