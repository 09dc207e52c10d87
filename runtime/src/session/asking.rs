//! An agent in a terminal that asks for a permission: the box on its screen becomes a request like any other, and the answer
//! becomes keystrokes. Somebody who answers at the screen withdraws the request.

use std::sync::Arc;

use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    boxes::{self, Question},
    events::Body,
    host::{Host, Inner},
    permissions::{AnswerError, Ask, Choice, Outcome, ToolCall},
    pty::PtyError,
    screen::Frame,
};

/// A box that stays although it was answered is asked about again, so many times.
const ATTEMPTS: usize = 3;

/// A question that is on the screen.
pub(super) struct Asked {
    question: Question,
    /// Ends the request when the question is gone.
    _gone: DropGuard,
}

impl Host {
    /// Looks for a question on the screen. `inner.asked` is what was there before.
    pub(super) fn follow_question(self: &Arc<Self>, inner: &mut Inner, frame: &Frame) {
        let question = self.profile.permission.as_ref().and_then(|data| boxes::question(data, frame.screen()));
        if inner.asked.as_ref().map(|asked| &asked.question) == question.as_ref() {
            return;
        }
        inner.asked = question.map(|question| {
            let gone = CancellationToken::new();
            let (host, asks, ended) = (Arc::clone(self), question.clone(), gone.clone());
            tokio::spawn(async move { ended.run_until_cancelled_owned(host.put_question(asks)).await });
            Asked { question, _gone: gone.drop_guard() }
        });
    }

    /// A client's answer to a request.
    pub(super) fn answer_permission(&self, id: &str, outcome: Outcome) -> Result<(), AnswerError> {
        self.permissions.answer(id, outcome)?;
        self.stir();
        Ok(())
    }

    /// The agent is about to go on: whoever asks for its status now must not hear that of before.
    pub(super) fn stir(&self) {
        let mut inner = self.lock();
        inner.last_change = Instant::now();
        self.refresh(&mut inner);
        drop(inner);
        self.dirty.notify_one();
    }

    async fn put_question(self: Arc<Self>, question: Question) {
        for _ in 0..ATTEMPTS {
            // Half of a box is a box too, for as long as the agent draws.
            self.wait_for_rest(&mut self.frames.subscribe()).await;
            let outcome = self.ask_permission(request(&question)).await;
            if let Err(error) = self.give(&question, &outcome) {
                tracing::warn!(%error, "the agent did not get the answer to its question");
                return;
            }
            // This future ends when the box goes away.
            tokio::time::sleep(self.config.timing.enter).await;
        }
        tracing::error!("the agent asks for a permission and takes no answer");
        let message = "The agent asks for a permission and takes no answer; look at its screen.".to_owned();
        self.hub.publish(Body::Error { message, level: "error", time: (self.config.now)() });
    }

    fn give(&self, question: &Question, outcome: &Outcome) -> Result<(), PtyError> {
        let keys = match outcome {
            Outcome::Selected { option_id } => {
                let index = option_id.parse::<usize>().ok().and_then(|number| number.checked_sub(1));
                index.and_then(|index| question.answers.get(index)).map(|answer| answer.keys.clone())
            }
            Outcome::Cancelled => self.profile.cancel.as_ref().map(|cancel| cancel.keys.clone()),
        };
        keys.map_or(Ok(()), |keys| self.write_raw(keys.as_bytes()))
    }
}

/// The question as a request; answers are counted from 1, as most boxes do.
fn request(question: &Question) -> Ask {
    let options = question.answers.iter().enumerate().map(|(index, answer)| Choice {
        option_id: (index + 1).to_string(),
        name: answer.label.clone(),
        kind: answer.kind.clone(),
    });
    let tool_call = ToolCall {
        title: question.title.clone(),
        kind: "other".to_owned(),
        raw_input: Some(json!({ "text": question.text })),
    };
    Ask { tool_call, options: options.collect() }
}
