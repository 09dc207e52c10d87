//! Where users agree and where tokens are: from the provider's metadata (RFC 8414, OpenID Connect Discovery), from the
//! table of providers, and for MCP servers that name their own provider from the server (RFC 9728). May touch: `net`.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use http::header::WWW_AUTHENTICATE;
use moka::future::Cache;
use serde::Deserialize;
use serde_json::json;
use url::Url;
use uuid::Uuid;

use super::net::{Net, NetError, document_error};
use super::target::Target;
use crate::outbound::Ranges;

/// How long metadata is taken as it is.
const TTL: Duration = Duration::from_secs(600);

/// Longest name of a server for itself.
const MAX_NAME_BYTES: usize = 2048;

/// Why nothing is known about a provider.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DiscoveryError {
    /// It gave no answer that can be used.
    #[error(transparent)]
    Net(#[from] NetError),
    /// It is not one that we can work with.
    #[error("{0}")]
    Unusable(String),
}

/// An authorization server.
#[derive(Debug, Clone, Deserialize)]
pub struct Server {
    /// `iss` of its answers.
    pub issuer: String,
    /// Where users agree.
    pub authorization_endpoint: Url,
    /// Where codes and refresh tokens are exchanged.
    pub token_endpoint: Url,
    /// Where clients are registered (RFC 7591).
    pub registration_endpoint: Option<Url>,
    /// Where tokens are revoked (RFC 7009).
    pub revocation_endpoint: Option<Url>,
    /// What can be asked for; none: it does not say.
    pub scopes_supported: Option<Vec<String>>,
    /// Kinds of PKCE; none: it does not say.
    pub code_challenge_methods_supported: Option<Vec<String>>,
    /// How clients may authenticate; none: with `client_secret_basic`.
    pub token_endpoint_auth_methods_supported: Option<Vec<String>>,
    /// Whether its answers always say who it is (RFC 9207).
    #[serde(default)]
    pub authorization_response_iss_parameter_supported: bool,
}

impl Server {
    /// Whether `iss` of an answer is this server's. Azure writes the caller's tenant in place of `{tenantid}`.
    pub fn is_issuer(&self, iss: &str) -> bool {
        match self.issuer.split_once("{tenantid}") {
            Some((before, after)) => {
                let tenant = iss.strip_prefix(before).and_then(|rest| rest.strip_suffix(after));
                tenant.is_some_and(|tenant| !tenant.is_empty() && !tenant.contains('/'))
            }
            None => iss == self.issuer,
        }
    }

    /// Whether clients may authenticate in this way.
    pub fn takes(&self, method: &str) -> bool {
        match &self.token_endpoint_auth_methods_supported {
            Some(methods) => methods.iter().any(|known| known == method),
            None => method == "client_secret_basic",
        }
    }
}

/// What an MCP server says about who protects it.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Protected {
    /// Its name for itself.
    pub resource: String,
    /// Issuers of tokens for it.
    #[serde(default)]
    pub authorization_servers: Vec<String>,
    /// What may be asked for.
    #[serde(default)]
    pub scopes_supported: Vec<String>,
}

/// Finds and remembers servers.
pub struct Discovery {
    net: Net,
    /// By organization, since each may call other addresses.
    servers: Cache<(Uuid, String), Arc<Server>>,
}

impl Discovery {
    /// Nothing is known yet.
    pub fn new(net: Net) -> Self {
        Self { net, servers: Cache::builder().max_capacity(10_000).time_to_live(TTL).build() }
    }

    /// The server of an issuer.
    pub async fn server(&self, target: &Target, issuer: &str) -> Result<Arc<Server>, DiscoveryError> {
        let key = (target.organization.id, issuer.to_owned());
        let found = self.servers.try_get_with(key, self.find(target, issuer)).await;
        found.map_err(|error| DiscoveryError::clone(&error))
    }

    async fn find(&self, target: &Target, issuer: &str) -> Result<Arc<Server>, DiscoveryError> {
        if let Some(endpoints) = &target.kind().endpoints {
            let base = issuer.trim_end_matches('/');
            let endpoint = |template: &str| self.net.check(&template.replace("{issuer}", base), &target.open);
            return Ok(Arc::new(Server {
                issuer: issuer.to_owned(),
                authorization_endpoint: endpoint(&endpoints.authorization)?,
                token_endpoint: endpoint(&endpoints.token)?,
                registration_endpoint: None,
                revocation_endpoint: None,
                scopes_supported: None,
                code_challenge_methods_supported: None,
                token_endpoint_auth_methods_supported: target.kind().client_authentication.clone().map(|it| vec![it]),
                authorization_response_iss_parameter_supported: false,
            }));
        }
        let base = self.net.check(issuer, &target.open)?;
        for url in metadata_urls(&base) {
            let Some(server) = self.net.document::<Server>(&target.open, &url).await? else { continue };
            self.vet(target, &server, issuer, &url)?;
            return Ok(Arc::new(server));
        }
        Err(DiscoveryError::Unusable(format!(
            "{issuer} publishes no metadata (RFC 8414 or OpenID Connect Discovery); correct auth.oauth.issuer of the \
             connection"
        )))
    }

    /// Metadata of somebody else, addresses that may not be called, and servers that can't do PKCE.
    fn vet(&self, target: &Target, server: &Server, issuer: &str, url: &Url) -> Result<(), DiscoveryError> {
        let (named, wanted) = (server.issuer.trim_end_matches('/'), issuer.trim_end_matches('/'));
        // Azure's endpoints for accounts of many tenants name a template.
        let template = named.split_once("{tenantid}").is_some_and(|(before, _)| wanted.starts_with(before));
        if named != wanted && !template {
            return Err(document_error(url, format!("it names the issuer {named}")).into());
        }
        let endpoints = [&server.authorization_endpoint, &server.token_endpoint];
        let optional = [&server.registration_endpoint, &server.revocation_endpoint];
        for endpoint in endpoints.into_iter().chain(optional.into_iter().flatten()) {
            self.net.check(endpoint.as_str(), &target.open)?;
        }
        let methods = server.code_challenge_methods_supported.as_ref();
        // A server that an MCP server named has to say so; one that an admin named may be older than that field.
        let s256 = methods.map_or(target.oauth.issuer.is_some() || target.kind().issuer.is_some(), |methods| {
            methods.iter().any(|method| method == "S256")
        });
        if s256 { Ok(()) } else { Err(DiscoveryError::Unusable(format!("{issuer} does not support PKCE with S256"))) }
    }

    /// What an MCP server says about who protects it: where its 401 points to, else at the well-known addresses.
    pub async fn protected(&self, target: &Target) -> Result<Protected, DiscoveryError> {
        let server = self.net.check(&target.resource, &target.open)?;
        let mut places = Vec::new();
        if let Some(url) = self.pointed_to(&target.open, &server).await? {
            places.push(url);
        }
        places.extend(well_known(&server, "oauth-protected-resource"));
        for url in places {
            let Some(found) = self.net.document::<Protected>(&target.open, &url).await? else { continue };
            let fits = found.resource.len() <= MAX_NAME_BYTES && !found.resource.chars().any(char::is_control);
            if !fits || !covers(&found.resource, &server) {
                let about: String = found.resource.chars().filter(|c| !c.is_control()).take(200).collect();
                return Err(document_error(&url, format!("it is about {about}")).into());
            }
            return Ok(found);
        }
        Err(DiscoveryError::Unusable(format!(
            "{server} does not say who gives tokens for it (RFC 9728); name the provider in auth.oauth.issuer of the \
             connection"
        )))
    }

    async fn pointed_to(&self, open: &Ranges, server: &Url) -> Result<Option<Url>, NetError> {
        let ping = json!({"jsonrpc": "2.0", "id": 1, "method": "ping"});
        let answer = self.net.post(open, server, &ping).await?;
        if answer.status() != StatusCode::UNAUTHORIZED {
            return Ok(None);
        }
        let values = answer.headers().get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let mut named = values.filter_map(|value| parameter(value, "resource_metadata"));
        named.next().map(|url| self.net.check(&url, open)).transpose()
    }
}

/// Where metadata of an issuer may be, the most specific first.
pub(super) fn metadata_urls(issuer: &Url) -> Vec<Url> {
    let mut urls = Vec::new();
    urls.extend(well_known(issuer, "oauth-authorization-server").into_iter().take(1));
    urls.extend(well_known(issuer, "openid-configuration").into_iter().take(1));
    let mut appended = issuer.clone();
    appended.set_path(&format!("{}/.well-known/openid-configuration", issuer.path().trim_end_matches('/')));
    appended.set_query(None);
    if !urls.contains(&appended) {
        urls.push(appended);
    }
    urls
}

/// `/.well-known/<name>` before the path of a URL, and without the path.
fn well_known(url: &Url, name: &str) -> Vec<Url> {
    let path = url.path().trim_end_matches('/');
    let at = |path: String| {
        let mut url = url.clone();
        url.set_path(&path);
        url.set_query(None);
        url.set_fragment(None);
        url
    };
    let mut urls = vec![at(format!("/.well-known/{name}{path}"))];
    if !path.is_empty() {
        urls.push(at(format!("/.well-known/{name}")));
    }
    urls
}

/// Whether a server's name for itself fits the URL that it is reached at: the same, or above it.
pub(super) fn covers(resource: &str, server: &Url) -> bool {
    let Ok(resource) = Url::parse(resource) else { return false };
    let (path, base) = (server.path(), resource.path().trim_end_matches('/'));
    let below = path.strip_prefix(base).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    resource.origin() == server.origin() && below
}

/// A parameter of a challenge: `Bearer realm="x", resource_metadata="https://…"`.
pub(super) fn parameter(challenge: &str, name: &str) -> Option<String> {
    let (_, rest) = challenge.split_once(&format!("{name}="))?;
    let value = match rest.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next()?,
        None => rest.split([',', ' ']).next()?,
    };
    Some(value.to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rstest::rstest;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn metadata_is_looked_for_where_the_rfcs_say() {
        let texts = |issuer: &str| metadata_urls(&url(issuer)).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            texts("https://id.example.com/tenant/"),
            [
                "https://id.example.com/.well-known/oauth-authorization-server/tenant",
                "https://id.example.com/.well-known/openid-configuration/tenant",
                "https://id.example.com/tenant/.well-known/openid-configuration",
            ]
        );
        assert_eq!(texts("https://id.example.com").len(), 2);
        let resource = well_known(&url("https://mcp.example.com/a/mcp?x=1"), "oauth-protected-resource");
        assert_eq!(resource[0].as_str(), "https://mcp.example.com/.well-known/oauth-protected-resource/a/mcp");
        assert_eq!(resource[1].as_str(), "https://mcp.example.com/.well-known/oauth-protected-resource");
    }

    #[rstest]
    #[case("https://mcp.example.com/mcp", true)]
    #[case("https://mcp.example.com", true)]
    #[case("https://mcp.example.com/", true)]
    #[case("https://mcp.example.com/mc", false)]
    #[case("https://mcp.example.com/mcp/other", false)]
    #[case("https://evil.example.com/mcp", false)]
    #[case("http://mcp.example.com/mcp", false)]
    #[case("mcp", false)]
    fn a_server_speaks_for_itself_only(#[case] resource: &str, #[case] fits: bool) {
        assert_eq!(covers(resource, &url("https://mcp.example.com/mcp")), fits);
    }

    #[test]
    fn a_challenge_points_to_metadata_quoted_or_not() {
        let challenge = r#"Bearer realm="mcp", resource_metadata="https://a.example/x", error="invalid_token""#;
        assert_eq!(parameter(challenge, "resource_metadata").unwrap(), "https://a.example/x");
        let bare = "Bearer resource_metadata=https://a.example/x, error=invalid_token";
        assert_eq!(parameter(bare, "resource_metadata").unwrap(), "https://a.example/x");
        assert_eq!(parameter("Bearer", "resource_metadata"), None);
    }

    #[test]
    fn azures_template_fits_one_tenant_and_nothing_more() {
        let server = |issuer: &str| Server {
            issuer: issuer.to_owned(),
            authorization_endpoint: url("https://x"),
            token_endpoint: url("https://x"),
            registration_endpoint: None,
            revocation_endpoint: None,
            scopes_supported: None,
            code_challenge_methods_supported: None,
            token_endpoint_auth_methods_supported: None,
            authorization_response_iss_parameter_supported: true,
        };
        let azure = server("https://login.microsoftonline.com/{tenantid}/v2.0");
        assert!(azure.is_issuer("https://login.microsoftonline.com/0b1c/v2.0"));
        for other in [
            "https://login.microsoftonline.com//v2.0",
            "https://login.microsoftonline.com/a/b/v2.0",
            "https://evil/v2.0",
        ] {
            assert!(!azure.is_issuer(other), "{other}");
        }
        assert!(!server("https://id.example.com").is_issuer("https://id.example.com/"));
    }
}
