//! What the operator changes is in the audit log: one row per change in the log of whom it changes, none when nothing
//! changes, and each row with the digest of the configuration that was in force then, which can be computed again from
//! the rows alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use agentapi_crds::common::DeletionPolicy;
use agentapi_operator::envelope::{MasterKey, MasterKeys};
use agentapi_operator::metrics::Metrics;
use agentapi_operator::records::{self, ConnectionRow, Kept, PolicyRow, Record, WorkspaceRow, kept};
use agentapi_operator::signing::Signer;
use agentapi_operator::tenancy::offboarding::{Leaving, Outcome, step};
use agentapi_operator::tenancy::{self, organization::Tenant};
use agentapi_runtime::audit::chain::{Row, jsonb_text, verify};
use agentapi_runtime::store::audit::{chain, heads};
use agentapi_tests::pg::{Database, Server, ServerOptions, wanted as tenant};
use anyhow::Result;
use aws_lc_rs::digest::{SHA256, digest};
use secrecy::SecretString;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool};
use uuid::Uuid;

struct Fixture {
    db: Database,
    pool: PgPool,
    metrics: Arc<Metrics>,
    master: MasterKeys,
    signer: Signer,
}

impl Fixture {
    /// Roles belong to the server: a server of its own.
    async fn new() -> Result<Self> {
        let db = Database::create_on(Server::start(ServerOptions::default()).await?).await?;
        let pool = tenancy::pool(&SecretString::from(db.operator_url()))?;
        let document = agentapi_tests::serve::pem(&agentapi_tests::serve::idp::ed25519()?.0);
        let signer = Signer::from_pem(document.as_bytes())?;
        Ok(Self { signer, db, pool, metrics: Metrics::new()?, master: MasterKey::new(&[7; 32])?.into() })
    }

    async fn ensure(&self, tenant: &Tenant) -> Result<()> {
        tenancy::organization::ensure(&self.pool, tenant, &self.master, None, &self.metrics).await?;
        Ok(())
    }

    async fn write<R: Record>(&self, row: &R) -> Result<()> {
        Ok(records::write(&self.pool, row, &self.metrics).await?)
    }

    async fn remove<R: Record>(&self, id: Uuid) -> Result<()> {
        Ok(records::remove::<R>(&self.pool, id, &self.metrics).await?)
    }

    /// The organization leaves, to its receipt.
    async fn offboard(&self, tenant: &Tenant) -> Result<()> {
        let now = jiff::Timestamp::now();
        let (id, slug, policy) = (tenant.id, tenant.slug.clone(), tenant.deletion_policy);
        let leaving = Leaving { id, slug, policy, requested_at: now, drain_until: now };
        loop {
            match step(&self.pool, &leaving, &self.signer, now, async || None).await? {
                Outcome::Did(_) => {}
                Outcome::Receipt(_) => return Ok(()),
                other => panic!("{other:?}"),
            }
        }
    }

    /// The organization's log, which is whole.
    async fn log(&self, organization: Uuid) -> Result<Vec<Row>> {
        let mut admin = PgConnection::connect(&self.db.admin_url()).await?;
        let rows = chain(&mut admin, organization, 0, i64::MAX, i64::MAX).await?;
        let (.., head) = heads(&mut admin).await?.into_iter().find(|(id, ..)| *id == organization).unwrap();
        verify(organization, &rows, Some(&head))?;
        Ok(rows)
    }

    /// Actions since the last look.
    async fn news(&self, organization: Uuid, seen: &mut usize) -> Result<Vec<String>> {
        let rows = self.log(organization).await?;
        let news = rows[*seen..].iter().map(|row| format!("{} {}", row.action, row.target_id.as_deref().unwrap_or("")));
        let news = news.collect();
        *seen = rows.len();
        Ok(news)
    }
}

fn workspace(organization: Uuid, name: &str) -> WorkspaceRow {
    WorkspaceRow {
        id: Uuid::new_v4(),
        organization,
        name: name.into(),
        namespace: "team".into(),
        agent_type: "claude".into(),
        max_sessions: 3,
        spec: json!({"idleTimeout": "30m", "text": "ä\"\\"}),
        generation: 1,
    }
}

fn connection(organization: Uuid) -> ConnectionRow {
    ConnectionRow {
        id: Uuid::new_v4(),
        organization,
        workspace: None,
        name: "github".into(),
        namespace: "team".into(),
        transport: "stdio",
        spec: json!({}),
        generation: 1,
    }
}

fn policy(organization: Option<Uuid>, name: &str) -> PolicyRow {
    PolicyRow {
        id: Uuid::new_v4(),
        organization,
        workspace: None,
        scope: if organization.is_some() { "Organization" } else { "Global" },
        name: name.into(),
        namespace: "team".into(),
        priority: 0,
        locked: false,
        template: "be kind to hunter2".into(),
        spec: json!({}),
        generation: 1,
    }
}

/// The configuration after each row, from the rows alone; `before` is what was in force for everybody before them.
fn configurations(rows: &[Row], before: &BTreeMap<String, Value>) -> Vec<String> {
    let mut elements = before.clone();
    rows.iter()
        .map(|row| {
            let (_, verb) = row.action.split_once('.').unwrap();
            let element = match row.target_kind.as_str() {
                "Organization" => "Organization".to_owned(),
                kind => format!("{kind}/{}", row.detail["id"].as_str().unwrap_or_default()),
            };
            match verb {
                "offboard.rows" if !row.detail["deleted"].is_null() => elements.clone_from(before),
                "offboard.rows" => drop(elements.remove("Organization")),
                "delete" => drop(elements.remove(&element)),
                "create" | "update" | "repair" => drop(elements.insert(element, row.detail["generation"].clone())),
                _ => {}
            }
            let text = jsonb_text(&serde_json::to_value(&elements).unwrap());
            format!("sha256:{}", hex::encode(digest(&SHA256, text.as_bytes())))
        })
        .collect()
}

fn assert_digests(rows: &[Row], before: &BTreeMap<String, Value>) {
    for (row, expected) in rows.iter().zip(configurations(rows, before)) {
        assert_eq!(row.config_digest.as_deref(), Some(expected.as_str()), "{row:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_change_of_a_resource_is_one_row_with_the_configuration_in_force() -> Result<()> {
    let fixture = Fixture::new().await?;
    let acme = tenant("acme");
    let mut seen = 0;
    fixture.ensure(&acme).await?;
    assert_eq!(fixture.news(acme.id, &mut seen).await?, ["organization.create acme"]);
    let mut web = workspace(acme.id, "web");
    let mut github = connection(acme.id);
    let mut own = policy(Some(acme.id), "own");
    for _ in 0..2 {
        // The second time nothing is written, and nothing recorded.
        fixture.ensure(&acme).await?;
        fixture.write(&web).await?;
        fixture.write(&github).await?;
        fixture.write(&own).await?;
    }
    let created = ["workspace.create team/web", "mcpconnection.create team/github", "promptpolicy.create team/own"];
    assert_eq!(fixture.news(acme.id, &mut seen).await?, created);
    (web.generation, web.max_sessions) = (2, 4);
    (github.generation, own.generation) = (2, 5);
    fixture.write(&web).await?;
    fixture.write(&github).await?;
    fixture.write(&own).await?;
    let updated = ["workspace.update team/web", "mcpconnection.update team/github", "promptpolicy.update team/own"];
    assert_eq!(fixture.news(acme.id, &mut seen).await?, updated);
    // Another object of the same name takes the place of the one before.
    let again = workspace(acme.id, "web");
    fixture.write(&again).await?;
    let replaced = ["workspace.delete team/web", "workspace.create team/web"];
    assert_eq!(fixture.news(acme.id, &mut seen).await?, replaced);
    for _ in 0..2 {
        fixture.remove::<WorkspaceRow>(again.id).await?;
        fixture.remove::<ConnectionRow>(github.id).await?;
        fixture.remove::<PolicyRow>(own.id).await?;
    }
    let removed = ["workspace.delete team/web", "mcpconnection.delete team/github", "promptpolicy.delete team/own"];
    assert_eq!(fixture.news(acme.id, &mut seen).await?, removed);
    let newer = Tenant { generation: 2, ..acme.clone() };
    fixture.ensure(&newer).await?;
    assert_eq!(fixture.news(acme.id, &mut seen).await?, ["organization.update acme"]);
    // Drift that a reconcile repairs changes the tenant, too.
    let mut admin = PgConnection::connect(&fixture.db.admin_url()).await?;
    admin.execute("alter role org_acme login").await?;
    fixture.ensure(&newer).await?;
    assert_eq!(fixture.news(acme.id, &mut seen).await?, ["organization.repair acme"]);

    let rows = fixture.log(acme.id).await?;
    assert!(rows.iter().all(|row| row.actor == "system:operator" && row.db_role == "agentapi_operator"));
    assert_digests(&rows, &BTreeMap::new());
    assert_eq!(rows.last().unwrap().detail["changed"], json!(["role"]));
    let text = serde_json::to_string(&rows)?;
    assert!(!text.contains("hunter2") && !text.contains("idleTimeout"), "a template or a spec is in the log: {text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_in_use_are_those_that_a_resource_must_stand_behind() -> Result<()> {
    let fixture = Fixture::new().await?;
    let (acme, gone) = (tenant("acme"), tenant("gone"));
    for tenant in [&acme, &gone] {
        fixture.ensure(tenant).await?;
        fixture.write(&workspace(tenant.id, "web")).await?;
        fixture.write(&connection(tenant.id)).await?;
        fixture.write(&policy(Some(tenant.id), &tenant.slug)).await?;
    }
    fixture.write(&policy(None, "all")).await?;
    let mut admin = PgConnection::connect(&fixture.db.admin_url()).await?;
    // Made through the API: no resource stands behind it.
    let own = format!(
        "insert into mcp_connections (org_id, id, name, origin, transport, generation)
         values ('{}', '{}', 'own', 'api', 'sse', 1)",
        acme.id,
        Uuid::new_v4()
    );
    admin.execute(AssertSqlSafe(own)).await?;
    fixture.offboard(&gone).await?;
    let pool = &fixture.pool;
    let names = |kept: Vec<Kept>| kept.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(names(kept::<WorkspaceRow>(pool).await?), set(&["team/web"]));
    assert_eq!(names(kept::<PolicyRow>(pool).await?), set(&["team/acme", "team/all"]));
    let connections = kept::<ConnectionRow>(pool).await?;
    assert_eq!(names(connections.clone()), set(&["team/github"]));
    for row in connections {
        fixture.remove::<ConnectionRow>(row.id).await?;
    }
    assert_eq!(kept::<ConnectionRow>(pool).await?, []);
    let left: i64 =
        sqlx::query_scalar("select count(*) from mcp_connections where origin = 'api'").fetch_one(&mut admin).await?;
    assert_eq!(left, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_global_policy_is_in_the_log_of_everybody_whom_it_binds() -> Result<()> {
    let fixture = Fixture::new().await?;
    let (acme, globex, gone) = (tenant("acme"), tenant("globex"), tenant("gone"));
    for tenant in [&acme, &globex, &gone] {
        fixture.ensure(tenant).await?;
    }
    fixture.offboard(&gone).await?;
    let (mut seen_acme, mut seen_globex, before_gone) = (1, 1, fixture.log(gone.id).await?);
    let mut global = policy(None, "all");
    fixture.write(&global).await?;
    global.generation = 2;
    fixture.write(&global).await?;
    fixture.write(&global).await?;
    for (tenant, seen) in [(&acme, &mut seen_acme), (&globex, &mut seen_globex)] {
        let news = fixture.news(tenant.id, seen).await?;
        assert_eq!(news, ["promptpolicy.create team/all", "promptpolicy.update team/all"], "{}", tenant.slug);
        assert_digests(&fixture.log(tenant.id).await?, &BTreeMap::new());
    }
    assert_eq!(fixture.log(gone.id).await?, before_gone, "a deleted organization is bound by nothing");

    // Whoever comes later begins with what is in force for everybody.
    let late = tenant("late");
    fixture.ensure(&late).await?;
    let in_force = BTreeMap::from([(format!("PromptPolicy/{}", global.id), json!(2))]);
    assert_digests(&fixture.log(late.id).await?, &in_force);

    // A policy that moves to another organization is gone for the first and new for the second.
    let mut moving = policy(Some(acme.id), "moving");
    fixture.write(&moving).await?;
    (moving.organization, moving.generation) = (Some(globex.id), 2);
    fixture.write(&moving).await?;
    let news = fixture.news(acme.id, &mut seen_acme).await?;
    assert_eq!(news, ["promptpolicy.create team/moving", "promptpolicy.delete team/moving"]);
    assert_eq!(fixture.news(globex.id, &mut seen_globex).await?, ["promptpolicy.create team/moving"]);
    fixture.remove::<PolicyRow>(global.id).await?;
    for tenant in [&acme, &globex] {
        assert_digests(&fixture.log(tenant.id).await?, &BTreeMap::new());
    }
    Ok(())
}

/// Digests are right also when changes of one organization and of all of them happen at the same time.
#[tokio::test(flavor = "multi_thread")]
async fn changes_at_the_same_time_leave_the_digest_of_all_of_them() -> Result<()> {
    let fixture = Arc::new(Fixture::new().await?);
    let tenants = [tenant("acme"), tenant("globex")];
    for tenant in &tenants {
        fixture.ensure(tenant).await?;
    }
    let mut tasks = Vec::new();
    for n in 0..12 {
        let (fixture, organization) = (Arc::clone(&fixture), tenants[n % 2].id);
        tasks.push(tokio::spawn(async move {
            if n % 3 == 0 {
                fixture.write(&policy(None, &format!("p{n}"))).await.unwrap();
            } else {
                let row = workspace(organization, &format!("w{n}"));
                fixture.write(&row).await.unwrap();
                fixture.write(&WorkspaceRow { generation: 2, ..row }).await.unwrap();
            }
        }));
    }
    for task in tasks {
        task.await?;
    }
    for tenant in &tenants {
        let rows = fixture.log(tenant.id).await?;
        assert_eq!(rows.len(), 1 + 4 + 2 * 4);
        let last = configurations(&rows, &BTreeMap::new()).pop();
        let mut admin = PgConnection::connect(&fixture.db.admin_url()).await?;
        let kept: String = sqlx::query_scalar("select config_digest from audit_heads where org_id = $1")
            .bind(tenant.id)
            .fetch_one(&mut admin)
            .await?;
        assert_eq!(Some(kept), last);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_rolled_back_leaves_neither_row_nor_digest() -> Result<()> {
    let fixture = Fixture::new().await?;
    let acme = tenant("acme");
    fixture.ensure(&acme).await?;
    let before = fixture.log(acme.id).await?;
    let mut admin = PgConnection::connect(&fixture.db.admin_url()).await?;
    admin.execute("alter table audit_log add constraint broken check (target_kind <> 'Workspace') not valid").await?;
    let web = workspace(acme.id, "web");
    assert!(fixture.write(&web).await.is_err());
    let rows: i64 = sqlx::query_scalar("select count(*) from workspaces").fetch_one(&mut admin).await?;
    assert_eq!(rows, 0, "the change is there without its row");
    admin.execute("alter table audit_log drop constraint broken").await?;
    assert_eq!(fixture.log(acme.id).await?, before);
    fixture.write(&web).await?;
    assert_digests(&fixture.log(acme.id).await?, &BTreeMap::new());
    Ok(())
}

/// Both policies: the log is as it was, goes on to its last row, and its last checkpoint is made afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_survives_its_organization_and_ends_with_its_deletion() -> Result<()> {
    let fixture = Fixture::new().await?;
    let now = jiff::Timestamp::now();
    for (slug, policy) in [("kept", DeletionPolicy::Retain), ("gone", DeletionPolicy::Delete)] {
        let tenant = Tenant { deletion_policy: policy, ..tenant(slug) };
        fixture.ensure(&tenant).await?;
        fixture.write(&workspace(tenant.id, "web")).await?;
        agentapi_operator::checkpoints::make(&fixture.pool, &fixture.signer, now, &fixture.metrics).await?;
        let before = fixture.log(tenant.id).await?;
        for _ in 0..2 {
            fixture.offboard(&tenant).await?;
        }
        let after = fixture.log(tenant.id).await?;
        assert_eq!(after[..before.len()], before, "{slug}");
        let last: Vec<_> = after[before.len()..].iter().map(|row| row.action.as_str()).collect();
        assert_eq!(last.len(), 7, "{last:?}");
        assert_eq!((last[0], last[6]), ("organization.offboard.refuse", "organization.delete"), "{slug}");
        assert_digests(&after, &BTreeMap::new());
        assert_eq!(
            agentapi_operator::checkpoints::make(&fixture.pool, &fixture.signer, now, &fixture.metrics).await?,
            1
        );
        let mut admin = PgConnection::connect(&fixture.db.admin_url()).await?;
        let newest: i64 = sqlx::query_scalar("select max(seq) from audit_checkpoints where org_id = $1")
            .bind(tenant.id)
            .fetch_one(&mut admin)
            .await?;
        assert_eq!(newest, after.last().unwrap().seq);
        for statement in
            ["delete from audit_checkpoints", "update audit_checkpoints set kid = 'x'", "truncate audit_checkpoints"]
        {
            let refused = admin.execute(statement).await.unwrap_err();
            assert!(refused.to_string().contains("append-only"), "{statement}: {refused}");
        }
    }
    Ok(())
}
