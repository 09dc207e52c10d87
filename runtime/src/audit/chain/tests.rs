//! A whole chain passes; one with an edited, removed, inserted or moved row does not.
#![allow(clippy::unwrap_used, clippy::expect_used)]
use super::*;
use proptest::prelude::*;
use proptest::sample::Index;

pub(crate) const ORGANIZATION: Uuid = Uuid::from_u128(10);

/// Links rows as the trigger does.
pub(crate) fn chain(mut rows: Vec<Row>) -> Vec<Row> {
    let mut last = Head::start();
    for row in &mut rows {
        row.seq = last.seq + 1;
        row.prev_hash.clone_from(&last.hash);
        row.hash = hash(row);
        last = Head { seq: row.seq, hash: row.hash.clone() };
    }
    rows
}

fn head(rows: &[Row]) -> Head {
    rows.last().map_or_else(Head::start, |r| Head { seq: r.seq, hash: r.hash.clone() })
}

prop_compose! {
    pub(crate) fn any_row()(
        micros in 0_i64..4_000_000_000_000_000,
        actor in "[a-z:]{1,8}",
        action in "[a-z.]{1,8}",
        target_id in proptest::option::of(".{0,4}"),
        request_id in proptest::option::of("[0-9,:]{0,4}"),
        key in "[a-z]{1,3}",
        number in any::<i32>(),
    ) -> Row {
        Row {
            org_id: ORGANIZATION, seq: 0, org_slug: "acme".into(), at: Timestamp::from_microsecond(micros).unwrap(),
            db_role: "org_acme".into(), actor, action, target_kind: "Session".into(), target_id, request_id,
            source_ip: None, user_agent: None, detail: serde_json::json!({ key: number }), config_digest: None,
            prev_hash: String::new(), hash: String::new(),
        }
    }
}

pub(crate) fn any_chain() -> impl Strategy<Value = Vec<Row>> {
    proptest::collection::vec(any_row(), 1..12).prop_map(chain)
}

/// One field of a row, changed to something else.
pub(crate) fn edit(row: &mut Row, which: usize) {
    let other = |text: &mut String| text.push('x');
    let other_optional = |text: &mut Option<String>| *text = text.take().map_or(Some(String::new()), |t| Some(t + "x"));
    match which {
        0 => row.org_id = Uuid::from_u128(11),
        1 => row.seq += 1,
        2 => other(&mut row.org_slug),
        3 => row.at = Timestamp::from_microsecond(row.at.as_microsecond() + 1).unwrap(),
        4 => row.at = Timestamp::from_nanosecond(row.at.as_nanosecond() + 1).unwrap(),
        5 => other(&mut row.db_role),
        6 => other(&mut row.actor),
        7 => other(&mut row.action),
        8 => other(&mut row.target_kind),
        9 => other_optional(&mut row.target_id),
        10 => other_optional(&mut row.request_id),
        11 => other_optional(&mut row.source_ip),
        12 => other_optional(&mut row.user_agent),
        13 => row.detail = serde_json::json!({ "edited": true }),
        14 => other_optional(&mut row.config_digest),
        15 => row.prev_hash = "f".repeat(64),
        _ => row.hash = "f".repeat(64),
    }
}

proptest! {
    #[test]
    fn a_whole_chain_is_accepted(rows in any_chain()) {
        prop_assert_eq!(verify(ORGANIZATION, &rows, Some(&head(&rows))), Ok(head(&rows)));
    }

    #[test]
    fn an_edited_field_is_found(mut rows in any_chain(), at in any::<Index>(), which in 0_usize..17) {
        let head = head(&rows);
        let at = at.index(rows.len());
        edit(&mut rows[at], which);
        prop_assert!(verify(ORGANIZATION, &rows, Some(&head)).is_err());
    }

    /// Whoever can compute the hash of the edited row breaks the link to the next one, or the head.
    #[test]
    fn an_edited_row_with_a_fitting_hash_is_found(
        mut rows in any_chain(), at in any::<Index>(), which in 2_usize..15,
    ) {
        let head = head(&rows);
        let at = at.index(rows.len());
        edit(&mut rows[at], which);
        rows[at].hash = hash(&rows[at]);
        prop_assert!(verify(ORGANIZATION, &rows, Some(&head)).is_err());
    }

    #[test]
    fn a_removed_row_is_found(mut rows in any_chain(), at in any::<Index>()) {
        let head = head(&rows);
        rows.remove(at.index(rows.len()));
        prop_assert!(verify(ORGANIZATION, &rows, Some(&head)).is_err());
    }

    #[test]
    fn an_inserted_row_is_found(mut rows in any_chain(), at in any::<Index>(), extra in any_row()) {
        let head = head(&rows);
        let at = at.index(rows.len() + 1);
        let mut extra = extra;
        extra.seq = i64::try_from(at).unwrap() + 1;
        extra.prev_hash = at.checked_sub(1).map_or_else(|| Head::start().hash, |i| rows[i].hash.clone());
        extra.hash = hash(&extra);
        rows.insert(at, extra);
        prop_assert!(verify(ORGANIZATION, &rows, Some(&head)).is_err());
    }

    #[test]
    fn reordered_rows_are_found(mut rows in any_chain(), a in any::<Index>(), b in any::<Index>()) {
        let (a, b) = (a.index(rows.len()), b.index(rows.len()));
        prop_assume!(a != b);
        let head = head(&rows);
        rows.swap(a, b);
        prop_assert!(verify(ORGANIZATION, &rows, Some(&head)).is_err());
    }

    #[test]
    fn json_lines_keep_a_chain_whole(rows in any_chain()) {
        let lines: Vec<String> = rows.iter().map(|r| serde_json::to_string(r).unwrap()).collect();
        let read: Vec<Row> = lines.iter().map(|l| serde_json::from_str(l).unwrap()).collect();
        prop_assert_eq!(verify(ORGANIZATION, &read, Some(&head(&rows))), Ok(head(&rows)));
    }
}

/// A row of acme from this second.
pub(crate) fn row(n: i64) -> Row {
    Row {
        org_id: ORGANIZATION,
        seq: 0,
        org_slug: "acme".into(),
        at: Timestamp::from_second(n).expect("a time"),
        db_role: "org_acme".into(),
        actor: "user:1".into(),
        action: "session.create".into(),
        target_kind: "Session".into(),
        target_id: None,
        request_id: None,
        source_ip: None,
        user_agent: None,
        detail: serde_json::json!({}),
        config_digest: None,
        prev_hash: String::new(),
        hash: String::new(),
    }
}

#[test]
fn faults_say_what_happened() {
    let rows = chain((1..=4).map(row).collect());
    let mut gap = rows.clone();
    gap.remove(1);
    assert_eq!(verify(ORGANIZATION, &gap, None), Err(Fault::Sequence { expected: 2, found: 3 }));
    assert_eq!(verify(ORGANIZATION, &rows[..3], Some(&head(&rows))), Err(Fault::Head { expected: 4, found: 3 }));
    assert_eq!(verify(ORGANIZATION, &[], Some(&head(&rows))), Err(Fault::Head { expected: 4, found: 0 }));
    let mut edited = rows.clone();
    edited[2].actor = "user:2".into();
    assert_eq!(verify(ORGANIZATION, &edited, None), Err(Fault::Edited { seq: 3 }));
    edited[2].hash = hash(&edited[2]);
    assert_eq!(verify(ORGANIZATION, &edited, None), Err(Fault::Link { seq: 4 }));
    assert_eq!(verify(Uuid::nil(), &rows, None), Err(Fault::Foreign { seq: 1 }));
    let mut resumed = Verifier::after(ORGANIZATION, head(&rows[..2]));
    resumed.push(&rows[2]).unwrap();
}

#[test]
fn jsonb_text_is_that_of_postgres() {
    let value = serde_json::json!({"bb": [1, "a\"\u{1}\n"], "a": {"z": null, "é": true}, "ab": 1.0, "c": -7});
    assert_eq!(
        jsonb_text(&value),
        "{\"a\": {\"z\": null, \"é\": true}, \"c\": -7, \"ab\": 1.0, \"bb\": [1, \"a\\\"\\u0001\\n\"]}"
    );
}
