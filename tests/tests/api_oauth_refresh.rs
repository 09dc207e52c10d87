//! Refreshing: in time, by one replica at a time, through a provider's bad hour, and never with a token that was taken
//! back. Time passes by moving the rows' times back, since Postgres's clock is the only one that counts.

use std::sync::Arc;
use std::time::Duration;

use agentapi_runtime::mcp::credentials::AuthState;
use agentapi_runtime::oauth::OAuth;
use agentapi_runtime::oauth::error::OauthError;
use agentapi_runtime::oauth::target::Target;
use agentapi_tests::cluster::eventually;
use agentapi_tests::oauth::World;
use agentapi_tests::oauth::agent::Decision;
use agentapi_tests::oauth::clock::Clock;
use anyhow::{Context, Result};
use secrecy::ExposeSecret;
use serde_json::json;
use uuid::Uuid;

const SESSION_POD: &str = env!("CARGO_BIN_EXE_session-pod");

struct Consented {
    world: World,
    connection: Uuid,
    oauth: Arc<OAuth>,
    target: Target,
    alice: Option<Uuid>,
}

impl Consented {
    async fn new() -> Result<Self> {
        let world = World::start(SESSION_POD).await?;
        let connection =
            world.connection(&world.acme, "github", &json!({"clientSecretRef": "client_secret_basic"})).await?;
        let api = world.replica.api(Some(&world.acme.alice))?;
        world.consent(&api, connection, Decision::Allow).await?.expect(200)?;
        let oauth = world.oauth()?;
        let target = world.target(&oauth, &world.acme, connection).await?;
        let alice = Some(world.acme.organization.alice.id);
        Ok(Self { world, connection, oauth, target, alice })
    }

    async fn token(&self) -> Result<String, OauthError> {
        Ok(self.oauth.access_token(&self.target, self.alice).await?.token.expose_secret().to_owned())
    }

    /// So much of the access token's life is left, and pauses are over.
    async fn left(&self, seconds: i32) -> Result<()> {
        let (user, connection) = (self.alice.context("no alice")?, self.connection);
        let moved = format!(
            "update mcp_oauth_tokens set expires_at = now() + interval '{seconds} seconds', retry_at = null
             where user_id = '{user}' and connection_id = '{connection}'"
        );
        assert_eq!(self.world.admin(&moved).await?, 1);
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_refreshed_before_it_ends_and_left_alone_until_then() -> Result<()> {
    let it = Consented::new().await?;
    let first = it.token().await?;
    it.left(120).await?;
    assert_eq!(it.token().await?, first);
    assert_eq!(it.world.oidc.refreshes(), 0);
    it.left(30).await?;
    let second = it.token().await?;
    assert_ne!(second, first);
    it.left(-5).await?;
    let third = it.token().await?;
    assert_ne!(third, second);
    // Each was made with the refresh token that came with the one before: the provider rotates them.
    assert_eq!(it.world.oidc.refreshes(), 2);
    assert_eq!(it.oauth.connection_state(&it.target).await?, AuthState::Authorized);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_that_refresh_at_once_are_at_the_provider_once() -> Result<()> {
    let it = Consented::new().await?;
    let other = it.world.another_replica().await?;
    let token = &it.world.acme.alice;
    let (one, two) = (it.world.replica.api(Some(token))?, other.api(Some(token))?);
    let body = json!({"connection": it.connection});
    // By hand on both replicas.
    for round in 1..=3 {
        let (a, b) = tokio::join!(one.post("/v1/oauth/refresh", &body), two.post("/v1/oauth/refresh", &body));
        a?.expect(200)?;
        b?.expect(200)?;
        let refreshes = it.world.oidc.refreshes();
        // A request that arrives after the other has ended asks for an exchange of its own.
        assert!((round..=2 * round).contains(&refreshes), "{refreshes} after {round} rounds");
    }
    // Ten calls of the gateway on two replicas, with a token that has ended.
    let before = it.world.oidc.refreshes();
    let elsewhere = it.world.oauth()?;
    it.left(-5).await?;
    let it = &it;
    let calls =
        (0..10).map(|call| {
            let oauth = if call % 2 == 0 { &it.oauth } else { &elsewhere };
            async move {
                oauth.access_token(&it.target, it.alice).await.map(|access| access.token.expose_secret().to_owned())
            }
        });
    let tokens = futures::future::try_join_all(calls).await?;
    assert!(tokens.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(it.world.oidc.refreshes(), before + 1, "exactly one exchange");
    other.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_may_be_down_for_an_hour() -> Result<()> {
    let it = Consented::new().await?;
    let first = it.token().await?;
    it.world.oidc.gate.set_open(false);
    // Early: what there is is good.
    it.left(30).await?;
    assert_eq!(it.token().await?, first);
    // A minute more than the first pause has: no machine is so slow that it is over before we have looked.
    let ended = "update mcp_oauth_tokens set expires_at = now() - interval '1 second', retry_at = retry_at + interval '1 minute'";
    it.world.admin(ended).await?;
    // Ended, and the provider has just failed: nobody asks it again at once.
    let Err(OauthError::ProviderDown { retry_after, .. }) = it.token().await else { anyhow::bail!("no error") };
    assert!(retry_after <= Duration::from_secs(65), "{retry_after:?}");
    let answer = it
        .world
        .replica
        .api(Some(&it.world.acme.alice))?
        .post("/v1/oauth/refresh", &json!({"connection": it.connection}))
        .await?;
    assert_eq!((answer.status.as_u16(), answer.problem()), (503, "oauth-provider-unavailable"));
    // An hour of attempts, each when the pause before is over.
    let mut paused = 0.0;
    for _ in 0..12 {
        it.left(-3600).await?;
        let Err(OauthError::ProviderDown { .. }) = it.token().await else { anyhow::bail!("no error") };
        let seconds = it.world.value("select extract(epoch from retry_at - now())::text from mcp_oauth_tokens").await?;
        paused = seconds.context("no pause")?.parse::<f64>()?;
    }
    assert!((60.0..=300.0).contains(&paused), "{paused}");
    let failures = it.world.value("select failures::text from mcp_oauth_tokens").await?;
    assert_eq!(failures.as_deref(), Some("13"));
    it.world.oidc.gate.set_open(true);
    // Still within the pause.
    assert!(matches!(it.token().await, Err(OauthError::ProviderDown { .. })));
    it.left(-3600).await?;
    assert_ne!(it.token().await?, first);
    assert_eq!(it.world.value("select failures::text from mcp_oauth_tokens").await?.as_deref(), Some("0"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_hour_without_the_provider_passes_by_the_clock() -> Result<()> {
    let it = Consented::new().await?;
    let clock = Clock::new(&it.world).await?;
    let oauth = it.world.oauth_by(&clock)?;
    let target = it.world.target(&oauth, &it.world.acme, it.connection).await?;
    let first = oauth.access_token(&target, it.alice).await?.token.expose_secret().to_owned();
    it.world.admin("update mcp_oauth_tokens set expires_at = now() + interval '10 minutes'").await?;
    it.world.oidc.gate.set_open(false);
    // Somebody asks every ten seconds.
    let (mut good, mut ended) = (0, 0);
    for _ in 0..360 {
        clock.forward(&it.world, 10).await?;
        match oauth.access_token(&target, it.alice).await {
            Ok(access) => {
                assert_eq!(access.token.expose_secret(), first);
                assert_eq!(ended, 0, "an ended token is given out");
                good += 1;
            }
            Err(OauthError::ProviderDown { retry_after, .. }) => {
                assert!(retry_after <= Duration::from_secs(300), "{retry_after:?}");
                ended += 1;
            }
            Err(error) => return Err(error.into()),
        }
    }
    // The token was good for its ten minutes, and the provider was asked less and less often.
    assert!((58..=60).contains(&good), "{good}");
    let attempts = it.world.value("select failures::text from mcp_oauth_tokens").await?.context("no grant")?;
    assert!((15..=45).contains(&attempts.parse::<u32>()?), "{attempts} attempts in an hour");
    it.world.oidc.gate.set_open(true);
    clock.forward(&it.world, 300).await?;
    assert_ne!(oauth.access_token(&target, it.alice).await?.token.expose_secret(), first);
    assert_eq!(it.world.value("select failures::text from mcp_oauth_tokens").await?.as_deref(), Some("0"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_that_the_provider_takes_back_is_revoked_here_too() -> Result<()> {
    let it = Consented::new().await?;
    let used =
        it.world.value("select encode(refresh_ciphertext, 'hex') from mcp_oauth_tokens").await?.context("none")?;
    it.left(-5).await?;
    it.token().await?;
    // A refresh token that was used up: the provider takes it for stolen and revokes the grant.
    let stolen = format!("update mcp_oauth_tokens set refresh_ciphertext = decode('{used}', 'hex')");
    it.world.admin(&stolen).await?;
    it.left(-5).await?;
    assert!(matches!(it.token().await, Err(OauthError::Revoked)));
    assert!(matches!(it.token().await, Err(OauthError::Revoked)));
    assert_eq!(it.oauth.connection_state(&it.target).await?, AuthState::Revoked);
    assert_eq!(it.world.audited().await?.last().map(String::as_str), Some("oauth.lose"));
    let kept = "select (access_ciphertext is null and refresh_ciphertext is null and revoked_at is not null)::text from mcp_oauth_tokens";
    assert_eq!(it.world.value(kept).await?.as_deref(), Some("true"));
    // A new consent makes it good.
    let api = it.world.replica.api(Some(&it.world.acme.alice))?;
    it.world.consent(&api, it.connection, Decision::Allow).await?.expect(200)?;
    it.token().await?;
    assert_eq!(it.oauth.connection_state(&it.target).await?, AuthState::Authorized);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_needs_no_provider() -> Result<()> {
    let it = Consented::new().await?;
    it.world.oidc.gate.set_open(false);
    let api = it.world.replica.api(Some(&it.world.acme.alice))?;
    let revoked = api.post("/v1/oauth/revoke", &json!({"connection": it.connection})).await?.expect(200)?;
    assert_eq!(revoked, json!({"state": "Revoked", "provider": "failed"}));
    assert!(matches!(it.token().await, Err(OauthError::Revoked)));
    // What does not open can't be told either.
    it.world.oidc.gate.set_open(true);
    it.world.consent(&api, it.connection, Decision::Allow).await?.expect(200)?;
    it.world.admin("update mcp_oauth_tokens set refresh_ciphertext = access_ciphertext").await?;
    let revoked = api.post("/v1/oauth/revoke", &json!({"connection": it.connection})).await?.expect(200)?;
    assert_eq!(revoked, json!({"state": "Revoked", "provider": "failed"}));
    assert!(matches!(it.token().await, Err(OauthError::Revoked)));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_comes_back_too_late_with_a_token_revokes_none_that_is_in_use() -> Result<()> {
    let it = Consented::new().await?;
    let told = || it.world.oidc.count(&json!({"event": "refresh-token-destroyed"}));
    let instead = async |body: &str| {
        let function = format!(
            "create or replace function instead() returns trigger language plpgsql as $$ begin {body} return new; end $$"
        );
        it.world.admin(&function).await
    };
    // The same tokens are stored already when they are to be: an earlier attempt, whose answer was lost, was committed.
    instead(
        "if pg_trigger_depth() = 1 and new.refreshes > old.refreshes then
           update mcp_oauth_tokens set access_ciphertext = new.access_ciphertext, expires_at = new.expires_at,
             refresh_ciphertext = new.refresh_ciphertext, refreshes = new.refreshes, lease = null, lease_until = null
           where id = new.id;
           return null;
         end if;",
    )
    .await?;
    it.world
        .admin("create trigger instead before update on mcp_oauth_tokens for each row execute function instead()")
        .await?;
    let first = it.token().await?;
    it.left(-5).await?;
    assert_ne!(it.token().await?, first);
    assert_eq!((it.world.oidc.refreshes(), told()), (1, 0));
    // What is stored is good.
    it.left(-5).await?;
    it.token().await?;
    assert_eq!((it.world.oidc.refreshes(), told()), (2, 0));
    // The user takes the consent back while somebody is at the provider: that token nobody can use.
    instead(
        "if new.lease is not null then
           new.access_ciphertext := null; new.refresh_ciphertext := null; new.revoked_at := now();
           new.lease := null; new.lease_until := null;
         end if;",
    )
    .await?;
    it.left(-5).await?;
    assert!(matches!(it.token().await, Err(OauthError::Revoked)));
    assert_eq!((it.world.oidc.refreshes(), told()), (3, 1));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_do_not_follow_a_connection_to_another_server_or_provider() -> Result<()> {
    let it = Consented::new().await?;
    for change in [
        "{transport,streamableHttp,url}', '\"https://evil.example/mcp\"",
        "{auth,oauth,issuer}', '\"https://evil.example\"",
    ] {
        it.world.admin(&format!("update mcp_connections set spec = jsonb_set(spec, '{change}')")).await?;
        let target = it.world.target(&it.oauth, &it.world.acme, it.connection).await?;
        let refused = it.oauth.access_token(&target, it.alice).await;
        assert!(matches!(refused, Err(OauthError::NeedsConsent)), "{change}");
        assert!(matches!(it.oauth.refresh_now(&target, it.alice).await, Err(OauthError::NeedsConsent)), "{change}");
        let back = format!(
            "update mcp_connections set spec = jsonb_set(jsonb_set(spec, '{{transport,streamableHttp,url}}',
             '\"http://127.0.0.1:9/mcp\"'), '{{auth,oauth,issuer}}', '\"{}\"')",
            it.world.oidc.issuer
        );
        it.world.admin(&back).await?;
        it.token().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_in_somebody_elses_row_opens_for_nobody() -> Result<()> {
    let it = Consented::new().await?;
    let (world, acme) = (&it.world, &it.world.acme);
    world.consent(&world.replica.api(Some(&acme.bob))?, it.connection, Decision::Allow).await?.expect(200)?;
    let other = world.connection(acme, "other", &json!({"clientSecretRef": "client_secret_basic"})).await?;
    world.consent(&world.replica.api(Some(&acme.alice))?, other, Decision::Allow).await?.expect(200)?;
    let (alice, bob) = (acme.organization.alice.id, acme.organization.bob.id);
    it.token().await?;
    // Whoever can write rows puts bob's tokens, or alice's own for another server, where alice's for this one were.
    for (user, connection) in [(bob, it.connection), (alice, other)] {
        for column in ["access_ciphertext", "refresh_ciphertext"] {
            world.admin("create table kept as select * from mcp_oauth_tokens").await?;
            let moved = format!(
                "update mcp_oauth_tokens t set {column} = o.{column} from kept o
                 where o.user_id = '{user}' and o.connection_id = '{connection}'
                   and t.user_id = '{alice}' and t.connection_id = '{}'",
                it.connection
            );
            assert_eq!(world.admin(&moved).await?, 1);
            let refreshes = world.oidc.refreshes();
            for left in [600, -5] {
                it.left(left).await?;
                assert!(matches!(it.token().await, Err(OauthError::Crypto(_))), "{column} of {user}, {connection}");
            }
            assert_eq!(world.oidc.refreshes(), refreshes, "the provider was asked");
            let back = format!(
                "update mcp_oauth_tokens t set {column} = o.{column}, expires_at = o.expires_at from kept o where o.id = t.id"
            );
            world.admin(&back).await?;
            world.admin("drop table kept").await?;
            it.token().await?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_version_of_the_data_key_takes_the_tokens_over() -> Result<()> {
    let it = Consented::new().await?;
    let token = it.token().await?;
    let organization = it.world.acme.organization.id;
    let versions = "select string_agg(distinct key_version::text, ' ') from mcp_oauth_tokens";
    assert_eq!(it.world.value(versions).await?.as_deref(), Some("1"));
    let master = agentapi_operator::envelope::MasterKey::new(&agentapi_tests::pg::MASTER_KEY)?;
    let wrapped = hex::encode(master.wrap_new(organization, 2)?);
    it.world.admin("update tenant_keys set state = 'previous', retired_at = now()").await?;
    let insert = format!(
        "insert into tenant_keys (org_id, version, wrapped, master_key_id) values ('{organization}', 2, decode('{wrapped}', 'hex'), '{}')",
        master.id()
    );
    it.world.admin(&insert).await?;
    // Tokens of a restored database that do not open come before the others, and are more than one batch.
    let broken = format!(
        "with new as (
           insert into mcp_connections (org_id, id, name, origin, transport, spec, generation)
           select '{organization}', gen_random_uuid(), 'restored-' || n, 'api', 'sse', '{{}}', 1
           from generate_series(1, 60) n returning id)
         insert into mcp_oauth_tokens (org_id, id, connection_id, access_ciphertext, key_id, key_version)
         select '{organization}', lpad(to_hex(row_number() over ()), 32, '0')::uuid, id, decode(repeat('00', 32), 'hex'), 'k', 1
         from new"
    );
    assert_eq!(it.world.admin(&broken).await?, 60);
    // Another process, which remembers nothing: the old version still opens; then everything is sealed anew.
    let oauth = it.world.oauth()?;
    let same = oauth.access_token(&it.target, it.alice).await?.token;
    assert_eq!(same.expose_secret(), token);
    oauth.tidy(&it.target.organization).await?;
    let left = "select count(*)::text from mcp_oauth_tokens where key_version = 1";
    assert_eq!(it.world.value(left).await?.as_deref(), Some("60"));
    it.world.admin("delete from mcp_connections where name like 'restored-%'").await?;
    assert_eq!(it.world.value(versions).await?.as_deref(), Some("2"));
    assert_eq!(it.world.audited().await?.last().map(String::as_str), Some("oauth.reseal"));
    it.world.admin("delete from tenant_keys where version = 1").await?;
    assert_eq!(it.world.oauth()?.access_token(&it.target, it.alice).await?.token.expose_secret(), token);
    // And the process that remembers version 1 alone learns of the other by itself.
    assert_eq!(it.token().await?, token);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn consents_that_nobody_finished_are_forgotten() -> Result<()> {
    let it = Consented::new().await?;
    let api = it.world.replica.api(Some(&it.world.acme.alice))?;
    it.world.begin(&api, it.connection).await?;
    it.world.begin(&api, it.connection).await?;
    let old = "update oauth_states set created_at = created_at - interval '1 hour', expires_at = expires_at - interval '1 hour'
               where state_hash = (select state_hash from oauth_states limit 1)";
    assert_eq!(it.world.admin(old).await?, 1);
    eventually("the old one is gone", Duration::from_secs(60), async || {
        it.oauth.tidy(&it.target.organization).await?;
        let left = it.world.value("select count(*)::text from oauth_states").await?;
        Ok(if left.as_deref() == Some("1") { Ok(()) } else { Err(format!("{left:?}")) })
    })
    .await
}
