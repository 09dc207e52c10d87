//! Rows of Workspaces, `McpConnections` and `PromptPolicies`, and what is live in Postgres. Static SQL; an
//! equal row is not written, and each change leaves its row in the audit log.
use crate::{
    audit::{self, Entry},
    metrics::Metrics,
    tenancy::{Result, failed, roles::Catalogue},
};
use serde::Serialize;
use serde_json::{Value, json};
use sqlx::{
    PgConnection, PgPool, Postgres, Row,
    postgres::{PgArguments, PgRow},
    query::Query,
};
use std::collections::HashMap;
use uuid::Uuid;

/// A row that stands for a resource. It goes to Postgres as one JSON object whose fields are the columns.
pub trait Record: Serialize + Sync {
    /// Kind of the resource.
    const KIND: &'static str;
    /// Label of the metric that counts changes.
    const METRIC: &'static str;
    /// Sets aside a predecessor: another object of the same name. Gives back what it set aside.
    const RETIRE: &'static str;
    /// Writes the row of `$1` unless it is there already. Gives it back, whether it is new, and whose it was before.
    const WRITE: &'static str;
    /// Takes the row with id `$1` out of use. Gives back what it took out.
    const REMOVE: &'static str;
    /// Rows in use, but for those of organizations that are gone: those are retained or deleted with it.
    const KEPT: &'static str;
}

/// Write a resource's row and record that, in one transaction. An equal row is not written and leaves no record.
pub async fn write<R: Record>(pool: &PgPool, row: &R, metrics: &Metrics) -> Result<()> {
    let mut tx = pool.begin().await.map_err(failed("begin a transaction"))?;
    let values = serde_json::to_value(row).unwrap_or_default();
    let retired = take_out::<R>(&mut tx, sqlx::query(R::RETIRE).bind(&values), "superseded").await?;
    let written =
        sqlx::query(R::WRITE).bind(&values).fetch_optional(&mut *tx).await.map_err(failed("write a resource's row"))?;
    if let Some(written) = &written {
        record_written::<R>(&mut tx, written).await?;
    }
    tx.commit().await.map_err(failed("commit"))?;
    if written.is_some() || retired > 0 {
        metrics.changed_database(R::METRIC);
    }
    Ok(())
}

/// A resource is gone, or must not be in use any more.
pub async fn remove<R: Record>(pool: &PgPool, id: Uuid, metrics: &Metrics) -> Result<()> {
    let mut tx = pool.begin().await.map_err(failed("begin a transaction"))?;
    let removed = take_out::<R>(&mut tx, sqlx::query(R::REMOVE).bind(id), "deleted").await?;
    tx.commit().await.map_err(failed("commit"))?;
    if removed > 0 {
        metrics.changed_database(R::METRIC);
    }
    Ok(())
}

async fn record_written<R: Record>(tx: &mut PgConnection, written: &PgRow) -> Result<()> {
    let read = || -> sqlx::Result<(Touched, bool, Option<Uuid>)> {
        Ok((Touched::read(written)?, written.try_get("created")?, written.try_get("before")?))
    };
    let (now, created, before) = read().map_err(failed("write a resource's row"))?;
    let moved = !created && before != now.organization;
    if moved {
        // For the organization that had it, it is gone.
        record::<R>(tx, before, "delete", &now, Some("moved")).await?;
    }
    let verb = if created || moved { "create" } else { "update" };
    record::<R>(tx, now.organization, verb, &now, None).await
}

/// Runs a statement that takes rows out of use, and records each; gives back how many.
async fn take_out<R: Record>(
    tx: &mut PgConnection,
    statement: Query<'_, Postgres, PgArguments>,
    reason: &str,
) -> Result<usize> {
    let removed = statement.fetch_all(&mut *tx).await.map_err(failed("remove a resource's row"))?;
    for row in &removed {
        let gone = Touched::read(row).map_err(failed("remove a resource's row"))?;
        record::<R>(tx, gone.organization, "delete", &gone, Some(reason)).await?;
    }
    Ok(removed.len())
}

/// A row that is in use, by the object that it stands for.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct Kept {
    /// `metadata.uid`.
    pub id: Uuid,
    /// `metadata.namespace`.
    #[sqlx(rename = "k8s_namespace")]
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

impl std::fmt::Display for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// All rows in use.
pub async fn kept<R: Record>(pool: &PgPool) -> Result<Vec<Kept>> {
    sqlx::query_as(R::KEPT).fetch_all(pool).await.map_err(failed("read the rows of resources"))
}

/// What the log tells of a row that a statement gave back.
struct Touched {
    organization: Option<Uuid>,
    id: Uuid,
    target: String,
    generation: i64,
}

impl Touched {
    fn read(row: &PgRow) -> sqlx::Result<Self> {
        let (namespace, name): (String, String) = (row.try_get("k8s_namespace")?, row.try_get("name")?);
        Ok(Self {
            organization: row.try_get("org_id")?,
            id: row.try_get("id")?,
            target: format!("{namespace}/{name}"),
            generation: row.try_get("generation")?,
        })
    }
}

async fn record<R: Record>(
    tx: &mut PgConnection,
    organization: Option<Uuid>,
    verb: &str,
    row: &Touched,
    reason: Option<&str>,
) -> Result<()> {
    let action = format!("{}.{verb}", R::KIND.to_lowercase());
    // With id and generation, the digests in the log can be computed again from its rows.
    let mut detail = json!({ "id": row.id, "generation": row.generation });
    if let Some(reason) = reason {
        detail["reason"] = reason.into();
    }
    let entry = Entry { action: &action, target_kind: R::KIND, target_id: &row.target, detail };
    audit::record(tx, organization, &entry).await
}

/// A Workspace's row.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WorkspaceRow {
    /// `metadata.uid`.
    pub id: Uuid,
    /// Its organization.
    #[serde(rename = "org_id")]
    pub organization: Uuid,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.namespace`.
    #[serde(rename = "k8s_namespace")]
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

/// A retired Workspace's row stays for the sessions it had.
impl Record for WorkspaceRow {
    const KIND: &'static str = "Workspace";
    const METRIC: &'static str = "workspace";
    const RETIRE: &'static str = "update workspaces w set deleted_at = now()
         from jsonb_populate_record(null::workspaces, $1) new
         where w.org_id = new.org_id and w.name = new.name and w.id <> new.id and w.deleted_at is null
         returning w.org_id, w.id, w.name, w.k8s_namespace, w.generation";
    const WRITE: &'static str = "insert into workspaces as w
             (org_id, id, name, k8s_namespace, agent_type, max_sessions, spec, generation)
         select org_id, id, name, k8s_namespace, agent_type, max_sessions, spec, generation
         from jsonb_populate_record(null::workspaces, $1)
         on conflict (org_id, id) do update set
             name = excluded.name, k8s_namespace = excluded.k8s_namespace, agent_type = excluded.agent_type,
             max_sessions = excluded.max_sessions, spec = excluded.spec, generation = excluded.generation,
             deleted_at = null
         where (w.name, w.k8s_namespace, w.agent_type, w.max_sessions, w.spec, w.generation, w.deleted_at)
            is distinct from (excluded.name, excluded.k8s_namespace, excluded.agent_type, excluded.max_sessions,
                              excluded.spec, excluded.generation, null::timestamptz)
         returning org_id, id, name, k8s_namespace, generation, (xmax = 0) as created, org_id as before";
    const REMOVE: &'static str = "update workspaces set deleted_at = now() where id = $1 and deleted_at is null
         returning org_id, id, name, k8s_namespace, generation";
    const KEPT: &'static str = "select w.id, w.k8s_namespace, w.name from workspaces w
         join organizations o on o.id = w.org_id where w.deleted_at is null and o.deleted_at is null";
}

/// An `McpConnection`'s row.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ConnectionRow {
    /// `metadata.uid`.
    pub id: Uuid,
    /// Its organization.
    #[serde(rename = "org_id")]
    pub organization: Uuid,
    /// Its Workspace, if it has one.
    #[serde(rename = "workspace_id")]
    pub workspace: Option<Uuid>,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.namespace`.
    #[serde(rename = "k8s_namespace")]
    pub namespace: String,
    /// `streamableHttp`, `sse` or `stdio`.
    pub transport: &'static str,
    /// The spec.
    pub spec: Value,
    /// Generation of the spec.
    pub generation: i64,
}

/// With a connection's row go the tokens that belong to it.
impl Record for ConnectionRow {
    const KIND: &'static str = "McpConnection";
    const METRIC: &'static str = "connection";
    const RETIRE: &'static str = "delete from mcp_connections c
         using jsonb_populate_record(null::mcp_connections, $1) new
         where c.org_id = new.org_id and c.k8s_namespace = new.k8s_namespace and c.name = new.name and c.id <> new.id
         returning c.org_id, c.id, c.name, c.k8s_namespace, c.generation";
    const WRITE: &'static str = "insert into mcp_connections as c
             (org_id, id, workspace_id, name, k8s_namespace, origin, transport, spec, generation)
         select org_id, id, workspace_id, name, k8s_namespace, 'crd', transport, spec, generation
         from jsonb_populate_record(null::mcp_connections, $1)
         on conflict (org_id, id) do update set
             workspace_id = excluded.workspace_id, name = excluded.name, k8s_namespace = excluded.k8s_namespace,
             transport = excluded.transport, spec = excluded.spec, generation = excluded.generation
         where (c.workspace_id, c.name, c.k8s_namespace, c.transport, c.spec, c.generation)
            is distinct from (excluded.workspace_id, excluded.name, excluded.k8s_namespace, excluded.transport,
                              excluded.spec, excluded.generation)
         returning org_id, id, name, k8s_namespace, generation, (xmax = 0) as created, org_id as before";
    const REMOVE: &'static str = "delete from mcp_connections where id = $1
         returning org_id, id, name, k8s_namespace, generation";
    const KEPT: &'static str = "select c.id, c.k8s_namespace, c.name from mcp_connections c
         join organizations o on o.id = c.org_id where c.origin = 'crd' and o.deleted_at is null";
}

/// A `PromptPolicy`'s row.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PolicyRow {
    /// `metadata.uid`.
    pub id: Uuid,
    /// Its organization; none when it is global.
    #[serde(rename = "org_id")]
    pub organization: Option<Uuid>,
    /// Its Workspace, for that scope.
    #[serde(rename = "workspace_id")]
    pub workspace: Option<Uuid>,
    /// Global, Organization or Workspace.
    pub scope: &'static str,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.namespace`.
    #[serde(rename = "k8s_namespace")]
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

impl Record for PolicyRow {
    const KIND: &'static str = "PromptPolicy";
    const METRIC: &'static str = "policy";
    const RETIRE: &'static str = "delete from prompt_policies p
         using jsonb_populate_record(null::prompt_policies, $1) new
         where p.k8s_namespace = new.k8s_namespace and p.name = new.name and p.id <> new.id
         returning p.org_id, p.id, p.name, p.k8s_namespace, p.generation";
    // The subquery sees the row as it was before the statement.
    const WRITE: &'static str = "insert into prompt_policies as p
             (id, org_id, workspace_id, scope, name, k8s_namespace, priority, locked, template, spec, generation)
         select id, org_id, workspace_id, scope, name, k8s_namespace, priority, locked, template, spec, generation
         from jsonb_populate_record(null::prompt_policies, $1)
         on conflict (id) do update set
             org_id = excluded.org_id, workspace_id = excluded.workspace_id, scope = excluded.scope,
             name = excluded.name, k8s_namespace = excluded.k8s_namespace, priority = excluded.priority,
             locked = excluded.locked, template = excluded.template, spec = excluded.spec,
             generation = excluded.generation
         where (p.org_id, p.workspace_id, p.scope, p.name, p.k8s_namespace, p.priority, p.locked, p.template,
                p.spec, p.generation)
            is distinct from
               (excluded.org_id, excluded.workspace_id, excluded.scope, excluded.name, excluded.k8s_namespace,
                excluded.priority, excluded.locked, excluded.template, excluded.spec, excluded.generation)
         returning org_id, id, name, k8s_namespace, generation, (xmax = 0) as created,
                   (select was.org_id from prompt_policies was where was.id = p.id) as before";
    const REMOVE: &'static str = "delete from prompt_policies where id = $1
         returning org_id, id, name, k8s_namespace, generation";
    const KEPT: &'static str = "select p.id, p.k8s_namespace, p.name from prompt_policies p
         left join organizations o on o.id = p.org_id where o.deleted_at is null";
}

/// Generation of a policy whose template is in use.
pub async fn active_policy_generation(pool: &PgPool, id: Uuid) -> Result<Option<i64>> {
    sqlx::query_scalar("select generation from prompt_policies where id = $1")
        .bind(id)
        .fetch_optional(pool)
        .await
        .map_err(failed("read the policy's row"))
}

/// How many sessions have not ended, by organization.
pub async fn live_sessions(pool: &PgPool) -> Result<HashMap<Uuid, i64>> {
    sqlx::query_as(
        "select org_id, count(*) from sessions where ended_at is null and phase <> 'Suspended' group by org_id",
    )
    .fetch_all(pool)
    .await
    .map(|rows: Vec<(Uuid, i64)>| rows.into_iter().collect())
    .map_err(failed("count sessions"))
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
