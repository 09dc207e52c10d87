//! Sessions: rows, their phases, quotas and idempotency. Every change of phase names the phases that it may start
//! from, so that two replicas at work on one session cannot undo each other. May touch: `sessions`, `workspaces`.

use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

pub use super::phase::Phase;
use super::prompts::Told;
use super::workspaces::Workspace;
use super::{StoreError, TenantTx};

/// A session.
#[derive(Debug, Clone)]
pub struct Session {
    /// `UUIDv7`.
    pub id: Uuid,
    /// Name of its workspace.
    pub workspace: String,
    /// Owner.
    pub user_id: Uuid,
    /// Where it is in its life.
    pub phase: Phase,
    /// Its pod.
    pub pod_name: Option<String>,
    /// Address of its pod.
    pub pod_ip: Option<String>,
    /// Type of its agent.
    pub agent_type: String,
    /// `running` or `stable`, as its pod last said.
    pub agent_status: Option<String>,
    /// Why it failed.
    pub error: Option<String>,
    /// RFC 3339, UTC.
    pub created_at: String,
    /// RFC 3339, UTC.
    pub updated_at: String,
    /// RFC 3339, UTC.
    pub last_activity_at: String,
    /// RFC 3339, UTC.
    pub ended_at: Option<String>,
    /// Seconds since it was created, by the database's clock.
    pub age_seconds: f64,
    /// Seconds since the row was last changed.
    pub unchanged_seconds: f64,
    /// Seconds since its user or agent did something.
    pub idle_seconds: f64,
    /// Seconds since it was over.
    pub over_seconds: Option<f64>,
    /// Text in its messages, as last recorded.
    pub transcript_bytes: i64,
    /// The workspace's `idleTimeout`.
    pub idle_timeout: Option<String>,
    /// The workspace's `ttl`.
    pub ttl: Option<String>,
    /// The workspace's `suspend.idleAfter`.
    pub suspend_after: Option<String>,
    /// The workspace's transport, `pty` or `acp`.
    pub transport: String,
    /// Its workspace was deleted.
    pub workspace_deleted: bool,
    /// It was suspended and does not run again yet.
    pub was_suspended: bool,
    /// Digest of the system prompt that it was given.
    pub prompt_digest: Option<String>,
    /// What happens to its user's messages that look like injections.
    pub prompt_screening: Option<String>,
}

/// Columns of [`Session`]; `sqlx::query` takes literals only, hence a macro.
macro_rules! select_session {
    ($rest:literal) => {
        concat!(
            "select s.id, w.name as workspace, s.user_id, s.phase, s.pod_name, s.pod_ip, s.agent_type, s.agent_status,
                    s.error,
                    to_char(s.created_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"') as created_at,
                    to_char(s.updated_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"') as updated_at,
                    to_char(s.last_activity_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')
                        as last_activity_at,
                    to_char(s.ended_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"') as ended_at,
                    extract(epoch from now() - s.created_at)::float8 as age_seconds,
                    extract(epoch from now() - s.updated_at)::float8 as unchanged_seconds,
                    extract(epoch from now() - s.last_activity_at)::float8 as idle_seconds,
                    extract(epoch from now() - s.ended_at)::float8 as over_seconds, s.transcript_bytes,
                    w.spec ->> 'idleTimeout' as idle_timeout, w.spec ->> 'ttl' as ttl, s.prompt_digest, s.prompt_screening,
                    w.spec -> 'suspend' ->> 'idleAfter' as suspend_after, w.deleted_at is not null as workspace_deleted,
                    lower(coalesce(w.spec -> 'agent' ->> 'transport', 'pty')) as transport,
                    s.suspended_at is not null as was_suspended
             from sessions s join workspaces w on w.org_id = s.org_id and w.id = s.workspace_id ",
            $rest
        )
    };
}

/// Behind every routed request. `$1` is the session.
pub const SESSION_BY_ID: &str = select_session!("where s.id = $1");

/// A page of a list. `$1` to `$4` are workspace, phase, the id before which it begins, and how many.
pub const SESSIONS_PAGE: &str = select_session!(
    "where ($1::text is null or w.name = $1) and ($2::text is null or s.phase = $2)
       and ($3::uuid is null or s.id < $3)
     order by s.id desc limit $4"
);

/// What counts against the organization's quota.
pub const LIVE_SESSIONS: &str = "select count(*) from sessions where ended_at is null and phase <> 'Suspended'";

impl Session {
    fn from_row(row: &PgRow) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.try_get("id")?,
            workspace: row.try_get("workspace")?,
            user_id: row.try_get("user_id")?,
            phase: Phase::parse(row.try_get("phase")?)?,
            pod_name: row.try_get("pod_name")?,
            pod_ip: row.try_get("pod_ip")?,
            agent_type: row.try_get("agent_type")?,
            agent_status: row.try_get("agent_status")?,
            error: row.try_get("error")?,
            created_at: row.try_get("created_at")?,
            updated_at: row.try_get("updated_at")?,
            last_activity_at: row.try_get("last_activity_at")?,
            ended_at: row.try_get("ended_at")?,
            age_seconds: row.try_get("age_seconds")?,
            unchanged_seconds: row.try_get("unchanged_seconds")?,
            idle_seconds: row.try_get("idle_seconds")?,
            over_seconds: row.try_get("over_seconds")?,
            transcript_bytes: row.try_get("transcript_bytes")?,
            idle_timeout: row.try_get("idle_timeout")?,
            ttl: row.try_get("ttl")?,
            suspend_after: row.try_get("suspend_after")?,
            transport: row.try_get("transport")?,
            workspace_deleted: row.try_get("workspace_deleted")?,
            was_suspended: row.try_get("was_suspended")?,
            prompt_digest: row.try_get("prompt_digest")?,
            prompt_screening: row.try_get("prompt_screening")?,
        })
    }
}

/// Which sessions a list shows.
#[derive(Debug, Default)]
pub struct SessionFilter<'a> {
    /// Only those of this workspace.
    pub workspace: Option<&'a str>,
    /// Only those in this phase.
    pub phase: Option<Phase>,
    /// Only those older than this one (the cursor).
    pub before: Option<Uuid>,
    /// At most this many.
    pub limit: i64,
}

/// A limit that leaves no room.
#[derive(Debug, Clone)]
pub struct QuotaExceeded {
    /// `organization.sessions` or `workspace.maxSessions`.
    pub quota: &'static str,
    /// The limit.
    pub limit: i64,
    /// Sessions that count against it.
    pub used: i64,
}

impl TenantTx {
    /// A session that the scope may see.
    pub async fn session(&mut self, id: Uuid) -> Result<Option<Session>, StoreError> {
        let row = sqlx::query(SESSION_BY_ID).bind(id).fetch_optional(&mut *self.tx).await?;
        row.as_ref().map(Session::from_row).transpose()
    }

    /// Whether the scope sees any session at all, of those that are over too.
    pub async fn sees_sessions(&mut self) -> Result<bool, StoreError> {
        Ok(sqlx::query(select_session!("limit 1")).fetch_optional(&mut *self.tx).await?.is_some())
    }

    /// Ids and names of the MCP connections that a session's agent has: of its workspace, and of the whole organization.
    pub async fn session_connections(&mut self, id: Uuid) -> Result<Vec<(Uuid, String)>, StoreError> {
        let rows = sqlx::query_as(
            "select c.id, c.name from sessions s join mcp_connections c on c.org_id = s.org_id
             where s.id = $1 and (c.workspace_id is null or c.workspace_id = s.workspace_id)
             order by c.name, c.id limit 256",
        );
        Ok(rows.bind(id).fetch_all(&mut *self.tx).await?)
    }

    /// Newest first.
    pub async fn sessions(&mut self, filter: &SessionFilter<'_>) -> Result<Vec<Session>, StoreError> {
        let rows = sqlx::query(SESSIONS_PAGE)
            .bind(filter.workspace)
            .bind(filter.phase.map(Phase::as_str))
            .bind(filter.before)
            .bind(filter.limit)
            .fetch_all(&mut *self.tx)
            .await?;
        rows.iter().map(Session::from_row).collect()
    }

    /// All that are not over, for the platform's loop.
    pub async fn unfinished_sessions(&mut self) -> Result<Vec<Session>, StoreError> {
        let rows =
            sqlx::query(select_session!("where s.ended_at is null order by s.id")).fetch_all(&mut *self.tx).await?;
        rows.iter().map(Session::from_row).collect()
    }

    /// The session that the user made with this key, and the hash of the request that made it.
    pub async fn session_by_key(&mut self, key: &str) -> Result<Option<(Uuid, Option<String>)>, StoreError> {
        let row = sqlx::query("select id, request_hash from sessions where user_id = $1 and idempotency_key = $2")
            .bind(self.user_id)
            .bind(key)
            .fetch_optional(&mut *self.tx)
            .await?;
        Ok(row.map(|row| Ok::<_, sqlx::Error>((row.try_get("id")?, row.try_get("request_hash")?))).transpose()?)
    }

    /// Locks the organization until the transaction ends and looks whether one more session fits. Whoever inserts
    /// in the same transaction cannot be overtaken by another request.
    pub async fn reserve_session(
        &mut self,
        workspace: &str,
        organization_limit: Option<i64>,
    ) -> Result<Option<Result<Workspace, QuotaExceeded>>, StoreError> {
        // A mistake in the name must not queue up behind the lock.
        let known: bool =
            sqlx::query_scalar("select exists (select from workspaces where name = $1 and deleted_at is null)")
                .bind(workspace)
                .fetch_one(&mut *self.tx)
                .await?;
        if !known {
            return Ok(None);
        }
        self.lock_organization().await?;
        let Some(found) = self.workspaces().await?.into_iter().find(|candidate| candidate.name == workspace) else {
            return Ok(None);
        };
        self.widen().await?;
        let used: i64 = sqlx::query_scalar(LIVE_SESSIONS).fetch_one(&mut *self.tx).await?;
        self.end_widened().await?;
        if let Some(limit) = organization_limit.filter(|limit| used >= *limit) {
            return Ok(Some(Err(QuotaExceeded { quota: "organization.sessions", limit, used })));
        }
        let limit = i64::from(found.max_sessions);
        if found.active_sessions >= limit {
            let used = found.active_sessions;
            return Ok(Some(Err(QuotaExceeded { quota: "workspace.maxSessions", limit, used })));
        }
        Ok(Some(Ok(found)))
    }

    /// Adds a Pending session of the scope's user. False: another request with the same key got there first.
    pub async fn insert_session(
        &mut self,
        id: Uuid,
        workspace: &Workspace,
        told: Told<'_>,
        idempotency: Option<(&str, &str)>,
    ) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "insert into sessions (org_id, id, workspace_id, user_id, agent_type, idempotency_key, request_hash,
                                   prompt_digest, prompt_screening)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
             on conflict on constraint sessions_idempotency do nothing",
        )
        .bind(self.organization_id)
        .bind(id)
        .bind(workspace.id)
        .bind(self.user_id)
        .bind(&workspace.agent_type)
        .bind(idempotency.map(|(key, _)| key))
        .bind(idempotency.map(|(_, hash)| hash))
        .bind(told.digest)
        .bind(told.screening)
        .execute(&mut *self.tx)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// The next request with the session's key makes another session.
    pub async fn forget_idempotency_key(&mut self, id: Uuid) -> Result<(), StoreError> {
        sqlx::query("update sessions set idempotency_key = null, request_hash = null where id = $1")
            .bind(id)
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }

    /// Pending or Starting → Starting, on this pod. False: it was deleted or has failed meanwhile.
    pub async fn session_starting(&mut self, id: Uuid, pod: &str, ip: Option<&str>) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "update sessions set phase = 'Starting', pod_name = $2, pod_ip = $3
             where id = $1 and phase in ('Pending', 'Starting')",
        )
        .bind(id)
        .bind(pod)
        .bind(ip)
        .execute(&mut *self.tx)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Starting → Running. False: it was deleted or has failed meanwhile.
    pub async fn session_running(&mut self, id: Uuid) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "update sessions set phase = 'Running', last_activity_at = now(), suspended_at = null, error = null
             where id = $1 and phase = 'Starting'",
        )
        .bind(id)
        .execute(&mut *self.tx)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Somebody works on it. False: there is nothing to be worked on any more.
    pub async fn session_touched(&mut self, id: Uuid) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "update sessions set updated_at = now() where id = $1 and phase in ('Pending', 'Starting', 'Suspending')",
        )
        .bind(id)
        .execute(&mut *self.tx)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// A restarted pod may have a new address.
    pub async fn session_moved(&mut self, id: Uuid, ip: &str) -> Result<(), StoreError> {
        sqlx::query(
            "update sessions set pod_ip = $2 where id = $1 and ended_at is null and pod_ip is distinct from $2",
        )
        .bind(id)
        .bind(ip)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Whatever is not over → Terminating. False: it is already Terminating or over.
    pub async fn session_terminating(&mut self, id: Uuid) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "update sessions set phase = 'Terminating'
             where id = $1 and phase in ('Pending', 'Starting', 'Running', 'Suspending', 'Suspended')",
        )
        .bind(id)
        .execute(&mut *self.tx)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Terminating → Ended.
    pub async fn session_ended(&mut self, id: Uuid) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "update sessions set phase = 'Ended', ended_at = now(), pod_ip = null, agent_status = null
             where id = $1 and phase = 'Terminating'",
        )
        .bind(id)
        .execute(&mut *self.tx)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Pending, Starting or Running → Failed.
    pub async fn session_failed(&mut self, id: Uuid, error: &str) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "update sessions set phase = 'Failed', error = left($2, 4096), ended_at = now(), pod_ip = null,
                                 agent_status = null
             where id = $1 and phase in ('Pending', 'Starting', 'Running')",
        )
        .bind(id)
        .bind(error)
        .execute(&mut *self.tx)
        .await?;
        Ok(done.rows_affected() == 1)
    }
}
