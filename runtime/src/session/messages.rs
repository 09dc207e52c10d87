//! The conversation: splits what the terminal shows into messages of the agent and the user. Pure; the
//! caller gives screens and times.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{agents::AgentProfile, format};

/// Who wrote a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Role {
    /// The agent.
    Agent,
    /// The user.
    User,
}

/// One message of the conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Message {
    /// Place in the conversation, counted from 0.
    pub id: usize,
    /// Text, as it looks in the agent's terminal.
    pub content: String,
    /// Who wrote it.
    pub role: Role,
    /// When it was last changed.
    pub time: Timestamp,
}

/// The messages and what is needed to go on with them.
#[derive(Clone, Debug)]
pub(super) struct Conversation {
    messages: Vec<Message>,
    /// Body of the screen when the last user message was sent.
    before: Vec<String>,
    /// The screen belongs to no message: the agent was restarted and nothing was sent to it since.
    frozen: bool,
}

impl Conversation {
    /// A new conversation; a terminal agent always has a first message with what it shows at its start.
    pub(super) fn new(now: Timestamp) -> Self {
        let first = Message { id: 0, content: String::new(), role: Role::Agent, time: now };
        Self { messages: vec![first], before: Vec::new(), frozen: false }
    }

    /// A conversation that goes on after a restart. The new process draws a new first screen, which is not
    /// a message of this conversation.
    pub(super) fn restore(messages: Vec<Message>, now: Timestamp) -> Self {
        let begun = messages.iter().any(|message| message.role == Role::User);
        if !begun {
            return Self::new(now);
        }
        let messages =
            messages.into_iter().enumerate().map(|(id, message)| Message { id, ..message }).collect::<Vec<_>>();
        Self { messages, before: Vec::new(), frozen: true }
    }

    /// A conversation whose messages the agent tells apart itself. What it says before the next message of the user is no
    /// part of the last one.
    pub(super) fn structured(messages: Vec<Message>) -> Self {
        let messages = messages.into_iter().enumerate().map(|(id, message)| Message { id, ..message }).collect();
        Self { messages, before: Vec::new(), frozen: true }
    }

    /// All messages.
    pub(super) fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// The user has said something.
    pub(super) fn begun(&self) -> bool {
        self.messages.iter().any(|message| message.role == Role::User)
    }

    /// The agent has said nothing yet to what the user said last.
    pub(super) fn unanswered(&self) -> bool {
        self.messages.last().is_some_and(|message| message.role == Role::User)
    }

    /// Takes in what the terminal shows. Returns the id of the message that changed.
    pub(super) fn observe(&mut self, profile: &AgentProfile, lines: &[String], now: Timestamp) -> Option<usize> {
        if self.frozen {
            return None;
        }
        let user_input =
            self.messages.iter().rev().find(|message| message.role == Role::User).map_or("", |m| m.content.as_str());
        let content = format::reply(profile, &self.before, lines, user_input);
        let last = self.messages.last_mut()?;
        if last.role == Role::User {
            return if content.is_empty() { None } else { Some(self.push(Role::Agent, content, now)) };
        }
        if last.content == content {
            return None;
        }
        last.content = content;
        last.time = now;
        Some(last.id)
    }

    /// The agent is done. An agent that said nothing still gets its (empty) message, so that roles alternate.
    pub(super) fn settle(&mut self, now: Timestamp) -> Option<usize> {
        (self.unanswered() && !self.frozen).then(|| self.push(Role::Agent, String::new(), now))
    }

    /// The agent took a message of the user; `before` is what the terminal showed when it was sent.
    pub(super) fn user_message(
        &mut self,
        profile: &AgentProfile,
        content: &str,
        before: &[String],
        now: Timestamp,
    ) -> usize {
        self.before = format::body(profile, before);
        self.frozen = false;
        self.push(Role::User, content.to_owned(), now)
    }

    /// The user has said something to an agent that tells messages apart.
    pub(super) fn say(&mut self, content: &str, now: Timestamp) -> usize {
        self.frozen = false;
        self.push(Role::User, content.to_owned(), now)
    }

    /// What such an agent has said since. Returns the id of the message that changed.
    pub(super) fn answer(&mut self, content: String, now: Timestamp) -> Option<usize> {
        if content.is_empty() {
            return None;
        }
        match self.messages.last_mut() {
            Some(last) if last.role == Role::Agent && !self.frozen => {
                if last.content == content {
                    return None;
                }
                last.content = content;
                last.time = now;
                Some(last.id)
            }
            _ => {
                self.frozen = false;
                Some(self.push(Role::Agent, content, now))
            }
        }
    }

    fn push(&mut self, role: Role, content: String, time: Timestamp) -> usize {
        let id = self.messages.len();
        self.messages.push(Message { id, content, role, time });
        id
    }
}

#[cfg(test)]
#[path = "messages_tests.rs"]
mod tests;
