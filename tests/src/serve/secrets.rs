//! Secrets of tenants, without a cluster.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use agentapi_runtime::mcp::secrets::{Destination, SecretError, TenantSecrets, may_be_named};
use futures::FutureExt;
use futures::future::BoxFuture;
use secrecy::SecretString;

/// Organization, Secret and key.
type Key = (String, String, String);
/// Organization and Secret.
type Name = (String, String);

/// In memory.
#[derive(Default)]
pub struct MemorySecrets {
    values: Mutex<HashMap<Key, String>>,
    hosts: Mutex<HashMap<Name, String>>,
}

impl MemorySecrets {
    /// Puts a value where it is found from now on.
    pub fn set(&self, organization: &str, name: &str, key: &str, value: &str) {
        let place = (organization.to_owned(), name.to_owned(), key.to_owned());
        self.values.lock().unwrap_or_else(PoisonError::into_inner).insert(place, value.to_owned());
    }

    /// Annotates a Secret with the hosts that configurations of the API may send it to.
    pub fn allow(&self, organization: &str, name: &str, hosts: &str) {
        let place = (organization.to_owned(), name.to_owned());
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner).insert(place, hosts.to_owned());
    }
}

impl TenantSecrets for MemorySecrets {
    fn read<'a>(
        &'a self,
        organization: &'a str,
        name: &'a str,
        key: &'a str,
        to: &'a Destination,
    ) -> BoxFuture<'a, Result<SecretString, SecretError>> {
        async move {
            if !may_be_named(name) {
                return Err(SecretError::NotYours(name.to_owned()));
            }
            let place = (organization.to_owned(), name.to_owned(), key.to_owned());
            let found = self.values.lock().unwrap_or_else(PoisonError::into_inner).get(&place).cloned();
            let missing = || SecretError::Missing { name: name.to_owned(), key: key.to_owned() };
            let value = found.ok_or_else(missing)?;
            let place = (organization.to_owned(), name.to_owned());
            to.check(name, self.hosts.lock().unwrap_or_else(PoisonError::into_inner).get(&place).map(String::as_str))?;
            Ok(SecretString::from(value))
        }
        .boxed()
    }
}
