//! The MCP gateway for session pods: with the session's own token, from the session's own pod, while it runs, to the
//! connections of its workspace. And many replicas: a session with a server that one opened goes on at another.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::{IpAddr, Ipv4Addr};

use agentapi_tests::mcp::raw::Raw;
use agentapi_tests::mcp::setup::{self, call, configuration, connection, initialize, platform, request, rpc};
use agentapi_tests::serve::steps::{SOON, phase, running_in_main};
use anyhow::Result;
use reqwest::Method;
use serde_json::{Value, json};

const SESSION_POD: &str = env!("CARGO_BIN_EXE_session-pod");

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_uses_the_connections_of_its_workspace_and_no_others() -> Result<()> {
    let (platform, replica, acme) = platform(SESSION_POD).await?;
    let (admin, alice) = (replica.api(Some(&acme.admin))?, replica.api(Some(&acme.alice))?);
    let server = Raw::start().await?;
    let everywhere = connection(&admin, &configuration("everywhere", &server.url())).await?;
    let statement = "insert into workspaces (org_id, id, name, k8s_namespace, agent_type, max_sessions)
                     values ($1::uuid, gen_random_uuid(), 'other', 'team', 'claude', 1)";
    platform.operator(statement, &[&acme.organization.id.to_string()]).await?;
    let mut bound = Vec::new();
    for workspace in ["main", "other"] {
        let mut body = configuration(workspace, &server.url());
        body["workspace"] = json!(workspace);
        bound.push(connection(&admin, &body).await?);
    }
    let session = running_in_main(&alice).await?;
    let token = platform.pods.session_token(session.parse()?)?;
    let (_, address) = platform.pods.of(session.parse()?)?;
    let pod = replica.internal_api(Some(&token), address)?;
    for id in [&everywhere, &bound[0]] {
        let opened = initialize(&pod, id).await?;
        let called = rpc(&pod, id, opened.as_deref(), &call("echo", json!({"n": 1}))).await?;
        assert_eq!(called.answer()["result"]["content"][0]["text"], "{\"n\":1}", "{called:?}");
    }
    let other = rpc(&pod, &bound[1], None, &request(1, "tools/list", json!({}))).await?;
    assert_eq!(other.status, 404, "{other:?}");
    assert_eq!(rpc(&alice, &bound[1], None, &request(1, "tools/list", json!({}))).await?.status, 200, "a user may");
    // The server never sees the session's token, and the audit log knows which session it was.
    assert!(server.seen().iter().all(|seen| !seen.head.contains("authorization")));
    let rows = admin.get("/v1/audit?action=mcp.tool-call").await?.expect(200)?;
    assert_eq!(rows["entries"][0]["actor"], format!("session:{session}"), "{rows}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stolen_or_late_token_opens_nothing() -> Result<()> {
    let (platform, replica, acme) = platform(SESSION_POD).await?;
    let (admin, alice) = (replica.api(Some(&acme.admin))?, replica.api(Some(&acme.alice))?);
    let server = Raw::start().await?;
    let id = connection(&admin, &configuration("raw", &server.url())).await?;
    let session = running_in_main(&alice).await?;
    let token = platform.pods.session_token(session.parse()?)?;
    let (_, address) = platform.pods.of(session.parse()?)?;
    let list = request(1, "tools/list", json!({}));
    let kind =
        |answer: &Value| answer["type"].as_str().and_then(|it| it.rsplit('/').next()).unwrap_or_default().to_owned();
    let elsewhere = IpAddr::from(Ipv4Addr::new(127, 9, 9, 9));
    for (token, address, status, problem) in [
        (Some(&token), elsewhere, 403, "wrong-pod"),
        (Some(&acme.admin), address, 401, "unauthorized"),
        (None, address, 401, "unauthorized"),
    ] {
        let pod = replica.internal_api(token.map(String::as_str), address)?;
        let refused = rpc(&pod, &id, None, &list).await?;
        assert_eq!((refused.status, kind(refused.answer()).as_str()), (status, problem), "{refused:?}");
    }
    // Nor does it open the public API.
    let public = rpc(&replica.api(Some(&token))?, &id, None, &list).await?;
    assert_eq!(public.status, 401, "{public:?}");
    let pod = replica.internal_api(Some(&token), address)?;
    assert_eq!(rpc(&pod, &id, None, &list).await?.status, 200);
    let before = server.seen().len();
    assert_eq!(alice.delete(&format!("/v1/sessions/{session}")).await?.status, 204);
    phase(&alice, &session, "Ended").await?;
    let late = rpc(&pod, &id, None, &list).await?;
    assert!(matches!(late.status, 401 | 403), "{late:?}");
    assert_eq!(server.seen().len(), before, "the server was called");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_goes_on_at_another_replica() -> Result<()> {
    let (platform, first, acme) = platform(SESSION_POD).await?;
    let second = setup::replica(&platform).await?;
    let server = Raw::start().await?;
    let id = connection(&first.api(Some(&acme.admin))?, &configuration("raw", &server.url())).await?;
    let session = initialize(&first.api(Some(&acme.alice))?, &id).await?;
    first.stop().await?;
    let called = rpc(&second.api(Some(&acme.alice))?, &id, session.as_deref(), &call("echo", json!({}))).await?;
    assert!(called.answer()["result"].is_object(), "{called:?}");
    assert!(server.seen().pop().unwrap().head.contains("mcp-session-id: session-1\r\n"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_server_is_seen_without_anybody_asking() -> Result<()> {
    use agentapi_tests::cluster::eventually;
    use agentapi_tests::mcp::raw::Mood;
    let (platform, _, acme) = platform(SESSION_POD).await?;
    let replica = setup::probing(&platform, 1).await?;
    let (admin, server) = (replica.api(Some(&acme.admin))?, Raw::start().await?);
    let body = configuration("raw", &server.url());
    let id = connection(&admin, &body).await?;
    let path = format!("/v1/mcp/configurations/{id}");
    let status = async |wanted: &str| {
        eventually(wanted, SOON, async || {
            let shown = admin.get(&path).await?.expect(200)?;
            Ok(if shown["status"]["state"] == wanted { Ok(shown["status"].clone()) } else { Err(shown.to_string()) })
        })
        .await
    };
    let ready = status("Ready").await?;
    assert_eq!((&ready["protocolVersion"], &ready["breaker"]), (&json!("2025-06-18"), &json!("closed")));
    assert_eq!((&ready["tools"][0]["name"], &ready["observedGeneration"]), (&json!("echo"), &json!(1)));
    server.set_mood(Mood::Status(500));
    let failing = status("Failing").await?;
    assert_eq!(failing["tools"][0]["name"], "echo", "what is known of its tools stays");
    let mut changed = body;
    changed["auth"] = json!({"bearer": {"secretRef": {"name": "none", "key": "token"}}});
    admin.send(admin.request(Method::PUT, &path).json(&changed)).await?.expect(200)?;
    let without = status("NoCredentials").await?;
    assert_eq!((&without["observedGeneration"], &without["tools"]), (&json!(2), &json!([])));
    // Another tenant's servers are looked at too, each as its own.
    let globex = platform.tenant("globex").await?;
    let other = replica.api(Some(&globex.admin))?;
    assert_eq!(other.get("/v1/mcp/configurations").await?.expect(200)?["configurations"], json!([]));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_replica_looks_and_another_takes_over() -> Result<()> {
    use agentapi_tests::cluster::eventually;
    let (platform, _, acme) = platform(SESSION_POD).await?;
    let first = setup::probing(&platform, 1).await?;
    let server = Raw::start().await?;
    let admin = first.api(Some(&acme.admin))?;
    connection(&admin, &configuration("raw", &server.url())).await?;
    let looked = async |more: usize| {
        let before = server.count("initialize");
        eventually("a look", SOON, async || {
            let now = server.count("initialize");
            Ok(if now >= before + more { Ok(()) } else { Err(format!("{now} looks, {before} before")) })
        })
        .await
    };
    looked(1).await?;
    let _second = setup::probing(&platform, 1).await?;
    first.crash();
    looked(2).await?;
    Ok(())
}
