//! The connections of examples/mcp.yaml in the cluster of `cargo xtask up`: applied, waited for, and what they say.
use crate::cluster::{Cluster, eventually, repo};
use anyhow::{Context, Result};
use std::time::Duration;

/// Namespace of the team.
pub const TEAM: &str = "team-acme";
/// Namespace of its pods.
pub const TENANT: &str = "agentapi-acme";
/// Namespace of the demo's servers.
pub const DEMO: &str = "agentapi-demo";
/// How long a condition may take.
pub const READY: Duration = Duration::from_secs(120);

/// Applies them and waits for those that need no person.
///
/// # Errors
/// When one does not get ready.
pub async fn apply(cluster: &Cluster) -> Result<()> {
    let example = |name: &str| std::fs::read_to_string(repo().join("examples").join(name));
    cluster.apply(&example("acme.yaml")?)?;
    expect(cluster, "organization", None, "acme", ("Ready", "True", "Reconciled")).await?;
    let token = "--from-literal=token=the-token-of-the-demo";
    let create =
        ["-n", TENANT, "create", "secret", "generic", "metrics-server", token, "--dry-run=client", "-o", "yaml"];
    cluster.apply(&cluster.kubectl(&create)?)?;
    cluster.apply(&example("mcp.yaml")?)?;
    for name in ["docs", "metrics", "files"] {
        said(cluster, name, ("Ready", "True", "Reconciled")).await?;
    }
    Ok(())
}

/// Waits until a connection has this condition, with this status and reason.
///
/// # Errors
/// When it has not within [`READY`].
pub async fn said(cluster: &Cluster, name: &str, wanted: (&str, &str, &str)) -> Result<()> {
    expect(cluster, "mcpconnection", Some(TEAM), name, wanted).await
}

async fn expect(
    cluster: &Cluster,
    kind: &str,
    namespace: Option<&str>,
    name: &str,
    (condition, status, reason): (&str, &str, &str),
) -> Result<()> {
    eventually(&format!("{kind}/{name} {condition}={status} {reason}"), READY, async || {
        let seen = cluster.condition(kind, namespace, name, condition)?;
        let right = seen.as_ref().is_some_and(|(is, why)| (is.as_str(), why.as_str()) == (status, reason));
        Ok(if right { Ok(()) } else { Err(format!("{seen:?}")) })
    })
    .await
}

/// The message of a condition.
///
/// # Errors
/// When the connection does not have it.
pub fn message(cluster: &Cluster, name: &str, condition: &str) -> Result<String> {
    let object = cluster.get("mcpconnection", Some(TEAM), name)?.context("no such connection")?;
    let conditions = object["status"]["conditions"].as_array().context("no conditions")?;
    let found = conditions.iter().find(|it| it["type"] == condition).context("no such condition")?;
    Ok(found["message"].as_str().context("no message")?.to_owned())
}

/// The id that the API knows a connection by.
///
/// # Errors
/// When it has none.
pub fn id(cluster: &Cluster, name: &str) -> Result<String> {
    let object = cluster.get("mcpconnection", Some(TEAM), name)?.context("no such connection")?;
    Ok(object["status"]["connectionId"].as_str().context("no id")?.to_owned())
}
