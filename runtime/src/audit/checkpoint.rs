//! Signed checkpoints, as the operator makes them (its `checkpoints` and `signing`): at a time, the log of an
//! organization ended with this row. Believed only with a key that the auditor trusts. Pure.

use std::collections::HashMap;

use agentapi_crds::names;
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

/// Why checkpoints can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// No set of Ed25519 keys.
    #[error("the public keys are not a JSON Web Key Set with Ed25519 keys, as GET /v1/audit/keys gives it")]
    Keys,
    /// Neither statements nor the document that holds them.
    #[error("the checkpoints are neither what GET /v1/audit/checkpoints gives nor one statement per line")]
    Form,
    /// Signed with a key that is not among those given.
    #[error("checkpoint {number} is signed with key {kid}, which is not among the public keys")]
    UnknownKey {
        /// Which one, from 1.
        number: usize,
        /// The key that it names.
        kid: String,
    },
    /// Altered, or signed with another key, or another kind of statement.
    #[error("checkpoint {number} is not genuine: its signature does not fit, or it is no checkpoint")]
    Forged {
        /// Which one, from 1.
        number: usize,
    },
}

impl CheckpointError {
    /// Whether somebody has tampered, and not just taken the wrong file.
    pub fn is_forgery(&self) -> bool {
        matches!(self, Self::Forged { .. })
    }
}

/// A checkpoint whose signature was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The organization.
    pub organization: Uuid,
    /// Number of the last row.
    pub seq: i64,
    /// Its hash, hex.
    pub hash: String,
    /// When it was the last one.
    pub at: Timestamp,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    typ: String,
    kid: String,
}

#[derive(Deserialize)]
struct Claims {
    sub: Uuid,
    seq: i64,
    hash: String,
    iat: i64,
}

/// One public key as a JSON Web Key (RFC 8037).
pub fn jwk(kid: &str, public_key: &[u8]) -> Value {
    json!({ "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": kid, "x": URL_SAFE_NO_PAD.encode(public_key) })
}

/// The keys that an auditor trusts, by name.
#[derive(Debug, Clone, Default)]
pub struct Keys(HashMap<String, Vec<u8>>);

impl Keys {
    /// From a JSON Web Key Set.
    pub fn from_jwks(text: &str) -> Result<Self, CheckpointError> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<Key>,
        }
        #[derive(Deserialize)]
        struct Key {
            crv: Option<String>,
            kid: Option<String>,
            x: Option<String>,
        }
        let set: Set = serde_json::from_str(text).map_err(|_| CheckpointError::Keys)?;
        let mut keys = HashMap::new();
        for key in set.keys {
            if let (Some("Ed25519"), Some(kid), Some(x)) = (key.crv.as_deref(), key.kid, key.x) {
                keys.insert(kid, URL_SAFE_NO_PAD.decode(x).map_err(|_| CheckpointError::Keys)?);
            }
        }
        if keys.is_empty() { Err(CheckpointError::Keys) } else { Ok(Self(keys)) }
    }

    fn open(&self, number: usize, statement: &str) -> Result<Checkpoint, CheckpointError> {
        let forged = || CheckpointError::Forged { number };
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| forged());
        let (signed, signature) = statement.rsplit_once('.').ok_or_else(forged)?;
        let (header, claims) = signed.split_once('.').ok_or_else(forged)?;
        let header: Header = serde_json::from_slice(&decode(header)?).map_err(|_| forged())?;
        if header.alg != "EdDSA" || header.typ != names::STATEMENT_CHECKPOINT {
            return Err(forged());
        }
        let key = self.0.get(&header.kid).ok_or(CheckpointError::UnknownKey { number, kid: header.kid })?;
        UnparsedPublicKey::new(&ED25519, key).verify(signed.as_bytes(), &decode(signature)?).map_err(|_| forged())?;
        let claims: Claims = serde_json::from_slice(&decode(claims)?).map_err(|_| forged())?;
        let at = Timestamp::from_second(claims.iat).map_err(|_| forged())?;
        Ok(Checkpoint { organization: claims.sub, seq: claims.seq, hash: claims.hash, at })
    }
}

/// The checkpoints in a file: the document of `GET /v1/audit/checkpoints`, or one statement per line.
pub fn read(text: &str, keys: &Keys) -> Result<Vec<Checkpoint>, CheckpointError> {
    #[derive(Deserialize)]
    struct Page {
        checkpoints: Vec<Item>,
    }
    #[derive(Deserialize)]
    struct Item {
        statement: String,
    }
    let statements: Vec<String> = if text.trim_start().starts_with('{') {
        let page: Page = serde_json::from_str(text).map_err(|_| CheckpointError::Form)?;
        page.checkpoints.into_iter().map(|item| item.statement).collect()
    } else {
        text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
    };
    statements.iter().enumerate().map(|(i, statement)| keys.open(i + 1, statement)).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::audit::chain::Head;
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};

    /// Signs as the operator does; a test of both together is tests/tests/audit_export.rs.
    pub(crate) struct Signer(Ed25519KeyPair);

    impl Signer {
        pub(crate) fn new(seed: u8) -> Self {
            Self(Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap())
        }

        pub(crate) fn keys(&self) -> Keys {
            let set = json!({ "keys": [{ "kty": "RSA" }, jwk("k", self.0.public_key().as_ref())] });
            Keys::from_jwks(&set.to_string()).unwrap()
        }

        pub(crate) fn sign(&self, typ: &str, organization: Uuid, head: &Head) -> String {
            let header = json!({ "alg": "EdDSA", "typ": typ, "kid": "k" });
            let claims = json!({ "sub": organization, "org": "acme", "seq": head.seq, "hash": head.hash, "iat": 7 });
            let signed = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string())).join(".");
            format!("{signed}.{}", URL_SAFE_NO_PAD.encode(self.0.sign(signed.as_bytes())))
        }
    }

    #[test]
    fn only_a_genuine_checkpoint_of_a_trusted_key_is_believed() {
        let (signer, organization) = (Signer::new(1), Uuid::from_u128(1));
        let head = Head { seq: 3, hash: "ab".repeat(32) };
        let genuine = signer.sign(names::STATEMENT_CHECKPOINT, organization, &head);
        let believed = read(&format!("{genuine}\n\n"), &signer.keys()).unwrap();
        let at = Timestamp::from_second(7).unwrap();
        assert_eq!(believed, [Checkpoint { organization, seq: 3, hash: head.hash.clone(), at }]);
        let page = json!({ "checkpoints": [{ "seq": 9, "statement": genuine }], "more": 1 }).to_string();
        assert_eq!(read(&page, &signer.keys()).unwrap(), believed);

        let forged = Err(CheckpointError::Forged { number: 1 });
        assert_eq!(read(&genuine, &Signer::new(2).keys()), forged);
        assert_eq!(read(&signer.sign(names::STATEMENT_RECEIPT, organization, &head), &signer.keys()), forged);
        for part in 0..3 {
            let mut parts: Vec<&str> = genuine.split('.').collect();
            let other = signer.sign(names::STATEMENT_CHECKPOINT, organization, &Head { seq: 4, ..head.clone() });
            let other: Vec<&str> = other.split('.').collect();
            if part > 0 {
                parts[part] = other[part];
                assert_eq!(read(&parts.join("."), &signer.keys()), forged, "{part}");
            }
            parts[part] = "x";
            assert_eq!(read(&parts.join("."), &signer.keys()), forged, "{part}");
        }
        let unknown = Keys::from_jwks(&json!({ "keys": [jwk("other", &[0; 32])] }).to_string()).unwrap();
        assert_eq!(read(&genuine, &unknown), Err(CheckpointError::UnknownKey { number: 1, kid: "k".into() }));
        assert_eq!(read("{}", &unknown), Err(CheckpointError::Form));
        for bad in ["", "{}", "{\"keys\": []}", "{\"keys\": [{\"crv\": \"Ed25519\", \"kid\": \"k\", \"x\": \"?\"}]}"] {
            assert_eq!(Keys::from_jwks(bad).err(), Some(CheckpointError::Keys), "{bad}");
        }
    }
}
