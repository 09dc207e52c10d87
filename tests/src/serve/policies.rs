//! Prompt policies as the operator makes them, by its own code, and what the API shows of them.

use agentapi_crds::PromptPolicy;
use agentapi_operator::controllers::prompt_policy::validate::{Verdict, validate};
use agentapi_operator::controllers::reference::Tenancy;
use agentapi_operator::metrics::Metrics;
use agentapi_operator::records::{self, PolicyRow};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sqlx::PgPool;
use std::sync::Arc;
use uuid::Uuid;

use crate::api::Api;
use crate::pg::Organization;

/// The operator's own namespace.
pub const SYSTEM: &str = "agentapi-system";

/// What the operator makes of PromptPolicies, by its own code.
pub struct Operator {
    /// Logged in as the operator.
    pub pool: PgPool,
    /// Its counters.
    pub metrics: Arc<Metrics>,
}

impl Operator {
    /// Of this platform.
    pub async fn of(platform: &super::Platform) -> Result<Self> {
        Ok(Self { pool: PgPool::connect(&platform.db.operator_url()).await?, metrics: Metrics::new()? })
    }

    /// What the operator says to a policy.
    pub fn verdict(
        organization: Option<&Organization>,
        id: Uuid,
        at: (&str, &str),
        generation: i64,
        spec: &Value,
    ) -> Verdict {
        let policy: PromptPolicy = serde_json::from_value(json!({
            "apiVersion": "agentapi.dev/v1alpha1", "kind": "PromptPolicy",
            "metadata": {"namespace": at.0, "name": at.1, "uid": id, "generation": generation},
            "spec": spec,
        }))
        .unwrap_or_else(|error| unreachable!("not a policy: {error}"));
        let tenancy = organization.map(|organization| {
            Ok(Tenancy {
                id: organization.id,
                slug: organization.slug.clone(),
                namespace_ready: true,
                database_ready: true,
                workspaces: 9,
                mcp_servers: 9,
                prompt_policies: 9,
                allowed_egress: None,
            })
        });
        validate(&policy, tenancy, None, SYSTEM, [])
    }

    /// Writes a row as it is.
    pub async fn write(&self, row: &PolicyRow) -> Result<()> {
        Ok(records::write(&self.pool, row, &self.metrics).await?)
    }

    fn row(organization: Option<&Organization>, at: (&str, &str), spec: &Value) -> Result<PolicyRow> {
        match Self::verdict(organization, Uuid::new_v4(), at, 1, spec) {
            Verdict::Good(row) => Ok(*row),
            other => bail!("{other:?}"),
        }
    }

    /// Applies a policy for everybody.
    pub async fn for_everybody(&self, name: &str, more: &Value) -> Result<PolicyRow> {
        let mut spec = json!({"scope": "Global"});
        merge(&mut spec, more);
        let row = Self::row(None, (SYSTEM, name), &spec)?;
        self.write(&row).await?;
        Ok(row)
    }

    /// Applies a policy of the organization, with more of a spec, in the namespace `team-<slug>`.
    pub async fn of_organization(&self, tenant: &Organization, name: &str, more: &Value) -> Result<PolicyRow> {
        let mut spec = json!({"scope": "Organization", "organizationRef": {"name": tenant.slug}});
        merge(&mut spec, more);
        let row = Self::row(Some(tenant), (&format!("team-{}", tenant.slug), name), &spec)?;
        self.write(&row).await?;
        Ok(row)
    }

    /// Applies a policy of the workspace `main`, whose id the operator knows from its status, in `main-<slug>`.
    pub async fn of_main(&self, tenant: &Organization, name: &str, template: &str) -> Result<PolicyRow> {
        let spec = json!({"scope": "Organization", "organizationRef": {"name": tenant.slug}, "template": template});
        let mut row = Self::row(Some(tenant), (&format!("main-{}", tenant.slug), name), &spec)?;
        row.scope = "Workspace";
        row.workspace = Some(tenant.workspace);
        self.write(&row).await?;
        Ok(row)
    }
}

fn merge(spec: &mut Value, more: &Value) {
    for (name, value) in more.as_object().cloned().unwrap_or_default() {
        spec[name] = value;
    }
}

/// What a session in `main` would get.
pub async fn preview(api: &Api, prompt: Option<&str>) -> Result<Value> {
    let mut body = json!({"workspace": "main"});
    if let Some(prompt) = prompt {
        body["prompt"] = prompt.into();
    }
    api.post("/v1/prompts/preview", &body).await?.expect(200)
}

/// `policy: text` of each line.
pub fn lines(preview: &Value) -> Vec<String> {
    let lines = preview["lines"].as_array().into_iter().flatten();
    lines
        .map(|line| {
            let field = |name: &str| line[name].as_str();
            let source = field("policy").or(field("scope")).unwrap_or_default();
            format!("{source}: {}", field("text").unwrap_or_default())
        })
        .collect()
}

/// Rows of the audit log, newest first.
pub async fn audit(replica: &super::Replica, admin: &str, query: &str) -> Result<Vec<Value>> {
    let page = replica.api(Some(admin))?.get(&format!("/v1/audit?{query}")).await?.expect(200)?;
    page["entries"].as_array().cloned().context("no entries")
}
