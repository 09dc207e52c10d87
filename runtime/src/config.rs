//! Settings of `agentapi-runtime serve`, from flags or the environment (Helm sets the environment).

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use secrecy::SecretString;
use url::Url;

use crate::audit::proxies::Cidr;
use crate::auth::jwks::JwksLimits;
use crate::http::rate_limit::RateDefaults;
use crate::store::identity::Rate;

/// What `serve` is told.
#[derive(Debug, Clone, Args)]
pub struct ServeConfig {
    /// Connection URL of the role `agentapi_runtime`.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: SecretString,
    /// PKCS#8 PEM file of the Ed25519 key that signs session tokens.
    #[arg(long, env = "AGENTAPI_SESSION_SIGNING_KEY_FILE")]
    pub session_signing_key_file: PathBuf,
    /// JSON file of issuer to shared secret, for providers that sign with HS256. Without it, HS256 is refused.
    #[arg(long, env = "AGENTAPI_HS256_SECRETS_FILE")]
    pub hs256_secrets_file: Option<PathBuf>,
    /// Folder with the master keys: Secret agentapi-master-key, mounted. Without it there is no OAuth.
    #[arg(long, env = "AGENTAPI_MASTER_KEY_DIR")]
    pub master_key_dir: Option<PathBuf>,
    /// The API as browsers reach it, such as https://agentapi.example.com. Without it there is no OAuth.
    #[arg(long, env = "AGENTAPI_PUBLIC_URL")]
    pub public_url: Option<Url>,
    /// Origins of pages that users may be sent back to after a consent, with commas between them.
    #[arg(long, env = "AGENTAPI_OAUTH_RETURN_ORIGINS", value_delimiter = ',')]
    pub oauth_return_origins: Vec<Url>,
    /// Seconds between two looks for tokens that an old data key has sealed.
    #[arg(long, env = "AGENTAPI_OAUTH_UPKEEP_SECONDS", default_value_t = 60)]
    pub oauth_upkeep_seconds: u64,
    /// Address of the public API.
    #[arg(long, env = "AGENTAPI_HTTP_LISTEN", default_value = "0.0.0.0:8080")]
    pub http_listen: SocketAddr,
    /// Address of the API for session pods.
    #[arg(long, env = "AGENTAPI_INTERNAL_LISTEN", default_value = "0.0.0.0:8090")]
    pub internal_listen: SocketAddr,
    /// Address of /metrics.
    #[arg(long, env = "AGENTAPI_METRICS_LISTEN", default_value = "0.0.0.0:9090")]
    pub metrics_listen: SocketAddr,
    /// Address ranges of proxies in front of the API, such as 10.0.0.0/8, with commas between them. Only their
    /// `X-Forwarded-For` says who the client is; without any, the peer is the client.
    #[arg(long, env = "AGENTAPI_TRUSTED_PROXIES", value_delimiter = ',')]
    pub trusted_proxies: Vec<Cidr>,
    /// Most connections to Postgres, besides one that hears of cancelled requests.
    #[arg(long, env = "AGENTAPI_DB_MAX_CONNECTIONS", default_value_t = 16)]
    pub db_max_connections: u32,
    /// Seconds after which signing keys are fetched again.
    #[arg(long, env = "AGENTAPI_JWKS_TTL_SECONDS", default_value_t = 300)]
    pub jwks_ttl_seconds: u64,
    /// Least seconds between two fetches from one provider.
    #[arg(long, env = "AGENTAPI_JWKS_MIN_REFRESH_SECONDS", default_value_t = 10)]
    pub jwks_min_refresh_seconds: u64,
    /// Seconds for which old keys are used while the provider is down.
    #[arg(long, env = "AGENTAPI_JWKS_MAX_STALE_SECONDS", default_value_t = 3600)]
    pub jwks_max_stale_seconds: u64,
    /// Seconds for which /ready fails before the listeners close, so that the Service stops sending requests here.
    #[arg(long, env = "AGENTAPI_SHUTDOWN_DELAY_SECONDS", default_value_t = 5)]
    pub shutdown_delay_seconds: u64,
    /// Seconds for which running requests may finish.
    #[arg(long, env = "AGENTAPI_SHUTDOWN_GRACE_SECONDS", default_value_t = 20)]
    pub shutdown_grace_seconds: u64,
    /// Seconds between two looks at unfinished sessions.
    #[arg(long, env = "AGENTAPI_RECONCILE_SECONDS", default_value_t = 5)]
    pub reconcile_seconds: u64,
    /// Requests per second of an organization that sets no limit of its own.
    #[arg(long, env = "AGENTAPI_ORGANIZATION_REQUESTS_PER_SECOND", default_value_t = 400)]
    pub organization_requests_per_second: u32,
    /// Requests of such an organization that are let in at once.
    #[arg(long, env = "AGENTAPI_ORGANIZATION_BURST", default_value_t = 800)]
    pub organization_burst: u32,
    /// Requests per second of each user, in an organization that sets no limit of its own.
    #[arg(long, env = "AGENTAPI_USER_REQUESTS_PER_SECOND", default_value_t = 200)]
    pub user_requests_per_second: u32,
    /// Requests of such a user that are let in at once.
    #[arg(long, env = "AGENTAPI_USER_BURST", default_value_t = 400)]
    pub user_burst: u32,
    /// Event streams that one user may have open at a time.
    #[arg(long, env = "AGENTAPI_USER_EVENT_STREAMS", default_value = "200")]
    pub user_event_streams: NonZeroU32,
    /// Requests per second from one address that may fail to authenticate.
    #[arg(long, env = "AGENTAPI_FAILED_AUTHENTICATIONS_PER_SECOND", default_value_t = 10)]
    pub failed_authentications_per_second: u32,
    /// Such requests that are answered with 401 at once; more are answered with 429.
    #[arg(long, env = "AGENTAPI_FAILED_AUTHENTICATIONS_BURST", default_value_t = 50)]
    pub failed_authentications_burst: u32,
    /// Replicas that share these limits: each lets in its part.
    #[arg(long, env = "AGENTAPI_REPLICAS", default_value = "1")]
    pub replicas: NonZeroU32,
    /// Seconds after which a connection without a request is closed.
    #[arg(long, env = "AGENTAPI_HTTP_IDLE_SECONDS", default_value_t = 75)]
    pub http_idle_seconds: u64,
    /// Whether a pod's transcript is taken only from the address that Kubernetes knows the pod by. Switch it off where
    /// pods reach the API through a proxy or address translation.
    #[arg(long, env = "AGENTAPI_CHECK_POD_ADDRESS", default_value_t = true, action = clap::ArgAction::Set)]
    pub check_pod_address: bool,
    /// Most bytes of text in one session's transcript.
    #[arg(long, env = "AGENTAPI_SESSION_TRANSCRIPT_BYTES", default_value_t = 64 << 20)]
    pub session_transcript_bytes: u64,
    /// Most bytes of text in all transcripts of an organization.
    #[arg(long, env = "AGENTAPI_ORGANIZATION_TRANSCRIPT_BYTES", default_value_t = 10 << 30)]
    pub organization_transcript_bytes: u64,
    /// Address ranges whose MCP servers and OAuth providers every tenant may name, with commas between them. Without any,
    /// only public addresses, and those that an Organization opens for itself.
    #[arg(long, env = "AGENTAPI_OUTBOUND_OPEN_RANGES", value_delimiter = ',')]
    pub outbound_open_ranges: Vec<Cidr>,
    /// Domain of the cluster's DNS names.
    #[arg(long, env = "AGENTAPI_CLUSTER_DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Seconds between two looks at an MCP server; 0: none is looked at.
    #[arg(long, env = "AGENTAPI_MCP_PROBE_SECONDS", default_value_t = 60)]
    pub mcp_probe_seconds: u64,
    /// Seconds within which a session must be running.
    #[arg(long, env = "AGENTAPI_START_DEADLINE_SECONDS", default_value_t = 120)]
    pub start_deadline_seconds: u64,
}

impl ServeConfig {
    /// How long signing keys live.
    pub fn jwks_limits(&self) -> JwksLimits {
        JwksLimits {
            ttl: Duration::from_secs(self.jwks_ttl_seconds),
            min_refresh: Duration::from_secs(self.jwks_min_refresh_seconds),
            max_stale: Duration::from_secs(self.jwks_max_stale_seconds),
        }
    }

    /// Limits of request rates where organizations set none.
    pub fn rate_defaults(&self) -> RateDefaults {
        let rate = |per_second: u32, burst| Rate { per_second: f64::from(per_second.max(1)), burst };
        RateDefaults {
            organization: rate(self.organization_requests_per_second, self.organization_burst),
            user: rate(self.user_requests_per_second, self.user_burst),
            failures: rate(self.failed_authentications_per_second, self.failed_authentications_burst),
            replicas: self.replicas,
        }
    }

    /// How long a session may take to start.
    pub fn start_deadline(&self) -> Duration {
        Duration::from_secs(self.start_deadline_seconds)
    }
}
