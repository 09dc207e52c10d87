//! Who gets in: every way that a token can be wrong, against a real Postgres and a real key endpoint.

use agentapi_runtime::auth::jwks::{Jwks, JwksError, JwksLimits, KeySource};
use agentapi_runtime::metrics::Metrics;
use agentapi_tests::api::{Answer, Api};
use agentapi_tests::cluster::eventually;
use agentapi_tests::serve::idp::{SigningKey, hmac_token, signing_input};
use agentapi_tests::serve::steps::SOON;
use agentapi_tests::serve::{Platform, Replica};
use anyhow::Result;
use jsonwebtoken::{Algorithm, Header};
use reqwest::Method;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const SESSION_POD: &str = env!("CARGO_BIN_EXE_session-pod");

/// GET of something that any user may read.
async fn call(replica: &Replica, token: &str) -> Result<Answer> {
    replica.api(Some(token))?.get("/v1/workspaces").await
}

async fn refused(replica: &Replica, token: &str, why: &str) -> Result<()> {
    let answer = call(replica, token).await?;
    assert_eq!(answer.status, 401, "{why}: {}", answer.body);
    assert_eq!(answer.content_type, "application/problem+json", "{why}");
    assert_eq!(answer.problem(), "unauthorized", "{why}");
    assert!(answer.body["requestId"].is_string(), "{why}");
    Ok(())
}

fn with(claims: &Value, field: &str, value: Value) -> Value {
    let mut claims = claims.clone();
    claims[field] = value;
    claims
}

fn without(claims: &Value, field: &str) -> Value {
    let mut claims = claims.clone();
    if let Some(object) = claims.as_object_mut() {
        object.remove(field);
    }
    claims
}

#[tokio::test(flavor = "multi_thread")]
async fn good_tokens_of_every_accepted_algorithm_get_in() -> Result<()> {
    let (platform, replica, tenant) = Platform::with_acme(SESSION_POD).await?;
    let claims = platform.claims(&tenant.organization.slug, "someone", "user");
    for key in [SigningKey::rs256("rsa")?, SigningKey::es256("ec")?, SigningKey::eddsa("ed")?] {
        let key = platform.idp.add_key(key);
        // A new kid is looked up at once, but not more often than once a second.
        eventually("the new key is accepted", SOON, async || {
            let answer = call(&replica, &key.sign(&claims)?).await?;
            Ok(if answer.status == 200 { Ok(()) } else { Err(answer.body.to_string()) })
        })
        .await?;
    }
    let array = with(&claims, "aud", json!(["other", "agentapi"]));
    assert_eq!(call(&replica, &platform.key.sign(&array)?).await?.status, 200, "aud may be an array");
    let no_role = without(&claims, "role");
    assert_eq!(call(&replica, &platform.key.sign(&no_role)?).await?.status, 200, "no role means user");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_claims_are_refused() -> Result<()> {
    let (platform, replica, tenant) = Platform::with_acme(SESSION_POD).await?;
    let now = jiff::Timestamp::now().as_second();
    let good = platform.claims(&tenant.organization.slug, "someone", "user");
    assert_eq!(call(&replica, &platform.key.sign(&good)?).await?.status, 200);
    let cases = [
        ("expired", with(&good, "exp", json!(now - 120))),
        ("exp missing", without(&good, "exp")),
        ("exp is text", with(&good, "exp", json!("tomorrow"))),
        ("not valid yet", with(&good, "nbf", json!(now + 120))),
        ("wrong audience", with(&good, "aud", json!("other"))),
        ("wrong audiences", with(&good, "aud", json!(["other", "another"]))),
        ("no audience", without(&good, "aud")),
        ("unknown issuer", with(&good, "iss", json!("https://evil.example"))),
        ("no issuer", without(&good, "iss")),
        ("another organization", with(&good, "org_id", json!("nobody"))),
        ("no organization", without(&good, "org_id")),
        ("org_id is a list", with(&good, "org_id", json!([tenant.organization.slug]))),
        ("NUL in org_id", with(&good, "org_id", json!("a\u{0}"))),
        ("NUL in iss", with(&good, "iss", json!("a\u{0}"))),
        ("NUL in sub", with(&good, "sub", json!("a\u{0}"))),
        ("no subject", without(&good, "sub")),
        ("empty subject", with(&good, "sub", json!(""))),
        ("unknown role", with(&good, "role", json!("root"))),
    ];
    for (why, claims) in cases {
        refused(&replica, &platform.key.sign(&claims)?, why).await?;
    }
    for email in [json!(""), json!("a\u{0}b"), json!("x".repeat(600)), Value::Null] {
        let token = platform.key.sign(&with(&good, "email", email.clone()))?;
        assert_eq!(call(&replica, &token).await?.status, 200, "an odd email is no reason: {email}");
    }
    // A little clock skew is fine.
    let skewed = with(&with(&good, "exp", json!(now - 5)), "nbf", json!(now - 100));
    assert_eq!(call(&replica, &platform.key.sign(&skewed)?).await?.status, 200, "leeway");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_signatures_are_refused() -> Result<()> {
    let (platform, replica, tenant) = Platform::with_acme(SESSION_POD).await?;
    let claims = platform.claims(&tenant.organization.slug, "someone", "admin");
    let rsa = platform.idp.add_key(SigningKey::rs256("rsa")?);
    let good = platform.key.sign(&claims)?;
    assert_eq!(call(&replica, &good).await?.status, 200);

    let none = json!({"alg": "none", "typ": "JWT"});
    refused(&replica, &format!("{}.", signing_input(&none, &claims)?), "alg none").await?;
    refused(&replica, &format!("{}.AA", signing_input(&none, &claims)?), "alg none with something").await?;
    let none = json!({"alg": "NonE", "typ": "JWT", "kid": platform.key.kid});
    refused(&replica, &format!("{}.", signing_input(&none, &claims)?), "alg NonE").await?;

    // The classic confusion: HMAC with the public key, which everybody has, as the secret.
    let public = rsa.jwk()?;
    for secret in [public["n"].as_str().unwrap_or_default().to_owned(), public.to_string()] {
        refused(&replica, &hmac_token("rsa", secret.as_bytes(), &claims)?, "HS256 with the public key").await?;
    }
    let stranger = SigningKey::es256(&platform.key.kid)?;
    refused(&replica, &stranger.sign(&claims)?, "another key under a known kid").await?;
    let unknown = SigningKey::es256("nobody-knows")?;
    refused(&replica, &unknown.sign(&claims)?, "unknown kid").await?;
    let crossed = Header { kid: Some("rsa".into()), ..Header::new(Algorithm::ES256) };
    refused(&replica, &platform.key.sign_with(&crossed, &claims)?, "kid of a key of another kind").await?;
    let critical =
        Header { crit: Some(vec!["exp".into()]), kid: Some(platform.key.kid.clone()), ..Header::new(Algorithm::ES256) };
    refused(&replica, &platform.key.sign_with(&critical, &claims)?, "crit").await?;
    let embedded = Header {
        jwk: serde_json::from_value(SigningKey::es256("mine")?.jwk()?).ok(),
        jku: Some("https://evil.example/keys".into()),
        kid: Some("mine".into()),
        ..Header::new(Algorithm::ES256)
    };
    refused(&replica, &SigningKey::es256("mine")?.sign_with(&embedded, &claims)?, "a key in the token itself").await?;

    let (body, _) = good.rsplit_once('.').unwrap_or_default();
    refused(&replica, &format!("{body}.AAAA"), "broken signature").await?;
    for garbage in ["x", "a.b.c", "..", "eyJhbGciOiJFUzI1NiJ9"] {
        refused(&replica, garbage, "garbage").await?;
    }
    refused(&replica, &format!("{good}{}", "A".repeat(20_000)), "very long").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_or_malformed_header_is_401_with_a_challenge() -> Result<()> {
    let (_platform, replica, tenant) = Platform::with_acme(SESSION_POD).await?;
    let api = replica.api(None)?;
    let challenge = async |api: &Api, header: Option<String>| -> Result<(u16, String)> {
        let mut request = api.request(Method::GET, "/v1/sessions");
        if let Some(header) = header {
            request = request.header("authorization", header);
        }
        let response = request.send().await?;
        let challenge = response.headers().get("www-authenticate").and_then(|value| value.to_str().ok());
        Ok((response.status().as_u16(), challenge.unwrap_or_default().to_owned()))
    };
    // RFC 6750: no error code when no token was sent.
    assert_eq!(challenge(&api, None).await?, (401, "Bearer realm=\"agentapi\"".to_owned()));
    let (status, header) = challenge(&api, Some("Basic YTpi".into())).await?;
    assert!(status == 401 && header.contains("error=\"invalid_request\""), "{status} {header}");
    let (status, header) = challenge(&api, Some("Bearer a.b.c".into())).await?;
    assert!(status == 401 && header.contains("error=\"invalid_token\""), "{status} {header}");
    let (status, _) = challenge(&api, Some(format!("bearer {}", tenant.alice))).await?;
    assert_eq!(status, 200, "the scheme's case does not matter");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn admins_only_is_403_for_users() -> Result<()> {
    let (_platform, replica, tenant) = Platform::with_acme(SESSION_POD).await?;
    let answer = replica.api(Some(&tenant.alice))?.get("/v1/audit").await?;
    assert_eq!((answer.status.as_u16(), answer.problem()), (403, "forbidden"));
    let entries = replica.api(Some(&tenant.admin))?.get("/v1/audit").await?.expect(200)?;
    let oldest = entries["entries"].as_array().and_then(|all| all.last()).map(|entry| &entry["action"]);
    assert_eq!(oldest.and_then(Value::as_str), Some("organization.create"), "{entries}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn hs256_works_only_for_issuers_that_are_configured() -> Result<()> {
    let platform = Platform::start(SESSION_POD).await?;
    let tenant = platform.tenant("acme").await?;
    let secret = "0123456789abcdef0123456789abcdef";
    let file = platform.file("hs256.json", &json!({ platform.idp.issuer.clone(): secret }).to_string())?;
    let mut config = platform.config();
    config.hs256_secrets_file = Some(file);
    let replica = platform.replica_with(config).await?;
    let claims = platform.claims(&tenant.organization.slug, "someone", "user");
    assert_eq!(call(&replica, &hmac_token("any", secret.as_bytes(), &claims)?).await?.status, 200);
    refused(&replica, &hmac_token("any", b"another secret of some length!!!", &claims)?, "wrong secret").await?;
    assert_eq!(call(&replica, &tenant.alice).await?.status, 200, "asymmetric keys still work");

    let short = platform.file("short.json", &json!({ platform.idp.issuer.clone(): "short" }).to_string())?;
    let mut config = platform.config();
    config.hs256_secrets_file = Some(short);
    let error = platform.replica_with(config).await.err().map(|error| error.to_string()).unwrap_or_default();
    assert!(error.contains("shorter than 32"), "{error}");
    assert!(!error.contains("\"short\""), "the secret is in the message: {error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn many_first_requests_fetch_the_keys_once() -> Result<()> {
    let (platform, replica, tenant) = Platform::with_acme(SESSION_POD).await?;
    let calls: Vec<_> = (0..20).map(|_| call(&replica, &tenant.alice)).collect();
    for answer in futures::future::join_all(calls).await {
        assert_eq!(answer?.status, 200);
    }
    assert_eq!(platform.idp.fetches(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_cached_rotated_and_dropped() -> Result<()> {
    let platform = Platform::start(SESSION_POD).await?;
    let tenant = platform.tenant("acme").await?;
    let mut config = platform.config();
    config.jwks_ttl_seconds = 3;
    let replica = platform.replica_with(config).await?;
    let claims = platform.claims(&tenant.organization.slug, "someone", "user");
    let old = platform.key.sign(&claims)?;
    assert_eq!(call(&replica, &old).await?.status, 200);

    // A flood of unknown kids must not become a flood of fetches.
    let before = platform.idp.fetches();
    let began = std::time::Instant::now();
    for n in 0..30 {
        refused(&replica, &SigningKey::es256(&format!("kid-{n}"))?.sign(&claims)?, "unknown kid").await?;
    }
    let allowed = usize::try_from(began.elapsed().as_secs())? + 2;
    assert!(platform.idp.fetches() - before <= allowed, "{} fetches", platform.idp.fetches() - before);

    // Rotation: the new key works soon, the old one stops once the set was refreshed.
    let new = platform.idp.add_key(SigningKey::es256("second")?);
    platform.idp.remove_key(&platform.key.kid);
    eventually("the new key is accepted", SOON, async || {
        let status = call(&replica, &new.sign(&claims)?).await?.status;
        Ok(if status == 200 { Ok(()) } else { Err(status.to_string()) })
    })
    .await?;
    refused(&replica, &old, "signed with the dropped key").await?;

    // The provider is down: the last good set keeps working.
    platform.idp.set_down(true);
    let fetched = platform.idp.fetches();
    eventually("a refresh was tried", SOON, async || {
        assert_eq!(call(&replica, &new.sign(&claims)?).await?.status, 200, "stale if error");
        Ok(if platform.idp.fetches() > fetched { Ok(()) } else { Err("no fetch".to_owned()) })
    })
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_was_never_reached_is_503_and_not_401() -> Result<()> {
    let platform = Platform::start(SESSION_POD).await?;
    let tenant = platform.tenant("acme").await?;
    // Whoever has no keys does not wait for the next refresh.
    let mut config = platform.config();
    config.jwks_min_refresh_seconds = 3600;
    let replica = platform.replica_with(config).await?;
    platform.idp.set_down(true);
    let answer = call(&replica, &tenant.alice).await?;
    assert_eq!((answer.status.as_u16(), answer.problem()), (503, "identity-provider-unavailable"));
    platform.idp.set_down(false);
    eventually("it recovers", SOON, async || {
        let status = call(&replica, &tenant.alice).await?.status;
        Ok(if status == 200 { Ok(()) } else { Err(status.to_string()) })
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_connection_that_breaks_is_made_once_more() -> Result<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let source = KeySource { issuer: format!("https://{}", listener.local_addr()?), jwks_uri: None };
    let made = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&made);
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            drop(connection);
        }
    });
    let http = reqwest::Client::builder().no_proxy().build()?;
    let jwks = Jwks::new(http, JwksLimits::default(), Metrics::new()?);
    let refused = jwks.key(&source, None, Algorithm::ES256).await;
    assert!(matches!(refused, Err(JwksError::Unavailable(_))));
    assert_eq!(made.load(Ordering::SeqCst), 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_issuer_causes_no_request_to_it() -> Result<()> {
    let (platform, replica, _tenant) = Platform::with_acme(SESSION_POD).await?;
    // This issuer has a key endpoint, but no organization names it.
    let stranger = agentapi_tests::serve::idp::Idp::start().await?;
    let key = stranger.add_key(SigningKey::es256("k")?);
    let claims = with(&platform.claims("acme", "someone", "admin"), "iss", json!(stranger.issuer));
    refused(&replica, &key.sign(&claims)?, "unknown issuer").await?;
    assert_eq!(stranger.fetches(), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_keys_in_a_set_do_not_spoil_it() -> Result<()> {
    let platform = Platform::start(SESSION_POD).await?;
    platform.idp.add_raw(json!({"kty": "AKP", "alg": "ML-DSA-44", "kid": "future", "pub": "AA"}));
    platform.idp.add_raw(json!({"kty": "oct", "k": "c2VjcmV0", "kid": "shared", "alg": "HS256"}));
    let encryption = SigningKey::es256("enc")?;
    let mut jwk = encryption.jwk()?;
    jwk["use"] = json!("enc");
    platform.idp.add_raw(jwk);
    let replica = platform.replica().await?;
    let tenant = platform.tenant("acme").await?;
    assert_eq!(call(&replica, &tenant.alice).await?.status, 200);
    let claims = platform.claims(&tenant.organization.slug, "someone", "user");
    refused(&replica, &encryption.sign(&claims)?, "an encryption key").await?;
    refused(&replica, &hmac_token("shared", b"secret", &claims)?, "a shared key in the set").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_organization_is_locked_out_soon() -> Result<()> {
    let (platform, replica, tenant) = Platform::with_acme(SESSION_POD).await?;
    assert_eq!(call(&replica, &tenant.alice).await?.status, 200);
    let slug = tenant.organization.slug.as_str();
    platform.operator("update organizations set deleted_at = now() where slug = $1", &[slug]).await?;
    eventually("tokens are refused", SOON, async || {
        let status = call(&replica, &tenant.alice).await?.status;
        Ok(if status == 401 { Ok(()) } else { Err(status.to_string()) })
    })
    .await
}
