//! A whole export passes; whatever is done to one is found, on the line where it is.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::*;
use crate::audit::chain::tests::{ORGANIZATION, any_chain, any_row, chain, edit, row};
use crate::audit::chain::{Head, hash};
use proptest::prelude::*;
use proptest::sample::Index;

fn export(rows: &[Row]) -> String {
    rows.iter().map(|row| serde_json::to_string(row).unwrap() + "\n").collect()
}

fn link(row: &Row) -> Head {
    Head { seq: row.seq, hash: row.hash.clone() }
}

fn checkpoint(row: &Row) -> Checkpoint {
    Checkpoint { organization: ORGANIZATION, seq: row.seq, hash: row.hash.clone(), at: row.at }
}

/// All that an auditor may know of this chain.
fn known(rows: &[Row]) -> Known {
    let checkpoints = rows.iter().step_by(2).chain(rows.last()).map(checkpoint).collect();
    Known { after: None, head: rows.last().map(link), checkpoints }
}

/// Links rows anew from the one at `at` on, as somebody does who can write to the database and knows the hash.
fn forge(rows: &mut [Row], at: usize) {
    for i in at..rows.len() {
        rows[i].prev_hash = if i == 0 { Head::start().hash } else { rows[i - 1].hash.clone() };
        rows[i].hash = hash(&rows[i]);
    }
}

fn fault(rows: &[Row], known: &Known) -> bool {
    verify(export(rows).as_bytes(), known).is_err_and(|refused| refused.is_fault())
}

proptest! {
    #[test]
    fn a_whole_export_is_verified(rows in any_chain()) {
        let report = verify(export(&rows).as_bytes(), &known(&rows)).unwrap();
        prop_assert_eq!(report.rows, rows.len() as u64);
        prop_assert_eq!(report.head, link(rows.last().unwrap()));
        prop_assert_eq!(report.first, (1, rows[0].at));
        prop_assert_eq!(report.checkpoints, known(&rows).checkpoints.len());
        // Without anything from elsewhere, too; and with what was known when the log was shorter.
        prop_assert!(verify(export(&rows).as_bytes(), &Known::default()).is_ok());
        prop_assert!(verify(export(&rows).as_bytes(), &known(&rows[..1])).is_ok());
    }

    #[test]
    fn an_edited_field_is_found(mut rows in any_chain(), at in any::<Index>(), which in 0_usize..17) {
        let known = known(&rows);
        let at = at.index(rows.len());
        edit(&mut rows[at], which);
        prop_assert!(fault(&rows, &known));
    }

    #[test]
    fn removed_duplicated_and_swapped_rows_are_found(rows in any_chain(), a in any::<Index>(), b in any::<Index>()) {
        let known = known(&rows);
        let (a, b) = (a.index(rows.len()), b.index(rows.len()));
        let mut without = rows.clone();
        without.remove(a);
        prop_assert!(fault(&without, &known));
        let mut twice = rows.clone();
        twice.insert(b, rows[a].clone());
        prop_assert!(fault(&twice, &known));
        if a != b {
            let mut swapped = rows.clone();
            swapped.swap(a, b);
            prop_assert!(fault(&swapped, &known));
        }
    }

    #[test]
    fn an_inserted_row_is_found_also_when_all_that_follows_is_linked_anew(
        mut rows in any_chain(), at in any::<Index>(), extra in any_row(),
    ) {
        let known = known(&rows);
        let at = at.index(rows.len());
        rows.insert(at, extra);
        for (row, seq) in rows.iter_mut().zip(1..) {
            row.seq = seq;
        }
        forge(&mut rows, at);
        prop_assert!(verify(export(&rows).as_bytes(), &Known::default()).is_ok(), "a chain alone can't tell");
        prop_assert!(fault(&rows, &known));
        prop_assert!(fault(&rows, &Known { head: None, ..known }), "checkpoints are enough");
    }

    #[test]
    fn a_rewritten_log_is_found_behind_each_checkpoint(
        mut rows in any_chain(), at in any::<Index>(), which in 2_usize..14,
    ) {
        let checkpoints: Vec<Checkpoint> = rows.iter().map(checkpoint).collect();
        let at = at.index(rows.len());
        edit(&mut rows[at], which);
        forge(&mut rows, at);
        let seq = rows[at].seq;
        // Which = 4 changes what the hash does not hold; that is refused as an edit.
        for checkpoint in checkpoints {
            let alone = Known { checkpoints: vec![checkpoint.clone()], ..Known::default() };
            if checkpoint.seq >= seq || which == 4 {
                prop_assert!(fault(&rows, &alone));
            } else {
                prop_assert!(!fault(&rows, &alone));
            }
        }
    }

    #[test]
    fn a_missing_end_is_found_when_a_checkpoint_or_head_knows_it(rows in any_chain(), left in any::<Index>()) {
        let left = left.index(rows.len());
        let head = Known { head: rows.last().map(link), ..Known::default() };
        let checkpoints = Known { checkpoints: vec![checkpoint(rows.last().unwrap())], ..Known::default() };
        for known in [head, checkpoints] {
            let refused = verify(export(&rows[..left]).as_bytes(), &known).unwrap_err();
            prop_assert!(matches!(refused, Refused::CutOff { found, .. } if usize::try_from(found) == Ok(left)), "{}", refused);
            prop_assert!(refused.is_fault());
        }
    }

    #[test]
    fn an_export_that_goes_on_is_verified_from_what_it_goes_on_from(rows in any_chain(), at in any::<Index>()) {
        let at = at.index(rows.len());
        let rest = &rows[at..];
        let before = at.checked_sub(1).map(|i| &rows[i]);
        let after = Known { after: before.map(link), ..Known::default() };
        prop_assert!(verify(export(rest).as_bytes(), &after).is_ok());
        // Not by itself: rows may be missing before it.
        let checkpoints = Known { checkpoints: before.map(checkpoint).into_iter().collect(), ..Known::default() };
        prop_assert_eq!(verify(export(rest).as_bytes(), &checkpoints).is_ok(), at == 0);
        let wrong = Known { after: Some(Head { hash: "f".repeat(64), seq: rows[at].seq - 1 }), ..Known::default() };
        prop_assert!(fault(rest, &wrong));
    }
}

fn three() -> Vec<Row> {
    chain((1..=3).map(row).collect())
}

fn said(text: &str, known: &Known) -> (String, bool) {
    let refused = verify(text.as_bytes(), known).unwrap_err();
    (refused.to_string(), refused.is_fault())
}

#[test]
fn the_line_and_the_reason_are_named() {
    let rows = three();
    let mut edited = rows.clone();
    edited[1].actor = "somebody".into();
    let (message, fault) = said(&export(&edited), &Known::default());
    assert!(fault && message.starts_with("line 2: row 2 was edited"), "{message}");
    let (message, fault) = said(&(export(&rows) + "{\"seq\": 4}\n"), &Known::default());
    assert!(fault && message.starts_with("line 4 is not a row of an audit log: "), "{message}");
    let (message, fault) = said(&export(&rows[..2]), &known(&rows));
    assert!(fault && message.contains("ends with row 2") && message.contains("knows row 3"), "{message}");
    let with_field = export(&rows).replacen("{\"org_id\"", "{\"note\":\"x\",\"org_id\"", 1);
    assert!(said(&with_field, &Known::default()).0.contains("unknown field `note`"));
    let twice = export(&rows).replacen("\"action\":", "\"action\":\"x\",\"action\":", 1);
    assert!(said(&twice, &Known::default()).0.contains("duplicate field"));
}

#[test]
fn what_says_nothing_about_the_log_is_no_fault_of_it() {
    assert!(!said("", &Known::default()).1 && !said("\n \n", &Known::default()).1);
    let foreign = Checkpoint { organization: Uuid::nil(), ..checkpoint(&three()[0]) };
    let known = Known { checkpoints: vec![foreign], ..Known::default() };
    let (message, fault) = said(&export(&three()), &known);
    assert!(!fault && message.contains("another one"), "{message}");
    let long = "x".repeat(2 << 20);
    let (message, fault) = said(&long, &Known::default());
    assert!(!fault && message.contains("longer than 1 MiB"), "{message}");
    // Rows that somebody knows of and that are not there are one.
    assert!(said("", &super::tests::known(&three())).1);
}
