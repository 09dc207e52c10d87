//! Users' consents to MCP servers and the tokens that come of them: `consent` (how a user agrees), `grants` (tokens and
//! their refreshing), `discovery` and `client` (the other side, and who we are there). Tokens are sealed in Postgres
//! and in the clear only in a request to their server.
//!
//! May touch: Postgres through `store`, providers through `net`, the tenant's Secret with a client. Imports nothing of
//! `http`.

pub mod client;
pub mod consent;
pub mod credentials;
pub mod discovery;
pub mod error;
pub mod exchange;
#[cfg(test)]
mod fuzz;
pub mod grants;
pub mod net;
pub mod providers;
pub mod refresh;
pub mod state;
pub mod target;
pub mod upkeep;

use std::sync::Arc;

use url::{Origin, Url};
use uuid::Uuid;

use crate::crypto::Sealer;
use crate::crypto::sealed::DataKeys;
use crate::mcp::secrets::TenantSecrets;
use crate::metrics::Metrics;
use crate::outbound::Outbound;
use crate::store::identity::Organization;
use crate::store::{Store, TenantTx};
use discovery::Discovery;
use error::OauthError;
use net::Net;
use target::Target;

/// Where providers send users back to, below the public URL; one that a connection names, below that with its id.
pub const CALLBACK_PATH: &str = "/v1/oauth/callback";
/// The page where a consent begins, below the public URL.
pub const CONNECT_PATH: &str = "/oauth/connect";

/// What this room is told.
pub struct OAuthConfig {
    /// The API as browsers reach it.
    pub public_url: Url,
    /// Origins of pages that users may be sent back to.
    pub return_origins: Vec<Url>,
}

/// Consents and tokens.
pub struct OAuth {
    store: Store,
    sealer: Sealer,
    net: Net,
    discovery: Discovery,
    secrets: Arc<dyn TenantSecrets>,
    metrics: Metrics,
    public_url: Url,
    callback: Url,
    return_origins: Vec<Origin>,
}

impl OAuth {
    /// With everything that it needs.
    pub fn new(
        config: &OAuthConfig,
        store: Store,
        sealer: Sealer,
        outbound: Outbound,
        secrets: Arc<dyn TenantSecrets>,
        metrics: Metrics,
    ) -> Self {
        let net = Net::new(outbound);
        let below = |path: &str| {
            let mut url = config.public_url.clone();
            url.set_path(&format!("{}{path}", config.public_url.path().trim_end_matches('/')));
            url.set_query(None);
            url.set_fragment(None);
            url
        };
        Self {
            callback: below(CALLBACK_PATH),
            public_url: below(""),
            return_origins: config.return_origins.iter().map(Url::origin).collect(),
            discovery: Discovery::new(net.clone()),
            store,
            sealer,
            net,
            secrets,
            metrics,
        }
    }

    /// The API as browsers reach it.
    pub fn public_url(&self) -> &Url {
        &self.public_url
    }

    /// Where users of a connection come back to. Those that whoever makes connections can name have an address for each
    /// connection: an answer that one of them has had another provider give comes to the wrong one (RFC 9700, 4.4).
    fn callback_of(&self, target: &Target) -> Url {
        self.callback((!target.is_at_a_platform_constant()).then_some(target.connection))
    }

    fn callback(&self, connection: Option<Uuid>) -> Url {
        let mut url = self.callback.clone();
        if let Some(id) = connection {
            url.set_path(&format!("{}/{id}", url.path()));
        }
        url
    }

    /// The data keys of a transaction's organization.
    async fn keys(&self, tx: &mut TenantTx) -> Result<Arc<DataKeys>, OauthError> {
        match self.sealer.remembered(tx.organization_id()) {
            Some(keys) => Ok(keys),
            None => self.fresh_keys(tx).await,
        }
    }

    /// The same as they are in Postgres now.
    async fn fresh_keys(&self, tx: &mut TenantTx) -> Result<Arc<DataKeys>, OauthError> {
        let wrapped = tx.wrapped_keys().await?;
        Ok(self.sealer.unwrap(tx.organization_id(), &wrapped)?)
    }

    /// A connection that the transaction may see, as a target.
    pub async fn target(
        &self,
        tx: &mut TenantTx,
        organization: &Arc<Organization>,
        connection: Uuid,
    ) -> Result<Target, OauthError> {
        let row = tx.oauth_target(connection).await?.ok_or(OauthError::NoConnection)?;
        Target::of_row(Arc::clone(organization), row)
    }
}
