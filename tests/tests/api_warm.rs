//! Waiting pods whose agents know their workspace's prompt before a session comes, and sessions that hear of their
//! organization's end: real Postgres, real session hosts.

use std::path::Path;
use std::sync::Arc;

use agentapi_crds::names::SESSION_PORT;
use agentapi_runtime::pods::agent::{Agents, Target};
use agentapi_tests::api::Api;
use agentapi_tests::cluster::eventually;
use agentapi_tests::serve::policies::Operator;
use agentapi_tests::serve::steps::{SOON, phase, running_in_main};
use agentapi_tests::serve::{Platform, Tenant};
use anyhow::Result;
use serde_json::json;

const SESSION_POD: &str = env!("CARGO_BIN_EXE_session-pod");

async fn keep_warm(platform: &Platform, tenant: &Tenant) -> Result<()> {
    let organization = tenant.organization.id.to_string();
    let set = "update workspaces set spec = $2::jsonb where org_id = $1::uuid";
    platform.operator(set, &[&organization, r#"{"warmPool": 1}"#]).await?;
    Ok(())
}

fn told(folder: &Path) -> String {
    std::fs::read_to_string(folder.join("state/system-prompt.md")).unwrap_or_default()
}

/// How many agents a pod has started.
fn agents(folder: &Path) -> usize {
    std::fs::read_to_string(folder.join("log")).unwrap_or_default().matches("agent started").count()
}

/// A pod that waits, once its agent was told this.
async fn waiting(platform: &Platform, tenant: &Tenant, words: &str) -> Result<String> {
    let pod = platform.pods.warm(&tenant.organization.slug, "main")?;
    knows(platform, &pod, words).await?;
    Ok(pod)
}

async fn knows(platform: &Platform, pod: &str, words: &str) -> Result<()> {
    let folder = platform.pods.pod_folder(pod);
    eventually("the waiting agent is told", SOON, async || {
        let told = told(&folder);
        Ok(if told == words && platform.pods.is_prepared(pod, words) { Ok(()) } else { Err(told) })
    })
    .await?;
    let ready = Api::new(&format!("http://{}:{SESSION_PORT}", platform.pods.address(pod)?), None)?;
    ready.get("/internal/ready").await?.expect(200)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_agent_knows_its_prompt_and_does_not_start_again_for_a_session() -> Result<()> {
    let (platform, replica, acme) = Platform::with_acme(SESSION_POD).await?;
    let operator = Operator::of(&platform).await?;
    let style = json!({"template": "Be brief in {{ workspace }}."});
    let mut row = operator.of_organization(&acme.organization, "style", &style).await?;
    keep_warm(&platform, &acme).await?;
    let pod = waiting(&platform, &acme, "Be brief in main.").await?;
    let before = agents(&platform.pods.pod_folder(&pod));
    let alice = replica.api(Some(&acme.alice))?;
    let first = running_in_main(&alice).await?;
    assert_eq!(platform.pods.of(first.parse()?)?.0, pod);
    assert_eq!(agents(&platform.pods.pod_folder(&pod)), before, "the agent was started again");

    // An edit reaches the agent that waits, in the background, and not the one that works.
    let next = waiting(&platform, &acme, "Be brief in main.").await?;
    row.template = "Be thorough.".to_owned();
    row.generation += 1;
    operator.write(&row).await?;
    knows(&platform, &next, "Be thorough.").await?;
    let before = agents(&platform.pods.pod_folder(&next));
    let second = running_in_main(&alice).await?;
    assert_eq!(platform.pods.of(second.parse()?)?.0, next);
    assert_eq!(agents(&platform.pods.pod_folder(&next)), before);
    assert_eq!(told(&platform.pods.pod_folder(&pod)), "Be brief in main.");

    // Of two that wait the one that knows its prompt is taken, and what depends on the user is told when there is one.
    row.template = "You work for {{ user }}.".to_owned();
    row.generation += 1;
    operator.write(&row).await?;
    let third = waiting(&platform, &acme, "You work for .").await?;
    let before = agents(&platform.pods.pod_folder(&third));
    let session = running_in_main(&alice).await?;
    let wanted = format!("You work for {}.", acme.organization.alice.subject);
    assert_eq!(platform.pods.of(session.parse()?)?.0, third);
    assert_eq!(told(&platform.pods.pod_folder(&third)), wanted);
    assert_eq!(agents(&platform.pods.pod_folder(&third)), before + 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_hear_of_their_organizations_end_before_they_end() -> Result<()> {
    let (platform, replica, acme) = Platform::with_acme(SESSION_POD).await?;
    let globex = platform.tenant("globex").await?;
    let (alice, carol) = (replica.api(Some(&acme.alice))?, replica.api(Some(&globex.alice))?);
    let id = running_in_main(&alice).await?;
    let other = running_in_main(&carol).await?;
    let mut events = alice.events(&format!("/v1/sessions/{id}/events"), None).await?;
    let mut others = carol.events(&format!("/v1/sessions/{other}/events"), None).await?;

    let drain = "update organizations set drain_until = now() + $2::interval where slug = $1";
    platform.operator(drain, &[&acme.organization.slug, "1 hour"]).await?;
    let notice = async {
        while let Some(event) = events.recv().await {
            if event.name == "agent_error" {
                return Some(event.data);
            }
        }
        None
    };
    let notice = tokio::time::timeout(SOON, notice).await?.unwrap_or_default();
    assert_eq!(notice["level"], "warning", "{notice}");
    let text = notice["message"].as_str().unwrap_or_default();
    let year = jiff::Timestamp::now().strftime("%Y-").to_string();
    assert!(text.contains("is being deleted") && text.contains(&year), "{text}");
    alice.get(&format!("/v1/sessions/{id}")).await?.expect(200)?;
    // A replica that does not know whether the session heard it says it again.
    let (pod, ip) = platform.pods.of(id.parse()?)?;
    let target = Target { session: id.parse()?, pod: &pod, ip: &ip.to_string() };
    let http = reqwest::Client::builder().no_proxy().build()?;
    Agents::new(http, Arc::clone(&platform.tokens)).notice(target, text).await?;
    let refused = alice.post("/v1/sessions", &json!({"workspace": "main"})).await?;
    assert_eq!((refused.status.as_u16(), refused.problem()), (409, "organization-leaving"), "{}", refused.body);
    let listed = alice.get("/v1/sessions").await?.expect(200)?;
    assert_eq!(listed["sessions"].as_array().map(Vec::len), Some(1), "{listed}");

    platform.operator(drain, &[&acme.organization.slug, "-1 second"]).await?;
    phase(&alice, &id, "Ended").await?;
    while let Some(event) = events.recv().await {
        assert_ne!(event.name, "agent_error", "it was told twice: {}", event.data);
    }
    phase(&carol, &other, "Running").await?;
    while let Ok(event) = others.try_recv() {
        assert_ne!(event.name, "agent_error", "another organization was told: {}", event.data);
    }
    Ok(())
}
