//! `agentapi-runtime audit`: what an auditor runs, away from the platform. `verify` needs nothing but files; `export`
//! reads the log with a database login of the organization. May touch: files, standard input and output, Postgres.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use secrecy::{ExposeSecret, SecretString};
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use crate::audit::chain::Head;
use crate::audit::checkpoint::{self, CheckpointError, Keys};
use crate::audit::verify::{Known, Refused, Report, verify};
use crate::store::{StoreError, audit};

/// Rows that are in memory at a time.
const PAGE: i64 = 500;

/// What to do with an audit log.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Check an export offline: that no row was edited, removed, inserted or put in another order.
    ///
    /// Exit codes: 0 the log is whole; 1 it is not, the message names the line and the row; 2 nothing was verified,
    /// because a file can't be read or is of another kind.
    Verify(VerifyArgs),
    /// Write the log as JSON Lines to standard output, from Postgres.
    ///
    /// Exit codes: 0 written; 2 the database can't be read.
    Export(ExportArgs),
}

/// What `verify` is told.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// JSON Lines from GET /v1/audit/export or `audit export`; `-` is standard input.
    export: PathBuf,
    /// A link that must be in the log: `{"seq": 42, "hash": "…"}`, such as the `head` of GET /v1/audit that was kept
    /// elsewhere. Without it and without checkpoints, nothing can tell that the newest rows are missing.
    #[arg(long, value_name = "FILE")]
    head: Option<PathBuf>,
    /// The link before the first row, in the same form, for an export that goes on where an earlier one ended.
    #[arg(long, value_name = "FILE")]
    after: Option<PathBuf>,
    /// Signed checkpoints, from GET /v1/audit/checkpoints; may be given several times.
    #[arg(long, value_name = "FILE", requires = "public_key")]
    checkpoints: Vec<PathBuf>,
    /// The keys that may have signed them, from GET /v1/audit/keys, kept from before.
    #[arg(long, value_name = "FILE", requires = "checkpoints")]
    public_key: Option<PathBuf>,
}

/// What `export` is told.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Connection URL of the organization's read-only login (Secret `agentapi-database`).
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    database_url: SecretString,
    /// Only rows after this number.
    #[arg(long, default_value_t = 0)]
    after: i64,
    /// Organization, for logins that see more than one.
    #[arg(long)]
    organization: Option<String>,
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("cannot read {path}: {error}")]
    File { path: String, error: std::io::Error },
    #[error("{path} is not a link: write {{\"seq\": 42, \"hash\": \"<64 hex digits>\"}}")]
    Head { path: String },
    #[error("{path}: {error}")]
    Checkpoints { path: String, error: CheckpointError },
    #[error("{0}")]
    Refused(#[from] Refused),
    #[error("DATABASE_URL: {0}")]
    Store(#[from] StoreError),
    #[error("cannot write the export: {0}")]
    Write(std::io::Error),
    #[error("cannot write a row as JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the login sees the logs of {0} organizations; name one with --organization")]
    Ambiguous(usize),
    #[error("the login sees no such audit log")]
    NoLog,
    #[error("rows after {0} are missing in the database")]
    Gap(i64),
}

impl Failure {
    fn code(&self) -> u8 {
        match self {
            Self::Refused(refused) if refused.is_fault() => 1,
            Self::Checkpoints { error, .. } if error.is_forgery() => 1,
            _ => 2,
        }
    }
}

/// Does it, and gives back the exit code.
pub async fn run(command: AuditCommand) -> u8 {
    let done = match command {
        AuditCommand::Verify(args) => check(&args),
        AuditCommand::Export(args) => export(&args).await,
    };
    match done {
        Ok(()) => 0,
        Err(failure) => {
            let word = if failure.code() == 1 { "FAULT" } else { "error" };
            // Nowhere is left to say that standard error is closed.
            let _ = writeln!(std::io::stderr(), "{word}: {failure}");
            failure.code()
        }
    }
}

fn check(args: &VerifyArgs) -> Result<(), Failure> {
    let mut known = Known {
        after: args.after.as_deref().map(read_head).transpose()?,
        head: args.head.as_deref().map(read_head).transpose()?,
        checkpoints: Vec::new(),
    };
    if let Some(path) = &args.public_key {
        let keys = Keys::from_jwks(&read(path)?).map_err(|error| wrong(path, error))?;
        for path in &args.checkpoints {
            known.checkpoints.extend(checkpoint::read(&read(path)?, &keys).map_err(|error| wrong(path, error))?);
        }
    }
    let export: Box<dyn BufRead> = if args.export == Path::new("-") {
        Box::new(std::io::stdin().lock())
    } else {
        Box::new(BufReader::new(File::open(&args.export).map_err(|error| unreadable(&args.export, error))?))
    };
    let report = verify(export, &known)?;
    tell(&report, &known).map_err(Failure::Write)
}

fn tell(report: &Report, known: &Known) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "OK: the audit log of {} ({}) is whole", report.slug, report.organization)?;
    writeln!(out, "rows: {}", report.rows)?;
    writeln!(out, "from: row {} of {}", report.first.0, report.first.1)?;
    writeln!(out, "to:   row {} of {}", report.head.seq, report.last_at)?;
    writeln!(out, "head: {{\"seq\": {}, \"hash\": \"{}\"}}", report.head.seq, report.head.hash)?;
    match &report.newest_checkpoint {
        Some(newest) => writeln!(
            out,
            "checkpoints: {} of {} are in these rows and fit; rows up to {} are those of {}",
            report.checkpoints,
            known.checkpoints.len(),
            newest.seq,
            newest.at
        ),
        None if known.head.is_some() => writeln!(out, "the given head is in the log or before these rows"),
        None => writeln!(
            out,
            "note: without --head or --checkpoints that reach into these rows, missing newest rows are not noticed"
        ),
    }
}

fn unreadable(path: &Path, error: std::io::Error) -> Failure {
    Failure::File { path: path.display().to_string(), error }
}

fn wrong(path: &Path, error: CheckpointError) -> Failure {
    Failure::Checkpoints { path: path.display().to_string(), error }
}

fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|error| unreadable(path, error))
}

fn read_head(path: &Path) -> Result<Head, Failure> {
    let refuse = || Failure::Head { path: path.display().to_string() };
    let head: Head = serde_json::from_str(&read(path)?).map_err(|_| refuse())?;
    let hex = head.hash.len() == 64 && head.hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if head.seq >= 0 && hex { Ok(head) } else { Err(refuse()) }
}

async fn export(args: &ExportArgs) -> Result<(), Failure> {
    let mut connection = PgConnection::connect(args.database_url.expose_secret()).await.map_err(StoreError::from)?;
    let (organization, head) = choose(audit::heads(&mut connection).await?, args.organization.as_deref())?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut after = args.after;
    while after < head.seq {
        let rows = audit::chain(&mut connection, organization, after, head.seq, PAGE).await?;
        for row in &rows {
            writeln!(out, "{}", serde_json::to_string(row)?).map_err(Failure::Write)?;
        }
        after = rows.last().ok_or(Failure::Gap(after))?.seq;
    }
    out.flush().map_err(Failure::Write)?;
    connection.close().await.map_err(StoreError::from)?;
    Ok(())
}

fn choose(heads: Vec<(Uuid, String, Head)>, wanted: Option<&str>) -> Result<(Uuid, Head), Failure> {
    let mut found: Vec<_> =
        heads.into_iter().filter(|(_, slug, _)| wanted.is_none_or(|wanted| wanted == slug)).collect();
    match (found.len(), found.pop()) {
        (1, Some((organization, _, head))) => Ok((organization, head)),
        (0, _) => Err(Failure::NoLog),
        (many, _) => Err(Failure::Ambiguous(many)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn one_log_is_chosen_or_none() {
        let head = |slug: &str| (Uuid::new_v4(), slug.to_owned(), Head::start());
        let two = || vec![head("acme"), head("globex")];
        assert!(choose(vec![head("acme")], None).is_ok() && choose(two(), Some("globex")).is_ok());
        for (heads, wanted) in [(two(), None), (two(), Some("other")), (Vec::new(), None)] {
            assert_eq!(choose(heads, wanted).unwrap_err().code(), 2);
        }
    }

    #[test]
    fn a_head_is_a_number_and_a_hash() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("head");
        let hash = "ab".repeat(32);
        for (text, good) in [
            (format!("{{\"seq\": 3, \"hash\": \"{hash}\"}}"), true),
            (format!("{{\"seq\": -3, \"hash\": \"{hash}\"}}"), false),
            ("{\"seq\": 3, \"hash\": \"xy\"}".to_owned(), false),
            (hash, false),
        ] {
            std::fs::write(&path, &text).unwrap();
            assert_eq!(read_head(&path).is_ok(), good, "{text}");
        }
        assert_eq!(read_head(&folder.path().join("none")).unwrap_err().code(), 2);
    }
}
