//! A key endpoint that misbehaves: it sends the API elsewhere, never ends, is too large, or is no key endpoint at all.
//! Its own organization gets 503; nobody else notices, and no address is called but the one that the Organization names.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use agentapi_tests::serve::{Platform, Replica, Tenant};
use anyhow::Result;
use axum::Router;
use axum::body::Body;
use axum::response::Response;
use axum::routing::get;
use futures::StreamExt;
use tokio::net::TcpListener;

const SESSION_POD: &str = env!("CARGO_BIN_EXE_session-pod");
const SOON: Duration = Duration::from_secs(20);

fn answer(status: u16, headers: &[(&str, String)], body: impl Into<Body>) -> Response {
    let response = headers.iter().fold(Response::builder().status(status), |it, (name, value)| it.header(*name, value));
    response.body(body.into()).expect("a response")
}

/// One path per way to misbehave.
async fn provider(canary: SocketAddr) -> Result<SocketAddr> {
    let to = |url: String| move |status: u16| answer(status, &[("location", url)], "");
    let mut router = Router::new();
    for status in [301_u16, 302, 303, 307, 308] {
        let redirect = to(format!("http://{canary}/keys"));
        router = router.route(&format!("/to-{status}"), get(async move || redirect(status)));
    }
    for (name, url) in
        [("file", "file:///etc/passwd"), ("same", "/keys"), ("gopher", "gopher://127.0.0.1/"), ("loop", "/to-loop")]
    {
        let redirect = to(url.to_owned());
        router = router.route(&format!("/to-{name}"), get(async move || redirect(302)));
    }
    let endless = || {
        let chunks =
            futures::stream::repeat_with(|| Ok::<_, std::io::Error>(bytes::Bytes::from(vec![b' '; 64 * 1024])));
        Body::from_stream(chunks)
    };
    let drip = || {
        let chunks = futures::stream::repeat_with(|| Ok::<_, std::io::Error>(bytes::Bytes::from_static(b" ")));
        Body::from_stream(chunks.then(|chunk| async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            chunk
        }))
    };
    let gzip = [("content-encoding", "gzip".to_owned())];
    let json = [("content-type", "application/json".to_owned())];
    let many = format!(
        "{{\"keys\":[{}]}}",
        vec!["{\"kty\":\"EC\",\"crv\":\"P-256\",\"x\":\"AA\",\"y\":\"AA\"}"; 9000].join(",")
    );
    router = router
        .route("/keys", get(async || "{\"keys\":[]}"))
        .route("/large", get(async || "x".repeat(600 * 1024)))
        .route("/endless", get(async move || answer(200, &[], endless())))
        .route("/drip", get(async move || answer(200, &[], drip())))
        .route(
            "/hang",
            get(async || {
                tokio::time::sleep(Duration::from_secs(120)).await;
                ""
            }),
        )
        .route(
            "/packed",
            get(async move || {
                answer(200, &gzip, [[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3].as_slice(), &vec![0; 50_000]].concat())
            }),
        )
        .route("/deep", get(async move || answer(200, &json, "[".repeat(200_000))))
        .route("/many", get(async move || many.clone()))
        .route("/html", get(async || "<html>secret-of-the-page</html>"))
        .route("/empty", get(async || ""))
        .route("/bytes", get(async || vec![0xff_u8; 1000]))
        .route("/cookie", get(async || answer(500, &[("set-cookie", "a=b".repeat(2000))], "secret-of-the-page")));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(address)
}

struct World {
    platform: Platform,
    replica: Replica,
    victim: Tenant,
}

impl World {
    async fn new() -> Result<Self> {
        let platform = Platform::start(SESSION_POD).await?;
        let replica = platform.replica().await?;
        let victim = platform.tenant("acme").await?;
        Ok(Self { platform, replica, victim })
    }

    /// What an organization whose keys are at `address` is answered, and after how long.
    async fn ask(&self, name: &str, address: &str) -> Result<(u16, String, Duration)> {
        let tenant = self.platform.tenant(name).await?;
        let slug = tenant.organization.slug.as_str();
        self.platform.operator("update organizations set jwks_uri = $2 where slug = $1", &[slug, address]).await?;
        let began = Instant::now();
        let answer = self.replica.api(Some(&tenant.alice))?.get("/v1/workspaces").await?;
        Ok((answer.status.as_u16(), answer.body.to_string(), began.elapsed()))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_key_endpoint_cannot_send_the_api_elsewhere_or_keep_it_busy() -> Result<()> {
    let world = World::new().await?;
    let canary = TcpListener::bind("127.0.0.1:0").await?;
    let provider = provider(canary.local_addr()?).await?;
    let postgres = world.platform.db.admin_url();
    let postgres: url::Url = postgres.parse()?;
    let mut addresses: Vec<String> = [
        "to-301",
        "to-302",
        "to-303",
        "to-307",
        "to-308",
        "to-file",
        "to-same",
        "to-gopher",
        "to-loop",
        "large",
        "endless",
        "drip",
        "hang",
        "packed",
        "deep",
        "html",
        "empty",
        "bytes",
        "cookie",
        "nothing",
    ]
    .map(|path| format!("http://{provider}/{path}"))
    .into();
    addresses.extend([
        format!("http://127.0.0.1:{}/", postgres.port().unwrap_or(5432)),
        format!("https://{provider}/keys"),
        "file:///etc/passwd".to_owned(),
        "gopher://127.0.0.1:70/".to_owned(),
        "data:application/json,{\"keys\":[]}".to_owned(),
        "http://".to_owned(),
        "http://127.0.0.1:1/".to_owned(),
        "http://[::1".to_owned(),
        format!("http://{}/", "a".repeat(400)),
        "not a url".to_owned(),
    ]);
    let neighbour = async {
        let api = world.replica.api(Some(&world.victim.alice))?;
        let mut worst = Duration::ZERO;
        for _ in 0..60 {
            let began = Instant::now();
            api.get("/v1/workspaces").await?.expect(200)?;
            worst = worst.max(began.elapsed());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        anyhow::Ok(worst)
    };
    let attacks = futures::stream::iter(addresses.iter().enumerate())
        .map(|(n, address)| {
            let world = &world;
            async move { anyhow::Ok((address.clone(), world.ask(&format!("evil{n}"), address).await?)) }
        })
        .buffer_unordered(6)
        .collect::<Vec<_>>();
    let (worst, attacks) = tokio::join!(neighbour, attacks);
    for attack in attacks {
        let (address, (status, body, took)) = attack?;
        let wanted: &[u16] = if address.ends_with("/keys") && address.starts_with("http:") { &[401] } else { &[503] };
        assert!(wanted.contains(&status), "{address}: {status} {body}");
        assert!(took < SOON, "{address}: took {took:?}");
        for inner in ["secret-of-the-page", "root:", "127.0.0.1", "reqwest", "hyper", "error sending"] {
            assert!(!body.contains(inner), "{address}: tells {inner}: {body}");
        }
    }
    let worst = worst?;
    assert!(worst < Duration::from_secs(5), "another organization's request took {worst:?}");
    let connected = tokio::time::timeout(Duration::from_millis(300), canary.accept()).await;
    assert!(connected.is_err(), "a redirect was followed");
    // Many keys are fine, they are only of no use.
    let (status, body, took) = world.ask("many", &format!("http://{provider}/many")).await?;
    assert!(status == 401 && took < SOON, "{status} {body} {took:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_discovery_document_speaks_for_its_own_issuer_and_over_http_only() -> Result<()> {
    let world = World::new().await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let base = format!("http://{}", listener.local_addr()?);
    let documents = [
        ("other", "https://login.example.com".to_owned(), format!("{base}/keys")),
        ("file", format!("{base}/file"), "file:///etc/passwd".to_owned()),
        ("relative", format!("{base}/relative"), "/keys".to_owned()),
        ("data", format!("{base}/data"), "data:,x".to_owned()),
        ("list", format!("{base}/list"), "http://127.0.0.1:1/".to_owned()),
    ];
    let mut router = Router::new();
    for (name, issuer, keys) in documents.clone() {
        let document = serde_json::json!({"issuer": issuer, "jwks_uri": keys}).to_string();
        router =
            router.route(&format!("/{name}/.well-known/openid-configuration"), get(async move || document.clone()));
    }
    tokio::spawn(async move { axum::serve(listener, router).await });
    for (name, ..) in documents {
        let tenant = world.platform.tenant(name).await?;
        let (slug, issuer) = (tenant.organization.slug.as_str(), format!("{base}/{name}"));
        world
            .platform
            .operator("update organizations set issuer = $2, jwks_uri = null where slug = $1", &[slug, &issuer])
            .await?;
        let mut claims = world.platform.claims(slug, "alice", "user");
        claims["iss"] = serde_json::json!(issuer);
        let answer = world.replica.api(Some(&world.platform.key.sign(&claims)?))?.get("/v1/workspaces").await?;
        assert_eq!(
            (answer.status.as_u16(), answer.problem()),
            (503, "identity-provider-unavailable"),
            "{name}: {}",
            answer.body
        );
    }
    Ok(())
}
