//! The ways in which the schema before this one failed. Each is tried as the real role against the real fence, and
//! then once more with that fence broken: the attack must work there, or the test would prove nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]
use agentapi_tests::pg::{World, become_tenant};
use sqlx::postgres::PgQueryResult;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row};
use std::collections::BTreeMap;
use uuid::Uuid;

/// Tries a statement as an admin of acme: through the runtime's login, or, with a fence broken first, in a superuser's
/// transaction that has taken on acme's role. Both are taken back.
async fn try_as_acme(world: &World, broken: Option<&str>, statement: &str) -> Result<PgQueryResult, String> {
    try_as(world, broken, Some(world.acme.admin.id), "admin", statement).await
}

async fn try_as(
    world: &World,
    broken: Option<&str>,
    user: Option<Uuid>,
    role: &str,
    statement: &str,
) -> Result<PgQueryResult, String> {
    let url = if broken.is_some() { world.db.admin_url() } else { world.db.runtime_url() };
    let mut connection = world.db.connect(&url).await.unwrap();
    let mut tx = connection.begin().await.unwrap();
    if let Some(broken) = broken {
        sqlx::raw_sql(AssertSqlSafe(broken.to_owned())).execute(&mut *tx).await.unwrap();
    }
    become_tenant(&mut tx, &world.acme, user, role).await.unwrap();
    let statement = world.fill(statement, &BTreeMap::from([("new".to_owned(), Uuid::new_v4().to_string())]));
    let result = tx.execute(AssertSqlSafe(statement)).await;
    tx.rollback().await.unwrap();
    result.map_err(|error| error.to_string())
}

fn refused(result: Result<PgQueryResult, String>, reason: &str) {
    match result {
        Ok(done) => panic!("the attack worked: {done:?}"),
        Err(error) => assert!(error.contains(reason), "{error}"),
    }
}

fn worked(result: Result<PgQueryResult, String>) {
    assert!(result.expect("without the fence this works").rows_affected() > 0, "this test would see nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_on_users_do_not_recurse() {
    let world = World::create().await.unwrap();
    let read = "select * from users";
    assert_eq!(try_as_acme(&world, None, read).await.unwrap().rows_affected(), 3);
    let broken = "create policy admins on users for select to agentapi_tenant using (exists (
                      select from users u where u.id = app.user_id() and u.role = 'admin'))";
    refused(try_as_acme(&world, Some(broken), read).await, "infinite recursion");
}

/// In `exists (select … from sessions s where s.org_id = org_id)` the second org_id is that of sessions, too: always
/// true, and acme writes into globex.
#[tokio::test(flavor = "multi_thread")]
async fn no_column_binds_to_the_inner_table() {
    let world = World::create().await.unwrap();
    let write = "insert into messages (org_id, session_id, id, user_id, role, content)
                 values ('{globex}', '{carol.session}', 7, '{carol}', 'user', 'from acme')";
    refused(try_as_acme(&world, None, write).await, "row-level security");
    let broken = "create policy bound on messages for insert to agentapi_tenant with check (exists (
                      select from sessions s where s.org_id = org_id))";
    worked(try_as_acme(&world, Some(broken), write).await);

    // The other way round: globex's id on a row of acme's session. Keys hold where policies would not.
    let mixed = "insert into messages (org_id, session_id, id, user_id, role, content)
                 values ('{acme}', '{carol.session}', 7, '{carol}', 'user', 'x')";
    refused(try_as_acme(&world, None, mixed).await, "foreign key");
    refused(
        try_as_acme(&world, None, "update sessions set workspace_id = '{globex.main}' where id = '{alice.session}'")
            .await,
        "foreign key",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn no_organization_admin_writes_a_global_prompt() {
    let world = World::create().await.unwrap();
    let write = "insert into prompt_policies (id, scope, name, k8s_namespace, template)
                 values ('{new}', 'Global', 'mine', 'team', 'obey acme')";
    let raise = "update prompt_policies set scope = 'Global', org_id = null where org_id = '{acme}'";
    let grant = "grant insert, update on prompt_policies to agentapi_tenant;";
    for attack in [write, raise] {
        refused(try_as_acme(&world, None, attack).await, "permission denied for table prompt_policies");
    }
    // A grant by mistake is not enough: no policy lets a tenant write.
    refused(try_as_acme(&world, Some(grant), write).await, "row-level security");
    assert_eq!(try_as_acme(&world, Some(grant), raise).await.unwrap().rows_affected(), 0);
    let broken = format!("{grant} create policy admins on prompt_policies to agentapi_tenant using (app.is_admin())");
    worked(try_as_acme(&world, Some(&broken), write).await);
    worked(try_as_acme(&world, Some(&broken), raise).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_writes_into_anothers_audit_log() {
    let world = World::create().await.unwrap();
    let write = "insert into audit_log (org_id, org_slug, actor, action, target_kind)
                 values ('{globex}', 'globex', 'user:x', 'a.b', 'Session')";
    refused(try_as_acme(&world, None, write).await, "belongs to the organization of the role");
    // The trigger believes the column that says who writes; the policy believes nothing but the role.
    let no_trigger = "alter table audit_log alter db_role set default 'org_globex';";
    refused(try_as_acme(&world, Some(no_trigger), write).await, "row-level security");
    let broken =
        format!("{no_trigger} create policy open on audit_log for insert to agentapi_tenant with check (true)");
    worked(try_as_acme(&world, Some(&broken), write).await);

    // The operator writes for any organization that there is, under its own name.
    let mut operator = world.db.connect(&world.db.operator_url()).await.unwrap();
    for (org, slug) in [("00000000-0000-0000-0000-000000000001", "ghost"), ("{acme}", "globex")] {
        let statement = write.replace("{globex}", org).replace("'globex'", &format!("'{slug}'"));
        let statement = world.fill(&statement, &BTreeMap::new());
        let result = operator.execute(AssertSqlSafe(statement.clone())).await;
        if slug == "globex" {
            // The head knows the right name and the trigger writes that one.
            result.unwrap();
            let mut admin = world.db.connect(&world.db.admin_url()).await.unwrap();
            let wrong: i64 = sqlx::query_scalar(
                "select count(*) from audit_log a join organizations o on o.id = a.org_id where o.slug <> a.org_slug",
            )
            .fetch_one(&mut admin)
            .await
            .unwrap();
            assert_eq!(wrong, 0);
        } else {
            refused(result.map_err(|e| e.to_string()), "row-level security");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_an_organization_leaves_its_audit_rows_as_they_were() {
    let world = World::create().await.unwrap();
    let mut admin = world.db.connect(&world.db.admin_url()).await.unwrap();
    let rows = "select a::text from audit_log a order by org_id, seq";
    let before: Vec<String> = sqlx::query_scalar(rows).fetch_all(&mut admin).await.unwrap();
    assert!(before.len() >= 2);
    let mut operator = world.db.connect(&world.db.operator_url()).await.unwrap();
    let deleted = sqlx::query("delete from organizations where slug = 'acme'").execute(&mut operator).await.unwrap();
    assert_eq!(deleted.rows_affected(), 1);
    let after: Vec<String> = sqlx::query_scalar(rows).fetch_all(&mut admin).await.unwrap();
    assert_eq!(before, after);
    // Everything else of acme is gone and globex is whole.
    for table in ["users", "workspaces", "sessions", "messages", "mcp_connections", "mcp_oauth_tokens", "oauth_states"]
    {
        let row = sqlx::query(AssertSqlSafe(format!(
            "select count(*) filter (where org_id = $1) as acme, count(*) filter (where org_id = $2) as globex from {table}"
        )))
        .bind(world.acme.id)
        .bind(world.globex.id)
        .fetch_one(&mut admin)
        .await
        .unwrap();
        assert_eq!(row.get::<i64, _>("acme"), 0, "{table}");
        assert!(row.get::<i64, _>("globex") > 0, "{table}");
    }
    // With the foreign key that the old schema had: the trigger stops the deletion, and without it the rows go.
    let key = "alter table audit_log add foreign key (org_id) references organizations on delete cascade not valid;";
    let delete = "delete from organizations where slug = 'globex';";
    let mut tx = admin.begin().await.unwrap();
    let stopped = sqlx::raw_sql(AssertSqlSafe(format!("{key} {delete}"))).execute(&mut *tx).await.unwrap_err();
    assert!(stopped.to_string().contains("audit_log is append-only"), "{stopped}");
    tx.rollback().await.unwrap();
    let mut tx = admin.begin().await.unwrap();
    let off = "alter table audit_log disable trigger audit_log_append_only;";
    sqlx::raw_sql(AssertSqlSafe(format!("{off} {key} {delete}"))).execute(&mut *tx).await.unwrap();
    let left: Vec<String> = sqlx::query_scalar(rows).fetch_all(&mut *tx).await.unwrap();
    assert!(left.len() < before.len(), "this test would see nothing");
    tx.rollback().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owner_is_bound_too() {
    let world = World::create().await.unwrap();
    let mut admin = world.db.connect(&world.db.admin_url()).await.unwrap();
    for table in [
        "organizations",
        "tenant_roles",
        "users",
        "workspaces",
        "sessions",
        "messages",
        "mcp_connections",
        "mcp_oauth_tokens",
        "oauth_states",
        "oauth_clients",
        "prompt_policies",
        "tenant_keys",
        "offboardings",
        "audit_log",
    ] {
        for (broken, expected) in [(false, 0), (true, 1)] {
            let mut tx = admin.begin().await.unwrap();
            if broken {
                tx.execute(AssertSqlSafe(format!("alter table {table} no force row level security"))).await.unwrap();
            }
            tx.execute("set local role agentapi_owner").await.unwrap();
            let seen: i64 = sqlx::query_scalar(AssertSqlSafe(format!("select least(count(*), 1) from {table}")))
                .fetch_one(&mut *tx)
                .await
                .unwrap();
            assert_eq!(seen, expected, "{table}, fence broken: {broken}");
            tx.rollback().await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn views_show_what_their_reader_may_see() {
    let world = World::create().await.unwrap();
    let seen = async |broken: &str, login: &str| -> Result<i64, String> {
        let mut admin = world.db.connect(&world.db.admin_url()).await.unwrap();
        let mut tx = admin.begin().await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(broken.to_owned())).execute(&mut *tx).await.unwrap();
        tx.execute(AssertSqlSafe(format!("set local role {login}"))).await.unwrap();
        let count = sqlx::query_scalar("select count(*) from app.tenants").fetch_one(&mut *tx).await;
        tx.rollback().await.unwrap();
        count.map_err(|e| e.to_string())
    };
    assert_eq!(seen("", "agentapi_runtime").await, Ok(2));
    assert!(seen("", "org_acme").await.unwrap_err().contains("permission denied"));
    let grant = "grant select on app.tenants to agentapi_tenant;";
    assert_eq!(seen(grant, "org_acme").await, Ok(1));
    // A superuser's view, as a migration run by the wrong role would leave it.
    let broken = format!(
        "{grant} alter view app.tenants owner to postgres; alter view app.tenants set (security_invoker = false)"
    );
    assert_eq!(seen(&broken, "org_acme").await, Ok(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_user_setting_means_nobody_and_raises_no_cast_error() {
    let world = World::create().await.unwrap();
    for table in ["sessions", "messages", "users", "oauth_states"] {
        let read = format!("select * from {table}");
        assert_eq!(try_as(&world, None, None, "user", &read).await.unwrap().rows_affected(), 0, "{table}");
    }
    // What the setting is after a transaction that set it: '' and not NULL.
    let mut runtime = world.db.connect(&world.db.runtime_url()).await.unwrap();
    let mut tx = runtime.begin().await.unwrap();
    become_tenant(&mut tx, &world.acme, Some(world.acme.alice.id), "user").await.unwrap();
    tx.commit().await.unwrap();
    let mut tx = runtime.begin().await.unwrap();
    sqlx::query("select set_config('role', $1, true)").bind(&world.acme.id_role).execute(&mut *tx).await.unwrap();
    let left: Option<String> =
        sqlx::query_scalar("select current_setting('app.user_id', true)").fetch_one(&mut *tx).await.unwrap();
    assert_eq!(left.as_deref(), Some(""));
    assert!(sqlx::query("select * from sessions").fetch_all(&mut *tx).await.unwrap().is_empty());
    tx.rollback().await.unwrap();

    let broken = "create or replace function app.user_id() returns uuid language sql stable as
                  'select current_setting(''app.user_id'', true)::uuid'";
    refused(try_as(&world, Some(broken), None, "user", "select * from sessions").await, "invalid input syntax");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nulls_are_one_key() {
    let world = World::create().await.unwrap();
    let second = "insert into mcp_oauth_tokens (org_id, id, connection_id, access_ciphertext, key_id, key_version)
                  values ('{acme}', '{new}', '{acme.api}', decode(repeat('00', 32), 'hex'), 'k', 1)";
    refused(try_as_acme(&world, None, second).await, "mcp_oauth_tokens_one_each");
    let broken = "alter table mcp_oauth_tokens drop constraint mcp_oauth_tokens_one_each,
                  add unique (org_id, connection_id, user_id)";
    worked(try_as_acme(&world, Some(broken), second).await);
    let same_name = "insert into mcp_connections (org_id, id, name, origin, transport)
                     values ('{acme}', '{new}', 'api', 'api', 'stdio')";
    refused(try_as_acme(&world, None, same_name).await, "mcp_connections_name_once");
}

/// One key, many organizations: neither an error nor a foreign key tells that another tenant has it.
#[tokio::test(flavor = "multi_thread")]
async fn keys_of_others_can_be_used_and_not_probed() {
    let world = World::create().await.unwrap();
    worked(
        try_as_acme(
            &world,
            None,
            "insert into sessions (org_id, id, workspace_id, user_id, agent_type, idempotency_key)
             values ('{acme}', '{carol.session}', '{acme.main}', '{alice}', 'claude', 'k')",
        )
        .await,
    );
    worked(
        try_as_acme(
            &world,
            None,
            "insert into users (org_id, id, subject) values ('{acme}', '{carol}', 'globex-alice')",
        )
        .await,
    );
}

async fn count(connection: &mut PgConnection) -> i64 {
    sqlx::query_scalar("select count(*) from organizations").fetch_one(connection).await.unwrap()
}

/// Two tenants with one identity would be one token for two tenants; a slug must not name another's read-only login.
#[tokio::test(flavor = "multi_thread")]
async fn identities_and_role_names_are_one_organizations_only() {
    let world = World::create().await.unwrap();
    let mut operator = world.db.connect(&world.db.operator_url()).await.unwrap();
    let before = count(&mut operator).await;
    let insert = |slug: &str, claim: &str| {
        AssertSqlSafe(format!(
            "insert into organizations (id, slug, display_name, issuer, audience, org_claim_value)
             values (gen_random_uuid(), '{slug}', 'x', 'https://idp.test', 'a', '{claim}')"
        ))
    };
    for (slug, claim, constraint) in [
        ("other", "acme", "organizations_live_identity"),
        ("acme", "other", "organizations_live_slug"),
        ("acme-ro", "other", "organizations_slug_form"),
        ("a_b", "other", "organizations_slug_form"),
        ("", "other", "organizations_slug"),
    ] {
        let error = operator.execute(insert(slug, claim)).await.unwrap_err().to_string();
        assert!(error.contains(constraint), "{slug} {claim}: {error}");
    }
    let error = sqlx::query("insert into tenant_roles (role_name, org_id) values ('org_x_ro', $1)")
        .bind(world.globex.id)
        .execute(&mut operator)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("tells_read_only"), "{error}");
    // A retained organization is in nobody's way, and nobody comes in through it.
    operator.execute("update organizations set deleted_at = now() where slug = 'acme'").await.unwrap();
    let mut runtime = world.db.connect(&world.db.runtime_url()).await.unwrap();
    let found =
        sqlx::query("select * from app.resolve_identity('https://idp.test', 'acme')").fetch_all(&mut runtime).await;
    assert!(found.unwrap().is_empty());
    operator.execute(insert("acme", "acme")).await.unwrap();
    assert_eq!(count(&mut operator).await, before + 1);
}
