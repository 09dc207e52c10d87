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

/// As the runtime signs: it names the key.
fn named(signer: &Signer, claims: &Value) -> String {
    let header = Header { kid: Some(signer.public[..12].to_owned()), ..Header::new(Algorithm::EdDSA) };
    format!("Bearer {}", encode(&header, claims, &signer.key).unwrap())
}

#[test]
fn keys_can_be_replaced_and_a_retired_one_opens_nothing() {
    let (old, new) = (signer(), signer());
    let verifier = Verifier::new(&old.public, "p1", None).unwrap();
    assert_eq!(verifier.session(Some(&named(&new, &claims()))), Err(TokenError::Invalid));
    verifier.replace(&format!("{},{}", old.public, new.public)).unwrap();
    for signer in [&old, &new] {
        assert_eq!(verifier.session(Some(&named(signer, &claims()))), Ok("s1".to_owned()));
        assert_eq!(verifier.session(Some(&token(signer, &claims()))), Ok("s1".to_owned()), "without kid");
    }
    verifier.replace(&new.public).unwrap();
    assert_eq!(verifier.session(Some(&named(&old, &claims()))), Err(TokenError::Invalid));
    assert_eq!(verifier.session(Some(&token(&old, &claims()))), Err(TokenError::Invalid));
    assert!(verifier.replace("").is_err(), "no keys at all would lock the runtime out");
    assert_eq!(verifier.session(Some(&named(&new, &claims()))), Ok("s1".to_owned()));
}

#[test]
fn a_pod_that_was_told_nothing_follows_the_secret() {
    let (old, new, third) = (signer(), signer(), signer());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(PUBLIC_KEYS);
    std::fs::write(&file, format!("{}\n", new.public)).unwrap();
    let verifier = Verifier::new(&old.public, "p1", Some(folder.path())).unwrap();
    assert_eq!(verifier.session(Some(&named(&old, &claims()))), Err(TokenError::Invalid));
    assert_eq!(verifier.session(Some(&named(&new, &claims()))), Ok("s1".to_owned()));
    std::fs::write(&file, format!("{},{}", new.public, third.public)).unwrap();
    assert_eq!(verifier.session(Some(&named(&third, &claims()))), Ok("s1".to_owned()));
    std::fs::write(&file, &third.public).unwrap();
    assert_eq!(verifier.session(Some(&named(&new, &claims()))), Err(TokenError::Invalid), "retired while it was away");
    std::fs::write(&file, "none").unwrap();
    assert_eq!(verifier.session(Some(&named(&third, &claims()))), Ok("s1".to_owned()), "broken: as it was");
}

/// The kubelet exchanges the files up to a minute and a half after the Secret.
#[test]
fn a_secret_that_is_late_does_not_let_a_retired_key_in_again() {
    let (old, new) = (signer(), signer());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(PUBLIC_KEYS);
    let both = format!("{},{}", old.public, new.public);
    std::fs::write(&file, &both).unwrap();
    let verifier = Verifier::new(&both, "p1", Some(folder.path())).unwrap();
    assert_eq!(verifier.session(Some(&named(&old, &claims()))), Ok("s1".to_owned()));
    verifier.replace(&new.public).unwrap();
    for _ in 0..2 {
        assert_eq!(verifier.session(Some(&named(&old, &claims()))), Err(TokenError::Invalid));
        assert_eq!(verifier.session(Some(&token(&old, &claims()))), Err(TokenError::Invalid), "without kid");
        assert_eq!(verifier.session(Some(&named(&new, &claims()))), Ok("s1".to_owned()));
    }
}

/// Somebody has deleted the Secret with the signing key, and the runtime can't say so with a key that the pod knows.
#[test]
fn a_key_that_was_replaced_without_a_rotation_is_read_from_the_secret_in_the_end() {
    let (lost, new) = (signer(), signer());
    let folder = tempfile::tempdir().unwrap();
    let verifier = Verifier::new(&lost.public, "p1", Some(folder.path())).unwrap();
    verifier.replace(&lost.public).unwrap();
    std::fs::write(folder.path().join(PUBLIC_KEYS), &new.public).unwrap();
    assert_eq!(verifier.session(Some(&named(&new, &claims()))), Err(TokenError::Invalid), "it may be an older one");
    verifier.known.write().unwrap().told_until = Some(Instant::now());
    assert_eq!(verifier.session(Some(&named(&lost, &claims()))), Ok("s1".to_owned()), "nobody has asked with another");
    assert_eq!(verifier.session(Some(&named(&new, &claims()))), Ok("s1".to_owned()));
    assert_eq!(verifier.session(Some(&named(&lost, &claims()))), Err(TokenError::Invalid));
}

#[test]
fn a_kid_of_one_key_does_not_open_with_another() {
    let (one, two) = (signer(), signer());
    let verifier = Verifier::new(&format!("{},{}", one.public, two.public), "p1", None).unwrap();
    let header = Header { kid: Some(one.public[..12].to_owned()), ..Header::new(Algorithm::EdDSA) };
    let crossed = format!("Bearer {}", encode(&header, &claims(), &two.key).unwrap());
    assert_eq!(verifier.session(Some(&crossed)), Err(TokenError::Invalid));
    for kid in ["../../etc/passwd", "' or 1=1", ""] {
        let header = Header { kid: Some(kid.to_owned()), ..Header::new(Algorithm::EdDSA) };
        let odd = format!("Bearer {}", encode(&header, &claims(), &one.key).unwrap());
        assert_eq!(verifier.session(Some(&odd)), Err(TokenError::Invalid), "{kid}");
    }
}

#[test]
fn a_token_for_this_pod_is_let_in() {
    let signer = signer();
    let verifier = Verifier::new(&signer.public, "p1", None).unwrap();
    assert_eq!(verifier.session(Some(&token(&signer, &claims()))), Ok("s1".to_owned()));
}

#[test]
fn everything_else_is_not() {
    let signer = signer();
    let verifier = Verifier::new(&signer.public, "p1", None).unwrap();
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
    let verifier = Verifier::new(&signer.public, "p1", None).unwrap();
    let forged = encode(&Header::new(Algorithm::HS256), &claims(), &EncodingKey::from_secret(signer.public.as_bytes()));
    assert_eq!(verifier.session(Some(&format!("Bearer {}", forged.unwrap()))), Err(TokenError::Invalid));
}

#[test]
fn a_key_that_is_none_says_what_is_expected() {
    assert!(Verifier::new("short", "p", None).is_err_and(|error| error.to_string().contains("43 characters")));
}
