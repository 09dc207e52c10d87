//! Postgres from the operator's side: the roles of tenants, their rows and keys. The only dynamic SQL of
//! the project is in here, and every identifier in it is an [`names::Identifier`].
pub mod credentials;
pub mod keys;
pub mod names;
pub mod offboarding;
pub mod organization;
pub mod roles;

use secrecy::{ExposeSecret, SecretString};
use sqlx::{
    PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use std::{str::FromStr, time::Duration};

/// Why Postgres did not do it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// DATABASE_URL is not a connection URL.
    #[error(
        "DATABASE_URL is not a Postgres URL; write it like \
         postgres://agentapi_operator:<password>@<host>:5432/agentapi"
    )]
    Url,
    /// Postgres was not reached a moment ago, so it is not waited for.
    #[error("Postgres can't be reached")]
    Down,
    /// Postgres was not reached.
    #[error("Postgres can't be reached ({0})")]
    Unreachable(#[source] sqlx::Error),
    /// Postgres refused.
    #[error("Postgres can't {0}: {1}")]
    Sql(&'static str, #[source] sqlx::Error),
    /// A name that can't be an identifier of ours; the CRD's rules keep it out.
    #[error(transparent)]
    Name(#[from] names::Error),
    /// A key can't be made or opened.
    #[error(transparent)]
    Envelope(#[from] crate::envelope::Error),
    /// A statement can't be signed.
    #[error(transparent)]
    Signing(#[from] crate::signing::Error),
    /// A password can't become a verifier.
    #[error(transparent)]
    Scram(#[from] crate::scram::Error),
}

/// What an error means for a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// It may work the next time.
    Unavailable,
    /// Two live organizations would have one identity.
    IdentityConflict,
}

impl Error {
    /// What to tell in a condition.
    pub fn meaning(&self) -> Meaning {
        match self {
            Self::Sql(_, sqlx::Error::Database(error)) if error.constraint() == Some("organizations_live_identity") => {
                Meaning::IdentityConflict
            }
            _ => Meaning::Unavailable,
        }
    }
}

/// Result of a step in Postgres.
pub type Result<T> = std::result::Result<T, Error>;

/// Name a failing step for the reader of the message.
pub(crate) fn failed(step: &'static str) -> impl FnOnce(sqlx::Error) -> Error {
    move |error| match error {
        sqlx::Error::PoolTimedOut | sqlx::Error::Io(_) | sqlx::Error::PoolClosed => Error::Unreachable(error),
        error => Error::Sql(step, error),
    }
}

/// A pool that connects when it is first used, so that the operator starts without Postgres.
pub fn pool(url: &SecretString) -> Result<PgPool> {
    let options = PgConnectOptions::from_str(url.expose_secret())
        .map_err(|_| Error::Url)?
        .application_name("agentapi-operator")
        .options([("statement_timeout", "10s"), ("lock_timeout", "5s")])
        // Postgres would give an operator whose machine is gone two hours, and keep what it has locked.
        .options([("tcp_keepalives_idle", "10"), ("tcp_keepalives_interval", "5"), ("tcp_keepalives_count", "3")])
        .options([("tcp_user_timeout", "30000")]);
    Ok(PgPoolOptions::new()
        .max_connections(5)
        .acquire_timeout(Duration::from_secs(8))
        .idle_timeout(Duration::from_secs(300))
        .connect_lazy_with(options))
}
