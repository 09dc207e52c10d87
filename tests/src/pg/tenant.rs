//! An organization as the operator leaves it in Postgres, with people in it.
use super::Database;
use anyhow::Result;
use sqlx::{Connection, Executor, PgConnection};
use uuid::Uuid;

/// An organization with its roles, a workspace and three users.
#[derive(Clone, Debug)]
pub struct Organization {
    /// Row id.
    pub id: Uuid,
    /// Name of the resource.
    pub slug: String,
    /// Role that the runtime takes on.
    pub role: String,
    /// Login for direct use.
    pub read_only_role: String,
    /// Its password.
    pub read_only_password: String,
    /// A workspace named `main`.
    pub workspace: Uuid,
    /// An admin.
    pub admin: User,
    /// A user.
    pub alice: User,
    /// Another user.
    pub bob: User,
}

/// A person of an organization.
#[derive(Clone, Debug)]
pub struct User {
    /// Row id.
    pub id: Uuid,
    /// `sub` of the tokens.
    pub subject: String,
    /// `admin` or `user`.
    pub role: &'static str,
}

/// What the operator does for a new organization; static text, values come through settings.
const ROLES: &str = "do $$
declare
    rw name := current_setting('harness.role');
    ro name := current_setting('harness.ro');
begin
    if not exists (select from pg_roles where rolname = rw) then
        execute format('create role %I nologin in role agentapi_tenant', rw);
    end if;
    execute format('grant %I to agentapi_runtime', rw);
    if not exists (select from pg_roles where rolname = ro) then
        execute format('create role %I in role agentapi_tenant_ro', ro);
    end if;
    execute format('alter role %I login connection limit 5 password %L', ro, current_setting('harness.password'));
end $$";

impl Database {
    /// Adds an organization through the operator's login, and its people through the runtime's. Its tokens have the
    /// issuer `https://idp.test`, the audience `agentapi` and the slug as `org_id`.
    pub async fn organization(&self, slug: &str) -> Result<Organization> {
        let role = format!("org_{}", slug.replace('-', "_"));
        let user = |subject: &str, role| User { id: Uuid::now_v7(), subject: format!("{slug}-{subject}"), role };
        let organization = Organization {
            id: Uuid::new_v4(),
            slug: slug.to_owned(),
            read_only_role: format!("{role}_ro"),
            // The same in every database of the server, because the role is.
            read_only_password: format!("ro-{}", self.server.password),
            role,
            workspace: Uuid::new_v4(),
            admin: user("admin", "admin"),
            alice: user("alice", "user"),
            bob: user("bob", "user"),
        };
        let mut operator = PgConnection::connect(&self.operator_url()).await?;
        create_roles(&mut operator, &organization).await?;
        let mut tx = operator.begin().await?;
        sqlx::query(
            "insert into organizations (id, slug, display_name, issuer, audience, org_claim_value, quota)
             values ($1, $2, $2, 'https://idp.test', 'agentapi', $2, '{\"sessions\": 10}')",
        )
        .bind(organization.id)
        .bind(slug)
        .execute(&mut *tx)
        .await?;
        sqlx::query("insert into tenant_roles (role_name, org_id, read_only) values ($1, $3, false), ($2, $3, true)")
            .bind(&organization.role)
            .bind(&organization.read_only_role)
            .bind(organization.id)
            .execute(&mut *tx)
            .await?;
        sqlx::query(
            "insert into workspaces (org_id, id, name, k8s_namespace, agent_type, max_sessions)
             values ($1, $2, 'main', 'team', 'claude', 5)",
        )
        .bind(organization.id)
        .bind(organization.workspace)
        .execute(&mut *tx)
        .await?;
        sqlx::query(
            "insert into audit_log (org_id, org_slug, actor, action, target_kind, target_id)
             values ($1, $2, 'system:operator', 'organization.create', 'Organization', $2)",
        )
        .bind(organization.id)
        .bind(slug)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        operator.close().await?;

        let mut runtime = PgConnection::connect(&self.runtime_url()).await?;
        let mut tx = runtime.begin().await?;
        become_tenant(&mut tx, &organization, None, "admin").await?;
        for user in [&organization.admin, &organization.alice, &organization.bob] {
            sqlx::query("insert into users (org_id, id, subject, role) values ($1, $2, $3, $4)")
                .bind(organization.id)
                .bind(user.id)
                .bind(&user.subject)
                .bind(user.role)
                .execute(&mut *tx)
                .await?;
        }
        tx.commit().await?;
        runtime.close().await?;
        Ok(organization)
    }
}

/// Tests share roles: two of them may make the same one at the same time.
async fn create_roles(operator: &mut PgConnection, organization: &Organization) -> Result<()> {
    let mut tries = 0;
    loop {
        let mut tx = operator.begin().await?;
        sqlx::query(
            "select set_config('harness.role', $1, true), set_config('harness.ro', $2, true),
                    set_config('harness.password', $3, true)",
        )
        .bind(&organization.role)
        .bind(&organization.read_only_role)
        .bind(&organization.read_only_password)
        .execute(&mut *tx)
        .await?;
        match tx.execute(ROLES).await {
            Ok(_) => return Ok(tx.commit().await?),
            Err(error) if tries < 50 => {
                tx.rollback().await?;
                tries += 1;
                tracing::debug!(%error, "another test made the same role");
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Makes the transaction the tenant's, as the runtime does.
pub async fn become_tenant(
    tx: &mut PgConnection,
    organization: &Organization,
    user: Option<Uuid>,
    role: &str,
) -> Result<()> {
    sqlx::query(
        "select set_config('role', $1, true), set_config('app.user_id', $2, true),
                set_config('app.user_role', $3, true)",
    )
    .bind(&organization.role)
    .bind(user.map(|id| id.to_string()).unwrap_or_default())
    .bind(role)
    .execute(tx)
    .await?;
    Ok(())
}
