//! What the API does is in the audit log: each route that changes something leaves exactly one row, and a route that is
//! new has to be written down here. Who was refused is there too; what was said is not.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::collections::BTreeSet;

use agentapi_runtime::audit::chain::Row;
use agentapi_tests::api::Api;
use agentapi_tests::serve::steps::SOON;
use agentapi_tests::serve::{Platform, Replica, Tenant};
use anyhow::{Context, Result};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{Connection, Executor};

const SESSION_POD: &str = env!("CARGO_BIN_EXE_session-pod");
const CHANGING: [&str; 4] = ["post", "put", "patch", "delete"];

async fn platform() -> Result<(Platform, Replica, Tenant)> {
    let platform = Platform::start(SESSION_POD).await?;
    let replica = platform.replica().await?;
    let tenant = platform.tenant("acme").await?;
    Ok((platform, replica, tenant))
}

/// All rows, as an auditor exports them.
async fn log(replica: &Replica, tenant: &Tenant) -> Result<Vec<Row>> {
    let response = replica.api(Some(&tenant.admin))?.request(Method::GET, "/v1/audit/export").send().await?;
    assert_eq!(response.status(), 200);
    Ok(response.text().await?.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
}

async fn running_session(api: &Api) -> Result<String> {
    let create = api.request(Method::POST, "/v1/sessions").header("prefer", "wait=30");
    let session = api.send(create.json(&json!({"workspace": "main", "env": {"K": "hunter2"}}))).await?.expect(201)?;
    assert_eq!(session["phase"], "Running");
    let id = session["id"].as_str().context("no id")?.to_owned();
    api.stable(&id, SOON).await?;
    Ok(id)
}

/// A successful call of each route that changes something: what a user sends, and what the row says.
struct Recipe {
    route: &'static str,
    action: &'static str,
    detail: Value,
}

/// Routes whose rows are looked at in api_mcp.rs, api_mcp_clients.rs, api_gateway.rs and api_oauth.rs, and some that only
/// ask.
const ELSEWHERE: &[&str] = &[
    "post /v1/mcp/configurations",
    "put /v1/mcp/configurations/{id}",
    "delete /v1/mcp/configurations/{id}",
    "post /v1/mcp/test",
    "post /v1/mcp/connect",
    "post /v1/mcp/disconnect",
    "delete /v1/mcp/client/{id}",
    "post /v1/mcp/call_tool",
    "post /v1/mcp/gateway/{connection}",
    "delete /v1/mcp/gateway/{connection}",
    "post /v1/mcp/list_tools",
    "post /v1/mcp/list_resources",
    "post /v1/mcp/read_resource",
    "post /v1/mcp/list_prompts",
    "post /v1/mcp/get_prompt",
    "post /v1/oauth/init",
    "post /v1/oauth/refresh",
    "post /v1/oauth/revoke",
    // Need an agent that asks and can be stopped: api_acp.
    "post /v1/sessions/{id}/permission",
    "post /v1/sessions/{id}/cancel",
    // Leaves no row: api_screening.
    "post /v1/prompts/preview",
];

fn recipes() -> Vec<Recipe> {
    let recipe = |route, action, detail| Recipe { route, action, detail };
    vec![
        recipe(
            "post /v1/sessions",
            "session.create",
            json!({
                "workspace": "main", "agent": "claude", "env": ["K"], "prompt": false,
                "promptDigest": agentapi_prompts::compose::digest(""), "policies": [],
            }),
        ),
        recipe("post /v1/sessions/{id}/message", "session.message", json!({"type": "user", "bytes": 13})),
        recipe("post /v1/sessions/{id}/upload", "session.upload", json!({"file": "notes.txt", "bytes": 11})),
        recipe("delete /v1/sessions/{id}", "session.delete", json!({"reason": "deleted"})),
    ]
}

async fn call(api: &Api, route: &str, id: &str) -> Result<String> {
    let (method, path) = route.split_once(' ').context("a method and a path")?;
    if route == "post /v1/sessions" {
        return running_session(api).await;
    }
    let method = Method::from_bytes(method.to_uppercase().as_bytes())?;
    let request = api.request(method, &path.replace("{id}", id)).header("x-request-id", "the-call");
    let request = match path.rsplit('/').next() {
        Some("message") => request.json(&json!({"content": "hello hunter2", "type": "user"})),
        Some("upload") => {
            let file = reqwest::multipart::Part::bytes(b"hunter2 xyz".to_vec()).file_name("notes.txt");
            request.multipart(reqwest::multipart::Form::new().part("file", file))
        }
        _ => request,
    };
    let answer = api.send(request).await?;
    assert!(answer.status.is_success(), "{route}: {} {}", answer.status, answer.body);
    Ok(id.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_route_that_changes_something_leaves_exactly_one_row() -> Result<()> {
    let (platform, replica, acme) = platform().await?;
    let document = replica.api(None)?.get("/openapi.json").await?.expect(200)?;
    let paths = document["paths"].as_object().context("no paths")?;
    let routes: BTreeSet<String> = paths
        .iter()
        .flat_map(|(path, item)| {
            CHANGING.iter().filter(|m| item.get(**m).is_some()).map(move |m| format!("{m} {path}"))
        })
        .collect();
    let known = recipes().into_iter().map(|recipe| recipe.route).chain(ELSEWHERE.iter().copied());
    let known: BTreeSet<String> = known.map(str::to_owned).collect();
    assert_eq!(routes, known, "a route that changes something has to be called here, and to leave a row");

    let api = replica.api(Some(&acme.alice))?;
    // Her first token is a row by itself.
    api.get("/v1/workspaces").await?.expect(200)?;
    let mut id = String::new();
    for Recipe { route, action, detail } in recipes() {
        let before = log(&replica, &acme).await?;
        id = call(&api, route, &id).await?;
        let after = log(&replica, &acme).await?;
        let new: Vec<&Row> = after.iter().skip(before.len()).collect();
        let actions: Vec<_> = new.iter().map(|row| row.action.as_str()).collect();
        assert_eq!(actions, [action], "{route}");
        let row = new[0];
        assert_eq!(row.detail, detail, "{route}");
        assert_eq!(row.actor, format!("user:{}", acme.organization.alice.subject));
        assert_eq!((row.target_kind.as_str(), row.target_id.as_deref()), ("session", Some(id.as_str())));
        assert_eq!(row.source_ip.as_deref(), Some("127.0.0.1"));
        assert!(
            row.request_id.as_deref().is_some_and(|it| it == "the-call" || route == "post /v1/sessions"),
            "{row:?}"
        );
        assert!(row.config_digest.as_deref().is_some_and(|digest| digest.starts_with("sha256:")), "{row:?}");
        assert_eq!(row.db_role, acme.organization.id_role);
    }
    let all = serde_json::to_string(&log(&replica, &acme).await?)?;
    assert!(!all.contains("hunter2"), "something that was said or set is in the audit log");
    drop(platform);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_agent_refuses_is_recorded_with_its_end() -> Result<()> {
    let (_platform, replica, acme) = platform().await?;
    let api = replica.api(Some(&acme.alice))?;
    let id = running_session(&api).await?;
    let before = log(&replica, &acme).await?.len();
    let path = format!("/v1/sessions/{id}/message");
    assert_eq!(api.post(&path, &json!({"content": " ", "type": "user"})).await?.status, 400);
    let rows = log(&replica, &acme).await?;
    let said: Vec<_> = rows[before..].iter().map(|row| (row.action.as_str(), &row.detail)).collect();
    assert_eq!(
        said,
        [("session.message", &json!({"type": "user", "bytes": 1})), ("session.message-fail", &json!({"status": 400}))]
    );
    // What never gets to the agent leaves nothing.
    for body in [json!({"content": "x"}), json!({"content": "x", "type": "shout"}), json!([])] {
        assert_eq!(api.post(&path, &body).await?.status, 422);
    }
    let form = reqwest::multipart::Form::new().text("note", "x");
    let upload = api.request(Method::POST, &format!("/v1/sessions/{id}/upload")).multipart(form);
    assert_eq!(api.send(upload).await?.status, 422);
    assert_eq!(log(&replica, &acme).await?.len(), rows.len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn people_are_recorded_when_they_come_and_when_they_change() -> Result<()> {
    let (platform, replica, acme) = platform().await?;
    let slug = &acme.organization.slug;
    let before = log(&replica, &acme).await?.len();
    let carol = |role: &str| platform.token(slug, "carol", role);
    let (first, second) = (carol("user")?, carol("admin")?);
    // Twenty first requests at the same time are one new user.
    let requests = (0..20).map(|_| {
        let api = replica.api(Some(&first)).unwrap();
        tokio::spawn(async move { api.get("/v1/workspaces").await.unwrap().status })
    });
    for request in requests.collect::<Vec<_>>() {
        assert_eq!(request.await?, 200);
    }
    replica.api(Some(&second))?.get("/v1/workspaces").await?.expect(200)?;
    replica.api(Some(&second))?.get("/v1/workspaces").await?.expect(200)?;
    let rows = log(&replica, &acme).await?;
    let people: Vec<_> = rows[before..].iter().filter(|row| row.target_kind == "user").collect();
    assert_eq!(people.len(), 2, "{people:?}");
    assert_eq!((people[0].action.as_str(), people[1].action.as_str()), ("user.create", "user.update"));
    assert_eq!(people[0].detail["role"], "user");
    assert_eq!((&people[1].detail["role"], &people[1].detail["previousRole"]), (&json!("admin"), &json!("user")));
    assert_eq!(people[1].target_id.as_deref(), Some("carol"));
    assert!(people.iter().all(|row| row.actor == "user:carol" && row.source_ip.is_some() && row.request_id.is_some()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_no_admin_gets_a_problem_and_a_row() -> Result<()> {
    let (platform, replica, acme) = platform().await?;
    let globex = platform.tenant("globex").await?;
    let alice = replica.api(Some(&acme.alice))?;
    let paths = ["/v1/audit", "/v1/audit/export", "/v1/audit/checkpoints", "/v1/audit/keys"];
    for path in paths {
        let answer = alice.get(path).await?;
        assert_eq!((answer.status.as_u16(), answer.problem()), (403, "forbidden"), "{path}");
        assert_eq!(answer.content_type, "application/problem+json");
        replica.api(Some(&acme.admin))?.get(path).await?.expect(200)?;
        assert_eq!(replica.api(None)?.get(path).await?.status, 401);
    }
    let refused: Vec<_> = log(&replica, &acme).await?.into_iter().filter(|row| row.action == "access.refuse").collect();
    let routes: Vec<_> = refused.iter().filter_map(|row| row.target_id.as_deref()).collect();
    assert_eq!(routes, paths);
    assert!(refused.iter().all(|row| row.detail == json!({"method": "GET"})), "{refused:?}");
    // Another organization's log has nothing of it.
    let others = log(&replica, &globex).await?;
    assert!(others.iter().all(|row| row.org_id == globex.organization.id && row.action != "access.refuse"));
    Ok(())
}

/// The row and its change are one: what makes the transaction fail takes the row with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_fails_leaves_no_row() -> Result<()> {
    let (platform, replica, acme) = platform().await?;
    let api = replica.api(Some(&acme.alice))?;
    api.get("/v1/workspaces").await?.expect(200)?;
    let before = log(&replica, &acme).await?.len();
    // At its end the transaction of a new session fails, after the row was written.
    let mut admin = platform.db.connect(&platform.db.admin_url()).await?;
    let broken = "create function app.fail() returns trigger language plpgsql as
                  $$ begin raise exception 'no' using errcode = '40001'; end $$;
                  grant execute on function app.fail() to public;
                  create constraint trigger broken after insert on sessions deferrable initially deferred
                  for each row execute function app.fail()";
    sqlx::raw_sql(broken).execute(&mut admin).await?;
    assert_eq!(api.post("/v1/sessions", &json!({"workspace": "main"})).await?.status, 500);
    assert_eq!(log(&replica, &acme).await?.len(), before);
    admin.execute("drop trigger broken on sessions").await?;
    // And a row that can't be written takes the change along.
    let full = "alter table audit_log add constraint broken check (action <> 'session.create') not valid";
    admin.execute(full).await?;
    assert_eq!(api.post("/v1/sessions", &json!({"workspace": "main"})).await?.status, 422);
    let sessions: i64 = sqlx::query_scalar("select count(*) from sessions where org_id = $1")
        .bind(acme.organization.id)
        .fetch_one(&mut admin)
        .await?;
    assert_eq!(sessions, 0);
    assert_eq!(log(&replica, &acme).await?.len(), before);
    admin.close().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_is_who_a_trusted_proxy_says() -> Result<()> {
    let (platform, plain, acme) = platform().await?;
    let mut config = platform.config();
    config.trusted_proxies = vec!["127.0.0.0/8".parse()?, "10.0.0.0/8".parse()?];
    let behind = platform.replica_with(config).await?;
    let refused = async |replica: &Replica| -> Result<Option<String>> {
        let api = replica.api(Some(&acme.alice))?;
        let request = api.request(Method::GET, "/v1/audit").header("x-forwarded-for", "1.2.3.4, 203.0.113.7, 10.1.1.1");
        assert_eq!(api.send(request).await?.status, 403);
        Ok(log(replica, &acme).await?.pop().context("a row")?.source_ip)
    };
    assert_eq!(refused(&plain).await?.as_deref(), Some("127.0.0.1"), "nobody is trusted: the header is the client's");
    assert_eq!(refused(&behind).await?.as_deref(), Some("203.0.113.7"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_long_rows_ends_before_its_limit_and_none_is_left_out() -> Result<()> {
    let (platform, replica, tenant) = platform().await?;
    let mut admin = platform.db.connect(&platform.db.admin_url()).await?;
    admin.execute("set session_replication_role = replica").await?;
    let long =
        "insert into audit_log (org_id, seq, org_slug, at, db_role, actor, action, target_kind, target_id, prev_hash,
                                       hash, detail)
                select id, n + 1000, slug, now(), 'x', 'user:x', 'test.long', 'x', 'x', sha256(''), sha256(''),
                       jsonb_build_object('x', repeat('y', 60000))
                from organizations, generate_series(1, 250) n where id = $1";
    sqlx::query(long).bind(tenant.organization.id).execute(&mut admin).await?;
    let api = replica.api(Some(&tenant.admin))?;
    for (mut place, next) in [(String::new(), "nextBefore"), ("&after=0".to_owned(), "nextAfter")] {
        let (mut found, mut pages) = (Vec::new(), Vec::new());
        loop {
            let page = api.get(&format!("/v1/audit?action=test.long&limit=1000{place}")).await?.expect(200)?;
            let rows = page["entries"].as_array().context("no entries")?;
            found.extend(rows.iter().filter_map(|row| row["seq"].as_i64()));
            pages.push(rows.len());
            let Some(cursor) = page[next].as_i64() else { break };
            place = format!("&{}={cursor}", next[4..].to_lowercase());
        }
        assert_eq!(pages, [100, 100, 50], "{next}");
        if next == "nextBefore" {
            found.reverse();
        }
        assert_eq!(found, (1001..=1250).collect::<Vec<_>>(), "{next}");
    }
    Ok(())
}
