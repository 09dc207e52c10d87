//! Prometheus metrics of the operator. A writes counter makes "nothing is written at steady state" observable.
use agentapi_crds::isolation::ProbeResult;
use prometheus::core::Collector;
use prometheus::{
    Encoder, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};
use std::{
    collections::{BTreeSet, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

/// All metrics, with their registry.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    /// Writes to the Kubernetes API, by kind and verb.
    pub writes: IntCounterVec,
    /// Changes made in Postgres, by what was changed.
    pub database_writes: IntCounterVec,
    /// Reconciles, by kind and result.
    pub reconciles: IntCounterVec,
    reconcile_seconds: HistogramVec,
    /// 1 while this replica leads.
    pub leader: IntGauge,
    key_rotation: IntGaugeVec,
    isolation_result: IntGaugeVec,
    isolation_time: IntGaugeVec,
    isolation_breaches: IntCounterVec,
    /// Organization and probe that have a line in the three above.
    isolation_lines: Arc<Mutex<BTreeSet<(String, &'static str)>>>,
    quota_used: GaugeVec,
    quota_limit: GaugeVec,
}

impl Metrics {
    /// Fresh metrics in a registry of their own.
    pub fn new() -> prometheus::Result<Arc<Self>> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let counter = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let writes = counter("agentapi_operator_writes_total", "Writes to the Kubernetes API.", &["kind", "verb"])?;
        let database_writes =
            counter("agentapi_operator_database_writes_total", "Changes made in Postgres.", &["what"])?;
        let reconciles = counter("agentapi_operator_reconciles_total", "Reconciles by result.", &["kind", "result"])?;
        let reconcile_seconds = HistogramVec::new(
            HistogramOpts::new("agentapi_operator_reconcile_seconds", "Duration of a reconcile."),
            &["kind"],
        )?;
        registry.register(Box::new(reconcile_seconds.clone()))?;
        let leader = IntGauge::new("agentapi_operator_leader", "1 while this replica leads.")?;
        registry.register(Box::new(leader.clone()))?;
        let gauge = |name: &str, help: &str, labels: &[&str]| {
            let gauge = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let key_rotation = gauge(
            "agentapi_operator_key_rotation_waits_for",
            "Pods or data keys that a rotation under way waits for; -1 while none is under way.",
            &["key"],
        )?;
        let isolation_result = gauge(
            "agentapi_operator_isolation_result",
            "Result of an isolation probe: 1 for the present one.",
            &["organization", "probe", "result"],
        )?;
        let isolation_time = gauge(
            "agentapi_operator_isolation_last_probe_timestamp_seconds",
            "When an isolation probe was tried last.",
            &["organization", "probe"],
        )?;
        let isolation_breaches = counter(
            "agentapi_operator_isolation_breaches_total",
            "Breaches of the isolation that were found, also those that were repaired at once.",
            &["organization", "probe"],
        )?;
        let quota = |name: &str, help: &str| {
            let gauge = GaugeVec::new(Opts::new(name, help), &["organization", "resource"])?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let quota_used = quota("agentapi_quota_used", "What an organization uses: a number, cores or bytes.")?;
        let quota_limit = quota("agentapi_quota_limit", "What an organization may use: a number, cores or bytes.")?;
        Ok(Arc::new(Self {
            registry,
            writes,
            database_writes,
            reconciles,
            reconcile_seconds,
            leader,
            key_rotation,
            isolation_result,
            isolation_time,
            isolation_breaches,
            isolation_lines: Arc::default(),
            quota_used,
            quota_limit,
        }))
    }

    /// One write to the Kubernetes API.
    pub fn wrote(&self, kind: &str, verb: &str) {
        self.writes.with_label_values(&[kind, verb]).inc();
    }

    /// One change made in Postgres.
    pub fn changed_database(&self, what: &str) {
        self.database_writes.with_label_values(&[what]).inc();
    }

    /// The histogram of reconciles of `kind`.
    pub fn reconcile_seconds(&self, kind: &str) -> Histogram {
        self.reconcile_seconds.with_label_values(&[kind])
    }

    /// How much a rotation of `key` waits for; `None` when none is under way.
    pub fn key_rotation(&self, key: &str, waits_for: Option<usize>) {
        let waits_for = waits_for.map_or(-1, |count| i64::try_from(count).unwrap_or(i64::MAX));
        self.key_rotation.with_label_values(&[key]).set(waits_for);
    }

    /// An isolation probe was tried.
    pub fn probed(&self, organization: &str, probe: &'static str, second: i64) {
        self.isolation_time.with_label_values(&[organization, probe]).set(second);
        // A counter that appears with its first breach has no increase that an alert could see.
        self.isolation_breaches.with_label_values(&[organization, probe]);
        let mut lines = self.isolation_lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.insert((organization.to_owned(), probe));
    }

    /// What an isolation probe says now.
    pub fn isolation(&self, organization: &str, probe: &str, result: ProbeResult) {
        for each in [ProbeResult::Passed, ProbeResult::Breached, ProbeResult::Unknown] {
            let line = self.isolation_result.with_label_values(&[organization, probe, each.as_str()]);
            line.set(i64::from(each == result));
        }
    }

    /// One breach.
    pub fn isolation_breached(&self, organization: &str, probe: &str) {
        self.isolation_breaches.with_label_values(&[organization, probe]).inc();
    }

    /// Drop the lines of Organizations that are gone.
    pub fn keep_isolation(&self, organizations: &HashSet<String>) {
        let mut lines = self.isolation_lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.retain(|(organization, probe)| {
            let stays = organizations.contains(organization);
            if !stays {
                let labels = [organization.as_str(), probe];
                // An error means that there is no such line.
                let _ = (
                    self.isolation_time.remove_label_values(&labels),
                    self.isolation_breaches.remove_label_values(&labels),
                );
                for result in [ProbeResult::Passed, ProbeResult::Breached, ProbeResult::Unknown] {
                    let _ = self.isolation_result.remove_label_values(&[organization.as_str(), probe, result.as_str()]);
                }
            }
            stays
        });
    }

    /// What an organization uses, and may use.
    pub fn quota(&self, organization: &str, resource: &str, used: f64, limit: f64) {
        self.quota_used.with_label_values(&[organization, resource]).set(used);
        self.quota_limit.with_label_values(&[organization, resource]).set(limit);
    }

    /// Forgets what organizations used that are gone.
    pub fn keep_quotas(&self, lives: impl Fn(&str) -> bool) {
        for gauge in [&self.quota_used, &self.quota_limit] {
            for metric in gauge.collect().iter().flat_map(|family| family.get_metric().to_vec()) {
                let label = |name: &str| {
                    let found = metric.get_label().iter().find(|label| label.name() == name);
                    found.map(|label| label.value().to_owned()).unwrap_or_default()
                };
                let (organization, resource) = (label("organization"), label("resource"));
                if !lives(&organization) {
                    // Only this loop removes series.
                    let _ = gauge.remove_label_values(&[organization.as_str(), resource.as_str()]);
                }
            }
        }
    }

    /// The text that Prometheus scrapes.
    pub fn render(&self) -> prometheus::Result<Vec<u8>> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}
