//! What the probes have found so far, per Organization, and the one place that tells it: audit rows, status, Events and
//! metrics, before any repair.
use super::{Outcome, Probe};
use crate::{
    audit::{self, Entry},
    context::Context,
    egress::Closed,
    error::Result,
    status::{Saying, merge},
    tenancy::{self, failed},
};
use agentapi_crds::{
    Organization,
    conditions::{ISOLATION_VERIFIED, reason},
    isolation::{Isolation, IsolationProbe, ProbeResult},
};
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::{SignedDuration, Timestamp},
};
use kube::{
    Api, Resource, ResourceExt,
    runtime::events::{Event, EventType},
};
use serde_json::json;
use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, PoisonError, RwLock},
};
use uuid::Uuid;

/// Owns the isolation part of an Organization's status; the reconcile owns the rest.
const MANAGER: &str = "agentapi-operator-isolation";
/// Ends what the status says of a breach that is not in the audit log yet, which Postgres may be too far away for. The
/// next leader reads it there: it adds what is missing, and nothing again because of a restart.
const OWED: &str = " (not in the audit log yet)";

/// What is kept between rounds.
pub struct State {
    boards: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Board>>>>,
    closed: RwLock<Arc<Closed>>,
}

impl State {
    /// Nothing is known yet.
    pub fn new(closed: Closed) -> Self {
        Self { boards: Mutex::default(), closed: RwLock::new(Arc::new(closed)) }
    }

    /// The ranges that no Workspace may open.
    pub fn closed(&self) -> Arc<Closed> {
        self.closed.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replace them; says whether they are others now.
    pub fn set_closed(&self, closed: Closed) -> bool {
        let mut place = self.closed.write().unwrap_or_else(PoisonError::into_inner);
        let changed = **place != closed;
        *place = Arc::new(closed);
        changed
    }

    fn board(&self, organization: &Organization) -> Arc<tokio::sync::Mutex<Board>> {
        let mut boards = self.boards.lock().unwrap_or_else(PoisonError::into_inner);
        let key = organization.uid().unwrap_or_default();
        boards.entry(key).or_insert_with(|| Arc::new(tokio::sync::Mutex::new(Board::remembered(organization)))).clone()
    }

    /// Forget Organizations that are gone.
    pub fn retain(&self, uids: &HashSet<String>) {
        self.boards.lock().unwrap_or_else(PoisonError::into_inner).retain(|uid, _| uids.contains(uid));
    }
}

/// What is known about one Organization.
#[derive(Default)]
pub struct Board {
    probes: BTreeMap<Probe, (Outcome, Timestamp)>,
    /// When a breach was seen last; a later success does not take it off the board at once.
    seen: BTreeMap<Probe, Timestamp>,
    /// Breaches that are not in the audit log yet. They stay on the board until they are.
    owed: VecDeque<(Probe, String)>,
    condition: Option<Condition>,
    written: Option<Isolation>,
}

impl Board {
    /// From the status that an earlier leader wrote, so that times and results survive it.
    pub fn remembered(organization: &Organization) -> Self {
        let status = organization.status.clone().unwrap_or_default();
        let mut board = Self {
            condition: status.conditions.into_iter().find(|condition| condition.type_ == ISOLATION_VERIFIED),
            written: status.isolation.clone(),
            ..Self::default()
        };
        for shown in status.isolation.unwrap_or_default().probes {
            if let Some(probe) = Probe::ALL.into_iter().find(|probe| probe.name() == shown.name) {
                let mut message = shown.message;
                if let Some(finding) = message.strip_suffix(OWED).map(str::to_owned) {
                    message.clone_from(&finding);
                    board.owed.push_back((probe, finding));
                }
                let outcome = Outcome { result: shown.result, message };
                board.probes.insert(probe, (outcome, shown.last_transition_time.0));
            }
        }
        board
    }

    /// Take in what was found; says which breaches are news. A breach stays for `hold` after it was last seen, or one
    /// that was repaired at once would be seen by nobody.
    pub fn take(&mut self, found: &[(Probe, Outcome)], now: Timestamp, hold: SignedDuration) -> Vec<Probe> {
        let mut news = Vec::new();
        for (probe, outcome) in found {
            let before = self.probes.get(probe);
            if outcome.result == ProbeResult::Breached {
                self.seen.insert(*probe, now);
                if before.is_none_or(|(before, _)| before != outcome) {
                    news.push(*probe);
                    self.owed.push_back((*probe, outcome.message.clone()));
                }
            } else if before.is_some_and(|(before, _)| before.result == ProbeResult::Breached)
                && (self.seen.get(probe).is_some_and(|seen| now.duration_since(*seen) < hold) || self.owes(*probe))
            {
                continue;
            }
            let since = before.filter(|(before, _)| before.result == outcome.result).map_or(now, |(_, since)| *since);
            self.probes.insert(*probe, (outcome.clone(), since));
        }
        news
    }

    fn owes(&self, probe: Probe) -> bool {
        self.owed.iter().any(|(owed, _)| *owed == probe)
    }

    /// The list in the status.
    pub fn shown(&self) -> Isolation {
        let probes = self.probes.iter().map(|(probe, (outcome, since))| IsolationProbe {
            name: probe.name().to_owned(),
            result: outcome.result,
            message: if self.owes(*probe) { format!("{}{OWED}", outcome.message) } else { outcome.message.clone() },
            last_transition_time: Time(*since),
        });
        Isolation { probes: probes.collect() }
    }

    /// The condition. What could not be tried is never taken for passed.
    pub fn saying(&self) -> Saying {
        let named = |result: ProbeResult| {
            let of = self.probes.iter().filter(move |(_, (outcome, _))| outcome.result == result);
            of.map(|(probe, (outcome, _))| format!("{}: {}", probe.name(), outcome.message)).collect::<Vec<_>>()
        };
        let breached = named(ProbeResult::Breached);
        if !breached.is_empty() {
            return Saying::no(ISOLATION_VERIFIED, reason::ISOLATION_BREACHED, breached.join("; "));
        }
        let mut unknown = named(ProbeResult::Unknown);
        let missing = Probe::ALL.into_iter().filter(|probe| !self.probes.contains_key(probe));
        unknown.extend(missing.map(|probe| format!("{}: has not run yet", probe.name())));
        if !unknown.is_empty() {
            return Saying::unknown(ISOLATION_VERIFIED, reason::ISOLATION_UNKNOWN, unknown.join("; "));
        }
        Saying::yes(ISOLATION_VERIFIED, reason::ISOLATED, "no probe came through, and every fence is as it must be")
    }
}

/// Take in what was found and tell it.
pub async fn settle(context: &Context, organization: &Organization, found: &[(Probe, Outcome)]) {
    if found.is_empty() {
        return;
    }
    let board = context.isolation.board(organization);
    let mut board = board.lock().await;
    let now = context.now();
    let slug = organization.name_any();
    for (probe, _) in found {
        context.metrics.probed(&slug, probe.name(), now.as_second());
    }
    let hold = SignedDuration::from_secs(i64::from(context.config.isolation_period_seconds));
    let news = board.take(found, now, hold);
    for (probe, (outcome, _)) in &board.probes {
        context.metrics.isolation(&slug, probe.name(), outcome.result);
    }
    while let Some((probe, message)) = board.owed.front() {
        if let Err(error) = record(context, organization, probe.name(), message).await {
            let probe = probe.name();
            tracing::warn!(%error, organization = %slug, probe, "can't write the breach into the audit log yet");
            break;
        }
        board.owed.pop_front();
    }
    if let Err(error) = write(context, organization, &mut board, now).await {
        tracing::warn!(%error, organization = %slug, "can't write what the isolation probes found; it is tried again");
    }
    for probe in news {
        let Some((outcome, _)) = board.probes.get(&probe) else { continue };
        tell_breach(context, organization, probe, outcome).await;
    }
}

async fn write(context: &Context, organization: &Organization, board: &mut Board, now: Timestamp) -> Result<()> {
    let shown = board.shown();
    let old: Vec<Condition> = board.condition.iter().cloned().collect();
    let new = merge(&old, &[board.saying()], organization.metadata.generation, now);
    if board.written.as_ref() == Some(&shown) && old == new {
        return Ok(());
    }
    let organizations = Api::<Organization>::all(context.client.clone());
    let status = json!({ "isolation": shown, "conditions": new });
    context.applier.status_as(MANAGER, &organizations, organization, &status).await?;
    // Breaches are told one by one.
    let healed: Vec<Condition> = new.iter().filter(|condition| condition.status == "True").cloned().collect();
    context.tell_transitions(organization, &old, &healed).await;
    board.written = Some(shown);
    board.condition = new.into_iter().next();
    Ok(())
}

async fn tell_breach(context: &Context, organization: &Organization, probe: Probe, outcome: &Outcome) {
    let (slug, probe) = (organization.name_any(), probe.name());
    let message = &outcome.message;
    tracing::error!(organization = %slug, probe, message, "the isolation of a tenant is breached");
    context.metrics.isolation_breached(&slug, probe);
    let event = Event {
        type_: EventType::Warning,
        reason: reason::ISOLATION_BREACHED.to_owned(),
        note: Some(format!("{probe}: {message}").chars().take(900).collect()),
        // Events that agree in all but the note become one, with the first one's note.
        action: format!("{probe}: {message}").chars().take(100).collect(),
        secondary: None,
    };
    if let Err(error) = context.recorder.publish(&event, &organization.object_ref(&())).await {
        tracing::warn!(%error, "can't publish an Event");
    }
}

async fn record(context: &Context, organization: &Organization, probe: &str, message: &str) -> tenancy::Result<()> {
    let Some(id) = organization.uid().and_then(|uid| Uuid::parse_str(&uid).ok()) else { return Ok(()) };
    let mut tx = context.postgres()?.begin().await.map_err(failed("begin a transaction"))?;
    let slug = organization.name_any();
    let detail = json!({ "probe": probe, "finding": message });
    let entry =
        Entry { action: "organization.isolation-breached", target_kind: "Organization", target_id: &slug, detail };
    match audit::record(&mut tx, Some(id), &entry).await {
        Err(tenancy::Error::Sql(_, sqlx::Error::RowNotFound)) => {
            tracing::warn!(organization = %slug, probe, "a breach of an Organization that has no audit log yet");
            return Ok(());
        }
        recorded => recorded?,
    }
    tx.commit().await.map_err(failed("commit"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::controllers::organization::tests::acme;

    const HOLD: SignedDuration = SignedDuration::from_secs(60);

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn all_passed() -> Vec<(Probe, Outcome)> {
        Probe::ALL.into_iter().map(|probe| (probe, Outcome::passed("nothing came through"))).collect()
    }

    #[test]
    fn what_has_not_run_or_could_not_run_is_not_passed() {
        let mut board = Board::default();
        assert_eq!(board.saying().status, None);
        board.take(&all_passed()[1..], at(1), HOLD);
        assert_eq!(board.saying().status, None);
        assert!(board.saying().message.contains("postgres-fences: has not run yet"));
        board.take(&all_passed(), at(2), HOLD);
        assert_eq!(board.saying().status, Some(true));
        board.take(&[(Probe::Api, Outcome::unknown("the runtime does not answer"))], at(3), HOLD);
        assert_eq!(board.saying().status, None);
    }

    #[test]
    fn a_breach_that_was_repaired_at_once_stays_visible_for_a_while_and_is_told_once() {
        let mut board = Board::default();
        board.take(&all_passed(), at(1), HOLD);
        let breach = [(Probe::Api, Outcome::breached(&["a door is open".into()]))];
        assert_eq!(board.take(&breach, at(10), HOLD), [Probe::Api]);
        assert!(board.take(&breach, at(11), HOLD).is_empty(), "told twice");
        assert_eq!(board.owed.len(), 1, "recorded twice");
        board.owed.clear();
        board.take(&all_passed(), at(12), HOLD);
        let saying = board.saying();
        assert_eq!((saying.status, saying.message.as_str()), (Some(false), "api: a door is open"));
        board.take(&all_passed(), at(71), HOLD);
        assert_eq!(board.saying().status, Some(true));
        assert_eq!(board.take(&breach, at(80), HOLD), [Probe::Api], "the next one is news again");
    }

    #[test]
    fn the_same_findings_give_the_same_status_and_the_next_leader_goes_on_with_it() {
        let mut board = Board::default();
        board.take(&all_passed(), at(1), HOLD);
        let shown = board.shown();
        board.take(&all_passed(), at(500), HOLD);
        assert_eq!(board.shown(), shown);
        let mut organization = acme();
        organization.status = Some(agentapi_crds::organization::OrganizationStatus {
            isolation: Some(shown.clone()),
            ..agentapi_crds::organization::OrganizationStatus::default()
        });
        let mut next = Board::remembered(&organization);
        next.take(&all_passed(), at(900), HOLD);
        assert_eq!(next.shown(), shown);
    }

    #[test]
    fn a_breach_stays_until_it_is_in_the_audit_log_also_for_the_next_leader() {
        let mut board = Board::default();
        board.take(&all_passed(), at(1), HOLD);
        board.take(&[(Probe::Api, Outcome::breached(&["a door is open".into()]))], at(10), HOLD);
        let mut organization = acme();
        organization.status = Some(agentapi_crds::organization::OrganizationStatus {
            isolation: Some(board.shown()),
            ..agentapi_crds::organization::OrganizationStatus::default()
        });
        let mut next = Board::remembered(&organization);
        assert_eq!(next.owed, [(Probe::Api, "a door is open".to_owned())]);
        next.take(&all_passed(), at(1000), HOLD);
        assert_eq!(next.saying().status, Some(false), "it is gone, and in no log");
        assert_eq!(next.shown(), board.shown());
        next.owed.clear();
        organization.status = Some(agentapi_crds::organization::OrganizationStatus {
            isolation: Some(next.shown()),
            ..agentapi_crds::organization::OrganizationStatus::default()
        });
        assert!(Board::remembered(&organization).owed.is_empty(), "a row for each restart");
        next.take(&all_passed(), at(1001), HOLD);
        assert_eq!(next.saying().status, Some(true));
    }
}
