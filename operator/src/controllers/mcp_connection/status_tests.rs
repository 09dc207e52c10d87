#![allow(clippy::unwrap_used)]
use super::*;
use crate::controllers::mcp_connection::validate::tests::{files, github};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use rstest::rstest;
use serde_json::json;

fn tool(name: &str, digest: &str) -> Tool {
    Tool { name: name.into(), digest: digest.into() }
}

fn observed() -> Observation {
    Observation {
        observed_at: Timestamp::from_second(1000).unwrap(),
        age: Duration::from_secs(5),
        generation: 1,
        state: "Ready".into(),
        message: None,
        tools: vec![tool("search", "aa"), tool("merge", "bb")],
        pinned: None,
        quarantined: false,
        breaker: "closed".into(),
        authorization: None,
        protocol: Some("2025-06-18".into()),
    }
}

fn seen(observation: Observation) -> State {
    let stale_after = Duration::from_secs(300);
    State::InPlace(Box::new(Seen { observation: Some(observation), stale_after, ..Seen::default() }))
}

fn with_oauth() -> McpConnection {
    let mut connection = github();
    connection.spec.auth =
        serde_json::from_value(json!({"oauth": {"provider": "Github", "dynamicRegistration": true}})).unwrap();
    connection.spec.tools.pin = true;
    connection
}

fn lines(connection: &McpConnection, state: &State) -> Vec<String> {
    let shown = status(connection, state, Timestamp::UNIX_EPOCH);
    let line = |it: &Condition| format!("{}={} {}: {}", it.type_, it.status, it.reason, it.message);
    shown.conditions.iter().map(line).collect()
}

#[test]
fn a_refused_connection_has_no_id_and_says_why_twice() {
    let refused = State::Refused(Refusal::new(reason::ORGANIZATION_NOT_FOUND, "there is no Organization"));
    let shown = status(&github(), &refused, Timestamp::UNIX_EPOCH);
    assert_eq!(shown.connection_id, None);
    assert!(shown.conditions.iter().all(|it| it.status == "False" && it.reason == reason::ORGANIZATION_NOT_FOUND));
    assert!(status(&github(), &seen(observed()), Timestamp::UNIX_EPOCH).connection_id.is_some());
}

#[test]
fn every_state_says_what_it_is_and_what_to_do() {
    let consent = |word: &str, state: &str| {
        seen(Observation { authorization: Some(word.into()), state: state.into(), ..observed() })
    };
    let pinned = Some(vec![tool("search", "aa"), tool("merge", "old"), tool("close", "cc")]);
    let mut stdio = files();
    stdio.spec.transport.stdio.as_mut().unwrap().egress.clear();
    let said = [
        ("not looked at", lines(&with_oauth(), &State::InPlace(Box::default()))),
        (
            "fine",
            lines(
                &with_oauth(),
                &seen(Observation {
                    pinned: Some(observed().tools),
                    authorization: Some("Authorized".into()),
                    ..observed()
                }),
            ),
        ),
        ("nobody consented", lines(&with_oauth(), &consent("NeedsConsent", "NeedsConsent"))),
        ("consent ends", lines(&with_oauth(), &consent("Expiring", "Ready"))),
        ("consent taken back", lines(&with_oauth(), &consent("Revoked", "ConsentRevoked"))),
        ("tools changed", lines(&with_oauth(), &seen(Observation { quarantined: true, pinned, ..observed() }))),
        (
            "breaker",
            lines(&github(), &seen(Observation { breaker: "open".into(), state: "Unreachable".into(), ..observed() })),
        ),
        ("overdue", lines(&github(), &seen(Observation { age: Duration::from_secs(900), ..observed() }))),
        (
            "program",
            lines(
                &stdio,
                &State::InPlace(Box::new(Seen {
                    server: Some("the program's pod is starting".into()),
                    egress: Some(vec![]),
                    ..Seen::default()
                })),
            ),
        ),
    ];
    insta::assert_yaml_snapshot!(said);
}

#[rstest]
#[case("Unreachable", reason::UNREACHABLE)]
#[case("ProtocolError", reason::PROTOCOL_ERROR)]
#[case("AddressRefused", reason::ADDRESS_REFUSED)]
#[case("NoCredentials", reason::NEEDS_CREDENTIALS)]
#[case("Unauthorized", reason::NEEDS_CREDENTIALS)]
#[case("NeedsConsent", reason::NEEDS_CONSENT)]
#[case("ConsentRevoked", reason::REVOKED)]
#[case("BreakerOpen", reason::BREAKER_OPEN)]
#[case("Unusable", reason::INVALID)]
#[case("TimedOut", reason::UNREACHABLE)]
#[case("a word of a newer runtime", reason::UNREACHABLE)]
fn what_is_wrong_is_the_reason(#[case] state: &str, #[case] expected: &str) {
    let shown = status(&github(), &seen(Observation { state: state.into(), ..observed() }), Timestamp::UNIX_EPOCH);
    let ready = shown.conditions.iter().find(|it| it.type_ == READY).unwrap();
    assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", expected));
    assert!(ready.message.len() > 20, "{}", ready.message);
}

#[test]
fn an_observation_of_an_older_spec_says_nothing() {
    let mut changed = github();
    changed.metadata.generation = Some(2);
    let shown = lines(&changed, &seen(observed()));
    assert!(shown[1].starts_with("Ready=Unknown Progressing"), "{shown:?}");
}

#[test]
fn a_look_that_found_nothing_new_is_not_written() {
    let mut connection = github();
    let first = status(&connection, &seen(observed()), Timestamp::UNIX_EPOCH);
    assert_eq!(first.last_probe, Some(Time(Timestamp::from_second(1000).unwrap())));
    connection.status = Some(first.clone());
    let later = Observation { observed_at: Timestamp::from_second(2000).unwrap(), ..observed() };
    let now = Timestamp::from_second(2001).unwrap();
    assert_eq!(status(&connection, &seen(later.clone()), now), first);
    let news = status(&connection, &seen(Observation { tools: vec![tool("search", "ab")], ..later }), now);
    assert_eq!(news.last_probe, Some(Time(Timestamp::from_second(2000).unwrap())));
}

#[test]
fn what_no_longer_holds_is_not_left_standing() {
    let mut connection = with_oauth();
    connection.status = Some(status(&connection, &seen(observed()), Timestamp::UNIX_EPOCH));
    let refused = State::Refused(Refusal::new(reason::NAMESPACE_NOT_ALLOWED, "no"));
    let shown = status(&connection, &refused, Timestamp::UNIX_EPOCH);
    assert_eq!(shown.conditions.len(), 2, "{:?}", shown.conditions);
    assert!(shown.tools.is_empty() && shown.protocol_version.is_none() && shown.last_probe.is_none());
}

#[test]
fn tools_that_only_users_may_see_are_not_counted_as_none() {
    let authorization = Some("Authorized".to_owned());
    let state = seen(Observation { tools: Vec::new(), authorization, ..observed() });
    let shown = status(&with_oauth(), &state, Timestamp::UNIX_EPOCH);
    assert_eq!(shown.tool_count, None);
    assert!(lines(&with_oauth(), &state)[1].contains("Ready=True"), "{:?}", lines(&with_oauth(), &state));
    assert_eq!(status(&github(), &state, Timestamp::UNIX_EPOCH).tool_count, Some(0));
}

#[test]
fn whether_a_fixed_token_is_good_is_not_guessed() {
    let mut connection = github();
    connection.spec.auth = serde_json::from_value(json!({"bearer": {"secretRef": {"name": "a", "key": "b"}}})).unwrap();
    let said = |state: &str| lines(&connection, &seen(Observation { state: state.into(), ..observed() }))[2].clone();
    assert!(said("Ready").starts_with("Authorized=True Authorized"), "{}", said("Ready"));
    assert!(said("Unauthorized").starts_with("Authorized=False NeedsCredentials"), "{}", said("Unauthorized"));
    assert!(said("Unreachable").starts_with("Authorized=Unknown Unreachable"), "{}", said("Unreachable"));
}
