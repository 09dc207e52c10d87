//! The hash chain of the audit log, checked without a database: an auditor with an export needs nothing of ours but
//! this. Pure. The other half is `app.audit_hash` in migrations/0004_audit.sql; a test keeps the two equal.
use aws_lc_rs::digest::{SHA256, digest};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt::Write;
use uuid::Uuid;

/// A row of `audit_log`, as it is exported: one JSON object per line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// Organization.
    pub org_id: Uuid,
    /// Place in the organization's chain, from 1.
    pub seq: i64,
    /// Name of the organization at that time.
    pub org_slug: String,
    /// When Postgres took the row in, to the microsecond.
    pub at: Timestamp,
    /// Database role that wrote it.
    pub db_role: String,
    /// Who.
    pub actor: String,
    /// Did what.
    pub action: String,
    /// To what kind of thing.
    pub target_kind: String,
    /// To which one.
    pub target_id: Option<String>,
    /// In which request.
    pub request_id: Option<String>,
    /// From where.
    pub source_ip: Option<String>,
    /// With what.
    pub user_agent: Option<String>,
    /// More about it.
    pub detail: Value,
    /// Digest of the configuration in force.
    pub config_digest: Option<String>,
    /// Hash of the row before, hex; zeros for the first.
    pub prev_hash: String,
    /// Hash of this row, hex.
    pub hash: String,
}

/// The newest link of a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Number of the newest row; 0 for a chain without rows.
    pub seq: i64,
    /// Its hash, hex.
    pub hash: String,
}

impl Head {
    /// Before the first row.
    pub fn start() -> Self {
        Self { seq: 0, hash: "0".repeat(64) }
    }
}

/// The first thing that is wrong with a chain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The content does not have the hash that the row carries.
    #[error("row {seq} was edited: its content does not have its hash")]
    Edited {
        /// Its number.
        seq: i64,
    },
    /// The numbers do not go on by one.
    #[error("row {found} comes where row {expected} belongs: rows were removed, inserted or put in another order")]
    Sequence {
        /// Number that had to come.
        expected: i64,
        /// Number that came.
        found: i64,
    },
    /// The row is whole and follows another row than the one before it.
    #[error("row {seq} does not follow the row before it: one of the two was replaced")]
    Link {
        /// Its number.
        seq: i64,
    },
    /// The row is of another organization.
    #[error("row {seq} belongs to another organization")]
    Foreign {
        /// Its number.
        seq: i64,
    },
    /// The newest row is not the one that the head names.
    #[error("the chain ends with row {found}, the head says row {expected}: the newest rows were removed or replaced")]
    Head {
        /// Number in the head.
        expected: i64,
        /// Number of the last row.
        found: i64,
    },
}

/// Checks a chain row by row, in constant memory.
#[derive(Clone, Debug)]
pub struct Verifier {
    organization: Uuid,
    last: Head,
}

impl Verifier {
    /// From the first row on.
    pub fn new(organization: Uuid) -> Self {
        Self::after(organization, Head::start())
    }

    /// From the row after a link that is known to be good, such as that of an earlier export.
    pub fn after(organization: Uuid, last: Head) -> Self {
        Self { organization, last }
    }

    /// Takes the next row.
    pub fn push(&mut self, row: &Row) -> Result<(), Fault> {
        let seq = row.seq;
        if row.org_id != self.organization {
            return Err(Fault::Foreign { seq });
        }
        let expected = self.last.seq.saturating_add(1);
        if seq != expected {
            return Err(Fault::Sequence { expected, found: seq });
        }
        // The hash knows microseconds: digits behind them could be changed unseen.
        if hash(row) != row.hash || row.at.subsec_nanosecond() % 1000 != 0 {
            return Err(Fault::Edited { seq });
        }
        if row.prev_hash != self.last.hash {
            return Err(Fault::Link { seq });
        }
        self.last = Head { seq, hash: row.hash.clone() };
        Ok(())
    }

    /// The last link. With the head that was kept elsewhere (`audit_heads`, a checkpoint) it is seen whether the
    /// newest rows are missing; without one nothing can tell.
    pub fn finish(self, head: Option<&Head>) -> Result<Head, Fault> {
        match head {
            Some(head) if *head != self.last => Err(Fault::Head { expected: head.seq, found: self.last.seq }),
            _ => Ok(self.last),
        }
    }
}

/// Checks a whole chain.
pub fn verify<'a>(
    organization: Uuid,
    rows: impl IntoIterator<Item = &'a Row>,
    head: Option<&Head>,
) -> Result<Head, Fault> {
    let mut verifier = Verifier::new(organization);
    for row in rows {
        verifier.push(row)?;
    }
    verifier.finish(head)
}

/// The hash of a row's content, hex.
pub fn hash(row: &Row) -> String {
    hex::encode(digest(&SHA256, canonical(row).as_bytes()))
}

/// Every field in order, each with its length, so that no value can pretend to be two.
fn canonical(row: &Row) -> String {
    let mut text = String::new();
    let mut field = |value: Option<&str>| match value {
        Some(value) => {
            // Writing to a String does not fail.
            let _ = write!(text, "{}:{value},", value.len());
        }
        None => text.push_str("-,"),
    };
    field(Some("agentapi.audit.v1"));
    field(Some(&row.org_id.to_string()));
    field(Some(&row.seq.to_string()));
    field(Some(&row.org_slug));
    field(Some(&row.at.as_microsecond().to_string()));
    field(Some(&row.db_role));
    field(Some(&row.actor));
    field(Some(&row.action));
    field(Some(&row.target_kind));
    field(row.target_id.as_deref());
    field(row.request_id.as_deref());
    field(row.source_ip.as_deref());
    field(row.user_agent.as_deref());
    field(Some(&jsonb_text(&row.detail)));
    field(row.config_digest.as_deref());
    field(Some(&row.prev_hash));
    text
}

/// A JSON value as Postgres prints the `jsonb` of it: keys by length and then by bytes, `", "` and `": "` in between.
/// Numbers are those that `audit_log.detail` takes: integers of at most 53 bits.
pub fn jsonb_text(value: &Value) -> String {
    let mut text = String::new();
    write_jsonb(value, &mut text);
    text
}

fn write_jsonb(value: &Value, out: &mut String) {
    match value {
        // Escapes of strings are the same on both sides; these can't fail to print.
        Value::Null | Value::Bool(_) | Value::String(_) => out.push_str(&value.to_string()),
        // The column takes integers only; serde_json writes some of them, and Postgres keeps them, with a ".0".
        Value::Number(number) => out.push_str(&number.to_string()),
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                out.push_str(if i == 0 { "" } else { ", " });
                write_jsonb(item, out);
            }
            out.push(']');
        }
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by(|(a, _), (b, _)| (a.len(), a.as_bytes()).cmp(&(b.len(), b.as_bytes())));
            out.push('{');
            for (i, (key, item)) in fields.into_iter().enumerate() {
                out.push_str(if i == 0 { "" } else { ", " });
                out.push_str(&Value::from(key.as_str()).to_string());
                out.push_str(": ");
                write_jsonb(item, out);
            }
            out.push('}');
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
