//! Errors of a reconcile. "Not ready yet" is not among them: that is a value which ends up in a condition.
use crate::{envelope, tenancy};
use std::time::Duration;

/// Why a reconcile has to be tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The Kubernetes API refused or was not reached.
    #[error("can't {verb} {kind} {name}: {source}")]
    Kube {
        /// What was tried.
        verb: &'static str,
        /// Kind of the object.
        kind: String,
        /// Name of the object, with its namespace.
        name: String,
        /// What the API said.
        #[source]
        source: Box<kube::Error>,
    },
    /// Postgres refused or was not reached.
    #[error(transparent)]
    Database(#[from] tenancy::Error),
    /// A data key can't be made or opened.
    #[error(transparent)]
    Envelope(#[from] envelope::Error),
    /// An object that came from the API has no name or does not serialize; never seen with a real server.
    #[error("an object of kind {kind} is malformed: {reason}")]
    Malformed {
        /// Kind of the object.
        kind: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Postgres did not answer within the time of one reconcile.
    #[error("the reconcile took longer than {} s and was given up; it is tried again", .0.as_secs())]
    TimedOut(Duration),
}

impl Error {
    /// The Kubernetes API refused or was not reached.
    pub fn kube(verb: &'static str, kind: &str, name: impl Into<String>, source: kube::Error) -> Self {
        Self::Kube { verb, kind: kind.to_owned(), name: name.into(), source: Box::new(source) }
    }

    /// True when the API server does not take an object for what it says; the same object is refused again.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Kube { source, .. }
            if matches!(&**source, kube::Error::Api(status) if matches!(status.code, 400 | 403 | 422)))
    }

    /// True when somebody else changed the object first; the watch brings the newer version at once.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Kube { source, .. } if matches!(&**source, kube::Error::Api(status) if status.code == 409))
    }
}

/// Result of a step of a reconcile.
pub type Result<T, E = Error> = std::result::Result<T, E>;
