//! Consents with the real npm oidc-provider, from `init` to a token that the gateway could use, to its end; and what is
//! kept of it where.

use agentapi_tests::attack::log::Log;
use agentapi_tests::oauth::World;
use agentapi_tests::oauth::agent::{Agent, Decision};
use agentapi_tests::oauth::oidc::Oidc;
use agentapi_tests::serve::Platform;
use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use std::collections::HashMap;
use url::Url;

const SESSION_POD: &str = env!("CARGO_BIN_EXE_session-pod");

/// The claims of a token of the provider's.
fn claims(token: &str) -> Result<Value> {
    let body = token.split('.').nth(1).context("no JWT")?;
    Ok(serde_json::from_slice(&URL_SAFE_NO_PAD.decode(body)?)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_agrees_and_the_gateway_has_a_token_that_nobody_else_sees() -> Result<()> {
    let log = Log::capture("info,agentapi_runtime=trace")?;
    let world = World::start(SESSION_POD).await?;
    let (acme, api) = (&world.acme, world.replica.api(Some(&world.acme.alice))?);
    let scopes = json!({"clientSecretRef": "client_secret_basic", "scopes": ["openid", "agentapi"]});
    let connection = world.connection(acme, "github", &scopes).await?;

    let page = world.begin(&api, connection).await?;
    let mut agent = Agent::new()?;
    let provider = agent.leave(&page).await?;
    let asked: HashMap<_, _> = provider.query_pairs().collect();
    assert_eq!((&*asked["response_type"], &*asked["code_challenge_method"]), ("code", "S256"));
    assert_eq!(&*asked["redirect_uri"], format!("{}/{connection}", world.callback()));
    assert_eq!((&*asked["resource"], &*asked["prompt"]), ("http://127.0.0.1:9/mcp", "consent"));
    assert_eq!(&*asked["scope"], "openid agentapi offline_access");
    let state = asked["state"].clone().into_owned();
    assert!(state.starts_with(&format!("{}.", acme.organization.slug)) && state.len() > 50, "{state}");

    let back = agent.decide(&provider, "acme-alice", Decision::Allow, &world.callback()).await?;
    let code = back.query_pairs().find(|(name, _)| name == "code").context("no code")?.1.into_owned();
    let connected = agent.back(&back).await?.expect(200)?;
    assert_eq!(connected, json!({"state": "Authorized", "connection": "github"}));

    // The gateway's way to it, in another process.
    let oauth = world.oauth()?;
    let target = world.target(&oauth, acme, connection).await?;
    let access = oauth.access_token(&target, Some(acme.organization.alice.id)).await?;
    let token = access.token.expose_secret().to_owned();
    let claims = claims(&token)?;
    assert_eq!((&claims["aud"], &claims["sub"]), (&json!("http://127.0.0.1:9/mcp"), &json!("acme-alice")));
    let bob = oauth.access_token(&target, Some(acme.organization.bob.id)).await;
    assert!(bob.is_err_and(|error| error.to_string().contains("nobody has given consent")));

    // A refresh by hand brings another one, and does not show it.
    let refreshed = api.post("/v1/oauth/refresh", &json!({ "connection": connection })).await?.expect(200)?;
    assert_eq!(refreshed["state"], "Authorized");
    assert!((3000..=3600).contains(&refreshed["expiresInSeconds"].as_u64().context("no seconds")?), "{refreshed}");
    assert_eq!(refreshed.as_object().map(serde_json::Map::len), Some(2));
    let second = oauth.access_token(&target, Some(acme.organization.alice.id)).await?;
    let second = second.token.expose_secret().to_owned();
    assert_ne!(second, token);
    // A server that refuses the old token is told the new one; one that refuses the new one costs an exchange.
    assert!(oauth.rejected(&target, Some(acme.organization.alice.id), &token).await);
    assert_eq!(world.oidc.refreshes(), 1);
    assert!(oauth.rejected(&target, Some(acme.organization.alice.id), &second).await);
    assert_eq!(world.oidc.refreshes(), 2);

    let revoked = api.post("/v1/oauth/revoke", &json!({ "connection": connection })).await?.expect(200)?;
    assert_eq!(revoked, json!({"state": "Revoked", "provider": "revoked"}));
    let gone = oauth.access_token(&target, Some(acme.organization.alice.id)).await;
    assert!(gone.is_err_and(|error| error.to_string().contains("revoked")));
    let again = api.post("/v1/oauth/refresh", &json!({ "connection": connection })).await?;
    assert_eq!((again.status.as_u16(), again.problem()), (409, "oauth-revoked"));
    let left = "select count(*)::text from mcp_oauth_tokens where access_ciphertext is not null or refresh_ciphertext is not null";
    assert_eq!(world.value(left).await?.as_deref(), Some("0"));

    let wanted = ["oauth.begin", "oauth.grant", "oauth.refresh", "oauth.refresh", "oauth.revoke"];
    assert_eq!(world.audited().await?, wanted);
    // Not in Postgres in the clear, not in the audit log, not in a log line.
    let dump = world.value("select string_agg(t::text, ' ') from audit_log t").await?.unwrap_or_default();
    let lines = log.text();
    let secret = Oidc::secret("client_secret_basic");
    for secret in [&token, &second, &code, &state, &secret] {
        assert!(!dump.contains(secret.as_str()), "the audit log has a secret");
        assert!(!lines.contains(secret.as_str()), "the log has a secret");
    }
    assert!(lines.contains("/v1/oauth/callback"), "this would see nothing");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_authenticate_as_they_can_and_a_second_consent_replaces_the_first() -> Result<()> {
    let world = World::start(SESSION_POD).await?;
    let api = world.replica.api(Some(&world.acme.alice))?;
    for client in ["client_secret_post", "none"] {
        let connection = world.connection(&world.acme, client, &json!({"clientSecretRef": client})).await?;
        for _ in 0..2 {
            world.consent(&api, connection, Decision::Allow).await?.expect(200)?;
        }
        api.post("/v1/oauth/refresh", &json!({ "connection": connection })).await?.expect(200)?;
        let rows = format!("select count(*)::text from mcp_oauth_tokens where connection_id = '{connection}'");
        assert_eq!(world.value(&rows).await?.as_deref(), Some("1"), "{client}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_admin_agrees_for_all_and_each_ones_own_consent_comes_first() -> Result<()> {
    let world = World::start(SESSION_POD).await?;
    let (acme, admin) = (&world.acme, world.replica.api(Some(&world.acme.admin))?);
    let connection = world.connection(acme, "wiki", &json!({"clientSecretRef": "none"})).await?;
    let shared = json!({"connection": connection, "shared": true});
    for path in ["init", "refresh", "revoke"] {
        let alice = world.replica.api(Some(&acme.alice))?.post(&format!("/v1/oauth/{path}"), &shared).await?;
        assert_eq!((alice.status.as_u16(), alice.problem()), (403, "forbidden"), "{path}");
    }
    let begun = admin.post("/v1/oauth/init", &shared).await?.expect(201)?;
    let mut agent = Agent::new()?;
    let provider = agent.leave(begun["authorizationUrl"].as_str().context("no address")?).await?;
    let back = agent.decide(&provider, "acme-admin", Decision::Allow, &world.callback()).await?;
    agent.back(&back).await?.expect(200)?;

    let oauth = world.oauth()?;
    let target = world.target(&oauth, acme, connection).await?;
    let subject =
        async |user| anyhow::Ok(claims(oauth.access_token(&target, user).await?.token.expose_secret())?["sub"].clone());
    assert_eq!(subject(Some(acme.organization.alice.id)).await?, "acme-admin");
    assert_eq!(subject(None).await?, "acme-admin");
    world.consent(&world.replica.api(Some(&acme.alice))?, connection, Decision::Allow).await?.expect(200)?;
    assert_eq!(subject(Some(acme.organization.alice.id)).await?, "acme-alice");
    assert_eq!(subject(Some(acme.organization.bob.id)).await?, "acme-admin");
    admin.post("/v1/oauth/revoke", &shared).await?.expect(200)?;
    assert!(oauth.access_token(&target, None).await.is_err());
    assert_eq!(subject(Some(acme.organization.alice.id)).await?, "acme-alice");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_provider_is_spoken_to_in_its_own_way() -> Result<()> {
    let world = World::start(SESSION_POD).await?;
    let api = world.replica.api(Some(&world.acme.alice))?;
    let issuer = world.oidc.issuer.clone();
    let address = async |provider: &str| -> Result<Url> {
        let oauth = json!({"provider": provider, "clientSecretRef": "none", "scopes": ["openid"]});
        let connection = world.connection(&world.acme, &provider.to_lowercase(), &oauth).await?;
        Agent::new()?.leave(&world.begin(&api, connection).await?).await
    };
    let parameters = |url: &Url| url.query_pairs().into_owned().collect::<HashMap<String, String>>();
    let github = address("Github").await?;
    assert!(github.as_str().starts_with(&format!("{issuer}/login/oauth/authorize?")), "{github}");
    assert!(!parameters(&github).contains_key("resource"));
    let google = parameters(&address("Google").await?);
    assert_eq!((google["access_type"].as_str(), google["scope"].as_str()), ("offline", "openid"));
    assert!(!google.contains_key("resource"));
    let azure = parameters(&address("Azure").await?);
    assert!(azure["scope"].ends_with("offline_access") && !azure.contains_key("resource"));
    let auth0 = parameters(&address("Auth0").await?);
    assert_eq!(auth0["audience"], "http://127.0.0.1:9/mcp");
    for all in [google, azure, auth0, parameters(&github)] {
        assert_eq!(all["code_challenge_method"], "S256", "PKCE always");
    }
    // One that nobody can name has one address for all connections; GitHub is not asked before the user goes there.
    let constant = json!({"provider": "Github", "issuer": null, "clientSecretRef": "none"});
    let own = world.connection(&world.acme, "own", &constant).await?;
    let own = Agent::new()?.leave(&world.begin(&api, own).await?).await?;
    assert_eq!((own.host_str(), &parameters(&own)["redirect_uri"]), (Some("github.com"), &world.callback()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_address_or_a_master_key_there_is_no_oauth_and_the_answer_says_what_to_do() -> Result<()> {
    let platform = Platform::start(SESSION_POD).await?;
    let acme = platform.tenant("acme").await?;
    let mut config = platform.config();
    config.public_url = None;
    let replica = platform.replica_with(config).await?;
    let api = replica.api(Some(&acme.alice))?;
    let body = json!({"connection": uuid::Uuid::new_v4()});
    let answers = [
        api.post("/v1/oauth/init", &body).await?,
        api.post("/v1/oauth/refresh", &body).await?,
        api.post("/v1/oauth/revoke", &body).await?,
        api.get("/v1/oauth/callback?state=acme.x&code=y").await?,
    ];
    for answer in answers {
        assert_eq!((answer.status.as_u16(), answer.problem()), (503, "oauth-not-configured"));
        assert!(
            answer.body["detail"].as_str().is_some_and(|text| text.contains("AGENTAPI_PUBLIC_URL")),
            "{}",
            answer.body
        );
    }
    // A master key that is none is refused at the start.
    let mut config = platform.config();
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("key"), b"too short")?;
    config.master_key_dir = Some(folder.path().to_owned());
    let refused = platform.replica_with(config).await.err().context("it started")?;
    assert!(refused.to_string().contains("9 bytes and needs exactly 32"), "{refused}");
    Ok(())
}
