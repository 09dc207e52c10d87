//! An organization as the operator leaves it in Postgres, with people in it.
use super::Database;
use agentapi_crds::common::DeletionPolicy;
use agentapi_operator::envelope::{MasterKey, MasterKeys};
use agentapi_operator::metrics::Metrics;
use agentapi_operator::tenancy::{
    self,
    names::{TenantRoles, id_role},
    organization::Tenant,
};
use anyhow::Result;
use secrecy::SecretString;
use serde_json::json;
use sqlx::{Connection, PgConnection, PgPool};
use std::time::Duration;
use uuid::Uuid;

/// What wraps the organizations' data keys.
pub const MASTER_KEY: [u8; 32] = [7; 32];

/// An organization with its roles, a workspace and three users.
#[derive(Clone, Debug)]
pub struct Organization {
    /// Row id.
    pub id: Uuid,
    /// Name of the resource.
    pub slug: String,
    /// Role that is called after it.
    pub role: String,
    /// Role that the runtime takes on.
    pub id_role: String,
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

impl Database {
    /// Adds an organization as the operator does, and its people through the runtime's login. Its tokens have the
    /// issuer `https://idp.test`, the audience `agentapi` and the slug as `org_id`.
    pub async fn organization(&self, slug: &str) -> Result<Organization> {
        let role = format!("org_{}", slug.replace('-', "_"));
        let user = |subject: &str, role| User { id: Uuid::now_v7(), subject: format!("{slug}-{subject}"), role };
        let id = Uuid::new_v4();
        let organization = Organization {
            id,
            id_role: id_role(id).as_str().to_owned(),
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
        self.ensure(&organization).await?;
        let mut operator = PgConnection::connect(&self.operator_url()).await?;
        sqlx::query(
            "insert into workspaces (org_id, id, name, k8s_namespace, agent_type, max_sessions)
             values ($1, $2, 'main', 'team', 'claude', 5)",
        )
        .bind(organization.id)
        .bind(organization.workspace)
        .execute(&mut operator)
        .await?;
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

    /// Row, roles, grants and data key, by the operator's own code.
    async fn ensure(&self, organization: &Organization) -> Result<()> {
        let tenant = Tenant {
            id: organization.id,
            issuer: "https://idp.test".to_owned(),
            identity: json!({}),
            quota: json!({"sessions": 10}),
            deletion_policy: DeletionPolicy::Delete,
            ..wanted(&organization.slug)
        };
        let pool = PgPool::connect(&self.operator_url()).await?;
        let (master, metrics) = (MasterKeys::from(MasterKey::new(&MASTER_KEY)?), Metrics::new()?);
        let password = SecretString::from(organization.read_only_password.clone());
        // Tests share roles: two of them may write the same one at the same time.
        let mut tries = 0;
        loop {
            let done = async {
                tenancy::organization::ensure(&pool, &tenant, &master, None, &metrics).await?;
                tenancy::organization::set_read_password(&pool, &tenant, &password, &metrics).await
            };
            match done.await {
                Ok(()) => break,
                Err(_) if tries < 50 => tries += 1,
                Err(error) => return Err(error.into()),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        pool.close().await;
        Ok(())
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
    .bind(&organization.id_role)
    .bind(user.map(|id| id.to_string()).unwrap_or_default())
    .bind(role)
    .execute(tx)
    .await?;
    Ok(())
}

/// What the operator is asked to make of an Organization of this name, for tests of `tenancy` itself.
///
/// # Panics
/// When no roles can have that name.
pub fn wanted(slug: &str) -> Tenant {
    Tenant {
        id: Uuid::new_v4(),
        slug: slug.into(),
        roles: TenantRoles::of(slug).unwrap_or_else(|error| unreachable!("{slug}: {error}")),
        display_name: slug.into(),
        issuer: "https://login.example.com".into(),
        audience: "agentapi".into(),
        jwks_uri: None,
        org_claim_value: slug.into(),
        identity: json!({"issuer": "https://login.example.com"}),
        quota: json!({"sessions": 5}),
        mcp_open_ranges: Vec::new(),
        deletion_policy: DeletionPolicy::Retain,
        generation: 1,
        data_key_rotation: String::new(),
    }
}
