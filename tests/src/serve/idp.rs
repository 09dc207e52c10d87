//! An OIDC issuer on the loopback interface, for tests that need tokens which no honest provider would sign. The
//! end-to-end tests use a real one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Result, anyhow};
use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use reqwest::StatusCode;
use serde_json::{Value, json};

use super::pem;

/// A key that signs tokens.
#[derive(Clone)]
pub struct SigningKey {
    /// Its id.
    pub kid: String,
    /// What it signs with.
    pub algorithm: Algorithm,
    encoding: EncodingKey,
}

/// An Ed25519 pair: PKCS#8 and the public `x`.
pub fn ed25519() -> Result<(Vec<u8>, String)> {
    let private = Ed25519KeyPair::generate_pkcs8v1(&aws_lc_rs::rand::SystemRandom::new())?.as_ref().to_vec();
    let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&private)?;
    Ok((private, URL_SAFE_NO_PAD.encode(pair.public_key().as_ref())))
}

impl SigningKey {
    /// A new P-256 key.
    pub fn es256(kid: &str) -> Result<Self> {
        let random = aws_lc_rs::rand::SystemRandom::new();
        let private = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random)?;
        let encoding = EncodingKey::from_ec_der(private.as_ref());
        Ok(Self { kid: kid.to_owned(), algorithm: Algorithm::ES256, encoding })
    }

    /// A new RSA key of 2048 bits.
    pub fn rs256(kid: &str) -> Result<Self> {
        let private = aws_lc_rs::rsa::KeyPair::generate(KeySize::Rsa2048)?.as_der()?;
        let encoding = EncodingKey::from_rsa_pem(pem(private.as_ref()).as_bytes())?;
        Ok(Self { kid: kid.to_owned(), algorithm: Algorithm::RS256, encoding })
    }

    /// A new Ed25519 key.
    pub fn eddsa(kid: &str) -> Result<Self> {
        let encoding = EncodingKey::from_ed_der(&ed25519()?.0);
        Ok(Self { kid: kid.to_owned(), algorithm: Algorithm::EdDSA, encoding })
    }

    /// The public half as a provider publishes it.
    pub fn jwk(&self) -> Result<Value> {
        let mut jwk = Jwk::from_encoding_key(&self.encoding, self.algorithm)?;
        jwk.common.key_id = Some(self.kid.clone());
        jwk.common.public_key_use = Some(PublicKeyUse::Signature);
        Ok(serde_json::to_value(jwk)?)
    }

    /// A token with these claims.
    pub fn sign(&self, claims: &Value) -> Result<String> {
        let header = Header { kid: Some(self.kid.clone()), ..Header::new(self.algorithm) };
        self.sign_with(&header, claims)
    }

    /// A token with any bytes as header and claims, and a signature that is right for them.
    pub fn sign_bytes(&self, header: &str, claims: &str) -> Result<String> {
        let input = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = jsonwebtoken::crypto::sign(input.as_bytes(), &self.encoding, self.algorithm)?;
        Ok(format!("{input}.{signature}"))
    }

    /// A token with this header and these claims.
    pub fn sign_with(&self, header: &Header, claims: &Value) -> Result<String> {
        Ok(jsonwebtoken::encode(header, claims, &self.encoding)?)
    }
}

#[derive(Default)]
struct Published {
    keys: Vec<Value>,
    fetches: usize,
    down: bool,
}

type Shared = Arc<Mutex<Published>>;

/// The issuer.
pub struct Idp {
    /// `iss` of its tokens.
    pub issuer: String,
    shared: Shared,
}

impl Idp {
    /// On a free port.
    pub async fn start() -> Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let issuer = format!("http://{}", listener.local_addr()?);
        let shared = Shared::default();
        let router = Router::new()
            .route("/.well-known/openid-configuration", get(discovery))
            .route("/keys", get(keys))
            .with_state((issuer.clone(), Arc::clone(&shared)));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self { issuer, shared })
    }

    fn published(&self) -> MutexGuard<'_, Published> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes a key.
    pub fn add_key(&self, key: SigningKey) -> SigningKey {
        if let Ok(jwk) = key.jwk() {
            self.published().keys.push(jwk);
        }
        key
    }

    /// Publishes something as it is.
    pub fn add_raw(&self, jwk: Value) {
        self.published().keys.push(jwk);
    }

    /// Publishes a key no longer.
    pub fn remove_key(&self, kid: &str) {
        self.published().keys.retain(|jwk| jwk["kid"] != kid);
    }

    /// Answers 500 from now on, or no longer.
    pub fn set_down(&self, down: bool) {
        self.published().down = down;
    }

    /// How often the keys were asked for.
    pub fn fetches(&self) -> usize {
        self.published().fetches
    }
}

async fn discovery(State((issuer, _)): State<(String, Shared)>) -> Json<Value> {
    Json(json!({ "issuer": issuer, "jwks_uri": format!("{issuer}/keys") }))
}

async fn keys(State((_, shared)): State<(String, Shared)>) -> Response {
    let mut published = shared.lock().unwrap_or_else(PoisonError::into_inner);
    published.fetches += 1;
    if published.down {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    Json(json!({ "keys": published.keys })).into_response()
}

/// The two parts of a token that are signed, from any header and claims.
pub fn signing_input(header: &Value, claims: &Value) -> Result<String> {
    let part = |value: &Value| Ok::<_, anyhow::Error>(URL_SAFE_NO_PAD.encode(serde_json::to_vec(value)?));
    Ok(format!("{}.{}", part(header)?, part(claims)?))
}

/// A token signed with HMAC and whatever bytes an attacker has, such as a public key.
pub fn hmac_token(kid: &str, secret: &[u8], claims: &Value) -> Result<String> {
    let header = Header { kid: Some(kid.to_owned()), ..Header::new(Algorithm::HS256) };
    jsonwebtoken::encode(&header, claims, &EncodingKey::from_secret(secret)).map_err(|error| anyhow!(error))
}
