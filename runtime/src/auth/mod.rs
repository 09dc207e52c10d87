//! Who is calling: bearer tokens of the organizations' identity providers, and tokens between API and session pods.
//!
//! May touch: Postgres (identity lookup through `store`), the providers' key sets. Imports nothing of `http`.

#[cfg(test)]
mod fuzz;
pub mod jwks;
pub mod mcp_session;
pub mod session_token;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::{Algorithm, DecodingKey, Header, Validation};
use moka::future::Cache;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::time::Instant;
use uuid::Uuid;

use crate::audit::Client;
use crate::store::identity::Organization;
use crate::store::{Store, StoreError, TenantScope};
use jwks::{Jwks, JwksError, KeySource};

/// Clocks of providers and of this machine may differ by this much.
const LEEWAY_SECONDS: u64 = 30;
/// Tokens longer than this are not looked at.
const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// A checked token is taken again without another check for this long: within it, a changed organization goes unnoticed.
const CHECKED_TTL: Duration = Duration::from_secs(3);
/// How long a changed or deleted organization may go unnoticed.
const ORGANIZATION_TTL: Duration = Duration::from_secs(10);
/// An issuer that was unknown may become known at once after `kubectl apply`.
const UNKNOWN_TTL: Duration = Duration::from_secs(2);
/// A user's row is written at most this often.
const USER_TTL: Duration = Duration::from_secs(60);
/// RFC 7518 asks for a key at least as long as the hash.
const MIN_SHARED_SECRET_BYTES: usize = 32;

/// What a user may do within their organization.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Everything of the organization.
    Admin,
    /// Their own sessions. Also the meaning of a token without a `role` claim.
    #[default]
    User,
}

impl Role {
    /// As Postgres policies know it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::User => "user",
        }
    }
}

/// An authenticated user of an organization.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The organization.
    pub organization: Arc<Organization>,
    /// Row id in `users`.
    pub user_id: Uuid,
    /// `sub` of the token.
    pub subject: String,
    /// What they may do.
    pub role: Role,
}

impl Caller {
    /// Whose rows a transaction for this caller may see.
    pub fn scope(&self) -> TenantScope<'_> {
        TenantScope { organization: &self.organization, user_id: Some(self.user_id), role: self.role, platform: false }
    }
}

/// Why a request has no caller.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// No `Authorization: Bearer` header.
    #[error("send an access token: Authorization: Bearer <token>")]
    Missing,
    /// The token is not acceptable; the text says what to do.
    #[error("{0}")]
    Invalid(String),
    /// The provider's keys cannot be had, so nothing can be said about the token.
    #[error("the identity provider cannot be reached to check the token; try again")]
    ProviderUnavailable,
    /// Postgres trouble.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The HS256 file cannot be used.
    #[error("cannot use the shared secrets file {path}: {reason}")]
    SharedSecrets {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token).into()
}

fn invalid(reason: impl Into<String>) -> AuthError {
    AuthError::Invalid(reason.into())
}

/// Read before the signature is checked, only to find whose keys to check with.
#[derive(Deserialize)]
struct Unverified {
    iss: String,
    org_id: String,
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    #[serde(default)]
    email: Option<String>,
    #[serde(default)]
    role: Role,
    /// Checked by the library, whose messages say more than a type that does not fit.
    #[serde(default)]
    exp: serde_json::Value,
}

#[derive(PartialEq, Eq, Hash)]
struct UserKey {
    organization: Uuid,
    subject: String,
    email: Option<String>,
    role: Role,
}

/// Shared secrets per issuer, for providers that sign with HS256.
pub type SharedSecrets = HashMap<String, SecretString>;

/// Reads `{"<issuer>": "<secret>"}`.
pub fn read_shared_secrets(path: &Path) -> Result<SharedSecrets, AuthError> {
    let fail = |reason: String| AuthError::SharedSecrets { path: path.display().to_string(), reason };
    let text = std::fs::read_to_string(path).map_err(|error| fail(error.to_string()))?;
    let secrets: SharedSecrets = serde_json::from_str(&text).map_err(|error| {
        fail(format!("expected a JSON object of issuer to secret (line {}, column {})", error.line(), error.column()))
    })?;
    match secrets.iter().find(|(_, secret)| secret.expose_secret().len() < MIN_SHARED_SECRET_BYTES) {
        Some((issuer, _)) => {
            Err(fail(format!("the secret of {issuer} is shorter than {MIN_SHARED_SECRET_BYTES} bytes")))
        }
        None => Ok(secrets),
    }
}

/// Checks bearer tokens.
pub struct Authenticator {
    store: Store,
    jwks: Jwks,
    shared_secrets: SharedSecrets,
    organizations: Cache<(String, String), Arc<Organization>>,
    unknown: Cache<(String, String), ()>,
    users: Cache<UserKey, Uuid>,
    /// Callers of tokens that were checked a moment ago, by the tokens' digests.
    checked: moka::sync::Cache<[u8; 32], Checked>,
}

#[derive(Clone)]
struct Checked {
    caller: Caller,
    expires_at: f64,
    keys: Keys,
}

/// What a token was checked with.
#[derive(Clone)]
enum Keys {
    Shared,
    /// A provider's, fetched at this time.
    Provider(KeySource, Instant),
}

impl Authenticator {
    /// With empty caches.
    pub fn new(store: Store, jwks: Jwks, shared_secrets: SharedSecrets) -> Self {
        Self {
            store,
            jwks,
            shared_secrets,
            organizations: Cache::builder().max_capacity(10_000).time_to_live(ORGANIZATION_TTL).build(),
            unknown: Cache::builder().max_capacity(10_000).time_to_live(UNKNOWN_TTL).build(),
            users: Cache::builder().max_capacity(100_000).time_to_live(USER_TTL).build(),
            checked: moka::sync::Cache::builder().max_capacity(50_000).time_to_live(CHECKED_TTL).build(),
        }
    }

    /// The caller of a token that was checked a few seconds ago with keys that are still the provider's, and that has
    /// not expired since.
    pub async fn recognize(&self, token: &str) -> Option<Caller> {
        let Checked { caller, expires_at, keys } = self.checked.get(&digest(token))?;
        if let Keys::Provider(source, since) = keys
            && self.jwks.fresh_since(&source).await != Some(since)
        {
            return None;
        }
        (jiff::Timestamp::now().as_duration().as_secs_f64() < expires_at).then_some(caller)
    }

    /// The caller behind a bearer token.
    pub async fn authenticate(&self, token: &str, client: &Client) -> Result<Caller, AuthError> {
        let (header, unverified) = read_unverified(token)?;
        let organization = self.organization(unverified).await?;
        let keys = self.keys_at_hand(&organization, header.alg).await;
        let key = self.key(&organization, header.kid.as_deref(), header.alg).await?;
        let claims = verify(token, header.alg, &key, &organization)?;
        let user_id = self.user(&organization, &claims, client).await?;
        let caller = Caller { organization, user_id, subject: claims.sub, role: claims.role };
        if let (Some(keys), Some(expires_at)) = (keys, claims.exp.as_f64()) {
            self.checked.insert(digest(token), Checked { caller: caller.clone(), expires_at, keys });
        }
        Ok(caller)
    }

    /// With which keys a token is about to be checked. None: with some that are on their way, or old ones that stand in
    /// for a provider that is down; such a check is made each time.
    async fn keys_at_hand(&self, organization: &Organization, algorithm: Algorithm) -> Option<Keys> {
        if algorithm == Algorithm::HS256 {
            return Some(Keys::Shared);
        }
        let source = key_source(organization);
        let since = self.jwks.fresh_since(&source).await?;
        Some(Keys::Provider(source, since))
    }

    async fn organization(&self, claims: Unverified) -> Result<Arc<Organization>, AuthError> {
        let unknown = || invalid("no organization accepts tokens of this issuer with this org_id");
        let key = (claims.iss, claims.org_id);
        if let Some(found) = self.organizations.get(&key).await {
            return Ok(found);
        }
        if self.unknown.contains_key(&key) {
            return Err(unknown());
        }
        // Postgres text holds no NUL; no organization can have such an identity.
        let possible = !key.0.contains('\0') && !key.1.contains('\0');
        let found = if possible { self.store.resolve_identity(&key.0, &key.1).await? } else { None };
        if let Some(found) = found {
            let found = Arc::new(found);
            self.organizations.insert(key, Arc::clone(&found)).await;
            Ok(found)
        } else {
            self.unknown.insert(key, ()).await;
            Err(unknown())
        }
    }

    async fn key(
        &self,
        organization: &Organization,
        kid: Option<&str>,
        algorithm: Algorithm,
    ) -> Result<DecodingKey, AuthError> {
        match algorithm {
            // A shared secret is never looked up in a key set, and a public key is never used as a secret.
            Algorithm::HS256 => self
                .shared_secrets
                .get(&organization.issuer)
                .map(|secret| DecodingKey::from_secret(secret.expose_secret().as_bytes()))
                .ok_or_else(|| invalid("HS256 is not accepted from this issuer; sign with RS256, ES256 or EdDSA")),
            Algorithm::RS256 | Algorithm::ES256 | Algorithm::EdDSA => {
                self.jwks.key(&key_source(organization), kid, algorithm).await.map_err(|error| match error {
                    JwksError::UnknownKey => {
                        invalid("the token is signed with a key that the identity provider does not publish")
                    }
                    JwksError::Unavailable(_) => AuthError::ProviderUnavailable,
                })
            }
            _ => Err(invalid("the token's algorithm is not accepted; sign with RS256, ES256 or EdDSA")),
        }
    }

    async fn user(&self, organization: &Organization, claims: &Claims, client: &Client) -> Result<Uuid, AuthError> {
        let key = UserKey {
            organization: organization.id,
            subject: claims.sub.clone(),
            email: claims.email.clone(),
            role: claims.role,
        };
        if let Some(id) = self.users.get(&key).await {
            return Ok(id);
        }
        let scope = TenantScope { organization, user_id: None, role: claims.role, platform: false };
        let mut tx = self.store.tenant_tx(&scope).await?;
        let origin = client.origin(&claims.sub);
        let id = tx.upsert_user(&claims.sub, claims.email.as_deref(), claims.role, &origin).await?;
        tx.commit().await?;
        self.users.insert(key, id).await;
        Ok(id)
    }
}

/// Header and claims as they stand there; nothing is known yet about who wrote them.
fn read_unverified(token: &str) -> Result<(Header, Unverified), AuthError> {
    if token.len() > MAX_TOKEN_BYTES {
        return Err(invalid("the token is too long"));
    }
    // An algorithm outside the library's list, "none" for one, already fails here.
    let header = jsonwebtoken::decode_header(token)
        .map_err(|_| invalid("the token is not a signed JWT with a supported algorithm"))?;
    if header.crit.is_some() {
        return Err(invalid("the token has critical header fields that are not supported"));
    }
    let unverified: Unverified = jsonwebtoken::dangerous::insecure_decode_claims(token)
        .map_err(|_| invalid("the token lacks the claims iss and org_id (both strings)"))?;
    Ok((header, unverified))
}

fn key_source(organization: &Organization) -> KeySource {
    KeySource { issuer: organization.issuer.clone(), jwks_uri: organization.jwks_uri.clone() }
}

fn verify(
    token: &str,
    algorithm: Algorithm,
    key: &DecodingKey,
    organization: &Organization,
) -> Result<Claims, AuthError> {
    use jsonwebtoken::errors::ErrorKind;
    let mut validation = Validation::new(algorithm);
    validation.set_issuer(&[&organization.issuer]);
    validation.set_audience(&[&organization.audience]);
    validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
    validation.validate_nbf = true;
    validation.leeway = LEEWAY_SECONDS;
    let claims =
        jsonwebtoken::decode::<Claims>(token, key, &validation).map(|data| data.claims).map_err(|error| match error
            .kind()
        {
            ErrorKind::ExpiredSignature => invalid("the token has expired; get a new one"),
            ErrorKind::ImmatureSignature => invalid("the token is not valid yet (nbf)"),
            ErrorKind::InvalidAudience => {
                invalid(format!("the token is for another audience; ask for {}", organization.audience))
            }
            ErrorKind::InvalidIssuer => invalid("the token is from another issuer"),
            ErrorKind::MissingRequiredClaim(claim) => invalid(format!("the token lacks the claim {claim}")),
            ErrorKind::InvalidClaimFormat(claim) => invalid(format!("the token's claim {claim} has the wrong type")),
            ErrorKind::Json(_) => invalid("the token's claims sub, email or role have the wrong type or value"),
            _ => invalid("the token's signature is not valid"),
        })?;
    if claims.sub.is_empty() || claims.sub.len() > 255 || claims.sub.contains('\0') {
        return Err(invalid("the token's claim sub must have 1 to 255 characters"));
    }
    // An odd email is no reason to keep somebody out: it is for people to read.
    let email = claims.email.filter(|email| (1..=512).contains(&email.len()) && !email.contains('\0'));
    Ok(Claims { email, ..claims })
}
