//! Tokens between the API and session pods, both directions, signed with the platform's Ed25519 key.
//!
//! API → pod: good for one pod and one session, at most 60 seconds. Pod → API: the "session token" that lives in
//! the session's Secret and lets a pod write its own transcript. While the key is rotated there are two: beside the
//! key file lie the public halves of the next and the previous one. May touch: these files.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use agentapi_crds::names;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use secrecy::SecretString;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::mcp_session::McpSession;

/// `iss` of every token made here.
pub const ISSUER: &str = "agentapi-runtime";
/// `aud` of tokens that a session pod accepts.
pub const POD_AUDIENCE: &str = "agentapi-session-pod";
/// `aud` of tokens that the internal API accepts from pods.
pub const INTERNAL_AUDIENCE: &str = "agentapi-internal";
/// `aud` of what the MCP gateway gives as a session's id.
const MCP_SESSION_AUDIENCE: &str = "agentapi-mcp-session";
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

/// How often the files are looked at for another key.
const RELOAD_EVERY: Duration = Duration::from_secs(2);

/// Signs and verifies.
pub struct SessionTokens {
    file: Option<PathBuf>,
    keys: RwLock<Arc<Keys>>,
}

/// The keys at one moment.
struct Keys {
    encoding: EncodingKey,
    /// Public half of the key that signs.
    public_x: String,
    /// All keys whose tokens are accepted, by their id.
    accepted: Vec<(String, DecodingKey)>,
    /// Their public halves, sorted.
    published: Vec<String>,
}

impl Keys {
    /// All files of one version of the Secret: the kubelet may exchange them between two reads.
    fn read(file: &Path) -> Result<Self, SessionTokenError> {
        let mut keys = Self::read_once(file)?;
        loop {
            let again = Self::read_once(file)?;
            if keys.is(&again) {
                return Ok(again);
            }
            keys = again;
        }
    }

    fn is(&self, other: &Self) -> bool {
        self.public_x == other.public_x && self.published == other.published
    }

    fn read_once(file: &Path) -> Result<Self, SessionTokenError> {
        let read = |path: &Path| {
            std::fs::read_to_string(path)
                .map_err(|error| SessionTokenError::Read { path: path.display().to_string(), error })
        };
        let pem = read(file)?;
        let mut others = Vec::new();
        for name in [names::KEY_SIGNING_NEXT_PUBLIC, names::KEY_SIGNING_PREVIOUS_PUBLIC] {
            let path = file.with_file_name(name);
            if path.exists() {
                others.push(read(&path)?.trim().to_owned());
            }
        }
        Self::new(&pem, &others)
    }

    fn new(pem: &str, others: &[String]) -> Result<Self, SessionTokenError> {
        let body: String = pem.lines().filter(|line| !line.starts_with("-----")).map(str::trim).collect();
        let der = STANDARD.decode(body).map_err(|_| SessionTokenError::NotAKey)?;
        // Version 1 files (openssl genpkey) carry no public key, which the strict parser would demand.
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der).map_err(|_| SessionTokenError::NotAKey)?;
        let public_x = URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
        let mut published: Vec<String> = std::iter::once(&public_x).chain(others).cloned().collect();
        published.sort();
        published.dedup();
        let accepted = published.iter().map(|x| {
            let raw = URL_SAFE_NO_PAD.decode(x).ok().filter(|raw| raw.len() == 32).ok_or(SessionTokenError::NotAKey)?;
            Ok((names::signing_key_id(x).to_owned(), DecodingKey::from_ed_der(&raw)))
        });
        let accepted = accepted.collect::<Result<_, SessionTokenError>>()?;
        Ok(Self { encoding: EncodingKey::from_ed_der(&der), public_x, accepted, published })
    }

    /// A token without `kid` is one of a replica of an older version.
    fn accepted(&self, token: &str) -> Result<impl Iterator<Item = &DecodingKey>, SessionTokenError> {
        let kid = jsonwebtoken::decode_header(token)?.kid;
        Ok(self.accepted.iter().filter(move |(id, _)| kid.as_ref().is_none_or(|kid| kid == id)).map(|(_, key)| key))
    }
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
    /// The pod that holds the token: in another one it is worth nothing.
    pub pod: String,
}

#[derive(Serialize)]
struct SignedClaims<'a, C> {
    iss: &'a str,
    aud: &'a str,
    #[serde(flatten)]
    claims: &'a C,
    iat: i64,
    exp: i64,
}

impl SessionTokens {
    /// Reads the PEM file, and what lies beside it.
    pub fn from_file(path: &Path) -> Result<Self, SessionTokenError> {
        Ok(Self { file: Some(path.to_owned()), keys: RwLock::new(Arc::new(Keys::read(path)?)) })
    }

    /// From the text of a PKCS#8 PEM file.
    pub fn from_pem(pem: &str) -> Result<Self, SessionTokenError> {
        Ok(Self { file: None, keys: RwLock::new(Arc::new(Keys::new(pem, &[])?)) })
    }

    fn keys(&self) -> Arc<Keys> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes other keys into use as soon as the files have them, until `stop`. What can't be read changes nothing.
    pub async fn follow_files(self: Arc<Self>, stop: CancellationToken) {
        let Some(file) = self.file.clone() else { return };
        while stop.run_until_cancelled(tokio::time::sleep(RELOAD_EVERY)).await.is_some() {
            match Keys::read(&file) {
                Ok(keys) => self.take(keys),
                Err(error) => tracing::warn!(%error, "the session signing key stays as it was"),
            }
        }
    }

    fn take(&self, keys: Keys) {
        if self.keys().is(&keys) {
            return;
        }
        let signs = names::signing_key_id(&keys.public_x).to_owned();
        let accepts = names::signing_key_ids(keys.published.iter().map(String::as_str));
        tracing::info!(signs, accepts, "other keys for session tokens");
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
    }

    /// The public half as a session pod gets it (base64url of the raw key).
    pub fn public_x(&self) -> String {
        self.keys().public_x.clone()
    }

    /// Id of the key that signs.
    pub fn key_id(&self) -> String {
        names::signing_key_id(&self.keys().public_x).to_owned()
    }

    /// Public halves of all keys whose tokens are accepted, sorted.
    pub fn published(&self) -> Vec<String> {
        self.keys().published.clone()
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
        self.sign(&claims)
    }

    /// The token that a pod gets to write its own transcript.
    pub fn for_session(&self, claims: &SessionClaims) -> Result<SecretString, SessionTokenError> {
        Ok(self.for_a_day(INTERNAL_AUDIENCE, claims)?.into())
    }

    /// The id that a client of the MCP gateway gets for a session with a server.
    pub fn for_mcp_session(&self, session: &McpSession) -> Result<String, SessionTokenError> {
        self.for_a_day(MCP_SESSION_AUDIENCE, session)
    }

    fn for_a_day(&self, aud: &str, claims: &impl Serialize) -> Result<String, SessionTokenError> {
        let iat = jiff::Timestamp::now().as_second();
        let exp = iat + i64::try_from(SESSION_TOKEN_LIFETIME.as_secs()).unwrap_or(86_400);
        self.sign(&SignedClaims { iss: ISSUER, aud, claims, iat, exp })
    }

    fn sign(&self, claims: &impl Serialize) -> Result<String, SessionTokenError> {
        let keys = self.keys();
        let kid = Some(names::signing_key_id(&keys.public_x).to_owned());
        let header = Header { kid, ..Header::new(Algorithm::EdDSA) };
        Ok(jsonwebtoken::encode(&header, claims, &keys.encoding)?)
    }

    /// Who a pod is, if its session token is genuine and current.
    pub fn verify_session(&self, token: &str) -> Result<SessionClaims, SessionTokenError> {
        self.verify(token, INTERNAL_AUDIENCE)
    }

    /// The session with an MCP server behind an id of the gateway's.
    pub fn verify_mcp_session(&self, token: &str) -> Result<McpSession, SessionTokenError> {
        self.verify(token, MCP_SESSION_AUDIENCE)
    }

    /// The organization whose role the operator wants to be tried, if its token is genuine and current.
    pub fn verify_isolation(&self, token: &str) -> Result<String, SessionTokenError> {
        let claims: IsolationClaims = self.verify(token, names::TOKEN_AUDIENCE_ISOLATION)?;
        Ok(claims.sub)
    }

    fn verify<C: DeserializeOwned + Clone>(&self, token: &str, audience: &str) -> Result<C, SessionTokenError> {
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(&[audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.leeway = LEEWAY_SECONDS;
        let keys = self.keys();
        let mut refusal = jsonwebtoken::errors::ErrorKind::InvalidSignature.into();
        for key in keys.accepted(token)? {
            match jsonwebtoken::decode::<C>(token, key, &validation) {
                Ok(data) => return Ok(data.claims),
                Err(error) => refusal = error,
            }
        }
        Err(SessionTokenError::Token(refusal))
    }
}

/// What the operator proves when it asks for an isolation probe.
#[derive(Clone, Deserialize)]
struct IsolationClaims {
    sub: String,
}

/// A throwaway key made for tests with `openssl genpkey -algorithm ed25519`.
#[cfg(test)]
pub(crate) const TEST_PEM: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIOJnBpvgUmOnNTnD7ZwRkYTAX+Ktq6wDRs4fRlRmU6XR\n-----END PRIVATE KEY-----\n";

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use secrecy::ExposeSecret;

    fn claims() -> SessionClaims {
        SessionClaims { sub: Uuid::now_v7(), org: "acme".into(), ws: "coding".into(), pod: "s-1".into() }
    }

    #[test]
    fn a_session_token_round_trips() {
        let tokens = SessionTokens::from_pem(TEST_PEM).unwrap();
        let claims = claims();
        let token = tokens.for_session(&claims).unwrap();
        assert_eq!(tokens.verify_session(token.expose_secret()).unwrap(), claims);
    }

    #[test]
    fn a_pod_token_is_not_a_session_token() {
        let tokens = SessionTokens::from_pem(TEST_PEM).unwrap();
        let token = tokens.for_pod(Uuid::now_v7(), "s-1").unwrap();
        assert!(tokens.verify_session(&token).is_err());
    }

    #[test]
    fn the_public_half_is_32_bytes() {
        let tokens = SessionTokens::from_pem(TEST_PEM).unwrap();
        assert_eq!(URL_SAFE_NO_PAD.decode(tokens.public_x()).unwrap().len(), 32);
    }

    #[test]
    fn a_token_is_good_as_long_as_its_key_is_published() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(names::KEY_SIGNING_PRIVATE);
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let pair = Ed25519KeyPair::generate().unwrap();
        let next_pem = STANDARD.encode(pair.to_pkcs8().unwrap().as_ref());
        let next_x = URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
        let reload = |tokens: &SessionTokens| tokens.take(Keys::read(&file).unwrap());

        write(names::KEY_SIGNING_PRIVATE, TEST_PEM);
        let tokens = SessionTokens::from_file(&file).unwrap();
        let (old_x, claims) = (tokens.public_x(), claims());
        let old = tokens.for_session(&claims).unwrap();
        let elsewhere = SessionTokens::from_pem(&next_pem).unwrap();
        let new = elsewhere.for_session(&claims).unwrap();
        assert!(tokens.verify_session(new.expose_secret()).is_err(), "its key is not published yet");

        // Offered: another replica may already sign with the next key.
        write(names::KEY_SIGNING_NEXT_PUBLIC, &format!("{next_x}\n"));
        reload(&tokens);
        assert_eq!(tokens.public_x(), old_x);
        assert_eq!(tokens.published().len(), 2);
        assert!(tokens.verify_session(new.expose_secret()).is_ok());

        // Promoted: what the old key signed is still good.
        write(names::KEY_SIGNING_PRIVATE, &next_pem);
        std::fs::remove_file(folder.path().join(names::KEY_SIGNING_NEXT_PUBLIC)).unwrap();
        write(names::KEY_SIGNING_PREVIOUS_PUBLIC, &old_x);
        reload(&tokens);
        assert_eq!(tokens.public_x(), next_x);
        assert!(tokens.verify_session(old.expose_secret()).is_ok());

        // Retired.
        std::fs::remove_file(folder.path().join(names::KEY_SIGNING_PREVIOUS_PUBLIC)).unwrap();
        reload(&tokens);
        assert!(tokens.verify_session(old.expose_secret()).is_err());
        assert!(tokens.verify_session(new.expose_secret()).is_ok());
    }

    #[test]
    fn half_written_files_change_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(names::KEY_SIGNING_PRIVATE);
        std::fs::write(&file, TEST_PEM).unwrap();
        std::fs::write(folder.path().join(names::KEY_SIGNING_NEXT_PUBLIC), "not base64url!").unwrap();
        assert!(matches!(Keys::read(&file), Err(SessionTokenError::NotAKey)));
    }

    #[test]
    fn something_else_is_not_a_key() {
        assert!(matches!(SessionTokens::from_pem("hello"), Err(SessionTokenError::NotAKey)));
    }
}
