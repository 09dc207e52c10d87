//! Envelope encryption of the tenants' data keys: AES-256-GCM under the master key, with the
//! organization and the key's version as additional data, so that a wrapped key opens for nobody else.
use aes_gcm::{
    Aes256Gcm, Nonce,
    aead::{Aead, KeyInit, Payload},
};
use secrecy::{ExposeSecret, SecretBox};
use sha2::{Digest, Sha256};
use uuid::Uuid;

const FORMAT: u8 = 1;
const NONCE: usize = 12;
const KEY: usize = 32;

/// Why a key can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The Secret holds something that is not a key.
    #[error(
        "the master key has {0} bytes and needs exactly 32; write 32 random bytes into the key `key` of Secret \
         agentapi-master-key (`head -c 32 /dev/urandom`)"
    )]
    MasterKeyLength(usize),
    /// Another master key, another organization, or damaged bytes.
    #[error(
        "the wrapped data key of organization {0} does not open with the present master key; restore the master key \
         it was wrapped with"
    )]
    DoesNotOpen(Uuid),
    /// Encrypting failed; the library has no such case for so short a text.
    #[error("the data key can't be wrapped")]
    Seal,
    /// The operating system has no randomness.
    #[error("the random number generator failed")]
    Random,
}

/// A data key in the clear, wiped when it is dropped.
pub type DataKey = SecretBox<[u8; KEY]>;

/// A key that wraps data keys.
pub struct MasterKey {
    key: SecretBox<[u8; KEY]>,
    id: String,
}

impl MasterKey {
    /// A master key from the bytes of its Secret.
    pub fn new(bytes: &[u8]) -> Result<Self, Error> {
        let key: [u8; KEY] = bytes.try_into().map_err(|_| Error::MasterKeyLength(bytes.len()))?;
        let id = hex::encode(&Sha256::digest(key)[..4]);
        Ok(Self { key: SecretBox::new(Box::new(key)), id })
    }

    /// Names the key without telling it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// A fresh data key for an organization, wrapped; nobody sees it open.
    pub fn wrap_new(&self, organization: Uuid, version: i32) -> Result<Vec<u8>, Error> {
        self.wrap(organization, version, &SecretBox::new(Box::new(random()?)))
    }

    /// A data key, wrapped.
    pub fn wrap(&self, organization: Uuid, version: i32, data_key: &DataKey) -> Result<Vec<u8>, Error> {
        let nonce: [u8; NONCE] = random()?;
        let payload = Payload { msg: data_key.expose_secret().as_slice(), aad: &aad(organization, version) };
        let sealed = self.cipher().encrypt(&Nonce::from(nonce), payload).map_err(|_| Error::Seal)?;
        let mut wrapped = vec![FORMAT];
        wrapped.extend_from_slice(&nonce);
        wrapped.extend_from_slice(&sealed);
        Ok(wrapped)
    }

    /// Open a wrapped key; it opens for its organization and version only.
    pub fn unwrap(&self, organization: Uuid, version: i32, wrapped: &[u8]) -> Result<DataKey, Error> {
        let refuse = || Error::DoesNotOpen(organization);
        let (format, rest) = wrapped.split_first().ok_or_else(refuse)?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE>().ok_or_else(refuse)?;
        if *format != FORMAT {
            return Err(refuse());
        }
        let payload = Payload { msg: sealed, aad: &aad(organization, version) };
        let open = self.cipher().decrypt(&Nonce::from(*nonce), payload).map_err(|_| refuse())?;
        let open: [u8; KEY] = open.try_into().map_err(|_| refuse())?;
        Ok(SecretBox::new(Box::new(open)))
    }

    fn cipher(&self) -> Aes256Gcm {
        Aes256Gcm::new(self.key.expose_secret().into())
    }
}

/// The master key that wraps, and those that still open what they once wrapped.
pub struct MasterKeys {
    current: MasterKey,
    previous: Vec<MasterKey>,
}

impl MasterKeys {
    /// From all that the Secret has.
    pub fn new(current: MasterKey, previous: Vec<MasterKey>) -> Self {
        Self { current, previous }
    }

    /// The one that wraps.
    pub fn current(&self) -> &MasterKey {
        &self.current
    }

    /// Those that only open.
    pub fn previous(&self) -> &[MasterKey] {
        &self.previous
    }

    /// Open a data key that one of the keys has wrapped.
    pub fn unwrap(&self, organization: Uuid, version: i32, by: &str, wrapped: &[u8]) -> Result<DataKey, Error> {
        let mut keys = std::iter::once(&self.current).chain(&self.previous);
        let key = keys.find(|key| key.id == by).ok_or(Error::DoesNotOpen(organization))?;
        key.unwrap(organization, version, wrapped)
    }
}

impl From<MasterKey> for MasterKeys {
    fn from(current: MasterKey) -> Self {
        Self { current, previous: Vec::new() }
    }
}

fn aad(organization: Uuid, version: i32) -> Vec<u8> {
    format!("agentapi/data-key/{organization}/{version}").into_bytes()
}

/// Random bytes from the operating system.
pub fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| Error::Random)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_master_key_that_is_not_32_bytes_is_refused_with_advice() {
        let error = MasterKey::new(b"short").err().unwrap();
        assert!(error.to_string().contains("5 bytes and needs exactly 32"), "{error}");
        assert!(error.to_string().contains("head -c 32 /dev/urandom"), "{error}");
    }

    #[test]
    fn a_wrapped_key_opens_for_its_organization_version_and_master_key_only() {
        let master = MasterKey::new(&[7; 32]).unwrap();
        let (acme, globex) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let wrapped = master.wrap_new(acme, 1).unwrap();
        assert_eq!(wrapped.len(), 1 + 12 + 32 + 16);
        assert!(master.unwrap(acme, 1, &wrapped).is_ok());
        assert!(master.unwrap(globex, 1, &wrapped).is_err());
        assert!(master.unwrap(acme, 2, &wrapped).is_err());
        assert!(MasterKey::new(&[8; 32]).unwrap().unwrap(acme, 1, &wrapped).is_err());
        let mut damaged = wrapped.clone();
        damaged[20] ^= 1;
        assert!(master.unwrap(acme, 1, &damaged).is_err());
        assert!(master.unwrap(acme, 1, &[]).is_err());
        assert_ne!(wrapped, master.wrap_new(acme, 1).unwrap());
    }

    #[test]
    fn the_same_data_key_comes_out_whichever_master_key_wrapped_it() {
        let (old, new) = (MasterKey::new(&[7; 32]).unwrap(), MasterKey::new(&[8; 32]).unwrap());
        let acme = Uuid::from_u128(1);
        let by_old = old.wrap_new(acme, 1).unwrap();
        let old_id = old.id().to_owned();
        let keys = MasterKeys::new(new, vec![old]);
        let open = keys.unwrap(acme, 1, &old_id, &by_old).unwrap();
        let by_new = keys.current().wrap(acme, 1, &open).unwrap();
        let again = keys.unwrap(acme, 1, keys.current().id(), &by_new).unwrap();
        assert_eq!(open.expose_secret(), again.expose_secret());
        assert!(keys.unwrap(acme, 1, "unknown", &by_new).is_err());
    }
}
