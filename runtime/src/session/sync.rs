//! Pushes the transcript to the runtime, so that it outlives the pod. In the background: a runtime that is
//! away delays the transcript and nothing else.

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use backon::{BackoffBuilder, ExponentialBuilder};
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::{events::Status, host::Host, messages::Message};

/// Changes are collected for this long before they are pushed.
const DEBOUNCE: Duration = Duration::from_millis(500);
/// Text in one push.
const PART_BYTES: usize = 4 * 1024 * 1024;
/// One push may take this long.
const PUSH_TIMEOUT: Duration = Duration::from_secs(10);
/// The last push, when the pod ends, may take this long.
pub(super) const LAST_PUSH: Duration = Duration::from_secs(2);
/// What a session holds may go with a pod whose end nobody heard of, so half of the time that the kubelet gives is for that.
const LAST_WORD: Duration = Duration::from_secs(5);
/// Pause after the runtime has refused a push for good (session gone, token expired).
pub(super) const REFUSED_PAUSE: Duration = Duration::from_secs(60);

#[derive(Serialize)]
struct Transcript<'a> {
    messages: &'a [Message],
    status: Status,
}

enum PushError {
    /// Only a part was pushed.
    More,
    /// Try again soon.
    Temporary(String),
    /// The runtime does not want it.
    Refused(u16),
}

/// Where to push, once the pod is claimed.
pub(super) struct Target {
    pub(super) url: url::Url,
    pub(super) token: SecretString,
}

/// Straight to the runtime: a proxy in the workspace's environment is for the agent.
pub(super) fn client(host: &Host) -> Result<reqwest::Client, reqwest::Error> {
    reqwest::Client::builder().timeout(PUSH_TIMEOUT).no_proxy().local_address(own_address(host)).build()
}

/// Pauses between attempts.
pub(super) fn backoff() -> impl Iterator<Item = Duration> {
    let pauses = ExponentialBuilder::default().with_min_delay(Duration::from_millis(250));
    pauses.with_max_delay(Duration::from_secs(30)).with_jitter().without_max_times().build()
}

/// Pushes what changed since the last push.
struct Pusher {
    client: reqwest::Client,
    pushed: HashMap<usize, Timestamp>,
    pushed_status: Option<Status>,
}

impl Pusher {
    fn new(host: &Host) -> Result<Self, reqwest::Error> {
        Ok(Self { client: client(host)?, pushed: HashMap::new(), pushed_status: None })
    }

    async fn push(&mut self, host: &Host) -> Result<(), PushError> {
        let Some(target) = target(host, "messages") else { return Ok(()) };
        let status = host.status();
        let mut messages = host.messages();
        messages.retain(|message| self.pushed.get(&message.id) != Some(&message.time));
        // A long conversation goes in parts; the next part follows at once.
        let mut size = 0;
        let part = messages.iter().position(|message| {
            size += message.content.len();
            size > PART_BYTES
        });
        let more = part.is_some_and(|first_left| {
            messages.truncate(first_left.max(1));
            true
        });
        if messages.is_empty() && self.pushed_status == Some(status) {
            return Ok(());
        }
        let response = self
            .client
            .put(target.url)
            .bearer_auth(target.token.expose_secret())
            .json(&Transcript { messages: &messages, status })
            .send()
            .await
            .map_err(|error| PushError::Temporary(error.without_url().to_string()))?;
        match response.status().as_u16() {
            200..=299 => {
                self.pushed.extend(messages.iter().map(|message| (message.id, message.time)));
                self.pushed_status = Some(status);
                if more { Err(PushError::More) } else { Ok(()) }
            }
            code @ (400 | 401 | 403 | 404 | 409 | 410 | 413 | 422) => Err(PushError::Refused(code)),
            code => Err(PushError::Temporary(format!("status {code}"))),
        }
    }
}

/// The runtime knows a pod by its address. A pod has one; a host on the loopback network, where a machine has many,
/// speaks from the one that it listens on.
pub(super) fn own_address(host: &Host) -> Option<IpAddr> {
    let runtime = host.config.runtime_url.as_ref()?.host_str()?.parse::<IpAddr>().ok()?;
    Some(host.config.listen.ip()).filter(|own| own.is_loopback() && runtime.is_loopback())
}

pub(super) fn target(host: &Host, what: &str) -> Option<Target> {
    let base = host.config.runtime_url.as_ref()?;
    let (session, token) = {
        let inner = host.lock();
        (inner.session_id.clone()?, inner.token.clone()?)
    };
    let mut url = base.clone();
    url.path_segments_mut().ok()?.pop_if_empty().extend(["internal", "v1", "sessions", &session, what]);
    Some(Target { url, token })
}

/// Pushes whenever something changed, until it is cancelled.
pub(super) async fn push_on_change(host: Arc<Host>, stop: CancellationToken) {
    if host.config.runtime_url.is_none() {
        tracing::info!("no runtime to push the transcript to");
        return;
    }
    let mut pusher = match Pusher::new(&host) {
        Ok(pusher) => pusher,
        Err(error) => {
            tracing::error!(%error, "the transcript cannot be pushed");
            return;
        }
    };
    let mut changes = host.changes.subscribe();
    changes.mark_changed();
    while stop.run_until_cancelled(changes.changed()).await.is_some_and(|changed| changed.is_ok()) {
        if stop.run_until_cancelled(tokio::time::sleep(DEBOUNCE)).await.is_none() {
            return;
        }
        changes.mark_unchanged();
        let mut delays = backoff();
        loop {
            let pause = match stop.run_until_cancelled(pusher.push(&host)).await {
                None => return,
                Some(Ok(())) => break,
                Some(Err(PushError::More)) => continue,
                Some(Err(PushError::Refused(401))) if host.reload_token() => continue,
                Some(Err(PushError::Refused(code))) => {
                    tracing::warn!(code, "the runtime refused the transcript");
                    REFUSED_PAUSE
                }
                Some(Err(PushError::Temporary(reason))) => {
                    let pause = delays.next().unwrap_or(REFUSED_PAUSE);
                    tracing::warn!(reason, pause_ms = pause.as_millis(), "the transcript was not pushed; trying again");
                    pause
                }
            };
            if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
        }
    }
}

/// One last push of everything when the pod ends.
pub(super) async fn push_last(host: &Host) {
    let Ok(mut pusher) = Pusher::new(host) else { return };
    match tokio::time::timeout(LAST_PUSH, pusher.push(host)).await {
        Ok(Ok(()) | Err(PushError::More)) => {}
        Ok(Err(PushError::Refused(code))) => tracing::warn!(code, "the runtime refused the last transcript"),
        Ok(Err(PushError::Temporary(reason))) => tracing::warn!(reason, "the last transcript was not pushed"),
        Err(_) => tracing::warn!("the last transcript was not pushed in time"),
    }
}

/// Says that this pod has been told to end: what the session holds may have to be saved from going with it.
pub(super) async fn tell_end(host: &Host) {
    let Ok(pusher) = Pusher::new(host) else { return };
    let tell = async {
        for pause in backoff() {
            let Some(target) = target(host, "ending") else { return };
            let call = pusher.client.post(target.url).bearer_auth(target.token.expose_secret());
            match call.timeout(LAST_PUSH).send().await.map(|answer| answer.status()) {
                Ok(status) if status.is_success() => return,
                Ok(status) if status.is_server_error() || matches!(status.as_u16(), 408 | 429) => {
                    tracing::warn!(status = status.as_u16(), "the runtime cannot hear of the end");
                }
                Ok(status) if status.as_u16() == 401 && host.reload_token() => continue,
                Ok(status) => {
                    tracing::warn!(status = status.as_u16(), "the runtime does not want to know of the end");
                    return;
                }
                Err(error) => tracing::warn!(error = %error.without_url(), "the runtime could not be told of the end"),
            }
            tokio::time::sleep(pause).await;
        }
    };
    if tokio::time::timeout(LAST_WORD, tell).await.is_err() {
        tracing::warn!("the runtime could not be told of the end in time");
    }
}
