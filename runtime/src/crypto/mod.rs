//! Envelope encryption of what is kept for tenants: the organization's data key, which a master key has wrapped,
//! encrypts with AES-256-GCM; organization, table, column and row are additional data, so that a ciphertext opens
//! nowhere else. Pure but for the folder that the master keys are mounted in.

pub mod master;
pub mod sealed;

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use moka::sync::Cache;
use secrecy::SecretBox;
use uuid::Uuid;

use master::MasterKeys;
use sealed::DataKeys;

/// Bytes of a key.
const KEY: usize = 32;
/// Bytes of a nonce.
const NONCE: usize = 12;
/// How long a rotation of a data key may go unnoticed. The operator keeps a replaced version for an hour at least.
const KEYS_TTL: Duration = Duration::from_secs(30);
const MOST_ORGANIZATIONS: u64 = 10_000;

/// A key in the clear, wiped when it is dropped.
type Key = SecretBox<[u8; KEY]>;

/// Why something can't be sealed or opened. No message has a byte of a key or of a text.
#[derive(Debug, thiserror::Error)]
pub enum CryptoError {
    /// The mounted folder or a file in it.
    #[error(
        "cannot read the master key {path}: {source}; mount Secret agentapi-master-key there, or leave \
         AGENTAPI_MASTER_KEY_DIR empty to do without OAuth"
    )]
    Folder {
        /// Folder or file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file that is not a key.
    #[error(
        "the master key in {path} has {length} bytes and needs exactly 32; the operator makes Secret \
         agentapi-master-key: restore its key `{name}`"
    )]
    KeyLength {
        /// The file.
        path: PathBuf,
        /// Key of the Secret.
        name: String,
        /// How long it is.
        length: usize,
    },
    /// The organization has no data key yet.
    #[error("organization {0} has no data key yet; the operator makes it")]
    NoDataKey(Uuid),
    /// Wrapped by a master key that is not mounted, for another organization, or damaged.
    #[error(
        "the data key of organization {0} does not open with the mounted master keys; restore the one that wrapped it"
    )]
    Wrapped(Uuid),
    /// A ciphertext names a version of the data key that is gone.
    #[error("version {version} of the data key of organization {organization} is gone")]
    NoVersion {
        /// Whose.
        organization: Uuid,
        /// Which.
        version: i32,
    },
    /// Another row, another organization, or damaged bytes.
    #[error("a value in {0} does not open: it was written for another row, or is damaged")]
    DoesNotOpen(&'static str),
    /// The library or the operating system.
    #[error("cannot encrypt")]
    Seal,
}

/// A data key as Postgres has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrappedKey {
    /// Version of the data key.
    pub version: i32,
    /// The wrapped bytes.
    pub wrapped: Vec<u8>,
    /// Which master key wrapped it.
    pub master_key_id: String,
    /// Whether it is the version that encrypts.
    pub current: bool,
}

/// Opens data keys with the mounted master keys, and remembers them for a moment.
#[derive(Clone)]
pub struct Sealer {
    inner: Arc<Inner>,
}

struct Inner {
    folder: PathBuf,
    master: RwLock<Arc<MasterKeys>>,
    known: Cache<Uuid, Arc<DataKeys>>,
}

impl Sealer {
    /// With the master keys in this folder: `key`, and during a rotation `next` or `previous.<id>`.
    pub fn from_folder(folder: &Path) -> Result<Self, CryptoError> {
        let master = RwLock::new(Arc::new(MasterKeys::read(folder)?));
        let known = Cache::builder().max_capacity(MOST_ORGANIZATIONS).time_to_live(KEYS_TTL).build();
        Ok(Self { inner: Arc::new(Inner { folder: folder.to_owned(), master, known }) })
    }

    /// The organization's data keys, if they were opened a moment ago.
    pub fn remembered(&self, organization: Uuid) -> Option<Arc<DataKeys>> {
        self.inner.known.get(&organization)
    }

    /// Opens an organization's data keys. When a master key is missing the folder is read again: a rotation puts the
    /// new one in before it wraps anything with it.
    pub fn unwrap(&self, organization: Uuid, wrapped: &[WrappedKey]) -> Result<Arc<DataKeys>, CryptoError> {
        let master = Arc::clone(&self.inner.master.read().unwrap_or_else(PoisonError::into_inner));
        let keys = match DataKeys::unwrap(organization, wrapped, &master) {
            Err(CryptoError::Wrapped(_)) => {
                let fresh = Arc::new(MasterKeys::read(&self.inner.folder)?);
                let keys = DataKeys::unwrap(organization, wrapped, &fresh)?;
                *self.inner.master.write().unwrap_or_else(PoisonError::into_inner) = fresh;
                keys
            }
            opened => opened?,
        };
        let keys = Arc::new(keys);
        self.inner.known.insert(organization, Arc::clone(&keys));
        Ok(keys)
    }
}
