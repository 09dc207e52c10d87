//! Session pods without a cluster: processes of the real session host, each on port 3284 of a loopback address of its
//! own. The API talks to them exactly as to pods: token, claim, readiness, the whole contract.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agentapi_crds::names::{self, SESSION_PORT, env};
use agentapi_prompts::compose::digest;
use agentapi_runtime::pods::{
    Pod, PodBackend, PodError, PodKind, PodRequest, PodState, Rekey, Shortage, WaitingPod, Wake,
};
use anyhow::{Context, Result};
use futures::future::BoxFuture;
use secrecy::ExposeSecret;
use serde_json::json;
use tempfile::TempDir;
use uuid::Uuid;

use super::agent::PodAgent;

pub mod container;
mod keeping;
mod listing;
mod warm;

/// Runs processes as pods.
pub struct ProcessPods {
    binary: PathBuf,
    public_x: String,
    agent: PathBuf,
    folder: TempDir,
    state: Mutex<State>,
    listing: listing::Listing,
}

#[derive(Default)]
struct State {
    internal_api: Option<SocketAddr>,
    running: HashMap<String, Process>,
    /// Do as if the tenant's quota had no room.
    shortage: Option<Shortage>,
    /// Refuse every new pod with this text.
    refuse: Option<String>,
    /// Do as if the API server were away.
    away: bool,
    /// What new pods run instead of the small agent.
    instead: Option<PodAgent>,
    /// Pods are neither given up nor woken: the API server is slow.
    stalled: bool,
    /// Pods have no volume that outlives them.
    keeps_nothing: bool,
    /// Pods of suspended sessions, whose folders are kept.
    asleep: HashSet<String>,
}

struct Process {
    organization: String,
    workspace: String,
    session: Option<Uuid>,
    kind: PodKind,
    ip: Ipv4Addr,
    child: Child,
    /// Of its container.
    mark: String,
    known_keys: String,
    token_key: String,
    prompt_digest: String,
    keeps: bool,
    /// Deleted by somebody, and its process has been told to end.
    leaving: bool,
    /// What it holds does not go with it.
    detached: bool,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        container::end(&self.mark);
    }
}

impl ProcessPods {
    /// `binary` is `session-pod`.
    pub fn new(binary: &str, public_x: &str) -> Result<Self> {
        let agent = Path::new(env!("CARGO_MANIFEST_DIR")).join("../runtime/tests/fixtures/repl.sh").canonicalize()?;
        Ok(Self {
            binary: PathBuf::from(binary),
            public_x: public_x.to_owned(),
            agent,
            folder: tempfile::tempdir()?,
            state: Mutex::default(),
            listing: listing::Listing::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where pods push their transcripts.
    pub fn set_internal_api(&self, address: SocketAddr) {
        self.state().internal_api = Some(address);
    }

    /// Refuses new pods from now on, or no longer.
    pub fn refuse(&self, why: Option<&str>) {
        self.state().refuse = why.map(str::to_owned);
    }

    /// Has no room for new pods from now on, or has again.
    pub fn set_shortage(&self, shortage: Option<Shortage>) {
        self.state().shortage = shortage;
    }

    /// New pods run this agent from now on.
    pub fn set_agent(&self, agent: PodAgent) {
        self.state().instead = Some(agent);
    }

    /// Whether the "cluster" answers.
    pub fn set_away(&self, away: bool) {
        self.state().away = away;
    }

    /// Kills a session's pod as a lost node would. False: it has none.
    pub fn kill(&self, session: Uuid) -> bool {
        let mut state = self.state();
        let name = state.running.iter().find(|(_, it)| it.session == Some(session)).map(|(name, _)| name.clone());
        name.is_some_and(|name| state.running.remove(&name).is_some())
    }

    /// The token in a session's Secret.
    pub fn session_token(&self, session: Uuid) -> Result<String> {
        Ok(std::fs::read_to_string(self.folder(session)?.join("secret/token"))?)
    }

    /// What the pods' session hosts have logged, for looking for panics.
    pub fn logs(&self) -> Result<String> {
        let mut logs = String::new();
        for entry in std::fs::read_dir(self.folder.path())? {
            logs.push_str(&std::fs::read_to_string(entry?.path().join("log")).unwrap_or_default());
        }
        Ok(logs)
    }

    /// The folder of a session's pod, with `workspace` and `state` in it.
    pub fn folder(&self, session: Uuid) -> Result<PathBuf> {
        let state = self.state();
        let name = state.running.iter().find(|(_, it)| it.session == Some(session)).map(|(name, _)| name);
        Ok(self.folder.path().join(name.context("the session has no pod")?))
    }

    /// Name and address of a session's pod.
    pub fn of(&self, session: Uuid) -> Result<(String, IpAddr)> {
        let state = self.state();
        let found = state.running.iter().find(|(_, it)| it.session == Some(session));
        found.map(|(name, it)| (name.clone(), IpAddr::from(it.ip))).context("the session has no pod")
    }

    /// How many pods there are.
    pub fn count(&self) -> usize {
        self.state().running.len()
    }

    /// `session` is the one that the pod is made for and the id of the key of its token.
    fn spawn(
        &self,
        name: &str,
        (organization, workspace): (&str, &str),
        kind: PodKind,
        session: Option<(Uuid, &str)>,
    ) -> Result<()> {
        let home = self.make_folders(name)?;
        let ip = crate::ports::reserve_address(SESSION_PORT)?;
        let log = std::fs::OpenOptions::new().create(true).append(true).open(home.join("log"))?;
        let mark = Uuid::new_v4().simple().to_string();
        let mut command = Command::new(&self.binary);
        command
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("HOME", home.join("home"))
            .env(env::LISTEN, format!("{ip}:{SESSION_PORT}"))
            .env(env::AGENT_TYPE, "custom")
            .env(env::AGENT_COMMAND, json!(["bash", self.agent]).to_string())
            .env(env::TRANSPORT, "pty")
            .env(env::SESSION_PUBLIC_KEY, &self.public_x)
            .env(env::STATE_DIR, home.join("state"))
            .env(env::WORKDIR, home.join("workspace"))
            .env(env::SESSION_SECRET_DIR, home.join("secret"))
            .env(env::POD_NAME, name)
            .env(container::MARK, &mark)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let mut state = self.state();
        if let Some(address) = state.internal_api {
            command.env(env::RUNTIME_INTERNAL_URL, format!("http://{address}"));
        }
        if let Some(agent) = &state.instead {
            agent.apply(&mut command);
        }
        let child = command.spawn().with_context(|| format!("cannot start {}", self.binary.display()))?;
        let process = Process {
            organization: organization.to_owned(),
            workspace: workspace.to_owned(),
            session: session.map(|(id, _)| id),
            kind,
            ip,
            child,
            mark,
            known_keys: names::signing_key_ids([self.public_x.as_str()]),
            token_key: session.map(|(_, key)| key.to_owned()).unwrap_or_default(),
            keeps: !state.keeps_nothing,
            leaving: false,
            detached: false,
            prompt_digest: digest(""),
        };
        state.running.insert(name.to_owned(), process);
        Ok(())
    }

    fn check(&self) -> Result<(), PodError> {
        if self.state().away {
            return Err(PodError::Unavailable("the cluster is away".into()));
        }
        self.sweep();
        Ok(())
    }

    fn of_session(&self, session: Uuid) -> Option<Pod> {
        let mut state = self.state();
        let (name, process) = state.running.iter_mut().find(|(_, process)| process.session == Some(session))?;
        Some(pod(name, process))
    }

    fn take(&self, request: &PodRequest) -> Result<Pod, PodError> {
        self.check()?;
        if let Some(pod) = self.of_session(request.session) {
            return Ok(pod);
        }
        if let Some(why) = self.state().refuse.clone() {
            return Err(PodError::Refused(why));
        }
        if let Some(shortage) = self.state().shortage.clone() {
            return Err(PodError::QuotaExceeded(shortage));
        }
        let warm = {
            let mut state = self.state();
            let free = state.running.iter_mut().filter(|(_, it)| {
                it.session.is_none() && it.organization == request.organization && it.workspace == request.workspace
            });
            let wanted = request.prompt_digest();
            let free = free.min_by_key(|(_, it)| it.prompt_digest != wanted);
            free.map(|(name, process)| {
                process.session = Some(request.session);
                process.token_key.clone_from(&request.token_key);
                pod(name, process)
            })
        };
        if let Some(pod) = warm {
            self.write_secret(&pod.name, request).map_err(|error| PodError::Unavailable(error.to_string()))?;
            return Ok(pod);
        }
        let name = format!("s-{}", request.session.simple());
        let about = (request.organization.as_str(), request.workspace.as_str());
        self.write_secret(&name, request)
            .and_then(|()| self.spawn(&name, about, PodKind::Cold, Some((request.session, &request.token_key))))
            .map_err(|error| PodError::Unavailable(error.to_string()))?;
        self.of_session(request.session).ok_or_else(|| PodError::Unavailable("it went away at once".into()))
    }
}

fn pod(name: &str, process: &mut Process) -> Pod {
    let state = match process.child.try_wait() {
        Ok(None) if process.leaving => PodState::Terminating,
        Ok(None) => PodState::Running(process.ip.to_string()),
        Ok(Some(status)) => PodState::Failed(format!("the session's pod ended: {status}")),
        Err(error) => PodState::Failed(error.to_string()),
    };
    Pod {
        name: name.to_owned(),
        kind: process.kind,
        state,
        known_keys: process.known_keys.clone(),
        token_key: process.token_key.clone(),
        keeps: process.keeps,
    }
}

impl PodBackend for ProcessPods {
    fn acquire<'a>(&'a self, request: &'a PodRequest) -> BoxFuture<'a, Result<Pod, PodError>> {
        Box::pin(async move { self.take(request) })
    }

    fn wait_running<'a>(
        &'a self,
        _organization: &'a str,
        name: &'a str,
        _within: Duration,
    ) -> BoxFuture<'a, Result<Option<Pod>, PodError>> {
        Box::pin(async move {
            self.check()?;
            Ok(self.state().running.get_mut(name).map(|process| pod(name, process)))
        })
    }

    fn rekey<'a>(
        &'a self,
        _organization: &'a str,
        name: &'a str,
        rekey: &'a Rekey,
    ) -> BoxFuture<'a, Result<(), PodError>> {
        let folder = self.folder.path().join(name).join("secret");
        Box::pin(async move {
            self.check()?;
            if let Some(process) = self.state().running.get_mut(name) {
                (process.known_keys, process.token_key) = Default::default();
            }
            let write = |name: &str, text: &str| std::fs::write(folder.join(name), text);
            write("token", rekey.token.expose_secret())
                .and_then(|()| write(names::SESSION_SECRET_PUBLIC_KEYS, &rekey.public_keys.join(",")))
                .map_err(|error| PodError::Unavailable(error.to_string()))
        })
    }

    fn rekeyed<'a>(
        &'a self,
        _organization: &'a str,
        name: &'a str,
        rekey: &'a Rekey,
    ) -> BoxFuture<'a, Result<(), PodError>> {
        Box::pin(async move {
            self.check()?;
            if let Some(process) = self.state().running.get_mut(name) {
                process.known_keys = names::signing_key_ids(rekey.public_keys.iter().map(String::as_str));
                process.token_key.clone_from(&rekey.token_key);
            }
            Ok(())
        })
    }

    fn of_sessions<'a>(&'a self, organization: &'a str) -> BoxFuture<'a, Result<Vec<(Uuid, Pod)>, PodError>> {
        Box::pin(self.list_sessions(organization))
    }

    fn waiting<'a>(&'a self, organization: &'a str) -> BoxFuture<'a, Result<Vec<WaitingPod>, PodError>> {
        Box::pin(async move { self.waiting_pods(organization) })
    }

    fn prepared<'a>(
        &'a self,
        _organization: &'a str,
        name: &'a str,
        digest: &'a str,
    ) -> BoxFuture<'a, Result<(), PodError>> {
        Box::pin(async move { self.note_prompt(name, digest) })
    }

    fn suspend<'a>(&'a self, _organization: &'a str, session: Uuid) -> BoxFuture<'a, Result<bool, PodError>> {
        Box::pin(async move { self.give_up(session, true) })
    }

    fn wake<'a>(&'a self, wake: &'a Wake) -> BoxFuture<'a, Result<Pod, PodError>> {
        Box::pin(async move { self.wake_pod(wake) })
    }

    fn release<'a>(
        &'a self,
        _organization: &'a str,
        session: Uuid,
        pod: Option<&'a str>,
    ) -> BoxFuture<'a, Result<bool, PodError>> {
        Box::pin(async move {
            let gone = self.give_up(session, false)?;
            if let Some(pod) = pod.filter(|_| gone) {
                self.forget(pod);
            }
            Ok(gone)
        })
    }
}
