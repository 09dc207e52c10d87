//! Sessions that nobody uses: from Running to Suspended and back, and when they were used last. As in `sessions`, every
//! change of phase names the phases that it may start from. May touch: `sessions`.

use uuid::Uuid;

use super::{StoreError, TenantTx};

/// One statement about one session. True: it was in the phase that the change starts from.
macro_rules! change {
    ($tx:expr, $statement:literal, $id:expr $(, $value:expr)*) => {{
        let done = sqlx::query($statement).bind($id)$(.bind($value))*.execute(&mut *$tx.tx).await?;
        Ok(done.rows_affected() == 1)
    }};
}

impl TenantTx {
    /// Running → Suspending, if its agent waits and nobody has used it for so long. One statement: a request that comes
    /// at the same time is either seen here or sees the new phase.
    pub async fn session_suspending(&mut self, id: Uuid, idle_seconds: f64) -> Result<bool, StoreError> {
        change!(
            self,
            "update sessions set phase = 'Suspending'
             where id = $1 and phase = 'Running' and agent_status is distinct from 'running'
               and last_activity_at < now() - make_interval(secs => $2)",
            id,
            idle_seconds
        )
    }

    /// Running or Suspended → Terminating, if nobody has used it for so long, in one statement too.
    pub async fn session_terminating_idle(&mut self, id: Uuid, idle_seconds: f64) -> Result<bool, StoreError> {
        change!(
            self,
            "update sessions set phase = 'Terminating'
             where id = $1 and phase in ('Running', 'Suspended')
               and last_activity_at < now() - make_interval(secs => $2)",
            id,
            idle_seconds
        )
    }

    /// Running → Suspending: its pod is going, whatever its agent does.
    pub async fn session_losing_pod(&mut self, id: Uuid) -> Result<bool, StoreError> {
        change!(self, "update sessions set phase = 'Suspending' where id = $1 and phase = 'Running'", id)
    }

    /// Suspending → Suspended: its pod is gone.
    pub async fn session_suspended(&mut self, id: Uuid) -> Result<bool, StoreError> {
        change!(
            self,
            "update sessions set phase = 'Suspended', pod_ip = null, agent_status = null,
                                 suspended_at = coalesce(suspended_at, now())
             where id = $1 and phase = 'Suspending'",
            id
        )
    }

    /// Suspended → Starting.
    pub async fn session_waking(&mut self, id: Uuid) -> Result<bool, StoreError> {
        change!(
            self,
            "update sessions set phase = 'Starting', last_activity_at = now(), error = null
             where id = $1 and phase = 'Suspended'",
            id
        )
    }

    /// Suspended → Suspending: it has a pod although it should have none.
    pub async fn session_giving_up_pod(&mut self, id: Uuid) -> Result<bool, StoreError> {
        change!(self, "update sessions set phase = 'Suspending' where id = $1 and phase = 'Suspended'", id)
    }

    /// A session that could not be woken → Suspending.
    pub async fn session_suspending_again(&mut self, id: Uuid, error: &str) -> Result<bool, StoreError> {
        change!(
            self,
            "update sessions set phase = 'Suspending', error = left($2, 4096)
             where id = $1 and (phase = 'Suspended' or phase = 'Starting' and suspended_at is not null)",
            id,
            error
        )
    }

    /// A request is about to reach its pod. False: it does not run any more. The time is this moment's, not that of the
    /// transaction's begin.
    pub async fn session_in_use(&mut self, id: Uuid) -> Result<bool, StoreError> {
        change!(
            self,
            "update sessions set last_activity_at = clock_timestamp() where id = $1 and phase = 'Running'",
            id
        )
    }

    /// The audit log has what became of a request for permission. A pod that has no answer to a report sends it again at
    /// once, so the last rows are enough.
    pub async fn permission_recorded(&mut self, session: Uuid, permission: Uuid) -> Result<bool, StoreError> {
        let recorded = sqlx::query_scalar(
            "select exists (
               select from (select action, detail from audit_log
                            where org_id = $1 and target_kind = 'session' and target_id = $2
                            order by seq desc limit 256) as recent
               where action = 'session.permission' and detail->>'permission' = $3)",
        );
        let (target, permission) = (session.to_string(), permission.to_string());
        let recorded = recorded.bind(self.organization_id).bind(target).bind(permission);
        Ok(recorded.fetch_one(&mut *self.tx).await?)
    }

    /// What its agent does while nobody knew yet that it runs. News only: a row that is written looks tended.
    pub async fn session_starts_with(&mut self, id: Uuid, agent_status: &str) -> Result<bool, StoreError> {
        change!(
            self,
            "update sessions set agent_status = $2
             where id = $1 and phase in ('Starting', 'Running') and agent_status is distinct from $2",
            id,
            agent_status
        )
    }

    /// Its user or agent did something. Written at most every few seconds: the idle timeout counts minutes.
    pub async fn session_active(&mut self, id: Uuid, agent_status: Option<&str>) -> Result<(), StoreError> {
        sqlx::query(
            "update sessions set last_activity_at = now(), agent_status = coalesce($2, agent_status)
             where id = $1 and ended_at is null
               and (last_activity_at < now() - interval '5 seconds' or ($2 is not null and agent_status is distinct from $2))",
        )
        .bind(id)
        .bind(agent_status)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }
}
