//! What a session host keeps on disk, so that a restarted container goes on where it was: the conversation
//! and the claim. Every write is atomic: temporary file, fsync, rename.

use std::{
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{claim::Claim, messages::Message};

/// Version of the state file.
const VERSION: u32 = 1;

/// How far the initial prompt got. It is sent at most once: a crash between `Sending` and `Sent` does not repeat it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum PromptState {
    /// There is none.
    #[default]
    None,
    /// Waits for the agent to be ready.
    Pending,
    /// Is being typed.
    Sending,
    /// The agent took it.
    Sent,
    /// The agent did not take it.
    Failed,
}

impl PromptState {
    /// The agent is not free for other messages yet.
    pub(super) fn is_open(self) -> bool {
        matches!(self, Self::Pending | Self::Sending)
    }
}

/// The state file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct State {
    /// Version of this layout.
    pub version: u32,
    /// The session, once the pod is claimed.
    pub session_id: Option<String>,
    /// The conversation.
    pub messages: Vec<Message>,
    /// Initial prompt.
    pub initial_prompt: Option<String>,
    /// How far it got.
    #[serde(rename = "initial_prompt_state")]
    pub prompt_progress: PromptState,
    /// Whether the next agent process goes on with the conversation.
    #[serde(default)]
    pub resume: Resume,
    /// With ACP: the agent's own id of its session.
    #[serde(default)]
    pub acp_session: Option<String>,
    /// Id of the last event, when the process ended in order.
    #[serde(default)]
    pub last_event: Option<String>,
}

/// Whether a restarted agent is asked to go on with its conversation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Resume {
    /// When it has one.
    #[default]
    Allowed,
    /// It was asked to.
    Asked,
    /// It ended before it was ready when it was asked to: a broken conversation must not keep the pod down.
    Refused,
}

impl State {
    /// A state of the current version.
    pub(super) fn new(messages: Vec<Message>) -> Self {
        Self {
            version: VERSION,
            session_id: None,
            messages,
            initial_prompt: None,
            prompt_progress: PromptState::None,
            resume: Resume::Allowed,
            acp_session: None,
            last_event: None,
        }
    }
}

/// State that can't be read or written.
#[derive(Debug, thiserror::Error)]
#[error("session state {path}: {source}; the state folder must be a writable volume")]
pub struct StateError {
    path: String,
    pub(super) source: io::Error,
}

/// The folder with the state.
#[derive(Clone, Debug)]
pub(super) struct StateDir(PathBuf);

impl StateDir {
    /// Makes sure that the folder is there.
    pub(super) fn open(folder: &Path) -> Result<Self, StateError> {
        std::fs::create_dir_all(folder).map_err(|source| failed(folder, source))?;
        Ok(Self(folder.to_owned()))
    }

    /// The saved state. A file that can't be understood is set aside, not lost and not in the way.
    pub(super) fn load(&self) -> Result<Option<State>, StateError> {
        let path = self.state_path();
        let Some(bytes) = read(&path)? else { return Ok(None) };
        match serde_json::from_slice::<State>(&bytes) {
            Ok(state) if state.version == VERSION => return Ok(Some(state)),
            Ok(state) => tracing::error!(version = state.version, "unknown version of the session state; set aside"),
            Err(error) => tracing::error!(%error, "damaged session state; set aside"),
        }
        let aside = path.with_extension("json.damaged");
        std::fs::rename(&path, &aside).map_err(|source| failed(&aside, source))?;
        Ok(None)
    }

    /// Saves the state.
    pub(super) fn save(&self, state: &State) -> Result<(), StateError> {
        write(&self.state_path(), state)
    }

    /// The claim that this pod was given.
    pub(super) fn load_claim(&self) -> Result<Option<Claim>, StateError> {
        let path = self.claim_path();
        let Some(bytes) = read(&path)? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).map_err(|error| failed(&path, io::Error::other(error)))
    }

    /// Saves the claim; it holds secrets, so the file is for this user only, like every file here.
    pub(super) fn save_claim(&self, claim: &Claim) -> Result<(), StateError> {
        write(&self.claim_path(), &claim.exposed())
    }

    /// The claim is elsewhere.
    pub(super) fn remove_claim(&self) -> Result<(), StateError> {
        let path = self.claim_path();
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(&path, error)),
            _ => Ok(()),
        }
    }

    /// Writes the system prompt where the agent reads it. Again at each start: the agent can change the file, but not
    /// what its next process reads.
    pub(super) fn write_system_prompt(&self, text: &str) -> Result<PathBuf, StateError> {
        let path = self.0.join("system-prompt.md");
        // A disk that is full has it from the start before.
        if std::fs::read(&path).is_ok_and(|known| known == text.as_bytes()) {
            return Ok(path);
        }
        write_atomically(&path, text.as_bytes()).map_err(|source| failed(&path, source))?;
        Ok(path)
    }

    fn state_path(&self) -> PathBuf {
        self.0.join("state.json")
    }

    fn claim_path(&self) -> PathBuf {
        self.0.join("claim.json")
    }
}

fn write(path: &Path, value: &impl Serialize) -> Result<(), StateError> {
    let bytes = serde_json::to_vec(value).map_err(|error| failed(path, io::Error::other(error)))?;
    write_atomically(path, &bytes).map_err(|source| failed(path, source))
}

fn failed(path: &Path, source: io::Error) -> StateError {
    StateError { path: path.display().to_string(), source }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, StateError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(path, error)),
    }
}

/// Replaces a file so that a reader, also after a crash, sees the old or the new content and nothing between.
pub(super) fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = folder.join(format!(".{name}.{}", uuid::Uuid::new_v4().simple()));
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&temporary, path))
        .and_then(|()| std::fs::File::open(folder).and_then(|folder| folder.sync_all()));
    if written.is_err() {
        // Best effort: the error that matters is the one that is returned.
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn state_comes_back_and_leaves_no_temporary_files() {
        let folder = tempfile::tempdir().unwrap();
        let dir = StateDir::open(&folder.path().join("deep/er")).unwrap();
        assert!(dir.load().unwrap().is_none());
        let mut state = State::new(Vec::new());
        state.session_id = Some("s".to_owned());
        state.prompt_progress = PromptState::Sending;
        dir.save(&state).unwrap();
        dir.save(&state).unwrap();
        let loaded = dir.load().unwrap().unwrap();
        assert_eq!(loaded.session_id.as_deref(), Some("s"));
        assert_eq!(loaded.prompt_progress, PromptState::Sending);
        let files: Vec<_> = std::fs::read_dir(folder.path().join("deep/er")).unwrap().flatten().collect();
        assert_eq!(files.len(), 1);
        assert_eq!(files[0].metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_file_is_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let dir = StateDir::open(folder.path()).unwrap();
        std::fs::write(folder.path().join("state.json"), "{\"version\":1,").unwrap();
        assert!(dir.load().unwrap().is_none());
        assert!(folder.path().join("state.json.damaged").exists());
        let mut newer = State::new(Vec::new());
        newer.version += 1;
        dir.save(&newer).unwrap();
        assert!(dir.load().unwrap().is_none());
    }
}
