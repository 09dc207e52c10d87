//! What somebody tries who has a tenant's login, or can run SQL as the runtime or the operator.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]
use agentapi_tests::pg::{World, become_tenant};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

/// The SQLSTATE that a statement ends with, and nothing of it stays.
async fn refusal(connection: &mut PgConnection, statement: &str) -> Option<String> {
    let mut tx = connection.begin().await.unwrap();
    let result = sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&mut *tx).await;
    let code = result
        .err()
        .map(|e| e.as_database_error().and_then(|d| d.code().map(std::borrow::Cow::into_owned)).unwrap_or_default());
    tx.rollback().await.unwrap();
    code
}

const DENIED: &str = "42501";

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_login_stays_what_it_is() {
    let world = World::create().await.unwrap();
    let mut ro = world.db.connect_read_only(&world.acme).await.unwrap();
    for role in [
        "org_acme",
        "org_globex",
        "org_globex_ro",
        &world.acme.id_role,
        &world.globex.id_role,
        "agentapi_owner",
        "agentapi_operator",
        "agentapi_runtime",
        "agentapi_tenant",
        "postgres",
        "pg_read_all_data",
    ] {
        for statement in [
            format!("set role \"{role}\""),
            format!("set local role \"{role}\""),
            format!("select set_config('role', '{role}', true)"),
            format!("set session authorization \"{role}\""),
            format!("grant \"{role}\" to current_user"),
        ] {
            assert_eq!(refusal(&mut ro, &statement).await.as_deref(), Some(DENIED), "{statement}");
        }
    }
    for statement in [
        "create table loot (x int)",
        "create temporary table sessions (x int)",
        "create schema loot",
        "create function app.current_org() returns uuid language sql as 'select null::uuid'",
        "create role loot",
        "alter role org_acme_ro bypassrls",
        "alter role org_acme_ro createrole",
        "alter table sessions no force row level security",
        "drop policy sessions_ro on sessions",
        "create policy open on sessions for select using (true)",
        "alter function app.current_org() owner to org_acme_ro",
        "copy sessions to program 'cat'",
        "select pg_read_file('/etc/passwd')",
        "select pg_ls_dir('.')",
        "select * from pg_authid",
        "select pg_advisory_lock(1)",
        "select pg_try_advisory_xact_lock(1, 2)",
        "select lo_create(0)",
        "select lo_from_bytea(0, 'x')",
        "lock table sessions in access exclusive mode",
        "select * from sessions for update",
        "select app.lock_organization()",
        "select * from app.resolve_identity('https://idp.test', 'globex')",
        "select * from app.tenants",
        "select app.audit_hash(a) from audit_log a",
        "select * from _sqlx_migrations",
        "truncate messages",
    ] {
        assert_eq!(refusal(&mut ro, statement).await.as_deref(), Some(DENIED), "{statement}");
    }
    // row_security off is an error for whoever has no BYPASSRLS, and never a way around.
    assert_eq!(refusal(&mut ro, "set row_security = off; select * from sessions").await.as_deref(), Some(DENIED));
    // Settings narrow within an organization; no value of them leads out of it.
    for settings in [
        "set app.user_role = 'admin'",
        "set app.org_id = '00000000-0000-0000-0000-000000000000'",
        "set search_path = pg_temp, public",
    ] {
        ro.execute(settings).await.unwrap();
        let foreign: i64 = sqlx::query_scalar("select count(*) from sessions where org_id <> $1")
            .bind(world.acme.id)
            .fetch_one(&mut ro)
            .await
            .unwrap();
        assert_eq!(foreign, 0, "{settings}");
    }
}

/// Functions that a planner could run before the policy, were they not kept behind it: a leak through an error.
#[tokio::test(flavor = "multi_thread")]
async fn an_expression_sees_no_row_that_the_policy_hides() {
    let world = World::create().await.unwrap();
    let mut ro = world.db.connect_read_only(&world.acme).await.unwrap();
    // Divides by zero for globex's rows only.
    let statement =
        format!("select * from sessions where 1 / (case when org_id = '{}' then 0 else 1 end) = 1", world.globex.id);
    assert_eq!(refusal(&mut ro, &statement).await, None, "the expression was evaluated on a foreign row");
    let mut admin = world.db.connect(&world.db.admin_url()).await.unwrap();
    assert_eq!(refusal(&mut admin, &statement).await.as_deref(), Some("22012"), "this test would see nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_runtime_becomes_tenants_and_nobody_else() {
    let world = World::create().await.unwrap();
    let mut runtime = world.db.connect(&world.db.runtime_url()).await.unwrap();
    for role in ["agentapi_owner", "agentapi_operator", "agentapi_tenant_ro", "org_acme_ro", "postgres"] {
        for statement in [
            format!("set role {role}"),
            format!("select set_config('role', '{role}', true)"),
            format!("grant {role} to agentapi_runtime"),
        ] {
            assert_eq!(refusal(&mut runtime, &statement).await.as_deref(), Some(DENIED), "{statement}");
        }
    }
    // The group is reached through its members, and stands for no organization.
    let mut tx = runtime.begin().await.unwrap();
    tx.execute("set local role agentapi_tenant").await.unwrap();
    tx.execute("select set_config('app.user_role', 'admin', true)").await.unwrap();
    assert!(tx.fetch_all("select * from sessions").await.unwrap().is_empty());
    tx.rollback().await.unwrap();
    // By design: the runtime serves all tenants.
    assert_eq!(refusal(&mut runtime, "set local role org_acme; select * from sessions").await, None);
    for statement in [
        "select * from sessions",
        "create role x",
        "create table x ()",
        "alter role agentapi_runtime inherit",
        "select display_name from organizations",
        "update organizations set slug = 'x'",
        "delete from tenant_roles",
        "copy sessions to program 'cat'",
        "set row_security = off; select slug from organizations",
    ] {
        assert_eq!(refusal(&mut runtime, statement).await.as_deref(), Some(DENIED), "{statement}");
    }
    // As a tenant it may do what the tenant may, and nothing to the fences.
    for statement in [
        "alter table sessions disable row level security",
        "create table x ()",
        "delete from sessions",
        "update audit_log set actor = 'x'",
        "delete from audit_log",
        "truncate audit_log",
        "insert into audit_log (seq, actor, action, target_kind) values (9, 'a', 'b', 'c')",
        "insert into audit_log (at, actor, action, target_kind) values (now(), 'a', 'b', 'c')",
        "insert into audit_log (hash, actor, action, target_kind) values ('', 'a', 'b', 'c')",
        "update audit_heads set seq = 0",
    ] {
        let statement = format!("set local role org_acme; {statement}");
        assert_eq!(refusal(&mut runtime, &statement).await.as_deref(), Some(DENIED), "{statement}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooled_connection_carries_nothing_over() {
    let world = World::create().await.unwrap();
    let mut runtime = world.db.connect(&world.db.runtime_url()).await.unwrap();
    for commit in [true, false] {
        let mut tx = runtime.begin().await.unwrap();
        become_tenant(&mut tx, &world.acme, Some(world.acme.admin.id), "admin").await.unwrap();
        let mine: i64 = sqlx::query_scalar("select count(*) from sessions").fetch_one(&mut *tx).await.unwrap();
        assert_eq!(mine, 2);
        if commit {
            tx.commit().await.unwrap();
        } else {
            tx.rollback().await.unwrap();
        }
        let (role, user, admin): (String, String, bool) =
            sqlx::query_as("select current_user::text, current_setting('app.user_id', true), app.is_admin()")
                .fetch_one(&mut runtime)
                .await
                .unwrap();
        assert_eq!((role.as_str(), user.as_str(), admin), ("agentapi_runtime", "", false));
        assert_eq!(refusal(&mut runtime, "select * from sessions").await.as_deref(), Some(DENIED));
    }
    // The next tenant on this connection gets its own rows out of the same prepared statements.
    let mut tx = runtime.begin().await.unwrap();
    become_tenant(&mut tx, &world.globex, Some(world.globex.admin.id), "admin").await.unwrap();
    let mine: i64 = sqlx::query_scalar("select count(*) from sessions").fetch_one(&mut *tx).await.unwrap();
    assert_eq!(mine, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_reads_no_conversation_and_no_token() {
    let world = World::create().await.unwrap();
    let mut operator = world.db.connect(&world.db.operator_url()).await.unwrap();
    for statement in [
        "select * from messages",
        "select * from users",
        "select * from mcp_oauth_tokens",
        "select * from oauth_states",
        "select client_ciphertext from oauth_clients",
        "select user_id from sessions",
        "select * from audit_log",
        "update audit_heads set seq = 0",
        "alter table messages no force row level security",
        "set role postgres",
        "alter role agentapi_runtime bypassrls",
        "alter role agentapi_runtime superuser",
    ] {
        assert_eq!(refusal(&mut operator, statement).await.as_deref(), Some(DENIED), "{statement}");
    }
}
