//! Fuzz target of the audit log's verifier: an export that somebody had in their hands. See `agentapi_fuzz`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use agentapi_fuzz::Fuzz;
use uuid::Uuid;

use super::chain::{Head, Row, Verifier, hash};

const ORGANIZATION: Uuid = Uuid::from_u128(10);

/// Three rows, as an export has them: one JSON object per line.
fn good() -> Vec<Row> {
    let mut last = Head::start();
    ["organization.create", "session.create", "session.end"]
        .into_iter()
        .map(|action| {
            let mut row = Row {
                org_id: ORGANIZATION,
                seq: last.seq + 1,
                org_slug: "acme".into(),
                at: "2026-01-02T03:04:05.678901Z".parse().unwrap(),
                db_role: "org_acme".into(),
                actor: "user:alice".into(),
                action: action.into(),
                target_kind: "session".into(),
                target_id: Some("x".into()),
                request_id: None,
                source_ip: Some("127.0.0.1".into()),
                user_agent: None,
                detail: serde_json::json!({"workspace": "main", "n": 1, "list": ["a", null, {"b": true}]}),
                config_digest: None,
                prev_hash: last.hash.clone(),
                hash: String::new(),
            };
            row.hash = hash(&row);
            last = Head { seq: row.seq, hash: row.hash.clone() };
            row
        })
        .collect()
}

#[test]
fn audit_export() {
    const TOKENS: &[&[u8]] = &[
        b"\n",
        br#""seq":1"#,
        br#""seq":2"#,
        br#""detail":{}"#,
        br#""detail":{"n":1.0}"#,
        br#""detail":{"n":1e0}"#,
        br#"{"n":1,"n":2}"#,
        br#""target_id":null"#,
        br#""user_agent":"""#,
        br#""at":"2026-01-02T03:04:05.6789010Z""#,
        br#""at":"2026-01-02T04:04:05.678901+01:00""#,
        br#""\u0061""#,
        b"null",
        b"[",
        b"]",
        b"{",
        b"}",
        b",",
        b" ",
        br#""extra":1"#,
        br#""org_slug":"#,
        br#""prev_hash":"#,
    ];
    let rows = good();
    let lines: String = rows.iter().map(|row| serde_json::to_string(row).unwrap() + "\n").collect();
    let head = Head { seq: 3, hash: rows[2].hash.clone() };
    Fuzz::new("audit_export").tokens(TOKENS).run(|input| {
        // "@good" in a seed stands for the rows, whose hashes are made here.
        let text = String::from_utf8_lossy(input).replace("@good", &lines);
        let mut verifier = Verifier::new(ORGANIZATION);
        let mut read = Vec::new();
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            let Ok(row) = serde_json::from_str::<Row>(line) else { return 1 + read.len() as u64 };
            if let Err(fault) = verifier.push(&row) {
                return 100 + fault.to_string().len() as u64 * 8 + read.len() as u64;
            }
            read.push(row);
        }
        // Whatever passed is the rows themselves, from the first one on; the head tells when the last ones are missing.
        assert_eq!(read.as_slice(), &rows[..read.len()], "a changed export passes");
        let whole = verifier.finish(Some(&head)).is_ok();
        assert_eq!(whole, read.len() == rows.len());
        10_000 + read.len() as u64
    });
}
