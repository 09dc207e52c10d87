//! The policies are cheap because every hot query starts from an index on org_id.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]
use agentapi_tests::pg::load::{HOT_QUERIES, HotQuery, Scale, fill};
use agentapi_tests::pg::{Database, Organization, become_tenant};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use uuid::Uuid;

async fn plan(
    connection: &mut PgConnection,
    acme: &Organization,
    query: &HotQuery,
    session: Uuid,
    before: &str,
) -> Vec<String> {
    let mut tx = connection.begin().await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(before.to_owned())).execute(&mut *tx).await.unwrap();
    let user = if query.role == "admin" { acme.admin.id } else { acme.alice.id };
    become_tenant(&mut tx, acme, Some(user), query.role).await.unwrap();
    let text = query.with_rls(session);
    let lines: Vec<String> =
        sqlx::query_scalar(AssertSqlSafe(format!("explain (costs off) {text}"))).fetch_all(&mut *tx).await.unwrap();
    tx.rollback().await.unwrap();
    lines
}

/// The lines of a plan that read the table through an index whose condition names org_id.
fn starts_from_the_organization(plan: &[String], table: &str) -> bool {
    let scans = |kind: &str| plan.iter().position(|l| l.contains(kind) && l.contains(&format!(" on {table}")));
    let Some(at) = ["Index Scan", "Index Only Scan", "Bitmap Heap Scan"].iter().find_map(|kind| scans(kind)) else {
        return false;
    };
    scans("Seq Scan").is_none() && plan[at..].iter().any(|l| l.contains("Index Cond:") && l.contains("org_id ="))
}

#[tokio::test(flavor = "multi_thread")]
async fn hot_queries_start_from_the_index_on_the_organization() {
    let db = Database::create().await.unwrap();
    let acme = db.organization("acme").await.unwrap();
    let scale = Scale { organizations: 40, sessions: 100, messages: 10, audit: 300 };
    let session = fill(&db, scale, acme.id, acme.alice.id, acme.workspace).await.unwrap();
    let mut runtime = db.connect(&db.runtime_url()).await.unwrap();
    for query in HOT_QUERIES {
        let plan = plan(&mut runtime, &acme, query, session, "").await;
        assert!(starts_from_the_organization(&plan, query.table), "{}:\n{}", query.name, plan.join("\n"));
    }
    // Without the indexes this test fails.
    let mut admin = db.connect(&db.admin_url()).await.unwrap();
    let drop = "alter table sessions drop constraint sessions_pkey, drop constraint sessions_owner cascade,
                drop constraint sessions_idempotency; drop index sessions_by_user; drop index sessions_live;";
    let plan = plan(&mut admin, &acme, &HOT_QUERIES[0], session, drop).await;
    assert!(!starts_from_the_organization(&plan, "sessions"), "{}", plan.join("\n"));

    // The organization of a token, before there is a tenant. A page of organizations is read as fast without an index.
    let mut tx = runtime.begin().await.unwrap();
    tx.execute("set local enable_seqscan = off").await.unwrap();
    let plan: Vec<String> =
        sqlx::query_scalar("explain select * from app.resolve_identity('https://idp.test', 'acme')")
            .fetch_all(&mut *tx)
            .await
            .unwrap();
    assert!(plan.iter().any(|l| l.contains("organizations_live_identity")), "{}", plan.join("\n"));
}
