//! What was seen of MCP servers. Written by the platform on behalf of the organization, never by its users.
//! May touch: `mcp_observations`.

use serde_json::json;
use uuid::Uuid;

use super::{StoreError, TenantTx};
use crate::mcp::policy::ToolDigest;

/// A look at a server.
#[derive(Debug, Clone, Default)]
pub struct Look<'a> {
    /// Generation of the row that was looked with.
    pub generation: i64,
    /// `Ready`, or what is wrong.
    pub state: &'a str,
    /// More about it.
    pub message: Option<&'a str>,
    /// The server's tools. None: they could not be had, and what is known of them stays.
    pub tools: Option<&'a [ToolDigest]>,
    /// What the breaker does.
    pub breaker: &'a str,
    /// How it stands with consent.
    pub auth_state: Option<&'a str>,
    /// Version of the protocol.
    pub protocol: Option<&'a str>,
}

impl TenantTx {
    /// Connections that were not looked at for so many seconds, or not since they were changed. A few at a time: the
    /// servers of one organization, all of them slow, must not keep the others from being looked at.
    pub async fn connections_to_look_at(&mut self, every_seconds: f64) -> Result<Vec<Uuid>, StoreError> {
        let ids = sqlx::query_scalar(
            "select c.id from mcp_connections c
                  left join mcp_observations o on o.org_id = c.org_id and o.connection_id = c.id
             where o.connection_id is null or o.generation <> c.generation
                or o.observed_at < now() - make_interval(secs => $1)
             order by o.observed_at nulls first limit 32",
        );
        Ok(ids.bind(every_seconds).fetch_all(&mut *self.tx).await?)
    }

    /// Keeps what was seen. What belongs to an older generation is forgotten, pins and quarantine too; and a look with
    /// an older generation than the one known changes nothing.
    pub async fn observe(&mut self, connection: Uuid, look: &Look<'_>) -> Result<(), StoreError> {
        sqlx::query(
            "insert into mcp_observations as o (org_id, connection_id, generation, state, message, tools, breaker,
                                                auth_state, protocol)
             values ($1, $2, $3, $4, left($5, 1024), coalesce($6, '[]'::jsonb), $7, $8, left($9, 64))
             on conflict (org_id, connection_id) do update
             set observed_at = now(), generation = excluded.generation,
                 state = case when o.quarantined and o.generation = excluded.generation then o.state
                              else excluded.state end,
                 message = case when o.quarantined and o.generation = excluded.generation then o.message
                                else excluded.message end, breaker = excluded.breaker, auth_state = excluded.auth_state,
                 protocol = coalesce(excluded.protocol, case when o.generation = excluded.generation then o.protocol end),
                 tools = coalesce($6, case when o.generation = excluded.generation then o.tools end, '[]'::jsonb),
                 pinned = case when o.generation = excluded.generation then o.pinned end,
                 quarantined = o.generation = excluded.generation and o.quarantined
             where o.generation <= excluded.generation",
        )
        .bind(self.organization_id)
        .bind(connection)
        .bind(look.generation)
        .bind(look.state)
        .bind(look.message.filter(|message| !message.is_empty()))
        .bind(look.tools.map(|tools| json!(tools)))
        .bind(look.breaker)
        .bind(look.auth_state)
        .bind(look.protocol.filter(|protocol| !protocol.is_empty()))
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Pins tools as they are now, unless some are pinned already for this generation.
    pub async fn pin(&mut self, connection: Uuid, generation: i64, tools: &[ToolDigest]) -> Result<(), StoreError> {
        sqlx::query(
            "update mcp_observations set pinned = $3
             where connection_id = $1 and generation = $2 and pinned is null",
        )
        .bind(connection)
        .bind(generation)
        .bind(json!(tools))
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Puts a connection into quarantine until its next generation. False: it is there already.
    pub async fn quarantine(&mut self, connection: Uuid, generation: i64, why: &str) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "update mcp_observations set quarantined = true, state = 'Quarantined', message = left($3, 1024),
                                         observed_at = now()
             where connection_id = $1 and generation = $2 and not quarantined",
        )
        .bind(connection)
        .bind(generation)
        .bind(why)
        .execute(&mut *self.tx)
        .await?;
        Ok(done.rows_affected() == 1)
    }
}
