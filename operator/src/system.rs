//! The three Secrets of the system namespace that have to exist once: the key pair of session tokens, that of
//! signed statements and the master key. They are created when they are missing and never changed.
use crate::{
    envelope::{self, MasterKey},
    error::{Error, Result},
    signing::Signer,
};
use agentapi_crds::names;
use aws_lc_rs::{
    rand::SystemRandom,
    signature::{Ed25519KeyPair, KeyPair},
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use std::collections::BTreeMap;

/// What the operator needs of the three Secrets.
pub struct SystemKeys {
    /// The key that wraps data keys.
    pub master: MasterKey,
    /// base64url of the key that session tokens are checked with.
    pub session_public_key: String,
    /// Signs statements.
    pub signer: Signer,
}

/// Read the three Secrets, creating what is missing.
pub async fn ensure(client: &Client, namespace: &str) -> Result<SystemKeys> {
    let secrets = Api::<Secret>::namespaced(client.clone(), namespace);
    let signing = get_or_create(&secrets, names::SECRET_SESSION_SIGNING, signing_key).await?;
    let statements = get_or_create(&secrets, names::SECRET_AUDIT_SIGNING, signing_key).await?;
    let master = get_or_create(&secrets, names::SECRET_MASTER_KEY, || {
        Ok([(names::KEY_MASTER.to_owned(), ByteString(envelope::random::<32>()?.to_vec()))].into())
    })
    .await?;
    let public = value(&signing, names::KEY_SIGNING_PUBLIC)?;
    let session_public_key = String::from_utf8(public.to_vec())
        .map_err(|_| missing(names::SECRET_SESSION_SIGNING, names::KEY_SIGNING_PUBLIC))?;
    let signer = Signer::from_pem(value(&statements, names::KEY_SIGNING_PRIVATE)?)
        .map_err(|_| missing(names::SECRET_AUDIT_SIGNING, names::KEY_SIGNING_PRIVATE))?;
    tracing::info!(kid = signer.kid(), "statements are signed with this key");
    Ok(SystemKeys { master: MasterKey::new(value(&master, names::KEY_MASTER)?)?, session_public_key, signer })
}

async fn get_or_create(
    secrets: &Api<Secret>,
    name: &'static str,
    make: impl FnOnce() -> Result<BTreeMap<String, ByteString>>,
) -> Result<Secret> {
    let get = async || secrets.get_opt(name).await.map_err(|e| Error::kube("get", "Secret", name, e));
    if let Some(secret) = get().await? {
        return Ok(secret);
    }
    let labels = BTreeMap::from([(names::LABEL_MANAGED_BY.to_owned(), names::OPERATOR.to_owned())]);
    let secret = Secret {
        metadata: ObjectMeta { name: Some(name.to_owned()), labels: Some(labels), ..ObjectMeta::default() },
        data: Some(make()?),
        ..Secret::default()
    };
    match secrets.create(&PostParams::default(), &secret).await {
        Ok(created) => {
            tracing::info!(secret = name, "created");
            Ok(created)
        }
        // Somebody was faster; theirs is the one that counts.
        Err(kube::Error::Api(status)) if status.code == 409 => get().await?.ok_or_else(|| missing(name, "anything")),
        Err(error) => Err(Error::kube("create", "Secret", name, error)),
    }
}

fn signing_key() -> Result<BTreeMap<String, ByteString>> {
    let document = Ed25519KeyPair::generate_pkcs8v1(&SystemRandom::new()).map_err(|_| envelope::Error::Random)?;
    let pair = Ed25519KeyPair::from_pkcs8(document.as_ref()).map_err(|_| envelope::Error::Random)?;
    let public = URL_SAFE_NO_PAD.encode(pair.public_key());
    Ok([
        (names::KEY_SIGNING_PRIVATE.to_owned(), ByteString(pem(document.as_ref()).into_bytes())),
        (names::KEY_SIGNING_PUBLIC.to_owned(), ByteString(public.into_bytes())),
    ]
    .into())
}

/// RFC 7468: base64 in lines of 64.
pub(crate) fn pem(der: &[u8]) -> String {
    let encoded = STANDARD.encode(der);
    let mut text = String::from("-----BEGIN PRIVATE KEY-----\n");
    for line in encoded.as_bytes().chunks(64) {
        text.push_str(&String::from_utf8_lossy(line));
        text.push('\n');
    }
    text.push_str("-----END PRIVATE KEY-----\n");
    text
}

fn value<'a>(secret: &'a Secret, key: &'static str) -> Result<&'a [u8]> {
    let name = secret.metadata.name.clone().unwrap_or_default();
    secret
        .data
        .as_ref()
        .and_then(|data| data.get(key))
        .map(|value| value.0.as_slice())
        .ok_or_else(|| missing(&name, key))
}

fn missing(secret: &str, key: &str) -> Error {
    Error::Malformed {
        kind: "Secret".into(),
        reason: format!(
            "{secret} in the system namespace lacks {key}; restore it, or delete the Secret to get a new one"
        ),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_signing_key_is_a_pkcs8_pem_with_the_public_key_beside_it() {
        let data = signing_key().unwrap();
        let private = String::from_utf8(data[names::KEY_SIGNING_PRIVATE].0.clone()).unwrap();
        assert!(
            private.starts_with("-----BEGIN PRIVATE KEY-----\n") && private.ends_with("-----END PRIVATE KEY-----\n")
        );
        assert!(private.lines().all(|line| line.len() <= 64));
        let body: String = private.lines().filter(|line| !line.starts_with('-')).collect();
        let pair = Ed25519KeyPair::from_pkcs8(&STANDARD.decode(body).unwrap()).unwrap();
        let public = URL_SAFE_NO_PAD.decode(&data[names::KEY_SIGNING_PUBLIC].0).unwrap();
        assert_eq!(pair.public_key().as_ref(), public.as_slice());
        assert_eq!(public.len(), 32);
    }
}
