//! One exchange of a refresh token: whoever has the lease of the grant is at the provider, the others of all replicas
//! wait for what it brings. No transaction is open meanwhile. May touch: `mcp_oauth_tokens`, the provider.

use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use secrecy::SecretString;
use serde_json::json;
use uuid::Uuid;

use super::OAuth;
use super::error::OauthError;
use super::exchange::{Exchange, ExchangeError, Tokens};
use super::target::{Target, access_place, refresh_place};
use crate::audit::{Entry, Origin, action};
use crate::crypto::CryptoError;
use crate::store::oauth::grants::{GrantRow, SealedTokens};
use crate::store::{StoreError, TenantScope, TenantTx};

/// A token is refreshed so long before it ends.
pub(super) const EARLY_SECONDS: f64 = 60.0;
/// Longer than the work that it protects: whoever comes when it is over uses up the refresh token a second time. 30 s at
/// the provider, six attempts to store of 8 s until there is a connection, and the pauses between them, with jitter up
/// to 62 s. So long does a grant wait after a crash in the middle.
const LEASE_SECONDS: f64 = 150.0;
const AT_PROVIDER: Duration = Duration::from_secs(30);
/// Between two attempts at a provider that fails: doubled from the first to the last, with jitter.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LAST_PAUSE: Duration = Duration::from_secs(120);

/// After the first one.
const STORE_ATTEMPTS: usize = 5;

/// What to do about a grant.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Step {
    /// Its access token is good.
    Use,
    /// Exchange its refresh token.
    Refresh,
    /// Somebody does.
    Wait,
    /// The provider failed, and may be asked again in so many seconds.
    Pause(f64),
    /// Nothing but the user can help.
    Consent,
}

/// `forced`: the access token is not wanted, good as it may be.
pub(super) fn step(row: &GrantRow, forced: bool) -> Step {
    let good = !forced && row.seconds_left.is_none_or(|left| left > 0.0);
    let due = forced || row.seconds_left.is_some_and(|left| left <= EARLY_SECONDS);
    let pause = row.retry_in.filter(|seconds| *seconds > 0.0);
    match (due, good) {
        (false, _) => Step::Use,
        // Early: nothing is tried that is not likely to work.
        (true, true) if row.refresh.is_none() || pause.is_some() || row.leased => Step::Use,
        (true, false) if row.refresh.is_none() => Step::Consent,
        (true, false) if row.leased => Step::Wait,
        (true, false) if pause.is_some() => Step::Pause(pause.unwrap_or_default()),
        (true, _) => Step::Refresh,
    }
}

/// How long a provider that has failed so often is left alone.
fn pause(failures: usize) -> f64 {
    let pauses = ExponentialBuilder::default()
        .with_min_delay(FIRST_PAUSE)
        .with_max_delay(LAST_PAUSE)
        .without_max_times()
        .with_jitter()
        .build();
    pauses.into_iter().nth(failures.min(16)).unwrap_or(LAST_PAUSE).as_secs_f64()
}

/// How an attempt went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Done {
    /// The grant is another now: look again.
    Refreshed,
    /// Somebody else is at it, or was: look again.
    NotOurs,
}

impl OAuth {
    /// Exchanges the refresh token of a grant, unless somebody else does. Not cancelled with the caller: what the
    /// provider gives out must be stored, since the refresh token before is used up by then.
    pub(super) async fn refresh(self: &Arc<Self>, target: &Target, seen: &GrantRow) -> Result<Done, OauthError> {
        let (oauth, target, seen) = (Arc::clone(self), target.clone(), seen.clone());
        let work = tokio::spawn(async move { oauth.refresh_leased(&target, &seen).await });
        work.await.unwrap_or_else(|_| Err(OauthError::Unusable("the exchange of the token broke off".to_owned())))
    }

    async fn refresh_leased(&self, target: &Target, seen: &GrantRow) -> Result<Done, OauthError> {
        let scope = TenantScope::system(&target.organization);
        let lease = Uuid::new_v4();
        let mut tx = self.store.tenant_tx(&scope).await?;
        let ours = tx.lease_grant(seen, lease, LEASE_SECONDS).await?;
        let (_, refresh) = self.open(&mut tx, seen).await?;
        tx.commit().await?;
        let Some(refresh) = refresh.filter(|_| ours) else { return Ok(Done::NotOurs) };

        let asked = tokio::time::timeout(AT_PROVIDER, self.at_provider(target, seen, &refresh)).await;
        match asked {
            Ok(Ok(tokens)) => {
                let kept = tokens.refresh.clone().unwrap_or(refresh);
                // The refresh token before is used up: a moment without Postgres, or without a key that the kubelet has
                // not brought yet, must not cost the grant.
                let mut pauses = ExponentialBuilder::default().with_max_times(STORE_ATTEMPTS).with_jitter().build();
                let stored = loop {
                    let kept = self.keep(target, seen, lease, &tokens, &kept).await;
                    let away = matches!(
                        kept,
                        Err(OauthError::Store(StoreError::Unavailable(_))
                            | OauthError::Crypto(CryptoError::Wrapped(_) | CryptoError::Folder { .. }))
                    );
                    let Some(pause) = pauses.next().filter(|_| away) else { break kept? };
                    tokio::time::sleep(pause).await;
                };
                self.metrics.oauth_exchange("refresh", "ok");
                if !stored
                    && self.is_revoked(target, seen).await?
                    && let Some(issuer) = &seen.issuer
                    && let Err(error) = self.tell(target, issuer, &kept, "refresh_token").await
                {
                    tracing::warn!(organization = target.organization.slug, %error, "a dropped token is not revoked");
                }
                Ok(Done::Refreshed)
            }
            Ok(Err(Failure::Lost)) => {
                let mut tx = self.store.tenant_tx(&scope).await?;
                if tx.erase_grant(seen.id, Some(lease)).await? {
                    self.note(&mut tx, target, seen, action::OAUTH_LOSE).await?;
                }
                tx.commit().await?;
                self.metrics.oauth_exchange("refresh", "lost");
                Err(OauthError::Revoked)
            }
            Ok(Err(Failure::Other(error))) => self.pause(target, seen, lease, error).await,
            Err(_) => {
                let error = OauthError::ProviderDown { why: "it takes too long".to_owned(), retry_after: FIRST_PAUSE };
                self.pause(target, seen, lease, error).await
            }
        }
    }

    async fn at_provider(&self, target: &Target, seen: &GrantRow, refresh: &SecretString) -> Result<Tokens, Failure> {
        // Never to another provider than the one that gave it out.
        let issuer = seen.issuer.as_deref().unwrap_or_default();
        let server = self.discovery.server(target, issuer).await.map_err(OauthError::from)?;
        let client = self.client(target, &server, None).await?;
        let exchange = Exchange { net: &self.net, target, server: &server, client: &client };
        let audience = target.kind().resource_parameter.as_deref().zip(seen.audience.as_deref());
        exchange.refresh(refresh, audience).await.map_err(Failure::from)
    }

    /// Stores what an exchange has brought. False: the grant was revoked meanwhile, or is not ours any more.
    async fn keep(
        &self,
        target: &Target,
        seen: &GrantRow,
        lease: Uuid,
        tokens: &Tokens,
        refresh: &SecretString,
    ) -> Result<bool, OauthError> {
        let mut tx = self.store.tenant_tx(&TenantScope::system(&target.organization)).await?;
        let sealed = self.seal(&mut tx, seen.connection, seen.user, tokens, Some(refresh)).await?;
        let stored = tx.renew_grant(seen.id, lease, &sealed).await?;
        if stored {
            self.note(&mut tx, target, seen, action::OAUTH_REFRESH).await?;
        }
        tx.commit().await?;
        Ok(stored)
    }

    /// Whether nobody can use what an exchange has brought. Without the lease it may be in the row all the same: an
    /// attempt of ours was committed and its answer lost, or the provider gives everybody the same refresh token.
    async fn is_revoked(&self, target: &Target, seen: &GrantRow) -> Result<bool, OauthError> {
        let mut tx = self.store.tenant_tx(&TenantScope::system(&target.organization)).await?;
        let row = tx.own_grant(seen.connection, seen.user).await?;
        tx.commit().await?;
        Ok(row.is_none_or(|row| row.revoked))
    }

    async fn pause(
        &self,
        target: &Target,
        seen: &GrantRow,
        lease: Uuid,
        error: OauthError,
    ) -> Result<Done, OauthError> {
        let mut tx = self.store.tenant_tx(&TenantScope::system(&target.organization)).await?;
        let waited = tx.pause_grant(seen.id, lease, pause).await?;
        tx.commit().await?;
        self.metrics.oauth_exchange("refresh", "error");
        tracing::warn!(organization = target.organization.slug, connection = %target.connection, %error,
            "a token can't be refreshed");
        Err(match (error, waited) {
            (OauthError::ProviderDown { why, retry_after }, Some(seconds)) => {
                OauthError::ProviderDown { why, retry_after: retry_after.max(Duration::from_secs_f64(seconds)) }
            }
            (error, _) => error,
        })
    }

    async fn note(
        &self,
        tx: &mut TenantTx,
        target: &Target,
        seen: &GrantRow,
        action: &'static str,
    ) -> Result<(), OauthError> {
        tx.audit(&Entry {
            origin: &Origin::system("oauth"),
            action,
            target_kind: "connection",
            target_id: Some(&target.connection.to_string()),
            detail: json!({ "issuer": seen.issuer, "user": seen.user }),
        })
        .await?;
        Ok(())
    }

    /// Tokens as they are stored. `refresh`: the one to keep.
    pub(super) async fn seal(
        &self,
        tx: &mut TenantTx,
        connection: Uuid,
        user: Option<Uuid>,
        tokens: &Tokens,
        refresh: Option<&SecretString>,
    ) -> Result<SealedTokens, OauthError> {
        let (row, keys) = (Target::row(connection, user), self.keys(tx).await?);
        Ok(SealedTokens {
            access: keys.seal(&access_place(&row), &tokens.access)?,
            refresh: refresh.map(|token| keys.seal(&refresh_place(&row), token)).transpose()?,
            expires_in: tokens.expires_in.map(|time| time.as_secs_f64()),
            scopes: tokens.scopes.clone(),
        })
    }
}

/// Why there is no new token.
enum Failure {
    /// The refresh token is good no longer.
    Lost,
    /// It may be, later.
    Other(OauthError),
}

impl From<OauthError> for Failure {
    fn from(error: OauthError) -> Self {
        Self::Other(error)
    }
}

impl From<ExchangeError> for Failure {
    fn from(error: ExchangeError) -> Self {
        match error {
            ExchangeError::InvalidGrant => Self::Lost,
            ExchangeError::Refused(_) => Self::Other(OauthError::Unusable(error.to_string())),
            ExchangeError::Net(error) => Self::Other(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn row(refresh: bool, seconds_left: Option<f64>, retry_in: Option<f64>, leased: bool) -> GrantRow {
        GrantRow {
            id: Uuid::nil(),
            connection: Uuid::nil(),
            user: None,
            access: Some(Vec::new()),
            refresh: refresh.then(Vec::new),
            issuer: None,
            resource: None,
            audience: None,
            refreshes: 0,
            seconds_left,
            retry_in,
            leased,
            revoked: false,
        }
    }

    proptest! {
        #[test]
        fn no_state_of_a_grant_leads_to_an_ended_token_or_to_two_refreshers(
            refresh: bool, leased: bool, forced: bool,
            left in prop::option::of(-4000.0..4000.0f64), retry in prop::option::of(-200.0..200.0f64),
        ) {
            let row = row(refresh, left, retry, leased);
            match step(&row, forced) {
                Step::Use => prop_assert!(!forced && left.is_none_or(|left| left > 0.0)),
                Step::Refresh => prop_assert!(refresh && !leased && retry.is_none_or(|retry| retry <= 0.0)),
                Step::Wait => prop_assert!(leased && refresh),
                Step::Pause(seconds) => prop_assert!(seconds > 0.0 && retry == Some(seconds)),
                Step::Consent => prop_assert!(!refresh),
            }
            // A token that is far from its end makes no traffic.
            if !forced && left.is_none_or(|left| left > EARLY_SECONDS) {
                prop_assert_eq!(step(&row, false), Step::Use);
            }
        }

        #[test]
        fn pauses_grow_and_have_an_end(failures in 0..5000usize) {
            let seconds = pause(failures);
            prop_assert!(seconds >= FIRST_PAUSE.as_secs_f64());
            prop_assert!(seconds <= 2.0 * LAST_PAUSE.as_secs_f64(), "{seconds}");
            prop_assert!(failures < 7 || seconds >= LAST_PAUSE.as_secs_f64());
        }
    }
}
