//! Who we are at a provider: a client that the tenant has registered and keeps in a Secret, or one that we register
//! (RFC 7591) and keep sealed. May touch: the tenant's Secret, the provider through `net`, `oauth_clients`.

use agentapi_crds::mcp_connection::OauthProvider;
use http::StatusCode;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::json;
use url::Url;

use super::OAuth;
use super::discovery::Server;
use super::error::OauthError;
use super::net::NetError;
use super::target::{Target, client_place};
use crate::audit::{Entry, Origin, action};
use crate::mcp::secrets::{Destination, SecretError};
use crate::store::{TenantScope, TenantTx};

/// Keys of a tenant's Secret.
const CLIENT_ID: &str = "clientId";
const CLIENT_SECRET: &str = "clientSecret";
/// Longest name that a provider may give us.
const MAX_ID_BYTES: usize = 1024;
/// What ends later than Postgres can say ends never.
const YEAR_9999: i64 = 253_402_300_799;

/// How a client shows that it is itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Method {
    /// A header.
    #[serde(rename = "client_secret_basic")]
    Basic,
    /// Fields of the form.
    #[serde(rename = "client_secret_post")]
    Post,
    /// Not at all: PKCE has to do.
    #[serde(rename = "none")]
    None,
}

impl Method {
    /// The best that a server takes.
    fn best(server: &Server) -> Self {
        if server.takes("client_secret_basic") {
            Self::Basic
        } else if server.takes("client_secret_post") {
            Self::Post
        } else {
            Self::None
        }
    }
}

/// A client's credentials.
#[derive(Debug, Clone)]
pub struct ClientCredentials {
    /// `client_id`.
    pub id: String,
    /// `client_secret`, of a confidential client.
    pub secret: Option<SecretString>,
    /// How it is shown.
    pub method: Method,
}

/// A registered client, as it is sealed.
#[derive(Serialize, Deserialize)]
struct Kept {
    id: String,
    secret: Option<String>,
    method: Method,
}

/// What a provider answers to a registration; more fields are none of our business.
#[derive(Deserialize)]
struct Registered {
    client_id: String,
    client_secret: Option<String>,
    /// Seconds since 1970; 0: never.
    #[serde(default)]
    client_secret_expires_at: i64,
    token_endpoint_auth_method: Option<Method>,
}

impl OAuth {
    /// Who we are at this server. With the address that users come back to, a client that is registered has to be for
    /// that one, and may be registered; without it, it has to be there.
    pub(super) async fn client(
        &self,
        target: &Target,
        server: &Server,
        callback: Option<&Url>,
    ) -> Result<ClientCredentials, OauthError> {
        if let Some(secret) = &target.oauth.client_secret_ref {
            // The MCP server itself says who its provider is when the connection does not: nobody to give a Secret to.
            if target.oauth.provider == OauthProvider::Oidc && target.oauth.issuer.is_none() {
                return Err(OauthError::Unusable(format!(
                    "connection {} names a client in auth.oauth.clientSecretRef and no auth.oauth.issuer that it is \
                     for: name the issuer, or leave clientSecretRef out",
                    target.name
                )));
            }
            return self.client_of_secret(target, server, secret).await;
        }
        if let Some(kept) = self.kept_client(target, server, callback).await? {
            return Ok(kept);
        }
        let may_register = target.oauth.dynamic_registration == Some(true);
        let Some(callback) = callback.filter(|_| may_register) else {
            return Err(OauthError::Unusable(format!(
                "connection {} has no client at {}: name one in auth.oauth.clientSecretRef, or set \
                 auth.oauth.dynamicRegistration",
                target.name, server.issuer
            )));
        };
        self.register_client(target, server, callback).await
    }

    async fn client_of_secret(
        &self,
        target: &Target,
        server: &Server,
        name: &str,
    ) -> Result<ClientCredentials, OauthError> {
        let organization = &target.organization.slug;
        // Everywhere that the client shows itself.
        let shown = [Some(&server.token_endpoint), server.revocation_endpoint.as_ref()];
        let to = Destination::new(target.origin, shown.into_iter().flatten());
        let id = self.secrets.read(organization, name, CLIENT_ID, &to).await?;
        let secret = match self.secrets.read(organization, name, CLIENT_SECRET, &to).await {
            Ok(secret) => Some(secret),
            // A public client has none.
            Err(SecretError::Missing { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        let method = if secret.is_some() { Method::best(server) } else { Method::None };
        Ok(ClientCredentials { id: id.expose_secret().to_owned(), secret, method })
    }

    async fn kept_client(
        &self,
        target: &Target,
        server: &Server,
        callback: Option<&Url>,
    ) -> Result<Option<ClientCredentials>, OauthError> {
        let mut tx = self.store.tenant_tx(&TenantScope::system(&target.organization)).await?;
        let kept = self.kept_client_in(&mut tx, target, server, callback).await?;
        tx.commit().await?;
        Ok(kept)
    }

    async fn kept_client_in(
        &self,
        tx: &mut TenantTx,
        target: &Target,
        server: &Server,
        callback: Option<&Url>,
    ) -> Result<Option<ClientCredentials>, OauthError> {
        let row = tx.oauth_client(target.connection).await?;
        let keys = self.keys(tx).await?;
        let usable = |row: &crate::store::oauth::clients::ClientRow| {
            let fits = callback.is_none_or(|callback| row.redirect_uri == callback.as_str());
            row.alive && row.issuer == server.issuer && fits
        };
        let Some(row) = row.filter(usable) else { return Ok(None) };
        let kept = keys.open(&client_place(&target.connection.to_string()), &row.sealed)?;
        // What does not parse is as good as no client.
        let Ok(kept) = serde_json::from_str::<Kept>(kept.expose_secret()) else { return Ok(None) };
        Ok(Some(ClientCredentials { id: kept.id, secret: kept.secret.map(SecretString::from), method: kept.method }))
    }

    async fn register_client(
        &self,
        target: &Target,
        server: &Server,
        callback: &Url,
    ) -> Result<ClientCredentials, OauthError> {
        let Some(endpoint) = &server.registration_endpoint else {
            return Err(OauthError::Unusable(format!(
                "{} registers no clients (RFC 7591); register one by hand and name its Secret in \
                 auth.oauth.clientSecretRef",
                server.issuer
            )));
        };
        let method = Method::best(server);
        let document = json!({
            "client_name": format!("AgentAPI ({}/{})", target.organization.slug, target.name),
            "redirect_uris": [callback.as_str()],
            "grant_types": ["authorization_code", "refresh_token"],
            "response_types": ["code"],
            "token_endpoint_auth_method": method,
        });
        let answer = self.net.post(&target.open, endpoint, &document).await?;
        if !matches!(answer.status(), StatusCode::CREATED | StatusCode::OK) {
            return Err(OauthError::Unusable(format!(
                "{} refuses to register a client ({}); register one by hand and name its Secret in \
                 auth.oauth.clientSecretRef",
                server.issuer,
                answer.status()
            )));
        }
        let registered: Registered = serde_json::from_slice(answer.body())
            .map_err(|error| NetError::Document { url: endpoint.to_string(), why: without_values(&error) })?;
        // It goes into the audit log.
        if registered.client_id.len() > MAX_ID_BYTES || registered.client_id.chars().any(char::is_control) {
            let why = format!("a client_id has at most {MAX_ID_BYTES} bytes and no control characters");
            return Err(NetError::Document { url: endpoint.to_string(), why }.into());
        }
        let method = match (&registered.client_secret, registered.token_endpoint_auth_method) {
            (None, _) => Method::None,
            (Some(_), Some(method)) => method,
            // RFC 7591 says what is meant by nothing.
            (Some(_), None) => Method::Basic,
        };
        let kept = Kept { id: registered.client_id, secret: registered.client_secret, method };
        let text = SecretString::from(serde_json::to_string(&kept).unwrap_or_default());
        let expires_at = Some(registered.client_secret_expires_at).filter(|seconds| (1..=YEAR_9999).contains(seconds));

        let mut tx = self.store.tenant_tx(&TenantScope::system(&target.organization)).await?;
        tx.lock_organization().await?;
        // Of several that registered at once the first one's client stays: it may be in somebody's address already, whose
        // code and tokens are for no other.
        if let Some(first) = self.kept_client_in(&mut tx, target, server, Some(callback)).await? {
            tracing::info!(connection = %target.connection, client = kept.id, "another client was registered meanwhile");
            return Ok(first);
        }
        let sealed = self.keys(&mut tx).await?.seal(&client_place(&target.connection.to_string()), &text)?;
        tx.put_oauth_client(target.connection, &server.issuer, callback.as_str(), &sealed, expires_at).await?;
        tx.audit(&Entry {
            origin: &Origin::system("oauth"),
            action: action::OAUTH_REGISTER,
            target_kind: "connection",
            target_id: Some(&target.connection.to_string()),
            detail: json!({ "issuer": server.issuer, "client": kept.id }),
        })
        .await?;
        tx.commit().await?;
        Ok(ClientCredentials { id: kept.id, secret: kept.secret.map(SecretString::from), method })
    }
}

/// What is wrong with a document that holds a secret, without quoting it.
pub(super) fn without_values(error: &serde_json::Error) -> String {
    format!("no valid answer (line {}, column {})", error.line(), error.column())
}
