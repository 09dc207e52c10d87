//! expectations/rls.yaml, line by line, with the real logins on a real Postgres.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]
use agentapi_tests::pg::{Organization, World, become_tenant};
use serde::Deserialize;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use std::collections::BTreeMap;
use uuid::Uuid;

type Expectations = BTreeMap<String, BTreeMap<String, BTreeMap<String, String>>>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    update: String,
    insert: String,
    /// Row -> `where` and values of the insert.
    rows: BTreeMap<String, BTreeMap<String, String>>,
}

const SUBJECTS: [&str; 6] = ["admin", "user", "nobody", "read-only", "operator", "runtime"];
const COMMANDS: [&str; 4] = ["select", "insert", "update", "delete"];

fn expectations() -> (Expectations, BTreeMap<String, Table>) {
    let expected = serde_yaml::from_str(include_str!("../expectations/rls.yaml")).unwrap();
    (expected, serde_yaml::from_str(include_str!("../expectations/rls_rows.yaml")).unwrap())
}

/// What a statement met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Reached,
    NotThere,
    Refused,
    NoGrant,
}

struct Subjects {
    runtime: PgConnection,
    operator: PgConnection,
    read_only: PgConnection,
}

impl Subjects {
    async fn log_in(world: &World) -> Subjects {
        let db = &world.db;
        Subjects {
            runtime: db.connect(&db.runtime_url()).await.unwrap(),
            operator: db.connect(&db.operator_url()).await.unwrap(),
            read_only: db.connect_read_only(&world.acme).await.unwrap(),
        }
    }

    /// Runs a statement as somebody and takes it back: as the role with the organization's id, and as the one with its name.
    async fn try_as(&mut self, world: &World, subject: &str, statement: &str) -> Outcome {
        let outcome = self.try_once(world, &world.acme, subject, statement).await;
        if matches!(subject, "admin" | "user") {
            let mut by_name = world.acme.clone();
            by_name.id_role.clone_from(&by_name.role);
            let same = self.try_once(world, &by_name, subject, statement).await;
            assert_eq!(outcome, same, "{subject} by id and by name: {statement}");
        }
        outcome
    }

    async fn try_once(&mut self, world: &World, acme: &Organization, subject: &str, statement: &str) -> Outcome {
        let connection = match subject {
            "operator" => &mut self.operator,
            "read-only" => &mut self.read_only,
            _ => &mut self.runtime,
        };
        let mut tx = connection.begin().await.unwrap();
        match subject {
            "admin" => become_tenant(&mut tx, acme, Some(acme.admin.id), "admin").await.unwrap(),
            "user" => become_tenant(&mut tx, acme, Some(acme.alice.id), "user").await.unwrap(),
            "nobody" => {
                let mut nobody = acme.clone();
                nobody.id_role.clone_from(&world.nobody);
                become_tenant(&mut tx, &nobody, Some(acme.admin.id), "admin").await.unwrap();
            }
            _ => {}
        }
        let result = tx.execute(AssertSqlSafe(statement.to_owned())).await;
        tx.rollback().await.unwrap();
        match result {
            Ok(done) if done.rows_affected() > 0 => Outcome::Reached,
            Ok(_) => Outcome::NotThere,
            Err(error) => {
                let error = error.as_database_error().expect("an answer of the database");
                assert_eq!(error.code().as_deref(), Some("42501"), "{subject}: {statement}: {error}");
                if error.message().starts_with("permission denied for table") {
                    Outcome::NoGrant
                } else {
                    Outcome::Refused
                }
            }
        }
    }
}

fn statement(world: &World, table: &str, rows: &Table, row: &str, command: &str, n: u32) -> String {
    let row = &rows.rows[row];
    let condition = &row["where"];
    let text = match command {
        "select" => format!("select 1 from {table} where {condition}"),
        "update" => format!("update {table} set {} where {condition}", rows.update),
        "delete" => format!("delete from {table} where {condition}"),
        _ => rows.insert.clone(),
    };
    let mut extra = row.clone();
    extra.insert("new".to_owned(), Uuid::new_v4().to_string());
    extra.insert("n".to_owned(), n.to_string());
    world.fill(&text, &extra)
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_reaches_what_the_table_says_and_nothing_else() {
    let world = World::create().await.unwrap();
    let mut subjects = Subjects::log_in(&world).await;
    let (expected, tables) = expectations();
    let mut wrong = Vec::new();
    let mut tried = 0_u32;
    for (table, by_subject) in &expected {
        let rows = tables.get(table).unwrap_or_else(|| panic!("rls_rows.yaml has no {table}"));
        assert!(by_subject.keys().eq(SUBJECTS.iter().copied().collect::<std::collections::BTreeSet<_>>()), "{table}");
        for subject in SUBJECTS {
            for command in COMMANDS {
                let answer = by_subject[subject].get(command).unwrap_or_else(|| panic!("{table} {subject} {command}"));
                let reached: Vec<&str> = match answer.as_str() {
                    "nothing" | "no grant" => Vec::new(),
                    rows => rows.split_whitespace().collect(),
                };
                assert!(reached.iter().all(|r| rows.rows.contains_key(*r)), "{table} has no such row: {answer}");
                for row in rows.rows.keys() {
                    let want = match (answer.as_str(), command) {
                        ("no grant", _) => Outcome::NoGrant,
                        _ if reached.contains(&row.as_str()) => Outcome::Reached,
                        (_, "insert") => Outcome::Refused,
                        _ => Outcome::NotThere,
                    };
                    tried += 1;
                    let statement = statement(&world, table, rows, row, command, tried + 1000);
                    let got = subjects.try_as(&world, subject, &statement).await;
                    if got != want {
                        wrong.push(format!(
                            "{table}: {subject} {command} {row}: {got:?}, expected {want:?}\n    {statement}"
                        ));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {tried}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(tried > 600, "only {tried} statements were tried");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_table_has_expectations() {
    let world = World::create().await.unwrap();
    let mut admin = world.db.connect(&world.db.admin_url()).await.unwrap();
    let tables: Vec<String> = sqlx::query_scalar(
        "select relname::text from pg_class where relkind in ('r', 'p') and relname <> '_sqlx_migrations'
         and relnamespace in (select oid from pg_namespace where nspname in ('public', 'app'))",
    )
    .fetch_all(&mut admin)
    .await
    .unwrap();
    let (expected, rows) = expectations();
    for table in &tables {
        assert!(expected.contains_key(table), "write down in tests/expectations/rls.yaml who may do what with {table}");
    }
    assert_eq!(expected.len(), tables.len());
    assert_eq!(rows.len(), tables.len());
}

/// A row that is one's own must not become somebody else's.
#[tokio::test(flavor = "multi_thread")]
async fn no_update_moves_a_row_to_another_organization_or_user() {
    let world = World::create().await.unwrap();
    let mut subjects = Subjects::log_in(&world).await;
    let none = BTreeMap::new();
    for table in ["users", "sessions", "messages", "mcp_connections", "mcp_oauth_tokens"] {
        let to_globex =
            world.fill(&format!("update {table} set org_id = '{{globex}}' where org_id = '{{acme}}'"), &none);
        assert_eq!(subjects.try_as(&world, "admin", &to_globex).await, Outcome::Refused, "{to_globex}");
    }
    for table in ["sessions", "messages", "mcp_oauth_tokens"] {
        let to_bob = world.fill(&format!("update {table} set user_id = '{{bob}}' where user_id = '{{alice}}'"), &none);
        assert_eq!(subjects.try_as(&world, "user", &to_bob).await, Outcome::Refused, "{to_bob}");
    }
    // The one column of organizations that tenants hold UPDATE on locks a row and can't rename it.
    assert_eq!(subjects.try_as(&world, "user", "select app.lock_organization()").await, Outcome::Reached);
    let rename = "update organizations set slug = 'globex'";
    assert_eq!(subjects.try_as(&world, "admin", rename).await, Outcome::NoGrant);
    let foreign = world.fill("update organizations set admission_lock = true where id = '{globex}'", &none);
    assert_eq!(subjects.try_as(&world, "admin", &foreign).await, Outcome::NotThere);
}
