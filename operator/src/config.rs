//! Settings of `agentapi-operator run`: flags, each with an environment variable that the chart sets.
use agentapi_crds::names;
use secrecy::SecretString;
use std::{net::SocketAddr, time::Duration};

/// Settings of the operator.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// Connection URL of the role `agentapi_operator`.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: SecretString,
    /// Namespace that the operator and the runtime run in.
    #[arg(long, env = "POD_NAMESPACE", default_value = names::SYSTEM_NAMESPACE)]
    pub system_namespace: String,
    /// Name of this replica, its identity in the leader election. Default: random.
    #[arg(long, env = "POD_NAME")]
    pub pod_name: Option<String>,
    /// `ServiceAccount` that this operator runs as.
    #[arg(long, env = "OPERATOR_SERVICE_ACCOUNT", default_value = names::OPERATOR)]
    pub operator_service_account: String,
    /// `ServiceAccount` of the runtime.
    #[arg(long, env = "RUNTIME_SERVICE_ACCOUNT", default_value = names::RUNTIME)]
    pub runtime_service_account: String,
    /// Base URL at which session pods reach the runtime's internal API. Default: the Service in the system namespace.
    #[arg(long, env = "RUNTIME_INTERNAL_URL")]
    pub runtime_internal_url: Option<String>,
    /// Base URL of the runtime's public API, for the isolation probes. Default: the Service in the system namespace.
    #[arg(long, env = "RUNTIME_URL")]
    pub runtime_url: Option<String>,
    /// Seconds between two rounds of isolation probes.
    #[arg(long, env = "ISOLATION_PERIOD_SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(5..=3600))]
    pub isolation_period_seconds: u32,
    /// Seconds between two probe pods of an Organization.
    #[arg(long, env = "ISOLATION_POD_PERIOD_SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u32).range(10..=86400))]
    pub isolation_pod_period_seconds: u32,
    /// Image with `agentapi-runtime` in it, of probe pods and of the init container of stdio MCP servers. Without it,
    /// neither runs.
    #[arg(long, env = "PROBE_IMAGE")]
    pub probe_image: Option<String>,
    /// Ranges of pods, Services and nodes, which no Workspace may open; added to what the cluster tells about itself.
    #[arg(long, env = "CLUSTER_RANGES", value_delimiter = ',')]
    pub cluster_ranges: Vec<String>,
    /// Namespace whose pods answer DNS.
    #[arg(long, env = "DNS_NAMESPACE", default_value = "kube-system")]
    pub dns_namespace: String,
    /// `host:port` of Postgres as tenants reach it. Default: that of the database URL.
    #[arg(long, env = "TENANT_DATABASE_HOST")]
    pub tenant_database_host: Option<String>,
    /// Age in days at which the password of a read-only role is rotated.
    #[arg(long, env = "CREDENTIAL_MAX_AGE_DAYS", default_value_t = 90)]
    pub credential_max_age_days: u32,
    /// Age in days at which the key that signs session tokens is rotated; 0: never by itself.
    #[arg(long, env = "SIGNING_KEY_MAX_AGE_DAYS", default_value_t = 90)]
    pub signing_key_max_age_days: u32,
    /// Seconds after which every replica of the runtime has what changed in a mounted Secret; the kubelet needs up to 90.
    #[arg(long, env = "KEY_SETTLE_SECONDS", default_value_t = 120)]
    pub key_settle_seconds: u32,
    /// Seconds after which a deletion no longer waits for Postgres; what is left there goes when it is back.
    #[arg(long, env = "DELETION_DEADLINE_SECONDS", default_value_t = 600)]
    pub deletion_deadline_seconds: u32,
    /// Seconds between two signed checkpoints of an audit log that goes on; a silent one needs none.
    #[arg(long, env = "AUDIT_CHECKPOINT_SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub audit_checkpoint_seconds: u32,
    /// Seconds between two looks of the runtime at an MCP server.
    #[arg(long, env = "MCP_PROBE_SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub mcp_probe_seconds: u32,
    /// Address of the probes and metrics.
    #[arg(long, env = "LISTEN", default_value = "0.0.0.0:8081")]
    pub listen: SocketAddr,
    /// Seconds that a leader may be silent before another replica takes over.
    #[arg(long, env = "LEASE_DURATION_SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u16).range(3..=300))]
    pub lease_duration_seconds: u16,
}

impl Config {
    /// Base URL at which session pods reach the runtime's internal API.
    pub fn runtime_internal_url(&self) -> String {
        self.runtime_internal_url.clone().unwrap_or_else(|| {
            format!(
                "http://{}.{}.svc.cluster.local:{}",
                names::RUNTIME,
                self.system_namespace,
                names::RUNTIME_INTERNAL_PORT
            )
        })
    }

    /// Base URL of the runtime's public API.
    pub fn runtime_url(&self) -> String {
        let service = || format!("http://{}.{}.svc.cluster.local", names::RUNTIME, self.system_namespace);
        self.runtime_url.clone().unwrap_or_else(service)
    }

    /// After this time, what the runtime observed of an MCP server says nothing any more: five looks were missed.
    pub fn mcp_stale_after(&self) -> Duration {
        Duration::from_secs(5 * u64::from(self.mcp_probe_seconds.max(60)))
    }

    /// How long a leader may be silent.
    pub fn lease_duration(&self) -> Duration {
        Duration::from_secs(u64::from(self.lease_duration_seconds))
    }
}
