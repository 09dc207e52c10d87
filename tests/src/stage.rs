//! What tests with real agents begin with: a platform whose pods run one, from npm, against the fake model; and what each
//! agent is to know, whatever it is spoken to through.
use crate::cluster::eventually;
use crate::fakemodel::{self, Config, Recorded};
use crate::mcp::raw::Raw;
use crate::mcp::setup::{configuration, connection, platform};
use crate::serve::agent::PodAgent;
use crate::serve::policies::Operator;
use crate::serve::{Platform, Replica, Tenant};
use crate::talk::Talk;
use anyhow::{Result, ensure};
use serde_json::json;
use std::path::PathBuf;
use std::time::Duration;

/// A turn with its tools, on a machine that has other things to do.
pub const TURN: Duration = Duration::from_secs(180);
const RULE: &str = "Rule seventeen: be kind to boats.";

/// The platform with one tenant.
pub struct Stage {
    /// Before the platform: it is gone first.
    pub replica: Replica,
    /// With the pods.
    pub platform: Platform,
    /// The tenant.
    pub acme: Tenant,
    /// Where the fake model is.
    pub model: String,
}

impl Stage {
    /// `transport`: `acp` or `pty`.
    pub async fn of(session_pod: &str, agent: &str, transport: &str) -> Result<Self> {
        Self::with_model(session_pod, agent, transport, Config::default()).await
    }

    /// With a model that is not as usual.
    pub async fn with_model(session_pod: &str, agent: &str, transport: &str, model: Config) -> Result<Self> {
        let (platform, replica, acme) = platform(session_pod).await?;
        let model = fakemodel::serve(model).await?;
        platform.pods.set_agent(PodAgent::real(agent, transport, &model)?);
        Ok(Self { replica, platform, acme, model })
    }

    /// A session of the tenant's user, once its agent takes messages.
    pub async fn begin(&self) -> Result<Talk> {
        Talk::begin(&self.replica.api(Some(&self.acme.alice))?, &json!({"workspace": "main"}), TURN).await
    }

    /// A file in the agent's folder, which may not be there.
    pub fn file(&self, talk: &Talk, name: &str) -> Result<PathBuf> {
        Ok(self.platform.pods.folder(talk.id.parse()?)?.join("workspace").join(name))
    }

    /// What the model was asked.
    pub async fn asked(&self) -> Result<Vec<Recorded>> {
        fakemodel::recorded(&self.model).await
    }

    /// A rule for the tenant's agents, and an MCP server.
    pub async fn rule_and_server(&self) -> Result<Raw> {
        let rules = json!({"template": RULE});
        Operator::of(&self.platform).await?.of_organization(&self.acme.organization, "rules", &rules).await?;
        let server = Raw::start().await?;
        let admin = self.replica.api(Some(&self.acme.admin))?;
        connection(&admin, &configuration("tracker", &server.url())).await?;
        Ok(server)
    }

    /// Sees that the model was told the rule when it was asked this, and that the agent has asked the server for its tools.
    pub async fn knows_both(&self, words: &str, server: &Raw) -> Result<()> {
        let asked = self.asked().await?;
        let told = asked.iter().any(|it| it.user == words && it.system.contains(RULE));
        ensure!(told, "the model was not told the rule: {asked:#?}");
        eventually("the agent asks its server for tools", TURN, async || {
            let seen: Vec<String> = server.seen().iter().map(|seen| seen.body["method"].to_string()).collect();
            Ok(if server.count("tools/list") > 0 { Ok(()) } else { Err(format!("{seen:?}")) })
        })
        .await
    }
}
