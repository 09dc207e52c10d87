//! Types a user message into the agent: paste, wait until the agent shows it, Enter, wait until the agent
//! reacts. One at a time; goes on when the client that asked for it goes away.

use std::{sync::Arc, time::Duration};

use agentapi_prompts::printable;
use tokio::{sync::watch, time::Instant};

use super::{
    agents::Paste,
    events::{Body, Status},
    format::Look,
    host::Host,
    pty::{AgentProcess, PtyError},
    screen::Frame,
    state::{PromptState, Resume},
    transport::Agent,
};

/// A screen that never comes to rest while the text is in the input box is taken as it is after this time.
const RESTLESS: Duration = Duration::from_secs(3);

/// Why a message was not sent.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    /// Nothing to send.
    #[error("the message is empty; send some text")]
    Empty,
    /// The agent works, or another message is being sent.
    #[error("the agent is busy; wait until its status is stable")]
    Busy,
    /// The agent shows something else than its input box; Enter would answer it.
    #[error(
        "the agent asks something and takes no message now; answer its permission, or look at its screen and answer with type raw"
    )]
    Asks,
    /// The process takes no input.
    #[error(transparent)]
    Pty(#[from] PtyError),
    /// The text did not show up.
    #[error("the agent did not show the message within {0} s; look at its screen")]
    NotShown(u64),
    /// Enter had no effect.
    #[error("the agent did not start on the message within {0} s; look at its screen")]
    NotStarted(u64),
    /// What was said before is not on the disk.
    #[error(
        "the session's disk does not take the conversation, so the message was not sent; make room on it (type raw reaches the agent), or end the session"
    )]
    DiskFull,
    /// The agent has the message, and a restart would not know of it.
    #[error(
        "the agent has the message, but the session's disk does not take the conversation; make room on it before you go on"
    )]
    NotKept,
    /// The work was interrupted.
    #[error("sending was interrupted; look at the messages before you send again")]
    Interrupted,
}

/// Ends the "sending" state however the sending ends.
pub(super) struct Sending<'a>(&'a Host);

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        let mut inner = self.0.lock();
        inner.sending = false;
        self.0.refresh(&mut inner);
    }
}

impl Host {
    /// Sends a user message; returns once the agent has started on it.
    pub(super) async fn send_user(self: &Arc<Self>, content: &str) -> Result<(), SendError> {
        let content = content.trim().to_owned();
        // Also when nothing is left to type: the agent would be waited for in vain.
        if typed(&content).trim().is_empty() {
            return Err(SendError::Empty);
        }
        let host = Arc::clone(self);
        // A task of its own: half a message in the input box is worse than one whose sender is gone.
        tokio::spawn(async move {
            let Ok(_typing) = host.typing.try_lock() else { return Err(SendError::Busy) };
            if !host.is_saved() && !host.persist().await {
                return Err(SendError::DiskFull);
            }
            let sending = {
                let mut inner = host.lock();
                if inner.status != Status::Stable {
                    return Err(SendError::Busy);
                }
                if inner.look != Look::Waiting {
                    return Err(SendError::Asks);
                }
                inner.sending = true;
                host.refresh(&mut inner);
                Sending(&host)
            };
            host.deliver(&content, sending).await?;
            // What is answered is kept: on disk before the client hears of it.
            if host.persist().await { Ok(()) } else { Err(SendError::NotKept) }
        })
        .await
        .map_err(|_| SendError::Interrupted)?
    }

    /// Sends the initial prompt, once, when the agent is ready.
    pub(super) fn spawn_initial_prompt(self: &Arc<Self>) {
        if self.lock().prompt_state != PromptState::Pending {
            return;
        }
        let host = Arc::clone(self);
        tokio::spawn(async move {
            let mut ready = host.ready.subscribe();
            let _typing = loop {
                if ready.wait_for(|ready| *ready).await.is_err() {
                    return;
                }
                let typing = host.typing.lock().await;
                // The agent may have been started again meanwhile.
                if host.is_ready() {
                    break typing;
                }
            };
            let (prompt, sending) = {
                let mut inner = host.lock();
                let Some(prompt) = inner.prompt.clone().filter(|_| inner.prompt_state == PromptState::Pending) else {
                    return;
                };
                inner.prompt_state = PromptState::Sending;
                inner.sending = true;
                (prompt.trim().to_owned(), Sending(&host))
            };
            // On disk before the first key: a restart must not send it again.
            host.persist().await;
            let result = host.deliver(&prompt, sending).await;
            {
                let mut inner = host.lock();
                inner.prompt_state = if result.is_ok() { PromptState::Sent } else { PromptState::Failed };
                if let Err(error) = &result {
                    tracing::error!(%error, "the initial prompt was not sent");
                    let message = format!("The initial prompt was not sent: {error}");
                    host.hub.publish(Body::Error { message, level: "error", time: (host.config.now)() });
                }
                host.refresh(&mut inner);
            }
            host.dirty.notify_one();
            host.persist().await;
        });
    }

    async fn deliver(self: &Arc<Self>, content: &str, sending: Sending<'_>) -> Result<(), SendError> {
        let agent = self.lock().agent.clone();
        match agent {
            Some(Agent::Acp(connection)) => self.begin_turn(&connection, content, sending),
            // Without an agent the terminal says so.
            Some(Agent::Pty(_)) | None => self.type_message(content, sending).await,
        }
    }

    async fn type_message(&self, content: &str, sending: Sending<'_>) -> Result<(), SendError> {
        let timing = self.config.timing;
        let now = (self.config.now)();
        let process = self.process()?;
        let mut frames = self.frames.subscribe();
        let before = process.mark();

        self.lock().untouched = false;
        process.write(self.keystrokes(content, &before))?;
        let deadline = Instant::now() + timing.paste;
        let shown = changed_from(&mut frames, &before, deadline).await;
        if !shown {
            return Err(SendError::NotShown(timing.paste.as_secs()));
        }
        self.wait_for_rest(&mut frames).await;

        let typed = Arc::clone(&frames.borrow_and_update());
        press_enter(&process, &mut frames, &typed, timing.enter, timing.enter_again).await?;

        let mut inner = self.lock();
        let id = inner.conversation.user_message(&self.profile, content, before.screen(), now);
        self.publish_message(&inner, Some(id));
        // There is a conversation again that the next process can go on with.
        inner.resume = Resume::Allowed;
        inner.sending = false;
        inner.alternate = Some(before.alternate);
        inner.last_change = Instant::now();
        self.observe(&mut inner);
        drop(inner);
        drop(sending);
        // The tracker has to plan the next look at the status.
        self.dirty.notify_one();
        tracing::info!(id, characters = content.chars().count(), "message sent");
        Ok(())
    }

    /// The bytes that type a message.
    fn keystrokes(&self, content: &str, frame: &Frame) -> Vec<u8> {
        let text = typed(content);
        if self.profile.input.paste == Paste::Always || frame.bracketed_paste {
            format!("\x1b[200~{text}\x1b[201~").into_bytes()
        } else {
            text.into_bytes()
        }
    }

    /// Waits until the screen has been quiet for a moment.
    pub(super) async fn wait_for_rest(&self, frames: &mut watch::Receiver<Arc<Frame>>) {
        let limit = Instant::now() + RESTLESS;
        let settle = self.profile.input.paste_settle();
        while Instant::now() < limit {
            let shown = Arc::clone(&frames.borrow_and_update());
            if !changed_from(frames, &shown, Instant::now() + settle).await {
                return;
            }
        }
    }
}

/// A message without control characters: they would end the paste or be commands.
fn typed(content: &str) -> String {
    printable(content).replace("\r\n", "\n").replace('\r', "\n")
}

/// Waits until the screen differs from `from`. False when it still does not at the deadline.
async fn changed_from(frames: &mut watch::Receiver<Arc<Frame>>, from: &Frame, deadline: Instant) -> bool {
    let differs = frames.wait_for(|frame| frame.screen() != from.screen());
    matches!(tokio::time::timeout_at(deadline, differs).await, Ok(Ok(_)))
}

/// Presses Enter until the screen changes.
async fn press_enter(
    process: &AgentProcess,
    frames: &mut watch::Receiver<Arc<Frame>>,
    typed: &Frame,
    limit: Duration,
    again: Duration,
) -> Result<(), SendError> {
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        process.write(*b"\r")?;
        if changed_from(frames, typed, (Instant::now() + again).min(deadline)).await {
            return Ok(());
        }
    }
    Err(SendError::NotStarted(limit.as_secs()))
}
