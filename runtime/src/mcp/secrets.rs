//! Credentials that a tenant keeps in Secrets of its own namespace: one is read when a server wants it. Secrets that
//! belong to the platform or to sessions are never read, whoever names them. May touch: Secrets by name.

use std::time::Duration;

use agentapi_crds::names;
use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use moka::sync::Cache;
use secrecy::SecretString;

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
    /// The cluster does not answer.
    #[error("the cluster cannot be asked for the Secret: {0}")]
    Unavailable(String),
}

/// Reads Secrets of tenant namespaces.
pub trait TenantSecrets: Send + Sync + 'static {
    /// One key of a Secret of this organization.
    fn read<'a>(
        &'a self,
        organization: &'a str,
        name: &'a str,
        key: &'a str,
    ) -> BoxFuture<'a, Result<SecretString, SecretError>>;

    /// What was read does not work any more: the next reader gets what is there now.
    fn forget(&self, _organization: &str, _name: &str, _key: &str) {}
}

/// Whether a tenant may refer to a Secret of this name.
pub fn may_be_named(name: &str) -> bool {
    !name.starts_with("agentapi-") && !name.ends_with("-session")
}

/// Those of the cluster.
pub struct KubernetesSecrets {
    client: Client,
    read: Cache<(String, String, String), SecretString>,
}

impl KubernetesSecrets {
    /// With the client of the pod's own `ServiceAccount`.
    pub fn new(client: Client) -> Self {
        Self { client, read: Cache::builder().max_capacity(10_000).time_to_live(CACHED).build() }
    }

    async fn get(&self, organization: &str, name: &str, key: &str) -> Result<SecretString, SecretError> {
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
        let value = secret.and_then(|secret| secret.data?.remove(key)).ok_or_else(missing)?;
        let value = String::from_utf8(value.0).map_err(|_| missing())?;
        let value = SecretString::from(value.trim_end_matches(['\r', '\n']));
        self.read.insert(cached, value.clone());
        Ok(value)
    }
}

impl TenantSecrets for KubernetesSecrets {
    fn read<'a>(
        &'a self,
        organization: &'a str,
        name: &'a str,
        key: &'a str,
    ) -> BoxFuture<'a, Result<SecretString, SecretError>> {
        self.get(organization, name, key).boxed()
    }

    fn forget(&self, organization: &str, name: &str, key: &str) {
        self.read.invalidate(&(organization.to_owned(), name.to_owned(), key.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_platforms_own_secrets_cannot_be_named() {
        for name in ["agentapi-data-key", "agentapi-database", "s-1-session"] {
            assert!(!super::may_be_named(name), "{name}");
        }
        assert!(super::may_be_named("github-token"));
    }
}
