//! The audit log on a real Postgres: it chains itself, under concurrency too; it can't be changed; and the verifier
//! that needs no database agrees with the trigger about every byte.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]
use agentapi_runtime::audit::chain::{self, Fault, Head, Row};
use agentapi_tests::pg::{Organization, World, become_tenant};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::{Map, Value};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

/// The export that an auditor gets: one JSON object per row, printed by Postgres.
async fn export(connection: &mut PgConnection, organization: &Organization) -> (Vec<Row>, Head) {
    let lines: Vec<String> = sqlx::query_scalar(
        "select jsonb_build_object('org_id', org_id, 'seq', seq, 'org_slug', org_slug,
             'at', to_char(at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), 'db_role', db_role,
             'actor', actor, 'action', action, 'target_kind', target_kind, 'target_id', target_id,
             'request_id', request_id, 'source_ip', source_ip, 'user_agent', user_agent, 'detail', detail,
             'config_digest', config_digest, 'prev_hash', encode(prev_hash, 'hex'), 'hash', encode(hash, 'hex'))::text
         from audit_log where org_id = $1 order by seq",
    )
    .bind(organization.id)
    .fetch_all(&mut *connection)
    .await
    .unwrap();
    let (seq, hash): (i64, String) =
        sqlx::query_as("select seq, encode(hash, 'hex') from audit_heads where org_id = $1")
            .bind(organization.id)
            .fetch_one(connection)
            .await
            .unwrap();
    (lines.iter().map(|line| serde_json::from_str(line).expect(line)).collect(), Head { seq, hash })
}

fn any_detail() -> impl Strategy<Value = Value> {
    // Everything that the column takes: text without NUL, integers that every JSON reader keeps.
    let text =
        proptest::collection::vec(any::<char>().prop_filter("NUL", |c| *c != '\0'), 0..8).prop_map(String::from_iter);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-9_007_199_254_740_991_i64..=9_007_199_254_740_991).prop_map(Value::from),
        any::<i32>().prop_map(|n| Value::from(f64::from(n))),
        text.clone().prop_map(Value::from),
    ];
    let key = text;
    let value = leaf.prop_recursive(3, 24, 4, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec((key.clone(), inner), 0..4)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    });
    proptest::collection::vec(("[a-zé]{1,4}", value), 0..4).prop_map(|fields| Value::Object(Map::from_iter(fields)))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_verifier_agrees_with_the_trigger() {
    let world = World::create().await.unwrap();
    let mut runtime = world.db.connect(&world.db.runtime_url()).await.unwrap();
    let mut runner = TestRunner::deterministic();
    let text = proptest::option::of("[^\0]{0,12}");
    for _ in 0..200 {
        let detail = any_detail().new_tree(&mut runner).unwrap().current();
        let mut some = || text.new_tree(&mut runner).unwrap().current();
        let mut tx = runtime.begin().await.unwrap();
        become_tenant(&mut tx, &world.acme, Some(world.acme.alice.id), "user").await.unwrap();
        sqlx::query(
            "insert into audit_log (actor, action, target_kind, target_id, request_id, source_ip, user_agent, detail)
             values ('user:alice', 'session.create', 'Session', $1, $2, $3, $4, $5)",
        )
        .bind(some())
        .bind(some())
        .bind(some())
        .bind(some())
        .bind(&detail)
        .execute(&mut *tx)
        .await
        .unwrap_or_else(|e| panic!("{detail}: {e}"));
        tx.commit().await.unwrap();
    }
    let mut ro = world.db.connect_read_only(&world.acme).await.unwrap();
    let (rows, head) = export(&mut ro, &world.acme).await;
    // Two are the operator's: it made the organization and gave its login a password.
    assert_eq!(rows.len(), 2 + 200);
    assert_eq!(
        (rows[1].db_role.as_str(), rows[2].db_role.as_str()),
        ("agentapi_operator", world.acme.id_role.as_str())
    );
    for row in &rows {
        assert_eq!(chain::hash(row), row.hash, "{row:?}");
    }
    assert_eq!(chain::verify(world.acme.id, &rows, Some(&head)), Ok(head));
}

#[tokio::test(flavor = "multi_thread")]
async fn sixteen_writers_make_one_chain_per_organization() {
    let world = World::create().await.unwrap();
    let writers = (0..16).map(|n| {
        let world = world.clone();
        tokio::spawn(async move {
            let mut runtime = world.db.connect(&world.db.runtime_url()).await.unwrap();
            let organization = if n % 2 == 0 { &world.acme } else { &world.globex };
            for i in 0..10 {
                let mut tx = runtime.begin().await.unwrap();
                become_tenant(&mut tx, organization, None, "admin").await.unwrap();
                // Two rows in one statement, and some transactions that are taken back.
                tx.execute(
                    "insert into audit_log (actor, action, target_kind)
                     values ('system:test', 'a', 'Session'), ('system:test', 'b', 'Session')",
                )
                .await
                .unwrap();
                if i % 3 == 0 { tx.rollback().await.unwrap() } else { tx.commit().await.unwrap() }
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    for organization in [&world.acme, &world.globex] {
        let mut ro = world.db.connect_read_only(organization).await.unwrap();
        let (rows, head) = export(&mut ro, organization).await;
        assert_eq!(rows.len(), 2 + 8 * 6 * 2);
        assert!(rows.is_sorted_by_key(|r| r.at), "the order of the chain is not the order of time");
        assert_eq!(chain::verify(organization.id, &rows, Some(&head)), Ok(head));
    }
}

/// A superuser who switches the trigger off can change the table: the export tells.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_administrator_does_behind_the_trigger_is_found() {
    let world = World::create().await.unwrap();
    let mut runtime = world.db.connect(&world.db.runtime_url()).await.unwrap();
    // Rows 1 and 2 are the operator's.
    for action in ["a", "b", "c"] {
        let mut tx = runtime.begin().await.unwrap();
        become_tenant(&mut tx, &world.acme, None, "admin").await.unwrap();
        sqlx::query("insert into audit_log (actor, action, target_kind) values ('user:x', $1, 'Session')")
            .bind(action)
            .execute(&mut *tx)
            .await
            .unwrap();
        tx.commit().await.unwrap();
    }
    let mut admin = world.db.connect(&world.db.admin_url()).await.unwrap();
    let acme = &world.acme;
    for statement in [
        "update audit_log set actor = 'user:y'",
        "delete from audit_log",
        "truncate audit_log",
        "delete from audit_heads",
        "update audit_heads set seq = seq + 5",
        "truncate audit_heads",
    ] {
        let mut tx = admin.begin().await.unwrap();
        let error = tx.execute(AssertSqlSafe(statement.to_owned())).await.unwrap_err();
        assert_eq!(error.as_database_error().unwrap().code().as_deref(), Some("42501"), "{statement}");
        tx.rollback().await.unwrap();
    }
    let id = acme.id;
    for (statement, fault) in [
        ("select 1".to_owned(), None),
        (format!("update audit_log set actor = 'user:y' where org_id = '{id}' and seq = 3"), Some(Fault::Edited { seq: 3 })),
        (format!("update audit_log set detail = '{{\"a\": 1}}' where org_id = '{id}' and seq = 2"), Some(Fault::Edited { seq: 2 })),
        (format!("update audit_log set at = at + interval '1 microsecond' where org_id = '{id}' and seq = 5"), Some(Fault::Edited { seq: 5 })),
        (format!("update audit_log a set actor = 'user:y', hash = app.audit_hash(b)
                  from (select (r).* from (select jsonb_populate_record(x, '{{\"actor\": \"user:y\"}}') r from audit_log x
                        where org_id = '{id}' and seq = 3) y) b where a.org_id = '{id}' and a.seq = 3"), Some(Fault::Link { seq: 4 })),
        (format!("delete from audit_log where org_id = '{id}' and seq = 4"), Some(Fault::Sequence { expected: 4, found: 5 })),
        (format!("delete from audit_log where org_id = '{id}' and seq = 5"), Some(Fault::Head { expected: 5, found: 4 })),
        (format!("update audit_log set seq = 7 - seq where org_id = '{id}' and seq in (3, 4)"), Some(Fault::Edited { seq: 3 })),
    ] {
        let mut tx = admin.begin().await.unwrap();
        tx.execute("alter table audit_log disable trigger user").await.unwrap();
        // Swapping numbers needs a key that is checked at the end.
        tx.execute("alter table audit_log drop constraint audit_log_pkey").await.unwrap();
        tx.execute(AssertSqlSafe(statement.clone())).await.unwrap_or_else(|e| panic!("{statement}: {e}"));
        let (rows, head) = export(&mut tx, acme).await;
        assert_eq!(chain::verify(id, &rows, Some(&head)).err(), fault, "{statement}");
        tx.rollback().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_change_and_its_row_are_one_transaction() {
    let world = World::create().await.unwrap();
    let mut runtime = world.db.connect(&world.db.runtime_url()).await.unwrap();
    let mut tx = runtime.begin().await.unwrap();
    become_tenant(&mut tx, &world.acme, Some(world.acme.alice.id), "user").await.unwrap();
    tx.execute("insert into audit_log (actor, action, target_kind) values ('user:x', 'lost', 'Session')")
        .await
        .unwrap();
    tx.execute("update sessions set phase = 'Nonsense'").await.unwrap_err();
    tx.rollback().await.unwrap();
    let mut admin = world.db.connect(&world.db.admin_url()).await.unwrap();
    let (rows, head) = export(&mut admin, &world.acme).await;
    assert!(rows.iter().all(|r| r.action != "lost"));
    assert_eq!(chain::verify(world.acme.id, &rows, Some(&head)), Ok(head));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_row_needs_a_name_and_too_much_is_refused() {
    let world = World::create().await.unwrap();
    let mut operator = world.db.connect(&world.db.operator_url()).await.unwrap();
    let error = sqlx::query(
        "with o as (insert into organizations (id, slug, display_name, issuer, audience, org_claim_value)
                    values (gen_random_uuid(), 'fresh', 'x', 'https://idp.test', 'a', 'fresh') returning id)
         insert into audit_log (org_id, actor, action, target_kind) select id, 'x', 'y', 'z' from o",
    )
    .execute(&mut operator)
    .await
    .unwrap_err();
    assert!(error.to_string().contains("needs org_slug"), "{error}");
    let mut runtime = world.db.connect(&world.db.runtime_url()).await.unwrap();
    for (column, value) in [
        ("actor", "repeat('x', 513)"),
        ("user_agent", "repeat('x', 1025)"),
        ("detail", "jsonb_build_object('x', repeat('x', 65536))"),
        ("detail", "'[]'"),
        ("detail", r#"'{"a": [{"b": 0.1}]}'"#),
        ("detail", r#"'{"a": 9007199254740992}'"#),
    ] {
        let mut tx = runtime.begin().await.unwrap();
        become_tenant(&mut tx, &world.acme, None, "admin").await.unwrap();
        let columns = if column == "actor" { "actor".to_owned() } else { format!("actor, {column}") };
        let values = if column == "actor" { value.to_owned() } else { format!("'x', {value}") };
        let error = tx
            .execute(AssertSqlSafe(format!(
                "insert into audit_log ({columns}, action, target_kind) values ({values}, 'y', 'z')"
            )))
            .await
            .unwrap_err();
        assert_eq!(error.as_database_error().unwrap().code().as_deref(), Some("23514"), "{column}: {error}");
        tx.rollback().await.unwrap();
    }
}
