//! The catalogue of a migrated database has no weak spot, and the checker sees each kind of weak spot there is.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]
use agentapi_tests::pg::{Database, Server, ServerOptions, catalogue::findings};
use sqlx::{Connection, Executor};

#[tokio::test(flavor = "multi_thread")]
async fn a_migrated_database_has_no_weak_spot() {
    let db = Database::create().await.unwrap();
    db.organization("acme").await.unwrap();
    let mut admin = db.connect(&db.admin_url()).await.unwrap();
    assert_eq!(findings(&mut admin).await.unwrap(), Vec::<String>::new());
    // Nothing but a login is needed to check it.
    let mut operator = db.connect(&db.operator_url()).await.unwrap();
    assert_eq!(findings(&mut operator).await.unwrap(), Vec::<String>::new());
}

/// What a careless migration or administrator does, and what the checker says to it.
const MISTAKES: &[(&str, &str)] = &[
    ("create table notes (org_id uuid not null, body text)", "notes: row-level security is not enabled"),
    ("create table notes (org_id uuid not null, body text)", "notes: no policy for SELECT"),
    ("create table notes (org_id uuid not null, body text)", "notes: no index starts with org_id"),
    ("create table notes (id uuid primary key)", "notes: no column org_id"),
    (
        "create table notes (org_id uuid primary key); alter table notes enable row level security",
        "notes: row-level security is not forced",
    ),
    ("create table notes (org_id uuid)", "notes: org_id may be null"),
    ("alter table sessions no force row level security", "sessions: row-level security is not forced"),
    ("alter table messages disable row level security", "messages: row-level security is not enabled"),
    ("drop policy users_change on users", "users: no policy for UPDATE"),
    ("drop policy audit_log_no_delete on audit_log", "audit_log: no policy for DELETE"),
    ("create policy open on sessions for select using (true)", "sessions: policy open is for PUBLIC"),
    (
        "create policy open on sessions for select to agentapi_tenant using (true)",
        "sessions: policy open does not ask for the organization of the role",
    ),
    (
        "create policy open on audit_log for insert to agentapi_tenant with check (true)",
        "audit_log: policy open does not ask for the organization of the role",
    ),
    (
        "create policy loop on users for select to agentapi_tenant
          using (org_id = (select u.org_id from users u where u.id = app.user_id()) and org_id = app.current_org())",
        "users: policy loop reads its own table",
    ),
    (
        "create table notes (org_id uuid not null, session uuid, workspace uuid references organizations,
          foreign key (workspace, session) references sessions (org_id, id))",
        "notes: foreign key notes_workspace_session_fkey can point into another organization",
    ),
    ("create view everything as select * from sessions", "view everything runs with its owner's rights"),
    ("alter view app.tenants set (security_invoker = false)", "view app.tenants runs with its owner's rights"),
    ("create materialized view everything as select 1", "materialized view or foreign table everything"),
    (
        "create function app.peek() returns bigint language sql security definer as 'select count(*) from sessions'",
        "function app.peek() is SECURITY DEFINER",
    ),
    (
        "alter function app.audit_chain() reset search_path",
        "app.audit_chain() is SECURITY DEFINER without a fixed search_path",
    ),
    (
        "grant execute on function app.lock_organization() to public",
        "function app.lock_organization(): EXECUTE is granted to PUBLIC",
    ),
    ("grant select on sessions to public", "table sessions: SELECT is granted to PUBLIC"),
    ("grant select (content) on messages to public", "column messages.content: SELECT is granted to PUBLIC"),
    ("grant create on schema public to public", "schema public: CREATE is granted to PUBLIC"),
    ("grant create on schema app to agentapi_tenant_ro", "schema app: CREATE is granted to agentapi_tenant_ro"),
    ("grant truncate on audit_log to agentapi_tenant", "table audit_log: TRUNCATE is granted to agentapi_tenant"),
    (
        "grant select on sessions to agentapi_tenant with grant option",
        "table sessions is granted with the right to pass it on",
    ),
    (
        "alter table audit_log disable trigger audit_log_append_only",
        "audit_log: trigger audit_log_append_only is switched off",
    ),
    ("drop trigger audit_log_2_chain on audit_log", "audit_log: trigger audit_log_2_chain is missing"),
    ("drop trigger audit_log_3_head on audit_log", "audit_log: trigger audit_log_3_head is missing"),
];

/// The same with roles, which belong to the whole server.
const MISTAKES_WITH_ROLES: &[(&str, &str)] = &[
    ("alter role agentapi_runtime bypassrls", "role agentapi_runtime has BYPASSRLS"),
    ("alter role org_acme superuser", "role org_acme has SUPERUSER"),
    ("create role backup login replication", "role backup has REPLICATION"),
    ("alter role agentapi_runtime createrole", "role agentapi_runtime has CREATEROLE"),
    ("alter role agentapi_runtime inherit", "role agentapi_runtime inherits"),
    ("alter role org_acme login", "role org_acme can log in"),
    ("grant agentapi_owner to agentapi_operator", "role agentapi_operator is a member of agentapi_owner"),
    ("grant org_acme to org_acme_ro", "role org_acme_ro is a member of org_acme"),
    ("grant org_acme_ro to agentapi_runtime", "role agentapi_runtime is a member of org_acme_ro"),
    ("grant org_acme to \"{id}\"", "role {id} is a member of org_acme"),
    ("alter role \"{id}\" createrole", "role {id} has CREATEROLE"),
    ("alter role \"{id}\" login", "role {id} can log in"),
    ("alter table sessions owner to org_acme", "sessions is owned by org_acme"),
    ("grant temporary on database {db} to public", "TEMPORARY is granted to PUBLIC"),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_mistake_is_seen() {
    // Its own server: half of these change roles.
    let db = Database::create_on(Server::start(ServerOptions::default()).await.unwrap()).await.unwrap();
    let acme = db.organization("acme").await.unwrap();
    let mut admin = db.connect(&db.admin_url()).await.unwrap();
    let mut unseen = Vec::new();
    for (as_owner, mistakes) in [(true, MISTAKES), (false, MISTAKES_WITH_ROLES)] {
        for (mistake, expected) in mistakes {
            let mut tx = admin.begin().await.unwrap();
            if as_owner {
                tx.execute("set local role agentapi_owner").await.unwrap();
            }
            let filled = |text: &str| text.replace("{db}", db.name()).replace("{id}", &acme.id_role);
            let (statement, expected) = (sqlx::AssertSqlSafe(filled(mistake)), filled(expected));
            sqlx::raw_sql(statement).execute(&mut *tx).await.unwrap_or_else(|e| panic!("{mistake}: {e}"));
            let found = findings(&mut tx).await.unwrap();
            if !found.iter().any(|f| f.contains(&expected)) {
                unseen.push(format!("{mistake}\n    expected {expected:?}, found {found:?}"));
            }
            tx.rollback().await.unwrap();
        }
    }
    assert!(unseen.is_empty(), "{}", unseen.join("\n"));
    assert_eq!(findings(&mut admin).await.unwrap(), Vec::<String>::new());
}
