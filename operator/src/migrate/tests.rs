//! What is refused before Postgres is asked. Everything else runs against a real server: tests/tests/rls_migrate.rs.
#![allow(clippy::unwrap_used, clippy::panic)]
use super::*;
use rstest::rstest;

fn refused(url: &str) -> String {
    match login("OPERATOR_DATABASE_URL", &SecretString::from(url.to_owned()), OPERATOR_ROLE) {
        Ok(_) => panic!("{url} was accepted"),
        Err(error) => error.to_string(),
    }
}

#[rstest]
#[case("postgres://someone:hunter2@db/agentapi", "the user must be agentapi_operator")]
#[case("postgres://agentapi_operator:hunter2@db/", "the database must be a name")]
#[case("postgres://agentapi_operator:hunter2@db/a\"b", "the database must be a name")]
#[case("postgres://agentapi_operator@db/agentapi", "must not be empty")]
#[case("postgres://agentapi_operator:hunter2%C3%A4@db/agentapi", "printable ASCII")]
#[case("hunter2", "postgres://user:password@host")]
fn a_bad_url_is_refused_with_what_to_write(#[case] url: &str, #[case] expected: &str) {
    let message = refused(url);
    assert!(message.starts_with("OPERATOR_DATABASE_URL: ") && message.contains(expected), "{message}");
    assert!(!message.contains("hunter2"), "the message shows the password: {message}");
}

#[test]
fn passwords_are_decoded() {
    assert_eq!(percent_decode("a%2Fb%25c").as_deref(), Some("a/b%c"));
    assert_eq!(percent_decode("a%2"), None);
    assert_eq!(percent_decode("a%zz"), None);
}

/// Two people who add a migration at the same time get the same number, and only a real run would notice.
#[test]
fn every_migration_has_its_own_number() {
    let versions: Vec<i64> = MIGRATOR.iter().map(|m| m.version).collect();
    let mut wanted = versions.clone();
    wanted.dedup();
    assert_eq!(versions, wanted, "rename the newer file in migrations/ to the next free number");
}
