//! Connections to MCP servers through the API: who may make them, what is refused, what is shown, and whose they are.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use agentapi_tests::api::Api;
use agentapi_tests::mcp::fastmcp::Fastmcp;
use agentapi_tests::mcp::raw::{Mood, Raw};
use agentapi_tests::mcp::setup::{self, configuration, connection, platform};
use agentapi_tests::serve::{Platform, Replica, Tenant};
use anyhow::{Context, Result};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

const SESSION_POD: &str = env!("CARGO_BIN_EXE_session-pod");
const ALL: &str = "/v1/mcp/configurations";

async fn put(api: &Api, id: &str, body: &Value) -> Result<agentapi_tests::api::Answer> {
    api.send(api.request(Method::PUT, &format!("{ALL}/{id}")).json(body)).await
}

async fn count(platform: &Platform, query: &'static str) -> Result<i64> {
    let mut admin = PgConnection::connect(&platform.db.admin_url()).await?;
    Ok(sqlx::query_scalar(query).fetch_one(&mut admin).await?)
}

async fn audited(replica: &Replica, tenant: &Tenant, action: &str) -> Result<Vec<Value>> {
    let page = replica.api(Some(&tenant.admin))?.get(&format!("/v1/audit?action={action}")).await?.expect(200)?;
    Ok(page["entries"].as_array().context("no entries")?.clone())
}

/// A row as the operator writes it.
async fn resource(platform: &Platform, tenant: &Tenant, name: &str, url: &str) -> Result<String> {
    let id = Uuid::new_v4().to_string();
    let spec = json!({"organizationRef": {"name": "x"}, "transport": {"streamableHttp": {"url": url}}}).to_string();
    let statement = "insert into mcp_connections (org_id, id, name, origin, k8s_namespace, transport, spec, generation)
                     values ($1::uuid, $2::uuid, $3, 'crd', 'team-acme', 'streamableHttp', $4::jsonb, 1)";
    platform.operator(statement, &[&tenant.organization.id.to_string(), &id, name, &spec]).await?;
    Ok(id)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_admin_makes_changes_and_removes_a_configuration() -> Result<()> {
    let (_platform, replica, acme) = platform(SESSION_POD).await?;
    let (admin, alice) = (replica.api(Some(&acme.admin))?, replica.api(Some(&acme.alice))?);
    let body = json!({
        "name": "search", "workspace": "main", "transport": {"streamableHttp": {"url": "https://mcp.example.com/mcp"}},
        "auth": {"bearer": {"secretRef": {"name": "search", "key": "token"}}}, "tools": {"deny": ["drop"], "pin": true},
    });
    let made = admin.post(ALL, &body).await?;
    let made = made.expect(201)?;
    let id = made["id"].as_str().context("no id")?;
    assert_eq!(made["origin"], "api");
    assert_eq!((&made["generation"], &made["workspace"]), (&json!(1), &json!("main")));
    assert_eq!(made["auth"], body["auth"]);
    assert_eq!(made["timeouts"], json!({"connectSeconds": 30, "toolSeconds": 60}));
    // Everybody of the organization sees it.
    let path = format!("{ALL}/{id}");
    assert_eq!(alice.get(&path).await?.expect(200)?["name"], "search");
    let changed = configuration("find", "https://mcp.example.com/v2");
    let changed = put(&admin, id, &changed).await?.expect(200)?;
    assert_eq!((&changed["name"], &changed["generation"]), (&json!("find"), &json!(2)));
    assert_eq!((&changed["workspace"], &changed["auth"]), (&Value::Null, &json!({})), "all of it is replaced");
    assert_eq!(admin.delete(&path).await?.status, 204);
    assert_eq!(admin.get(&path).await?.problem(), "mcp-configuration-not-found");
    for action in ["mcpconnection.create", "mcpconnection.update", "mcpconnection.delete"] {
        let rows = audited(&replica, &acme, action).await?;
        assert_eq!(rows.len(), 1, "{action}");
        assert_eq!(rows[0]["targetId"], id, "{action}: {}", rows[0]);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_right_is_refused_by_its_field_and_nothing_is_written() -> Result<()> {
    let (platform, replica, acme) = platform(SESSION_POD).await?;
    let admin = replica.api(Some(&acme.admin))?;
    let good = json!({
        "name": "search", "transport": {"streamableHttp": {"url": "https://mcp.example.com/mcp"}}, "auth": {}, "tools": {},
        "breaker": {}, "timeouts": {},
    });
    let secret = |name: &str, key: &str| json!({"bearer": {"secretRef": {"name": name, "key": key}}});
    let url = |url: &str| json!({"streamableHttp": {"url": url}});
    let long = "a".repeat(300);
    for (field, pointer, value) in [
        ("name", "/name", json!("")),
        ("name", "/name", json!("Search")),
        ("name", "/name", json!("-search")),
        ("name", "/name", json!("a".repeat(41))),
        ("workspace", "/workspace", json!("nowhere")),
        ("transport", "/transport", json!({})),
        (
            "transport",
            "/transport",
            json!({"sse": {"url": "https://a.example"}, "streamableHttp": {"url": "https://a.example"}}),
        ),
        ("transport.stdio", "/transport", json!({"stdio": {"image": "x", "command": ["x"]}})),
        ("transport.streamableHttp.url", "/transport", url("mcp.example.com")),
        ("transport.streamableHttp.url", "/transport", url("http://mcp.example.com@10.0.0.1/")),
        ("transport.streamableHttp.url", "/transport", url("ftp://mcp.example.com/")),
        ("transport.streamableHttp.url", "/transport", url("https://10.0.0.1/mcp")),
        ("transport.streamableHttp.url", "/transport", url("https://169.254.169.254/latest/meta-data/")),
        ("transport.streamableHttp.url", "/transport", url("https://[::ffff:10.0.0.1]/")),
        ("auth", "/auth", json!({"none": {}, "bearer": {"secretRef": {"name": "a", "key": "b"}}})),
        ("auth.bearer.secretRef.name", "/auth", secret("agentapi-data-key", "key")),
        ("auth.bearer.secretRef.name", "/auth", secret("s-1-session", "token")),
        ("auth.bearer.secretRef.name", "/auth", secret("../other", "token")),
        ("auth.bearer.secretRef.key", "/auth", secret("search", "a/b")),
        ("auth.apiKey.header", "/auth", json!({"apiKey": {"header": "Host", "secretRef": {"name": "a", "key": "b"}}})),
        (
            "auth.apiKey.header",
            "/auth",
            json!({"apiKey": {"header": "X\r\nY", "secretRef": {"name": "a", "key": "b"}}}),
        ),
        ("auth.oauth.issuer", "/auth", json!({"oauth": {"provider": "Oidc", "clientSecretRef": "client"}})),
        (
            "auth.oauth.issuer",
            "/auth",
            json!({"oauth": {"provider": "Oidc", "issuer": "https://10.0.0.1", "dynamicRegistration": true}}),
        ),
        ("auth.oauth.clientSecretRef", "/auth", json!({"oauth": {"provider": "Github"}})),
        ("tools.allow", "/tools", json!({"allow": [""]})),
        ("tools.deny", "/tools", json!({"deny": [long]})),
        ("tools.allow", "/tools", json!({"allow": vec!["a"; 257]})),
        ("breaker.failures", "/breaker", json!({"failures": 0})),
        ("breaker.openSeconds", "/breaker", json!({"openSeconds": 3601})),
        ("timeouts.toolSeconds", "/timeouts", json!({"toolSeconds": -1})),
        ("token", "/token", json!("secret")),
        ("password", "/auth/password", json!("secret")),
    ] {
        let mut body = good.clone();
        let (parent, name) = pointer.rsplit_once('/').context("no pointer")?;
        body.pointer_mut(parent).context("no parent")?[name] = value;
        let answer = admin.post(ALL, &body).await?;
        assert_eq!((answer.status.as_u16(), answer.problem()), (422, "invalid-field"), "{body}: {}", answer.body);
        assert_eq!(answer.body["field"], field, "{body}: {}", answer.body);
    }
    assert_eq!(count(&platform, "select count(*) from mcp_connections").await?, 0);
    assert_eq!(audited(&replica, &acme, "mcpconnection.create").await?.len(), 0);
    // A name is taken once.
    admin.post(ALL, &good).await?.expect(201)?;
    let again = admin.post(ALL, &good).await?;
    assert_eq!((again.status.as_u16(), again.problem()), (409, "mcp-name-taken"), "{}", again.body);
    let other = connection(&admin, &configuration("other", "https://mcp.example.com/")).await?;
    let renamed = put(&admin, &other, &good).await?;
    assert_eq!((renamed.status.as_u16(), renamed.problem()), (409, "mcp-name-taken"), "{}", renamed.body);
    assert_eq!(count(&platform, "select count(*) from mcp_connections").await?, 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn users_read_and_only_admins_write() -> Result<()> {
    let (platform, replica, acme) = platform(SESSION_POD).await?;
    let (admin, alice) = (replica.api(Some(&acme.admin))?, replica.api(Some(&acme.alice))?);
    let body = configuration("search", "https://mcp.example.com/mcp");
    let id = connection(&admin, &body).await?;
    let path = format!("{ALL}/{id}");
    let test = json!({"connection": id});
    for answer in [
        alice.post(ALL, &body).await?,
        put(&alice, &id, &body).await?,
        alice.delete(&path).await?,
        alice.post("/v1/mcp/test", &test).await?,
    ] {
        assert_eq!((answer.status.as_u16(), answer.problem()), (403, "forbidden"), "{}", answer.body);
    }
    assert_eq!(audited(&replica, &acme, "access.refuse").await?.len(), 4);
    assert_eq!(alice.get(&path).await?.expect(200)?["generation"], 1);
    assert_eq!(count(&platform, "select count(*) from mcp_connections").await?, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_of_another_organization_sees_or_uses_a_connection() -> Result<()> {
    let (platform, replica, acme) = platform(SESSION_POD).await?;
    let server = Raw::start().await?;
    let globex = platform.tenant("globex").await?;
    let owner = replica.api(Some(&acme.admin))?;
    let id = connection(&owner, &configuration("search", &server.url())).await?;
    let client = agentapi_tests::mcp::setup::connect(&owner, &id).await?;
    let before = server.seen().len();
    for token in [&globex.admin, &globex.alice] {
        let api = replica.api(Some(token))?;
        let gateway = format!("/v1/mcp/gateway/{id}");
        let message = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"});
        for answer in [
            api.get(&format!("{ALL}/{id}")).await?,
            put(&api, &id, &configuration("search", "https://mcp.example.com/")).await?,
            api.delete(&format!("{ALL}/{id}")).await?,
            api.post("/v1/mcp/connect", &json!({"connection": id})).await?,
            api.post(&gateway, &message).await?,
            api.get(&gateway).await?,
            api.delete(&gateway).await?,
        ] {
            assert_eq!(
                (answer.status.as_u16(), answer.problem()),
                (404, "mcp-configuration-not-found"),
                "{}",
                answer.body
            );
        }
        for answer in [
            api.get(&format!("/v1/mcp/client/{client}")).await?,
            api.delete(&format!("/v1/mcp/client/{client}")).await?,
            api.post("/v1/mcp/disconnect", &json!({"client": client})).await?,
            api.post("/v1/mcp/list_tools", &json!({"client": client})).await?,
            api.post("/v1/mcp/call_tool", &json!({"client": client, "name": "echo"})).await?,
            api.post("/v1/mcp/list_resources", &json!({"client": client})).await?,
            api.post("/v1/mcp/read_resource", &json!({"client": client, "uri": "a:b"})).await?,
            api.post("/v1/mcp/list_prompts", &json!({"client": client})).await?,
            api.post("/v1/mcp/get_prompt", &json!({"client": client, "name": "x"})).await?,
        ] {
            assert_eq!((answer.status.as_u16(), answer.problem()), (404, "mcp-client-not-found"), "{}", answer.body);
        }
        assert_eq!(api.get(ALL).await?.expect(200)?["configurations"], json!([]));
        assert_eq!(api.get("/v1/mcp/clients").await?.expect(200)?["clients"], json!([]));
    }
    let admin = replica.api(Some(&globex.admin))?;
    let tested = admin.post("/v1/mcp/test", &json!({"connection": id})).await?;
    assert_eq!((tested.status.as_u16(), tested.problem()), (404, "mcp-configuration-not-found"));
    // A colleague has no use of another one's client either, not even an admin.
    let bob = replica.api(Some(&acme.bob))?;
    assert_eq!(bob.post("/v1/mcp/list_tools", &json!({"client": client})).await?.status, 404);
    assert_eq!(server.seen().len(), before, "the server was called for strangers");
    owner.get(&format!("{ALL}/{id}")).await?.expect(200)?;
    owner.get(&format!("/v1/mcp/client/{client}")).await?.expect(200)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_resource_says_is_changed_with_kubectl_only() -> Result<()> {
    let (platform, replica, acme) = platform(SESSION_POD).await?;
    let admin = replica.api(Some(&acme.admin))?;
    let id = resource(&platform, &acme, "search", "https://mcp.example.com/mcp").await?;
    let shown = admin.get(&format!("{ALL}/{id}")).await?.expect(200)?;
    assert_eq!((&shown["origin"], &shown["namespace"]), (&json!("crd"), &json!("team-acme")));
    let body = configuration("search", "https://evil.example/");
    for answer in [put(&admin, &id, &body).await?, admin.delete(&format!("{ALL}/{id}")).await?] {
        assert_eq!((answer.status.as_u16(), answer.problem()), (409, "managed-by-kubernetes"), "{}", answer.body);
        assert_eq!((&answer.body["namespace"], &answer.body["name"]), (&json!("team-acme"), &json!("search")));
        assert!(answer.body["detail"].as_str().unwrap().contains("kubectl --namespace team-acme edit"));
    }
    assert_eq!(admin.get(&format!("{ALL}/{id}")).await?.expect(200)?["generation"], 1);
    // The API's own may have the same name: ids tell them apart.
    let own = connection(&admin, &configuration("search", "https://mcp.example.com/")).await?;
    let listed = |query: &str| {
        let (admin, path) = (admin.clone(), format!("{ALL}{query}"));
        async move {
            let page = admin.get(&path).await?.expect(200)?;
            let all = page["configurations"].as_array().context("no list")?;
            anyhow::Ok(all.iter().filter_map(|it| it["id"].as_str().map(str::to_owned)).collect::<Vec<_>>())
        }
    };
    assert_eq!(listed("?name=search").await?.len(), 2);
    assert_eq!(listed("?origin=crd").await?, std::slice::from_ref(&id));
    assert_eq!(listed("?origin=api").await?, [own]);
    assert_eq!(listed("?transport=sse").await?.len(), 0);
    let first = admin.get(&format!("{ALL}?limit=1")).await?.expect(200)?;
    let cursor = first["nextCursor"].as_str().context("no cursor")?;
    assert_eq!(listed(&format!("?limit=1&cursor={cursor}")).await?.len(), 1);
    for bad in ["?limit=0", "?limit=201", "?cursor=x", "?origin=x", "?unknown=1"] {
        assert_eq!(admin.get(&format!("{ALL}{bad}")).await?.status, 400, "{bad}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_test_says_whether_a_real_server_works_and_why_not() -> Result<()> {
    let (platform, replica, acme) = platform(SESSION_POD).await?;
    let admin = replica.api(Some(&acme.admin))?;
    let test = async |configuration: Value| {
        admin.post("/v1/mcp/test", &json!({"configuration": configuration})).await?.expect(200)
    };
    let (new, old) = (Fastmcp::start("http", Some("s3cret")).await?, Fastmcp::start("sse", None).await?);
    let mut body = configuration("fixture", &new.url());
    let refused = test(body.clone()).await?;
    assert_eq!((&refused["ok"], &refused["error"]), (&json!(false), &json!("mcp-unauthorized")), "{refused}");
    body["auth"] = json!({"bearer": {"secretRef": {"name": "fixture", "key": "token"}}});
    let missing = test(body.clone()).await?;
    assert_eq!(missing["error"], "mcp-no-credentials", "{missing}");
    assert!(missing["detail"].as_str().unwrap().contains("fixture"), "{missing}");
    setup::secret(&platform, &acme, "fixture", "s3cret", &new.url())?;
    let works = test(body).await?;
    assert_eq!((&works["ok"], &works["protocolVersion"]), (&json!(true), &json!("2026-07-28")), "{works}");
    assert_eq!(works["server"]["name"], "fixture");
    assert!(works["tools"].as_array().unwrap().iter().any(|tool| tool["name"] == "echo"), "{works}");

    let sse = json!({"name": "old", "transport": {"sse": {"url": old.url()}}});
    let works = test(sse).await?;
    assert_eq!(works["ok"], true, "{works}");
    let raw = Raw::start().await?;
    let works = test(configuration("raw", &raw.url())).await?;
    assert_eq!((&works["ok"], &works["protocolVersion"]), (&json!(true), &json!("2025-06-18")), "{works}");
    for (mood, kind) in
        [(Mood::Status(500), "mcp-server-failed"), (Mood::Redirects("http://127.0.0.1:1/".into()), "mcp-server-failed")]
    {
        raw.set_mood(mood.clone());
        let failed = test(configuration("raw", &raw.url())).await?;
        assert_eq!((&failed["ok"], &failed["error"]), (&json!(false), &json!(kind)), "{mood:?}: {failed}");
    }
    let gone = test(configuration("gone", "http://127.0.0.1:1/mcp")).await?;
    assert_eq!(gone["error"], "mcp-unreachable", "{gone}");
    assert_eq!(count(&platform, "select count(*) from mcp_connections").await?, 0, "nothing was kept");
    let shown = json!(audited(&replica, &acme, "mcpconnection.test").await?).to_string();
    assert!(!shown.contains("s3cret"), "{shown}");
    let both = admin.post("/v1/mcp/test", &json!({})).await?;
    assert_eq!((both.status.as_u16(), both.problem()), (422, "invalid-field"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_opens_nothing_calls_nothing_inside() -> Result<()> {
    let platform = Platform::start(SESSION_POD).await?;
    let replica = platform.replica().await?;
    let acme = platform.tenant("acme").await?;
    let (admin, server) = (replica.api(Some(&acme.admin))?, Raw::start().await?);
    let body = |url: &str| json!({"configuration": configuration("inside", url)});
    let port = server.address.port();
    for host in ["127.0.0.1", "2130706433", "0177.0.0.1", "[::ffff:127.0.0.1]", "0"] {
        let answer = admin.post("/v1/mcp/test", &body(&format!("https://{host}:{port}/mcp"))).await?;
        assert_eq!((answer.status.as_u16(), answer.problem()), (422, "invalid-field"), "{host}: {}", answer.body);
        assert!(answer.body["detail"].as_str().unwrap().contains("is not called"), "{}", answer.body);
    }
    // A name says nothing until it is resolved.
    let named = admin.post("/v1/mcp/test", &body(&format!("https://localhost:{port}/mcp"))).await?.expect(200)?;
    assert_eq!(named["error"], "mcp-address-refused", "{named}");
    // What a resource names is judged like what the API is told.
    let id = resource(&platform, &acme, "inside", &server.url()).await?;
    let refused = admin.post("/v1/mcp/connect", &json!({"connection": id})).await?;
    assert_eq!((refused.status.as_u16(), refused.problem()), (422, "mcp-address-refused"), "{}", refused.body);
    assert_eq!(server.seen().len(), 0, "the server was called");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_secret_of_one_connection_is_not_sent_to_the_server_of_another() -> Result<()> {
    let (platform, replica, acme) = platform(SESSION_POD).await?;
    let admin = replica.api(Some(&acme.admin))?;
    let (own, evil) = (Raw::start().await?, Raw::start().await?);
    setup::secret(&platform, &acme, "tracker", "s3cret", &own.url())?;
    // A Secret that only a resource names.
    platform.secrets.set(&acme.organization.slug, "of-a-resource", "token", "s3cret");
    for (secret, auth) in [
        ("tracker", json!({"bearer": {"secretRef": {"name": "tracker", "key": "token"}}})),
        (
            "of-a-resource",
            json!({"apiKey": {"header": "X-Key", "secretRef": {"name": "of-a-resource", "key": "token"}}}),
        ),
    ] {
        let mut body = configuration(secret, &evil.url());
        body["auth"] = auth;
        let tried = admin.post("/v1/mcp/test", &json!({ "configuration": body })).await?.expect(200)?;
        assert_eq!((&tried["ok"], &tried["error"]), (&json!(false), &json!("mcp-no-credentials")), "{tried}");
        let detail = tried["detail"].as_str().unwrap();
        assert!(detail.contains("agentapi.dev/mcp-hosts") && detail.contains(&evil.address.to_string()), "{detail}");
        let id = connection(&admin, &body).await?;
        let refused = admin.post("/v1/mcp/connect", &json!({"connection": id})).await?;
        assert_eq!((refused.status.as_u16(), refused.problem()), (422, "mcp-no-credentials"), "{}", refused.body);
    }
    assert_eq!(evil.seen().len(), 0, "the server was called");
    // To its own server it goes, and it is the word of the Secret as it is now that counts.
    let mut body = configuration("own", &own.url());
    body["auth"] = json!({"bearer": {"secretRef": {"name": "tracker", "key": "token"}}});
    let works = async || admin.post("/v1/mcp/test", &json!({ "configuration": body })).await?.expect(200);
    assert_eq!(works().await?["ok"], true);
    assert!(own.seen().iter().all(|seen| seen.head.contains("authorization: bearer s3cret\r\n")));
    platform.secrets.allow(&acme.organization.slug, "tracker", "mcp.example.com");
    assert_eq!(works().await?["error"], "mcp-no-credentials");
    Ok(())
}
