//! Fuzz targets of tokens and key sets. See `agentapi_fuzz`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use agentapi_fuzz::Fuzz;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::json;

use super::*;

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

fn organization() -> Organization {
    Organization {
        id: Uuid::from_u128(1),
        slug: "acme".into(),
        role_name: "org_acme".into(),
        issuer: "https://login.example.com".into(),
        audience: "agentapi".into(),
        jwks_uri: None,
        max_sessions: None,
        rates: crate::store::identity::Rates::default(),
    }
}

fn good_token() -> String {
    let claims = json!({"iss": "https://login.example.com", "aud": ["agentapi"], "sub": "alice", "org_id": "acme",
                        "role": "user", "email": "a@example.com", "exp": 4_000_000_000_u64});
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(SECRET)).unwrap()
}

/// Changes of a good token: none may get in as anybody else.
#[test]
fn token() {
    const TOKENS: &[&[u8]] = &[
        b".",
        b"=",
        b"eyJhbGciOiJub25lIn0",
        b"eyJhbGciOiJIUzI1NiJ9",
        b"eyJhbGciOiJFUzI1NiJ9",
        b"eyJhbGciOiJSUzI1NiJ9",
        b"e30",
        b"bnVsbA",
        b"W10",
        b"-",
        b"_",
        b"AAAA",
        b"\0",
        b" ",
    ];
    let (organization, key) = (organization(), DecodingKey::from_secret(SECRET));
    let good = good_token();
    assert!(verify(&good, Algorithm::HS256, &key, &organization).is_ok());
    Fuzz::new("token").tokens(TOKENS).run(|input| {
        // A seed with this name stands for the good token, which has a signature of this moment.
        let text = String::from_utf8_lossy(input).replace("@good", &good);
        let Ok((header, claims)) = read_unverified(&text) else { return 0 };
        match verify(&text, header.alg, &key, &organization) {
            Ok(claims) => {
                assert_eq!((claims.sub.as_str(), claims.role), ("alice", Role::User));
                assert_eq!(claims.email.as_deref(), Some("a@example.com"));
                1
            }
            Err(error) => {
                2 + error.to_string().len() as u64 * 4 + u64::from(claims.iss.is_empty()) + header.alg as u64 * 1000
            }
        }
    });
}

/// Header and claims in JSON, signed with the right key: what the provider itself could get wrong, or be made to sign.
#[test]
fn claims() {
    const TOKENS: &[&[u8]] = &[
        br#""iss":"https://login.example.com""#,
        br#""aud":"agentapi""#,
        br#""aud":["agentapi","x"]"#,
        br#""aud":[]"#,
        br#""exp":4000000000"#,
        br#""exp":1e10"#,
        br#""nbf":9999999999"#,
        br#""sub":"alice""#,
        br#""sub":"\u0000""#,
        br#""role":"admin""#,
        br#""role":"Admin""#,
        br#""role":["admin"]"#,
        br#""role":null"#,
        br#""org_id":"acme""#,
        br#""org_id":["acme"]"#,
        br#""email":null"#,
        b"null",
        b"[",
        b"]",
        b"{",
        b"}",
        b",",
        b":",
        br#""\ud800""#,
    ];
    let (organization, key) = (organization(), DecodingKey::from_secret(SECRET));
    Fuzz::new("claims").tokens(TOKENS).run(|input| {
        use base64::Engine;
        let encode = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
        let signed = format!("{}.{}", encode(br#"{"alg":"HS256"}"#), encode(input));
        let signature =
            jsonwebtoken::crypto::sign(signed.as_bytes(), &EncodingKey::from_secret(SECRET), Algorithm::HS256).unwrap();
        let text = format!("{signed}.{signature}");
        let Ok((_, unverified)) = read_unverified(&text) else { return 0 };
        match verify(&text, Algorithm::HS256, &key, &organization) {
            Err(error) => 2 + error.to_string().len() as u64,
            Ok(claims) => {
                // What a reader skips it does not check for UTF-8; nothing of it reaches anybody.
                let Ok(json) = serde_json::from_slice::<serde_json::Value>(input) else { return 1 };
                assert_eq!(json["iss"], organization.issuer);
                let for_us = json["aud"] == "agentapi"
                    || json["aud"].as_array().is_some_and(|all| all.contains(&json!("agentapi")));
                assert!(for_us, "another audience");
                assert_eq!(json["org_id"], unverified.org_id, "two readers of the token disagree");
                assert_eq!(json["sub"], claims.sub);
                assert!(!claims.sub.is_empty() && claims.sub.len() <= 255 && !claims.sub.contains('\0'));
                assert_eq!(claims.role == Role::Admin, json["role"] == "admin", "admin by another name");
                1_000_000 + u64::from(claims.email.is_some()) + u64::from(claims.role == Role::Admin) * 2
            }
        }
    });
}

/// What a provider publishes.
#[test]
fn key_set() {
    const TOKENS: &[&[u8]] = &[
        br#""keys":["#,
        br#"{"kty":"oct","k":"c2VjcmV0","alg":"HS256"}"#,
        br#""kty":"RSA""#,
        br#""kty":"EC""#,
        br#""kty":"OKP""#,
        br#""crv":"P-256""#,
        br#""crv":"P-384""#,
        br#""crv":"Ed25519""#,
        br#""crv":"X25519""#,
        br#""use":"enc""#,
        br#""alg":"RS256""#,
        br#""alg":"none""#,
        br#""kid":null"#,
        br#""n":"AQAB""#,
        br#""e":"AQAB""#,
        br#""x":"AA""#,
        br#""y":"AA""#,
        br#""x5c":[]"#,
        br#""key_ops":["verify"]"#,
        b"null",
        b"[",
        b"]",
        b"{",
        b"}",
        b",",
    ];
    Fuzz::new("key_set").tokens(TOKENS).run(|input| match jwks::algorithms_in(input) {
        Err(line) => line as u64,
        Ok(algorithms) => {
            assert!(
                algorithms.iter().all(|it| matches!(it, Algorithm::RS256 | Algorithm::ES256 | Algorithm::EdDSA)),
                "{algorithms:?}"
            );
            algorithms.iter().fold(1000_u64, |sum, algorithm| sum.wrapping_mul(31) + *algorithm as u64)
        }
    });
}
