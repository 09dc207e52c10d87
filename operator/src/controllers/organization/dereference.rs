//! What a reconcile of an Organization reads from the cluster.
use super::build::{
    ANNOTATION_ROTATED_AT, ANNOTATION_ROTATION, KEY_MASTER_ID, KEY_PASSWORD, KEY_VERSION, KEY_WRAPPED, of_version,
};
use crate::{
    context::Context,
    error::{Error, Result},
    tenancy::{
        credentials::Credentials,
        keys::{DataKeys, WrappedKey},
    },
};
use agentapi_crds::names;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::{Api, ResourceExt};

/// State of the name that the tenant's namespace must have.
#[derive(Debug, PartialEq, Eq)]
pub enum NamespaceState {
    /// It is free or ours.
    Ours,
    /// It is going; it can be made again when it is gone.
    Terminating,
    /// Somebody else made it.
    Foreign,
}

/// Whose the tenant's namespace is. A label could have been edited away; that we have applied it can't.
pub async fn namespace_state(context: &Context, name: &str) -> Result<NamespaceState> {
    let live = Api::<Namespace>::all(context.client.clone())
        .get_metadata_opt(name)
        .await
        .map_err(|e| Error::kube("get", "Namespace", name, e))?;
    let Some(live) = live else { return Ok(NamespaceState::Ours) };
    let ours = live
        .managed_fields()
        .iter()
        .any(|entry| entry.manager.as_deref() == Some(names::OPERATOR) && entry.operation.as_deref() == Some("Apply"));
    Ok(match (ours, live.metadata.deletion_timestamp.is_some()) {
        (_, true) => NamespaceState::Terminating,
        (true, false) => NamespaceState::Ours,
        (false, false) => NamespaceState::Foreign,
    })
}

/// What the tenant's two Secrets hold, as far as it can be understood.
#[derive(Default)]
pub struct Live {
    /// The read-only role's password.
    pub credentials: Option<Credentials>,
    /// The wrapped data keys.
    pub data_keys: Option<DataKeys>,
}

/// Read the tenant's two Secrets.
pub async fn secrets(context: &Context, namespace: &str) -> Result<Live> {
    let api = Api::<Secret>::namespaced(context.client.clone(), namespace);
    let get = async |name: &str| {
        api.get_opt(name).await.map_err(|e| Error::kube("get", "Secret", format!("{namespace}/{name}"), e))
    };
    Ok(Live {
        credentials: get(names::SECRET_DATABASE).await?.as_ref().and_then(credentials),
        data_keys: get(names::SECRET_DATA_KEY).await?.as_ref().and_then(data_keys),
    })
}

fn credentials(secret: &Secret) -> Option<Credentials> {
    let annotations = secret.annotations();
    Some(Credentials {
        password: text(secret, KEY_PASSWORD)?.into(),
        rotated_at: annotations.get(ANNOTATION_ROTATED_AT)?.parse().ok()?,
        rotation: annotations.get(ANNOTATION_ROTATION).cloned().unwrap_or_default(),
    })
}

/// The data keys in the tenant's Secret.
pub fn data_keys(secret: &Secret) -> Option<DataKeys> {
    let data = secret.data.as_ref()?;
    let key = |version, wrapped: &str, master: &str| {
        Some(WrappedKey { version, wrapped: data.get(wrapped)?.0.clone(), master_key_id: text(secret, master)? })
    };
    let current = key(text(secret, KEY_VERSION)?.parse().ok()?, KEY_WRAPPED, KEY_MASTER_ID)?;
    let older = data.keys().filter_map(|name| name.strip_prefix(KEY_WRAPPED)?.strip_prefix('.')?.parse().ok());
    let mut previous: Vec<WrappedKey> = older
        .filter_map(|version| key(version, &of_version(KEY_WRAPPED, version), &of_version(KEY_MASTER_ID, version)))
        .collect();
    previous.sort_by_key(|key| key.version);
    Some(DataKeys { current, previous })
}

fn text(secret: &Secret, key: &str) -> Option<String> {
    String::from_utf8(secret.data.as_ref()?.get(key)?.0.clone()).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::controllers::organization::{build, tests::acme, validate::validate};

    #[test]
    fn what_is_written_into_the_secrets_is_what_is_read_from_them() {
        let tenant = validate(&acme()).unwrap();
        let key = |version| WrappedKey { version, wrapped: vec![0, 255, 7], master_key_id: format!("by{version}") };
        let keys = DataKeys { current: key(12), previous: vec![key(2), key(10)] };
        let made = Credentials {
            password: "pw".to_owned().into(),
            rotated_at: "2026-01-01T00:00:00Z".parse().unwrap(),
            rotation: "3".into(),
        };
        let server = ("db:5432".to_owned(), "agentapi".to_owned());
        let build::TenantSecrets { database, data_key: secret, state: _ } =
            build::secrets(&tenant, &made, &server, &keys);
        assert_eq!(data_keys(&secret), Some(keys));
        let read = credentials(&database).unwrap();
        assert_eq!((read.rotated_at, read.rotation), (made.rotated_at, made.rotation));
        assert!(credentials(&Secret::default()).is_none() && data_keys(&Secret::default()).is_none());
    }
}
