//! JSON Web Key Sets of the organizations' identity providers, fetched over HTTP and cached in memory.
//!
//! Rules: one fetch at a time per provider; a set is refreshed when it is older than `ttl`, and early when a token
//! names a `kid` that it lacks, but never more often than `min_refresh`, or each second while there is none that may be
//! used; when the provider is down the last good set keeps working until `max_stale`; a refresh replaces the whole set,
//! so keys that the provider dropped are gone.
//! May touch: the network (only addresses that an Organization names), metrics.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use moka::future::Cache;
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::Instant;
use url::Url;

use crate::metrics::Metrics;

/// A provider's answer larger than this is refused: a key set is a few KiB.
const MAX_DOCUMENT_BYTES: usize = 512 * 1024;

/// While there is no set that may be used a failure is kept no longer than this: it locks everybody out.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// Why no key could be given.
#[derive(Debug, thiserror::Error)]
pub enum JwksError {
    /// The set is known and has no such key.
    #[error("the identity provider publishes no usable key with this id")]
    UnknownKey,
    /// There is no set that is fresh enough, and fetching one failed.
    #[error("the identity provider's keys cannot be fetched: {0}")]
    Unavailable(Arc<FetchError>),
}

/// Why a fetch failed. The text is for the operator's log, not for the caller.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The address is not an absolute http(s) URL.
    #[error("{0} is not an http or https address")]
    Address(String),
    /// Network trouble or a status that is not 2xx.
    #[error(transparent)]
    Http(#[from] reqwest::Error),
    /// The document is too large.
    #[error("{0} answered with more than {MAX_DOCUMENT_BYTES} bytes")]
    TooLarge(Url),
    /// The document is not what it should be.
    #[error("{0} is not a valid document: {1}")]
    Document(Url, serde_json::Error),
    /// The discovery document belongs to somebody else.
    #[error("the discovery document of {expected} names the issuer {found}")]
    Issuer {
        /// The issuer that the Organization names.
        expected: String,
        /// The issuer in the document.
        found: String,
    },
    /// A fetch failed moments ago; the provider is given a pause.
    #[error("the last attempt failed moments ago: {0}")]
    Recently(String),
}

/// How long sets live.
#[derive(Debug, Clone, Copy)]
pub struct JwksLimits {
    /// Age after which a set is refreshed.
    pub ttl: Duration,
    /// Least time between two fetches from one provider.
    pub min_refresh: Duration,
    /// Age after which a set is no longer used even if the provider is down.
    pub max_stale: Duration,
}

impl Default for JwksLimits {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(300),
            min_refresh: Duration::from_secs(10),
            max_stale: Duration::from_secs(3600),
        }
    }
}

/// Where an organization's keys are.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KeySource {
    /// `iss` of the tokens.
    pub issuer: String,
    /// The set's address; without it, discovery is used.
    pub jwks_uri: Option<String>,
}

/// Cached key sets of all providers.
pub struct Jwks {
    http: reqwest::Client,
    limits: JwksLimits,
    metrics: Metrics,
    sources: Cache<KeySource, Arc<Source>>,
}

#[derive(Default)]
struct Source {
    current: RwLock<Option<Arc<KeySet>>>,
    /// Held during a fetch; its value is when the last attempt began or, if it failed, when and why.
    attempt: Mutex<Option<(Instant, Option<Arc<FetchError>>)>>,
}

struct KeySet {
    fetched_at: Instant,
    keys: Vec<UsableKey>,
}

struct UsableKey {
    kid: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

impl KeySet {
    /// The key for a token. A token without `kid` is served only when there is exactly one candidate.
    fn find(&self, kid: Option<&str>, algorithm: Algorithm) -> Option<DecodingKey> {
        let mut candidates = self.keys.iter().filter(|key| key.algorithm == algorithm);
        match kid {
            Some(kid) => candidates.find(|key| key.kid.as_deref() == Some(kid)).map(|key| key.key.clone()),
            None => match (candidates.next(), candidates.next()) {
                (Some(only), None) => Some(only.key.clone()),
                _ => None,
            },
        }
    }
}

impl Source {
    fn current(&self) -> Option<Arc<KeySet>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Jwks {
    /// An empty cache. `http` should have short timeouts and follow no redirects.
    pub fn new(http: reqwest::Client, limits: JwksLimits, metrics: Metrics) -> Self {
        let sources = Cache::builder().max_capacity(10_000).time_to_idle(limits.max_stale * 2).build();
        Self { http, limits, metrics, sources }
    }

    /// When the provider's current keys were fetched, unless it is time to fetch them again.
    pub async fn fresh_since(&self, source: &KeySource) -> Option<Instant> {
        let since = self.sources.get(source).await?.current()?.fetched_at;
        (since.elapsed() < self.limits.ttl).then_some(since)
    }

    /// The key that must have signed a token of this provider.
    pub async fn key(
        &self,
        source: &KeySource,
        kid: Option<&str>,
        algorithm: Algorithm,
    ) -> Result<DecodingKey, JwksError> {
        let entry = self.sources.get_with_by_ref(source, async { Arc::default() }).await;
        let current = entry.current();
        if let Some(set) = current.as_ref().filter(|set| set.fetched_at.elapsed() < self.limits.ttl)
            && let Some(key) = set.find(kid, algorithm)
        {
            return Ok(key);
        }
        // Too old, missing, or without this kid: one caller fetches, the others wait here for its result.
        let refreshed = self.refresh(source, &entry, current.as_ref()).await;
        match (refreshed, current) {
            (Ok(set), _) => set.find(kid, algorithm).ok_or(JwksError::UnknownKey),
            (Err(_), Some(old)) if old.fetched_at.elapsed() < self.limits.max_stale => {
                old.find(kid, algorithm).ok_or(JwksError::UnknownKey)
            }
            (Err(error), _) => Err(JwksError::Unavailable(error)),
        }
    }

    async fn refresh(
        &self,
        source: &KeySource,
        entry: &Source,
        seen: Option<&Arc<KeySet>>,
    ) -> Result<Arc<KeySet>, Arc<FetchError>> {
        let mut attempt = entry.attempt.lock().await;
        // Somebody else fetched while this caller waited for the lock.
        if let Some(now) = entry.current()
            && seen.is_none_or(|seen| !Arc::ptr_eq(seen, &now))
        {
            return Ok(now);
        }
        let nobody_gets_in = entry.current().is_none_or(|set| set.fetched_at.elapsed() >= self.limits.max_stale);
        let pause = if nobody_gets_in { FIRST_PAUSE.min(self.limits.min_refresh) } else { self.limits.min_refresh };
        if let Some((last, failure)) = attempt.as_ref().filter(|(last, _)| last.elapsed() < pause) {
            tracing::debug!(issuer = source.issuer, ago = ?last.elapsed(), "key refresh is rate-limited");
            return match (failure, entry.current()) {
                (None, Some(set)) => Ok(set),
                (failure, _) => {
                    let why = failure.as_ref().map(ToString::to_string).unwrap_or_default();
                    Err(Arc::new(FetchError::Recently(why)))
                }
            };
        }
        let began = Instant::now();
        let mut fetched = self.fetch(source).await;
        // One lost packet is enough for that.
        if nobody_gets_in && matches!(&fetched, Err(FetchError::Http(error)) if error.is_connect()) {
            fetched = self.fetch(source).await;
        }
        match fetched {
            Ok(keys) => {
                self.metrics.jwks_fetch("ok");
                tracing::info!(issuer = source.issuer, keys = keys.len(), "fetched signing keys");
                let set = Arc::new(KeySet { fetched_at: began, keys });
                *entry.current.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&set));
                *attempt = Some((began, None));
                Ok(set)
            }
            Err(error) => {
                self.metrics.jwks_fetch("error");
                let error = Arc::new(error);
                tracing::warn!(issuer = source.issuer, %error, "cannot fetch signing keys");
                // Not since it began: those who have waited for it get this failure, however long it took.
                *attempt = Some((Instant::now(), Some(Arc::clone(&error))));
                Err(error)
            }
        }
    }

    async fn fetch(&self, source: &KeySource) -> Result<Vec<UsableKey>, FetchError> {
        let address = match &source.jwks_uri {
            Some(uri) => uri.clone(),
            None => self.discover(&source.issuer).await?,
        };
        let set: RawSet = self.document(&address).await?;
        Ok(set.keys.into_iter().filter_map(usable).collect())
    }

    async fn discover(&self, issuer: &str) -> Result<String, FetchError> {
        let address = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
        let found: Discovery = self.document(&address).await?;
        if found.issuer != issuer {
            return Err(FetchError::Issuer { expected: issuer.to_owned(), found: found.issuer });
        }
        Ok(found.jwks_uri)
    }

    async fn document<T: serde::de::DeserializeOwned>(&self, address: &str) -> Result<T, FetchError> {
        let url = Url::parse(address)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https"))
            .ok_or_else(|| FetchError::Address(address.to_owned()))?;
        let mut response = self.http.get(url.clone()).send().await?.error_for_status()?;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            if body.len() + chunk.len() > MAX_DOCUMENT_BYTES {
                return Err(FetchError::TooLarge(url));
            }
            body.extend_from_slice(&chunk);
        }
        serde_json::from_slice(&body).map_err(|error| FetchError::Document(url, error))
    }
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

/// Keys are kept as raw JSON first: one key of a kind that nobody here knows must not spoil the set.
#[derive(Deserialize)]
struct RawSet {
    keys: Vec<HashMap<String, serde_json::Value>>,
}

/// Public signature keys of the three allowed algorithms; everything else in a set is skipped. The algorithm comes
/// from the key, never from the token, so that a token cannot choose how its signature is checked.
fn usable(raw: HashMap<String, serde_json::Value>) -> Option<UsableKey> {
    let jwk: Jwk = serde_json::from_value(raw.into_iter().collect()).ok()?;
    if matches!(jwk.common.public_key_use, Some(ref usage) if *usage != PublicKeyUse::Signature) {
        return None;
    }
    let (algorithm, named) = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => (Algorithm::RS256, KeyAlgorithm::RS256),
        AlgorithmParameters::EllipticCurve(ec) if ec.curve == EllipticCurve::P256 => {
            (Algorithm::ES256, KeyAlgorithm::ES256)
        }
        AlgorithmParameters::OctetKeyPair(okp) if okp.curve == EllipticCurve::Ed25519 => {
            (Algorithm::EdDSA, KeyAlgorithm::EdDSA)
        }
        _ => return None,
    };
    if matches!(jwk.common.key_algorithm, Some(ref other) if *other != named) {
        return None;
    }
    let key = DecodingKey::from_jwk(&jwk).ok()?;
    Some(UsableKey { kid: jwk.common.key_id, algorithm, key })
}

/// Algorithms of the usable keys in a document, or the line where it stops being one; for the fuzz target.
#[cfg(test)]
pub(super) fn algorithms_in(document: &[u8]) -> Result<Vec<Algorithm>, usize> {
    let set: RawSet = serde_json::from_slice(document).map_err(|error| error.column())?;
    Ok(set.keys.into_iter().filter_map(usable).map(|key| key.algorithm).collect())
}
