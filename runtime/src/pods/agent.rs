//! HTTP calls to the session host inside a pod. Every request carries a token of its own that is good for this pod
//! and this session, at most 60 seconds. May touch: the network, only pods' addresses on the session port.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use agentapi_crds::names::SESSION_PORT;
use http::{Method, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use uuid::Uuid;

use super::{PodRequest, Rekey};
use crate::auth::session_token::{SessionTokenError, SessionTokens};

/// A claim restarts the agent at most; it does not wait for it.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(10);
/// So much of a refusal is kept for the session's error.
const MAX_DETAIL_BYTES: usize = 500;
/// A pod that says more about itself is not listened to: its image is the tenant's.
const MAX_ANSWER_BYTES: usize = 256 * 1024;
const READY_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a pod gave no useful answer.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// No connection, or it broke.
    #[error("the session's pod does not answer: {0}")]
    Unreachable(#[source] reqwest::Error),
    /// The pod belongs to another session.
    #[error("the pod already belongs to another session")]
    Taken,
    /// The pod refuses what it was asked.
    #[error("the session's pod answered {status}: {detail}")]
    Refused {
        /// Its status.
        status: StatusCode,
        /// What it said.
        detail: String,
    },
    /// No token could be made, or the address is not one.
    #[error("cannot call the session's pod: {0}")]
    Internal(String),
}

impl From<SessionTokenError> for AgentError {
    fn from(error: SessionTokenError) -> Self {
        Self::Internal(error.to_string())
    }
}

/// Which pod, on behalf of which session.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// The session.
    pub session: Uuid,
    /// Its pod.
    pub pod: &'a str,
    /// The pod's address.
    pub ip: &'a str,
}

/// Calls pods.
#[derive(Clone)]
pub struct Agents {
    http: reqwest::Client,
    tokens: Arc<SessionTokens>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ClaimBody<'a> {
    session_id: Uuid,
    env: BTreeMap<&'a str, &'a str>,
    token: &'a str,
    initial_prompt: Option<&'a str>,
    system_prompt: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct KeysBody<'a> {
    public_keys: &'a [String],
    token: &'a str,
}

impl Agents {
    /// `http` should have a connect timeout, no overall timeout (streams) and follow no redirects.
    pub fn new(http: reqwest::Client, tokens: Arc<SessionTokens>) -> Self {
        Self { http, tokens }
    }

    /// A request to a path of the pod, with its token.
    pub fn request(
        &self,
        target: Target<'_>,
        method: Method,
        path: &str,
    ) -> Result<reqwest::RequestBuilder, AgentError> {
        let url = address(target.ip, path)?;
        let token = self.tokens.for_pod(target.session, target.pod)?;
        Ok(self.http.request(method, url).bearer_auth(token))
    }

    /// Tells the pod whose it is. May be repeated.
    pub async fn claim(&self, target: Target<'_>, request: &PodRequest) -> Result<(), AgentError> {
        let expose = |secret: &'_ SecretString| -> String { secret.expose_secret().to_owned() };
        let env: BTreeMap<&str, String> =
            request.env.iter().map(|(key, value)| (key.as_str(), expose(value))).collect();
        let token = request.token(target.pod)?;
        let body = ClaimBody {
            session_id: request.session,
            env: env.iter().map(|(key, value)| (*key, value.as_str())).collect(),
            token: token.expose_secret(),
            initial_prompt: request.prompt.as_deref(),
            system_prompt: request.system_prompt.as_deref(),
        };
        self.post(target, "/internal/claim", &body).await
    }

    /// Tells the pod which keys' tokens it accepts from now on, and gives it a new token of its own.
    pub async fn rekey(&self, target: Target<'_>, rekey: &Rekey) -> Result<(), AgentError> {
        let body = KeysBody { public_keys: &rekey.public_keys, token: rekey.token.expose_secret() };
        self.post(target, "/internal/keys", &body).await
    }

    /// Tells a pod that waits what its next session's agent will probably be told.
    pub async fn prepare(&self, pod: &str, ip: &str, system_prompt: &str) -> Result<(), AgentError> {
        // No session has the pod yet, and the token is good for none.
        let target = Target { session: Uuid::nil(), pod, ip };
        self.post(target, "/internal/prepare", &serde_json::json!({ "systemPrompt": system_prompt })).await
    }

    /// Tells whoever follows the session.
    pub async fn notice(&self, target: Target<'_>, message: &str) -> Result<(), AgentError> {
        self.post(target, "/internal/notice", &serde_json::json!({ "message": message })).await
    }

    async fn post(&self, target: Target<'_>, path: &str, body: &impl Serialize) -> Result<(), AgentError> {
        let call = self.request(target, Method::POST, path)?.timeout(CLAIM_TIMEOUT).json(body);
        let response = call.send().await.map_err(AgentError::Unreachable)?;
        match response.status() {
            status if status.is_success() => Ok(()),
            StatusCode::CONFLICT => Err(AgentError::Taken),
            status => Err(AgentError::Refused { status, detail: beginning(response).await }),
        }
    }

    /// Whether the agent waits for a message, as the pod itself says.
    pub async fn is_stable(&self, target: Target<'_>) -> Result<bool, AgentError> {
        #[derive(serde::Deserialize)]
        struct Status {
            status: String,
            /// What was said is on the disk.
            #[serde(default = "yes")]
            saved: bool,
        }
        let yes_and_saved = |answer: Status| answer.status == "stable" && answer.saved;
        Ok(self.ask::<Status>(target, "/status").await?.is_some_and(yes_and_saved))
    }

    /// Whether the agent waits for a permission.
    pub async fn asks(&self, target: Target<'_>) -> Result<bool, AgentError> {
        #[derive(serde::Deserialize)]
        struct Permissions {
            permissions: Vec<serde::de::IgnoredAny>,
        }
        Ok(self.ask::<Permissions>(target, "/permissions").await?.is_none_or(|answer| !answer.permissions.is_empty()))
    }

    /// `None`: the pod does not say.
    async fn ask<T: serde::de::DeserializeOwned>(
        &self,
        target: Target<'_>,
        path: &str,
    ) -> Result<Option<T>, AgentError> {
        let call = self.request(target, Method::GET, path)?.timeout(READY_TIMEOUT);
        let answer = call.send().await.map_err(AgentError::Unreachable)?;
        if !answer.status().is_success() {
            return Ok(None);
        }
        Ok(within(answer, MAX_ANSWER_BYTES).await.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    }

    /// Whether the agent takes messages.
    pub async fn is_ready(&self, ip: &str) -> Result<bool, AgentError> {
        let call = self.http.get(address(ip, "/internal/ready")?).timeout(READY_TIMEOUT);
        Ok(call.send().await.map_err(AgentError::Unreachable)?.status().is_success())
    }
}

fn yes() -> bool {
    true
}

/// An answer that is not longer than that.
async fn within(mut response: reqwest::Response, most: usize) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.ok()? {
        if bytes.len() + chunk.len() > most {
            return None;
        }
        bytes.extend_from_slice(&chunk);
    }
    Some(bytes)
}

/// The first words of an answer. The pod runs what a model wrote: nobody knows how long its answer is.
async fn beginning(mut response: reqwest::Response) -> String {
    let mut bytes = Vec::new();
    while bytes.len() < MAX_DETAIL_BYTES
        && let Ok(Some(chunk)) = response.chunk().await
    {
        bytes.extend_from_slice(&chunk[..chunk.len().min(MAX_DETAIL_BYTES - bytes.len())]);
    }
    String::from_utf8_lossy(&bytes).chars().filter(|c| !c.is_control()).collect()
}

fn address(ip: &str, path: &str) -> Result<String, AgentError> {
    let ip: IpAddr = ip.parse().map_err(|_| AgentError::Internal("the pod's address is not an IP".to_owned()))?;
    Ok(match ip {
        IpAddr::V4(ip) => format!("http://{ip}:{SESSION_PORT}{path}"),
        IpAddr::V6(ip) => format!("http://[{ip}]:{SESSION_PORT}{path}"),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn answer(body: reqwest::Body) -> reqwest::Response {
        http::Response::new(body).into()
    }

    #[tokio::test]
    async fn an_answer_without_end_is_not_taken() {
        let endless = futures::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![b'a'; 1024]));
        assert_eq!(within(answer(reqwest::Body::wrap_stream(endless)), 10_000).await, None);
        assert_eq!(within(answer("short".into()), 5).await.unwrap(), b"short");
        assert_eq!(within(answer("longer".into()), 5).await, None);
    }
}
