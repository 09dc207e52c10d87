//! Session pods as the API sees them: take one for a session, look at it, give it back. `kubernetes` is the real
//! thing; the API tests bring a backend that runs the same `agentapi-runtime session` as local processes.
//! May touch: the tenant namespaces of the cluster.

pub mod agent;
pub mod kubernetes;

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::BoxFuture;
use secrecy::SecretString;
use uuid::Uuid;

/// Why a pod could not be had.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// The cluster refuses, and will again: no template, quota used up, admission. The text is shown to the user.
    #[error("{0}")]
    Refused(String),
    /// The cluster does not answer at the moment.
    #[error("the cluster cannot be reached: {0}")]
    Unavailable(String),
}

/// A session that needs a pod.
pub struct PodRequest {
    /// The session.
    pub session: Uuid,
    /// Organization slug.
    pub organization: String,
    /// Workspace name.
    pub workspace: String,
    /// The session's own environment.
    pub env: BTreeMap<String, SecretString>,
    /// First message to the agent.
    pub prompt: Option<String>,
    /// With it the pod writes its transcript.
    pub token: SecretString,
    /// Id of the key that signed it.
    pub token_key: String,
}

/// What a pod gets when the keys change or its token runs out.
pub struct Rekey {
    /// A new session token.
    pub token: SecretString,
    /// Id of the key that signed it.
    pub token_key: String,
    /// Public halves of all keys whose tokens the pod shall accept, sorted.
    pub public_keys: Vec<String>,
}

/// How a pod came to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodKind {
    /// It was waiting.
    Warm,
    /// It was made for this session.
    Cold,
}

impl PodKind {
    /// As a metrics label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Warm => "warm",
            Self::Cold => "cold",
        }
    }
}

/// A pod that belongs to a session.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// How it came.
    pub kind: PodKind,
    /// What it is doing.
    pub state: PodState,
    /// Ids of the keys that it accepts, as far as that is known.
    pub known_keys: String,
    /// Id of the key that signed its session token, as far as that is known.
    pub token_key: String,
}

/// What a pod is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodState {
    /// On its way; what it waits for, if that is known.
    Waiting(Option<String>),
    /// Its container runs, at this address.
    Running(String),
    /// Being deleted.
    Terminating,
    /// It will not come (back); why.
    Failed(String),
}

impl Pod {
    /// Address, when it runs.
    pub fn ip(&self) -> Option<&str> {
        match &self.state {
            PodState::Running(ip) => Some(ip),
            _ => None,
        }
    }
}

/// Where pods come from. All calls may be repeated: the second does what is left of the first.
pub trait PodBackend: Send + Sync + 'static {
    /// The session's pod: the one that it has, or a warm one, or a new one.
    fn acquire<'a>(&'a self, request: &'a PodRequest) -> BoxFuture<'a, Result<Pod, PodError>>;

    /// Waits until the pod runs or has failed, at most for `within`. `None`: there is no such pod.
    fn wait_running<'a>(
        &'a self,
        organization: &'a str,
        pod: &'a str,
        within: Duration,
    ) -> BoxFuture<'a, Result<Option<Pod>, PodError>>;

    /// Puts a new session token and the public keys where the pod reads them.
    fn rekey<'a>(
        &'a self,
        organization: &'a str,
        pod: &'a str,
        rekey: &'a Rekey,
    ) -> BoxFuture<'a, Result<(), PodError>>;

    /// Notes on the pod that it works with these keys.
    fn rekeyed<'a>(
        &'a self,
        organization: &'a str,
        pod: &'a str,
        rekey: &'a Rekey,
    ) -> BoxFuture<'a, Result<(), PodError>>;

    /// Pods of all the organization's sessions.
    fn of_sessions<'a>(&'a self, organization: &'a str) -> BoxFuture<'a, Result<Vec<(Uuid, Pod)>, PodError>>;

    /// Deletes the session's pods and Secrets. True: they are gone; false: on their way out.
    fn release<'a>(&'a self, organization: &'a str, session: Uuid) -> BoxFuture<'a, Result<bool, PodError>>;
}
