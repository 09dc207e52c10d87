//! Signed checkpoints of the audit logs: again and again the end of each chain that has gone on, signed with a key that
//! neither Postgres nor the runtime has. A log that was rewritten or cut off behind one does not fit it. May touch:
//! `audit_heads` (reads), `audit_checkpoints`.
use crate::{
    context::Context,
    metrics::Metrics,
    signing::{Signer, Statement},
    tenancy::{Result, failed},
    ticks,
};
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;
use sqlx::{PgPool, Row};
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Checkpoints that are written in one transaction.
const BATCH: i64 = 500;

/// What a checkpoint says: at this time the log of this organization ended with this row.
#[derive(Debug, Serialize)]
struct Claims {
    sub: Uuid,
    org: String,
    seq: i64,
    hash: String,
    iat: i64,
}

/// Make checkpoints until `stop`.
pub async fn watch(context: Arc<Context>, stop: CancellationToken) {
    let mut ticks = ticks::every(Duration::from_secs(u64::from(context.config.audit_checkpoint_seconds)));
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        let made = match context.postgres() {
            Ok(pool) => make(pool, &context.signer, context.now(), &context.metrics).await,
            Err(error) => Err(error),
        };
        match made {
            Ok(0) => {}
            Ok(count) => tracing::debug!(count, "signed checkpoints of audit logs"),
            Err(error) => tracing::warn!(%error, "can't make checkpoints of the audit logs; it is tried again"),
        }
    }
}

/// One checkpoint for each audit log that has gone on since its last one, also of organizations that are deleted. Says
/// how many.
pub async fn make(pool: &PgPool, signer: &Signer, now: Timestamp, metrics: &Metrics) -> Result<usize> {
    let mut count = 0;
    loop {
        let made = batch(pool, signer, now, metrics).await?;
        count += made;
        if i64::try_from(made).unwrap_or(BATCH) < BATCH {
            return Ok(count);
        }
    }
}

async fn batch(pool: &PgPool, signer: &Signer, now: Timestamp, metrics: &Metrics) -> Result<usize> {
    let heads = sqlx::query(
        "select h.org_id, h.org_slug, h.seq, h.hash from audit_heads h
         where h.seq > coalesce((select max(c.seq) from audit_checkpoints c where c.org_id = h.org_id), 0)
         order by h.org_id limit $1",
    )
    .bind(BATCH)
    .fetch_all(pool)
    .await
    .map_err(failed("read the ends of the audit logs"))?;
    let (mut organizations, mut seqs, mut hashes, mut statements) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for head in &heads {
        let read = || -> sqlx::Result<(Uuid, String, i64, Vec<u8>)> {
            Ok((head.try_get("org_id")?, head.try_get("org_slug")?, head.try_get("seq")?, head.try_get("hash")?))
        };
        let (sub, org, seq, hash) = read().map_err(failed("read the ends of the audit logs"))?;
        let claims = Claims { sub, org, seq, hash: hex::encode(&hash), iat: now.as_second() };
        statements.push(signer.sign(Statement::Checkpoint, &claims)?);
        organizations.push(sub);
        seqs.push(seq);
        hashes.push(hash);
    }
    if statements.is_empty() {
        return Ok(0);
    }
    sqlx::query(
        "insert into audit_checkpoints (org_id, seq, hash, at, kid, public_key, statement)
         select new.org_id, new.seq, new.hash, to_timestamp($5), $6, $7, new.statement
         from unnest($1::uuid[], $2::bigint[], $3::bytea[], $4::text[]) as new(org_id, seq, hash, statement)
         on conflict (org_id, seq) do nothing",
    )
    .bind(organizations)
    .bind(seqs)
    .bind(hashes)
    .bind(statements)
    .bind(now.as_second())
    .bind(signer.kid())
    .bind(signer.public_key())
    .execute(pool)
    .await
    .map_err(failed("write checkpoints"))?;
    metrics.changed_database("checkpoint");
    Ok(heads.len())
}
