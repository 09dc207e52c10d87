//! Tokens between the API and session pods, both directions, signed with the platform's Ed25519 key.
//!
//! API → pod: good for one pod and one session, at most 60 seconds. Pod → API: the "session token" that lives in
//! the session's Secret and lets a pod write its own transcript. May touch: the key file, once at start.

use std::path::Path;
use std::time::Duration;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// `iss` of every token made here.
pub const ISSUER: &str = "agentapi-runtime";
/// `aud` of tokens that a session pod accepts.
pub const POD_AUDIENCE: &str = "agentapi-session-pod";
/// `aud` of tokens that the internal API accepts from pods.
pub const INTERNAL_AUDIENCE: &str = "agentapi-internal";
/// Lifetime of a token for one request to a pod.
const POD_TOKEN_LIFETIME: Duration = Duration::from_secs(60);
/// Lifetime of the token in a session's Secret.
const SESSION_TOKEN_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// Clocks of nodes may differ a little.
const LEEWAY_SECONDS: u64 = 30;

/// Why the key cannot be used, or a token was refused.
#[derive(Debug, thiserror::Error)]
pub enum SessionTokenError {
    /// The file cannot be read.
    #[error("cannot read the session signing key {path}: {error}; mount the Secret agentapi-session-signing there")]
    Read {
        /// Where it should be.
        path: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// The file is not an Ed25519 key.
    #[error("the session signing key is not a PKCS#8 PEM Ed25519 private key")]
    NotAKey,
    /// Signing or verification failed.
    #[error("session token: {0}")]
    Token(#[from] jsonwebtoken::errors::Error),
}

/// Signs and verifies.
pub struct SessionTokens {
    encoding: EncodingKey,
    decoding: DecodingKey,
    public_x: String,
}

#[derive(Serialize)]
struct PodClaims<'a> {
    iss: &'a str,
    aud: &'a str,
    sub: Uuid,
    pod: &'a str,
    iat: i64,
    exp: i64,
    jti: Uuid,
}

/// What a pod proves about itself when it calls the internal API.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct SessionClaims {
    /// The session.
    pub sub: Uuid,
    /// Organization slug.
    pub org: String,
    /// Workspace name.
    pub ws: String,
}

#[derive(Serialize)]
struct SignedSessionClaims<'a> {
    iss: &'a str,
    aud: &'a str,
    #[serde(flatten)]
    claims: &'a SessionClaims,
    iat: i64,
    exp: i64,
}

impl SessionTokens {
    /// Reads the PEM file.
    pub fn from_file(path: &Path) -> Result<Self, SessionTokenError> {
        let pem = std::fs::read_to_string(path)
            .map_err(|error| SessionTokenError::Read { path: path.display().to_string(), error })?;
        Self::from_pem(&pem)
    }

    /// From the text of a PKCS#8 PEM file.
    pub fn from_pem(pem: &str) -> Result<Self, SessionTokenError> {
        let body: String = pem.lines().filter(|line| !line.starts_with("-----")).map(str::trim).collect();
        let der = STANDARD.decode(body).map_err(|_| SessionTokenError::NotAKey)?;
        // Version 1 files (openssl genpkey) carry no public key, which the strict parser would demand.
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der).map_err(|_| SessionTokenError::NotAKey)?;
        let public = pair.public_key().as_ref();
        Ok(Self {
            encoding: EncodingKey::from_ed_der(&der),
            decoding: DecodingKey::from_ed_der(public),
            public_x: URL_SAFE_NO_PAD.encode(public),
        })
    }

    /// The public half as a session pod gets it (base64url of the raw key).
    pub fn public_x(&self) -> &str {
        &self.public_x
    }

    /// A token for one request to one pod about one session.
    pub fn for_pod(&self, session: Uuid, pod: &str) -> Result<String, SessionTokenError> {
        let now = jiff::Timestamp::now().as_second();
        let claims = PodClaims {
            iss: ISSUER,
            aud: POD_AUDIENCE,
            sub: session,
            pod,
            iat: now,
            exp: now + i64::try_from(POD_TOKEN_LIFETIME.as_secs()).unwrap_or(60),
            jti: Uuid::new_v4(),
        };
        Ok(jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), &claims, &self.encoding)?)
    }

    /// The token that a pod gets to write its own transcript.
    pub fn for_session(&self, claims: &SessionClaims) -> Result<SecretString, SessionTokenError> {
        let now = jiff::Timestamp::now().as_second();
        let signed = SignedSessionClaims {
            iss: ISSUER,
            aud: INTERNAL_AUDIENCE,
            claims,
            iat: now,
            exp: now + i64::try_from(SESSION_TOKEN_LIFETIME.as_secs()).unwrap_or(86_400),
        };
        Ok(jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), &signed, &self.encoding)?.into())
    }

    /// Who a pod is, if its session token is genuine and current.
    pub fn verify_session(&self, token: &str) -> Result<SessionClaims, SessionTokenError> {
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(&[INTERNAL_AUDIENCE]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.leeway = LEEWAY_SECONDS;
        Ok(jsonwebtoken::decode::<SessionClaims>(token, &self.decoding, &validation)?.claims)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use secrecy::ExposeSecret;

    // A throwaway key made for this test with `openssl genpkey -algorithm ed25519`.
    const PEM: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIOJnBpvgUmOnNTnD7ZwRkYTAX+Ktq6wDRs4fRlRmU6XR\n-----END PRIVATE KEY-----\n";

    fn claims() -> SessionClaims {
        SessionClaims { sub: Uuid::now_v7(), org: "acme".into(), ws: "coding".into() }
    }

    #[test]
    fn a_session_token_round_trips() {
        let tokens = SessionTokens::from_pem(PEM).unwrap();
        let claims = claims();
        let token = tokens.for_session(&claims).unwrap();
        assert_eq!(tokens.verify_session(token.expose_secret()).unwrap(), claims);
    }

    #[test]
    fn a_pod_token_is_not_a_session_token() {
        let tokens = SessionTokens::from_pem(PEM).unwrap();
        let token = tokens.for_pod(Uuid::now_v7(), "s-1").unwrap();
        assert!(tokens.verify_session(&token).is_err());
    }

    #[test]
    fn the_public_half_is_32_bytes() {
        let tokens = SessionTokens::from_pem(PEM).unwrap();
        assert_eq!(URL_SAFE_NO_PAD.decode(tokens.public_x()).unwrap().len(), 32);
    }

    #[test]
    fn something_else_is_not_a_key() {
        assert!(matches!(SessionTokens::from_pem("hello"), Err(SessionTokenError::NotAKey)));
    }
}
