//! The form of a ciphertext: format, id and version of the data key, nonce, and what AES-256-GCM makes of the text. The
//! id of a data key is its organization's. Pure.

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use secrecy::{ExposeSecret, SecretString};
use uuid::Uuid;

use super::master::MasterKeys;
use super::{CryptoError, Key, NONCE, WrappedKey};

const FORMAT: u8 = 1;
const ID: usize = 16;
const VERSION: usize = 4;

/// Where a ciphertext is kept; it opens there and nowhere else.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// Table.
    pub table: &'static str,
    /// Column.
    pub column: &'static str,
    /// What tells the row from all others of its organization, and stays when the row is written again.
    pub row: &'a str,
}

/// A ciphertext, and which version of the data key it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// All of it.
    pub bytes: Vec<u8>,
    /// Id of the data key.
    pub key_id: String,
    /// Its version.
    pub key_version: i32,
}

/// An organization's data keys in the clear.
pub struct DataKeys {
    organization: Uuid,
    current: i32,
    keys: Vec<(i32, Key)>,
}

impl DataKeys {
    /// Opens the wrapped keys of an organization.
    pub(super) fn unwrap(organization: Uuid, wrapped: &[WrappedKey], master: &MasterKeys) -> Result<Self, CryptoError> {
        let current = wrapped.iter().find(|key| key.current).ok_or(CryptoError::NoDataKey(organization))?.version;
        let open = |key: &WrappedKey| Ok((key.version, master.unwrap(organization, key)?));
        Ok(Self { organization, current, keys: wrapped.iter().map(open).collect::<Result<_, CryptoError>>()? })
    }

    /// The version that encrypts.
    pub fn current(&self) -> i32 {
        self.current
    }

    /// Whether ciphertexts of this version open.
    pub fn has(&self, version: i32) -> bool {
        self.keys.iter().any(|(known, _)| *known == version)
    }

    /// Seals a text with the current version.
    pub fn seal(&self, place: &Place<'_>, text: &SecretString) -> Result<Sealed, CryptoError> {
        let mut nonce = [0; NONCE];
        aws_lc_rs::rand::fill(&mut nonce).map_err(|_| CryptoError::Seal)?;
        let aad = self.aad(place, self.current);
        let payload = Payload { msg: text.expose_secret().as_bytes(), aad: &aad };
        let cipher = self.cipher(self.current)?.encrypt(&Nonce::from(nonce), payload).map_err(|_| CryptoError::Seal)?;
        let version = self.current.to_be_bytes();
        let bytes = [&[FORMAT], self.organization.as_bytes().as_slice(), &version, &nonce, &cipher].concat();
        Ok(Sealed { bytes, key_id: self.organization.to_string(), key_version: self.current })
    }

    /// Opens what was sealed for this place.
    pub fn open(&self, place: &Place<'_>, bytes: &[u8]) -> Result<SecretString, CryptoError> {
        let refuse = || CryptoError::DoesNotOpen(place.table);
        let (format, rest) = bytes.split_first().ok_or_else(refuse)?;
        let (id, rest) = rest.split_first_chunk::<ID>().ok_or_else(refuse)?;
        let (version, rest) = rest.split_first_chunk::<VERSION>().ok_or_else(refuse)?;
        let (nonce, cipher) = rest.split_first_chunk::<NONCE>().ok_or_else(refuse)?;
        if *format != FORMAT || id != self.organization.as_bytes() {
            return Err(refuse());
        }
        let version = i32::from_be_bytes(*version);
        let payload = Payload { msg: cipher, aad: &self.aad(place, version) };
        let open = self.cipher(version)?.decrypt(&Nonce::from(*nonce), payload).map_err(|_| refuse())?;
        String::from_utf8(open).map(SecretString::from).map_err(|_| refuse())
    }

    fn cipher(&self, version: i32) -> Result<Aes256Gcm, CryptoError> {
        let key = self.keys.iter().find(|(known, _)| *known == version);
        let (_, key) = key.ok_or(CryptoError::NoVersion { organization: self.organization, version })?;
        Ok(Aes256Gcm::new(key.expose_secret().into()))
    }

    /// Each part with its length: no two places have the same bytes.
    fn aad(&self, place: &Place<'_>, version: i32) -> Vec<u8> {
        let Place { table, column, row } = place;
        let (organization, rows) = (self.organization, row.len());
        format!("agentapi/sealed/{organization}/{version}/{table}/{column}/{rows}:{row}").into_bytes()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::crypto::Sealer;
    use proptest::prelude::*;
    use secrecy::SecretBox;

    const PLACE: Place<'static> = Place { table: "mcp_oauth_tokens", column: "access_ciphertext", row: "a/b" };

    fn keys(organization: u128, versions: &[(i32, u8)], current: i32) -> DataKeys {
        let keys = versions.iter().map(|(version, byte)| (*version, SecretBox::new(Box::new([*byte; 32])))).collect();
        DataKeys { organization: Uuid::from_u128(organization), current, keys }
    }

    fn seal(keys: &DataKeys, text: &str) -> Vec<u8> {
        keys.seal(&PLACE, &SecretString::from(text)).unwrap().bytes
    }

    #[test]
    fn what_an_old_version_sealed_still_opens_and_new_texts_are_sealed_with_the_current_one() {
        let (old, both) = (keys(1, &[(1, 7)], 1), keys(1, &[(1, 7), (2, 8)], 2));
        assert_eq!(both.open(&PLACE, &seal(&old, "token")).unwrap().expose_secret(), "token");
        let new = both.seal(&PLACE, &SecretString::from("token")).unwrap();
        assert_eq!((new.key_version, new.key_id.as_str()), (2, "00000000-0000-0000-0000-000000000001"));
        assert!(matches!(old.open(&PLACE, &new.bytes), Err(CryptoError::NoVersion { version: 2, .. })));
    }

    #[test]
    fn a_ciphertext_opens_in_its_place_and_nowhere_else() {
        let acme = keys(1, &[(1, 7)], 1);
        let sealed = seal(&acme, "token");
        let refused = |keys: &DataKeys, place: &Place<'_>| keys.open(place, &sealed).is_err();
        assert!(!refused(&acme, &PLACE));
        // Another organization is refused even if it had the same key.
        assert!(refused(&keys(2, &[(1, 7)], 1), &PLACE));
        assert!(refused(&acme, &Place { row: "a/c", ..PLACE }), "another row");
        assert!(refused(&acme, &Place { column: "refresh_ciphertext", ..PLACE }), "another column");
        assert!(refused(&acme, &Place { table: "oauth_clients", ..PLACE }), "another table");
    }

    #[test]
    fn a_master_key_that_is_not_32_bytes_is_refused_with_advice() {
        let folder = tempfile::tempdir().unwrap();
        let refused = || Sealer::from_folder(folder.path()).err().unwrap().to_string();
        assert!(refused().contains("mount Secret agentapi-master-key there"), "{}", refused());
        std::fs::write(folder.path().join("key"), b"short").unwrap();
        assert!(refused().contains("has 5 bytes and needs exactly 32"), "{}", refused());
        std::fs::write(folder.path().join("key"), [7; 32]).unwrap();
        assert!(Sealer::from_folder(folder.path()).is_ok());
        std::fs::write(folder.path().join("previous.0badcafe"), [8; 33]).unwrap();
        assert!(refused().contains("restore its key `previous.0badcafe`"), "{}", refused());
    }

    proptest! {
        #[test]
        fn every_text_comes_back_and_no_changed_byte_goes_unnoticed(text in ".{0,200}", at in any::<prop::sample::Index>(), bit in 0..8u8) {
            let keys = keys(1, &[(1, 7)], 1);
            let mut sealed = seal(&keys, &text);
            let open = keys.open(&PLACE, &sealed).unwrap();
            prop_assert_eq!(open.expose_secret(), text.as_str());
            prop_assert!(text.len() < 4 || !sealed.windows(text.len()).any(|part| part == text.as_bytes()));
            let at = at.index(sealed.len());
            sealed[at] ^= 1 << bit;
            prop_assert!(keys.open(&PLACE, &sealed).is_err());
            prop_assert!(keys.open(&PLACE, &sealed[..at]).is_err());
        }
    }
}
