//! Rows of Workspaces, `McpConnections` and `PromptPolicies`, and what is live in Postgres. Static SQL; an
//! equal row is not written.
use crate::{
    metrics::Metrics,
    tenancy::{Result, failed, roles::Catalogue},
};
use serde_json::Value;
use sqlx::{PgPool, Row};
use uuid::Uuid;

/// A Workspace's row.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkspaceRow {
    /// `metadata.uid`.
    pub id: Uuid,
    /// Its organization.
    pub organization: Uuid,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `agent_type` of coder/agentapi.
    pub agent_type: String,
    /// Sessions at the same time.
    pub max_sessions: i32,
    /// The spec.
    pub spec: Value,
    /// Generation of the spec.
    pub generation: i64,
}

/// Write a Workspace's row.
pub async fn write_workspace(pool: &PgPool, row: &WorkspaceRow, metrics: &Metrics) -> Result<()> {
    let mut tx = pool.begin().await.map_err(failed("begin a transaction"))?;
    let retired = sqlx::query(
        "update workspaces set deleted_at = now() where org_id = $1 and name = $2 and id <> $3 and deleted_at is null",
    )
    .bind(row.organization)
    .bind(&row.name)
    .bind(row.id)
    .execute(&mut *tx)
    .await
    .map_err(failed("retire a predecessor"))?;
    let written = sqlx::query(
        "insert into workspaces as w (org_id, id, name, k8s_namespace, agent_type, max_sessions, spec, generation)
         values ($1, $2, $3, $4, $5, $6, $7, $8)
         on conflict (org_id, id) do update set
             name = excluded.name, k8s_namespace = excluded.k8s_namespace, agent_type = excluded.agent_type,
             max_sessions = excluded.max_sessions, spec = excluded.spec, generation = excluded.generation,
             deleted_at = null
         where (w.name, w.k8s_namespace, w.agent_type, w.max_sessions, w.spec, w.generation, w.deleted_at)
            is distinct from (excluded.name, excluded.k8s_namespace, excluded.agent_type, excluded.max_sessions,
                              excluded.spec, excluded.generation, null::timestamptz)",
    )
    .bind(row.organization)
    .bind(row.id)
    .bind(&row.name)
    .bind(&row.namespace)
    .bind(&row.agent_type)
    .bind(row.max_sessions)
    .bind(&row.spec)
    .bind(row.generation)
    .execute(&mut *tx)
    .await
    .map_err(failed("write the workspace's row"))?;
    tx.commit().await.map_err(failed("commit"))?;
    if retired.rows_affected() + written.rows_affected() > 0 {
        metrics.changed_database("workspace");
    }
    Ok(())
}

/// A Workspace is gone; its row stays for the sessions it had.
pub async fn retire_workspace(pool: &PgPool, id: Uuid, metrics: &Metrics) -> Result<()> {
    let done = sqlx::query("update workspaces set deleted_at = now() where id = $1 and deleted_at is null")
        .bind(id)
        .execute(pool)
        .await
        .map_err(failed("retire the workspace's row"))?;
    if done.rows_affected() > 0 {
        metrics.changed_database("workspace");
    }
    Ok(())
}

/// An `McpConnection`'s row.
#[derive(Clone, Debug, PartialEq)]
pub struct ConnectionRow {
    /// `metadata.uid`.
    pub id: Uuid,
    /// Its organization.
    pub organization: Uuid,
    /// Its Workspace, if it has one.
    pub workspace: Option<Uuid>,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `streamableHttp`, `sse` or `stdio`.
    pub transport: &'static str,
    /// The spec.
    pub spec: Value,
    /// Generation of the spec.
    pub generation: i64,
}

/// Write an `McpConnection`'s row.
pub async fn write_connection(pool: &PgPool, row: &ConnectionRow, metrics: &Metrics) -> Result<()> {
    let mut tx = pool.begin().await.map_err(failed("begin a transaction"))?;
    let retired =
        sqlx::query("delete from mcp_connections where org_id = $1 and k8s_namespace = $2 and name = $3 and id <> $4")
            .bind(row.organization)
            .bind(&row.namespace)
            .bind(&row.name)
            .bind(row.id)
            .execute(&mut *tx)
            .await
            .map_err(failed("remove a predecessor"))?;
    let written = sqlx::query(
        "insert into mcp_connections as c
             (org_id, id, workspace_id, name, k8s_namespace, origin, transport, spec, generation)
         values ($1, $2, $3, $4, $5, 'crd', $6, $7, $8)
         on conflict (org_id, id) do update set
             workspace_id = excluded.workspace_id, name = excluded.name, k8s_namespace = excluded.k8s_namespace,
             transport = excluded.transport, spec = excluded.spec, generation = excluded.generation
         where (c.workspace_id, c.name, c.k8s_namespace, c.transport, c.spec, c.generation)
            is distinct from (excluded.workspace_id, excluded.name, excluded.k8s_namespace, excluded.transport,
                              excluded.spec, excluded.generation)",
    )
    .bind(row.organization)
    .bind(row.id)
    .bind(row.workspace)
    .bind(&row.name)
    .bind(&row.namespace)
    .bind(row.transport)
    .bind(&row.spec)
    .bind(row.generation)
    .execute(&mut *tx)
    .await
    .map_err(failed("write the connection's row"))?;
    tx.commit().await.map_err(failed("commit"))?;
    if retired.rows_affected() + written.rows_affected() > 0 {
        metrics.changed_database("connection");
    }
    Ok(())
}

/// An `McpConnection` is gone, and the tokens that belong to it with it.
pub async fn delete_connection(pool: &PgPool, id: Uuid, metrics: &Metrics) -> Result<()> {
    let done = sqlx::query("delete from mcp_connections where id = $1")
        .bind(id)
        .execute(pool)
        .await
        .map_err(failed("delete the connection's row"))?;
    if done.rows_affected() > 0 {
        metrics.changed_database("connection");
    }
    Ok(())
}

/// A `PromptPolicy`'s row.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyRow {
    /// `metadata.uid`.
    pub id: Uuid,
    /// Its organization; none when it is global.
    pub organization: Option<Uuid>,
    /// Its Workspace, for that scope.
    pub workspace: Option<Uuid>,
    /// Global, Organization or Workspace.
    pub scope: &'static str,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// Order within the scope.
    pub priority: i32,
    /// No lower scope can override it.
    pub locked: bool,
    /// The text.
    pub template: String,
    /// The spec.
    pub spec: Value,
    /// Generation of the spec.
    pub generation: i64,
}

/// Write a `PromptPolicy`'s row.
pub async fn write_policy(pool: &PgPool, row: &PolicyRow, metrics: &Metrics) -> Result<()> {
    let mut tx = pool.begin().await.map_err(failed("begin a transaction"))?;
    let retired = sqlx::query("delete from prompt_policies where k8s_namespace = $1 and name = $2 and id <> $3")
        .bind(&row.namespace)
        .bind(&row.name)
        .bind(row.id)
        .execute(&mut *tx)
        .await
        .map_err(failed("remove a predecessor"))?;
    let written = sqlx::query(
        "insert into prompt_policies as p
             (id, org_id, workspace_id, scope, name, k8s_namespace, priority, locked, template, spec, generation)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
         on conflict (id) do update set
             org_id = excluded.org_id, workspace_id = excluded.workspace_id, scope = excluded.scope,
             name = excluded.name, k8s_namespace = excluded.k8s_namespace, priority = excluded.priority,
             locked = excluded.locked, template = excluded.template, spec = excluded.spec,
             generation = excluded.generation
         where (p.org_id, p.workspace_id, p.scope, p.name, p.k8s_namespace, p.priority, p.locked, p.template,
                p.spec, p.generation)
            is distinct from
               (excluded.org_id, excluded.workspace_id, excluded.scope, excluded.name, excluded.k8s_namespace,
                excluded.priority, excluded.locked, excluded.template, excluded.spec, excluded.generation)",
    )
    .bind(row.id)
    .bind(row.organization)
    .bind(row.workspace)
    .bind(row.scope)
    .bind(&row.name)
    .bind(&row.namespace)
    .bind(row.priority)
    .bind(row.locked)
    .bind(&row.template)
    .bind(&row.spec)
    .bind(row.generation)
    .execute(&mut *tx)
    .await
    .map_err(failed("write the policy's row"))?;
    tx.commit().await.map_err(failed("commit"))?;
    if retired.rows_affected() + written.rows_affected() > 0 {
        metrics.changed_database("policy");
    }
    Ok(())
}

/// Generation of a policy whose template is in use.
pub async fn active_policy_generation(pool: &PgPool, id: Uuid) -> Result<Option<i64>> {
    sqlx::query_scalar("select generation from prompt_policies where id = $1")
        .bind(id)
        .fetch_optional(pool)
        .await
        .map_err(failed("read the policy's row"))
}

/// A `PromptPolicy` is gone.
pub async fn delete_policy(pool: &PgPool, id: Uuid, metrics: &Metrics) -> Result<()> {
    let done = sqlx::query("delete from prompt_policies where id = $1")
        .bind(id)
        .execute(pool)
        .await
        .map_err(failed("delete the policy's row"))?;
    if done.rows_affected() > 0 {
        metrics.changed_database("policy");
    }
    Ok(())
}

/// A live organization as Postgres has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveOrganization {
    /// `metadata.uid`.
    pub id: Uuid,
    /// `metadata.name`.
    pub slug: String,
    /// Generation that was written last.
    pub generation: i64,
    /// What happens to its rows.
    pub deletes: bool,
    /// How many of its two roles are known.
    pub roles: i64,
}

/// What is live in Postgres, for noticing drift.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Organizations that are not deleted.
    pub organizations: Vec<LiveOrganization>,
    /// All roles of tenants.
    pub roles: Catalogue,
}

/// Two cheap queries, however many tenants there are.
pub async fn snapshot(pool: &PgPool) -> Result<Snapshot> {
    let rows = sqlx::query(
        "select o.id, o.slug, o.generation, o.deletion_policy = 'Delete' as deletes,
                (select count(*) from tenant_roles t where t.org_id = o.id) as roles
         from organizations o where o.deleted_at is null",
    )
    .fetch_all(pool)
    .await
    .map_err(failed("read the organizations"))?;
    let read = |row: &sqlx::postgres::PgRow| -> sqlx::Result<LiveOrganization> {
        Ok(LiveOrganization {
            id: row.try_get("id")?,
            slug: row.try_get("slug")?,
            generation: row.try_get("generation")?,
            deletes: row.try_get("deletes")?,
            roles: row.try_get("roles")?,
        })
    };
    let organizations =
        rows.iter().map(|row| read(row).map_err(failed("read the organizations"))).collect::<Result<_>>()?;
    Ok(Snapshot { organizations, roles: crate::tenancy::roles::observe(pool).await? })
}
