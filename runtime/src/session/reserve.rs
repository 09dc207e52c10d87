//! Room on the session's volume that only the host uses. An agent that fills the disk would otherwise keep the conversation
//! from being saved, and the session from ever being woken again. Touches one file in the state folder.

use std::{
    fs, io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use rustix::fs::{FallocateFlags, fallocate, statvfs};

use super::{host::Host, seed::SeedError, state::StateError};
use crate::google_credentials::CredentialsError;

/// The file that takes the room.
#[derive(Clone, Debug)]
pub(super) struct Reserve {
    path: PathBuf,
    bytes: u64,
}

impl Reserve {
    /// Of so many bytes; 0: none.
    pub(super) fn new(state_dir: &Path, bytes: u64) -> Self {
        Self { path: state_dir.join(".reserve"), bytes }
    }

    /// Takes the room, unless it is taken, or the agent would have less than the host then.
    pub(super) fn take(&self) {
        if self.bytes == 0 || self.path.exists() {
            return;
        }
        if let Err(error) = self.try_take() {
            tracing::warn!(%error, "no room is kept back for the conversation");
            // What is there of it is of no use.
            let _ = fs::remove_file(&self.path);
        }
    }

    fn try_take(&self) -> io::Result<()> {
        let disk = statvfs(self.path.parent().unwrap_or(&self.path))?;
        if disk.f_bavail.saturating_mul(disk.f_frsize) < self.bytes.saturating_mul(2) {
            return Ok(());
        }
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.path)?;
        Ok(fallocate(file, FallocateFlags::empty(), 0, self.bytes)?)
    }

    /// Gives it up. False: there was none.
    pub(super) fn give_up(&self) -> bool {
        fs::remove_file(&self.path).is_ok()
    }
}

/// Errors of a disk that is full.
pub(super) trait DiskFull {
    fn cause(&self) -> Option<&io::Error>;

    fn is_disk_full(&self) -> bool {
        self.cause().is_some_and(|it| matches!(it.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

impl DiskFull for StateError {
    fn cause(&self) -> Option<&io::Error> {
        Some(&self.source)
    }
}

impl DiskFull for SeedError {
    fn cause(&self) -> Option<&io::Error> {
        Some(&self.source)
    }
}

impl DiskFull for CredentialsError {
    fn cause(&self) -> Option<&io::Error> {
        match self {
            Self::NotJson => None,
            Self::Write(_, source) => Some(source),
        }
    }
}

impl Host {
    /// Writes, with the room that was kept back if there is no other.
    pub(super) fn with_room<T, E: DiskFull>(&self, write: impl Fn() -> Result<T, E>) -> Result<T, E> {
        match write() {
            Err(error) if error.is_disk_full() && self.reserve.give_up() => {
                self.notify(
                    "The session's disk is full; the conversation is saved with the last room that was kept back for \
                     it. Have files removed (a message reaches the agent), or end the session."
                        .to_owned(),
                );
                write()
            }
            written => written,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{cell::Cell, collections::BTreeMap, sync::Arc};

    use clap::Parser;

    use super::*;
    use crate::session::SessionArgs;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        session: SessionArgs,
    }

    fn host(folder: &Path) -> Arc<Host> {
        let folder = folder.to_str().unwrap();
        let args = ["session", "--insecure-no-auth", "--state-dir", folder, "--state-reserve", "65536"];
        Host::open(Cli::parse_from(args).session.into_config(BTreeMap::new()).unwrap()).unwrap()
    }

    fn failed(kind: io::ErrorKind) -> SeedError {
        SeedError { path: "file".to_owned(), source: kind.into() }
    }

    #[test]
    fn a_full_disk_gets_the_room_that_was_kept_back_once_and_takes_it_again_later() {
        let folder = tempfile::tempdir().unwrap();
        let host = host(folder.path());
        let file = folder.path().join(".reserve");
        host.reserve.take();
        host.reserve.take();
        assert_eq!(fs::metadata(&file).unwrap().len(), 65536);
        let tries = Cell::new(0);
        let write = |kind: io::ErrorKind| {
            tries.set(tries.get() + 1);
            if file.exists() { Err(failed(kind)) } else { Ok("written") }
        };
        // Room is of no use there.
        assert!(host.with_room(|| write(io::ErrorKind::PermissionDenied)).is_err());
        assert_eq!((tries.get(), file.exists()), (1, true));
        assert_eq!(host.with_room(|| write(io::ErrorKind::StorageFull)).unwrap(), "written");
        assert_eq!((tries.get(), file.exists()), (3, false));
        // There is none any more.
        let full: Result<(), _> = host.with_room(|| Err(failed(io::ErrorKind::QuotaExceeded)));
        assert!(full.is_err());
        host.reserve.take();
        assert!(file.exists());
        assert!(host.reserve.give_up());
        Reserve::new(folder.path(), u64::MAX / 4).take();
        assert!(!file.exists(), "nobody else would have any room");
    }
}
