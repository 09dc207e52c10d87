//! An organization in Postgres: its row, roles, grants and data keys, made in one
//! transaction, with the audit row that records it.
use super::{
    Result, credentials, failed,
    keys::{self, DataKeys},
    names::{TenantRoles, literal},
    roles::{self, Catalogue},
};
use crate::{
    audit::{self, Entry},
    envelope::MasterKeys,
    metrics::Metrics,
    scram,
};
use agentapi_crds::common::DeletionPolicy;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool, Row};
use std::time::Duration;
use uuid::Uuid;

/// An attempt to log in takes no longer.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(3);

/// What Postgres has to know of an organization.
#[derive(Clone, Debug, PartialEq)]
pub struct Tenant {
    /// `metadata.uid`.
    pub id: Uuid,
    /// `metadata.name`.
    pub slug: String,
    /// The roles that are called after its name.
    pub roles: TenantRoles,
    /// Name that people read.
    pub display_name: String,
    /// `iss` of its tokens.
    pub issuer: String,
    /// `aud` of its tokens.
    pub audience: String,
    /// Where its keys are, if not found by discovery.
    pub jwks_uri: Option<String>,
    /// Value of the organization claim of its tokens.
    pub org_claim_value: String,
    /// The identity block of the spec.
    pub identity: Value,
    /// The quota block of the spec.
    pub quota: Value,
    /// Private ranges of addresses that the runtime connects to for it.
    pub mcp_open_ranges: Vec<String>,
    /// What happens to its rows.
    pub deletion_policy: DeletionPolicy,
    /// Generation of the spec.
    pub generation: i64,
    /// Value of the annotation that asks for a new version of the data key.
    pub data_key_rotation: String,
}

/// What is in place after [`ensure`].
#[derive(Clone, Debug)]
pub struct Ensured {
    /// The data keys, wrapped.
    pub data_keys: DataKeys,
    /// Digest of the read-only role's password, if it has one.
    pub password_digest: Option<String>,
}

/// Make the organization's row, roles, grants and data keys what they must be. `kept` are the data keys that the
/// tenant's Secret has, for a database that was restored from before it knew them.
pub async fn ensure(
    pool: &PgPool,
    tenant: &Tenant,
    master: &MasterKeys,
    kept: Option<DataKeys>,
    metrics: &Metrics,
) -> Result<Ensured> {
    let mut tx = pool.begin().await.map_err(failed("begin a transaction"))?;
    let mut changes = Changes { metrics, made: Vec::new() };
    let created = write_row(&mut tx, tenant, &mut changes).await?;
    let catalogue = bring_roles_into_order(&mut tx, tenant, &mut changes).await?;
    let data_keys = keys::ensure(&mut tx, tenant, master, kept, &mut changes).await?;
    changes.record(&mut tx, tenant, created).await?;
    tx.commit().await.map_err(failed("commit"))?;
    data_keys.check(tenant.id, master)?;
    let password_digest = catalogue.get(tenant.roles.read.as_str()).and_then(|role| role.password_digest.clone());
    Ok(Ensured { data_keys, password_digest })
}

/// What one [`ensure`] has changed: one row of the audit log, however much it is.
pub(super) struct Changes<'a> {
    pub(super) metrics: &'a Metrics,
    made: Vec<&'static str>,
}

impl Changes<'_> {
    pub(super) fn made(&mut self, what: &'static str) {
        self.metrics.changed_database(what);
        if !self.made.contains(&what) {
            self.made.push(what);
        }
    }

    async fn record(&self, tx: &mut PgConnection, tenant: &Tenant, created: bool) -> Result<()> {
        let action = match self.made.as_slice() {
            [] => return Ok(()),
            _ if created => "organization.create",
            made if made.contains(&"organization") => "organization.update",
            _ => "organization.repair",
        };
        let detail = json!({"generation": tenant.generation, "issuer": tenant.issuer,
                            "orgClaim": tenant.org_claim_value, "changed": self.made});
        audit(tx, tenant.id, &tenant.slug, action, detail).await
    }
}

/// Whether the row is new.
async fn write_row(tx: &mut PgConnection, tenant: &Tenant, changes: &mut Changes<'_>) -> Result<bool> {
    // A predecessor of the same name whose removal did not reach Postgres: the sweep takes it from here.
    sqlx::query(
        "insert into offboardings (org_id, org_slug, deletion_policy, requested_at, drain_until)
         select id, slug, deletion_policy, now(), now() from organizations
         where slug = $1 and id <> $2 and deleted_at is null
         on conflict (org_id) do nothing",
    )
    .bind(&tenant.slug)
    .bind(tenant.id)
    .execute(&mut *tx)
    .await
    .map_err(failed("begin the offboarding of a predecessor"))?;
    let superseded: Vec<Uuid> = sqlx::query_scalar(
        "update organizations set deleted_at = now() where slug = $1 and id <> $2 and deleted_at is null returning id",
    )
    .bind(&tenant.slug)
    .bind(tenant.id)
    .fetch_all(&mut *tx)
    .await
    .map_err(failed("retire a predecessor"))?;
    for id in superseded {
        changes.metrics.changed_database("organization");
        audit(tx, id, &tenant.slug, "organization.delete", json!({"reason": "superseded"})).await?;
    }
    let written = sqlx::query(
        "insert into organizations as o (id, slug, display_name, issuer, audience, jwks_uri, org_claim_value,
                                         identity, quota, deletion_policy, generation, mcp_open_ranges)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
         on conflict (id) do update set
             slug = excluded.slug, display_name = excluded.display_name, issuer = excluded.issuer,
             audience = excluded.audience, jwks_uri = excluded.jwks_uri,
             org_claim_value = excluded.org_claim_value, identity = excluded.identity, quota = excluded.quota,
             deletion_policy = excluded.deletion_policy, generation = excluded.generation,
             mcp_open_ranges = excluded.mcp_open_ranges, deleted_at = null
         where (o.slug, o.display_name, o.issuer, o.audience, o.jwks_uri, o.org_claim_value, o.identity, o.quota,
                o.deletion_policy, o.generation, o.mcp_open_ranges, o.deleted_at)
            is distinct from
               (excluded.slug, excluded.display_name, excluded.issuer, excluded.audience, excluded.jwks_uri,
                excluded.org_claim_value, excluded.identity, excluded.quota, excluded.deletion_policy,
                excluded.generation, excluded.mcp_open_ranges, null::timestamptz)
         returning (xmax = 0) as created",
    )
    .bind(tenant.id)
    .bind(&tenant.slug)
    .bind(&tenant.display_name)
    .bind(&tenant.issuer)
    .bind(&tenant.audience)
    .bind(&tenant.jwks_uri)
    .bind(&tenant.org_claim_value)
    .bind(&tenant.identity)
    .bind(&tenant.quota)
    .bind(policy_word(tenant.deletion_policy))
    .bind(tenant.generation)
    .bind(&tenant.mcp_open_ranges)
    .fetch_optional(&mut *tx)
    .await
    .map_err(failed("write the organization's row"))?;
    let Some(written) = written else { return Ok(false) };
    changes.made("organization");
    written.try_get("created").map_err(failed("write the organization's row"))
}

async fn bring_roles_into_order(
    tx: &mut PgConnection,
    tenant: &Tenant,
    changes: &mut Changes<'_>,
) -> Result<Catalogue> {
    let catalogue = roles::observe(&mut *tx).await?;
    let statements = roles::plan(tenant.id, &tenant.roles, &catalogue);
    let in_order = statements.is_empty();
    for statement in statements {
        tracing::info!(organization = %tenant.slug, statement, "changing a role");
        changes.made("role");
        sqlx::query(AssertSqlSafe(statement)).execute(&mut *tx).await.map_err(failed("change the tenant's roles"))?;
    }
    for (role, read_only) in [(&tenant.roles.tenant, false), (&tenant.roles.read, true)] {
        let written = sqlx::query(
            "insert into tenant_roles as t (role_name, org_id, read_only) values ($1::name, $2, $3)
             on conflict (role_name) do update set org_id = excluded.org_id, read_only = excluded.read_only
             where (t.org_id, t.read_only) is distinct from (excluded.org_id, excluded.read_only)",
        )
        .bind(role.as_str())
        .bind(tenant.id)
        .bind(read_only)
        .execute(&mut *tx)
        .await
        .map_err(failed("say which organization a role stands for"))?;
        if written.rows_affected() > 0 {
            changes.made("tenant_role");
        }
    }
    if in_order { Ok(catalogue) } else { roles::observe(&mut *tx).await }
}

/// Give the read-only role a new password; only its verifier is sent.
pub async fn set_read_password(
    pool: &PgPool,
    tenant: &Tenant,
    password: &SecretString,
    metrics: &Metrics,
) -> Result<()> {
    let verifier = literal(&scram::verifier(password.expose_secret())?)?;
    let comment = literal(&format!("password sha256 {}", credentials::digest(password)))?;
    let role = &tenant.roles.read;
    let mut tx = pool.begin().await.map_err(failed("begin a transaction"))?;
    for statement in [format!("alter role {role} password {verifier}"), format!("comment on role {role} is {comment}")]
    {
        sqlx::query(AssertSqlSafe(statement)).execute(&mut *tx).await.map_err(failed("set a password"))?;
    }
    audit(&mut tx, tenant.id, &tenant.slug, "organization.rotate-credentials", json!({"role": role.as_str()})).await?;
    tx.commit().await.map_err(failed("commit"))?;
    metrics.changed_database("password");
    Ok(())
}

/// Does the password still open the read-only login? Whoever logs in with it may change it, which Postgres lets nobody
/// forbid, and the digest that we keep would not show it. `None`: it can't be told now.
pub async fn opens_login(pool: &PgPool, tenant: &Tenant, password: &SecretString) -> Option<bool> {
    let options = (*pool.connect_options()).clone();
    let options = options.username(tenant.roles.read.as_str()).password(password.expose_secret());
    let attempt = tokio::time::timeout(LOGIN_TIMEOUT, PgConnection::connect_with(&options)).await.ok()?;
    match attempt {
        Ok(connection) => {
            // It has served its purpose, whatever its end.
            let _ = connection.close().await;
            Some(true)
        }
        // Too many connections, a server that starts: nothing about the password.
        Err(error) => (error.as_database_error()?.code()? == "28P01").then_some(false),
    }
}

pub(super) async fn audit(tx: &mut PgConnection, id: Uuid, slug: &str, action: &str, detail: Value) -> Result<()> {
    audit::record(tx, Some(id), &Entry { action, target_kind: "Organization", target_id: slug, detail }).await
}

/// The word in column `deletion_policy`.
pub fn policy_word(policy: DeletionPolicy) -> &'static str {
    match policy {
        DeletionPolicy::Retain => "Retain",
        DeletionPolicy::Delete => "Delete",
    }
}
