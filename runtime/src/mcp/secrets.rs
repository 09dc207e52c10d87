//! Credentials that a tenant keeps in Secrets of its own namespace: one is read when a server wants it. Secrets that
//! belong to the platform or to sessions are never read, whoever names them; and whoever makes connections through the
//! API has a Secret sent only to hosts that it is for. May touch: Secrets by name.

use std::time::Duration;

use agentapi_crds::names::{self, ANNOTATION_MCP_HOSTS};
use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use moka::sync::Cache;
use secrecy::SecretString;
use url::Url;

use super::connection::Origin;

/// How long a changed Secret may go unnoticed, unless the server refuses the old one.
const CACHED: Duration = Duration::from_secs(30);

/// Why a credential cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// It is not there.
    #[error("the Secret {name} has no key {key} in your tenant namespace; create it there, or correct the reference")]
    Missing {
        /// Of the Secret.
        name: String,
        /// In the Secret.
        key: String,
    },
    /// It is not the tenant's.
    #[error("the Secret {0} belongs to the platform or to a session; put the credential into a Secret of your own")]
    NotYours(String),
    /// It is not for this host.
    #[error(
        "the Secret {name} is not for {host}: a configuration of the API may send a Secret only to hosts that the Secret \
         itself names. Ask your platform team to annotate it with {ANNOTATION_MCP_HOSTS}: {host}, or to make an \
         McpConnection"
    )]
    NotForHost {
        /// Of the Secret.
        name: String,
        /// Where it would have been sent.
        host: String,
    },
    /// The cluster does not answer.
    #[error("the cluster cannot be asked for the Secret: {0}")]
    Unavailable(String),
}

/// Where a value is about to be sent, by whose word.
#[derive(Debug, Clone)]
pub enum Destination {
    /// A resource names Secret and server both: whoever may write those may read the Secret.
    OfResource,
    /// A configuration of the API names these hosts.
    OfApi(Vec<String>),
}

impl Destination {
    /// Of a connection of this origin, to these URLs.
    pub fn new<'a>(origin: Origin, urls: impl IntoIterator<Item = &'a Url>) -> Self {
        match origin {
            Origin::Crd => Self::OfResource,
            Origin::Api => Self::OfApi(urls.into_iter().map(host).collect()),
        }
    }

    /// Whether a Secret with this annotation may be sent there.
    pub fn check(&self, name: &str, annotation: Option<&str>) -> Result<(), SecretError> {
        let Self::OfApi(hosts) = self else { return Ok(()) };
        let named = annotation.unwrap_or_default().split(',').map(|host| host.trim().to_ascii_lowercase());
        let allowed: Vec<String> = named.filter(|host| !host.is_empty()).collect();
        match hosts.iter().find(|host| !allowed.contains(host)) {
            None => Ok(()),
            Some(host) => Err(SecretError::NotForHost { name: name.to_owned(), host: host.clone() }),
        }
    }
}

/// Host of a URL, with its port where that is not the scheme's own.
fn host(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// Reads Secrets of tenant namespaces.
pub trait TenantSecrets: Send + Sync + 'static {
    /// One key of a Secret of this organization, to be sent there.
    fn read<'a>(
        &'a self,
        organization: &'a str,
        name: &'a str,
        key: &'a str,
        to: &'a Destination,
    ) -> BoxFuture<'a, Result<SecretString, SecretError>>;

    /// What was read does not work any more: the next reader gets what is there now.
    fn forget(&self, _organization: &str, _name: &str, _key: &str) {}
}

/// Whether a tenant may refer to a Secret of this name.
pub fn may_be_named(name: &str) -> bool {
    !name.starts_with("agentapi-") && !name.ends_with("-session")
}

/// What was read, and the annotation of its Secret.
#[derive(Clone)]
struct Read {
    value: SecretString,
    hosts: Option<String>,
}

/// Those of the cluster.
pub struct KubernetesSecrets {
    client: Client,
    read: Cache<(String, String, String), Read>,
}

impl KubernetesSecrets {
    /// With the client of the pod's own `ServiceAccount`.
    pub fn new(client: Client) -> Self {
        Self { client, read: Cache::builder().max_capacity(10_000).time_to_live(CACHED).build() }
    }

    async fn get(
        &self,
        organization: &str,
        name: &str,
        key: &str,
        to: &Destination,
    ) -> Result<SecretString, SecretError> {
        let Read { value, hosts } = self.fetch(organization, name, key).await?;
        to.check(name, hosts.as_deref())?;
        Ok(value)
    }

    async fn fetch(&self, organization: &str, name: &str, key: &str) -> Result<Read, SecretError> {
        if !may_be_named(name) {
            return Err(SecretError::NotYours(name.to_owned()));
        }
        let cached = (organization.to_owned(), name.to_owned(), key.to_owned());
        if let Some(value) = self.read.get(&cached) {
            return Ok(value);
        }
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &names::tenant_namespace(organization));
        let secret = secrets.get_opt(name).await.map_err(|error| SecretError::Unavailable(error.to_string()))?;
        let missing = || SecretError::Missing { name: name.to_owned(), key: key.to_owned() };
        let Secret { data, metadata, .. } = secret.ok_or_else(missing)?;
        let value = data.and_then(|mut data| data.remove(key)).ok_or_else(missing)?;
        let value = String::from_utf8(value.0).map_err(|_| missing())?;
        let value = SecretString::from(value.trim_end_matches(['\r', '\n']));
        let hosts = metadata.annotations.and_then(|mut all| all.remove(ANNOTATION_MCP_HOSTS));
        let read = Read { value, hosts };
        self.read.insert(cached, read.clone());
        Ok(read)
    }
}

impl TenantSecrets for KubernetesSecrets {
    fn read<'a>(
        &'a self,
        organization: &'a str,
        name: &'a str,
        key: &'a str,
        to: &'a Destination,
    ) -> BoxFuture<'a, Result<SecretString, SecretError>> {
        self.get(organization, name, key, to).boxed()
    }

    fn forget(&self, organization: &str, name: &str, key: &str) {
        self.read.invalidate(&(organization.to_owned(), name.to_owned(), key.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use kube::client::Body;
    use rstest::rstest;
    use secrecy::ExposeSecret;
    use serde_json::json;
    use std::convert::Infallible;
    use std::sync::{Arc, Mutex};

    #[rstest]
    #[case::nothing_said("https://mcp.example.com/mcp", None, false)]
    #[case::nothing_meant("https://mcp.example.com/mcp", Some(" ,"), false)]
    #[case::this("https://mcp.example.com/mcp", Some("mcp.example.com"), true)]
    #[case::among_others("https://MCP.example.com:443/mcp", Some("a.example , mcp.Example.com"), true)]
    #[case::above("https://mcp.example.com/mcp", Some("example.com"), false)]
    #[case::below("https://evil.mcp.example.com/mcp", Some("mcp.example.com"), false)]
    #[case::longer("https://mcp.example.com.evil.example/", Some("mcp.example.com"), false)]
    #[case::user("https://mcp.example.com@evil.example/", Some("mcp.example.com"), false)]
    #[case::port("https://mcp.example.com:8443/mcp", Some("mcp.example.com"), false)]
    #[case::its_port("https://mcp.example.com:8443/mcp", Some("mcp.example.com:8443"), true)]
    #[case::any("https://mcp.example.com/mcp", Some("*"), false)]
    fn the_api_sends_a_secret_only_where_it_says(
        #[case] url: &str,
        #[case] annotation: Option<&str>,
        #[case] allowed: bool,
    ) {
        let url: Url = url.parse().unwrap();
        let check = |origin| Destination::new(origin, [&url]).check("s", annotation);
        assert_eq!(check(Origin::Api).is_ok(), allowed, "{:?}", check(Origin::Api));
        assert_eq!(check(Origin::Crd), Ok(()));
    }

    #[tokio::test]
    async fn the_cluster_is_asked_for_what_may_be_named_and_its_word_counts() {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let paths = Arc::clone(&asked);
        let server = tower::service_fn(move |request: http::Request<Body>| {
            paths.lock().unwrap().push(request.uri().path().to_owned());
            let secret = json!({
                "metadata": {"name": "tracker", "annotations": {ANNOTATION_MCP_HOSTS: "mcp.example.com"}},
                "data": {"token": "czNjcmV0Cg=="},
            });
            async move { Ok::<_, Infallible>(http::Response::new(Body::from(secret.to_string().into_bytes()))) }
        });
        let secrets = KubernetesSecrets::new(Client::new(server, "default"));
        let to = |origin, url: &str| Destination::new(origin, [&url.parse().unwrap()]);
        let good = to(Origin::Api, "https://mcp.example.com/mcp");
        let read = secrets.read("acme", "tracker", "token", &good).await.unwrap();
        assert_eq!(read.expose_secret(), "s3cret");
        // What is remembered is for nobody else either.
        let evil = to(Origin::Api, "https://evil.example/");
        let refused = secrets.read("acme", "tracker", "token", &evil).await.unwrap_err();
        assert_eq!(refused, SecretError::NotForHost { name: "tracker".to_owned(), host: "evil.example".to_owned() });
        assert!(secrets.read("acme", "tracker", "token", &to(Origin::Crd, "https://evil.example/")).await.is_ok());
        for name in ["agentapi-master-key", "s-1-session"] {
            let refused = secrets.read("acme", name, "token", &Destination::OfResource).await.unwrap_err();
            assert_eq!(refused, SecretError::NotYours(name.to_owned()));
        }
        let missing = secrets.read("acme", "tracker", "other", &good).await.unwrap_err();
        assert!(missing.to_string().contains("no key other"), "{missing}");
        let path = "/api/v1/namespaces/agentapi-acme/secrets/tracker";
        assert_eq!(*asked.lock().unwrap(), [path, path]);
        secrets.forget("acme", "tracker", "token");
        secrets.read("acme", "tracker", "token", &good).await.unwrap();
        assert_eq!(asked.lock().unwrap().len(), 3);
    }

    #[test]
    fn all_hosts_have_to_be_named() {
        let urls: [Url; 2] = ["https://a.example/", "https://b.example/"].map(|url| url.parse().unwrap());
        let error = Destination::new(Origin::Api, &urls).check("s", Some("a.example")).unwrap_err();
        assert!(error.to_string().contains("agentapi.dev/mcp-hosts: b.example"), "{error}");
    }

    #[test]
    fn the_platforms_own_secrets_cannot_be_named() {
        for name in ["agentapi-data-key", "agentapi-database", "s-1-session"] {
            assert!(!super::may_be_named(name), "{name}");
        }
        assert!(super::may_be_named("github-token"));
    }
}
