//! When what is tried: each Organization every period, a probe pod every longer period, a few at the same time.
use super::{Outcome, Probe, access, api, board::settle, database, database::Fences, fences, pod, ranges, token::Mint};
use crate::{
    context::Context,
    controllers::organization::{build, dereference, validate::validate},
    ticks,
};
use agentapi_crds::{Organization, Workspace, conditions::DATABASE_READY, names};
use futures::FutureExt;
use kube::{ResourceExt, runtime::reflector::ObjectRef};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::Semaphore, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

/// Organizations that are probed at the same time.
const AT_ONCE: usize = 4;
/// Nothing that is tried takes longer. Waiting for one of the places is not counted.
const LIMIT: Duration = Duration::from_secs(120);
/// What is said of a probe that did.
const TOO_LONG: &str = "it took too long";
/// How often we look for what is due.
const TICK: Duration = Duration::from_secs(1);

/// When something is due again.
#[derive(Default)]
struct Due(HashMap<String, Instant>);

impl Due {
    /// Is it? Then it is next in a period. A new one comes at once.
    fn is(&mut self, key: &str, now: Instant, period: Duration) -> bool {
        match self.0.get(key) {
            Some(next) if *next > now => false,
            _ => {
                self.0.insert(key.to_owned(), now + period);
                true
            }
        }
    }
}

/// Probe again and again until `stop`.
pub async fn watch(context: Arc<Context>, stop: CancellationToken) {
    let client = match api::client() {
        Ok(client) => client,
        Err(error) => {
            tracing::error!(%error, "the isolation probes can't have an HTTP client");
            return;
        }
    };
    let period = Duration::from_secs(u64::from(context.config.isolation_period_seconds));
    let pod_period = Duration::from_secs(u64::from(context.config.isolation_pod_period_seconds));
    let (mut rounds, mut pods, mut shared) = (Due::default(), Due::default(), Due::default());
    let mut running: JoinSet<String> = JoinSet::new();
    let mut busy: HashSet<String> = HashSet::new();
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut turn = 0_usize;
    let mut ticks = ticks::every(TICK);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        while let Some(ended) = running.try_join_next() {
            match ended {
                Ok(key) => drop(busy.remove(&key)),
                Err(error) => {
                    tracing::error!(%error, "a round of isolation probes ended badly");
                    busy.clear();
                }
            }
        }
        let now = Instant::now();
        let organizations = context.stores.organizations.state();
        context.isolation.retain(&organizations.iter().filter_map(|organization| organization.uid()).collect());
        context.metrics.keep_isolation(&organizations.iter().map(|organization| organization.name_any()).collect());
        if !busy.contains("shared") && shared.is("shared", now, period) {
            busy.insert("shared".to_owned());
            let context = context.clone();
            running.spawn(async move {
                shared_round(&context).await;
                "shared".to_owned()
            });
        }
        for organization in organizations.into_iter().filter(|organization| fences::is_in_place(organization)) {
            let (name, reference) = (organization.name_any(), ObjectRef::from_obj(&*organization));
            let (round, pod) = (format!("round {name}"), format!("pod {name}"));
            if !busy.contains(&round) && rounds.is(&round, now, period) {
                busy.insert(round.clone());
                let (context, client, places) = (context.clone(), client.clone(), places.clone());
                let reference = reference.clone();
                running.spawn(async move {
                    let _place = places.acquire_owned().await;
                    if let Some(organization) = as_it_is_now(&context, &reference) {
                        round_of(&context, &client, &organization).await;
                    }
                    round
                });
            }
            if !busy.contains(&pod) && pods.is(&pod, now, pod_period) {
                busy.insert(pod.clone());
                turn = turn.wrapping_add(1);
                let (context, places) = (context.clone(), places.clone());
                running.spawn(async move {
                    let _place = places.acquire_owned().await;
                    if let Some(organization) = as_it_is_now(&context, &reference) {
                        let workspace = workspace_of(&context, &name, turn);
                        let probe = Box::pin(pod::probe(&context, &name, workspace.as_deref()));
                        let probe = probe.map(|outcome| vec![(Probe::SessionNetwork, outcome)]);
                        let found = limited(LIMIT, &[Probe::SessionNetwork], probe).await;
                        settle(&context, &organization, &found).await;
                    }
                    pod
                });
            }
        }
    }
}

/// Its turn may have come long after it was due: what it was then is nothing to compare with.
fn as_it_is_now(context: &Context, organization: &ObjectRef<Organization>) -> Option<Arc<Organization>> {
    context.stores.organizations.get(organization).filter(|organization| fences::is_in_place(organization))
}

/// What these probes found, given up after a while: then nobody knows.
async fn limited(
    limit: Duration,
    probes: &[Probe],
    work: impl Future<Output = Vec<(Probe, Outcome)>>,
) -> Vec<(Probe, Outcome)> {
    let found = tokio::time::timeout(limit, work).await;
    found.unwrap_or_else(|_| probes.iter().map(|probe| (*probe, Outcome::unknown(TOO_LONG))).collect())
}

/// One Workspace after the other, so that the policy of each is tried.
fn workspace_of(context: &Context, organization: &str, turn: usize) -> Option<Arc<Workspace>> {
    let mut own = context.stores.workspaces.state_filter(|workspace| {
        workspace.spec.organization_ref.name == organization
            && workspace.status.as_ref().is_some_and(|status| status.workspace_id.is_some())
    });
    own.sort_by_key(|workspace| workspace.name_any());
    (!own.is_empty()).then(|| own.swap_remove(turn % own.len()))
}

/// What all Organizations share: the fences of the database, and the ranges of the cluster.
async fn shared_round(context: &Context) {
    if tokio::time::timeout(LIMIT, ranges::refresh(context)).await.is_err() {
        tracing::warn!("reading the ranges of the cluster took too long");
    }
    let fences = tokio::time::timeout(LIMIT, database::fences(context)).await;
    let fences = fences.unwrap_or_else(|_| Fences { outcome: Outcome::unknown(TOO_LONG), drifted: false });
    // Told before it is repaired, or nobody would ever know. An API server that says nothing does not keep it open.
    let telling = async {
        for organization in context.stores.organizations.state() {
            if fences::is_in_place(&organization) {
                settle(context, &organization, &[(Probe::PostgresFences, fences.outcome.clone())]).await;
            }
        }
    };
    if tokio::time::timeout(LIMIT, telling).await.is_err() {
        tracing::warn!("telling what became of the fences of the database took too long");
    }
    if !fences.drifted {
        return;
    }
    match database::restore(&context.database).await {
        Ok(done) => tracing::warn!(?done, "the fences of the database were put back"),
        Err(error) => tracing::error!(%error, "the fences of the database can't be put back"),
    }
    context.metrics.changed_database("fences");
}

/// Everything but the pod, for one Organization.
async fn round_of(context: &Context, client: &reqwest::Client, organization: &Organization) {
    let Ok(tenant) = validate(organization) else { return };
    let (foundation, contents) = (
        build::foundation(&tenant, &context.config),
        build::contents(&tenant, &organization.spec.quota, &context.config),
    );
    let inspection = tokio::time::timeout(LIMIT, fences::inspect(context, organization, &foundation, &contents));
    let inspection = inspection.await.map_err(|_| TOO_LONG.to_owned());
    match inspection.and_then(|inspection| inspection.map_err(|error| error.to_string())) {
        Ok(inspection) => {
            settle(context, organization, &inspection.outcomes()).await;
            if tokio::time::timeout(LIMIT, fences::remove_foreign(context, &inspection)).await.is_err() {
                tracing::warn!(organization = %tenant.slug, "taking away what is foreign took too long");
            }
            if inspection.is_breached() {
                let _ = context.triggers.organizations.unbounded_send(ObjectRef::from_obj(organization));
            }
        }
        Err(error) => {
            let unknown = Outcome::unknown(error);
            let probes = [Probe::NetworkPolicies, Probe::RoleBindings, Probe::PodSecurity];
            settle(context, organization, &probes.map(|probe| (probe, unknown.clone()))).await;
        }
    }
    let probes = [Probe::ServiceAccounts, Probe::PostgresLogin, Probe::PostgresRole, Probe::Api];
    let found = limited(LIMIT, &probes, Box::pin(tries(context, client, organization, &tenant.slug))).await;
    settle(context, organization, &found).await;
}

/// What is tried with the means of one tenant.
async fn tries(
    context: &Context,
    client: &reqwest::Client,
    organization: &Organization,
    slug: &str,
) -> Vec<(Probe, Outcome)> {
    let namespace = names::tenant_namespace(slug);
    let other = context.stores.organizations.state().iter().map(|other| other.name_any()).find(|name| name != slug);
    let other = other.map(|name| names::tenant_namespace(&name));
    let mut found = vec![(Probe::ServiceAccounts, access::probe(context, &namespace, other.as_deref()).await)];
    if is_in_postgres(organization) {
        let login = match dereference::secrets(context, &namespace).await {
            Ok(live) => {
                let password = live.credentials.map(|credentials| credentials.password);
                database::login(context, slug, password).await
            }
            Err(error) => Outcome::unknown(error.to_string()),
        };
        found.push((Probe::PostgresLogin, login));
        match Mint::open(context).await {
            Ok(Some(mint)) => {
                found.push((Probe::Api, api::probe(context, client, organization, &mint).await));
                found.push((Probe::PostgresRole, api::role(context, client, slug, &mint).await));
            }
            Ok(None) => found.extend(without_tokens("the key of session tokens can't be used")),
            Err(error) => found.extend(without_tokens(&error.to_string())),
        }
    } else {
        let unknown = Outcome::unknown("the Organization is not in place in Postgres yet");
        found.extend([Probe::PostgresLogin, Probe::PostgresRole, Probe::Api].map(|probe| (probe, unknown.clone())));
    }
    found
}

fn without_tokens(why: &str) -> [(Probe, Outcome); 2] {
    [Probe::Api, Probe::PostgresRole].map(|probe| (probe, Outcome::unknown(why)))
}

fn is_in_postgres(organization: &Organization) -> bool {
    let mut conditions = organization.status.iter().flat_map(|status| &status.conditions);
    conditions.any(|condition| condition.type_ == DATABASE_READY && condition.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;
    use agentapi_crds::isolation::ProbeResult;

    #[test]
    fn a_new_organization_is_probed_at_once_and_then_every_period() {
        let (mut due, now, period) = (Due::default(), Instant::now(), Duration::from_secs(10));
        assert!(due.is("acme", now, period));
        assert!(!due.is("acme", now + Duration::from_secs(9), period));
        assert!(due.is("globex", now, period));
        assert!(due.is("acme", now + period, period));
    }

    #[tokio::test]
    async fn what_took_too_long_is_not_known() {
        let found = limited(Duration::ZERO, &[Probe::Api, Probe::PostgresRole], std::future::pending()).await;
        let found: Vec<_> = found.into_iter().map(|(probe, outcome)| (probe, outcome.result)).collect();
        assert_eq!(found, [(Probe::Api, ProbeResult::Unknown), (Probe::PostgresRole, ProbeResult::Unknown)]);
        let passed = vec![(Probe::Api, Outcome::passed("nothing came through"))];
        assert_eq!(limited(LIMIT, &[Probe::Api], std::future::ready(passed.clone())).await, passed);
    }
}
