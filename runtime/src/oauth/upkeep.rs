//! The loop that seals anew what an old version of a data key has sealed, so that the version can go, and forgets
//! consents that nobody finished. Every replica runs it; a Postgres advisory lock lets one of them work at a time. May
//! touch: `mcp_oauth_tokens`, `oauth_clients`, `oauth_states`.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::OAuth;
use super::error::OauthError;
use super::target::{Target, access_place, client_place, refresh_place};
use crate::audit::{Entry, Origin, action};
use crate::crypto::CryptoError;
use crate::store::TenantScope;
use crate::store::identity::Organization;
use crate::store::leader::OAUTH_UPKEEP;

/// Rows of one transaction.
const BATCH: i64 = 50;

/// Runs until `stop`.
pub async fn run(oauth: Arc<OAuth>, every: Duration, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(every) => {}
        }
        if let Err(error) = round(&oauth).await {
            tracing::warn!(%error, "upkeep of OAuth: this round failed");
        }
    }
}

async fn round(oauth: &OAuth) -> Result<(), OauthError> {
    // Held for the round only: a round is short, and whoever comes first does it.
    let Some(leadership) = oauth.store.try_lead(OAUTH_UPKEEP).await? else { return Ok(()) };
    for organization in oauth.store.organizations().await? {
        // One tenant's trouble must not keep the loop from the others.
        if let Err(error) = oauth.tidy(&organization).await {
            tracing::warn!(organization = organization.slug, %error, "upkeep of OAuth");
        }
    }
    Ok(leadership.resign().await?)
}

/// The last rows that were looked at, by their ids.
#[derive(Clone, Copy, Default)]
struct Position {
    grant: Uuid,
    client: Uuid,
}

impl OAuth {
    /// What the loop does for one organization.
    pub async fn tidy(&self, organization: &Organization) -> Result<(), OauthError> {
        let mut tx = self.store.tenant_tx(&TenantScope::system(organization)).await?;
        tx.forget_states().await?;
        tx.commit().await?;
        let mut after = Position::default();
        while let Some(last) = self.reseal(organization, after).await? {
            after = last;
        }
        Ok(())
    }

    /// Seals some rows anew, and says where it has stopped; none when there are no more. One that does not open, such as
    /// one of a restored database, stays as it is: it must not keep the others from their new version.
    async fn reseal(&self, organization: &Organization, after: Position) -> Result<Option<Position>, OauthError> {
        let mut tx = self.store.tenant_tx(&TenantScope::system(organization)).await?;
        // What is remembered may be older than the rows.
        let keys = self.fresh_keys(&mut tx).await?;
        let version = keys.current();
        let grants = tx.grants_of_other_versions(version, after.grant, BATCH).await?;
        let clients = tx.clients_of_other_versions(version, after.client, BATCH).await?;
        if grants.is_empty() && clients.is_empty() {
            return Ok(None);
        }
        let stopped = Position {
            grant: grants.last().map_or(after.grant, |grant| grant.id),
            client: clients.last().map_or(after.client, |client| client.connection),
        };
        let mut rows = 0;
        for grant in &grants {
            let (access, refresh) = match self.open(&mut tx, grant).await {
                Ok(tokens) => tokens,
                Err(OauthError::Crypto(error)) => {
                    left(organization, grant.connection, &error);
                    continue;
                }
                Err(error) => return Err(error),
            };
            let place = Target::row(grant.connection, grant.user);
            let access = access.map(|token| keys.seal(&access_place(&place), &token)).transpose()?;
            let refresh = refresh.map(|token| keys.seal(&refresh_place(&place), &token)).transpose()?;
            tx.reseal_grant(grant.id, access.as_ref(), refresh.as_ref(), version).await?;
            rows += 1;
        }
        for client in &clients {
            let connection = client.connection.to_string();
            let place = client_place(&connection);
            match keys.open(&place, &client.sealed) {
                Ok(text) => {
                    tx.reseal_oauth_client(client.connection, &keys.seal(&place, &text)?).await?;
                    rows += 1;
                }
                Err(error) => left(organization, client.connection, &error),
            }
        }
        if rows > 0 {
            tx.audit(&Entry {
                origin: &Origin::system("oauth"),
                action: action::OAUTH_RESEAL,
                target_kind: "organization",
                target_id: Some(&organization.slug),
                detail: json!({ "rows": rows, "version": version }),
            })
            .await?;
        }
        tx.commit().await?;
        Ok(Some(stopped))
    }
}

fn left(organization: &Organization, connection: Uuid, error: &CryptoError) {
    tracing::warn!(organization = organization.slug, %connection, %error, "what OAuth keeps is not sealed anew");
}
