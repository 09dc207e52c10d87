//! What a request to a server carries to show who it is from. Fixed credentials come from the tenant's Secrets; those
//! of OAuth from the grant of a user, which `oauth` keeps. May touch: what it is given.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use http::header::AUTHORIZATION;
use http::{HeaderName, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use uuid::Uuid;

use super::connection::{Auth, Connection};
use super::secrets::{Destination, SecretError, TenantSecrets};
use crate::store::identity::Organization;

/// Headers of one request; their values are marked as sensitive.
pub type Headers = Vec<(HeaderName, HeaderValue)>;

/// Why there are no credentials.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// Nobody has agreed yet.
    #[error(
        "this server needs your consent first: POST /v1/oauth/init with this connection, and open the URL it gives"
    )]
    NeedsConsent,
    /// Somebody had, and the provider takes it no longer.
    #[error("your consent to this server was revoked or has run out; give it again with POST /v1/oauth/init")]
    Revoked,
    /// The provider of tokens does not answer.
    #[error("the provider of this server's tokens cannot be reached; try again")]
    ProviderDown {
        /// When it may be worth it.
        retry_after: Duration,
    },
    /// A Secret.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// What was found is no credential.
    #[error("{0}")]
    Unusable(String),
    /// A part of the platform is away.
    #[error("credentials cannot be had at the moment: {0}")]
    Unavailable(String),
}

impl CredentialError {
    /// Whether the same may well work in a moment.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::ProviderDown { .. } | Self::Unavailable(_) | Self::Secret(SecretError::Unavailable(_)))
    }
}

/// How it stands with the consent that a connection needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthState {
    /// Nobody has given any.
    NeedsConsent,
    /// Somebody has.
    Authorized,
    /// It runs out soon and cannot be renewed.
    Expiring,
    /// The provider takes it no longer.
    Revoked,
}

impl AuthState {
    /// As the column has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NeedsConsent => "NeedsConsent",
            Self::Authorized => "Authorized",
            Self::Expiring => "Expiring",
            Self::Revoked => "Revoked",
        }
    }
}

/// Gives credentials for connections. `user` is nobody when the platform itself asks, as the prober does.
pub trait Credentials: Send + Sync + 'static {
    /// The headers of the next request.
    fn headers<'a>(
        &'a self,
        organization: &'a Arc<Organization>,
        user: Option<Uuid>,
        connection: &'a Connection,
    ) -> BoxFuture<'a, Result<Headers, CredentialError>>;

    /// The server has answered 401 to these headers. True: there are others now; one more attempt is worth it.
    fn rejected<'a>(
        &'a self,
        organization: &'a Arc<Organization>,
        user: Option<Uuid>,
        connection: &'a Connection,
        sent: &'a Headers,
    ) -> BoxFuture<'a, bool>;

    /// How it stands with consent; nothing where none is needed, or where it cannot be seen at the moment.
    fn state<'a>(&'a self, _: &'a Arc<Organization>, _: &'a Connection) -> BoxFuture<'a, Option<AuthState>> {
        futures::future::ready(None).boxed()
    }
}

/// A header's value that no log shows.
pub fn sensitive(value: &str) -> Result<HeaderValue, CredentialError> {
    let mut value = HeaderValue::from_str(value)
        .map_err(|_| CredentialError::Unusable("the credential has characters that no header can hold".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Of all kinds, by what the connection says.
pub struct AnyCredentials {
    secrets: Arc<dyn TenantSecrets>,
    oauth: Arc<dyn Credentials>,
}

impl AnyCredentials {
    /// With these for each kind.
    pub fn new(secrets: Arc<dyn TenantSecrets>, oauth: Arc<dyn Credentials>) -> Self {
        Self { secrets, oauth }
    }

    async fn fixed(&self, organization: &Organization, connection: &Connection) -> Result<Headers, CredentialError> {
        // What is no URL is called by nobody.
        let to = Destination::new(connection.origin, connection.transport.url().parse().as_ref().ok());
        let read = async |name: &str, key: &str| -> Result<SecretString, CredentialError> {
            Ok(self.secrets.read(&organization.slug, name, key, &to).await?)
        };
        Ok(match &connection.auth {
            Auth::Bearer(from) => {
                let token = read(&from.name, &from.key).await?;
                vec![(AUTHORIZATION, sensitive(&format!("Bearer {}", token.expose_secret()))?)]
            }
            Auth::ApiKey { header, secret } => {
                let key = read(&secret.name, &secret.key).await?;
                vec![(header.clone(), sensitive(key.expose_secret())?)]
            }
            Auth::None | Auth::Oauth(_) => Vec::new(),
        })
    }
}

impl Credentials for AnyCredentials {
    fn headers<'a>(
        &'a self,
        organization: &'a Arc<Organization>,
        user: Option<Uuid>,
        connection: &'a Connection,
    ) -> BoxFuture<'a, Result<Headers, CredentialError>> {
        match &connection.auth {
            Auth::Oauth(_) => self.oauth.headers(organization, user, connection),
            _ => self.fixed(organization, connection).boxed(),
        }
    }

    fn rejected<'a>(
        &'a self,
        organization: &'a Arc<Organization>,
        user: Option<Uuid>,
        connection: &'a Connection,
        sent: &'a Headers,
    ) -> BoxFuture<'a, bool> {
        let secret = match &connection.auth {
            Auth::Oauth(_) => return self.oauth.rejected(organization, user, connection, sent),
            Auth::None => return futures::future::ready(false).boxed(),
            Auth::Bearer(secret) | Auth::ApiKey { secret, .. } => secret,
        };
        // The Secret may have been changed since it was read.
        self.secrets.forget(&organization.slug, &secret.name, &secret.key);
        async move {
            let now = self.fixed(organization, connection).await;
            now.is_ok_and(|headers| headers != *sent)
        }
        .boxed()
    }

    fn state<'a>(
        &'a self,
        organization: &'a Arc<Organization>,
        connection: &'a Connection,
    ) -> BoxFuture<'a, Option<AuthState>> {
        match &connection.auth {
            Auth::Oauth(_) => self.oauth.state(organization, connection),
            _ => futures::future::ready(None).boxed(),
        }
    }
}

/// Where nobody can give consent.
pub struct NoOauth;

impl Credentials for NoOauth {
    fn headers<'a>(
        &'a self,
        _: &'a Arc<Organization>,
        _: Option<Uuid>,
        _: &'a Connection,
    ) -> BoxFuture<'a, Result<Headers, CredentialError>> {
        futures::future::ready(Err(CredentialError::NeedsConsent)).boxed()
    }

    fn rejected<'a>(
        &'a self,
        _: &'a Arc<Organization>,
        _: Option<Uuid>,
        _: &'a Connection,
        _: &'a Headers,
    ) -> BoxFuture<'a, bool> {
        futures::future::ready(false).boxed()
    }
}
