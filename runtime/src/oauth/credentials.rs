//! The grants of users as credentials of the gateway. May touch: what `grants` may.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use http::header::AUTHORIZATION;
use secrecy::ExposeSecret;
use uuid::Uuid;

use super::OAuth;
use super::error::OauthError;
use super::target::Target;
use crate::mcp::connection::Connection;
use crate::mcp::credentials::{AuthState, CredentialError, Credentials, Headers, sensitive};
use crate::store::identity::Organization;

/// Tokens of OAuth for the gateway.
pub struct Grants(pub Arc<OAuth>);

const BEARER: &str = "Bearer ";

impl Credentials for Grants {
    fn headers<'a>(
        &'a self,
        organization: &'a Arc<Organization>,
        user: Option<Uuid>,
        connection: &'a Connection,
    ) -> BoxFuture<'a, Result<Headers, CredentialError>> {
        async move {
            let target = Target::of(Arc::clone(organization), connection)?;
            let access = self.0.access_token(&target, user).await?;
            Ok(vec![(AUTHORIZATION, sensitive(&format!("{BEARER}{}", access.token.expose_secret()))?)])
        }
        .boxed()
    }

    fn rejected<'a>(
        &'a self,
        organization: &'a Arc<Organization>,
        user: Option<Uuid>,
        connection: &'a Connection,
        sent: &'a Headers,
    ) -> BoxFuture<'a, bool> {
        async move {
            let Ok(target) = Target::of(Arc::clone(organization), connection) else { return false };
            let header = sent.iter().find(|(name, _)| *name == AUTHORIZATION);
            let token = header.and_then(|(_, value)| value.to_str().ok()?.strip_prefix(BEARER));
            self.0.rejected(&target, user, token.unwrap_or_default()).await
        }
        .boxed()
    }

    fn state<'a>(
        &'a self,
        organization: &'a Arc<Organization>,
        connection: &'a Connection,
    ) -> BoxFuture<'a, Option<AuthState>> {
        async move {
            let target = Target::of(Arc::clone(organization), connection).ok()?;
            self.0.connection_state(&target).await.ok()
        }
        .boxed()
    }
}

impl From<OauthError> for CredentialError {
    fn from(error: OauthError) -> Self {
        match error {
            OauthError::NeedsConsent => Self::NeedsConsent,
            OauthError::Revoked => Self::Revoked,
            OauthError::ProviderDown { retry_after, .. } => Self::ProviderDown { retry_after },
            OauthError::Secret(error) => Self::Secret(error),
            OauthError::Store(error) => Self::Unavailable(error.to_string()),
            error => Self::Unusable(error.to_string()),
        }
    }
}
