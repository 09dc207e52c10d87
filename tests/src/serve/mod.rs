//! The API with real parts and without a cluster: Postgres, an OIDC issuer, replicas of `agentapi-runtime serve`, and
//! session pods that are local processes of the real session host, each on a loopback address of its own.

pub mod agent;
pub mod idp;
pub mod pods;
pub mod policies;
pub mod secrets;
pub mod steps;
pub mod suspend;

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use agentapi_crds::names::SESSION_PORT;
use agentapi_runtime::auth::session_token::SessionTokens;
use agentapi_runtime::config::ServeConfig;
use agentapi_runtime::metrics::Metrics;
use agentapi_runtime::serve::{Addresses, Server};
use anyhow::{Context, Result, bail};
use base64::Engine;
use secrecy::SecretString;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::api::Api;
use crate::pg::{Database, MASTER_KEY, Organization};
use idp::{Idp, SigningKey};
use pods::ProcessPods;
use secrets::MemorySecrets;

/// Everything that the API needs, and replicas of it.
pub struct Platform {
    /// Its database.
    pub db: Database,
    /// The identity provider of its organizations.
    pub idp: Idp,
    /// Its session pods.
    pub pods: Arc<ProcessPods>,
    /// Secrets of its tenants.
    pub secrets: Arc<MemorySecrets>,
    /// The key that the identity provider signs with, unless a test wants another.
    pub key: SigningKey,
    /// The key that the runtime signs tokens to and from pods with.
    pub tokens: Arc<SessionTokens>,
    folder: TempDir,
    signing_key: PathBuf,
}

/// A running replica.
pub struct Replica {
    /// Where it listens.
    pub addresses: Addresses,
    stop: CancellationToken,
    running: JoinHandle<()>,
    /// Of its own, so that it can crash with all its background tasks.
    runtime: Option<Runtime>,
}

/// An organization with tokens for its people.
pub struct Tenant {
    /// Its rows.
    pub organization: Organization,
    /// Token of its admin.
    pub admin: String,
    /// Token of a user.
    pub alice: String,
    /// Token of another user.
    pub bob: String,
}

/// A PKCS#8 PEM file.
pub fn pem(der: &[u8]) -> String {
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n")
}

impl Platform {
    /// Nothing but the database and the identity provider runs yet. `session_pod` is the path of that binary.
    pub async fn start(session_pod: &str) -> Result<Self> {
        let db = Database::create().await?;
        let idp = Idp::start().await?;
        let key = idp.add_key(SigningKey::es256("first")?);
        let folder = tempfile::tempdir()?;
        let signing_key = folder.path().join("private.pem");
        let (private, public_x) = idp::ed25519()?;
        std::fs::write(&signing_key, pem(&private))?;
        let tokens = Arc::new(SessionTokens::from_pem(&pem(&private))?);
        let pods = Arc::new(ProcessPods::new(session_pod, &public_x)?);
        // The key that wraps the data keys of `Database::organization`.
        std::fs::create_dir(folder.path().join("master"))?;
        std::fs::write(folder.path().join("master/key"), MASTER_KEY)?;
        Ok(Self { db, idp, pods, secrets: Arc::default(), key, tokens, folder, signing_key })
    }

    /// A configuration whose listeners are on free loopback ports and whose clocks are quick.
    pub fn config(&self) -> ServeConfig {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        ServeConfig {
            database_url: SecretString::from(self.db.runtime_url()),
            session_signing_key_file: self.signing_key.clone(),
            hs256_secrets_file: None,
            http_listen: loopback,
            internal_listen: loopback,
            metrics_listen: loopback,
            trusted_proxies: Vec::new(),
            db_max_connections: 8,
            jwks_ttl_seconds: 300,
            jwks_min_refresh_seconds: 1,
            jwks_max_stale_seconds: 3600,
            shutdown_delay_seconds: 0,
            shutdown_grace_seconds: 5,
            reconcile_seconds: 1,
            // Out of the way of tests that ask often; those of the limits set lower ones.
            organization_requests_per_second: 2000,
            organization_burst: 4000,
            user_requests_per_second: 1000,
            user_burst: 2000,
            user_event_streams: NonZeroU32::MIN.saturating_add(199),
            failed_authentications_per_second: 1000,
            failed_authentications_burst: 2000,
            replicas: NonZeroU32::MIN,
            http_idle_seconds: 30,
            check_pod_address: true,
            session_transcript_bytes: 4 << 20,
            organization_transcript_bytes: 19 << 19,
            start_deadline_seconds: 120,
            outbound_open_ranges: Vec::new(),
            cluster_domain: "cluster.local".to_owned(),
            mcp_probe_seconds: 0,
            master_key_dir: Some(self.folder.path().join("master")),
            public_url: "http://agentapi.test".parse().ok(),
            oauth_return_origins: "https://app.test".parse().into_iter().collect(),
            // Never: tests count what is asked of providers.
            oauth_upkeep_seconds: 3600,
        }
    }

    /// One more replica.
    pub async fn replica(&self) -> Result<Replica> {
        self.replica_with(self.config()).await
    }

    /// One more replica, with this configuration.
    pub async fn replica_with(&self, config: ServeConfig) -> Result<Replica> {
        let (pods, secrets) = (Arc::clone(&self.pods), Arc::clone(&self.secrets));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let metrics = Metrics::new()?;
        let started = runtime.spawn(async move { Server::with_pods(config, pods, secrets, metrics).await }).await;
        let server = match started {
            Ok(Ok(server)) => server,
            refused => {
                runtime.shutdown_background();
                refused??;
                bail!("unreachable: it neither started nor failed");
            }
        };
        let addresses = server.addresses()?;
        self.pods.set_internal_api(addresses.internal);
        let stop = CancellationToken::new();
        let running = runtime.spawn(server.run(stop.clone()));
        Ok(Replica { addresses, stop, running, runtime: Some(runtime) })
    }

    /// A file in the platform's own folder.
    pub fn file(&self, name: &str, content: &str) -> Result<PathBuf> {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content)?;
        Ok(path)
    }

    /// An organization whose tokens come from the platform's identity provider. Its quota is 10 sessions, its one
    /// workspace `main` takes 5.
    pub async fn tenant(&self, name: &str) -> Result<Tenant> {
        let slug = self.db.unique_slug(name);
        let organization = self.db.organization(&slug).await?;
        self.operator("update organizations set issuer = $2 where slug = $1", &[&slug, &self.idp.issuer]).await?;
        let token = |subject: &str, role: &str| self.token(&slug, subject, role);
        let (admin, alice, bob) = (&organization.admin, &organization.alice, &organization.bob);
        Ok(Tenant {
            admin: token(&admin.subject, "admin")?,
            alice: token(&alice.subject, "user")?,
            bob: token(&bob.subject, "user")?,
            organization,
        })
    }

    /// A good token.
    pub fn token(&self, slug: &str, subject: &str, role: &str) -> Result<String> {
        self.key.sign(&self.claims(slug, subject, role))
    }

    /// The tokens between the API and its session pods.
    pub fn session_tokens(&self) -> Result<SessionTokens> {
        Ok(SessionTokens::from_file(&self.signing_key)?)
    }

    /// The address of a session's pod.
    pub async fn pod_address(&self, session: &str) -> Result<SocketAddr> {
        let mut connection = PgConnection::connect(&self.db.admin_url()).await?;
        let ip: String = sqlx::query_scalar("select pod_ip from sessions where id = $1::uuid")
            .bind(session)
            .fetch_one(&mut connection)
            .await?;
        Ok(SocketAddr::new(ip.parse()?, SESSION_PORT))
    }

    /// Claims of a good token.
    pub fn claims(&self, slug: &str, subject: &str, role: &str) -> Value {
        let now = jiff::Timestamp::now().as_second();
        json!({
            "iss": self.idp.issuer, "aud": "agentapi", "sub": subject, "email": format!("{subject}@example.com"),
            "org_id": slug, "role": role, "iat": now, "nbf": now, "exp": now + 3600,
        })
    }

    /// A statement with text parameters, as the operator would run it.
    pub async fn operator(&self, statement: &'static str, parameters: &[&str]) -> Result<u64> {
        let mut connection = PgConnection::connect(&self.db.operator_url()).await?;
        let mut query = sqlx::query(statement);
        for parameter in parameters {
            query = query.bind((*parameter).to_owned());
        }
        let done = query.execute(&mut connection).await?;
        connection.close().await?;
        Ok(done.rows_affected())
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        // Not when the last task of the last replica lets go of them: the test may have ended before that.
        self.pods.end();
    }
}

impl Replica {
    /// A client with a token, or without.
    pub fn api(&self, token: Option<&str>) -> Result<Api> {
        Api::new(&format!("http://{}", self.addresses.public), token.map(str::to_owned))
    }

    /// A client of the API for session pods, from one of this machine's addresses.
    pub fn internal_api(&self, token: Option<&str>, own: IpAddr) -> Result<Api> {
        Api::from_address(&format!("http://{}", self.addresses.internal), token.map(str::to_owned), Some(own))
    }

    /// Begins to end it, as SIGTERM does.
    pub fn begin_stop(&self) {
        self.stop.cancel();
    }

    /// Ends it as SIGTERM does, and waits for that.
    pub async fn stop(mut self) -> Result<()> {
        self.stop.cancel();
        tokio::time::timeout(Duration::from_secs(20), &mut self.running).await.context("it did not stop")??;
        Ok(())
    }

    /// Ends it as a crash does: nothing is finished, nothing is said. Afterwards nothing of it is at work.
    pub fn crash(mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Waiting is allowed on a thread that runs no tasks.
            let ended = std::thread::spawn(move || runtime.shutdown_timeout(Duration::from_secs(20)));
            let _ = ended.join();
        }
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
