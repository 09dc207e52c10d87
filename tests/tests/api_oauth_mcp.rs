//! An MCP server that names its own provider (RFC 9728), at which we register ourselves (RFC 7591): nobody has
//! configured anything but the server's address.

use agentapi_tests::cluster::eventually;
use agentapi_tests::oauth::World;
use agentapi_tests::oauth::agent::{Agent, Decision};
use agentapi_tests::serve::steps::SOON;
use anyhow::{Context, Result};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

const SESSION_POD: &str = env!("CARGO_BIN_EXE_session-pod");

/// What the server says about itself.
#[derive(Clone)]
struct Server {
    base: String,
    metadata: Value,
    /// Whether its 401 says where the metadata is.
    points: bool,
}

async fn serve(State(server): State<Server>, uri: Uri, headers: HeaderMap) -> Response {
    if uri.path() == "/about" || (!server.points && uri.path() == "/.well-known/oauth-protected-resource/mcp") {
        return Json(server.metadata).into_response();
    }
    if uri.path() != "/mcp" || headers.contains_key("authorization") {
        return StatusCode::NOT_FOUND.into_response();
    }
    let challenge = if server.points {
        format!(r#"Bearer realm="mcp", resource_metadata="{}/about""#, server.base)
    } else {
        "Bearer".to_owned()
    };
    (StatusCode::UNAUTHORIZED, [("www-authenticate", challenge)]).into_response()
}

/// Gives back its address; `metadata` gets it too.
async fn start(points: bool, metadata: impl FnOnce(&str) -> Value) -> Result<String> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let base = format!("http://{}", listener.local_addr()?);
    let server = Server { metadata: metadata(&base), base: base.clone(), points };
    let router = Router::new().fallback(serve).with_state(server);
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(format!("{base}/mcp"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_says_who_protects_it_and_we_register_there() -> Result<()> {
    let world = World::start(SESSION_POD).await?;
    let (acme, api) = (&world.acme, world.replica.api(Some(&world.acme.alice))?);
    let registrations = || world.oidc.count(&json!({"event": "registration"}));
    for (number, points) in [(1, true), (2, false)] {
        let issuer = world.oidc.issuer.clone();
        let url = start(points, |base| {
            let scopes = json!(["agentapi", "nul\0", "x".repeat(300), ""]);
            json!({"resource": format!("{base}/mcp"), "authorization_servers": [issuer], "scopes_supported": scopes})
        })
        .await?;
        let oauth = json!({"url": url, "issuer": null, "dynamicRegistration": true});
        let connection = world.connection(acme, &format!("own-{number}"), &oauth).await?;
        world.consent(&api, connection, Decision::Allow).await?.expect(200)?;
        assert_eq!(registrations(), number);
        // The same client again, for another user and for a refresh.
        world.consent(&world.replica.api(Some(&acme.bob))?, connection, Decision::Allow).await?.expect(200)?;
        api.post("/v1/oauth/refresh", &json!({"connection": connection})).await?.expect(200)?;
        assert_eq!(registrations(), number);

        let room = world.oauth()?;
        let target = world.target(&room, acme, connection).await?;
        let token = room.access_token(&target, Some(acme.organization.alice.id)).await?.token;
        let body = URL_SAFE_NO_PAD.decode(token.expose_secret().split('.').nth(1).context("no JWT")?)?;
        let claims: Value = serde_json::from_slice(&body)?;
        assert_eq!((&claims["aud"], &claims["scope"]), (&json!(url), &json!("agentapi")), "RFC 8707");
        api.post("/v1/oauth/revoke", &json!({"connection": connection})).await?.expect(200)?;
    }
    // What was registered is sealed.
    let kept = world.value("select string_agg(encode(client_ciphertext, 'escape'), '') from oauth_clients").await?;
    assert!(!kept.context("nothing is kept")?.contains("client_secret"));
    let registered = "select count(*)::text from audit_log where action = 'oauth.register'";
    assert_eq!(world.value(registered).await?.as_deref(), Some("2"));

    // A client whose secret has ended, and one that was registered for another address of ours, are registered anew.
    let connection = world.value("select connection_id::text from oauth_clients limit 1").await?.context("none")?;
    for (number, change) in
        [(3, "expires_at = now() - interval '1 day'"), (4, "redirect_uri = 'https://elsewhere.example'")]
    {
        world.admin(&format!("update oauth_clients set {change} where connection_id = '{connection}'")).await?;
        world.begin(&api, connection.parse()?).await?;
        assert_eq!(registrations(), number, "{change}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_first_consents_at_once_are_for_one_client() -> Result<()> {
    let world = World::start(SESSION_POD).await?;
    let issuer = world.oidc.issuer.clone();
    let about = |base: &str| json!({"resource": format!("{base}/mcp"), "authorization_servers": [issuer]});
    let oauth = json!({"url": start(true, about).await?, "issuer": null, "dynamicRegistration": true});
    let connection = world.connection(&world.acme, "own", &oauth).await?;
    let (alice, bob) = (world.replica.api(Some(&world.acme.alice))?, world.replica.api(Some(&world.acme.bob))?);

    // Readers go on, so both find no client; and nobody can keep one before both have registered.
    let mut admin = PgConnection::connect(&world.platform.db.admin_url()).await?;
    let mut held = admin.begin().await?;
    sqlx::query("lock table oauth_clients in share mode").execute(&mut *held).await?;
    let registered = async {
        let registrations = eventually("both have registered", SOON, async || {
            let count = world.oidc.count(&json!({"event": "registration"}));
            Ok(if count == 2 { Ok(()) } else { Err(format!("{count} registrations")) })
        });
        registrations.await?;
        anyhow::Ok(held.commit().await?)
    };
    let (first, second, ()) =
        tokio::try_join!(world.begin(&alice, connection), world.begin(&bob, connection), registered)?;

    let mut clients = Vec::new();
    for page in [first, second] {
        let mut agent = Agent::new()?;
        let provider = agent.leave(&page).await?;
        clients.extend(provider.query_pairs().find(|(name, _)| name == "client_id").map(|(_, id)| id.into_owned()));
        let back = agent.decide(&provider, "acme-alice", Decision::Allow, &world.callback()).await?;
        agent.back(&back).await?.expect(200)?;
    }
    assert_eq!((clients.len(), &clients[0]), (2, &clients[1]));
    for api in [alice, bob] {
        api.post("/v1/oauth/refresh", &json!({"connection": connection})).await?.expect(200)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_speaks_for_another_or_says_nothing_is_refused() -> Result<()> {
    let world = World::start(SESSION_POD).await?;
    let api = world.replica.api(Some(&world.acme.alice))?;
    let issuer = world.oidc.issuer.clone();
    let says = |metadata: Value| start(true, move |_| metadata);
    let cases = [
        ("another", says(json!({"resource": "https://other.example/mcp", "authorization_servers": [issuer]})).await?),
        ("nobody", start(true, |base| json!({"resource": format!("{base}/mcp")})).await?),
        (
            "inside",
            start(true, |base| json!({"resource": base, "authorization_servers": ["http://169.254.169.254"]})).await?,
        ),
        ("liar", start(true, |base| json!({"resource": base, "authorization_servers": [base]})).await?),
        ("nothing", start(true, |_| json!([])).await?),
        (
            "long",
            start(
                true,
                |base| json!({"resource": format!("{base}?{}", "x".repeat(3000)), "authorization_servers": [base]}),
            )
            .await?,
        ),
        ("nul", start(true, |base| json!({"resource": format!("{base}/\0"), "authorization_servers": [base]})).await?),
    ];
    for (name, url) in cases {
        let oauth = json!({"url": url, "issuer": null, "dynamicRegistration": true});
        let connection = world.connection(&world.acme, name, &oauth).await?;
        let answer = api.post("/v1/oauth/init", &json!({"connection": connection})).await?;
        assert_eq!(
            (answer.status.as_u16(), answer.problem()),
            (502, "oauth-provider-refused"),
            "{name}: {}",
            answer.body
        );
    }
    assert_eq!(world.oidc.count(&json!({"event": "registration"})), 0);
    assert_eq!(world.value("select count(*)::text from oauth_states").await?.as_deref(), Some("0"));
    Ok(())
}
