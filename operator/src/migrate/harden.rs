//! What Postgres itself leaves open to tenants' logins: closed where we may, reported where it is not ours to close.
use super::{Error, step};
use sqlx::{Executor, PgConnection};

/// Close it. False: the administrator is no superuser, and the rest stays as it is.
pub(super) async fn harden(database: &mut PgConnection) -> Result<bool, Error> {
    let superuser: bool = sqlx::query_scalar("select rolsuper from pg_roles where rolname = current_user")
        .fetch_one(&mut *database)
        .await
        .map_err(step("look at the administrator"))?;
    let open: Vec<String> = sqlx::query_scalar(
        "select datname::text from pg_database where datallowconn and datname <> current_database()
         and has_database_privilege('agentapi_tenant_ro', oid, 'CONNECT')",
    )
    .fetch_all(&mut *database)
    .await
    .map_err(step("look at the other databases"))?;
    if !open.is_empty() {
        // They may be somebody else's: not ours to close.
        tracing::warn!(
            databases = open.join(", "),
            "read-only logins of tenants may connect to other databases of this server; unless pg_hba.conf refuses \
             them (role +agentapi_tenant_ro), close each with REVOKE CONNECT ON DATABASE … FROM PUBLIC"
        );
    }
    if superuser {
        database.execute(include_str!("hardening.sql")).await.map_err(step("close advisory locks"))?;
    } else {
        tracing::warn!("the administrator is no superuser: advisory locks stay open to read-only logins of tenants");
    }
    Ok(superuser)
}
