//! Session pods as the API sees them: take one for a session, look at it, give it back. `kubernetes` is the real
//! thing; the API tests bring a backend that runs the same `agentapi-runtime session` as local processes.
//! May touch: the tenant namespaces of the cluster.

pub mod agent;
pub mod kubernetes;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use agentapi_prompts::compose;
use futures::future::BoxFuture;
use secrecy::SecretString;
use uuid::Uuid;

use crate::auth::session_token::{SessionClaims, SessionTokenError, SessionTokens};

/// Why a pod could not be had.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// The cluster refuses, and will again: no template, quota used up, admission. The text is shown to the user.
    #[error("{0}")]
    Refused(String),
    /// The ResourceQuota of the tenant's namespace has no room for the pod.
    #[error("quota exceeded: {0}")]
    QuotaExceeded(Shortage),
    /// The cluster does not answer at the moment.
    #[error("the cluster cannot be reached: {0}")]
    Unavailable(String),
    /// The session's token cannot be signed.
    #[error(transparent)]
    Token(#[from] SessionTokenError),
}

/// What is short, in Kubernetes' words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortage {
    /// Resource of the quota, `limits.cpu` for one.
    pub resource: String,
    /// What the pod asks for.
    pub requested: String,
    /// What is in use.
    pub used: String,
    /// The quota.
    pub limit: String,
}

impl std::fmt::Display for Shortage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { resource, requested, used, limit } = self;
        write!(f, "{resource} (the pod asks for {requested}, and {used} of {limit} are used)")
    }
}

impl Shortage {
    /// From what the API server answers, which ends in `exceeded quota: <name>, requested: limits.cpu=2, used:
    /// limits.cpu=19, limited: limits.cpu=20`. The first resource of several; the others come up when it is mended.
    pub fn in_message(message: &str) -> Option<Self> {
        let (_, list) = message.split_once("exceeded quota: ")?;
        let part = |name: &str| {
            let (_, rest) = list.split_once(name)?;
            let (resource, value) = rest.split([',', ' ']).next()?.split_once('=')?;
            Some((resource.to_owned(), value.to_owned()))
        };
        let (resource, requested) = part("requested: ")?;
        Some(Self { resource, requested, used: part("used: ")?.1, limit: part("limited: ")?.1 })
    }
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
    /// What the agent is told before that.
    pub system_prompt: Option<String>,
    /// Signs the token with which the pod writes its transcript.
    pub tokens: Arc<SessionTokens>,
    /// Id of the key that signs it, or signed a moment ago.
    pub token_key: String,
}

impl PodRequest {
    /// Digest of what the agent is told; a pod whose agent was told that already is the better one.
    pub fn prompt_digest(&self) -> String {
        compose::digest(self.system_prompt.as_deref().unwrap_or_default())
    }

    /// The session token for one pod; it is made when the pod is known, and is good for no other.
    pub fn token(&self, pod: &str) -> Result<SecretString, SessionTokenError> {
        self.tokens.for_session(&SessionClaims {
            sub: self.session,
            org: self.organization.clone(),
            ws: self.workspace.clone(),
            pod: pod.to_owned(),
        })
    }
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

/// A suspended session that needs its pod again.
pub struct Wake {
    /// The session.
    pub session: Uuid,
    /// Organization slug.
    pub organization: String,
    /// Workspace name.
    pub workspace: String,
    /// Name of its pod, which is also that of its next one: there are never two that write to its volume.
    pub pod: String,
    /// Keys as they are now.
    pub rekey: Rekey,
}

/// How a pod came to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodKind {
    /// It was waiting.
    Warm,
    /// It was made for this session.
    Cold,
    /// It was made for this session after a pause.
    Woken,
}

impl PodKind {
    /// As a metrics label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Warm => "warm",
            Self::Cold => "cold",
            Self::Woken => "woken",
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
    /// What the session holds is on a volume that can outlive the pod.
    pub keeps: bool,
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

/// A pod that waits for a session.
#[derive(Debug, Clone)]
pub struct WaitingPod {
    /// Its name.
    pub name: String,
    /// Workspace that it is for.
    pub workspace: String,
    /// Its address.
    pub ip: String,
    /// Digest of the system prompt that its agent was started with, as far as that is known.
    pub prompt_digest: String,
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

    /// Puts a new session token and the public keys where the pod reads them. Takes the pod's note of its keys away
    /// first: however this ends, it says nothing false.
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

    /// Pods of the organization that wait for a session and run.
    fn waiting<'a>(&'a self, organization: &'a str) -> BoxFuture<'a, Result<Vec<WaitingPod>, PodError>>;

    /// Notes on a pod that its agent was started with the system prompt of this digest.
    fn prepared<'a>(
        &'a self,
        organization: &'a str,
        pod: &'a str,
        digest: &'a str,
    ) -> BoxFuture<'a, Result<(), PodError>>;

    /// Deletes the session's pods and keeps its volume and Secret. True: they are gone; false: on their way out.
    fn suspend<'a>(&'a self, organization: &'a str, session: Uuid) -> BoxFuture<'a, Result<bool, PodError>>;

    /// A pod for a suspended session, with its volume and Secret.
    fn wake<'a>(&'a self, wake: &'a Wake) -> BoxFuture<'a, Result<Pod, PodError>>;

    /// Deletes the session's pods, Secrets and volumes; `pod` is the one that it has or had, if that is known. True: they
    /// are gone; false: on their way out.
    fn release<'a>(
        &'a self,
        organization: &'a str,
        session: Uuid,
        pod: Option<&'a str>,
    ) -> BoxFuture<'a, Result<bool, PodError>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_is_read_from_the_api_servers_words() {
        let message = "pods \"s-1\" is forbidden: exceeded quota: agentapi, requested: limits.cpu=2,limits.memory=1Gi, \
                       used: limits.cpu=19,limits.memory=39Gi, limited: limits.cpu=20,limits.memory=39Gi";
        let shortage = Shortage::in_message(message).map(|shortage| shortage.to_string());
        assert_eq!(shortage.as_deref(), Some("limits.cpu (the pod asks for 2, and 19 of 20 are used)"));
        for other in ["", "is forbidden: violates PodSecurity", "exceeded quota: x", "exceeded quota: x, requested: y"]
        {
            assert_eq!(Shortage::in_message(other), None, "{other}");
        }
    }
}
