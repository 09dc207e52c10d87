//! The three Secrets of the system namespace that have to exist once: the key pairs of session tokens, that of
//! signed statements and the master keys. They are created when they are missing; only `keys` changes them afterwards.
use crate::{
    envelope::{self, MasterKey, MasterKeys},
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

/// The keys that may change while we run.
pub struct SystemKeys {
    /// The keys that wrap data keys.
    pub master: MasterKeys,
    /// base64url of the keys that session tokens are checked with, sorted.
    pub session_public_keys: Vec<String>,
}

impl SystemKeys {
    /// From the two Secrets.
    pub fn read(signing: &Secret, master: &Secret) -> Result<Self> {
        let mut session_public_keys = vec![text(signing, names::KEY_SIGNING_PUBLIC)?];
        for key in [names::KEY_SIGNING_NEXT_PUBLIC, names::KEY_SIGNING_PREVIOUS_PUBLIC] {
            if has(signing, key) {
                session_public_keys.push(text(signing, key)?);
            }
        }
        session_public_keys.sort();
        let current = MasterKey::new(value(master, names::KEY_MASTER)?)?;
        let previous = master.data.iter().flatten().filter(|(key, _)| key.starts_with(names::KEY_MASTER_PREVIOUS));
        let previous = previous.map(|(_, bytes)| MasterKey::new(&bytes.0)).collect::<Result<_, _>>()?;
        Ok(Self { master: MasterKeys::new(current, previous), session_public_keys })
    }
}

/// Read the three Secrets, creating what is missing.
pub async fn ensure(client: &Client, namespace: &str) -> Result<(SystemKeys, Signer)> {
    let secrets = Api::<Secret>::namespaced(client.clone(), namespace);
    let signing = get_or_create(&secrets, names::SECRET_SESSION_SIGNING, key_pair).await?;
    let statements = get_or_create(&secrets, names::SECRET_AUDIT_SIGNING, key_pair).await?;
    let master = get_or_create(&secrets, names::SECRET_MASTER_KEY, || {
        Ok([(names::KEY_MASTER.to_owned(), ByteString(envelope::random::<32>()?.to_vec()))].into())
    })
    .await?;
    let signer = Signer::from_pem(value(&statements, names::KEY_SIGNING_PRIVATE)?)
        .map_err(|_| missing(names::SECRET_AUDIT_SIGNING, names::KEY_SIGNING_PRIVATE))?;
    tracing::info!(kid = signer.kid(), "statements are signed with this key");
    Ok((SystemKeys::read(&signing, &master)?, signer))
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

fn key_pair() -> Result<BTreeMap<String, ByteString>> {
    let pair = signing_pair()?;
    Ok([
        (names::KEY_SIGNING_PRIVATE.to_owned(), pair.private_pem),
        (names::KEY_SIGNING_PUBLIC.to_owned(), pair.public_x),
    ]
    .into())
}

/// A key pair as the Secret has it.
pub struct SigningPair {
    /// PKCS#8 PEM.
    pub private_pem: ByteString,
    /// base64url of the public half.
    pub public_x: ByteString,
}

/// A fresh pair.
pub fn signing_pair() -> Result<SigningPair> {
    let document = Ed25519KeyPair::generate_pkcs8v1(&SystemRandom::new()).map_err(|_| envelope::Error::Random)?;
    let pair = Ed25519KeyPair::from_pkcs8(document.as_ref()).map_err(|_| envelope::Error::Random)?;
    let public = URL_SAFE_NO_PAD.encode(pair.public_key());
    Ok(SigningPair {
        private_pem: ByteString(pem(document.as_ref()).into_bytes()),
        public_x: ByteString(public.into_bytes()),
    })
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

/// Does the Secret have this key?
pub fn has(secret: &Secret, key: &str) -> bool {
    secret.data.as_ref().is_some_and(|data| data.contains_key(key))
}

/// A value of the Secret.
pub fn value<'a>(secret: &'a Secret, key: &str) -> Result<&'a [u8]> {
    let name = secret.metadata.name.clone().unwrap_or_default();
    secret
        .data
        .as_ref()
        .and_then(|data| data.get(key))
        .map(|value| value.0.as_slice())
        .ok_or_else(|| missing(&name, key))
}

/// A value of the Secret that is text.
pub fn text(secret: &Secret, key: &str) -> Result<String> {
    let name = secret.metadata.name.clone().unwrap_or_default();
    String::from_utf8(value(secret, key)?.to_vec()).map_err(|_| missing(&name, key))
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
    use secrecy::ExposeSecret;
    use uuid::Uuid;

    fn secret(data: &[(&str, &[u8])]) -> Secret {
        let data = data.iter().map(|(key, value)| ((*key).to_owned(), ByteString(value.to_vec()))).collect();
        Secret { data: Some(data), ..Secret::default() }
    }

    #[test]
    fn the_signing_key_is_a_pkcs8_pem_with_the_public_key_beside_it() {
        let made = signing_pair().unwrap();
        let private = String::from_utf8(made.private_pem.0).unwrap();
        assert!(
            private.starts_with("-----BEGIN PRIVATE KEY-----\n") && private.ends_with("-----END PRIVATE KEY-----\n")
        );
        assert!(private.lines().all(|line| line.len() <= 64));
        let body: String = private.lines().filter(|line| !line.starts_with('-')).collect();
        let pair = Ed25519KeyPair::from_pkcs8(&STANDARD.decode(body).unwrap()).unwrap();
        let public = URL_SAFE_NO_PAD.decode(&made.public_x.0).unwrap();
        assert_eq!(pair.public_key().as_ref(), public.as_slice());
        assert_eq!(public.len(), 32);
    }

    #[test]
    fn all_keys_of_the_two_secrets_are_read_and_a_bad_one_is_refused() {
        let signing = secret(&[("public.x", b"bbb"), ("next.x", b"aaa")]);
        let old = MasterKey::new(&[7; 32]).unwrap();
        let acme = Uuid::from_u128(1);
        let wrapped = old.wrap_new(acme, 1).unwrap();
        let read = SystemKeys::read(&signing, &secret(&[("key", &[8; 32]), ("previous.x", &[7; 32])])).unwrap();
        assert_eq!(read.session_public_keys, ["aaa", "bbb"]);
        assert_eq!(
            read.master.unwrap(acme, 1, old.id(), &wrapped).unwrap().expose_secret(),
            old.unwrap(acme, 1, &wrapped).unwrap().expose_secret()
        );
        for bad in [secret(&[("key", b"short")]), secret(&[("key", &[8; 32]), ("previous.x", b"short")]), secret(&[])] {
            assert!(SystemKeys::read(&signing, &bad).is_err());
        }
    }
}
