//! An organization leaves, step by step. Each step is one transaction that does its work, writes its audit row and
//! records itself in `offboardings`: whoever comes after a crash goes on with the next one, and no step is done twice.
use super::{
    Result, failed,
    names::{Identifier, TenantRoles, id_role},
    organization::policy_word,
};
use crate::{
    audit::ACTOR,
    signing::{Signer, Statement},
};
use agentapi_crds::common::DeletionPolicy;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Postgres, Transaction};
use uuid::Uuid;

/// Sessions that end at the end of the grace period need so long to hand in their transcripts.
pub const FLUSH: SignedDuration = SignedDuration::from_secs(60);

/// An organization that leaves.
#[derive(Clone, Debug)]
pub struct Leaving {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub slug: String,
    /// What happens to its rows.
    pub policy: DeletionPolicy,
    /// When the deletion was asked for.
    pub requested_at: Timestamp,
    /// Until when its sessions may go on.
    pub drain_until: Timestamp,
}

/// The steps, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// No new sessions.
    Refuse,
    /// The sessions have ended.
    Drain,
    /// The namespace is gone.
    Namespace,
    /// The roles are gone, and every grant with them.
    Revoke,
    /// All versions of the data key are gone.
    Keys,
    /// The rows are deleted, or retained and out of everybody's reach.
    Rows,
    /// The receipt is signed.
    Receipt,
}

impl Step {
    const ALL: [Self; 7] =
        [Self::Refuse, Self::Drain, Self::Namespace, Self::Revoke, Self::Keys, Self::Rows, Self::Receipt];

    /// Its name in the receipt and in the audit log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Refuse => "refuse",
            Self::Drain => "drain",
            Self::Namespace => "namespace",
            Self::Revoke => "revoke",
            Self::Keys => "keys",
            Self::Rows => "rows",
            Self::Receipt => "receipt",
        }
    }
}

/// What one call has brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A step is done; there may be more.
    Did(Step),
    /// The next step waits, and for what.
    Waits(String),
    /// All is done; the receipt has to be handed over.
    Receipt(String),
    /// All is done and handed over, or there never was anything.
    Over,
}

struct Row {
    steps: Value,
    receipt: Option<String>,
    published: bool,
    drain_until: Timestamp,
}

/// Do the next step. `namespace` says what is left of the organization in the cluster, and takes it away; it is asked
/// when its turn has come, and must not wait.
pub async fn step(
    pool: &PgPool,
    leaving: &Leaving,
    signer: &Signer,
    now: Timestamp,
    namespace: impl AsyncFnOnce() -> Option<String>,
) -> Result<Outcome> {
    let mut tx = pool.begin().await.map_err(failed("begin a transaction"))?;
    let Some(row) = read(&mut tx, leaving.id).await? else { return refuse(tx, leaving).await };
    if let Some(receipt) = row.receipt {
        return Ok(if row.published { Outcome::Over } else { Outcome::Receipt(receipt) });
    }
    let next = Step::ALL.into_iter().find(|step| row.steps.get(step.name()).is_none()).unwrap_or(Step::Receipt);
    let detail = match next {
        Step::Refuse => json!({}),
        Step::Drain => match drain(&mut tx, leaving.id, row.drain_until, now).await? {
            Ok(detail) => detail,
            Err(waits) => return Ok(Outcome::Waits(waits)),
        },
        Step::Namespace => match namespace().await {
            None => json!({}),
            Some(left) => return Ok(Outcome::Waits(left)),
        },
        Step::Revoke => revoke(&mut tx, leaving).await?,
        Step::Keys => destroy_keys(&mut tx, leaving.id).await?,
        Step::Rows => rows(&mut tx, leaving).await?,
        Step::Receipt => return receipt(tx, leaving, row.steps, signer).await,
    };
    record(&mut tx, leaving, next, detail).await?;
    tx.commit().await.map_err(failed("commit"))?;
    Ok(Outcome::Did(next))
}

/// The row, locked: two operators never do the same step.
async fn read(tx: &mut PgConnection, id: Uuid) -> Result<Option<Row>> {
    let row: Option<(Value, Option<String>, bool, f64)> = sqlx::query_as(
        "select steps, receipt, published_at is not null, extract(epoch from drain_until)::float8
         from offboardings where org_id = $1 for update",
    )
    .bind(id)
    .fetch_optional(tx)
    .await
    .map_err(failed("read how far the offboarding is"))?;
    Ok(row.map(|(steps, receipt, published, drain_until)| Row {
        steps,
        receipt,
        published,
        drain_until: timestamp(drain_until),
    }))
}

#[allow(clippy::cast_possible_truncation)]
fn timestamp(seconds: f64) -> Timestamp {
    Timestamp::from_microsecond((seconds * 1e6) as i64).unwrap_or(Timestamp::UNIX_EPOCH)
}

async fn record(tx: &mut PgConnection, leaving: &Leaving, step: Step, detail: Value) -> Result<()> {
    sqlx::query(
        "update offboardings
         set steps = steps || jsonb_build_object($2::text, jsonb_build_object('at', now()) || $3) where org_id = $1",
    )
    .bind(leaving.id)
    .bind(step.name())
    .bind(&detail)
    .execute(&mut *tx)
    .await
    .map_err(failed("record a step of the offboarding"))?;
    let action = format!("organization.offboard.{}", step.name());
    audit(tx, leaving.id, &leaving.slug, &action, detail).await
}

/// The first step. An organization that never had a row, or that is out already, leaves nothing behind.
async fn refuse(mut tx: Transaction<'_, Postgres>, leaving: &Leaving) -> Result<Outcome> {
    let live = sqlx::query(
        "update organizations set drain_until = to_timestamp($2) where id = $1 and deleted_at is null returning 1",
    )
    .bind(leaving.id)
    .bind(leaving.drain_until.as_duration().as_secs_f64())
    .fetch_optional(&mut *tx)
    .await
    .map_err(failed("refuse new sessions"))?;
    if live.is_none() {
        return Ok(Outcome::Over);
    }
    sqlx::query(
        "insert into offboardings (org_id, org_slug, deletion_policy, requested_at, drain_until)
         values ($1, $2, $3, to_timestamp($4), to_timestamp($5))",
    )
    .bind(leaving.id)
    .bind(&leaving.slug)
    .bind(policy_word(leaving.policy))
    .bind(leaving.requested_at.as_duration().as_secs_f64())
    .bind(leaving.drain_until.as_duration().as_secs_f64())
    .execute(&mut *tx)
    .await
    .map_err(failed("begin the offboarding"))?;
    let detail = json!({
        "deletionPolicy": policy_word(leaving.policy),
        "drainUntil": leaving.drain_until.to_string(),
    });
    record(&mut tx, leaving, Step::Refuse, detail).await?;
    tx.commit().await.map_err(failed("commit"))?;
    Ok(Outcome::Did(Step::Refuse))
}

/// Sessions that have not ended; those that are still there after the deadline go with the namespace.
async fn drain(
    tx: &mut PgConnection,
    id: Uuid,
    until: Timestamp,
    now: Timestamp,
) -> Result<std::result::Result<Value, String>> {
    let left: i64 = sqlx::query_scalar("select count(*) from sessions where org_id = $1 and ended_at is null")
        .bind(id)
        .fetch_one(&mut *tx)
        .await
        .map_err(failed("count sessions"))?;
    if left > 0 && now < until {
        return Ok(Err(format!("{left} sessions may go on until {until}; new ones are refused")));
    }
    if left > 0 && now.duration_since(until) < FLUSH {
        return Ok(Err(format!("waits for {left} sessions to end and to hand in their transcripts")));
    }
    Ok(Ok(json!({ "sessionsCutOff": left })))
}

/// One role belongs to the organization; those that belong to the name are a successor's when there is one.
async fn revoke(tx: &mut PgConnection, leaving: &Leaving) -> Result<Value> {
    let successor: bool = sqlx::query_scalar(
        "select exists (select 1 from organizations where slug = $1 and id <> $2 and deleted_at is null)",
    )
    .bind(&leaving.slug)
    .bind(leaving.id)
    .fetch_one(&mut *tx)
    .await
    .map_err(failed("look for a successor"))?;
    let own = id_role(leaving.id);
    drop_role(tx, &own).await?;
    if successor {
        return Ok(json!({ "roles": [own.as_str()], "successor": true }));
    }
    sqlx::query("delete from tenant_roles where org_id = $1")
        .bind(leaving.id)
        .execute(&mut *tx)
        .await
        .map_err(failed("remove the tenant's roles"))?;
    let roles = TenantRoles::of(&leaving.slug)?;
    for role in [&roles.tenant, &roles.read] {
        drop_role(tx, role).await?;
    }
    Ok(json!({ "roles": [own.as_str(), roles.tenant.as_str(), roles.read.as_str()] }))
}

async fn drop_role(tx: &mut PgConnection, role: &Identifier) -> Result<()> {
    sqlx::query(AssertSqlSafe(format!("drop role if exists {role}")))
        .execute(tx)
        .await
        .map_err(failed("drop the tenant's roles"))?;
    Ok(())
}

async fn destroy_keys(tx: &mut PgConnection, id: Uuid) -> Result<Value> {
    let mut versions: Vec<i32> = sqlx::query_scalar("delete from tenant_keys where org_id = $1 returning version")
        .bind(id)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed("destroy the data keys"))?;
    versions.sort_unstable();
    Ok(json!({ "keyId": id, "versions": versions }))
}

async fn rows(tx: &mut PgConnection, leaving: &Leaving) -> Result<Value> {
    let counted: Value = sqlx::query_scalar(
        "select jsonb_build_object(
             'users', (select count(*) from users where org_id = $1),
             'workspaces', (select count(*) from workspaces where org_id = $1),
             'sessions', (select count(*) from sessions where org_id = $1),
             'messages', (select count(*) from messages where org_id = $1),
             'mcp_connections', (select count(*) from mcp_connections where org_id = $1),
             'mcp_oauth_tokens', (select count(*) from mcp_oauth_tokens where org_id = $1),
             'mcp_observations', (select count(*) from mcp_observations where org_id = $1),
             'mcp_clients', (select count(*) from mcp_clients where org_id = $1),
             'oauth_clients', (select count(*) from oauth_clients where org_id = $1),
             'oauth_states', (select count(*) from oauth_states where org_id = $1),
             'prompt_policies', (select count(*) from prompt_policies where org_id = $1))",
    )
    .bind(leaving.id)
    .fetch_one(&mut *tx)
    .await
    .map_err(failed("count the organization's rows"))?;
    let (statement, word) = match leaving.policy {
        DeletionPolicy::Retain => ("update organizations set deleted_at = now() where id = $1", "retained"),
        DeletionPolicy::Delete => ("delete from organizations where id = $1", "deleted"),
    };
    sqlx::query(statement)
        .bind(leaving.id)
        .execute(&mut *tx)
        .await
        .map_err(failed("remove the organization's rows"))?;
    Ok(json!({ word: counted }))
}

/// The last audit row has the digest of the steps, and the receipt the hash of that row: neither can be exchanged
/// without the other.
async fn receipt(
    mut tx: Transaction<'_, Postgres>,
    leaving: &Leaving,
    steps: Value,
    signer: &Signer,
) -> Result<Outcome> {
    let digest = hex::encode(Sha256::digest(steps.to_string()));
    let detail = json!({ "deletionPolicy": policy_word(leaving.policy), "stepsSha256": digest });
    audit(&mut tx, leaving.id, &leaving.slug, "organization.delete", detail).await?;
    let (seq, hash): (i64, Vec<u8>) = sqlx::query_as("select seq, hash from audit_heads where org_id = $1")
        .bind(leaving.id)
        .fetch_one(&mut *tx)
        .await
        .map_err(failed("read the end of the audit chain"))?;
    let completed: f64 = sqlx::query_scalar("select extract(epoch from now())::float8")
        .fetch_one(&mut *tx)
        .await
        .map_err(failed("read the time"))?;
    let claims = json!({
        "organizationId": leaving.id,
        "organization": leaving.slug,
        "deletionPolicy": policy_word(leaving.policy),
        "requestedAt": leaving.requested_at.to_string(),
        "completedAt": timestamp(completed).to_string(),
        "steps": steps,
        "stepsSha256": digest,
        "audit": { "seq": seq, "hash": hex::encode(hash) },
    });
    let statement = signer.sign(Statement::Receipt, &claims)?;
    sqlx::query("update offboardings set receipt = $2, completed_at = to_timestamp($3) where org_id = $1")
        .bind(leaving.id)
        .bind(&statement)
        .bind(completed)
        .execute(&mut *tx)
        .await
        .map_err(failed("store the receipt"))?;
    tx.commit().await.map_err(failed("commit"))?;
    Ok(Outcome::Did(Step::Receipt))
}

/// The receipt is where people find it.
pub async fn published(pool: &PgPool, id: Uuid) -> Result<()> {
    sqlx::query("update offboardings set published_at = now() where org_id = $1 and published_at is null")
        .bind(id)
        .execute(pool)
        .await
        .map_err(failed("record that the receipt is published"))?;
    Ok(())
}

/// Offboardings that are not over.
pub async fn unfinished(pool: &PgPool) -> Result<Vec<Leaving>> {
    let rows: Vec<(Uuid, String, String, f64, f64)> = sqlx::query_as(
        "select org_id, org_slug, deletion_policy, extract(epoch from requested_at)::float8,
                extract(epoch from drain_until)::float8
         from offboardings where published_at is null",
    )
    .fetch_all(pool)
    .await
    .map_err(failed("read the offboardings"))?;
    let leaving = rows.into_iter().map(|(id, slug, policy, requested_at, drain_until)| Leaving {
        id,
        slug,
        policy: if policy == "Delete" { DeletionPolicy::Delete } else { DeletionPolicy::Retain },
        requested_at: timestamp(requested_at),
        drain_until: timestamp(drain_until),
    });
    Ok(leaving.collect())
}

/// Like `audit::record`, also when the organization's own row is gone.
async fn audit(tx: &mut PgConnection, id: Uuid, slug: &str, action: &str, detail: Value) -> Result<()> {
    sqlx::query(
        "insert into audit_log (org_id, org_slug, actor, action, target_kind, target_id, detail)
         values ($1, $2, $3, $4, 'Organization', $2, $5)",
    )
    .bind(id)
    .bind(slug)
    .bind(ACTOR)
    .bind(action)
    .bind(detail)
    .execute(tx)
    .await
    .map_err(failed("write the audit log"))?;
    Ok(())
}
