//! Tokens that only the probes use: the session token of a session that does not exist, and the one that asks the
//! runtime to try a tenant's role. JWT with EdDSA, valid for a minute. The key is read each time, so that a rotation is
//! followed by itself.
use crate::{context::Context, error::Error};
use agentapi_crds::names;
use aws_lc_rs::signature::Ed25519KeyPair;
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use serde_json::{Value, json};
use uuid::Uuid;

const LIFETIME_SECONDS: i64 = 60;

/// Signs as the runtime does.
pub struct Mint(Ed25519KeyPair);

impl Mint {
    /// With the key of the system namespace; `None` when the Secret holds none.
    pub async fn open(context: &Context) -> Result<Option<Self>, Error> {
        let secrets = Api::<Secret>::namespaced(context.client.clone(), &context.config.system_namespace);
        let name = names::SECRET_SESSION_SIGNING;
        let secret = secrets.get(name).await.map_err(|error| Error::kube("get", "Secret", name, error))?;
        let pem = secret.data.as_ref().and_then(|data| data.get(names::KEY_SIGNING_PRIVATE));
        Ok(pem.and_then(|pem| Self::from_pem(&pem.0)))
    }

    fn from_pem(pem: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(pem).ok()?;
        let body: String = text.lines().filter(|line| !line.starts_with("-----")).map(str::trim).collect();
        Ed25519KeyPair::from_pkcs8_maybe_unchecked(&STANDARD.decode(body).ok()?).ok().map(Self)
    }

    /// What a session pod of `organization` holds for `session`.
    pub fn session(&self, organization: &str, session: Uuid, now: i64) -> String {
        let claims = json!({"sub": session, "org": organization, "ws": "isolation-probe"});
        self.sign(names::TOKEN_AUDIENCE_INTERNAL, claims, now)
    }

    /// What asks the runtime to try the role of `organization`.
    pub fn role_probe(&self, organization: &str, now: i64) -> String {
        self.sign(names::TOKEN_AUDIENCE_ISOLATION, json!({"sub": organization}), now)
    }

    fn sign(&self, audience: &str, mut claims: Value, now: i64) -> String {
        claims["iss"] = names::TOKEN_ISSUER.into();
        claims["aud"] = audience.into();
        claims["iat"] = now.into();
        claims["exp"] = (now + LIFETIME_SECONDS).into();
        let signed = unsigned("EdDSA", &claims);
        let signature = self.0.sign(signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }
}

/// A token that claims to be an admin of the organization and is signed by nobody.
pub fn forged(algorithm: &str, issuer: &str, audience: &str, claim: &str, now: i64) -> String {
    let claims = json!({
        "iss": issuer, "aud": audience, "org_id": claim, "sub": "isolation-probe", "role": "admin",
        "iat": now, "exp": now + LIFETIME_SECONDS,
    });
    let signature = if algorithm == "none" { String::new() } else { URL_SAFE_NO_PAD.encode([7_u8; 64]) };
    format!("{}.{signature}", unsigned(algorithm, &claims))
}

fn unsigned(algorithm: &str, claims: &Value) -> String {
    let header = json!({"alg": algorithm, "typ": "JWT"}).to_string();
    format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims.to_string()))
}
