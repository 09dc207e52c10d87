//! SCRAM-SHA-256 verifiers (RFC 5803) for Postgres roles. A statement with a verifier instead of a password can end up
//! in a server log without harm. Pure but for the salt.
use aws_lc_rs::{
    digest, hmac, pbkdf2,
    rand::{SecureRandom, SystemRandom},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use std::num::NonZeroU32;

/// Postgres' own default.
const ITERATIONS: NonZeroU32 = NonZeroU32::MIN.saturating_add(4095);

/// Why there is no verifier.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// Postgres would normalize the password (`SASLprep`), which this does not.
    #[error("a database password may hold printable ASCII characters only; generate one from letters and digits")]
    NotAscii,
    /// Anybody could log in.
    #[error("a database password must not be empty")]
    Empty,
    /// The system gave no random bytes.
    #[error("the system's random generator failed")]
    Random,
}

/// A verifier with a fresh salt, in the form that `ALTER ROLE … PASSWORD` takes.
pub fn verifier(password: &str) -> Result<String, Error> {
    let mut salt = [0_u8; 16];
    SystemRandom::new().fill(&mut salt).map_err(|_| Error::Random)?;
    with_salt(password, &salt)
}

fn with_salt(password: &str, salt: &[u8]) -> Result<String, Error> {
    if password.is_empty() {
        return Err(Error::Empty);
    }
    if !password.bytes().all(|b| (0x20..0x7f).contains(&b)) {
        return Err(Error::NotAscii);
    }
    let mut salted = [0_u8; digest::SHA256_OUTPUT_LEN];
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, ITERATIONS, salt, password.as_bytes(), &mut salted);
    let key = hmac::Key::new(hmac::HMAC_SHA256, &salted);
    let stored = digest::digest(&digest::SHA256, hmac::sign(&key, b"Client Key").as_ref());
    let server = hmac::sign(&key, b"Server Key");
    Ok(format!(
        "SCRAM-SHA-256${ITERATIONS}:{}${}:{}",
        BASE64_STANDARD.encode(salt),
        BASE64_STANDARD.encode(stored.as_ref()),
        BASE64_STANDARD.encode(server.as_ref()),
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// The exchange of RFC 7677, section 3: user `user`, password `pencil`.
    #[test]
    fn matches_the_rfc() {
        let salt = BASE64_STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        assert_eq!(
            with_salt("pencil", &salt).unwrap(),
            "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==\
             $WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
        );
    }

    #[test]
    fn salts_differ_and_bad_passwords_are_refused() {
        assert_ne!(verifier("pencil").unwrap(), verifier("pencil").unwrap());
        assert_eq!(verifier(""), Err(Error::Empty));
        assert_eq!(verifier("pässword"), Err(Error::NotAscii));
    }
}
