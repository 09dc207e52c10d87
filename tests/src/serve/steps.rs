//! What most API tests begin with: one replica and one tenant, and a session that has come as far as it has to.

use std::time::Duration;

use anyhow::{Context, Result};
use reqwest::Method;
use serde_json::{Value, json};

use super::{Platform, Replica, Tenant};
use crate::api::Api;
use crate::cluster::eventually;

/// How long a session may take to reach its next phase: real agents on a busy machine, and replicas that notice only
/// after a while that another one is gone.
pub const SOON: Duration = Duration::from_secs(120);

impl Platform {
    /// A platform with one replica and the tenant `acme`. `session_pod` is the path of that binary.
    pub async fn with_acme(session_pod: &str) -> Result<(Self, Replica, Tenant)> {
        let platform = Self::start(session_pod).await?;
        let replica = platform.replica().await?;
        let tenant = platform.tenant("acme").await?;
        Ok((platform, replica, tenant))
    }
}

/// The id of a session as the API shows it.
pub fn id_of(session: &Value) -> Result<String> {
    Ok(session["id"].as_str().context("no id")?.to_owned())
}

/// The session once it is in this phase.
pub async fn phase(api: &Api, id: &str, wanted: &str) -> Result<Value> {
    eventually(&format!("phase {wanted}"), SOON, async || {
        let session = api.get(&format!("/v1/sessions/{id}")).await?.expect(200)?;
        Ok(if session["phase"] == wanted { Ok(session) } else { Err(session.to_string()) })
    })
    .await
}

/// Id of a new session whose agent takes messages.
pub async fn running(api: &Api, body: Value) -> Result<String> {
    let id = id_of(&api.post("/v1/sessions", &body).await?.expect(201)?)?;
    phase(api, &id, "Running").await?;
    Ok(id)
}

/// The same in workspace `main`, in one request that waits.
pub async fn running_in_main(api: &Api) -> Result<String> {
    let create = api.request(Method::POST, "/v1/sessions").header("prefer", "wait=60");
    let session = api.send(create.json(&json!({"workspace": "main"}))).await?.expect(201)?;
    anyhow::ensure!(session["phase"] == "Running", "it does not run: {session}");
    id_of(&session)
}
