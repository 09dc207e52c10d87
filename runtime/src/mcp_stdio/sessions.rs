//! All sessions of the pod: found by id, limited in number, ended when nobody uses them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::process::Program;
use super::session::Session;

/// How often idle sessions are looked for.
const SWEEP: Duration = Duration::from_secs(15);
/// Programs get this long to end before the pod does.
const LAST: Duration = Duration::from_secs(5);

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    /// The program does not start.
    #[error("cannot start {0:?}: {1}; check spec.transport.stdio.command and image of the McpConnection")]
    Start(String, std::io::Error),
    /// It has ended, or never was.
    #[error("there is no such session, or its program has ended; initialize another one")]
    Unknown,
    /// All are busy.
    #[error("all {0} processes of this MCP server are at work; try again")]
    Busy(usize),
}

/// The sessions of the pod.
pub(super) struct Sessions {
    program: Program,
    most: usize,
    idle: Duration,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    by_id: HashMap<String, Arc<Session>>,
    /// For requests without a session.
    shared: Option<Arc<Session>>,
}

impl Sessions {
    pub(super) fn new(program: Program, most: usize, idle: Duration) -> Arc<Self> {
        Arc::new(Self { program, most, idle, open: Mutex::default() })
    }

    pub(super) fn program(&self) -> &Program {
        &self.program
    }

    /// A new session, and its id.
    pub(super) fn begin(&self) -> Result<(String, Arc<Session>), SessionError> {
        let mut open = self.lock();
        open.by_id.retain(|_, session| !session.has_ended());
        if open.by_id.len() >= self.most {
            let idle = open.by_id.iter().filter_map(|(id, session)| Some((session.idle_since()?, id.clone())));
            let Some((_, longest)) = idle.min() else { return Err(SessionError::Busy(self.most)) };
            if let Some(session) = open.by_id.remove(&longest) {
                session.end();
            }
        }
        let session = self.start(false)?;
        let id = Uuid::new_v4().to_string();
        open.by_id.insert(id.clone(), Arc::clone(&session));
        Ok((id, session))
    }

    /// The session of this id, if its program still runs.
    pub(super) fn get(&self, id: &str) -> Option<Arc<Session>> {
        self.lock().by_id.get(id).filter(|session| !session.has_ended()).cloned()
    }

    /// The program for requests without a session.
    pub(super) fn shared(&self) -> Result<Arc<Session>, SessionError> {
        let mut open = self.lock();
        if let Some(session) = open.shared.as_ref().filter(|session| !session.has_ended()) {
            return Ok(Arc::clone(session));
        }
        let session = self.start(true)?;
        open.shared = Some(Arc::clone(&session));
        Ok(session)
    }

    fn start(&self, shared: bool) -> Result<Arc<Session>, SessionError> {
        Session::start(&self.program, shared)
            .map_err(|error| SessionError::Start(self.program.name().to_owned(), error))
            .inspect_err(|error| tracing::error!(%error, "no program"))
    }

    /// Ends a session; says whether there was one.
    pub(super) fn end(&self, id: &str) -> bool {
        let session = self.lock().by_id.remove(id);
        session.is_some_and(|session| {
            session.end();
            true
        })
    }

    /// Ends sessions that nobody uses, until `stop`.
    pub(super) async fn sweep(self: Arc<Self>, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(SWEEP)).await.is_some() {
            let now = Instant::now();
            let expired = |session: &Arc<Session>| {
                session.has_ended() || session.idle_since().is_some_and(|since| now.duration_since(since) >= self.idle)
            };
            let mut open = self.lock();
            open.by_id.retain(|_, session| !expired(session));
            open.shared = open.shared.take().filter(|session| !expired(session));
        }
    }

    /// Ends all programs, and waits a little for them.
    pub(super) async fn end_all(&self) {
        let open = std::mem::take(&mut *self.lock());
        let sessions: Vec<_> = open.by_id.into_values().chain(open.shared).collect();
        for session in &sessions {
            session.end();
        }
        let over = async {
            for session in &sessions {
                session.gone().await;
            }
        };
        let _ = tokio::time::timeout(LAST, over).await;
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
