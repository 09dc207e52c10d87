//! Permissions that an agent asks for before it uses a tool. The workspace's policy decides, or a client of the session
//! within a time limit. Knows nothing about how the agent asks: each transport hands its requests in here.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::Serialize;
use serde_json::Value;
use tokio::sync::oneshot;

use super::{events::Body, host::Host};

/// Requests that were answered are known for this long a time, counted in requests.
const ANSWERED: usize = 256;
/// An agent that waits with more requests than this is not asking people.
const MAX_PENDING: usize = 64;
/// The input of a tool is shown up to this size; an edit of a large file can be megabytes.
const MAX_INPUT_BYTES: usize = 64 * 1024;

/// What becomes of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Rule {
    /// A client of the session decides.
    #[default]
    Ask,
    /// It is allowed, this once.
    Allow,
    /// It is rejected, this once.
    Reject,
}

/// The workspace's policy.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// What becomes of requests.
    pub rule: Rule,
    /// With `Ask`: a request that nobody has answered after this time is rejected.
    pub timeout: Duration,
}

/// What the agent wants to do.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ToolCall {
    /// For people.
    pub title: String,
    /// As ACP has it: `read`, `edit`, `execute`, …, `other`.
    pub kind: String,
    /// What the tool would get.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub raw_input: Option<Value>,
}

/// One way to answer.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Choice {
    /// What a client answers with.
    pub option_id: String,
    /// For people.
    pub name: String,
    /// `allow_once`, `allow_always`, `reject_once` or `reject_always`.
    pub kind: String,
}

/// A request as the agent makes it.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    pub tool_call: ToolCall,
    pub options: Vec<Choice>,
}

impl Ask {
    fn choose(&self, kinds: [&str; 2]) -> Outcome {
        let found = kinds.iter().find_map(|kind| self.options.iter().find(|option| option.kind == *kind));
        found.map_or(Outcome::Cancelled, |option| Outcome::Selected { option_id: option.option_id.clone() })
    }

    fn allowed(&self) -> Outcome {
        self.choose(["allow_once", "allow_always"])
    }

    fn rejected(&self) -> Outcome {
        self.choose(["reject_once", "reject_always"])
    }
}

/// A request that waits for an answer.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Pending {
    pub id: String,
    pub tool_call: ToolCall,
    pub options: Vec<Choice>,
}

impl Pending {
    /// Its place in the buffer of events.
    pub(super) fn size(&self) -> usize {
        let input = self.tool_call.raw_input.as_ref().map_or(0, |input| input.to_string().len());
        let options = self.options.iter().map(|option| option.option_id.len() + option.name.len());
        input + self.tool_call.title.len() + options.sum::<usize>() + 128
    }
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// One of the options.
    Selected { option_id: String },
    /// None of them: the tool is not used.
    Cancelled,
}

/// Who gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum By {
    /// The workspace's policy; nobody was asked.
    Policy,
    /// A client of the session.
    User,
    /// Nobody in time.
    Timeout,
    /// The agent asks no more, or its turn was cancelled.
    Agent,
}

/// An answer that is not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum AnswerError {
    /// No such request.
    #[error("this session's agent has not asked for this permission; GET the pending ones")]
    Unknown,
    /// Somebody was faster, or the time is over.
    #[error("this permission is decided already; the event permission_resolved says how")]
    Answered,
    /// No such option.
    #[error("there is no such option; use one of {0}")]
    NoSuchOption(String),
}

/// The requests of a session.
#[derive(Default)]
pub(super) struct Permissions(Mutex<Requests>);

#[derive(Default)]
struct Requests {
    /// In the order in which they came.
    pending: Vec<(Pending, oneshot::Sender<(Outcome, By)>)>,
    answered: VecDeque<String>,
}

impl Requests {
    fn take(&mut self, id: &str) -> Option<oneshot::Sender<(Outcome, By)>> {
        let place = self.pending.iter().position(|(pending, _)| pending.id == id)?;
        let (pending, answer) = self.pending.remove(place);
        self.answered.push_back(pending.id);
        if self.answered.len() > ANSWERED {
            self.answered.pop_front();
        }
        Some(answer)
    }
}

impl Permissions {
    fn lock(&self) -> MutexGuard<'_, Requests> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in a request, if there are not too many.
    fn ask(&self, ask: Ask) -> Option<(Pending, oneshot::Receiver<(Outcome, By)>)> {
        let mut requests = self.lock();
        if requests.pending.len() >= MAX_PENDING {
            return None;
        }
        let Ask { mut tool_call, options } = ask;
        tool_call.raw_input = tool_call.raw_input.filter(|input| input.to_string().len() <= MAX_INPUT_BYTES);
        let pending = Pending { id: uuid::Uuid::new_v4().to_string(), tool_call, options };
        let (answer, answered) = oneshot::channel();
        requests.pending.push((pending.clone(), answer));
        Some((pending, answered))
    }

    /// What waits for an answer.
    pub(super) fn pending(&self) -> Vec<Pending> {
        self.lock().pending.iter().map(|(pending, _)| pending.clone()).collect()
    }

    /// A client's answer.
    pub(super) fn answer(&self, id: &str, outcome: Outcome) -> Result<(), AnswerError> {
        let mut requests = self.lock();
        let Some((pending, _)) = requests.pending.iter().find(|(pending, _)| pending.id == id) else {
            let known = requests.answered.iter().any(|answered| answered == id);
            return Err(if known { AnswerError::Answered } else { AnswerError::Unknown });
        };
        if let Outcome::Selected { option_id } = &outcome
            && !pending.options.iter().any(|option| option.option_id == *option_id)
        {
            let known: Vec<_> = pending.options.iter().map(|option| option.option_id.as_str()).collect();
            return Err(AnswerError::NoSuchOption(known.join(", ")));
        }
        if let Some(answer) = requests.take(id) {
            // Nobody listens any more only when the agent has ended.
            let _ = answer.send((outcome, By::User));
        }
        Ok(())
    }

    /// The agent asks for nothing any more.
    pub(super) fn cancel_all(&self) {
        let mut requests = self.lock();
        while let Some(id) = requests.pending.first().map(|(pending, _)| pending.id.clone()) {
            if let Some(answer) = requests.take(&id) {
                let _ = answer.send((Outcome::Cancelled, By::Agent));
            }
        }
    }
}

/// Says how a request ended, however it does.
struct Open<'a> {
    host: &'a Host,
    id: String,
    outcome: Outcome,
    by: By,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        let _snapshot = self.host.lock();
        self.host.permissions.lock().take(&self.id);
        let (outcome, option_id) = match std::mem::replace(&mut self.outcome, Outcome::Cancelled) {
            Outcome::Selected { option_id } => ("selected", Some(option_id)),
            Outcome::Cancelled => ("cancelled", None),
        };
        self.host.hub.publish(Body::Resolved { id: std::mem::take(&mut self.id), outcome, option_id, by: self.by });
    }
}

impl Host {
    /// Decides about a request of the agent. An asker that is dropped asks no more; not under the host's lock.
    pub(super) async fn ask_permission(&self, ask: Ask) -> Outcome {
        let Policy { rule, timeout } = self.config.permissions;
        let kind = ask.tool_call.kind.clone();
        match rule {
            Rule::Ask => {}
            Rule::Allow => return self.by_policy(kind, ask.allowed()),
            Rule::Reject => return self.by_policy(kind, ask.rejected()),
        }
        let rejected = ask.rejected();
        let (mut open, mut answer) = {
            // A client that connects now sees the request in its snapshot or as an event, and not twice.
            let _snapshot = self.lock();
            let Some((pending, answer)) = self.permissions.ask(ask) else {
                tracing::warn!("the agent asks for too many permissions at a time; rejected");
                return self.by_policy(kind, rejected);
            };
            let open = Open { host: self, id: pending.id.clone(), outcome: Outcome::Cancelled, by: By::Agent };
            self.hub.publish(Body::Permission(pending));
            (open, answer)
        };
        let answered = if let Ok(answered) = tokio::time::timeout(timeout, &mut answer).await {
            answered.ok()
        } else {
            // From here on nobody can answer; somebody may have done so in the last moment.
            self.permissions.lock().take(&open.id);
            Some(answer.try_recv().unwrap_or((rejected, By::Timeout)))
        };
        if let Some((outcome, by)) = answered {
            (open.outcome, open.by) = (outcome, by);
        }
        if open.by == By::Timeout {
            self.decisions.add(open.id.clone(), kind, &open.outcome, By::Timeout);
        }
        tracing::info!(outcome = ?open.outcome, by = ?open.by, "a permission is decided");
        open.outcome.clone()
    }
}

impl Host {
    fn by_policy(&self, kind: String, outcome: Outcome) -> Outcome {
        self.decisions.add(uuid::Uuid::new_v4().to_string(), kind, &outcome, By::Policy);
        outcome
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    fn ask(kinds: &[&str]) -> Ask {
        let option =
            |kind: &&str| Choice { option_id: format!("id-{kind}"), name: String::new(), kind: (*kind).to_owned() };
        let tool_call = ToolCall { title: "Write a file".to_owned(), kind: "edit".to_owned(), raw_input: None };
        Ask { tool_call, options: kinds.iter().map(option).collect() }
    }

    fn selected(id: &str) -> Outcome {
        Outcome::Selected { option_id: id.to_owned() }
    }

    #[test]
    fn a_policy_takes_the_narrowest_option_of_its_side_or_none() {
        let all = ask(&["allow_always", "allow_once", "reject_always", "reject_once"]);
        assert_eq!((all.allowed(), all.rejected()), (selected("id-allow_once"), selected("id-reject_once")));
        let always = ask(&["reject_always", "allow_always"]);
        assert_eq!((always.allowed(), always.rejected()), (selected("id-allow_always"), selected("id-reject_always")));
        let odd = ask(&["maybe"]);
        assert_eq!((odd.allowed(), odd.rejected()), (Outcome::Cancelled, Outcome::Cancelled));
    }

    #[test]
    fn an_answer_is_taken_once_and_only_if_it_is_one_of_the_options() {
        let permissions = Permissions::default();
        let (first, mut answer) = permissions.ask(ask(&["allow_once"])).unwrap();
        let (second, _open) = permissions.ask(ask(&["reject_once"])).unwrap();
        assert_ne!(first.id, second.id);
        assert!(matches!(permissions.answer("x", Outcome::Cancelled), Err(AnswerError::Unknown)));
        let wrong = permissions.answer(&first.id, selected("id-reject_once")).unwrap_err();
        assert!(wrong.to_string().contains("id-allow_once"), "{wrong}");
        assert!(answer.try_recv().is_err());
        permissions.answer(&first.id, selected("id-allow_once")).unwrap();
        assert_eq!(answer.try_recv().unwrap(), (selected("id-allow_once"), By::User));
        assert!(matches!(permissions.answer(&first.id, Outcome::Cancelled), Err(AnswerError::Answered)));
        assert_eq!(permissions.pending().iter().map(|it| it.id.as_str()).collect::<Vec<_>>(), [second.id.as_str()]);
        permissions.cancel_all();
        assert!(permissions.pending().is_empty());
        assert!(matches!(permissions.answer(&second.id, Outcome::Cancelled), Err(AnswerError::Answered)));
    }

    #[test]
    fn a_large_input_is_not_shown_and_too_many_requests_are_not_kept() {
        let permissions = Permissions::default();
        let mut large = ask(&[]);
        large.tool_call.raw_input = Some(Value::String("x".repeat(MAX_INPUT_BYTES)));
        let (pending, _answer) = permissions.ask(large).unwrap();
        assert!(pending.tool_call.raw_input.is_none());
        let more: Vec<_> = (1..MAX_PENDING).map(|_| permissions.ask(ask(&[])).unwrap()).collect();
        assert!(permissions.ask(ask(&[])).is_none());
        permissions.answer(&more[0].0.id, Outcome::Cancelled).unwrap();
        assert!(permissions.ask(ask(&[])).is_some());
    }
}
