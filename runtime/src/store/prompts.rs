//! Prompt policies, which the operator writes from the PromptPolicy resources and the API composes. Row-level security
//! shows a tenant its own and the global ones. May touch: `prompt_policies`, `mcp_connections`.

use std::collections::BTreeMap;

use agentapi_prompts::{Generations, Mode, Policy, Scope};
use serde_json::Value;
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::{StoreError, TenantTx};

/// What a prompt depends on, as far as it takes to know whether one that was composed before is still right.
#[derive(Debug)]
pub struct PromptState {
    /// Today in UTC, by the database's clock.
    pub date: String,
    /// Names of the MCP connections that the workspace's sessions may use.
    pub tools: Vec<String>,
    /// The policies.
    pub generations: Generations,
}

/// What a session is told, as its row keeps it.
#[derive(Debug, Clone, Copy)]
pub struct Told<'a> {
    /// Digest of the system prompt.
    pub digest: &'a str,
    /// `Detect`, `Redact` or `Reject`.
    pub screening: &'a str,
}

impl TenantTx {
    /// Which policies apply to a workspace, and in which generation. Cheap: no text is read.
    pub async fn prompt_state(&mut self, workspace: Uuid) -> Result<PromptState, StoreError> {
        let row = sqlx::query(
            "select to_char(now() at time zone 'UTC', 'YYYY-MM-DD') as date,
                    array(select c.name from mcp_connections c
                          where c.org_id = $2 and (c.workspace_id is null or c.workspace_id = $1) order by 1) as tools,
                    array_agg(p.id) filter (where p.id is not null) as ids,
                    array_agg(p.generation) filter (where p.id is not null) as generations
             from (select) once left join prompt_policies p
               on (p.org_id is null or p.org_id = $2) and (p.workspace_id is null or p.workspace_id = $1)",
        )
        .bind(workspace)
        .bind(self.organization_id)
        .fetch_one(&mut *self.tx)
        .await?;
        let ids: Option<Vec<Uuid>> = row.try_get("ids")?;
        let generations: Option<Vec<i64>> = row.try_get("generations")?;
        let pairs = ids.unwrap_or_default().into_iter().map(|id| id.as_u128()).zip(generations.unwrap_or_default());
        Ok(PromptState {
            date: row.try_get("date")?,
            tools: row.try_get("tools")?,
            generations: Generations::new(pairs),
        })
    }

    /// The same policies with their texts.
    pub async fn prompt_policies(&mut self, workspace: Uuid) -> Result<Vec<Policy>, StoreError> {
        let rows = sqlx::query(
            "select p.id, p.scope, p.k8s_namespace, p.name, p.generation, p.priority, p.locked, p.template,
                    p.spec -> 'variables' as variables, p.spec -> 'injection' ->> 'mode' as mode
             from prompt_policies p
             where (p.org_id is null or p.org_id = $2) and (p.workspace_id is null or p.workspace_id = $1)",
        )
        .bind(workspace)
        .bind(self.organization_id)
        .fetch_all(&mut *self.tx)
        .await?;
        rows.iter().map(policy).collect()
    }
}

fn policy(row: &PgRow) -> Result<Policy, StoreError> {
    let id: Uuid = row.try_get("id")?;
    let variables: Option<Value> = row.try_get("variables")?;
    let mode: Option<String> = row.try_get("mode")?;
    Ok(Policy {
        id: id.as_u128(),
        scope: Scope::parse(row.try_get("scope")?).ok_or(StoreError::Corrupt("prompt_policies.scope"))?,
        namespace: row.try_get("k8s_namespace")?,
        name: row.try_get("name")?,
        generation: row.try_get("generation")?,
        priority: row.try_get("priority")?,
        locked: row.try_get("locked")?,
        template: row.try_get("template")?,
        variables: variables
            .map_or_else(|| Ok(BTreeMap::new()), serde_json::from_value)
            .map_err(|_| StoreError::Corrupt("prompt_policies.spec"))?,
        mode: mode.map_or(Mode::default(), |mode| Mode::parse(&mode)),
    })
}
