//! The loop that finishes what a replica left behind, ends idle and old sessions, notices lost pods, and sweeps pods
//! whose session is over. Every replica runs it; a Postgres advisory lock lets one of them work at a time.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use agentapi_crds::common::parse_duration;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::suspend::POD_DELETED;
use super::{ABANDONED, Lifecycle, LifecycleError};
use crate::audit::Origin;
use crate::pods::{Pod, PodState};
use crate::store::identity::{Draining, Organization};
use crate::store::leader::{Leadership, SESSION_RECONCILER};
use crate::store::sessions::{Phase, Session};
use crate::store::{StoreError, TenantScope};

/// A pod without a live session may be one whose row is not written yet; it gets this long.
const ORPHAN_ROUNDS: u32 = 2;
/// One tenant never takes longer: whoever leads must get to the others.
const TENANT_LIMIT: Duration = Duration::from_secs(300);

/// What the leader remembers from round to round; a new leader begins with nothing, which costs it one more write.
#[derive(Default)]
struct Memory {
    /// The organization at hand is being deleted.
    draining: Option<Draining>,
    /// Sessions that were told so.
    told: HashSet<Uuid>,
    orphans: HashMap<Uuid, u32>,
    /// All that are not over.
    sessions: HashSet<Uuid>,
    /// Postgres has answered in each round since.
    answers_since: Option<Instant>,
}

impl Memory {
    /// Whoever works on a session had the time to say so: while Postgres is away nobody can.
    fn has_heard_all(&self) -> bool {
        self.answers_since.is_some_and(|since| since.elapsed() > ABANDONED)
    }

    fn notice(&mut self, error: &LifecycleError) {
        if matches!(error, LifecycleError::Store(StoreError::Unavailable(_))) {
            self.answers_since = Some(Instant::now());
        }
    }
}

/// Runs until `stop`.
pub async fn run(lifecycle: Arc<Lifecycle>, every: Duration, stop: CancellationToken) {
    let mut leadership: Option<Leadership> = None;
    let mut memory = Memory::default();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(every) => {}
        }
        leadership = lead(&lifecycle, leadership, &mut memory).await;
        lifecycle.metrics.leading(leadership.is_some());
        if leadership.is_some()
            && let Err(error) = round(&lifecycle, &mut memory).await
        {
            memory.notice(&error);
            tracing::warn!(%error, "session reconciler: this round failed");
        }
    }
    if let Some(leadership) = leadership
        && let Err(error) = leadership.resign().await
    {
        tracing::debug!(%error, "the lock goes with its connection");
    }
}

async fn lead(lifecycle: &Lifecycle, current: Option<Leadership>, memory: &mut Memory) -> Option<Leadership> {
    if let Some(mut leadership) = current {
        match leadership.confirm().await {
            Ok(()) => return Some(leadership),
            Err(error) => tracing::warn!(%error, "lost the lead of the session reconciler"),
        }
    }
    match lifecycle.store.try_lead(SESSION_RECONCILER).await {
        Ok(leadership) => {
            if leadership.is_some() {
                memory.answers_since = Some(Instant::now());
                tracing::info!("leads the session reconciler");
            }
            leadership
        }
        Err(error) => {
            tracing::warn!(%error, "session reconciler: cannot ask for the lead");
            None
        }
    }
}

async fn round(lifecycle: &Arc<Lifecycle>, memory: &mut Memory) -> Result<(), LifecycleError> {
    let mut per_phase: BTreeMap<&str, i64> = Phase::UNFINISHED.map(|phase| (phase.as_str(), 0)).into();
    let mut draining = lifecycle.store.draining().await?;
    let mut next = Memory { answers_since: memory.answers_since, ..Memory::default() };
    for organization in lifecycle.store.organizations().await? {
        let organization = Arc::new(organization);
        next.draining = draining.remove(&organization.id);
        // One tenant's trouble must not keep the loop from the others.
        let seen = tokio::time::timeout(TENANT_LIMIT, tenant(lifecycle, &organization, memory, &mut next));
        match seen.await {
            Ok(Ok(sessions)) => {
                for session in sessions {
                    *per_phase.entry(session.phase.as_str()).or_default() += 1;
                }
            }
            Ok(Err(error)) => {
                next.notice(&error);
                // Also those of the organization at hand; the next round forgets the others.
                next.told.extend(&memory.told);
                tracing::warn!(organization = organization.slug, %error, "session reconciler");
            }
            Err(_) => {
                next.told.extend(&memory.told);
                tracing::warn!(organization = organization.slug, "session reconciler: it takes too long");
            }
        }
    }
    lifecycle.renewals.keep(&next.sessions);
    *memory = next;
    for (phase, count) in per_phase {
        lifecycle.metrics.sessions(phase, count);
    }
    Ok(())
}

async fn tenant(
    lifecycle: &Arc<Lifecycle>,
    organization: &Arc<Organization>,
    memory: &Memory,
    next: &mut Memory,
) -> Result<Vec<Session>, LifecycleError> {
    // Pods first: a session that is created in between is then in the list of rows, and not taken for an orphan.
    let pods = lifecycle.pods.of_sessions(&organization.slug).await?;
    let mut tx = lifecycle.store.tenant_tx(&TenantScope::system(organization)).await?;
    let sessions = tx.unfinished_sessions().await?;
    tx.commit().await?;
    let (mut by_session, mut newer) = (by_session(pods), None);
    let drained = next.draining.as_ref().is_some_and(|draining| draining.over);
    if let Some(draining) = next.draining.as_ref().filter(|draining| !draining.over) {
        next.told.extend(lifecycle.tell_of_drain(organization, draining, &sessions, &memory.told).await);
    }
    next.sessions.extend(sessions.iter().map(|session| session.id));
    for session in &sessions {
        let mut pod = by_session.remove(&session.id);
        if is_in_doubt(session, pod.as_ref()) {
            if newer.is_none() {
                newer = Some(self::by_session(lifecycle.pods.of_sessions(&organization.slug).await?));
            }
            pod = newer.as_mut().and_then(|pods| pods.remove(&session.id));
        }
        lifecycle.keep_keys(organization, session, pod.as_ref());
        // Nobody can wake it any more.
        let useless = next.draining.is_some() && session.phase == Phase::Suspended;
        let step = if useless || drained && session.phase != Phase::Terminating {
            let (scope, origin) = (TenantScope::system(organization), Origin::system("sessions"));
            lifecycle.end(&scope, organization, session.id, "organization-deleted", &origin).await.map(drop)
        } else {
            session_step(lifecycle, organization, session, pod, next.has_heard_all()).await
        };
        match step {
            Ok(()) => {}
            // Without Postgres nothing can be done for any of them, and what is known of them grows old.
            Err(error @ LifecycleError::Store(StoreError::Unavailable(_))) => return Err(error),
            // One that the cluster does not let go, say, must not keep the loop from the others.
            Err(error) => tracing::warn!(session = %session.id, %error, "session reconciler: it is tried again"),
        }
    }
    for (session, pod) in by_session {
        if pod.state == PodState::Terminating {
            continue;
        }
        let rounds = memory.orphans.get(&session).copied().unwrap_or(0) + 1;
        if rounds > ORPHAN_ROUNDS {
            tracing::warn!(%session, pod = pod.name, "a pod whose session seems to be over");
            if let Err(error) = lifecycle.let_go(organization, session).await {
                tracing::warn!(%session, %error, "session reconciler: the pod stays for now");
            }
        }
        next.orphans.insert(session, rounds);
    }
    if next.draining.is_none() {
        lifecycle.prepare_warm(organization).await?;
    }
    Ok(sessions)
}

fn by_session(pods: Vec<(Uuid, Pod)>) -> HashMap<Uuid, Pod> {
    let mut found: HashMap<Uuid, Pod> = HashMap::new();
    for (session, pod) in pods {
        // Where there are two, one is on its way out.
        let slot = found.entry(session).or_insert_with(|| pod.clone());
        if slot.state == PodState::Terminating {
            *slot = pod;
        }
    }
    found
}

/// The list of pods is older than the row: what came in between, such as the pod of a session that runs by now, is in the
/// next list.
fn is_in_doubt(session: &Session, pod: Option<&Pod>) -> bool {
    match session.phase {
        Phase::Running => lost(pod).is_some(),
        Phase::Starting => pod.is_none() && is_abandoned(session),
        Phase::Suspended => pod.is_some(),
        Phase::Pending | Phase::Suspending | Phase::Terminating | Phase::Ended | Phase::Failed => false,
    }
}

fn is_abandoned(session: &Session) -> bool {
    session.unchanged_seconds > ABANDONED.as_secs_f64()
}

async fn session_step(
    lifecycle: &Arc<Lifecycle>,
    organization: &Arc<Organization>,
    session: &Session,
    pod: Option<Pod>,
    heard_all: bool,
) -> Result<(), LifecycleError> {
    let abandoned = is_abandoned(session);
    match (session.phase, pod) {
        (Phase::Terminating, _) if abandoned => {
            lifecycle.end_step(organization, session.id).await?;
        }
        (Phase::Pending, _) if abandoned && heard_all => {
            let why = "the server that was starting this session stopped; create another session";
            lifecycle.fail(organization, session.id, "abandoned", why).await;
        }
        (Phase::Starting, Some(pod)) if abandoned => {
            tracing::info!(session = %session.id, "taking over the start of a session");
            lifecycle.resume(Arc::clone(organization), session, pod);
        }
        (Phase::Starting, None) if abandoned && heard_all && session.was_suspended => {
            let why = "the server that was waking the session stopped; the next message wakes it";
            lifecycle.asleep_again(organization, session.id, why).await;
        }
        (Phase::Starting, None) if abandoned && heard_all => {
            let why = "the session's pod is gone";
            lifecycle.fail(organization, session.id, "pod-lost", why).await;
        }
        (Phase::Suspending, _) if abandoned => lifecycle.finish_suspend(Arc::clone(organization), session.id),
        (Phase::Suspended, pod) => suspended_step(lifecycle, organization, session, pod).await?,
        (Phase::Running, pod) => running_step(lifecycle, organization, session, pod).await?,
        _ => {}
    }
    Ok(())
}

/// Why a running session with this pod has lost it.
fn lost(pod: Option<&Pod>) -> Option<String> {
    match pod.map(|pod| &pod.state) {
        None | Some(PodState::Terminating) => Some(POD_DELETED.to_owned()),
        Some(PodState::Failed(why)) => Some(why.clone()),
        // A container that restarts comes back with its state.
        Some(PodState::Running(_) | PodState::Waiting(_)) => None,
    }
}

async fn running_step(
    lifecycle: &Arc<Lifecycle>,
    organization: &Arc<Organization>,
    session: &Session,
    pod: Option<Pod>,
) -> Result<(), LifecycleError> {
    if let Some(why) = lost(pod.as_ref()) {
        if let Some(pod) = &pod
            && lifecycle.rescue(organization, session, pod, &why).await?
        {
            return Ok(());
        }
        lifecycle.fail(organization, session.id, "pod-lost", &why).await;
        return Ok(());
    }
    if let Some(ip) = pod.as_ref().and_then(Pod::ip).filter(|ip| session.pod_ip.as_deref() != Some(*ip)) {
        let mut tx = lifecycle.store.tenant_tx(&TenantScope::system(organization)).await?;
        tx.session_moved(session.id, ip).await?;
        tx.commit().await?;
    }
    if end_in_time(lifecycle, organization, session).await? {
        return Ok(());
    }
    let idle = session.suspend_after.as_deref().and_then(parse_duration);
    if let Some((idle, pod)) = idle.filter(|idle| session.idle_seconds > idle.as_secs_f64()).zip(pod) {
        lifecycle.suspend_if_idle(organization, session, pod, idle);
    }
    Ok(())
}

/// A suspended session ends when its time is over, as one that runs does.
async fn suspended_step(
    lifecycle: &Arc<Lifecycle>,
    organization: &Arc<Organization>,
    session: &Session,
    pod: Option<Pod>,
) -> Result<(), LifecycleError> {
    if session.workspace_deleted {
        return end(lifecycle, organization, session, "workspace-deleted").await;
    }
    if end_in_time(lifecycle, organization, session).await? {
        return Ok(());
    }
    if pod.is_none() {
        return Ok(());
    }
    // A replica that was slow made one after others had given the wake up. Through the phase, so that nobody wakes the
    // session while its pod goes.
    let mut tx = lifecycle.store.tenant_tx(&TenantScope::system(organization)).await?;
    let mine = tx.session_giving_up_pod(session.id).await?;
    tx.commit().await?;
    if mine {
        lifecycle.finish_suspend(Arc::clone(organization), session.id);
    }
    Ok(())
}

/// Ends a session whose time is over. False: it is not.
async fn end_in_time(
    lifecycle: &Arc<Lifecycle>,
    organization: &Arc<Organization>,
    session: &Session,
) -> Result<bool, LifecycleError> {
    let over = |limit: &Option<String>, seconds: f64| {
        limit.as_deref().and_then(parse_duration).filter(|limit| seconds > limit.as_secs_f64())
    };
    if over(&session.ttl, session.age_seconds).is_some() {
        end(lifecycle, organization, session, "ttl").await?;
        return Ok(true);
    }
    let Some(idle) = over(&session.idle_timeout, session.idle_seconds) else { return Ok(false) };
    lifecycle.end_idle(organization, session.id, idle).await?;
    Ok(true)
}

async fn end(
    lifecycle: &Arc<Lifecycle>,
    organization: &Arc<Organization>,
    session: &Session,
    reason: &'static str,
) -> Result<(), LifecycleError> {
    let (scope, origin) = (TenantScope::system(organization), Origin::system("sessions"));
    lifecycle.end(&scope, organization, session.id, reason, &origin).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_an_outage_everybody_gets_the_time_to_say_what_they_work_on() {
        let mut memory = Memory::default();
        assert!(!memory.has_heard_all(), "it never led");
        memory.answers_since = Instant::now().checked_sub(ABANDONED * 2);
        assert!(memory.has_heard_all());
        memory.notice(&LifecycleError::Store(StoreError::TenantBusy));
        assert!(memory.has_heard_all());
        memory.notice(&LifecycleError::Store(StoreError::Unavailable(sqlx::Error::PoolTimedOut)));
        assert!(!memory.has_heard_all());
    }
}
