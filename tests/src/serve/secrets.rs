//! Secrets of tenants, without a cluster.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use agentapi_runtime::mcp::secrets::{SecretError, TenantSecrets, may_be_named};
use futures::FutureExt;
use futures::future::BoxFuture;
use secrecy::SecretString;

type Key = (String, String, String);

/// In memory.
#[derive(Default)]
pub struct MemorySecrets(Mutex<HashMap<Key, String>>);

impl MemorySecrets {
    /// Puts a value where it is found from now on.
    pub fn set(&self, organization: &str, name: &str, key: &str, value: &str) {
        let place = (organization.to_owned(), name.to_owned(), key.to_owned());
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(place, value.to_owned());
    }
}

impl TenantSecrets for MemorySecrets {
    fn read<'a>(
        &'a self,
        organization: &'a str,
        name: &'a str,
        key: &'a str,
    ) -> BoxFuture<'a, Result<SecretString, SecretError>> {
        async move {
            if !may_be_named(name) {
                return Err(SecretError::NotYours(name.to_owned()));
            }
            let place = (organization.to_owned(), name.to_owned(), key.to_owned());
            let found = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&place).cloned();
            let missing = || SecretError::Missing { name: name.to_owned(), key: key.to_owned() };
            found.map(SecretString::from).ok_or_else(missing)
        }
        .boxed()
    }
}
