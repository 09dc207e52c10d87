//! What tests of suspended sessions begin with: a tenant whose sessions are suspended after two seconds, and one of them that
//! was told a word.

use anyhow::Result;
use serde_json::json;

use super::steps::{SOON, phase, running_in_main};
use super::{Platform, Replica, Tenant};
use crate::api::Api;
use crate::talk::Talk;

/// The Workspace `main` of a tenant whose sessions are suspended.
pub const SUSPEND: &str = r#"{"suspend": {"idleAfter": "2s"}, "agent": {"transport": "Pty"}}"#;

impl Platform {
    /// Writes what the operator writes of the Workspace `main`.
    pub async fn workspace(&self, tenant: &Tenant, spec: &str) -> Result<()> {
        let organization = tenant.organization.id.to_string();
        let set = "update workspaces set spec = $2::jsonb where org_id = $1::uuid";
        self.operator(set, &[&organization, spec]).await?;
        Ok(())
    }
}

/// A platform with one replica and such a tenant.
pub async fn platform(session_pod: &str) -> Result<(Platform, Replica, Tenant)> {
    let (platform, replica, tenant) = Platform::with_acme(session_pod).await?;
    platform.workspace(&tenant, SUSPEND).await?;
    Ok((platform, replica, tenant))
}

/// A session that was told a word, and is suspended.
pub async fn suspended(api: &Api) -> Result<Talk> {
    let talk = told(api).await?;
    phase(api, &talk.id, "Suspended").await?;
    Ok(talk)
}

/// A session that was told a word.
pub async fn told(api: &Api) -> Result<Talk> {
    let talk = Talk::of(api, &running_in_main(api).await?, SOON);
    talk.ask("the word is sesame", "You said: the word is sesame").await?;
    Ok(talk)
}

/// It goes on with what was said before, and nothing was said twice or lost.
pub async fn goes_on(talk: &Talk) -> Result<()> {
    let messages = talk.ask("and now", "You said: and now").await?;
    let ids: Vec<_> = messages.iter().filter_map(|message| message["id"].as_u64()).collect();
    anyhow::ensure!(ids == (0..messages.len() as u64).collect::<Vec<_>>(), "{messages:?}");
    let users: Vec<_> = messages.iter().filter(|it| it["role"] == "user").map(|it| it["content"].clone()).collect();
    anyhow::ensure!(users == ["the word is sesame", "and now"], "{messages:?}");
    anyhow::ensure!(json!(messages).to_string().contains("You said: the word is sesame"), "{messages:?}");
    Ok(())
}
