//! Checks the short-lived tokens with which the runtime calls this pod. Knows only public keys: those of the pod's
//! environment, then those of the session's Secret, and from its first word on what the runtime says itself. May touch:
//! the mounted Secret.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
    time::{Duration, Instant},
};

use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;

/// Issuer of the tokens.
const ISSUER: &str = "agentapi-runtime";
/// Audience of the tokens for session pods.
const AUDIENCE: &str = "agentapi-session-pod";
/// File in the session's Secret.
const PUBLIC_KEYS: &str = "public-keys";
/// So many characters of a public key are its id.
const KEY_ID: usize = 12;
/// Clocks of two nodes may differ by this much.
const LEEWAY_SECONDS: u64 = 10;
/// A mounted Secret is not older than this.
const LATE: Duration = Duration::from_mins(5);

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
#[error(
    "AGENTAPI_SESSION_PUBLIC_KEY must be the base64url x of an Ed25519 public key (43 characters), or several with commas"
)]
pub struct KeyError;

#[derive(Deserialize)]
struct Claims {
    sub: String,
    pod: String,
}

type Keys = Vec<(String, DecodingKey)>;

/// The keys of the moment.
struct Known {
    keys: Keys,
    /// The runtime has said them to this process, as it says each change. Until this time the mounted Secret may be older,
    /// since the kubelet brings it up to a minute and a half late: it would let a retired key in again.
    told_until: Option<Instant>,
}

/// Checks tokens.
#[derive(Clone)]
pub(super) struct Verifier {
    known: Arc<RwLock<Known>>,
    validation: Arc<Validation>,
    pod: String,
    /// Newer keys than those of the environment: a container that was restarted has nothing else.
    file: Option<PathBuf>,
}

impl Verifier {
    /// A verifier with the runtime's public keys for this pod.
    pub(super) fn new(public_keys: &str, pod: &str, secret_dir: Option<&Path>) -> Result<Self, KeyError> {
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_audience(&[AUDIENCE]);
        validation.set_issuer(&[ISSUER]);
        validation.set_required_spec_claims(&["exp", "aud", "iss", "sub"]);
        validation.leeway = LEEWAY_SECONDS;
        let verifier = Self {
            known: Arc::new(RwLock::new(Known { keys: parse(public_keys)?, told_until: None })),
            validation: Arc::new(validation),
            pod: pod.to_owned(),
            file: secret_dir.map(|folder| folder.join(PUBLIC_KEYS)),
        };
        verifier.reload(None);
        Ok(verifier)
    }

    /// Accepts tokens of these keys from now on, and of no others: the runtime says so.
    pub(super) fn replace(&self, public_keys: &str) -> Result<(), KeyError> {
        let keys = parse(public_keys)?;
        *self.known.write().unwrap_or_else(PoisonError::into_inner) =
            Known { keys, told_until: Some(Instant::now() + LATE) };
        Ok(())
    }

    fn known(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the keys of the mounted Secret, if it has any and the runtime has said nothing yet. Where a key was replaced
    /// and not rotated, the runtime can say nothing any more to whoever knows the old one only: then, for a key that is not
    /// known, the Secret speaks again, once it can't be older than the runtime's last word.
    fn reload(&self, kid: Option<&str>) {
        let older = |known: &Known| {
            known.told_until.is_some_and(|until| {
                Instant::now() < until || kid.is_none_or(|kid| known.keys.iter().any(|(id, _)| id == kid))
            })
        };
        if older(&self.known()) {
            return;
        }
        let Some(text) = self.file.as_ref().and_then(|file| std::fs::read_to_string(file).ok()) else { return };
        match parse(&text) {
            Ok(keys) => {
                let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
                if !older(&known) {
                    *known = Known { keys, told_until: None };
                }
            }
            Err(KeyError) => {
                tracing::warn!("the session's Secret has public keys that are none; they stay as they were");
            }
        }
    }

    /// The session that a request is for.
    pub(super) fn session(&self, authorization: Option<&str>) -> Result<String, TokenError> {
        let token = authorization
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim())
            .ok_or(TokenError::Missing)?;
        let kid = jsonwebtoken::decode_header(token).map_err(|_| TokenError::Invalid)?.kid;
        self.reload(kid.as_deref());
        let keys = self.known().keys.clone();
        // A token without `kid` is one of a runtime of an older version.
        let mut candidates = keys.iter().filter(|(id, _)| kid.as_ref().is_none_or(|kid| kid == id));
        let claims = candidates
            .find_map(|(_, key)| match jsonwebtoken::decode::<Claims>(token, key, &self.validation) {
                Ok(data) => Some(data.claims),
                Err(error) => {
                    tracing::debug!(%error, "token refused");
                    None
                }
            })
            .ok_or(TokenError::Invalid)?;
        if claims.pod != self.pod {
            return Err(TokenError::OtherPod);
        }
        Ok(claims.sub)
    }
}

fn parse(public_keys: &str) -> Result<Keys, KeyError> {
    use base64::Engine;
    let key = |x: &str| {
        let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(x).map_err(|_| KeyError)?;
        if bytes.len() != 32 {
            return Err(KeyError);
        }
        Ok((x.chars().take(KEY_ID).collect(), DecodingKey::from_ed_der(&bytes)))
    };
    public_keys.split(',').map(str::trim).map(key).collect()
}

#[cfg(test)]
#[path = "token_tests.rs"]
mod tests;
