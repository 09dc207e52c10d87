//! Consents with real parts: the API, Postgres, and npm oidc-provider; a user agent without a screen, and Chromium.

pub mod agent;
pub mod chromium;
pub mod clock;
pub mod gate;
pub mod oidc;

use std::sync::{Arc, Mutex, PoisonError};

use agentapi_runtime::config::ServeConfig;
use agentapi_runtime::crypto::Sealer;
use agentapi_runtime::metrics::Metrics;
use agentapi_runtime::oauth::target::Target;
use agentapi_runtime::oauth::{OAuth, OAuthConfig};
use agentapi_runtime::outbound::{Outbound, Ranges};
use agentapi_runtime::store::{Store, TenantScope};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use url::Url;
use uuid::Uuid;

use crate::api::{Answer, Api};
use crate::serve::{Platform, Replica, Tenant};
use agent::{Agent, Decision};
use clock::Clock;
use oidc::Oidc;

/// The platform with a provider, and one organization.
pub struct World {
    /// Everything but the provider.
    pub platform: Platform,
    /// The provider.
    pub oidc: Oidc,
    /// The organization.
    pub acme: Tenant,
    /// The API.
    pub replica: Replica,
    /// The API as browsers reach it.
    pub public: Url,
    /// Ids of the next connections: the provider knows their addresses, and no others.
    ids: Mutex<Vec<Uuid>>,
}

/// Connections that a test makes at most.
const CONNECTIONS: usize = 64;

impl World {
    /// One replica, whose address is the public one.
    pub async fn start(session_pod: &str) -> Result<Self> {
        let platform = Platform::start(session_pod).await?;
        let port = crate::ports::reserve()?;
        let public: Url = format!("http://127.0.0.1:{port}").parse()?;
        let ids: Vec<Uuid> = std::iter::repeat_with(Uuid::new_v4).take(CONNECTIONS).collect();
        let callback = format!("{public}v1/oauth/callback");
        let of_connections = ids.iter().map(|id| format!("{callback}/{id}"));
        let oidc = Oidc::start(&std::iter::once(callback.clone()).chain(of_connections).collect::<Vec<_>>()).await?;
        let acme = platform.tenant("acme").await?;
        let mut config = Self::configured(&platform, &public)?;
        config.http_listen = ([127, 0, 0, 1], port).into();
        let replica = platform.replica_with(config).await?;
        let slug = &acme.organization.slug;
        for client in ["client_secret_basic", "client_secret_post", "none"] {
            // GitHub as it is, for a test that does not go there.
            platform.secrets.allow(slug, client, &format!("{}, github.com", oidc.gate.address));
            platform.secrets.set(slug, client, "clientId", client);
            if client != "none" {
                platform.secrets.set(slug, client, "clientSecret", &Oidc::secret(client));
            }
        }
        Ok(Self { platform, oidc, acme, replica, public, ids: Mutex::new(ids) })
    }

    fn configured(platform: &Platform, public: &Url) -> Result<ServeConfig> {
        let mut config = platform.config();
        config.public_url = Some(public.clone());
        config.outbound_open_ranges = vec!["127.0.0.0/8".parse()?];
        Ok(config)
    }

    /// One more replica, on another port.
    pub async fn another_replica(&self) -> Result<Replica> {
        self.platform.replica_with(Self::configured(&self.platform, &self.public)?).await
    }

    /// Where providers send users back to, below which each connection has an address of its own.
    pub fn callback(&self) -> String {
        format!("{}v1/oauth/callback", self.public)
    }

    /// A statement with all rights.
    pub async fn admin(&self, statement: &str) -> Result<u64> {
        self.platform.db.admin(statement).await
    }

    /// One value as text.
    pub async fn value(&self, query: &str) -> Result<Option<String>> {
        let mut connection = PgConnection::connect(&self.platform.db.admin_url()).await?;
        Ok(sqlx::query_scalar(AssertSqlSafe(query.to_owned())).fetch_optional(&mut connection).await?.flatten())
    }

    /// Actions in the audit log that begin with `oauth.`, oldest first.
    pub async fn audited(&self) -> Result<Vec<String>> {
        let actions =
            self.value("select string_agg(action, ' ' order by seq) from audit_log where action like 'oauth.%'");
        Ok(actions.await?.unwrap_or_default().split_whitespace().map(str::to_owned).collect())
    }

    /// A connection of an organization that uses OAuth as `oauth` says, besides provider and issuer.
    pub async fn connection(&self, tenant: &Tenant, name: &str, oauth: &Value) -> Result<Uuid> {
        let mut all = json!({"provider": "Oidc", "issuer": self.oidc.issuer});
        for (key, value) in oauth.as_object().context("no object")? {
            all[key] = value.clone();
        }
        if all["issuer"].is_null() {
            all.as_object_mut().context("no object")?.remove("issuer");
        }
        let url = all.as_object_mut().and_then(|all| all.remove("url")).unwrap_or(json!("http://127.0.0.1:9/mcp"));
        let spec = json!({"transport": {"streamableHttp": {"url": url}}, "auth": {"oauth": all}});
        let id = self.ids.lock().unwrap_or_else(PoisonError::into_inner).pop().context("too many connections")?;
        let mut connection = PgConnection::connect(&self.platform.db.admin_url()).await?;
        sqlx::query(
            "insert into mcp_connections (org_id, id, name, origin, transport, spec, generation)
             values ($1, $2, $3, 'api', 'streamableHttp', $4, 1)",
        )
        .bind(tenant.organization.id)
        .bind(id)
        .bind(name)
        .bind(spec)
        .execute(&mut connection)
        .await?;
        Ok(id)
    }

    /// Begins a consent; gives back its page.
    pub async fn begin(&self, api: &Api, connection: Uuid) -> Result<String> {
        let begun = api.post("/v1/oauth/init", &json!({ "connection": connection })).await?.expect(201)?;
        Ok(begun["authorizationUrl"].as_str().context("no authorizationUrl")?.to_owned())
    }

    /// A consent from its beginning to its end, in a new browser.
    pub async fn consent(&self, api: &Api, connection: Uuid, decision: Decision) -> Result<Answer> {
        let page = self.begin(api, connection).await?;
        let mut agent = Agent::new()?;
        let provider = agent.leave(&page).await?;
        let back = agent.decide(&provider, "acme-alice", decision, &self.callback()).await?;
        agent.back(&back).await
    }

    /// The room itself, as another replica has it.
    pub fn oauth(&self) -> Result<Arc<OAuth>> {
        self.oauth_of(self.store()?)
    }

    fn oauth_of(&self, store: Store) -> Result<Arc<OAuth>> {
        let config = Self::configured(&self.platform, &self.public)?;
        let sealer = Sealer::from_folder(config.master_key_dir.as_deref().context("no folder")?)?;
        let told = OAuthConfig { public_url: self.public.clone(), return_origins: Vec::new() };
        let outbound = Outbound::new(Ranges::new(config.outbound_open_ranges.iter().copied()));
        let secrets = Arc::clone(&self.platform.secrets);
        Ok(Arc::new(OAuth::new(&told, store, sealer, outbound, secrets, Metrics::new()?)))
    }

    /// The same with this clock.
    pub fn oauth_by(&self, clock: &Clock) -> Result<Arc<OAuth>> {
        self.oauth_of(Store::connect(&clock.url.clone().into(), 4)?)
    }

    fn store(&self) -> Result<Store> {
        Ok(Store::connect(&self.platform.db.runtime_url().into(), 4)?)
    }

    /// A connection as the room knows it.
    pub async fn target(&self, oauth: &OAuth, tenant: &Tenant, connection: Uuid) -> Result<Target> {
        let store = self.store()?;
        let organization = store.organization_by_slug(&tenant.organization.slug).await?.context("no organization")?;
        let organization = Arc::new(organization);
        let mut tx = store.tenant_tx(&TenantScope::system(&organization)).await?;
        Ok(oauth.target(&mut tx, &organization, connection).await?)
    }
}
