//! Prometheus metrics, served on their own port. Labels are route templates, fixed words, names of organizations that
//! exist, and so many names of each one's connections: their number is bounded. May touch: memory.

mod connections;

use std::sync::Arc;
use std::time::Duration;

use crate::resilience::breaker::State;
use connections::Connections;
use prometheus::core::Collector;
use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

/// From a cache hit to a slow model.
const REQUEST_BUCKETS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// From a warm pod to an image pull.
const START_BUCKETS: &[f64] = &[0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 60.0, 120.0];

/// All metrics of the API. Clones share the same values.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

struct Inner {
    registry: Registry,
    requests: IntCounterVec,
    request_seconds: HistogramVec,
    in_flight: IntGauge,
    streams: IntGauge,
    jwks_fetches: IntCounterVec,
    pod_acquisitions: IntCounterVec,
    claim_seconds: HistogramVec,
    session_start_seconds: HistogramVec,
    sessions_ended: IntCounterVec,
    quota_refusals: IntCounterVec,
    throttled: IntCounterVec,
    prompt_findings: IntCounterVec,
    oauth_exchanges: IntCounterVec,
    reconciler_leader: IntGauge,
    sessions: IntGaugeVec,
    mcp_seconds: HistogramVec,
    connections: Connections,
}

impl Metrics {
    /// A registry of its own. Fails only on a programming error, such as two metrics of one name.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let metric = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let histogram = |name: &str, help: &str, labels: &[&str], buckets: &[f64]| {
            let metric = HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels)?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let gauge = |name: &str, help: &str| {
            let metric = IntGauge::new(name, help)?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let sessions = IntGaugeVec::new(
            Opts::new("agentapi_sessions", "Sessions that are not over, by phase; set by the leading replica."),
            &["phase"],
        )?;
        registry.register(Box::new(sessions.clone()))?;
        let inner = Inner {
            registry: registry.clone(),
            requests: counter(
                "agentapi_http_requests_total",
                "Requests by route template, method and status.",
                &["route", "method", "status"],
            )?,
            request_seconds: histogram(
                "agentapi_http_request_duration_seconds",
                "Time to the response's head by route template and method.",
                &["route", "method"],
                REQUEST_BUCKETS,
            )?,
            in_flight: gauge("agentapi_http_requests_in_flight", "Requests whose response has not begun.")?,
            streams: gauge("agentapi_event_streams", "Open event streams.")?,
            jwks_fetches: counter("agentapi_jwks_fetches_total", "Fetches of signing keys by result.", &["result"])?,
            pod_acquisitions: counter(
                "agentapi_pod_acquisitions_total",
                "Pods taken for sessions: warm, cold, woken, or conflict when another replica was faster.",
                &["kind"],
            )?,
            claim_seconds: histogram(
                "agentapi_pod_claim_duration_seconds",
                "Time from an accepted session to a pod that has taken it, by kind of pod.",
                &["kind"],
                START_BUCKETS,
            )?,
            session_start_seconds: histogram(
                "agentapi_session_start_duration_seconds",
                "Time from an accepted session to a ready agent, by kind of pod.",
                &["kind"],
                START_BUCKETS,
            )?,
            sessions_ended: counter(
                "agentapi_sessions_ended_total",
                "Sessions that are over, by reason.",
                &["reason"],
            )?,
            quota_refusals: counter("agentapi_quota_refusals_total", "Sessions refused, by quota.", &["quota"])?,
            throttled: counter(
                "agentapi_requests_throttled_total",
                "Requests answered with 429, by organization and limit: organization, user, concurrency, streams; of an address \
                 that does not authenticate, without an organization.",
                &["organization", "kind"],
            )?,
            prompt_findings: counter(
                "agentapi_prompt_findings_total",
                "Places in users' texts that look like prompt injection, by family and by what became of the text: \
                 detected, redacted, rejected.",
                &["family", "outcome"],
            )?,
            oauth_exchanges: counter(
                "agentapi_oauth_exchanges_total",
                "Exchanges with OAuth providers: of a code or a refresh token (grant), by result.",
                &["grant", "result"],
            )?,
            reconciler_leader: gauge("agentapi_session_reconciler_leader", "1 on the replica that runs the loop.")?,
            sessions,
            mcp_seconds: histogram(
                "agentapi_mcp_call_duration_seconds",
                "Time to the end of an MCP server's answer, by method.",
                &["method"],
                REQUEST_BUCKETS,
            )?,
            connections: Connections::new(&registry)?,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// An exchange with an OAuth provider: `code` or `refresh`; ok, denied, lost or error.
    pub fn oauth_exchange(&self, grant: &str, result: &str) {
        self.inner.oauth_exchanges.with_label_values(&[grant, result]).inc();
    }

    /// In the text format.
    pub fn render(&self) -> Result<Vec<u8>, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.inner.registry.gather(), &mut text)?;
        Ok(text)
    }

    /// One request was answered.
    pub fn request(&self, route: &str, method: &str, status: u16, took: Duration) {
        self.inner.requests.with_label_values(&[route, method, &status.to_string()]).inc();
        self.inner.request_seconds.with_label_values(&[route, method]).observe(took.as_secs_f64());
    }

    /// Counts a request as in flight while the value lives.
    pub fn in_flight(&self) -> Held {
        Held::new(&self.inner.in_flight)
    }

    /// Counts an event stream as open while the value lives.
    pub fn stream(&self) -> Held {
        Held::new(&self.inner.streams)
    }

    /// Signing keys were fetched, or not.
    pub fn jwks_fetch(&self, result: &str) {
        self.inner.jwks_fetches.with_label_values(&[result]).inc();
    }

    /// A pod was taken, or another replica was faster.
    pub fn pod_acquired(&self, kind: &str) {
        self.inner.pod_acquisitions.with_label_values(&[kind]).inc();
    }

    /// A pod has taken its session.
    pub fn pod_claimed(&self, kind: &str, took: Duration) {
        self.inner.claim_seconds.with_label_values(&[kind]).observe(took.as_secs_f64());
    }

    /// A session's agent is ready.
    pub fn session_started(&self, kind: &str, took: Duration) {
        self.inner.session_start_seconds.with_label_values(&[kind]).observe(took.as_secs_f64());
    }

    /// A session is over.
    pub fn session_over(&self, reason: &str) {
        self.inner.sessions_ended.with_label_values(&[reason]).inc();
    }

    /// A session was refused.
    pub fn quota_refused(&self, quota: &str) {
        self.inner.quota_refusals.with_label_values(&[quota]).inc();
    }

    /// A request was refused because of a rate.
    pub fn throttled(&self, organization: &str, kind: &str) {
        self.inner.throttled.with_label_values(&[organization, kind]).inc();
    }

    /// A user's text looks like prompt injection.
    pub fn prompt_finding(&self, family: &str, outcome: &str) {
        self.inner.prompt_findings.with_label_values(&[family, outcome]).inc();
    }

    /// An MCP server was asked, or was not because of `outcome`.
    pub fn mcp_call(&self, organization: &str, connection: &str, method: &str, outcome: &str, took: Duration) {
        self.inner.connections.call(organization, connection, outcome);
        self.inner.mcp_seconds.with_label_values(&[method]).observe(took.as_secs_f64());
    }

    /// What the breaker of a connection does.
    pub fn mcp_breaker(&self, organization: &str, connection: &str, state: State) {
        self.inner.connections.breaker(organization, connection, state);
    }

    /// Forgets what was told of organizations that are gone.
    pub fn keep_organizations(&self, lives: impl Fn(&str) -> bool) {
        self.inner.connections.keep_organizations(&lives);
        let throttled = &self.inner.throttled;
        for values in gone(throttled, &["organization", "kind"], &lives) {
            // Somebody else may have been faster.
            let _ = throttled.remove_label_values(&values);
        }
    }

    /// Whether this replica runs the session loop. Who does not has counted nothing.
    pub fn leading(&self, leading: bool) {
        self.inner.reconciler_leader.set(i64::from(leading));
        if !leading {
            self.inner.sessions.reset();
        }
    }

    /// Sessions per phase, as the leading replica counted them.
    pub fn sessions(&self, phase: &str, count: i64) {
        self.inner.sessions.with_label_values(&[phase]).set(count);
    }
}

/// The labels of all series of organizations that are gone; the organization is the first label.
fn gone(metric: &impl Collector, names: &[&str], lives: &impl Fn(&str) -> bool) -> Vec<Vec<String>> {
    let value = |metric: &prometheus::proto::Metric, name: &str| {
        let label = metric.get_label().iter().find(|label| label.name() == name);
        label.map(|label| label.value().to_owned()).unwrap_or_default()
    };
    let families = metric.collect();
    let series = families.iter().flat_map(prometheus::proto::MetricFamily::get_metric);
    let labels = series.map(|metric| names.iter().map(|name| value(metric, name)).collect::<Vec<_>>());
    labels.filter(|values| !values[0].is_empty() && !lives(&values[0])).collect()
}

/// Adds one to a gauge while it lives.
pub struct Held(IntGauge);

impl Held {
    fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn metrics_are_rendered() {
        let metrics = Metrics::new().unwrap();
        metrics.request("/v1/sessions", "POST", 201, Duration::from_millis(3));
        let held = metrics.stream();
        let text = String::from_utf8(metrics.render().unwrap()).unwrap();
        assert!(text.contains(r#"agentapi_http_requests_total{method="POST",route="/v1/sessions",status="201"} 1"#));
        assert!(text.contains("agentapi_event_streams 1"));
        metrics.throttled("acme", "user");
        metrics.throttled("globex", "user");
        metrics.throttled("", "address");
        metrics.keep_organizations(|name| name == "acme");
        let text = String::from_utf8(metrics.render().unwrap()).unwrap();
        assert!(text.contains(r#"organization="acme""#) && !text.contains("globex"), "{text}");
        assert!(text.contains(r#"{kind="address",organization=""} 1"#), "{text}");
        drop(held);
        assert!(String::from_utf8(metrics.render().unwrap()).unwrap().contains("agentapi_event_streams 0"));
    }
}
