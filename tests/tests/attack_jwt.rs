//! Tokens that an attacker makes, steals or bends: none of them gets in, none makes the server fail, and none makes it
//! talk to an address of the attacker's. Bent claims are in attack_claims.rs; what every token must have is in api_auth.rs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use agentapi_tests::attack::tokens::{call, refused};
use agentapi_tests::serve::idp::{SigningKey, hmac_token};
use agentapi_tests::serve::{Platform, Tenant, pem};
use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, Header};
use serde_json::{Value, json};
use tokio::net::TcpListener;

const SESSION_POD: &str = env!("CARGO_BIN_EXE_session-pod");

fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn admin(platform: &Platform, tenant: &Tenant) -> Value {
    platform.claims(&tenant.organization.slug, "mallory", "admin")
}

#[tokio::test(flavor = "multi_thread")]
async fn no_spelling_of_an_algorithm_opens_the_door() -> Result<()> {
    let (platform, replica, tenant) = Platform::with_acme(SESSION_POD).await?;
    let claims = admin(&platform, &tenant).to_string();
    let good = platform.key.sign_bytes(&json!({"alg": "ES256", "kid": platform.key.kid}).to_string(), &claims)?;
    assert_eq!(call(&replica, &good).await?.status, 200);
    let signature = good.rsplit('.').next().unwrap_or_default().to_owned();
    let algorithms = [
        r#""none""#,
        r#""None""#,
        r#""NONE""#,
        r#""nOnE""#,
        r#""none ""#,
        r#""""#,
        "null",
        "0",
        "[]",
        r#"["ES256"]"#,
        r#"{"ES256":1}"#,
        r#""es256""#,
        r#""ES256K""#,
        r#""ES384""#,
        r#""PS256""#,
        r#""RS256""#,
        r#""HS256""#,
        r#""EdDSA""#,
        r#""ES256","alg":"none""#,
        r#""none","alg":"ES256""#,
    ];
    for algorithm in algorithms {
        let header = format!(r#"{{"alg":{algorithm},"kid":"{}"}}"#, platform.key.kid);
        let unsigned = format!("{}.{}", encode(&header), encode(&claims));
        for end in ["", "AA", signature.as_str(), &encode([0; 64])] {
            refused(&call(&replica, &format!("{unsigned}.{end}")).await?, &format!("{header} {end}"));
        }
        // The signature is right for exactly these bytes.
        refused(&call(&replica, &platform.key.sign_bytes(&header, &claims)?).await?, &header);
    }
    // A signature of zeros, which some libraries take for any message.
    let (input, _) = good.rsplit_once('.').context("no signature")?;
    for zeros in [0, 1, 32, 63, 64, 65, 70] {
        refused(&call(&replica, &format!("{input}.{}", encode(vec![0; zeros]))).await?, "zeros");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_public_key_is_no_secret_and_a_key_has_one_algorithm() -> Result<()> {
    let (platform, replica, tenant) = Platform::with_acme(SESSION_POD).await?;
    let rsa = platform.idp.add_key(SigningKey::rs256("rsa")?);
    let claims = admin(&platform, &tenant);
    for key in [&platform.key, &rsa] {
        let jwk = key.jwk()?;
        let field = |name: &str| URL_SAFE_NO_PAD.decode(jwk[name].as_str().unwrap_or_default()).unwrap_or_default();
        let (x, y, n) = (field("x"), field("y"), field("n"));
        let point = [&[4], x.as_slice(), y.as_slice()].concat();
        // SubjectPublicKeyInfo of P-256: a fixed head and the point.
        let head = "3059301306072a8648ce3d020106082a8648ce3d030107034200";
        let head: Vec<u8> =
            (0..head.len()).step_by(2).filter_map(|i| u8::from_str_radix(&head[i..i + 2], 16).ok()).collect();
        let der = [head, point.clone()].concat();
        let public_pem = pem(&der).replace("PRIVATE", "PUBLIC");
        let documents = [jwk.to_string(), json!({"keys": [jwk]}).to_string(), serde_json::to_string_pretty(&jwk)?];
        let mut secrets =
            vec![x, n, point, der, public_pem.clone().into_bytes(), public_pem.trim().as_bytes().to_vec(), vec![]];
        secrets.extend(documents.map(String::into_bytes));
        for secret in secrets {
            refused(&call(&replica, &hmac_token(&key.kid, &secret, &claims)?).await?, "HS256 with a public key");
        }
    }
    // Each key under the other's name and with the other's algorithm.
    for (signer, kid, algorithm) in [
        (&rsa, platform.key.kid.as_str(), Algorithm::RS256),
        (&platform.key, "rsa", Algorithm::ES256),
        (&rsa, "rsa", Algorithm::RS512),
        (&rsa, "rsa", Algorithm::PS256),
    ] {
        let header = Header { kid: Some(kid.to_owned()), ..Header::new(algorithm) };
        refused(&call(&replica, &signer.sign_with(&header, &claims)?).await?, &format!("{kid} {algorithm:?}"));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_of_a_token_are_data_and_never_an_address() -> Result<()> {
    let (platform, replica, tenant) = Platform::with_acme(SESSION_POD).await?;
    let claims = admin(&platform, &tenant).to_string();
    assert_eq!(call(&replica, &tenant.admin).await?.status, 200, "the keys are known now");
    let canary = TcpListener::bind("127.0.0.1:0").await?;
    let address = canary.local_addr()?;
    let url = format!("http://{address}/keys");
    let mine = SigningKey::es256("mine")?;
    let (fetches, began) = (platform.idp.fetches(), std::time::Instant::now());

    let long = "k".repeat(8000);
    let kids = [
        "../../../../dev/null",
        "/dev/null",
        "' OR '1'='1",
        "'; drop table sessions; --",
        "$(id)",
        "first\u{0}",
        "first ",
        " first",
        "FIRST",
        "",
        "\u{202e}tsrif",
        "first\u{200b}",
        url.as_str(),
        long.as_str(),
        "first\r\nX: y",
        "{{7*7}}",
        "*",
        "%",
        "..",
        "first,mine",
    ];
    for kid in kids {
        for key in [&mine, &platform.key] {
            let header = json!({"alg": "ES256", "kid": kid}).to_string();
            refused(&call(&replica, &key.sign_bytes(&header, &claims)?).await?, &format!("kid {kid:?}"));
        }
    }
    for kid in [json!(1), json!(["first"]), json!({"first": 1}), json!(true)] {
        let header = json!({"alg": "ES256", "kid": kid}).to_string();
        refused(&call(&replica, &platform.key.sign_bytes(&header, &claims)?).await?, &format!("kid {kid}"));
    }
    let foreign = [
        json!({"jku": url}),
        json!({"jku": format!("{}/keys@{address}", platform.idp.issuer)}),
        json!({"x5u": url}),
        json!({"jwk": mine.jwk()?}),
        json!({"x5c": [encode("certificate")]}),
        json!({"jku": url, "x5u": url, "jwk": mine.jwk()?}),
        json!({"jwk": {"kty": "oct", "k": encode("secret")}}),
    ];
    for more in &foreign {
        for kid in ["mine", platform.key.kid.as_str()] {
            let mut header = json!({"alg": "ES256", "kid": kid});
            header.as_object_mut().context("object")?.extend(more.as_object().cloned().unwrap_or_default());
            refused(&call(&replica, &mine.sign_bytes(&header.to_string(), &claims)?).await?, &header.to_string());
            // Signed by the real key they change nothing; whatever the answer is, it is not a failure.
            let answer = call(&replica, &platform.key.sign_bytes(&header.to_string(), &claims)?).await?;
            assert!(answer.status.as_u16() < 500, "{header}: {}", answer.body);
        }
    }
    for more in [
        json!({"crit": ["exp"]}),
        json!({"crit": ["b64"], "b64": false}),
        json!({"crit": []}),
        json!({"crit": "exp"}),
        json!({"zip": "DEF"}),
    ] {
        let mut header = json!({"alg": "ES256", "kid": platform.key.kid});
        header.as_object_mut().context("object")?.extend(more.as_object().cloned().unwrap_or_default());
        let answer = call(&replica, &platform.key.sign_bytes(&header.to_string(), &claims)?).await?;
        if header["crit"].is_null() {
            assert!(answer.status.as_u16() < 500, "{header}: {}", answer.body);
        } else {
            refused(&answer, &header.to_string());
        }
    }
    // An unencoded payload (RFC 7797): the same bytes mean something else to who honours it.
    let header = encode(json!({"alg": "ES256", "kid": platform.key.kid, "b64": false}).to_string());
    let good = platform.key.sign_bytes(&json!({"alg": "ES256", "kid": platform.key.kid}).to_string(), &claims)?;
    let signature = good.rsplit('.').next().unwrap_or_default();
    refused(&call(&replica, &format!("{header}.{}.{signature}", encode(&claims))).await?, "b64");

    let connected = tokio::time::timeout(std::time::Duration::from_millis(300), canary.accept()).await;
    assert!(connected.is_err(), "an address in a token was called");
    // Unknown kids may make the server look for new keys, but only at the provider and not each time.
    let allowed = usize::try_from(began.elapsed().as_secs())? + 2;
    assert!(platform.idp.fetches() - fetches <= allowed, "{} fetches", platform.idp.fetches() - fetches);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_surrounds_a_good_token_spoils_it() -> Result<()> {
    let (_platform, replica, tenant) = Platform::with_acme(SESSION_POD).await?;
    let good = &tenant.admin;
    let parts: Vec<&str> = good.split('.').collect();
    let [header, claims, signature] = parts[..] else { panic!("not three parts") };
    let raw = URL_SAFE_NO_PAD.decode(signature)?;
    let swapped = encode([&raw[32..], &raw[..32]].concat());
    // The unused bits of the last character: another text for the same bytes.
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let last = alphabet.find(&signature[signature.len() - 1..]).context("alphabet")?;
    let sibling =
        format!("{}{}", &signature[..signature.len() - 1], alphabet.chars().nth(last ^ 1).context("sibling")?);
    let bent = [
        format!("{good}."),
        format!("{good}.x"),
        format!("{good}="),
        format!("{good}=="),
        format!("{good}%00"),
        format!(".{good}"),
        format!("{header}=.{claims}.{signature}"),
        format!("{header}.{claims}..{signature}"),
        format!("{header}.{claims}"),
        format!("{header}.{claims}."),
        format!("{header}..{signature}"),
        format!(".{claims}.{signature}"),
        format!("{claims}.{header}.{signature}"),
        format!("{header}.{claims}.{}", &signature[..signature.len() - 4]),
        format!("{header}.{claims}.{signature}AAAA"),
        format!("{header}.{claims}.{swapped}"),
        format!("{header}.{claims}.{sibling}"),
        format!("{good},{good}"),
        // A token in a token.
        format!("{}.{}.{signature}", encode(r#"{"alg":"ES256","cty":"JWT"}"#), encode(good)),
        // Five parts: encrypted, which nobody here can read.
        format!("{}....{signature}", encode(r#"{"alg":"dir","enc":"A256GCM"}"#)),
        format!("{}.{}.", encode("[".repeat(5000)), encode("[".repeat(5000))),
        "A".repeat(60_000),
    ];
    for token in &bent {
        let answer = call(&replica, token).await?;
        let code = answer.status.as_u16();
        assert!(code == 401 || (code == 431 && token.len() > 16_384), "{token:.200}: {code} {}", answer.body);
    }
    assert_eq!(call(&replica, good).await?.status, 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_one_door_open_no_other() -> Result<()> {
    let (platform, replica, tenant) = Platform::with_acme(SESSION_POD).await?;
    let api = replica.api(Some(&tenant.alice))?;
    let create = api.request(reqwest::Method::POST, "/v1/sessions").header("prefer", "wait=30");
    let session = api.send(create.json(&json!({"workspace": "main"}))).await?.expect(201)?;
    let id = session["id"].as_str().context("no id")?;
    let tokens = platform.session_tokens()?;
    let pod_name = platform.pods.folder(id.parse()?)?.file_name().context("no name")?.to_string_lossy().into_owned();
    let session_token = platform.pods.session_token(id.parse()?)?;
    let pod_token = tokens.for_pod(id.parse()?, &pod_name)?;
    let elsewhere = tokens.for_pod(id.parse()?, "s-another")?;
    let other_session = tokens.for_pod(uuid::Uuid::now_v7(), &pod_name)?;
    let stranger = SigningKey::eddsa("x")?.sign(&json!({
        "iss": "agentapi-runtime", "aud": "agentapi-session-pod", "sub": id, "pod": pod_name, "exp": 4_000_000_000_u64,
    }))?;
    let pod = format!("http://{}", platform.pod_address(id).await?);
    let public = format!("http://{}", replica.addresses.public);
    let internal = format!("http://{}", replica.addresses.internal);
    let transcript = format!("/internal/v1/sessions/{id}/messages");
    let own_address = platform.pods.of(id.parse()?)?.1;
    let push = json!({"messages": [], "status": "stable"});
    let status = async |base: &str, method: &str, path: &str, token: &str, body: &Value| -> Result<u16> {
        // Pods are known by their address: the internal API is tried from the session's own.
        let own = (base == internal).then_some(own_address);
        let api = agentapi_tests::api::Api::from_address(base, Some(token.to_owned()), own)?;
        let request = api.request(method.parse()?, path);
        let request = if method == "GET" { request } else { request.json(body) };
        Ok(api.send(request).await?.status.as_u16())
    };
    for (who, token, at_public, at_internal, at_pod) in [
        ("a user", &tenant.alice, 200, 401, 401),
        ("an admin", &tenant.admin, 200, 401, 401),
        ("the session's own", &session_token, 401, 200, 401),
        ("for this pod", &pod_token, 401, 401, 200),
        ("for another pod", &elsewhere, 401, 401, 403),
        ("for another session", &other_session, 401, 401, 404),
        ("signed by a stranger", &stranger, 401, 401, 401),
    ] {
        assert_eq!(status(&public, "GET", "/v1/sessions", token, &Value::Null).await?, at_public, "{who}: public");
        assert_eq!(status(&internal, "PUT", &transcript, token, &push).await?, at_internal, "{who}: internal");
        for path in ["/status", "/messages"] {
            assert_eq!(status(&pod, "GET", path, token, &Value::Null).await?, at_pod, "{who}: pod {path}");
        }
        let said = json!({"content": "", "type": "user"});
        let wanted = if at_pod == 200 { 400 } else { at_pod };
        assert_eq!(status(&pod, "POST", "/message", token, &said).await?, wanted, "{who}: pod /message");
    }
    // A claim is taken from the runtime only, and never for another session than the token's.
    let claim = json!({"sessionId": uuid::Uuid::now_v7(), "env": {}});
    for (token, wanted) in
        [(&tenant.admin, 401), (&session_token, 401), (&pod_token, 403), (&elsewhere, 403), (&other_session, 403)]
    {
        assert_eq!(status(&pod, "POST", "/internal/claim", token, &claim).await?, wanted);
    }
    Ok(())
}
