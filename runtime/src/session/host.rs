//! The session: ties process, screen, conversation, events and saved state together. All state that requests
//! read is behind one short lock that is never held across an await, so reads answer while a message is sent.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
};

use secrecy::SecretString;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use crate::google_credentials::CredentialsError;

use super::{
    Error,
    acp::reply::Reply,
    agents::{self, AgentProfile},
    asking::Asked,
    claim::Claim,
    config::SessionConfig,
    decisions::Decisions,
    events::{Body, Hub, Status, Subscription},
    format::Look,
    group::Exit,
    mcp::Mcp,
    messages::{Conversation, Message},
    permissions::Permissions,
    pty::PtyError,
    reap,
    reserve::Reserve,
    screen::Frame,
    seed::SeedError,
    starting::{Started, Wanted},
    state::{PromptState, Resume, State, StateDir, StateError},
    transport::{Agent, Transport},
};

/// The agent could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its files could not be written.
    #[error(transparent)]
    Seed(#[from] SeedError),
    /// Its system prompt could not be written.
    #[error(transparent)]
    Prompt(#[from] StateError),
    /// Its process could not be started.
    #[error(transparent)]
    Pty(#[from] PtyError),
    /// Its Google credentials could not be written.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The work was interrupted.
    #[error("starting the agent was interrupted")]
    Interrupted,
}

/// What requests read and the tracker writes.
pub(super) struct Inner {
    pub(super) conversation: Conversation,
    pub(super) last_change: Instant,
    /// What the screen says about the agent.
    pub(super) look: Look,
    /// The agent has been ready since it was started.
    pub(super) agent_ready: bool,
    /// Nothing has been typed since the agent was started.
    pub(super) untouched: bool,
    /// A message is being typed; the screen belongs to nobody.
    pub(super) sending: bool,
    /// Which of the terminal's screens the conversation is on: the one where the last message was typed.
    pub(super) alternate: Option<bool>,
    /// The permission that the agent asks for on its screen.
    pub(super) asked: Option<Asked>,
    pub(super) status: Status,
    pub(super) session_id: Option<String>,
    pub(super) token: Option<SecretString>,
    pub(super) prompt: Option<String>,
    pub(super) prompt_state: PromptState,
    pub(super) resume: Resume,
    pub(super) env: BTreeMap<String, String>,
    pub(super) system_prompt: Option<String>,
    /// Counts agent processes, so that the end of an earlier one is not taken for the end of this one.
    pub(super) generation: u64,
    pub(super) agent: Option<Agent>,
    /// With ACP: what the agent has said and done since the user's last message.
    pub(super) reply: Reply,
    /// With ACP: the agent's own id of its session, for the next process to go on with.
    pub(super) acp_session: Option<String>,
    /// What the platform said last to whoever follows the session.
    pub(super) notice: Option<String>,
}

/// One session.
pub(super) struct Host {
    pub(super) config: SessionConfig,
    pub(super) profile: AgentProfile,
    pub(super) hub: Hub,
    pub(super) frames: watch::Sender<Arc<Frame>>,
    /// One message at a time.
    pub(super) typing: tokio::sync::Mutex<()>,
    pub(super) ready: watch::Sender<bool>,
    /// Counts changes of messages, status and claim.
    pub(super) changes: watch::Sender<u64>,
    pub(super) dirty: Arc<Notify>,
    inner: Mutex<Inner>,
    pub(super) claiming: tokio::sync::Mutex<()>,
    pub(super) saving: tokio::sync::Mutex<()>,
    /// The runtime has renewed the token over HTTP.
    pub(super) token_told: AtomicBool,
    /// What was said last is on the disk.
    pub(super) saved: AtomicBool,
    failure: watch::Sender<Option<Exit>>,
    pub(super) mcp: Mcp,
    pub(super) permissions: Permissions,
    pub(super) decisions: Decisions,
    pub(super) state_dir: StateDir,
    pub(super) reserve: Reserve,
}

impl Host {
    /// Reads what an earlier process of this pod left and what the Secret says; starts nothing.
    pub(super) fn open(config: SessionConfig) -> Result<Arc<Self>, Error> {
        let profile = agents::profile(&config.agent_type)?;
        if config.transport == Transport::Acp && config.command.is_none() && profile.acp.is_none() {
            return Err(Error::NoAcp { agent: profile.name });
        }
        let state_dir = StateDir::open(&config.state_dir)?;
        let state = state_dir.load()?;
        let saved = state_dir.load_claim()?;
        let mounted = config.secret_dir.as_deref().map(Claim::from_secret_dir).transpose()?.flatten();
        let claim = match (saved, mounted) {
            (Some(saved), Some(mounted)) if saved.session_id != mounted.session_id => {
                return Err(Error::OtherSession { state: saved.session_id, secret: mounted.session_id });
            }
            // The Secret is newer: its token may have been renewed.
            (_, Some(mounted)) => Some(mounted),
            (saved, None) => saved,
        };
        let now = (config.now)();
        let restored = state.is_some();
        let state = state.unwrap_or_else(|| State::new(Vec::new()));
        if restored {
            tracing::info!(messages = state.messages.len(), "state restored");
        }
        let last_event = state.last_event;
        let conversation = match config.transport {
            Transport::Pty => Conversation::restore(state.messages, now),
            Transport::Acp => Conversation::structured(state.messages),
        };
        let (prompt, prompt_state) = match (state.initial_prompt, state.prompt_progress) {
            (Some(prompt), saved) if saved != PromptState::None => {
                // Typed but not confirmed when the earlier process ended: at most once, so not again.
                (Some(prompt), if saved == PromptState::Sending { PromptState::Sent } else { saved })
            }
            _ => {
                let prompt = claim.as_ref().and_then(|claim| claim.initial_prompt.clone());
                let prompt = prompt.or_else(|| config.initial_prompt.clone()).filter(|text| !text.trim().is_empty());
                let state = if prompt.is_some() { PromptState::Pending } else { PromptState::None };
                (prompt, state)
            }
        };
        let inner = Inner {
            conversation,
            last_change: Instant::now(),
            look: Look::Other,
            agent_ready: false,
            untouched: true,
            sending: false,
            alternate: None,
            asked: None,
            status: Status::Running,
            session_id: claim.as_ref().map(|claim| claim.session_id.clone()),
            token: claim.as_ref().and_then(|claim| claim.token.clone()),
            prompt,
            prompt_state,
            resume: state.resume,
            env: claim.as_ref().map(Claim::plain_env).unwrap_or_default(),
            system_prompt: claim.and_then(|claim| claim.system_prompt),
            generation: 0,
            agent: None,
            reply: Reply::default(),
            acp_session: state.acp_session,
            notice: None,
        };
        let epoch = uuid::Uuid::new_v4().simple().to_string()[..12].to_owned();
        Ok(Arc::new(Self {
            profile,
            hub: Hub::new(epoch, last_event),
            frames: watch::Sender::new(Arc::new(Frame::default())),
            typing: tokio::sync::Mutex::new(()),
            ready: watch::Sender::new(false),
            changes: watch::Sender::new(0),
            inner: Mutex::new(inner),
            dirty: Arc::new(Notify::new()),
            claiming: tokio::sync::Mutex::new(()),
            saving: tokio::sync::Mutex::new(()),
            token_told: AtomicBool::new(false),
            saved: AtomicBool::new(true),
            failure: watch::Sender::new(None),
            mcp: Mcp::default(),
            permissions: Permissions::default(),
            decisions: Decisions::default(),
            reserve: Reserve::new(&config.state_dir, config.state_reserve),
            state_dir,
            config,
        }))
    }

    /// Starts the agent.
    pub(super) async fn begin(self: &Arc<Self>) -> Result<(), StartError> {
        // A claim that comes meanwhile starts the agent again, and must not do so half-way.
        let _one_at_a_time = self.claiming.lock().await;
        self.load_connections().await;
        self.start_agent().await?;
        self.persist().await;
        self.spawn_initial_prompt();
        Ok(())
    }

    /// Agent type.
    pub(super) fn agent_type(&self) -> &str {
        &self.profile.name
    }

    /// Status now.
    pub(super) fn status(&self) -> Status {
        self.lock().status
    }

    /// All messages.
    pub(super) fn messages(&self) -> Vec<Message> {
        self.lock().conversation.messages().to_vec()
    }

    /// The session that this pod belongs to.
    pub(super) fn session_id(&self) -> Option<String> {
        self.lock().session_id.clone()
    }

    /// The agent has started and can take messages.
    pub(super) fn is_ready(&self) -> bool {
        *self.ready.borrow()
    }

    /// The agent has ended by itself.
    pub(super) fn failure(&self) -> watch::Receiver<Option<Exit>> {
        self.failure.subscribe()
    }

    /// Ends the host.
    pub(super) fn fail(&self, exit: Exit) {
        self.failure.send_replace(Some(exit));
    }

    /// Process id of the agent.
    pub(super) fn agent_pid(&self) -> Option<u32> {
        self.lock().agent.as_ref().and_then(Agent::pid)
    }

    /// Listens to events; the snapshot and the subscription belong to the same moment.
    pub(super) fn subscribe(&self, last: Option<&str>) -> (Vec<Body>, Subscription) {
        let inner = self.lock();
        let subscription = self.hub.subscribe(last);
        let messages = inner.conversation.messages().iter().map(Body::message);
        let permissions = self.permissions.pending().into_iter().map(Body::Permission);
        let status = Body::Status { status: inner.status, agent_type: self.profile.name.clone() };
        (messages.chain(permissions).chain([status]).collect(), subscription)
    }

    /// Writes keystrokes to the agent.
    pub(super) fn write_raw(&self, bytes: &[u8]) -> Result<(), PtyError> {
        let process = self.process()?;
        let asks = {
            let mut inner = self.lock();
            inner.untouched = false;
            inner.asked.is_some()
        };
        process.write(bytes)?;
        if asks {
            self.stir();
        }
        Ok(())
    }

    /// Ends the agent.
    pub(super) async fn stop(self: &Arc<Self>) {
        // First: an agent that does not want to end must not leave it on the disk.
        self.leave_claim_to_secret();
        self.persist().await;
        let agent = {
            let mut inner = self.lock();
            inner.generation += 1;
            inner.agent_ready = false;
            inner.agent.take()
        };
        self.ready.send_replace(false);
        if let Some(agent) = agent {
            agent.group().stop().await;
            reap::end_leftovers(self.hub.epoch()).await;
        }
        self.save(Some(self.hub.last_id())).await;
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn start_agent(self: &Arc<Self>) -> Result<(), StartError> {
        let (old, generation, wanted, begun) = {
            let mut inner = self.lock();
            inner.generation += 1;
            inner.agent_ready = false;
            inner.untouched = true;
            inner.forget_screen();
            self.refresh(&mut inner);
            let begun = inner.conversation.begun();
            let may_resume = begun && inner.resume != Resume::Refused;
            let (env, system_prompt) = (inner.env.clone(), inner.system_prompt.clone());
            let acp_session = inner.acp_session.clone().filter(|_| may_resume);
            let generation = inner.generation;
            let wanted = Wanted { env, system_prompt, may_resume, acp_session, generation, begun };
            (inner.agent.take(), inner.generation, wanted, begun)
        };
        self.ready.send_replace(false);
        self.permissions.cancel_all();
        if let Some(old) = old {
            // An agent that nobody has talked to has nothing to save, and the claim is waiting.
            if begun {
                old.group().stop().await;
            } else {
                old.group().kill().await;
            }
            reap::end_leftovers(self.hub.epoch()).await;
        }
        let mark = (reap::MARK.to_owned(), self.hub.epoch().to_owned());
        let (host, dirty) = (Arc::clone(self), Arc::clone(&self.dirty));
        let started = tokio::task::spawn_blocking(move || host.prepare_and_start(wanted, mark, dirty));
        let Started { agent, resume, greeting } = started.await.map_err(|_| StartError::Interrupted)??;
        tracing::info!(pid = agent.pid(), "agent started");
        let mut exit = agent.exit();
        {
            let mut inner = self.lock();
            inner.last_change = Instant::now();
            inner.agent = Some(agent);
            inner.reply = Reply::default();
            if inner.resume != Resume::Refused {
                inner.resume = resume;
            }
            self.frames.send_replace(Arc::new(Frame::default()));
        }
        self.dirty.notify_one();
        if let Some(greeting) = greeting {
            greeting.begin(self);
        }
        let host = Arc::clone(self);
        tokio::spawn(async move {
            if let Ok(Some(exit)) = exit.wait_for(Option::is_some).await.map(|exit| exit.clone()) {
                host.agent_ended(generation, exit);
            }
        });
        Ok(())
    }

    fn agent_ended(&self, generation: u64, exit: Exit) {
        let mut inner = self.lock();
        if inner.generation != generation {
            return;
        }
        tracing::error!(code = exit.code, signal = exit.signal, "the agent ended by itself");
        if inner.resume == Resume::Asked && !inner.agent_ready {
            tracing::warn!("the agent did not go on with its conversation; its next process starts a new one");
            inner.resume = Resume::Refused;
        }
        inner.agent_ready = false;
        inner.agent = None;
        let message = format!("The agent ended with code {}. Its container is being restarted.", exit.code);
        self.hub.publish(Body::Error { message, level: "error", time: (self.config.now)() });
        self.refresh(&mut inner);
        self.ready.send_replace(false);
        drop(inner);
        self.permissions.cancel_all();
        self.fail(exit);
    }
}
