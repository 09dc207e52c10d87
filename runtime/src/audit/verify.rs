//! Checks an export of an audit log, JSON Lines of [`chain::Row`], with nothing but what the auditor has: a head kept
//! elsewhere, signed checkpoints. Constant memory for any length. May touch: the reader that it is given.

use std::collections::BTreeMap;
use std::io::BufRead;

use jiff::Timestamp;
use uuid::Uuid;

use super::chain::{Fault, Head, Row, Verifier};
use super::checkpoint::Checkpoint;

/// A line of an export is never longer: the columns are limited.
const MAX_LINE_BYTES: u64 = 1024 * 1024;

/// What the auditor knows from elsewhere.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// The link before the first row, for an export that goes on where an earlier one ended.
    pub after: Option<Head>,
    /// A link that must be in the log.
    pub head: Option<Head>,
    /// Checkpoints whose signatures were checked.
    pub checkpoints: Vec<Checkpoint>,
}

/// What was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Whose log it is.
    pub organization: Uuid,
    /// Its name in the last row.
    pub slug: String,
    /// How many rows.
    pub rows: u64,
    /// Number and time of the first row.
    pub first: (i64, Timestamp),
    /// Time of the last row.
    pub last_at: Timestamp,
    /// The last link.
    pub head: Head,
    /// Checkpoints that fit.
    pub checkpoints: usize,
    /// The newest of them.
    pub newest_checkpoint: Option<Checkpoint>,
}

/// Why an export is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// It can't be read: nothing is known about the log.
    #[error("the export can't be read: {0}")]
    Read(#[from] std::io::Error),
    /// It has no rows and nothing says that it should.
    #[error("the export has no rows: nothing was verified")]
    Empty,
    /// A line is no row.
    #[error("line {line} is not a row of an audit log: {reason}")]
    NotARow {
        /// Which line, from 1.
        line: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// The chain is broken.
    #[error("line {line}: {fault}")]
    Broken {
        /// Which line, from 1.
        line: u64,
        /// How.
        fault: Fault,
    },
    /// A row is not the one that was the last when a link was kept.
    #[error("line {line}: row {seq} is not the one that {witness} knows: the log was rewritten")]
    Rewritten {
        /// Which line, from 1.
        line: u64,
        /// The row's number.
        seq: i64,
        /// Who knows better.
        witness: String,
    },
    /// Rows are missing at the end.
    #[error("the log ends with row {found}, and {witness} knows row {expected}: the newest rows were removed")]
    CutOff {
        /// The last row that is there.
        found: i64,
        /// A row that must be there.
        expected: i64,
        /// Who knows better.
        witness: String,
    },
    /// A checkpoint is of another organization's log.
    #[error("a checkpoint is of organization {0}, the export is of another one; take the checkpoints of this one")]
    ForeignCheckpoint(Uuid),
}

impl Refused {
    /// Whether the log was tampered with, as far as can be told; otherwise nothing was verified.
    pub fn is_fault(&self) -> bool {
        !matches!(self, Self::Read(_) | Self::Empty | Self::ForeignCheckpoint(_))
    }
}

/// A link that must be in the log, and who says so.
struct Witness {
    hash: String,
    name: String,
    checkpoint: Option<Checkpoint>,
}

struct Witnesses(BTreeMap<i64, Vec<Witness>>);

impl Witnesses {
    fn new(known: &Known) -> Self {
        let mut all: BTreeMap<i64, Vec<Witness>> = BTreeMap::new();
        if let Some(head) = known.head.as_ref().filter(|head| head.seq > 0) {
            let witness = Witness { hash: head.hash.clone(), name: "the head".to_owned(), checkpoint: None };
            all.entry(head.seq).or_default().push(witness);
        }
        for checkpoint in &known.checkpoints {
            let name = format!("the checkpoint of {}", checkpoint.at);
            let witness = Witness { hash: checkpoint.hash.clone(), name, checkpoint: Some(checkpoint.clone()) };
            all.entry(checkpoint.seq).or_default().push(witness);
        }
        Self(all)
    }

    fn check(&self, line: u64, row: &Row) -> Result<&[Witness], Refused> {
        let witnesses = self.0.get(&row.seq).map_or(&[][..], Vec::as_slice);
        match witnesses.iter().find(|witness| witness.hash != row.hash) {
            Some(witness) => Err(Refused::Rewritten { line, seq: row.seq, witness: witness.name.clone() }),
            None => Ok(witnesses),
        }
    }

    fn check_end(&self, found: i64) -> Result<(), Refused> {
        match self.0.last_key_value() {
            Some((&expected, witnesses)) if expected > found => {
                let witness = witnesses.first().map(|witness| witness.name.clone()).unwrap_or_default();
                Err(Refused::CutOff { found, expected, witness })
            }
            _ => Ok(()),
        }
    }
}

/// Checks row by row until the first fault.
pub fn verify(mut export: impl BufRead, known: &Known) -> Result<Report, Refused> {
    let witnesses = Witnesses::new(known);
    let mut state: Option<(Verifier, Report)> = None;
    let (mut line, mut text) = (0, Vec::new());
    loop {
        text.clear();
        if read_line(&mut export, &mut text)? == 0 {
            break;
        }
        line += 1;
        if text.trim_ascii().is_empty() {
            continue;
        }
        let row: Row =
            serde_json::from_slice(&text).map_err(|error| Refused::NotARow { line, reason: error.to_string() })?;
        let (verifier, report) = match &mut state {
            Some(state) => state,
            None => state.insert(begin(&row, known)),
        };
        verifier.push(&row).map_err(|fault| Refused::Broken { line, fault })?;
        // Only now: a row that was edited says nothing about whose log it is.
        if let Some(foreign) = known.checkpoints.iter().find(|checkpoint| checkpoint.organization != row.org_id) {
            return Err(Refused::ForeignCheckpoint(foreign.organization));
        }
        for witness in witnesses.check(line, &row)? {
            if let Some(checkpoint) = &witness.checkpoint {
                report.checkpoints += 1;
                report.newest_checkpoint = Some(checkpoint.clone());
            }
        }
        report.rows += 1;
        report.last_at = row.at;
        report.slug = row.org_slug;
        report.head = Head { seq: row.seq, hash: row.hash };
    }
    let Some((_, report)) = state else {
        witnesses.check_end(known.after.as_ref().map_or(0, |after| after.seq))?;
        return Err(Refused::Empty);
    };
    witnesses.check_end(report.head.seq)?;
    Ok(report)
}

fn begin(row: &Row, known: &Known) -> (Verifier, Report) {
    let before = known.after.clone().unwrap_or_else(Head::start);
    let report = Report {
        organization: row.org_id,
        slug: String::new(),
        rows: 0,
        first: (row.seq, row.at),
        last_at: row.at,
        head: before.clone(),
        checkpoints: 0,
        newest_checkpoint: None,
    };
    (Verifier::after(row.org_id, before), report)
}

/// One line with its end; a line without end would fill the memory.
fn read_line(export: &mut impl BufRead, text: &mut Vec<u8>) -> std::io::Result<usize> {
    let read = std::io::Read::take(export, MAX_LINE_BYTES).read_until(b'\n', text)?;
    if read as u64 == MAX_LINE_BYTES && !text.ends_with(b"\n") {
        return Err(std::io::Error::other("a line is longer than 1 MiB"));
    }
    Ok(read)
}

#[cfg(test)]
mod tests;
