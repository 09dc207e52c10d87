//! Leader election over one Lease. Every write is a replace that carries the `resourceVersion` it was
//! decided on, so that of two standbys that saw the same expired Lease one gets a conflict and stays
//! a standby. Expiry is measured on this replica's own monotonic clock from the moment it saw the
//! Lease change (as client-go does), so that clocks of nodes never have to agree.
use crate::error::{Error, Result};
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use std::time::Duration;
use tokio::time::Instant;

/// One replica's view of the Lease.
pub struct Elector {
    api: Api<Lease>,
    name: String,
    identity: String,
    duration: Duration,
    clock: fn() -> Timestamp,
    seen: Option<(String, Instant)>,
}

/// What one attempt came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// This replica leads until `duration` has passed without another success.
    Leading,
    /// Another replica leads.
    Standby,
}

impl Elector {
    /// An elector for Lease `name` in `namespace`.
    pub fn new(
        client: Client,
        namespace: &str,
        name: &str,
        identity: String,
        duration: Duration,
        clock: fn() -> Timestamp,
    ) -> Self {
        Self { api: Api::namespaced(client, namespace), name: name.to_owned(), identity, duration, clock, seen: None }
    }

    /// How often a leader renews and a standby looks.
    pub fn period(&self) -> Duration {
        self.duration / 4
    }

    /// Take or renew the Lease if that is allowed.
    pub async fn attempt(&mut self) -> Result<Outcome> {
        let Some(lease) = self.api.get_opt(&self.name).await.map_err(|e| self.error("get", e))? else {
            let lease = Lease {
                metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
                spec: Some(self.claim(None)),
            };
            return match self.api.create(&PostParams::default(), &lease).await {
                Ok(_) => Ok(Outcome::Leading),
                Err(error) if is_conflict(&error) => Ok(Outcome::Standby),
                Err(error) => Err(self.error("create", error)),
            };
        };
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let now = Instant::now();
        let since = match &self.seen {
            Some((seen, at)) if *seen == version => *at,
            _ => {
                self.seen = Some((version, now));
                now
            }
        };
        if !self.may_take(lease.spec.as_ref(), now.duration_since(since)) {
            return Ok(Outcome::Standby);
        }
        let mut next = lease;
        next.spec = Some(self.claim(next.spec.as_ref()));
        match self.api.replace(&self.name, &PostParams::default(), &next).await {
            Ok(_) => Ok(Outcome::Leading),
            Err(error) if is_conflict(&error) => Ok(Outcome::Standby),
            Err(error) => Err(self.error("replace", error)),
        }
    }

    /// Give the Lease back, so that a standby takes over without waiting.
    pub async fn release(&self) -> Result<()> {
        let lease = self.api.get(&self.name).await.map_err(|e| self.error("get", e))?;
        let held = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref());
        if held != Some(self.identity.as_str()) {
            return Ok(());
        }
        let mut free = lease;
        if let Some(spec) = &mut free.spec {
            spec.holder_identity = None;
        }
        match self.api.replace(&self.name, &PostParams::default(), &free).await {
            Ok(_) => Ok(()),
            Err(error) if is_conflict(&error) => Ok(()),
            Err(error) => Err(self.error("replace", error)),
        }
    }

    fn may_take(&self, spec: Option<&LeaseSpec>, silent: Duration) -> bool {
        let holder = spec.and_then(|spec| spec.holder_identity.as_deref()).filter(|holder| !holder.is_empty());
        match holder {
            None => true,
            Some(holder) if holder == self.identity => true,
            Some(_) => {
                let granted = spec
                    .and_then(|spec| spec.lease_duration_seconds)
                    .and_then(|seconds| u64::try_from(seconds).ok())
                    .map_or(self.duration, Duration::from_secs);
                silent > granted
            }
        }
    }

    fn claim(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = Some(MicroTime((self.clock)()));
        let ours = before.and_then(|spec| spec.holder_identity.as_deref()) == Some(self.identity.as_str());
        let transitions = before.and_then(|spec| spec.lease_transitions).unwrap_or(0);
        LeaseSpec {
            acquire_time: if ours { before.and_then(|spec| spec.acquire_time.clone()) } else { now.clone() },
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(self.duration.as_secs()).ok(),
            lease_transitions: Some(if ours { transitions } else { transitions.saturating_add(1) }),
            renew_time: now,
            ..LeaseSpec::default()
        }
    }

    fn error(&self, verb: &'static str, source: kube::Error) -> Error {
        Error::kube(verb, "Lease", self.name.clone(), source)
    }
}

fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}
