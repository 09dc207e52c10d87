//! What is on its way to a session's pod while the session is about to be suspended, or ends: real Postgres, real session
//! hosts. Nothing is answered ok and cut off.

use agentapi_runtime::store::{Store, TenantScope};
use agentapi_tests::api::{Answer, Api};
use agentapi_tests::cluster::eventually;
use agentapi_tests::serve::policies::audit;
use agentapi_tests::serve::steps::{SOON, phase, running_in_main};
use agentapi_tests::serve::{Platform, Replica, Tenant};
use anyhow::{Context, Result};
use reqwest::{Method, StatusCode};
use secrecy::SecretString;
use serde_json::json;
use sqlx::Connection;
use uuid::Uuid;

const SESSION_POD: &str = env!("CARGO_BIN_EXE_session-pod");

/// Sessions that the reconciler leaves alone.
async fn platform() -> Result<(Platform, Replica, Tenant)> {
    let (platform, replica, tenant) = Platform::with_acme(SESSION_POD).await?;
    let organization = tenant.organization.id.to_string();
    let set = "update workspaces set spec = '{\"suspend\": {\"idleAfter\": \"1h\"}}' where org_id = $1::uuid";
    platform.operator(set, &[&organization]).await?;
    Ok((platform, replica, tenant))
}

async fn message(api: &Api, id: &str, content: &str) -> Result<Answer> {
    api.post(&format!("/v1/sessions/{id}/message"), &json!({"content": content, "type": "user"})).await
}

/// A session whose agent has answered once and waits, as its row says too.
async fn waiting(platform: &Platform, api: &Api) -> Result<String> {
    let id = running_in_main(api).await?;
    eventually("the message is taken", SOON, async || {
        let sent = message(api, &id, "hello").await?;
        Ok(if sent.problem() == "agent-busy" { Err("busy".to_owned()) } else { Ok(sent) })
    })
    .await?
    .expect(200)?;
    let mut admin = platform.db.connect(&platform.db.admin_url()).await?;
    eventually("the agent waits", SOON, async || {
        let (said, status): (i64, Option<String>) = sqlx::query_as(
            "select (select count(*) from messages where session_id = s.id and content like '%You said: hello%'),
                    agent_status from sessions s where id = $1",
        )
        .bind(id.parse::<Uuid>()?)
        .fetch_one(&mut admin)
        .await?;
        Ok(if said > 0 && status.as_deref() == Some("stable") { Ok(()) } else { Err(format!("{said} {status:?}")) })
    })
    .await?;
    Ok(id)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_the_audit_log_keeps_its_session_awake() -> Result<()> {
    let (platform, replica, acme) = platform().await?;
    let api = replica.api(Some(&acme.alice))?;
    let id = waiting(&platform, &api).await?;
    let file = || {
        let part = reqwest::multipart::Part::bytes(b"content".to_vec()).file_name("note.txt");
        let form = reqwest::multipart::Form::new().part("file", part);
        api.request(Method::POST, &format!("/v1/sessions/{id}/upload")).multipart(form)
    };
    let message = || {
        let body = json!({"content": "and now", "type": "user"});
        api.request(Method::POST, &format!("/v1/sessions/{id}/message")).json(&body)
    };
    for (request, what) in [(file(), "an upload"), (message(), "a message")] {
        // Nobody can write to the organization's log.
        let mut admin = platform.db.connect(&platform.db.admin_url()).await?;
        let mut hold = admin.begin().await?;
        let head = sqlx::query("select from audit_heads where org_id = $1 for update").bind(acme.organization.id);
        assert_eq!(head.execute(&mut *hold).await?.rows_affected(), 1);
        let (sender, answer) = (api.clone(), request);
        let answer = tokio::spawn(async move { sender.send(answer).await });
        let mut watcher = platform.db.connect(&platform.db.admin_url()).await?;
        let mut locked = async |at_least: i64| {
            let waiting = "select count(*) from pg_stat_activity
                           where wait_event_type = 'Lock' and datname = current_database()";
            let count: i64 = sqlx::query_scalar(waiting).fetch_one(&mut watcher).await?;
            anyhow::Ok(if count >= at_least { Ok(()) } else { Err(count.to_string()) })
        };
        eventually("the request to wait", SOON, async || locked(1).await).await?;

        // What the reconciler does when the session has been idle for as long as it may be.
        let store = Store::connect(&SecretString::from(platform.db.runtime_url()), 2)?;
        let organization = store.organization_by_slug(&acme.organization.slug).await?.context("no organization")?;
        let session = id.parse::<Uuid>()?;
        let suspend = tokio::spawn(async move {
            let mut tx = store.tenant_tx(&TenantScope::system(&organization)).await?;
            let suspending = tx.session_suspending(session, 0.0).await?;
            tx.commit().await?;
            anyhow::Ok(suspending)
        });
        eventually("the reconciler to come", SOON, async || {
            Ok(if suspend.is_finished() { Ok(()) } else { locked(2).await? })
        })
        .await?;
        hold.rollback().await?;
        assert!(!suspend.await??, "{what} was on its way");
        let answer = answer.await??;
        assert_eq!(answer.status, StatusCode::OK, "{what}: {}", answer.body);
        assert_eq!(api.get(&format!("/v1/sessions/{id}")).await?.expect(200)?["phase"], "Running", "{what}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_too_late_is_not_recorded_and_does_not_reach_the_pod() -> Result<()> {
    let (platform, replica, acme) = platform().await?;
    let api = replica.api(Some(&acme.alice))?;
    let id = waiting(&platform, &api).await?;
    let messages = async || audit(&replica, &acme.admin, &format!("targetId={id}&action=session.message")).await;
    let before = messages().await?;
    // The session ends between the last look at it and the row in the log.
    let mut admin = platform.db.connect(&platform.db.admin_url()).await?;
    for statement in [
        "create function ends() returns trigger language plpgsql security definer as $$
         begin update sessions set phase = 'Terminating' where id = new.id; return null; end $$",
        "create trigger ends after update of last_activity_at on sessions
         for each row when (new.phase = 'Running') execute function ends()",
    ] {
        sqlx::query(statement).execute(&mut admin).await?;
    }
    let late = message(&api, &id, "too late").await?;
    assert_eq!((late.status.as_u16(), late.problem()), (409, "session-over"), "{}", late.body);
    phase(&api, &id, "Ended").await?;
    assert_eq!(messages().await?, before);
    let messages = api.get(&format!("/v1/sessions/{id}/messages")).await?.expect(200)?;
    assert!(!messages.to_string().contains("too late"), "{messages}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_uses_a_session_at_the_last_moment_keeps_it() -> Result<()> {
    let (platform, replica, acme) = platform().await?;
    let id = running_in_main(&replica.api(Some(&acme.alice))?).await?.parse::<Uuid>()?;
    let store = Store::connect(&SecretString::from(platform.db.runtime_url()), 2)?;
    let organization = store.organization_by_slug(&acme.organization.slug).await?.context("no organization")?;
    let mut tx = store.tenant_tx(&TenantScope::system(&organization)).await?;
    assert!(!tx.session_terminating_idle(id, 3600.0).await?, "it was used a moment ago");
    // Its pod may report what its agent does, after this transaction has begun.
    assert!(tx.session_terminating_idle(id, -3600.0).await?);
    assert!(!tx.session_terminating_idle(id, -3600.0).await?, "it ends already");
    Ok(())
}
