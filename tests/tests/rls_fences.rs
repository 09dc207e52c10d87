//! The fences of the database as `migrate` left them: everything that weakens one is seen as drift and put back by a
//! function that takes no argument, and nobody but the owner can say what is put back. The probes that try to cross as a
//! tenant see nothing while the fences stand and something when one is down.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]
use agentapi_tests::pg::{Database, Server, ServerOptions, World, become_tenant, catalogue::findings};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

async fn drift(connection: &mut PgConnection) -> Vec<String> {
    sqlx::query_scalar("select finding from fences.drift()").fetch_all(connection).await.unwrap()
}

async fn restore(connection: &mut PgConnection) -> Vec<String> {
    sqlx::query_scalar("select app.restore_fences()").fetch_all(connection).await.unwrap()
}

/// What an administrator or an attacker with their rights does, and what the operator says to it.
const DRIFT: &[(&str, &str)] = &[
    ("drop policy sessions_read on sessions", "policy sessions_read on public.sessions is missing"),
    ("alter policy users_ro on users using (true)", "policy users_ro on public.users was changed"),
    (
        "create policy open on messages for select to agentapi_tenant using (true)",
        "policy open on public.messages was added",
    ),
    ("alter table messages no force row level security", "row-level security of public.messages was changed"),
    ("alter table audit_log disable row level security", "row-level security of public.audit_log was changed"),
    (
        "grant select on mcp_oauth_tokens to agentapi_tenant_ro",
        "select on table public.mcp_oauth_tokens for agentapi_tenant_ro was added",
    ),
    ("grant select on messages to public", "select on table public.messages for public was added"),
    ("grant select (content) on messages to agentapi_operator", "select (content) on table public.messages"),
    (
        "grant all on tenant_keys to org_acme with grant option",
        "select on table public.tenant_keys for org_acme was added",
    ),
    (
        "grant execute on function app.lock_organization() to public",
        "execute on routine app.lock_organization() for public",
    ),
    ("grant create on schema app to agentapi_tenant", "create on schema app for agentapi_tenant was added"),
    (
        "revoke select on sessions from agentapi_tenant",
        "select on table public.sessions for agentapi_tenant is missing",
    ),
    (
        "alter table audit_log disable trigger audit_log_append_only",
        "trigger audit_log_append_only on public.audit_log was changed",
    ),
    ("drop trigger audit_log_2_chain on audit_log", "trigger audit_log_2_chain on public.audit_log is missing"),
    ("drop trigger audit_log_3_head on audit_log", "trigger audit_log_3_head on public.audit_log is missing"),
    (
        "create trigger spy before insert on messages for each row execute function app.touch_updated_at()",
        "trigger spy on public.messages was added",
    ),
    (
        "create or replace function app.current_org() returns uuid language sql stable as 'select gen_random_uuid()'",
        "function app.current_org() was changed",
    ),
    ("alter function app.audit_chain() reset search_path", "function app.audit_chain() was changed"),
    ("alter view app.tenants set (security_invoker = false)", "view app.tenants was changed"),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_drift_is_seen_and_put_back_by_the_operators_login() {
    // Its own server: some of these name roles that other tests share.
    let db = Database::create_on(Server::start(ServerOptions::default()).await.unwrap()).await.unwrap();
    db.organization("acme").await.unwrap();
    let mut admin = db.connect(&db.admin_url()).await.unwrap();
    let mut operator = db.connect(&db.operator_url()).await.unwrap();
    assert_eq!(drift(&mut operator).await, Vec::<String>::new());
    assert_eq!(restore(&mut operator).await, Vec::<String>::new(), "there is nothing to put back");
    let mut wrong = Vec::new();
    for (attack, expected) in DRIFT {
        sqlx::raw_sql(AssertSqlSafe((*attack).to_owned()))
            .execute(&mut admin)
            .await
            .unwrap_or_else(|e| panic!("{attack}: {e}"));
        let seen = drift(&mut operator).await;
        if !seen.iter().any(|finding| finding.contains(expected)) {
            wrong.push(format!("{attack}: expected {expected:?}, seen {seen:?}"));
        }
        let done = restore(&mut operator).await;
        let left = drift(&mut operator).await;
        if !left.is_empty() || done.iter().any(|line| !line.ends_with("is as it was")) {
            wrong.push(format!("{attack}: done {done:?}, left {left:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(findings(&mut operator).await.unwrap(), Vec::<String>::new());
    // All at once, too.
    for (attack, _) in DRIFT.iter().filter(|(attack, _)| !attack.contains("drop policy")) {
        sqlx::raw_sql(AssertSqlSafe((*attack).to_owned())).execute(&mut admin).await.unwrap();
    }
    restore(&mut operator).await;
    assert_eq!(drift(&mut operator).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_of_the_migrations_loses_its_rights_and_is_reported() {
    let db = Database::create().await.unwrap();
    let mut admin = db.connect(&db.admin_url()).await.unwrap();
    let mut operator = db.connect(&db.operator_url()).await.unwrap();
    admin
        .execute(
            "set role agentapi_owner; create table loot (org_id uuid); grant select on loot to agentapi_tenant;
             create function app.peek() returns bigint language sql security definer as 'select 1::bigint';
             grant execute on function app.peek() to agentapi_tenant; reset role",
        )
        .await
        .unwrap();
    let done = restore(&mut operator).await.join("\n");
    assert!(
        done.contains("row-level security of public.loot is not of the migrations; look at it and drop it"),
        "{done}"
    );
    assert!(done.contains("function app.peek() is not of the migrations"), "{done}");
    let granted: bool = sqlx::query_scalar("select has_table_privilege('agentapi_tenant', 'loot', 'select')")
        .fetch_one(&mut admin)
        .await
        .unwrap();
    assert!(!granted);
    assert_eq!(drift(&mut operator).await.len(), 2, "it stays visible until somebody drops it");
    // Its organization is fenced by nothing: the check that CI runs says so as well.
    assert!(findings(&mut operator).await.unwrap().iter().any(|f| f == "loot: row-level security is not enabled"));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_but_the_owner_says_what_is_put_back() {
    let world = World::create().await.unwrap();
    let db = &world.db;
    let statements = [
        "insert into fences.snapshot values ('policy', 'x', 'drop table audit_log')",
        "update fences.snapshot set put = 'alter role agentapi_operator superuser'",
        "delete from fences.snapshot",
        "truncate fences.snapshot",
        "alter table fences.snapshot owner to current_user",
        "select fences.take_snapshot()",
        "create or replace function fences.live() returns table (kind text, object text, put text, take text)
         language sql as 'select null::text, null::text, null::text, null::text'",
        "create table fences.other ()",
        "drop function app.restore_fences()",
        "alter function app.restore_fences() reset search_path",
    ];
    let mut logins = vec![
        ("operator", db.connect(&db.operator_url()).await.unwrap(), None),
        ("runtime", db.connect(&db.runtime_url()).await.unwrap(), None),
        ("read-only", db.connect_read_only(&world.acme).await.unwrap(), None),
        ("tenant", db.connect(&db.runtime_url()).await.unwrap(), Some(&world.acme)),
    ];
    for (who, connection, tenant) in &mut logins {
        for statement in statements.into_iter().chain(["select app.restore_fences()"]) {
            if *who == "operator" && statement == "select app.restore_fences()" {
                continue;
            }
            let mut tx = connection.begin().await.unwrap();
            if let Some(tenant) = tenant {
                become_tenant(&mut tx, tenant, None, "admin").await.unwrap();
            }
            let refused = tx.execute(AssertSqlSafe(statement.to_owned())).await.unwrap_err();
            let code = refused.as_database_error().and_then(|e| e.code().map(std::borrow::Cow::into_owned));
            assert_eq!(code.as_deref(), Some("42501"), "{who}: {statement}: {refused}");
            tx.rollback().await.unwrap();
        }
    }
}

/// The function runs as the owner: names that its caller chooses must lead nowhere, and two at once must do no harm.
#[tokio::test(flavor = "multi_thread")]
async fn the_repair_can_be_led_astray_by_nobody() {
    let db = Database::create().await.unwrap();
    let mut admin = db.connect(&db.admin_url()).await.unwrap();
    let mut operator = db.connect(&db.operator_url()).await.unwrap();
    admin.execute("alter table sessions no force row level security").await.unwrap();
    // A temporary table or a schema of the caller's own, had it the right to make one, comes after pg_catalog.
    assert!(operator.execute("create temporary table pg_class (x int)").await.is_err());
    assert!(operator.execute("create schema evil").await.is_err());
    operator.execute("set search_path = pg_temp, evil, public").await.unwrap();
    assert_eq!(restore(&mut operator).await, ["row-level security of public.sessions is as it was"]);
    // A policy whose name would be SQL if it were not quoted.
    admin.execute(r#"create policy "x on sessions; drop table audit_log; --" on sessions using (true)"#).await.unwrap();
    assert_eq!(restore(&mut operator).await.len(), 1);
    assert_eq!(drift(&mut operator).await, Vec::<String>::new());
    let there: bool =
        sqlx::query_scalar("select to_regclass('public.audit_log') is not null").fetch_one(&mut admin).await.unwrap();
    assert!(there);
    // Many at the same time: one works, the others say that it does, and the end is right.
    for _ in 0..5 {
        admin.execute("drop policy sessions_read on sessions").await.unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..6 {
            let url = db.operator_url();
            tasks.spawn(async move {
                let mut operator = PgConnection::connect(&url).await.unwrap();
                restore(&mut operator).await
            });
        }
        for said in tasks.join_all().await.into_iter().flatten() {
            assert!(said.ends_with("is as it was") || said == "a migration or another repair is at work", "{said}");
        }
        assert_eq!(drift(&mut operator).await, Vec::<String>::new());
    }
    // Not beside a migration, and never without a snapshot.
    let mut migrating = db.connect(&db.admin_url()).await.unwrap();
    migrating.execute("select pg_advisory_lock(7018690069353558122)").await.unwrap();
    assert_eq!(restore(&mut operator).await, ["a migration or another repair is at work"]);
    migrating.close().await.unwrap();
    admin.execute("delete from fences.snapshot").await.unwrap();
    let lost = sqlx::query("select * from fences.drift()").fetch_all(&mut operator).await.unwrap_err();
    assert!(lost.to_string().contains("there is no snapshot"), "{lost}");
}

async fn probe(connection: &mut PgConnection, world: &World, role: bool, broken: &str) -> Vec<String> {
    let mut tx = connection.begin_with("begin read write").await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(broken.to_owned())).execute(&mut *tx).await.unwrap();
    if role {
        become_tenant(&mut tx, &world.acme, None, "admin").await.unwrap();
    } else if !broken.is_empty() {
        // A superuser's transaction that took the role on: its session is another's, so roles are not tried.
        tx.execute("set local role org_acme_ro").await.unwrap();
    }
    let found = sqlx::query_scalar("select app.probe_isolation()").fetch_all(&mut *tx).await.unwrap();
    tx.rollback().await.unwrap();
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn the_probes_of_a_tenants_roles_see_each_fence_that_is_down() {
    let world = World::create().await.unwrap();
    let db = &world.db;
    let mut runtime = db.connect(&db.runtime_url()).await.unwrap();
    let mut read_only = db.connect_read_only(&world.acme).await.unwrap();
    let mut admin = db.connect(&db.admin_url()).await.unwrap();
    assert_eq!(probe(&mut runtime, &world, true, "").await, Vec::<String>::new());
    assert_eq!(probe(&mut read_only, &world, false, "").await, Vec::<String>::new());
    for (role, broken, expected) in [
        (true, "alter table sessions disable row level security", "sessions: rows of another organization can be seen"),
        (
            true,
            "alter table sessions disable row level security",
            "sessions: rows of another organization can be changed",
        ),
        (
            true,
            "alter table messages disable row level security",
            "messages: rows of another organization can be deleted",
        ),
        (true, "alter table messages disable row level security", "messages: a row for another organization passes"),
        (
            true,
            "create policy open on users for insert to agentapi_tenant with check (true)",
            "users: a row for another organization passes",
        ),
        (
            false,
            "create policy open on messages for select using (true)",
            "messages: rows of another organization can be seen",
        ),
        (
            false,
            "grant insert on workspaces to agentapi_tenant_ro; alter table workspaces disable row level security",
            "workspaces: a row for another organization passes",
        ),
    ] {
        let found = probe(&mut admin, &world, role, broken).await;
        assert!(found.iter().any(|finding| finding.contains(expected)), "{broken}: {found:?}");
    }
    // A login that may become another tenant says so itself.
    let db = Database::create_on(Server::start(ServerOptions::default()).await.unwrap()).await.unwrap();
    let acme = db.organization("acme").await.unwrap();
    db.organization("globex").await.unwrap();
    let mut admin = db.connect(&db.admin_url()).await.unwrap();
    admin.execute("grant org_globex to org_acme_ro").await.unwrap();
    let mut read_only = db.connect_read_only(&acme).await.unwrap();
    let found: Vec<String> =
        sqlx::query_scalar("select app.probe_isolation()").fetch_all(&mut read_only).await.unwrap();
    assert!(found.iter().any(|finding| finding == "the login can become org_globex"), "{found:?}");
}

/// An operator that restarts runs `migrate` first: what somebody weakened must not become the rule by that.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_does_not_make_a_weak_fence_the_rule() {
    let db = Database::create().await.unwrap();
    let mut admin = db.connect(&db.admin_url()).await.unwrap();
    let mut operator = db.connect(&db.operator_url()).await.unwrap();
    admin.execute("drop policy sessions_read on sessions").await.unwrap();
    agentapi_operator::migrate::run(&db.server().migrate_config(db.name())).await.unwrap();
    assert_eq!(drift(&mut operator).await, ["policy sessions_read on public.sessions is missing"]);
    // Without a snapshot, as after a migration that has failed, the next run that succeeds takes one.
    restore(&mut operator).await;
    admin.execute("delete from fences.snapshot").await.unwrap();
    agentapi_operator::migrate::run(&db.server().migrate_config(db.name())).await.unwrap();
    assert_eq!(drift(&mut operator).await, Vec::<String>::new());
}
