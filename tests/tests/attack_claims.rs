//! Claims in odd shapes, and providers that vouch for other tenants' users: nobody becomes an admin or somebody else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use agentapi_tests::attack::tokens::{call, refused};
use agentapi_tests::serve::Platform;
use agentapi_tests::serve::idp::{Idp, SigningKey};
use anyhow::{Context, Result};
use serde_json::{Value, json};

const SESSION_POD: &str = env!("CARGO_BIN_EXE_session-pod");

#[tokio::test(flavor = "multi_thread")]
#[allow(clippy::too_many_lines, reason = "one list of shapes")]
async fn nobody_becomes_an_admin_or_somebody_else_by_the_shape_of_a_claim() -> Result<()> {
    let (platform, replica, tenant) = Platform::with_acme(SESSION_POD).await?;
    let globex = platform.tenant("globex").await?;
    let (ours, theirs) = (&tenant.organization.slug, &globex.organization.slug);
    let header = json!({"alg": "ES256", "kid": platform.key.kid}).to_string();
    let user = platform.claims(ours, "mallory", "user");
    let with = |field: &str, value: Value| {
        let mut claims = user.clone();
        claims[field] = value;
        claims
    };
    for role in [
        json!(["admin"]),
        json!("Admin"),
        json!("ADMIN"),
        json!("admin "),
        json!("admin\u{0}"),
        json!("аdmin"),
        json!({"admin": true}),
        json!(true),
        json!("user,admin"),
        json!("user admin"),
        json!(["user", "admin"]),
        json!(0),
        json!(""),
    ] {
        refused(&call(&replica, &platform.key.sign(&with("role", role.clone()))?).await?, &format!("role {role}"));
    }
    // Other claims that mean something elsewhere mean nothing here: still a user.
    for (field, value) in [
        ("roles", json!(["admin"])),
        ("groups", json!(["admin"])),
        ("scope", json!("admin")),
        ("is_admin", json!(true)),
        ("Role", json!("admin")),
        ("role ", json!("admin")),
        ("https://agentapi.dev/role", json!("admin")),
        ("realm_access", json!({"roles": ["admin"]})),
    ] {
        let answer = call(&replica, &platform.key.sign(&with(field, value))?).await?;
        assert_eq!(answer.status, 403, "{field}: {}", answer.body);
    }
    for organization in [
        json!([ours]),
        json!([theirs, ours]),
        json!({"slug": ours}),
        json!(1),
        Value::Null,
        json!(""),
        json!(format!("{ours} ")),
        json!(format!(" {ours}")),
        json!(ours.to_uppercase()),
        json!(format!("{ours}\u{200b}")),
        json!(format!("../{ours}")),
        json!("%"),
        json!("_"),
        json!(format!("{ours}' or '1'='1")),
        json!(format!("{ours},{theirs}")),
        json!("*"),
    ] {
        refused(
            &call(&replica, &platform.key.sign(&with("org_id", organization.clone()))?).await?,
            &format!("org_id {organization}"),
        );
    }
    // The same claim twice: whoever reads the first and whoever reads the last must not be two different parts of us.
    let text = with("role", json!("admin")).to_string();
    let body = text.strip_prefix('{').context("object")?;
    for twice in [
        format!(r#"{{"org_id":"{theirs}",{body}"#),
        format!(r#"{{{},"org_id":"{theirs}"}}"#, &body[..body.len() - 1]),
        format!(r#"{{"sub":"x",{body}"#),
        format!(r#"{{"role":"user",{body}"#),
        format!(r#"{{"iss":"x",{body}"#),
        format!(r#"{{"exp":1,{body}"#),
        format!(r#"{{"aud":"x",{body}"#),
        format!(r#"{{"nbf":1,{body}"#),
    ] {
        refused(&call(&replica, &platform.key.sign_bytes(&header, &twice)?).await?, &twice);
    }
    let deep = format!(r#"{{"x":{}{},{body}"#, "[".repeat(3000), "]".repeat(3000));
    let answer = call(&replica, &platform.key.sign_bytes(&header, &deep)?).await?;
    assert!(answer.status.as_u16() < 500, "{}", answer.body);
    for odd in ["", "null", "[]", "{}", "1", "\"x\"", "{\"iss\":", "\u{feff}{}", "{\"org_id\":\"\\ud800\"}"] {
        refused(&call(&replica, &platform.key.sign_bytes(&header, odd)?).await?, odd);
    }
    for (field, value) in [
        ("exp", json!(1e308)),
        ("exp", json!(-1)),
        ("exp", json!(true)),
        ("exp", json!([4_000_000_000_u64])),
        ("exp", json!(u64::MAX)),
        ("nbf", json!(1e308)),
        ("nbf", json!("0")),
        ("nbf", json!(u64::MAX)),
        ("iat", json!("x")),
        ("jti", json!({})),
    ] {
        let answer = call(&replica, &platform.key.sign(&with(field, value.clone()))?).await?;
        assert!(matches!(answer.status.as_u16(), 401 | 403), "{field} {value}: {}", answer.body);
    }
    for issuer in [
        format!("{}/", platform.idp.issuer),
        platform.idp.issuer.to_uppercase(),
        platform.idp.issuer.replace("127.0.0.1", "localhost"),
        platform.idp.issuer.replace("http://", "http://evil@"),
        format!("{}#x", platform.idp.issuer),
        format!("{}\u{0}", platform.idp.issuer),
    ] {
        refused(&call(&replica, &platform.key.sign(&with("iss", json!(issuer)))?).await?, &issuer);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_tenants_provider_vouches_for_nobody_of_another() -> Result<()> {
    let (platform, replica, acme) = Platform::with_acme(SESSION_POD).await?;
    let globex = platform.tenant("globex").await?;
    let theirs = Idp::start().await?;
    // The same kid as that of acme's provider.
    let key = theirs.add_key(SigningKey::es256(&platform.key.kid)?);
    let slug = globex.organization.slug.as_str();
    platform.operator("update organizations set issuer = $2 where slug = $1", &[slug, &theirs.issuer]).await?;
    let mut claims = platform.claims(slug, "gina", "admin");
    claims["iss"] = json!(theirs.issuer);
    let answer = call(&replica, &key.sign(&claims)?).await?;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(call(&replica, &acme.admin).await?.status, 200);

    let claims_of = |issuer: &str, organization: &str| {
        let mut claims = platform.claims(organization, "gina", "admin");
        claims["iss"] = json!(issuer);
        claims
    };
    let ours = acme.organization.slug.as_str();
    for (why, key, claims) in [
        ("their key, their issuer, our claim", &key, claims_of(&theirs.issuer, ours)),
        ("their key, our issuer, our claim", &key, claims_of(&platform.idp.issuer, ours)),
        ("our key, their issuer, their claim", &platform.key, claims_of(&theirs.issuer, slug)),
        ("our key, our issuer, their claim", &platform.key, claims_of(&platform.idp.issuer, slug)),
    ] {
        refused(&call(&replica, &key.sign(&claims)?).await?, why);
    }
    Ok(())
}
