//! A connection as its row in Postgres describes it, whoever wrote it: the operator from an McpConnection resource, or
//! an admin through the API. Pure.

use std::time::Duration;

use agentapi_crds::common::SecretKeyRef;
use agentapi_crds::mcp_connection::{
    ApiKeyAuth, BearerAuth, Breaker, McpAuth, McpTransport, OauthAuth, Timeouts, ToolPolicy,
};
use agentapi_crds::names;
use http::HeaderName;
use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;

use crate::outbound::Ranges;
use crate::resilience::breaker::Settings;

/// Who says what a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// An McpConnection resource; only `kubectl` changes it.
    Crd,
    /// An admin, through the API.
    Api,
}

/// Where the server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    /// Streamable HTTP at this URL.
    StreamableHttp(String),
    /// HTTP with server-sent events, as in the protocol's version 2024-11-05; the URL is that of the event stream.
    Sse(String),
    /// A pod of ours that runs the program, at this URL inside the cluster.
    Stdio(String),
}

impl Transport {
    /// Where that is.
    pub fn url(&self) -> &str {
        match self {
            Self::StreamableHttp(url) | Self::Sse(url) | Self::Stdio(url) => url,
        }
    }

    /// As the column has it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::StreamableHttp(_) => "streamableHttp",
            Self::Sse(_) => "sse",
            Self::Stdio(_) => "stdio",
        }
    }
}

/// How it is authenticated to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Auth {
    /// Not at all.
    None,
    /// `Authorization: Bearer`, from a Secret.
    Bearer(SecretKeyRef),
    /// A header, from a Secret.
    ApiKey {
        /// Its name.
        header: HeaderName,
        /// Its value.
        secret: SecretKeyRef,
    },
    /// Each user's own consent.
    Oauth(Box<OauthAuth>),
}

/// A row, read.
#[derive(Debug, Clone)]
pub struct Connection {
    /// Row id.
    pub id: Uuid,
    /// Name; unique per namespace for resources, and per organization for what the API made.
    pub name: String,
    /// Who says what it is.
    pub origin: Origin,
    /// Namespace of the resource.
    pub namespace: Option<String>,
    /// Only sessions of this workspace use it.
    pub workspace_id: Option<Uuid>,
    /// Grows with each change.
    pub generation: i64,
    /// Where the server is.
    pub transport: Transport,
    /// How it is authenticated to.
    pub auth: Auth,
    /// Which of its tools may be seen.
    pub tools: ToolPolicy,
    /// When it is left alone.
    pub breaker: Settings,
    /// How long a connection may take to be made.
    pub connect_timeout: Duration,
    /// How long one call may take.
    pub call_timeout: Duration,
    /// Address ranges that its organization opens.
    pub open: Ranges,
}

/// Why a row says nothing that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the connection's configuration cannot be used: {0}")]
pub struct Unusable(pub String);

/// The column `spec`, which is the spec of the resource.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    transport: McpTransport,
    #[serde(default)]
    auth: McpAuth,
    #[serde(default)]
    tools: ToolPolicy,
    #[serde(default)]
    breaker: Breaker,
    #[serde(default)]
    timeouts: Timeouts,
}

/// Whose row it is, and where that organization's pods are.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// Slug of the organization.
    pub organization: &'a str,
    /// Domain of the cluster's DNS names.
    pub cluster_domain: &'a str,
}

/// The columns of a row that say what the connection is called and whose it is.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Row id.
    pub id: Uuid,
    /// Name.
    pub name: String,
    /// Who says what it is.
    pub origin: Origin,
    /// Namespace of the resource.
    pub namespace: Option<String>,
    /// Only sessions of this workspace use it.
    pub workspace_id: Option<Uuid>,
    /// Grows with each change.
    pub generation: i64,
}

impl Connection {
    /// Reads a row.
    pub fn read(place: Place<'_>, identity: Identity, spec: &Value, open: Ranges) -> Result<Self, Unusable> {
        let spec = Spec::deserialize(spec).map_err(|error| Unusable(error.to_string()))?;
        let Identity { id, name, origin, namespace, workspace_id, generation } = identity;
        let transport = match spec.transport {
            McpTransport { streamable_http: Some(http), sse: None, stdio: None } => Transport::StreamableHttp(http.url),
            McpTransport { streamable_http: None, sse: Some(http), stdio: None } => Transport::Sse(http.url),
            McpTransport { streamable_http: None, sse: None, stdio: Some(_) } => {
                Transport::Stdio(names::mcp_server_url(place.organization, &name, place.cluster_domain))
            }
            _ => return Err(Unusable("transport needs exactly one of streamableHttp, sse and stdio".to_owned())),
        };
        let positive = |number: i32| u32::try_from(number).unwrap_or(1).max(1);
        let seconds = |number: i32| Duration::from_secs(u64::from(positive(number)));
        let Breaker { failures, successes, open_seconds } = spec.breaker;
        Ok(Self {
            id,
            name,
            origin,
            namespace,
            workspace_id,
            generation,
            transport,
            auth: auth(spec.auth)?,
            tools: spec.tools,
            breaker: Settings {
                failures: positive(failures),
                successes: positive(successes),
                open: seconds(open_seconds),
            },
            connect_timeout: seconds(spec.timeouts.connect_seconds),
            call_timeout: seconds(spec.timeouts.tool_seconds),
            open,
        })
    }
}

fn auth(auth: McpAuth) -> Result<Auth, Unusable> {
    match auth {
        McpAuth { bearer: None, api_key: None, oauth: None, none: _ } => Ok(Auth::None),
        McpAuth { bearer: Some(BearerAuth { secret_ref }), api_key: None, oauth: None, none: None } => {
            Ok(Auth::Bearer(secret_ref))
        }
        McpAuth { bearer: None, api_key: Some(ApiKeyAuth { header, secret_ref }), oauth: None, none: None } => {
            let header = header.parse().map_err(|_| Unusable("auth.apiKey.header is no header's name".to_owned()))?;
            Ok(Auth::ApiKey { header, secret: secret_ref })
        }
        McpAuth { bearer: None, api_key: None, oauth: Some(oauth), none: None } => Ok(Auth::Oauth(Box::new(oauth))),
        _ => Err(Unusable("auth takes at most one of none, bearer, apiKey and oauth".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn read(spec: &Value) -> Result<Connection, Unusable> {
        let identity = Identity {
            id: Uuid::nil(),
            name: "github".to_owned(),
            origin: Origin::Api,
            namespace: None,
            workspace_id: None,
            generation: 3,
        };
        let place = Place { organization: "acme", cluster_domain: "cluster.local" };
        Connection::read(place, identity, spec, Ranges::default())
    }

    #[test]
    fn what_is_left_out_has_the_resources_defaults() {
        let connection =
            read(&json!({"transport": {"streamableHttp": {"url": "https://mcp.example.com/mcp"}}})).unwrap();
        assert_eq!(connection.transport, Transport::StreamableHttp("https://mcp.example.com/mcp".to_owned()));
        assert_eq!((connection.auth, connection.breaker), (Auth::None, Settings::default()));
        assert_eq!((connection.connect_timeout.as_secs(), connection.call_timeout.as_secs()), (30, 60));
    }

    #[test]
    fn a_program_is_reached_in_its_pod() {
        let connection = read(&json!({"transport": {"stdio": {"image": "x", "command": ["x"]}}})).unwrap();
        let Transport::Stdio(url) = connection.transport else { unreachable!("it is stdio") };
        assert_eq!(url, "http://agentapi-mcp-github.agentapi-acme.svc.cluster.local:8090/mcp");
    }

    #[test]
    fn a_row_that_says_two_things_or_nothing_is_unusable() {
        for spec in [
            json!({}),
            json!({"transport": {}}),
            json!({"transport": {"sse": {"url": "https://x"}, "streamableHttp": {"url": "https://x"}}}),
            json!({"transport": {"sse": {"url": "https://x"}}, "auth": {"none": {}, "bearer": {"secretRef": {"name": "a", "key": "b"}}}}),
        ] {
            assert!(read(&spec).is_err(), "{spec}");
        }
    }
}
