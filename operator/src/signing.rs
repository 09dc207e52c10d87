//! Statements that the operator signs and that others check without it: checkpoints of audit logs, receipts of
//! removals. JWS compact (RFC 7515) with Ed25519; `typ` says what kind of statement it is, so that one can't be
//! passed off as another, and the key signs nothing else. Pure.
use agentapi_crds::names;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Why a statement can't be made or believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The Secret holds something else.
    #[error("the key of signed statements is not a PKCS#8 PEM Ed25519 private key")]
    NotAKey,
    /// Claims that are no JSON; never seen.
    #[error("the statement can't be written as JSON")]
    Claims,
    /// Another key, another kind of statement, or altered bytes.
    #[error("the statement is not one of this kind that this key has signed")]
    Refused,
}

/// Kind of statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statement {
    /// The end of an audit log at a time.
    Checkpoint,
    /// What the removal of an organization did.
    Receipt,
}

impl Statement {
    fn typ(self) -> &'static str {
        match self {
            Self::Checkpoint => names::STATEMENT_CHECKPOINT,
            Self::Receipt => names::STATEMENT_RECEIPT,
        }
    }
}

/// The operator's key pair.
pub struct Signer {
    pair: Ed25519KeyPair,
    kid: String,
}

impl Signer {
    /// From a PKCS#8 PEM file.
    pub fn from_pem(pem: &[u8]) -> Result<Self, Error> {
        let text = std::str::from_utf8(pem).map_err(|_| Error::NotAKey)?;
        let body: String = text.lines().filter(|line| !line.starts_with("-----")).map(str::trim).collect();
        let der = STANDARD.decode(body).map_err(|_| Error::NotAKey)?;
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der).map_err(|_| Error::NotAKey)?;
        // RFC 7638: whoever has the key can compute its name.
        let canonical = format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{}"}}"#, encode(pair.public_key().as_ref()));
        Ok(Self { kid: encode(&Sha256::digest(canonical)), pair })
    }

    /// Names the key; the same for the same key everywhere.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The raw public key, 32 bytes.
    pub fn public_key(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    /// Sign claims as a statement of this kind; `iss` is added.
    pub fn sign(&self, kind: Statement, claims: &impl Serialize) -> Result<String, Error> {
        let mut claims = serde_json::to_value(claims).map_err(|_| Error::Claims)?;
        claims.as_object_mut().ok_or(Error::Claims)?.insert("iss".to_owned(), names::OPERATOR.into());
        let header = json!({ "alg": "EdDSA", "typ": kind.typ(), "kid": self.kid });
        let signed = format!("{}.{}", encode(header.to_string().as_bytes()), encode(claims.to_string().as_bytes()));
        let signature = self.pair.sign(signed.as_bytes());
        Ok(format!("{signed}.{}", encode(signature.as_ref())))
    }
}

/// The claims of a statement of this kind that the holder of `public_key` has signed.
pub fn verify(kind: Statement, statement: &str, public_key: &[u8]) -> Result<Value, Error> {
    let (signed, signature) = statement.rsplit_once('.').ok_or(Error::Refused)?;
    let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| Error::Refused);
    UnparsedPublicKey::new(&ED25519, public_key)
        .verify(signed.as_bytes(), &decode(signature)?)
        .map_err(|_| Error::Refused)?;
    let (header, claims) = signed.split_once('.').ok_or(Error::Refused)?;
    let json = |text: &str| serde_json::from_slice::<Value>(&decode(text)?).map_err(|_| Error::Refused);
    let header = json(header)?;
    if header["alg"] != "EdDSA" || header["typ"] != kind.typ() {
        return Err(Error::Refused);
    }
    json(claims)
}

fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use aws_lc_rs::rand::SystemRandom;

    fn signer() -> Signer {
        let document = Ed25519KeyPair::generate_pkcs8v1(&SystemRandom::new()).unwrap();
        Signer::from_pem(crate::system::pem(document.as_ref()).as_bytes()).unwrap()
    }

    #[test]
    fn a_statement_is_believed_as_what_it_is_from_whom_it_is() {
        let ours = signer();
        let statement = ours.sign(Statement::Checkpoint, &json!({ "seq": 7 })).unwrap();
        let claims = verify(Statement::Checkpoint, &statement, ours.public_key()).unwrap();
        assert_eq!(claims, json!({ "seq": 7, "iss": "agentapi-operator" }));
        assert_eq!(verify(Statement::Receipt, &statement, ours.public_key()), Err(Error::Refused));
        assert_eq!(verify(Statement::Checkpoint, &statement, signer().public_key()), Err(Error::Refused));
        let mut parts: Vec<String> = statement.split('.').map(str::to_owned).collect();
        parts[1] = encode(br#"{"seq":6,"iss":"agentapi-operator"}"#);
        assert_eq!(verify(Statement::Checkpoint, &parts.join("."), ours.public_key()), Err(Error::Refused));
        for nonsense in ["", ".", "..", "a.b.c"] {
            assert!(verify(Statement::Checkpoint, nonsense, ours.public_key()).is_err(), "{nonsense:?}");
        }
    }

    /// The key and thumbprint of RFC 8037, appendix A.
    #[test]
    fn the_key_is_named_by_its_thumbprint() {
        let pem = "-----BEGIN PRIVATE KEY-----\n\
                   MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n\
                   -----END PRIVATE KEY-----\n";
        let signer = Signer::from_pem(pem.as_bytes()).unwrap();
        assert_eq!(encode(signer.public_key()), "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo");
        assert_eq!(signer.kid(), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
        assert_eq!(Signer::from_pem(b"hello").err(), Some(Error::NotAKey));
    }
}
