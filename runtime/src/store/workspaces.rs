//! Workspaces, which the operator writes from the Workspace resources and the API reads. May touch: `workspaces`.

use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::{StoreError, TenantTx};

/// A workspace.
#[derive(Debug, Clone)]
pub struct Workspace {
    /// Row id.
    pub id: Uuid,
    /// Name within the organization.
    pub name: String,
    /// Type of its agent.
    pub agent_type: String,
    /// Most sessions at a time.
    pub max_sessions: i32,
    /// Sessions of all users that have not ended and are not suspended.
    pub active_sessions: i64,
}

impl Workspace {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            id: row.try_get("id")?,
            name: row.try_get("name")?,
            agent_type: row.try_get("agent_type")?,
            max_sessions: row.try_get("max_sessions")?,
            active_sessions: row.try_get("active_sessions")?,
        })
    }
}

impl TenantTx {
    /// Workspaces whose pods wait for sessions.
    pub async fn workspaces_with_warm_pods(&mut self) -> Result<Vec<Workspace>, StoreError> {
        let rows = sqlx::query(
            "select w.id, w.name, w.agent_type, w.max_sessions, 0::bigint as active_sessions from workspaces w
             where w.deleted_at is null and jsonb_typeof(w.spec -> 'warmPool') = 'number'
               and (w.spec ->> 'warmPool')::numeric > 0",
        )
        .fetch_all(&mut *self.tx)
        .await?;
        Ok(rows.iter().map(Workspace::from_row).collect::<Result<_, _>>()?)
    }

    /// Workspaces of the organization, by name.
    pub async fn workspaces(&mut self) -> Result<Vec<Workspace>, StoreError> {
        self.widen().await?;
        let rows = sqlx::query(
            "select w.id, w.name, w.agent_type, w.max_sessions,
                    (select count(*) from sessions s
                     where s.org_id = w.org_id and s.workspace_id = w.id and s.ended_at is null
                       and s.phase <> 'Suspended') as active_sessions
             from workspaces w where w.deleted_at is null order by w.name",
        )
        .fetch_all(&mut *self.tx)
        .await?;
        self.end_widened().await?;
        Ok(rows.iter().map(Workspace::from_row).collect::<Result<_, _>>()?)
    }
}
