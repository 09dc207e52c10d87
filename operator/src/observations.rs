//! What the runtime has observed of the servers of `McpConnections`: it writes, we read. The operator itself never
//! talks to a server. May touch: table `mcp_observations`.
use crate::{
    context::Context,
    tenancy::{Result, failed},
    ticks,
};
use k8s_openapi::jiff::Timestamp;
use kube::{ResourceExt, runtime::reflector::ObjectRef};
use serde::Deserialize;
use sqlx::{PgPool, Row, postgres::PgRow};
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How often we look for news.
const PERIOD: Duration = Duration::from_secs(2);
/// A row that was written within this time may not have been visible when we looked last.
const OVERLAP_SECONDS: f64 = 10.0;

/// A tool as the server describes it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// Digest of its definition.
    pub digest: String,
}

/// What the runtime found when it looked at a server.
#[derive(Clone, Debug, PartialEq)]
pub struct Observation {
    /// When that was.
    pub observed_at: Timestamp,
    /// How long that is ago, by the clock of Postgres.
    pub age: Duration,
    /// Generation of the spec that it looked with.
    pub generation: i64,
    /// `Ready`, or what is wrong.
    pub state: String,
    /// What people read about it.
    pub message: Option<String>,
    /// The server's tools.
    pub tools: Vec<Tool>,
    /// The tools that were pinned.
    pub pinned: Option<Vec<Tool>>,
    /// Tools changed, and calls are refused.
    pub quarantined: bool,
    /// `closed`, `open` or `half-open`.
    pub breaker: String,
    /// `Authorized`, `NeedsConsent`, `Expiring` or `Revoked`, for OAuth.
    pub authorization: Option<String>,
    /// Version of the protocol.
    pub protocol: Option<String>,
}

/// The latest observation of a connection, if there is one.
pub async fn of(pool: &PgPool, organization: Uuid, connection: Uuid) -> Result<Option<Observation>> {
    let row = sqlx::query(
        "select (extract(epoch from observed_at) * 1000)::bigint as at,
                greatest(extract(epoch from now() - observed_at), 0)::float8 as age,
                generation, state, message, tools, pinned, quarantined, breaker, auth_state, protocol
         from mcp_observations where org_id = $1 and connection_id = $2",
    )
    .bind(organization)
    .bind(connection)
    .fetch_optional(pool)
    .await
    .map_err(failed("read what was observed of a server"))?;
    row.as_ref().map(read).transpose().map_err(failed("read what was observed of a server"))
}

fn read(row: &PgRow) -> sqlx::Result<Observation> {
    let decode = |error: serde_json::Error| sqlx::Error::Decode(error.into());
    Ok(Observation {
        observed_at: Timestamp::from_millisecond(row.try_get("at")?)
            .map_err(|error| sqlx::Error::Decode(error.into()))?,
        age: Duration::try_from_secs_f64(row.try_get("age")?).unwrap_or(Duration::MAX),
        generation: row.try_get("generation")?,
        state: row.try_get("state")?,
        message: row.try_get("message")?,
        tools: serde_json::from_value(row.try_get("tools")?).map_err(decode)?,
        pinned: row.try_get::<Option<_>, _>("pinned")?.map(serde_json::from_value).transpose().map_err(decode)?,
        quarantined: row.try_get("quarantined")?,
        breaker: row.try_get("breaker")?,
        authorization: row.try_get("auth_state")?,
        protocol: row.try_get("protocol")?,
    })
}

/// Ask for a reconcile of each connection of which something new was observed, until `stop`.
pub async fn watch(context: Arc<Context>, stop: CancellationToken) {
    let mut ticks = ticks::every(PERIOD);
    let mut news = News::default();
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        let Ok(pool) = context.postgres() else { continue };
        let changed = match news.since_last_time(pool, context.config.mcp_stale_after()).await {
            Ok(changed) => changed,
            Err(error) => {
                tracing::warn!(%error, "can't look for observations of MCP servers");
                continue;
            }
        };
        if changed.is_empty() {
            continue;
        }
        for connection in context.stores.connections.state() {
            if connection.uid().is_some_and(|uid| changed.contains(&uid)) {
                let _ = context.triggers.connections.unbounded_send(ObjectRef::from_obj(&*connection));
            }
        }
    }
}

/// What was said last, by connection: the runtime writes after every look, and mostly the same.
#[derive(Default)]
pub struct News {
    said: HashMap<Uuid, (String, f64)>,
    until: f64,
}

impl News {
    /// The ids of connections of which something else is observed than the last time, or for the first time after
    /// `stale_after`: the status says by then that nothing is known.
    pub async fn since_last_time(&mut self, pool: &PgPool, stale_after: Duration) -> Result<Vec<String>> {
        let rows: Vec<(Uuid, f64, String)> = sqlx::query_as(
            "select connection_id, extract(epoch from observed_at)::float8,
                    md5(concat_ws('|', generation, state, message, tools, pinned, quarantined, breaker, auth_state, protocol))
             from mcp_observations where observed_at > to_timestamp($1)",
        )
        .bind(self.until)
        .fetch_all(pool)
        .await
        .map_err(failed("look for observations"))?;
        let newest = rows.iter().map(|(_, at, _)| *at).fold(self.until + OVERLAP_SECONDS, f64::max);
        self.until = newest - OVERLAP_SECONDS;
        let news = rows.into_iter().filter_map(|(id, at, digest)| {
            let before = self.said.insert(id, (digest.clone(), at));
            let known = before.is_some_and(|(said, seen)| said == digest && at - seen < stale_after.as_secs_f64());
            (!known).then(|| id.to_string())
        });
        Ok(news.collect())
    }
}
