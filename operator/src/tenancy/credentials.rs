//! When the password of a read-only role is rotated, and what its Secret says. Pure.
use crate::envelope;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

/// A password as it is in the tenant's Secret.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The password.
    pub password: SecretString,
    /// When it was made.
    pub rotated_at: Timestamp,
    /// Value of the rotation annotation that it was made for.
    pub rotation: String,
}

/// Whether the present password stays.
#[derive(Debug)]
pub enum Decision {
    /// It stays.
    Keep(Credentials),
    /// A new one is needed, and why.
    Rotate(&'static str),
}

/// Decide about the password in the Secret (`live`), knowing the digest of the one that Postgres has.
pub fn decide(
    live: Option<Credentials>,
    known_digest: Option<&str>,
    wanted_rotation: &str,
    now: Timestamp,
    max_age: SignedDuration,
) -> Decision {
    let Some(live) = live else { return Decision::Rotate("there is no Secret with a password") };
    if known_digest != Some(digest(&live.password).as_str()) {
        return Decision::Rotate("the password in the Secret is not the one that Postgres knows");
    }
    if live.rotation != wanted_rotation {
        return Decision::Rotate("rotation was asked for");
    }
    if now.duration_since(live.rotated_at) >= max_age {
        return Decision::Rotate("the password is old");
    }
    Decision::Keep(live)
}

/// A password of 256 random bits.
pub fn new_password() -> Result<SecretString, envelope::Error> {
    Ok(SecretString::from(URL_SAFE_NO_PAD.encode(envelope::random::<32>()?)))
}

/// Recognizes a password without telling it; with 256 random bits nobody finds it from this.
pub fn digest(password: &SecretString) -> String {
    hex::encode(Sha256::digest(password.expose_secret()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rstest::rstest;

    fn at(hours: i64) -> Timestamp {
        Timestamp::from_second(hours * 3600).unwrap()
    }

    fn live() -> Credentials {
        Credentials { password: "p".to_owned().into(), rotated_at: at(0), rotation: "1".into() }
    }

    #[rstest]
    #[case::fresh("1", 1, true, true)]
    #[case::asked_for("2", 1, true, false)]
    #[case::old("1", 24, true, false)]
    #[case::somebody_edited_it("1", 1, false, false)]
    fn a_password_stays_until_there_is_a_reason(
        #[case] rotation: &str,
        #[case] hours: i64,
        #[case] same: bool,
        #[case] keeps: bool,
    ) {
        let known = if same { digest(&live().password) } else { "other".to_owned() };
        let decision = decide(Some(live()), Some(&known), rotation, at(hours), SignedDuration::from_hours(24));
        assert_eq!(matches!(decision, Decision::Keep(_)), keeps);
        assert!(matches!(decide(Some(live()), None, "1", at(1), SignedDuration::from_hours(24)), Decision::Rotate(_)));
    }

    #[test]
    fn passwords_are_long_and_never_the_same() {
        let (a, b) = (new_password().unwrap(), new_password().unwrap());
        assert_eq!(a.expose_secret().len(), 43);
        assert_ne!(a.expose_secret(), b.expose_secret());
    }
}
