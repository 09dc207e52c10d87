//! Permissions that no client of the session decided about: the runtime gets them for the audit log. Kept in memory until
//! it has them; a runtime that is away delays them and nothing else.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use agentapi_crds::names::{MAX_PERMISSION_DECISIONS, MAX_PERMISSION_OPTION};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{
    host::Host,
    permissions::{By, Outcome},
    sync::{LAST_PUSH, REFUSED_PAUSE, backoff, client, target},
};

/// So many wait at most; then the oldest are given up, with a line in this pod's log.
const MAX_WAITING: usize = 1024;
/// Longer than any kind of tool that there is.
const MAX_KIND: usize = 32;

/// One of them.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Decided {
    permission: String,
    decision: String,
    by: By,
    kind: String,
}

/// What the runtime does not have yet.
#[derive(Default)]
pub(super) struct Decisions {
    waiting: Mutex<VecDeque<Decided>>,
    added: Notify,
}

#[derive(Serialize)]
struct Part<'a> {
    decisions: &'a [Decided],
}

#[derive(Deserialize)]
struct Taken {
    taken: usize,
}

impl Decisions {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Decided>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more.
    pub(super) fn add(&self, permission: String, mut kind: String, outcome: &Outcome, by: By) {
        let mut decision = match outcome {
            Outcome::Selected { option_id } => option_id.replace(char::is_control, " "),
            Outcome::Cancelled => "cancelled".to_owned(),
        };
        decision.truncate(decision.floor_char_boundary(MAX_PERMISSION_OPTION));
        kind.truncate(kind.floor_char_boundary(MAX_KIND));
        let mut waiting = self.lock();
        if waiting.len() >= MAX_WAITING
            && let Some(lost) = waiting.pop_front()
        {
            tracing::error!(?lost, "the runtime takes no decisions about permissions; one is given up");
        }
        waiting.push_back(Decided { permission, decision, by, kind });
        self.added.notify_one();
    }

    fn part(&self) -> Vec<Decided> {
        self.lock().iter().take(MAX_PERMISSION_DECISIONS).cloned().collect()
    }

    fn done(&self, part: &[Decided]) {
        // Some of the part may have been given up meanwhile.
        self.lock().retain(|waiting| !part.iter().any(|it| it.permission == waiting.permission));
    }
}

/// Pushes what there is. An error says why not all of it was taken.
async fn push(host: &Host, client: &reqwest::Client) -> Result<(), String> {
    loop {
        let part = host.decisions.part();
        if part.is_empty() {
            return Ok(());
        }
        let target = target(host, "permissions").ok_or("the pod has no session yet")?;
        let body = Part { decisions: &part };
        let sent = client.post(target.url).bearer_auth(target.token.expose_secret()).json(&body).send().await;
        let answer = sent.map_err(|error| error.without_url().to_string())?;
        if !answer.status().is_success() {
            return Err(format!("status {}", answer.status().as_u16()));
        }
        let taken = answer.json::<Taken>().await.map_err(|error| error.without_url().to_string())?.taken;
        host.decisions.done(&part[..taken.min(part.len())]);
        if taken < part.len() {
            return Err(format!("only {taken} of {} were taken", part.len()));
        }
    }
}

/// Pushes them as they come, until it is cancelled.
pub(super) async fn push_as_they_come(host: Arc<Host>, stop: CancellationToken) {
    let Ok(client) = client(&host) else { return };
    let mut delays = backoff();
    loop {
        let pause = match stop.run_until_cancelled(push(&host, &client)).await {
            None => return,
            Some(Ok(())) => {
                delays = backoff();
                if stop.run_until_cancelled(host.decisions.added.notified()).await.is_none() {
                    return;
                }
                Duration::ZERO
            }
            Some(Err(reason)) => {
                tracing::warn!(reason, "decisions about permissions were not taken; trying again");
                delays.next().unwrap_or(REFUSED_PAUSE)
            }
        };
        if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
    }
}

/// What is left when the pod ends.
pub(super) async fn push_last(host: &Host) {
    let Ok(client) = client(host) else { return };
    match tokio::time::timeout(LAST_PUSH, push(host, &client)).await {
        Ok(Ok(())) => {}
        Ok(Err(reason)) => tracing::warn!(reason, "the last decisions about permissions were not taken"),
        Err(_) => tracing::warn!("the last decisions about permissions were not taken in time"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_runtime_has_is_forgotten_and_the_oldest_when_there_is_no_room() {
        let decisions = Decisions::default();
        for id in 0..=MAX_WAITING {
            let option_id = format!("yes\n{}", "é".repeat(MAX_PERMISSION_OPTION));
            decisions.add(id.to_string(), "edit".to_owned(), &Outcome::Selected { option_id }, By::Policy);
        }
        let part = decisions.part();
        assert_eq!((part.len(), part[0].permission.as_str()), (MAX_PERMISSION_DECISIONS, "1"));
        assert!(part[0].decision.starts_with("yes é") && part[0].decision.len() <= MAX_PERMISSION_OPTION);
        decisions.done(&part[..2]);
        assert_eq!(decisions.part()[0].permission, "3");
        decisions.done(&part);
        assert_eq!(decisions.lock().len(), MAX_WAITING - MAX_PERMISSION_DECISIONS);
    }
}
