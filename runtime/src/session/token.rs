//! Checks the short-lived tokens with which the runtime calls this pod. Knows only a public key.

use std::sync::Arc;

use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;

/// Issuer of the tokens.
const ISSUER: &str = "agentapi-runtime";
/// Audience of the tokens for session pods.
const AUDIENCE: &str = "agentapi-session-pod";
/// Clocks of two nodes may differ by this much.
const LEEWAY_SECONDS: u64 = 10;

/// Why a request is not let in.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum TokenError {
    /// No bearer token.
    #[error("a bearer token of the AgentAPI runtime is needed; call this session through the runtime")]
    Missing,
    /// Wrong signature, audience, issuer, expired…
    #[error("the token is not valid for session pods; call this session through the runtime")]
    Invalid,
    /// Made for another pod.
    #[error("the token is for another pod")]
    OtherPod,
}

/// A key that is no key.
#[derive(Debug, thiserror::Error)]
#[error("AGENTAPI_SESSION_PUBLIC_KEY must be the base64url x of an Ed25519 public key (43 characters)")]
pub struct KeyError;

#[derive(Deserialize)]
struct Claims {
    sub: String,
    pod: String,
}

/// Checks tokens.
#[derive(Clone)]
pub(super) struct Verifier {
    key: Arc<DecodingKey>,
    validation: Arc<Validation>,
    pod: String,
}

impl Verifier {
    /// A verifier with the runtime's public key for this pod.
    pub(super) fn new(public_key: &str, pod: &str) -> Result<Self, KeyError> {
        use base64::Engine;
        let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(public_key.trim()).map_err(|_| KeyError)?;
        if bytes.len() != 32 {
            return Err(KeyError);
        }
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_audience(&[AUDIENCE]);
        validation.set_issuer(&[ISSUER]);
        validation.set_required_spec_claims(&["exp", "aud", "iss", "sub"]);
        validation.leeway = LEEWAY_SECONDS;
        Ok(Self {
            key: Arc::new(DecodingKey::from_ed_der(&bytes)),
            validation: Arc::new(validation),
            pod: pod.to_owned(),
        })
    }

    /// The session that a request is for.
    pub(super) fn session(&self, authorization: Option<&str>) -> Result<String, TokenError> {
        let token = authorization
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim())
            .ok_or(TokenError::Missing)?;
        let claims = jsonwebtoken::decode::<Claims>(token, &self.key, &self.validation)
            .map_err(|error| {
                tracing::debug!(%error, "token refused");
                TokenError::Invalid
            })?
            .claims;
        if claims.pod != self.pod {
            return Err(TokenError::OtherPod);
        }
        Ok(claims.sub)
    }
}

#[cfg(test)]
#[path = "token_tests.rs"]
mod tests;
