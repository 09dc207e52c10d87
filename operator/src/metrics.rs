//! Prometheus metrics of the operator. A writes counter makes "nothing is written at steady state" observable.
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};
use std::sync::Arc;

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
        let key_rotation = IntGaugeVec::new(
            Opts::new(
                "agentapi_operator_key_rotation_waits_for",
                "Pods or data keys that a rotation under way waits for; -1 while none is under way.",
            ),
            &["key"],
        )?;
        registry.register(Box::new(key_rotation.clone()))?;
        Ok(Arc::new(Self { registry, writes, database_writes, reconciles, reconcile_seconds, leader, key_rotation }))
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

    /// The text that Prometheus scrapes.
    pub fn render(&self) -> prometheus::Result<Vec<u8>> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}
