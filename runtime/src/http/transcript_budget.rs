//! How much text sessions may leave in the database, each and all of an organization together. Without it an agent
//! with the token of its pod could fill the disk that all organizations share. May touch: `store`, `metrics`.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use http::StatusCode;
use moka::future::Cache;
use uuid::Uuid;

use super::error::Problem;
use crate::metrics::Metrics;
use crate::store::TenantTx;
use crate::store::sessions::Session;

/// An organization's sum is read again after this time; until then this replica adds what it has let in itself.
const SUM_TTL: Duration = Duration::from_secs(30);
/// A full organization empties when sessions are removed; nobody knows when.
const RETRY_SECONDS: u32 = 60;

/// The budgets and what is used of them.
pub struct TranscriptBudget {
    session: i64,
    organization: i64,
    sums: Cache<Uuid, Arc<AtomicI64>>,
}

/// What a push adds, counted once the push is committed.
#[must_use]
pub struct Grown {
    sum: Arc<AtomicI64>,
    bytes: i64,
}

impl Grown {
    /// The push is committed.
    pub fn count(self) {
        self.sum.fetch_add(self.bytes, Ordering::Relaxed);
    }
}

impl TranscriptBudget {
    /// In bytes, per session and per organization.
    pub fn new(session: u64, organization: u64) -> Self {
        let limit = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let sums = Cache::builder().max_capacity(10_000).time_to_live(SUM_TTL).build();
        Self { session: limit(session), organization: limit(organization), sums }
    }

    /// Refuses a push that is in the transaction but over a budget; dropping the transaction takes it back. What
    /// makes a transcript shorter is always let in.
    pub async fn check(&self, tx: &mut TenantTx, session: &Session, metrics: &Metrics) -> Result<Grown, Problem> {
        let bytes = tx.record_transcript_bytes(session).await?;
        let grows = bytes > session.transcript_bytes;
        if grows && bytes > self.session {
            metrics.quota_refused("session.transcriptBytes");
            let detail = format!("A session's transcript has at most {} bytes of text.", self.session);
            return Err(Problem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "transcript-too-large",
                "Transcript too large",
                detail,
            )
            .with("quota", "session.transcriptBytes")
            .with("limit", self.session)
            .with("used", session.transcript_bytes));
        }
        let organization = tx.organization_id();
        let sum = if let Some(sum) = self.sums.get(&organization).await {
            sum
        } else {
            let sum = Arc::new(AtomicI64::new(tx.transcript_bytes().await?));
            self.sums.insert(organization, Arc::clone(&sum)).await;
            sum
        };
        let (used, added) = (sum.load(Ordering::Relaxed), bytes - session.transcript_bytes);
        if grows && used.saturating_add(added) > self.organization {
            metrics.quota_refused("organization.transcriptBytes");
            let detail = format!(
                "All transcripts of the organization together have at most {} bytes of text; ask for more.",
                self.organization
            );
            return Err(Problem::quota_exceeded(detail, "organization.transcriptBytes", self.organization, used)
                .retry_after(RETRY_SECONDS));
        }
        Ok(Grown { sum, bytes: added })
    }
}
