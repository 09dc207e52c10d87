//! Prompt policies, which the operator writes from the PromptPolicy resources and the API composes. Row-level security
//! shows a tenant its own and the global ones. May touch: `prompt_policies`, `mcp_connections`, `mcp_observations`.

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
    /// A policy says something about tools.
    pub lists_tools: bool,
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
    /// Which policies apply to a workspace, and in which generation. Cheap: no text leaves Postgres.
    pub async fn prompt_state(&mut self, workspace: Uuid) -> Result<PromptState, StoreError> {
        let row = sqlx::query(
            "select to_char(now() at time zone 'UTC', 'YYYY-MM-DD') as date,
                    coalesce(bool_or(p.template like '%tools%'), false) as lists_tools,
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
            lists_tools: row.try_get("lists_tools")?,
            generations: Generations::new(pairs),
        })
    }

    /// Ids and names of the connections of a workspace's sessions, each with its first tools that the gateway lets through, as far as its
    /// server was seen since the connection was changed. Says the same as `mcp::policy`, where nobody has to read what may
    /// be megabytes of what servers say.
    pub async fn offered_tools(
        &mut self,
        workspace: Uuid,
        limit: usize,
    ) -> Result<Vec<(Uuid, String, Vec<String>)>, StoreError> {
        let rows = sqlx::query_as(
            "select c.id, c.name,
                    array(select tool ->> 'name' from jsonb_array_elements(o.tools) tool
                          where not coalesce(c.spec #> '{tools,deny}' ? (tool ->> 'name'), false)
                            and (coalesce(c.spec #> '{tools,allow}', '[]') = '[]'
                                 or c.spec #> '{tools,allow}' ? (tool ->> 'name'))
                            and (not coalesce((c.spec #>> '{tools,pin}')::boolean, false)
                                 or not o.quarantined
                                    and (o.pinned is null
                                         or (tool ->> 'name', tool ->> 'digest') in
                                            (select pin ->> 'name', pin ->> 'digest'
                                             from jsonb_array_elements(o.pinned) pin)))
                          order by 1 limit $3) as tools
             from mcp_connections c left join mcp_observations o
               on o.org_id = c.org_id and o.connection_id = c.id and o.generation = c.generation
             where c.org_id = $2 and (c.workspace_id is null or c.workspace_id = $1)
             order by c.name, c.id limit 256",
        );
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        Ok(rows.bind(workspace).bind(self.organization_id).bind(limit).fetch_all(&mut *self.tx).await?)
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
