//! How many requests an organization, each of its users, and whoever fails to authenticate may send. Limits of known
//! organizations and users are looked at only after the token was checked, so nobody can make this remember names that
//! they invent. All limits are a replica's share: what the Organization says, divided by the number of replicas.
//! May touch: memory, metrics.

use std::hash::Hash;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use governor::clock::{Clock, MonotonicClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use http::{HeaderValue, StatusCode};
use moka::sync::Cache;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::error::{Problem, ProblemSlug, TOO_MANY_REQUESTS};
use super::{App, AppState};
use crate::auth::Caller;
use crate::metrics::Metrics;
use crate::store::identity::Rate;

/// Limiters of organizations and users that are not heard of for so long are forgotten; they are full again by then.
const FORGET_AFTER: Duration = Duration::from_secs(900);
const FORGET_METRICS_EVERY: Duration = Duration::from_secs(60);
/// An agent uses a few tools a second at most; its image may belong to somebody who wants to fill the audit log.
const DECISIONS: Rate = Rate { per_second: 2.0, burst: 200 };
const MAX_ORGANIZATIONS: u64 = 10_000;
const MAX_USERS: u64 = 200_000;
const MAX_ADDRESSES: u64 = 50_000;

type Limiter = RateLimiter<NotKeyed, InMemoryState, MonotonicClock, StateInformationMiddleware>;

/// What holds for organizations that say nothing, and for those who are nobody.
#[derive(Debug, Clone, Copy)]
pub struct RateDefaults {
    /// Of an organization.
    pub organization: Rate,
    /// Of each of its users.
    pub user: Rate,
    /// Of failed authentications from one address.
    pub failures: Rate,
    /// Replicas that share the limits.
    pub replicas: NonZeroU32,
}

/// All limiters of this replica.
pub struct RateLimits {
    defaults: RateDefaults,
    organizations: Bucketed<Uuid>,
    users: Bucketed<(Uuid, Uuid)>,
    failures: Bucketed<IpAddr>,
    /// Of sessions that report to the audit log.
    decisions: Bucketed<Uuid>,
    /// Addresses that have failed too often, until when.
    blocked: Cache<IpAddr, std::time::Instant>,
}

/// Limiters by key; a key whose rate has changed begins with a new one.
struct Bucketed<K>(Cache<K, (Rate, Arc<Limiter>)>);

impl<K: Hash + Eq + Copy + Send + Sync + 'static> Bucketed<K> {
    fn new(most: u64) -> Self {
        Self(Cache::builder().max_capacity(most).time_to_idle(FORGET_AFTER).build())
    }

    fn take(&self, key: K, rate: Rate, name: &'static str) -> Result<Standing, Exceeded> {
        let limiter = match self.0.get(&key) {
            Some((known, limiter)) if known == rate => limiter,
            _ => {
                let limiter = Arc::new(RateLimiter::direct_with_clock(quota(rate), MonotonicClock).with_middleware());
                self.0.insert(key, (rate, Arc::clone(&limiter)));
                limiter
            }
        };
        match limiter.check() {
            Ok(snapshot) => Ok(Standing { name, rate, remaining: snapshot.remaining_burst_capacity() }),
            Err(until) => Err(Exceeded {
                name,
                rate,
                wait: until.wait_time_from(MonotonicClock.now()).max(Duration::from_millis(1)),
            }),
        }
    }
}

fn quota(rate: Rate) -> Quota {
    let burst = NonZeroU32::new(rate.burst).unwrap_or(NonZeroU32::MIN);
    // A rate below one per second is a period above one second.
    let period = Duration::try_from_secs_f64(1.0 / rate.per_second).unwrap_or(Duration::from_secs(1));
    Quota::with_period(period.max(Duration::from_nanos(1))).unwrap_or(Quota::per_second(burst)).allow_burst(burst)
}

/// How a limiter stands after a request.
#[derive(Debug, Clone, Copy)]
struct Standing {
    name: &'static str,
    rate: Rate,
    remaining: u32,
}

/// A limiter that lets no request in now.
#[derive(Debug)]
struct Exceeded {
    name: &'static str,
    rate: Rate,
    wait: Duration,
}

impl Exceeded {
    fn standing(&self) -> Standing {
        Standing { name: self.name, rate: self.rate, remaining: 0 }
    }

    fn problem(&self, detail: &str) -> Problem {
        let (title, seconds) = ("Rate limit exceeded", seconds_up(self.wait));
        Problem::new(StatusCode::TOO_MANY_REQUESTS, "rate-limit-exceeded", title, detail)
            .with("limit", self.name)
            .with("requestsPerSecond", self.rate.per_second)
            .with("burst", self.rate.burst)
            .retry_after(seconds)
    }
}

fn seconds_up(duration: Duration) -> u32 {
    let whole = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    u32::try_from(whole).unwrap_or(u32::MAX).max(1)
}

impl RateLimits {
    /// Nobody has sent anything yet.
    pub fn new(defaults: RateDefaults) -> Self {
        Self {
            defaults,
            organizations: Bucketed::new(MAX_ORGANIZATIONS),
            users: Bucketed::new(MAX_USERS),
            failures: Bucketed::new(MAX_ADDRESSES),
            decisions: Bucketed::new(MAX_USERS),
            blocked: Cache::builder().max_capacity(MAX_ADDRESSES).time_to_live(FORGET_AFTER).build(),
        }
    }

    /// Counts a request of a caller: against the user first, so that one user's flood leaves the organization's
    /// limit to the others.
    pub(super) fn admit(&self, caller: &Caller, slot: &Slot, metrics: &Metrics) -> Result<(), Problem> {
        let organization = &caller.organization;
        let (share, rates) = (self.defaults.replicas, &organization.rates);
        let user = rates.user.over(self.defaults.user).share(share);
        let all = rates.organization.over(self.defaults.organization).share(share);
        let key = (organization.id, caller.user_id);
        let user = self.users.take(key, user, "user");
        let both = user.and_then(|user| match self.organizations.take(organization.id, all, "organization") {
            Ok(organization) => Ok([user, organization]),
            Err(exceeded) => Err(exceeded),
        });
        match both {
            Ok(standings) => {
                slot.set(&organization.slug, &standings);
                Ok(())
            }
            Err(exceeded) => {
                slot.set(&organization.slug, &[exceeded.standing()]);
                metrics.throttled(&organization.slug, exceeded.name);
                Err(exceeded
                    .problem("You send more requests than you may; wait as Retry-After says, then go on slower."))
            }
        }
    }

    /// Refuses an address that has failed to authenticate too often a moment ago.
    pub(super) fn admit_stranger(&self, address: IpAddr, metrics: &Metrics) -> Result<(), Problem> {
        let wait = self.blocked.get(&address).map(|until| until.saturating_duration_since(std::time::Instant::now()));
        let Some(wait) = wait.filter(|wait| !wait.is_zero()) else {
            return Ok(());
        };
        metrics.throttled("", "address");
        let rate = self.defaults.failures.share(self.defaults.replicas);
        let detail = "Too many requests from your address did not authenticate; send a valid token, and wait.";
        Err(Exceeded { name: "address", rate, wait }.problem(detail))
    }

    /// Lets a session's pod have one more row in the audit log.
    pub(super) fn admit_decision(&self, session: Uuid) -> Result<(), Problem> {
        match self.decisions.take(session, DECISIONS, "session") {
            Ok(_) => Ok(()),
            Err(exceeded) => Err(exceeded.problem("The session's agent decides more often than is recorded; wait.")),
        }
    }

    /// Counts a request that did not authenticate.
    pub(super) fn failed(&self, address: IpAddr) {
        let rate = self.defaults.failures.share(self.defaults.replicas);
        if let Err(exceeded) = self.failures.take(address, rate, "address") {
            self.blocked.insert(address, std::time::Instant::now() + exceeded.wait);
        }
    }
}

/// Where a request's handler leaves what its response says about limits.
#[derive(Clone, Default)]
pub(super) struct Slot(Arc<Mutex<Option<Left>>>);

struct Left {
    organization: String,
    policy: String,
    standing: String,
}

impl Slot {
    fn set(&self, organization: &str, standings: &[Standing]) {
        let left = Left {
            organization: organization.to_owned(),
            policy: joined(standings, |it| {
                format!("\"{}\";q={};w={}", it.name, it.rate.burst, it.window(it.rate.burst))
            }),
            standing: joined(standings, |it| {
                format!(
                    "\"{}\";r={};t={}",
                    it.name,
                    it.remaining,
                    it.window(it.rate.burst.saturating_sub(it.remaining))
                )
            }),
        };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(left);
    }
}

fn joined(standings: &[Standing], one: impl Fn(&Standing) -> String) -> String {
    standings.iter().map(one).collect::<Vec<_>>().join(", ")
}

impl Standing {
    /// Seconds in which so many requests become free again.
    fn window(&self, requests: u32) -> u32 {
        seconds_up(Duration::try_from_secs_f64(f64::from(requests) / self.rate.per_second).unwrap_or(Duration::MAX))
    }
}

/// Says in each answer to a known caller how the limits stand: draft-ietf-httpapi-ratelimit-headers.
pub(super) async fn middleware(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let slot = Slot::default();
    request.extensions_mut().insert(slot.clone());
    let mut response = next.run(request).await;
    let left = slot.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(left) = left {
        say(&app, &left, &mut response);
    }
    response
}

fn say(app: &AppState, left: &Left, response: &mut Response) {
    for (name, value) in [("ratelimit-policy", &left.policy), ("ratelimit", &left.standing)] {
        if let Ok(value) = HeaderValue::from_str(value) {
            response.headers_mut().insert(name, value);
        }
    }
    if response.extensions().get::<ProblemSlug>().is_some_and(|slug| slug.0 == TOO_MANY_REQUESTS) {
        app.metrics.throttled(&left.organization, "concurrency");
    }
}

/// Lets metrics forget organizations that are gone, until `stop`.
pub async fn forget_organizations(app: App, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(FORGET_METRICS_EVERY)).await.is_some() {
        match app.store.organizations().await {
            Ok(living) => app.metrics.keep_organizations(|name| living.iter().any(|it| it.slug == name)),
            Err(error) => tracing::debug!(%error, "cannot see which organizations are gone"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use crate::auth::Role;
    use crate::store::identity::{Organization, Rates};

    fn rate(per_second: f64, burst: u32) -> Rate {
        Rate { per_second, burst }
    }

    fn limits(replicas: u32) -> RateLimits {
        RateLimits::new(RateDefaults {
            organization: rate(1.0, 8),
            user: rate(0.5, 4),
            failures: rate(0.5, 3),
            replicas: NonZeroU32::new(replicas).unwrap(),
        })
    }

    fn caller(user: u128, rates: Rates) -> Caller {
        let organization = Organization { rates, ..Organization::for_tests("acme") };
        Caller {
            organization: Arc::new(organization),
            user_id: Uuid::from_u128(user),
            subject: user.to_string(),
            role: Role::User,
        }
    }

    fn admitted(limits: &RateLimits, caller: &Caller, times: usize) -> usize {
        let metrics = Metrics::new().unwrap();
        (0..times).filter(|_| limits.admit(caller, &Slot::default(), &metrics).is_ok()).count()
    }

    #[test]
    fn a_user_has_a_burst_and_leaves_the_rest_to_the_others() {
        let limits = limits(1);
        assert_eq!(admitted(&limits, &caller(1, Rates::default()), 20), 4);
        assert_eq!(
            admitted(&limits, &caller(2, Rates::default()), 20),
            4,
            "what was refused to one costs the other nothing"
        );
        assert_eq!(admitted(&limits, &caller(3, Rates::default()), 20), 0, "the organization's limit");
    }

    #[test]
    fn replicas_share_and_none_has_less_than_one() {
        assert_eq!(admitted(&limits(2), &caller(1, Rates::default()), 20), 2);
        assert_eq!(admitted(&limits(100), &caller(1, Rates::default()), 20), 1);
    }

    #[test]
    fn a_changed_limit_holds_at_once() {
        let limits = limits(1);
        assert_eq!(admitted(&limits, &caller(1, Rates::default()), 20), 4);
        let mut rates = Rates::default();
        rates.user.burst = Some(6);
        assert_eq!(admitted(&limits, &caller(1, rates), 20), 4, "of the organization's eight, four are left");
        rates.organization.burst = Some(30);
        rates.user.burst = Some(12);
        assert_eq!(admitted(&limits, &caller(1, rates), 20), 12);
    }

    #[test]
    fn a_refusal_says_which_limit_and_for_how_long() {
        let (limits, metrics, slot) = (limits(1), Metrics::new().unwrap(), Slot::default());
        let caller = caller(1, Rates::default());
        assert_eq!(admitted(&limits, &caller, 4), 4);
        let problem = limits.admit(&caller, &slot, &metrics).unwrap_err();
        let text = format!("{problem:?}");
        assert!(text.contains("\"limit\": String(\"user\")") && text.contains("\"retry-after\": \"2\""), "{text}");
        let left = slot.0.lock().unwrap().take().unwrap();
        assert_eq!((left.policy.as_str(), left.standing.as_str()), ("\"user\";q=4;w=8", "\"user\";r=0;t=8"));
        let metrics = String::from_utf8(metrics.render().unwrap()).unwrap();
        assert!(
            metrics.contains("agentapi_requests_throttled_total{kind=\"user\",organization=\"acme\"} 1"),
            "{metrics}"
        );
    }

    #[test]
    fn an_address_that_fails_too_often_has_to_wait_and_others_have_not() {
        let (limits, metrics) = (limits(1), Metrics::new().unwrap());
        let (bad, good): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        for _ in 0..3 {
            assert!(limits.admit_stranger(bad, &metrics).is_ok());
            limits.failed(bad);
        }
        assert!(limits.admit_stranger(bad, &metrics).is_ok(), "the burst is used up and no more");
        limits.failed(bad);
        assert!(limits.admit_stranger(bad, &metrics).is_err());
        assert!(limits.admit_stranger(good, &metrics).is_ok());
    }
}
