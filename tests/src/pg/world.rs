//! Two organizations with a row of every kind in every table, for the tests of isolation.
use super::{Database, Organization, become_tenant};
use anyhow::Result;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use std::collections::BTreeMap;
use uuid::Uuid;

/// acme, globex and the role of nobody.
#[derive(Clone, Debug)]
pub struct World {
    /// Where it lives.
    pub db: Database,
    /// The tenant whose credentials are tried.
    pub acme: Organization,
    /// The other one.
    pub globex: Organization,
    /// A role like a tenant's that stands for no organization.
    pub nobody: String,
    /// What `{…}` in statements stands for.
    names: BTreeMap<String, String>,
}

/// Rows of one organization, written as its admin. `{…}` as in [`World::fill`].
const ROWS: &[&str] = &[
    "insert into sessions (org_id, id, workspace_id, user_id, agent_type)
     values ('{org}', '{session}', '{main}', '{user}', 'claude')",
    "insert into messages (org_id, session_id, id, role, content) values ('{org}', '{session}', 0, 'agent', 'hello')",
    "insert into mcp_oauth_tokens (org_id, id, connection_id, user_id, access_ciphertext, key_id, key_version)
     values ('{org}', gen_random_uuid(), '{api}', '{user}', decode(repeat('00', 32), 'hex'), 'k', 1)",
    "insert into oauth_states (org_id, state_hash, connection_id, user_id, pkce_ciphertext, redirect_uri, expires_at)
     values ('{org}', sha256('{session}'), '{api}', '{user}', decode(repeat('00', 32), 'hex'), 'https://x',
             now() + interval '9 minutes')",
    "insert into mcp_clients (org_id, id, connection_id, user_id, generation, session)
     values ('{org}', gen_random_uuid(), '{api}', '{user}', 1, '{}')",
];

impl World {
    /// In a database of its own.
    pub async fn create() -> Result<World> {
        Self::create_in(Database::create().await?).await
    }

    /// In this database.
    pub async fn create_in(db: Database) -> Result<World> {
        let acme = db.organization("acme").await?;
        let globex = db.organization("globex").await?;
        let mut world = World {
            db,
            nobody: "org_nobody".to_owned(),
            names: BTreeMap::new(),
            acme: acme.clone(),
            globex: globex.clone(),
        };
        for organization in [&acme, &globex] {
            let slug = &organization.slug;
            world.name(slug, &organization.id);
            world.name(&format!("{slug}.slug"), slug);
            world.name(&format!("{slug}.role"), &organization.role);
            world.name(&format!("{slug}.main"), &organization.workspace);
            for thing in ["api", "spare"] {
                world.name(&format!("{slug}.{thing}"), &Uuid::new_v4());
            }
        }
        // Carol is what alice is called at globex.
        for (name, user) in [("alice", &acme.alice), ("bob", &acme.bob), ("carol", &globex.alice)] {
            world.name(name, &user.id);
            world.name(&format!("{name}.session"), &Uuid::now_v7());
        }
        world.rows_of_the_operator().await?;
        world.rows_of_tenants(&acme, &["alice", "bob"]).await?;
        world.rows_of_tenants(&globex, &["carol"]).await?;
        Ok(world)
    }

    fn name(&mut self, name: &str, value: &dyn ToString) {
        self.names.insert(name.to_owned(), value.to_string());
    }

    /// Replaces `{name}` by what it stands for; `extra` first, and names within their values too.
    pub fn fill(&self, text: &str, extra: &BTreeMap<String, String>) -> String {
        let mut text = text.to_owned();
        for (name, value) in extra.iter().chain(&self.names) {
            text = text.replace(&format!("{{{name}}}"), value);
        }
        text
    }

    async fn rows_of_the_operator(&self) -> Result<()> {
        let mut operator = PgConnection::connect(&self.db.operator_url()).await?;
        let made: bool = sqlx::query_scalar("select exists (select from pg_roles where rolname = 'org_nobody')")
            .fetch_one(&mut operator)
            .await?;
        if !made {
            // Another test may be faster; it is the same role then.
            let _ = operator.execute("create role org_nobody nologin in role agentapi_tenant").await;
            let _ = operator.execute("grant org_nobody to agentapi_runtime").await;
        }
        for slug in ["acme", "globex"] {
            let extra = BTreeMap::from([("org".to_owned(), format!("{{{slug}}}"))]);
            for statement in [
                "insert into workspaces (org_id, id, name, k8s_namespace, agent_type, max_sessions)
                 values ('{org}', gen_random_uuid(), 'spare', 'team', 'claude', 1)",
                "insert into mcp_connections (org_id, id, name, origin, k8s_namespace, transport)
                 values ('{org}', gen_random_uuid(), 'crd', 'crd', 'team-{org}', 'stdio')",
                "insert into prompt_policies (id, org_id, scope, name, k8s_namespace, template)
                 values (gen_random_uuid(), '{org}', 'Organization', 'own', 'team-{org}', 'be kind')",
                "insert into offboardings (org_id, org_slug, deletion_policy, requested_at, drain_until)
                 select id, slug, 'Retain', now(), now() from organizations where id = '{org}'",
                "insert into audit_checkpoints (org_id, seq, hash, at, kid, public_key, statement)
                 values ('{org}', 1, sha256(''), now(), 'k', sha256(''), 'x')",
            ] {
                operator.execute(AssertSqlSafe(self.fill(statement, &extra))).await?;
            }
        }
        operator
            .execute(
                "insert into prompt_policies (id, scope, name, k8s_namespace, template)
                 values (gen_random_uuid(), 'Global', 'global', 'agentapi-system', 'be brief')",
            )
            .await?;
        operator.close().await?;
        Ok(())
    }

    async fn rows_of_tenants(&self, organization: &Organization, users: &[&str]) -> Result<()> {
        let slug = &organization.slug;
        let mut runtime = PgConnection::connect(&self.db.runtime_url()).await?;
        let mut tx = runtime.begin().await?;
        become_tenant(&mut tx, organization, None, "admin").await?;
        for thing in ["api", "spare"] {
            let extra = BTreeMap::from([("id".to_owned(), format!("{{{slug}.{thing}}}"))]);
            let statement = self.fill(
                "insert into mcp_connections (org_id, id, name, origin, transport)
                 values (app.current_org(), '{id}', '{thing}', 'api', 'stdio')",
                &extra,
            );
            tx.execute(AssertSqlSafe(statement.replace("{thing}", thing))).await?;
        }
        let extra = BTreeMap::from([("api".to_owned(), format!("{{{slug}.api}}"))]);
        let observed = self.fill(
            "insert into mcp_observations (org_id, connection_id, generation, state)
             values (app.current_org(), '{api}', 1, 'Ready')",
            &extra,
        );
        tx.execute(AssertSqlSafe(observed)).await?;
        for user in users {
            let extra = ["org", "main", "api"]
                .map(|n| (n.to_owned(), if n == "org" { slug.clone() } else { format!("{slug}.{n}") }));
            let mut extra: BTreeMap<_, _> = extra.into_iter().map(|(n, v)| (n, format!("{{{v}}}"))).collect();
            extra.insert("user".to_owned(), format!("{{{user}}}"));
            extra.insert("session".to_owned(), format!("{{{user}.session}}"));
            for statement in ROWS {
                tx.execute(AssertSqlSafe(self.fill(statement, &extra))).await?;
            }
        }
        let extra = BTreeMap::from([("api".to_owned(), format!("{{{slug}.api}}"))]);
        for statement in [
            "insert into mcp_oauth_tokens (org_id, id, connection_id, access_ciphertext, key_id, key_version)
             values (app.current_org(), gen_random_uuid(), '{api}', decode(repeat('00', 32), 'hex'), 'k', 1)",
            "insert into oauth_clients (org_id, connection_id, issuer, redirect_uri, client_ciphertext, key_id, key_version)
             values (app.current_org(), '{api}', 'https://x', 'https://x', decode(repeat('00', 32), 'hex'), 'k', 1)",
        ] {
            tx.execute(AssertSqlSafe(self.fill(statement, &extra))).await?;
        }
        tx.commit().await?;
        runtime.close().await?;
        Ok(())
    }
}
