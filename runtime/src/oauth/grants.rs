//! Tokens for the gateway: the access token that a user's call goes with, refreshed in time; and how grants end. May
//! touch: `mcp_oauth_tokens`, the provider through `refresh`.

use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde_json::json;
use tokio::time::Instant;
use uuid::Uuid;

use super::OAuth;
use super::error::OauthError;
use super::exchange::Exchange;
use super::refresh::{Done, Step, step};
use super::target::{Target, access_place, refresh_place};
use crate::audit::{Entry, Origin, action};
use crate::auth::Caller;
use crate::crypto::CryptoError;
use crate::mcp::credentials::AuthState;
use crate::store::oauth::grants::{GrantCounts, GrantRow};
use crate::store::{TenantScope, TenantTx};

/// How long a call waits for another one that is at the provider.
const PATIENCE: Duration = Duration::from_secs(25);
const POLL: Duration = Duration::from_millis(100);
/// A grant that can't be refreshed is ending so long before it ends.
const ENDING_SECONDS: f64 = 600.0;

impl From<GrantCounts> for AuthState {
    /// A connection is as good as its best grant.
    fn from(counts: GrantCounts) -> Self {
        match counts {
            GrantCounts { live: 1.., .. } => Self::Authorized,
            GrantCounts { ending: 1.., .. } => Self::Expiring,
            GrantCounts { revoked: 1.., .. } => Self::Revoked,
            _ => Self::NeedsConsent,
        }
    }
}

/// What became of a revocation at the provider; here the tokens are gone in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtProvider {
    /// It has revoked them.
    Revoked,
    /// It has no way to be told.
    Unsupported,
    /// It could not be told.
    Failed,
}

/// A good access token. `row`: of which grant.
pub struct Access {
    /// The token.
    pub token: SecretString,
    /// Its grant.
    pub row: GrantRow,
}

impl OAuth {
    /// A good access token of a user, or of the organization, for a connection.
    pub async fn access_token(self: &Arc<Self>, target: &Target, user: Option<Uuid>) -> Result<Access, OauthError> {
        self.obtain(target, user, None).await
    }

    /// Goes to the provider even if the access token is good; both replicas of two that are asked at once give the
    /// result of one exchange.
    pub async fn refresh_now(self: &Arc<Self>, target: &Target, user: Option<Uuid>) -> Result<Access, OauthError> {
        let (row, _) = self.read(target, user).await?;
        self.obtain(target, user, Some(row.refreshes)).await
    }

    /// The MCP server has refused this token. True: there is another one now.
    pub async fn rejected(self: &Arc<Self>, target: &Target, user: Option<Uuid>, token: &str) -> bool {
        let Ok((row, current)) = self.read(target, user).await else { return false };
        if current.expose_secret() != token {
            return true;
        }
        self.obtain(target, user, Some(row.refreshes)).await.is_ok()
    }

    /// `stale`: the number of the exchange whose token is not wanted, good as it may be.
    async fn obtain(
        self: &Arc<Self>,
        target: &Target,
        user: Option<Uuid>,
        stale: Option<i64>,
    ) -> Result<Access, OauthError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (row, token) = self.read(target, user).await?;
            let forced = stale == Some(row.refreshes);
            match step(&row, forced) {
                Step::Use => return Ok(Access { token, row }),
                Step::Consent => return Err(OauthError::NeedsConsent),
                Step::Pause(seconds) => {
                    let why = "it failed a moment ago and is given a pause".to_owned();
                    return Err(OauthError::ProviderDown { why, retry_after: Duration::from_secs_f64(seconds) });
                }
                Step::Refresh => match self.refresh(target, &row).await {
                    // Early, and the token at hand is still good.
                    Err(_) if !forced && row.seconds_left.is_some_and(|left| left > 1.0) => {
                        return Ok(Access { token, row });
                    }
                    Ok(Done::Refreshed) => continue,
                    Ok(Done::NotOurs) => {}
                    Err(error) => return Err(error),
                },
                Step::Wait => {}
            }
            if Instant::now() > deadline {
                let why = "another call has been at it for long".to_owned();
                return Err(OauthError::ProviderDown { why, retry_after: Duration::from_secs(1) });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// The grant as it is now, if it is good for anything, and its access token.
    async fn read(&self, target: &Target, user: Option<Uuid>) -> Result<(GrantRow, SecretString), OauthError> {
        let scope = TenantScope { user_id: user, platform: false, ..TenantScope::system(&target.organization) };
        let mut tx = self.store.tenant_tx(&scope).await?;
        let row = tx.grant(target.connection, user).await?.ok_or(OauthError::NeedsConsent)?;
        if row.revoked {
            return Err(OauthError::Revoked);
        }
        if !target.fits(row.issuer.as_deref(), row.resource.as_deref()) {
            return Err(OauthError::NeedsConsent);
        }
        let (token, _) = self.open(&mut tx, &row).await?;
        tx.commit().await?;
        Ok((row, token.ok_or(OauthError::Revoked)?))
    }

    /// Access and refresh token of a grant.
    pub(super) async fn open(
        &self,
        tx: &mut TenantTx,
        row: &GrantRow,
    ) -> Result<(Option<SecretString>, Option<SecretString>), OauthError> {
        let place = Target::row(row.connection, row.user);
        let keys = self.keys(tx).await?;
        let access = row.access.as_deref().map(|bytes| keys.open(&access_place(&place), bytes)).transpose();
        let (keys, access) = match access {
            // Sealed with a version that is newer than what is remembered.
            Err(CryptoError::NoVersion { .. }) => {
                let keys = self.fresh_keys(tx).await?;
                let access = row.access.as_deref().map(|bytes| keys.open(&access_place(&place), bytes)).transpose()?;
                (keys, access)
            }
            access => (keys, access?),
        };
        let refresh = row.refresh.as_deref().map(|bytes| keys.open(&refresh_place(&place), bytes)).transpose()?;
        Ok((access, refresh))
    }

    /// How a connection stands.
    pub async fn connection_state(&self, target: &Target) -> Result<AuthState, OauthError> {
        let mut tx = self.store.tenant_tx(&TenantScope::system(&target.organization)).await?;
        let counts = tx.grant_counts(target.connection, ENDING_SECONDS).await?;
        tx.commit().await?;
        Ok(counts.into())
    }

    /// Takes a consent back: here at once and for good, then at the provider as far as it can be told.
    pub async fn revoke(
        &self,
        caller: &Caller,
        origin: &Origin,
        target: &Target,
        shared: bool,
    ) -> Result<AtProvider, OauthError> {
        let user = (!shared).then_some(caller.user_id);
        let mut tx = self.store.tenant_tx(&caller.scope()).await?;
        let row = tx.own_grant(target.connection, user).await?.ok_or(OauthError::NeedsConsent)?;
        // What does not open can't be told to anybody, and is erased all the same.
        let tokens = self.open(&mut tx, &row).await;
        if tx.erase_grant(row.id, None).await? {
            tx.audit(&Entry {
                origin,
                action: action::OAUTH_REVOKE,
                target_kind: "connection",
                target_id: Some(&target.connection.to_string()),
                detail: json!({ "issuer": row.issuer, "shared": shared }),
            })
            .await?;
        }
        tx.commit().await?;
        let told = match (tokens, &row.issuer) {
            (Err(error), _) => Err(error),
            (Ok((_, Some(refresh))), Some(issuer)) => self.tell(target, issuer, &refresh, "refresh_token").await,
            (Ok((Some(access), None)), Some(issuer)) => self.tell(target, issuer, &access, "access_token").await,
            (Ok(_), _) => Ok(false),
        };
        Ok(match told {
            Ok(true) => AtProvider::Revoked,
            Ok(false) => AtProvider::Unsupported,
            Err(error) => {
                tracing::warn!(organization = target.organization.slug, connection = %target.connection, %error,
                    "tokens are revoked here and not at their provider");
                AtProvider::Failed
            }
        })
    }

    /// Tells a provider that a token is used no longer.
    pub(super) async fn tell(
        &self,
        target: &Target,
        issuer: &str,
        token: &SecretString,
        hint: &str,
    ) -> Result<bool, OauthError> {
        let server = self.discovery.server(target, issuer).await?;
        let client = self.client(target, &server, None).await?;
        let exchange = Exchange { net: &self.net, target, server: &server, client: &client };
        Ok(exchange.revoke(token, hint).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_as_good_as_its_best_grant() {
        let of = |live, ending, revoked| AuthState::from(GrantCounts { live, ending, revoked });
        assert_eq!(of(0, 0, 0), AuthState::NeedsConsent);
        assert_eq!(of(1, 1, 1), AuthState::Authorized);
        assert_eq!(of(0, 2, 1), AuthState::Expiring);
        assert_eq!(of(0, 0, 3), AuthState::Revoked);
    }
}
