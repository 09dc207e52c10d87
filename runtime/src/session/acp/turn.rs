//! A turn: the user's message goes to the agent, what it does becomes its message, and the agent's answer to the request
//! is the end of it. In between it may ask for permissions.

use std::sync::Arc;

use agentapi_crds::names::MAX_PERMISSION_OPTION;
use serde_json::{Value, json};

use super::{
    Connection,
    reply::Reply,
    rpc::{CallError, beginning},
    text,
};
use crate::session::{
    events::Body,
    format::Look,
    host::{Host, Inner},
    permissions::{Ask, Choice, Outcome, ToolCall},
    pty::PtyError,
    send::{SendError, Sending},
    state::Resume,
    transport::Agent,
};

/// A request for permission has no more options than this.
const MAX_OPTIONS: usize = 32;
/// Longer words for people are cut.
const MAX_NAME: usize = 1000;

impl Host {
    /// Gives the agent a message of the user.
    pub(in crate::session) fn begin_turn(
        self: &Arc<Self>,
        connection: &Arc<Connection>,
        content: &str,
        sending: Sending<'_>,
    ) -> Result<(), SendError> {
        let session = connection.session.get().ok_or(SendError::Busy)?;
        let prompt = json!({ "sessionId": session, "prompt": [{ "type": "text", "text": content }] });
        let mut inner = self.lock();
        // Under the lock, which the agent's updates wait for: its answer comes after the question.
        let answer = connection.peer.call("session/prompt", &prompt).map_err(|_| PtyError::Input)?;
        let id = inner.conversation.say(content, (self.config.now)());
        self.publish_message(&inner, Some(id));
        inner.reply = Reply::default();
        inner.look = Look::Working;
        inner.resume = Resume::Allowed;
        inner.sending = false;
        let generation = inner.generation;
        drop(inner);
        drop(sending);
        let host = Arc::clone(self);
        tokio::spawn(async move {
            let ended = answer.get().await;
            host.end_turn(generation, ended);
        });
        tracing::info!(id, characters = content.chars().count(), "message sent");
        Ok(())
    }

    fn end_turn(&self, generation: u64, ended: Result<Value, CallError>) {
        let mut inner = self.lock();
        if inner.generation != generation {
            return;
        }
        // What it has asked for in this turn it does not want any more.
        self.permissions.cancel_all();
        match ended {
            Ok(answer) => {
                let reason = text(&answer, "stopReason");
                if reason != "end_turn" {
                    inner.reply.note(format!("[stopped: {}]", reason.replace('_', " ")));
                }
            }
            // Told where the agent's end is told.
            Err(CallError::Closed) => {}
            Err(error) => {
                tracing::warn!(%error, "the agent's turn has failed");
                inner.reply.note(format!("[failed: {error}]"));
                let message = format!("The agent's turn has failed: {error}");
                self.hub.publish(Body::Error { message, level: "error", time: (self.config.now)() });
            }
        }
        self.take_reply(&mut inner);
        inner.look = Look::Waiting;
        self.refresh(&mut inner);
    }

    /// Makes what the agent has said so far a message.
    pub(in crate::session) fn take_reply(&self, inner: &mut Inner) {
        let content = inner.reply.render();
        let changed = inner.conversation.answer(content, (self.config.now)());
        self.publish_message(inner, changed);
    }

    /// The agent says or does something.
    pub(super) fn agent_update(&self, connection: &Arc<Connection>, params: &Value) {
        let mut inner = self.lock();
        if is_about(&inner, connection, params) && inner.reply.update(&params["update"]) {
            // The tracker makes a message of it, a few times a second.
            self.dirty.notify_one();
        }
    }

    /// The agent wants to use a tool.
    pub(super) fn agent_asks(self: &Arc<Self>, connection: &Arc<Connection>, id: Value, params: &Value) {
        let call = &params["toolCall"];
        let shown = {
            let mut inner = self.lock();
            if !is_about(&inner, connection, params) {
                drop(inner);
                return connection.peer.respond(&id, Ok(cancelled()));
            }
            inner.reply.tool(call)
        };
        self.dirty.notify_one();
        let raw_input = Some(call["rawInput"].clone()).filter(|input| !input.is_null());
        let options = params["options"].as_array().into_iter().flatten();
        let options =
            options.filter(|option| text(option, "optionId").len() <= MAX_PERMISSION_OPTION).take(MAX_OPTIONS);
        let options = options.map(|option| Choice {
            option_id: text(option, "optionId").to_owned(),
            name: beginning(text(option, "name"), MAX_NAME).to_owned(),
            kind: beginning(text(option, "kind"), MAX_NAME).to_owned(),
        });
        let options: Vec<Choice> = options.collect();
        let allowing: Vec<String> = options
            .iter()
            .filter(|option| option.kind.starts_with("allow"))
            .map(|option| option.option_id.clone())
            .collect();
        let ask = Ask { tool_call: ToolCall { title: shown.title, kind: shown.kind, raw_input }, options };
        let (host, connection) = (Arc::clone(self), Arc::clone(connection));
        let tool = text(call, "toolCallId").to_owned();
        tokio::spawn(async move {
            let (allowed, answer) = match host.ask_permission(ask).await {
                Outcome::Cancelled => (false, cancelled()),
                Outcome::Selected { option_id } => (
                    allowing.contains(&option_id),
                    json!({ "outcome": { "outcome": "selected", "optionId": option_id } }),
                ),
            };
            if !allowed {
                host.lock().reply.rejected(&tool);
                host.dirty.notify_one();
            }
            connection.peer.respond(&id, Ok(answer));
        });
    }
}

fn cancelled() -> Value {
    json!({ "outcome": { "outcome": "cancelled" } })
}

/// This is from the agent that runs now, and about its session and not one that it has opened besides, or the past.
fn is_about(inner: &Inner, connection: &Arc<Connection>, params: &Value) -> bool {
    let current = matches!(&inner.agent, Some(Agent::Acp(current)) if Arc::ptr_eq(current, connection));
    current && connection.session.get().is_some_and(|session| params["sessionId"] == **session)
}
