//! Master keys out of the folder that Secret agentapi-master-key is mounted in, and the wrapped data keys that they
//! open: the operator's format (operator/src/envelope.rs). May touch: that folder.

use std::io::ErrorKind;
use std::path::Path;

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use agentapi_crds::names;
use secrecy::{ExposeSecret, SecretBox};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{CryptoError, KEY, Key, NONCE, WrappedKey};

const FORMAT: u8 = 1;

/// The master key that wraps now, the next one, and those that wrapped earlier.
pub struct MasterKeys {
    keys: Vec<(String, Key)>,
}

impl MasterKeys {
    /// From a folder; the one that wraps now must be there, and each must be whole.
    pub fn read(folder: &Path) -> Result<Self, CryptoError> {
        let unreadable = |path: &Path| {
            let path = path.to_owned();
            move |source| CryptoError::Folder { path, source }
        };
        let mut keys = vec![one(folder, names::KEY_MASTER)?];
        for entry in std::fs::read_dir(folder).map_err(unreadable(folder))? {
            let name = entry.map_err(unreadable(folder))?.file_name().to_string_lossy().into_owned();
            if name == names::KEY_MASTER_NEXT || name.starts_with(names::KEY_MASTER_PREVIOUS) {
                match one(folder, &name) {
                    // The kubelet is just exchanging the files.
                    Err(CryptoError::Folder { source, .. }) if source.kind() == ErrorKind::NotFound => {}
                    key => keys.push(key?),
                }
            }
        }
        Ok(Self { keys })
    }

    /// Opens a data key; it opens for its organization and version only.
    pub(super) fn unwrap(&self, organization: Uuid, key: &WrappedKey) -> Result<Key, CryptoError> {
        let refuse = || CryptoError::Wrapped(organization);
        let (_, master) = self.keys.iter().find(|(id, _)| *id == key.master_key_id).ok_or_else(refuse)?;
        let (format, rest) = key.wrapped.split_first().ok_or_else(refuse)?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE>().ok_or_else(refuse)?;
        if *format != FORMAT {
            return Err(refuse());
        }
        let aad = format!("agentapi/data-key/{organization}/{}", key.version);
        let payload = Payload { msg: sealed, aad: aad.as_bytes() };
        let cipher = Aes256Gcm::new(master.expose_secret().into());
        let open = cipher.decrypt(&Nonce::from(*nonce), payload).map_err(|_| refuse())?;
        let open: [u8; KEY] = open.try_into().map_err(|_| refuse())?;
        Ok(SecretBox::new(Box::new(open)))
    }
}

fn one(folder: &Path, name: &str) -> Result<(String, Key), CryptoError> {
    let path = folder.join(name);
    let bytes = std::fs::read(&path).map_err(|source| CryptoError::Folder { path: path.clone(), source })?;
    let length = bytes.len();
    let key: [u8; KEY] =
        bytes.try_into().map_err(|_| CryptoError::KeyLength { path, name: name.to_owned(), length })?;
    // Names the key without telling it, as the operator does.
    let id = hex::encode(&Sha256::digest(key)[..4]);
    Ok((id, SecretBox::new(Box::new(key))))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::crypto::Sealer;

    fn wrapped(master: [u8; KEY], organization: Uuid) -> WrappedKey {
        let aad = format!("agentapi/data-key/{organization}/1");
        let payload = Payload { msg: &[5; KEY], aad: aad.as_bytes() };
        let nonce = [3; NONCE];
        let sealed = Aes256Gcm::new(&master.into()).encrypt(&Nonce::from(nonce), payload).unwrap();
        let id = hex::encode(&Sha256::digest(master)[..4]);
        let wrapped = [&[FORMAT], &nonce[..], &sealed].concat();
        WrappedKey { version: 1, wrapped, master_key_id: id, current: true }
    }

    /// The kubelet brings the promoted key up to a minute and a half after the operator wraps with it.
    #[test]
    fn what_the_next_key_wrapped_opens_while_the_folder_still_calls_it_so() {
        let (folder, organization) = (tempfile::tempdir().unwrap(), Uuid::from_u128(1));
        std::fs::write(folder.path().join("key"), [7; KEY]).unwrap();
        let sealer = Sealer::from_folder(folder.path()).unwrap();
        let rows = [wrapped([8; KEY], organization)];
        assert!(matches!(sealer.unwrap(organization, &rows), Err(CryptoError::Wrapped(_))));
        std::fs::write(folder.path().join("next"), [8; KEY]).unwrap();
        assert!(sealer.unwrap(organization, &rows).is_ok());
    }
}
