#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::{Value, json};

use super::*;

struct Signer {
    key: EncodingKey,
    public: String,
}

fn signer() -> Signer {
    let pair = Ed25519KeyPair::generate().unwrap();
    let public = URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
    Signer { key: EncodingKey::from_ed_der(pair.to_pkcs8().unwrap().as_ref()), public }
}

fn claims() -> Value {
    json!({
        "iss": "agentapi-runtime", "aud": "agentapi-session-pod", "sub": "s1", "pod": "p1",
        "exp": Timestamp::now().as_second() + 60,
    })
}

fn token(signer: &Signer, claims: &Value) -> String {
    format!("Bearer {}", encode(&Header::new(Algorithm::EdDSA), claims, &signer.key).unwrap())
}

#[test]
fn a_token_for_this_pod_is_let_in() {
    let signer = signer();
    let verifier = Verifier::new(&signer.public, "p1").unwrap();
    assert_eq!(verifier.session(Some(&token(&signer, &claims()))), Ok("s1".to_owned()));
}

#[test]
fn everything_else_is_not() {
    let signer = signer();
    let verifier = Verifier::new(&signer.public, "p1").unwrap();
    assert_eq!(verifier.session(None), Err(TokenError::Missing));
    assert_eq!(verifier.session(Some("Basic abc")), Err(TokenError::Missing));
    assert_eq!(verifier.session(Some("Bearer abc")), Err(TokenError::Invalid));
    for (claim, value) in [
        ("aud", json!("agentapi-internal")),
        ("iss", json!("someone")),
        ("exp", json!(Timestamp::now().as_second() - 60)),
        ("exp", Value::Null),
        ("sub", Value::Null),
        ("pod", Value::Null),
    ] {
        let mut changed = claims();
        changed[claim] = value;
        assert_eq!(verifier.session(Some(&token(&signer, &changed))), Err(TokenError::Invalid), "{claim}");
    }
    let mut other = claims();
    other["pod"] = json!("p2");
    assert_eq!(verifier.session(Some(&token(&signer, &other))), Err(TokenError::OtherPod));
    let stranger = self::signer();
    assert_eq!(verifier.session(Some(&token(&stranger, &claims()))), Err(TokenError::Invalid));
}

#[test]
fn a_token_signed_with_the_public_key_as_a_shared_secret_is_refused() {
    let signer = signer();
    let verifier = Verifier::new(&signer.public, "p1").unwrap();
    let forged = encode(&Header::new(Algorithm::HS256), &claims(), &EncodingKey::from_secret(signer.public.as_bytes()));
    assert_eq!(verifier.session(Some(&format!("Bearer {}", forged.unwrap()))), Err(TokenError::Invalid));
}

#[test]
fn a_key_that_is_none_says_what_is_expected() {
    assert!(Verifier::new("short", "p").is_err_and(|error| error.to_string().contains("43 characters")));
}
