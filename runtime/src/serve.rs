//! `agentapi-runtime serve`: puts the parts together, runs them, and takes them down in order.
//! May touch: everything; nobody but `main` and the tests imports it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::audit::proxies::Proxies;
use crate::auth::jwks::Jwks;
use crate::auth::session_token::{SessionTokenError, SessionTokens};
use crate::auth::{AuthError, Authenticator, SharedSecrets, read_shared_secrets};
use crate::config::ServeConfig;
use crate::crypto::{CryptoError, Sealer};
use crate::http::held::Held;
use crate::http::internal::InternalApi;
use crate::http::rate_limit::{self, RateLimits};
use crate::http::server::{self, Ending};
use crate::http::streams::Streams;
use crate::http::transcript_budget::TranscriptBudget;
use crate::http::{App, AppState, router};
use crate::lifecycle::{Lifecycle, reconciler};
use crate::mcp::cancellations::Cancellations;
use crate::mcp::client::McpClient;
use crate::mcp::credentials::{AnyCredentials, Credentials, NoOauth};
use crate::mcp::prober;
use crate::mcp::secrets::{KubernetesSecrets, TenantSecrets};
use crate::mcp::service::Mcp;
use crate::mcp::upstream::Upstream;
use crate::metrics::Metrics;
use crate::oauth::credentials::Grants;
use crate::oauth::{OAuth, OAuthConfig, upkeep};
use crate::outbound::{Outbound, Ranges};
use crate::pods::PodBackend;
use crate::pods::agent::Agents;
use crate::pods::kubernetes::KubernetesPods;
use crate::prompt::Prompts;
use crate::store::{Store, StoreError};

const POD_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const PROVIDER_TIMEOUT: Duration = Duration::from_secs(5);
const PROVIDER_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const POD_IDLE_CONNECTIONS: usize = 4;
/// Longer than any answer of the API server is silent: it ends a watch after 290 seconds. A request that its machine took
/// with it would never end otherwise, and neither would the loop that waits for it.
const API_SERVER_SILENCE: Duration = Duration::from_secs(300);

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A listener.
    #[error("cannot listen on {0}: {1}")]
    Listen(SocketAddr, std::io::Error),
    /// The database URL.
    #[error("DATABASE_URL: {0}")]
    Store(#[from] StoreError),
    /// The signing key.
    #[error(transparent)]
    Key(#[from] SessionTokenError),
    /// The shared secrets.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// An HTTP client.
    #[error("cannot set up an HTTP client: {0}")]
    Http(#[from] reqwest::Error),
    /// The master keys.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
    /// Metrics.
    #[error("cannot set up metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// The cluster's client.
    #[error("cannot set up the Kubernetes client: {0}; run in a pod with a ServiceAccount, or set KUBECONFIG")]
    Kubernetes(#[from] kube::Error),
}

/// A server whose listeners are open.
pub struct Server {
    app: App,
    public: TcpListener,
    internal: TcpListener,
    metrics: TcpListener,
    config: ServeConfig,
}

/// Addresses that a server listens on; of use where the configuration says port 0.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// Public API.
    pub public: SocketAddr,
    /// API for session pods.
    pub internal: SocketAddr,
    /// Metrics.
    pub metrics: SocketAddr,
}

async fn listen(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address).await.map_err(|error| ServeError::Listen(address, error))
}

/// Consents to MCP servers, if there are a master key to seal tokens with and an address to send users back to.
fn oauth(
    config: &ServeConfig,
    store: &Store,
    outbound: Outbound,
    secrets: Arc<dyn TenantSecrets>,
    metrics: &Metrics,
) -> Result<Option<Arc<OAuth>>, ServeError> {
    // A folder with a bad key is refused even where nothing would use it.
    let sealer = config.master_key_dir.as_deref().map(Sealer::from_folder).transpose()?;
    let (Some(sealer), Some(public_url)) = (sealer, config.public_url.clone()) else { return Ok(None) };
    let told = OAuthConfig { public_url, return_origins: config.oauth_return_origins.clone() };
    Ok(Some(Arc::new(OAuth::new(&told, store.clone(), sealer, outbound, secrets, metrics.clone()))))
}

impl Server {
    /// With pods in the cluster that this process runs in (or that KUBECONFIG names).
    pub async fn in_cluster(config: ServeConfig) -> Result<Self, ServeError> {
        let metrics = Metrics::new()?;
        let mut cluster = kube::Config::infer().await.map_err(kube::Error::InferConfig)?;
        cluster.read_timeout = Some(API_SERVER_SILENCE);
        cluster.reset_reader_on_write = true;
        let client = kube::Client::try_from(cluster)?;
        let secrets = Arc::new(KubernetesSecrets::new(client.clone()));
        let pods = Arc::new(KubernetesPods::new(client, metrics.clone()));
        Self::with_pods(config, pods, secrets, metrics).await
    }

    /// With pods and tenants' Secrets from somewhere else.
    pub async fn with_pods(
        config: ServeConfig,
        pods: Arc<dyn PodBackend>,
        secrets: Arc<dyn TenantSecrets>,
        metrics: Metrics,
    ) -> Result<Self, ServeError> {
        let store = Store::connect(&config.database_url, config.db_max_connections)?;
        let tokens = Arc::new(SessionTokens::from_file(&config.session_signing_key_file)?);
        let shared_secrets = match &config.hs256_secrets_file {
            Some(path) => read_shared_secrets(path)?,
            None => SharedSecrets::new(),
        };
        let no_redirects = || reqwest::Client::builder().redirect(reqwest::redirect::Policy::none());
        let provider_client =
            no_redirects().connect_timeout(PROVIDER_CONNECT_TIMEOUT).timeout(PROVIDER_TIMEOUT).build()?;
        // Pods are on the cluster's own network: no proxy, and no overall timeout, which would cut event streams.
        let pod_client = no_redirects()
            .no_proxy()
            .connect_timeout(POD_CONNECT_TIMEOUT)
            .pool_max_idle_per_host(POD_IDLE_CONNECTIONS)
            .pool_idle_timeout(Duration::from_secs(30))
            .build()?;
        let jwks = Jwks::new(provider_client, config.jwks_limits(), metrics.clone());
        let outbound = Outbound::new(Ranges::new(config.outbound_open_ranges.iter().copied()));
        let oauth = oauth(&config, &store, outbound.clone(), Arc::clone(&secrets), &metrics)?;
        let grants: Arc<dyn Credentials> = match &oauth {
            Some(oauth) => Arc::new(Grants(Arc::clone(oauth))),
            None => Arc::new(NoOauth),
        };
        let credentials = Arc::new(AnyCredentials::new(secrets, grants));
        let upstream = Upstream::new(outbound, pod_client.clone(), credentials);
        let mcp = Mcp::new(McpClient::new(upstream), store.clone(), metrics.clone(), config.cluster_domain.clone());
        let agents = Agents::new(pod_client, Arc::clone(&tokens));
        let prompts = Arc::new(Prompts::default());
        let lifecycle = Arc::new(Lifecycle::new(
            store.clone(),
            pods,
            agents.clone(),
            Arc::clone(&tokens),
            metrics.clone(),
            Arc::clone(&prompts),
            config.start_deadline(),
        ));
        let app = Arc::new(AppState {
            oauth,
            authenticator: Authenticator::new(store.clone(), jwks, shared_secrets),
            store,
            tokens,
            lifecycle,
            agents,
            mcp,
            prompts,
            rates: RateLimits::new(config.rate_defaults()),
            held: Held::default(),
            streams: Streams::new(config.user_event_streams, config.replicas),
            proxies: Proxies::new(config.trusted_proxies.clone()),
            internal: InternalApi {
                check_pod_address: config.check_pod_address,
                budget: TranscriptBudget::new(config.session_transcript_bytes, config.organization_transcript_bytes),
            },
            metrics,
            leaving: CancellationToken::new(),
            closing: CancellationToken::new(),
        });
        Ok(Self {
            app,
            public: listen(config.http_listen).await?,
            internal: listen(config.internal_listen).await?,
            metrics: listen(config.metrics_listen).await?,
            config,
        })
    }

    /// Where it listens.
    pub fn addresses(&self) -> std::io::Result<Addresses> {
        Ok(Addresses {
            public: self.public.local_addr()?,
            internal: self.internal.local_addr()?,
            metrics: self.metrics.local_addr()?,
        })
    }

    /// Serves until `stop`, then: fail the readiness probe, wait for the Service to notice, end event streams, take
    /// no new connections, let running requests and session starts finish within the grace period.
    pub async fn run(self, stop: CancellationToken) {
        let Self { app, public, internal, metrics, config } = self;
        let grace = Duration::from_secs(config.shutdown_grace_seconds);
        let idle = Duration::from_secs(config.http_idle_seconds.max(1));
        let servers = TaskTracker::new();
        let cancelled = Cancellations::begin(app.mcp.store()).await;
        for (listener, router) in [(public, router::public(&app)), (internal, router::internal(&app))] {
            let ending = Ending { leaving: app.leaving.clone(), stop: app.closing.clone(), grace };
            servers.spawn(server::serve(listener, router, idle, ending));
        }
        let last = CancellationToken::new();
        let ending = Ending { leaving: last.clone(), stop: last.clone(), grace: Duration::from_secs(1) };
        servers.spawn(server::serve(metrics, router::metrics(&app), idle, ending));
        servers.spawn(Arc::clone(&app.tokens).follow_files(app.closing.clone()));
        let every = Duration::from_secs(config.reconcile_seconds.max(1));
        servers.spawn(reconciler::run(Arc::clone(&app.lifecycle), every, app.leaving.clone()));
        if let Some(oauth) = app.oauth.clone() {
            let every = Duration::from_secs(config.oauth_upkeep_seconds.max(1));
            servers.spawn(upkeep::run(oauth, every, app.leaving.clone()));
        }
        servers.spawn(rate_limit::forget_organizations(App::clone(&app), app.leaving.clone()));
        let (mcp, closing) = (Arc::clone(&app.mcp), app.closing.clone());
        servers.spawn(async move { mcp.cancellations().run(mcp.store(), cancelled, closing).await });
        if config.mcp_probe_seconds > 0 {
            let every = Duration::from_secs(config.mcp_probe_seconds);
            servers.spawn(prober::run(Arc::clone(&app.mcp), every, app.leaving.clone()));
        }
        tracing::info!(public = %config.http_listen, internal = %config.internal_listen, "serving");

        stop.cancelled().await;
        tracing::info!("shutting down");
        app.leaving.cancel();
        tokio::time::sleep(Duration::from_secs(config.shutdown_delay_seconds)).await;
        app.closing.cancel();
        app.lifecycle.drain(grace).await;
        last.cancel();
        servers.close();
        servers.wait().await;
        app.store.close().await;
        tracing::info!("bye");
    }
}
