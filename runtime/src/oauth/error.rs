//! Why there is no consent, or no token. No message holds a token, a code, a secret or a state.

use std::time::Duration;

use super::discovery::DiscoveryError;
use super::net::NetError;
use crate::crypto::CryptoError;
use crate::mcp::secrets::SecretError;
use crate::store::StoreError;

/// How long to wait where nobody says how long.
pub(super) const SOON: Duration = Duration::from_secs(5);

/// An error of this room.
#[derive(Debug, thiserror::Error)]
pub enum OauthError {
    /// There is no such connection among those of the organization.
    #[error("there is no connection with this id in your organization")]
    NoConnection,
    /// The connection is authenticated to in another way.
    #[error("this connection does not use OAuth; its auth says how it is authenticated to")]
    NotOauth,
    /// Somewhere else than the configuration allows.
    #[error(
        "a user may not be sent back there; ask your platform team to add its origin to runtime.oauthReturnOrigins"
    )]
    Redirect,
    /// Consents that nobody finishes.
    #[error("you have too many consents under way; finish one, or wait ten minutes")]
    TooMany,
    /// A state that was never given out, was used, or has ended; or an answer for another organization.
    #[error("this consent was used already, has ended, or never began; begin again")]
    State,
    /// An answer that comes to another browser than the one in which the consent began.
    #[error("this consent began in another browser; begin again in this one")]
    Browser,
    /// An answer of another provider than the one that was asked (RFC 9207).
    #[error("the answer does not come from the provider that was asked; nothing was stored")]
    Issuer,
    /// An answer at the address of another connection (RFC 9700, 4.4).
    #[error("the answer came to the address of another connection than the one that was agreed to; nothing was stored")]
    Callback,
    /// The user said no.
    #[error("consent was not given")]
    Denied,
    /// Nobody has agreed yet.
    #[error("nobody has given consent for this connection yet; begin with POST /v1/oauth/init")]
    NeedsConsent,
    /// Somebody had, and it was taken back.
    #[error("consent for this connection was revoked; give it again with POST /v1/oauth/init")]
    Revoked,
    /// The provider can't be reached, or is in trouble.
    #[error("the provider cannot be reached: {why}; try again")]
    ProviderDown {
        /// What happened.
        why: String,
        /// When to try again.
        retry_after: Duration,
    },
    /// The provider or its configuration is not one that we can work with.
    #[error("{0}")]
    Unusable(String),
    /// The tenant's Secret.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// Postgres.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Keys.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
}

impl From<NetError> for OauthError {
    fn from(error: NetError) -> Self {
        if !error.is_passing() {
            return Self::Unusable(error.to_string());
        }
        let retry_after = match &error {
            NetError::Trouble { retry_after: Some(wait), .. } => *wait,
            _ => SOON,
        };
        Self::ProviderDown { why: error.to_string(), retry_after }
    }
}

impl From<DiscoveryError> for OauthError {
    fn from(error: DiscoveryError) -> Self {
        match error {
            DiscoveryError::Net(error) => error.into(),
            DiscoveryError::Unusable(why) => Self::Unusable(why),
        }
    }
}
