//! The `state` of a consent: the organization's name, by which its row is found without a caller, and 256 random bits,
//! of which only the hash is stored. The browser in which a consent begins gets a cookie that only it can have. Pure.

use oauth2::CsrfToken;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

use crate::crypto::sealed::Place;

const RANDOM_BYTES: u32 = 32;
/// `<slug>.<random>`; a longer one is none of ours.
const MAX_BYTES: usize = 128;

/// A state.
#[derive(Debug, Clone)]
pub struct State {
    slug: String,
    text: SecretString,
}

impl State {
    /// A new one for an organization.
    pub fn new(slug: &str) -> Self {
        let text = format!("{slug}.{}", CsrfToken::new_random_len(RANDOM_BYTES).secret());
        Self { slug: slug.to_owned(), text: SecretString::from(text) }
    }

    /// One that came back, if it has the form of one.
    pub fn parse(text: &str) -> Option<Self> {
        let (slug, random) = text.split_once('.')?;
        let form = |part: &str, more: &[u8]| {
            !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || more.contains(&byte))
        };
        let fits = text.len() <= MAX_BYTES && form(slug, b"-") && form(random, b"-_");
        fits.then(|| Self { slug: slug.to_owned(), text: SecretString::from(text) })
    }

    /// Name of the organization that it says to be of.
    pub fn slug(&self) -> &str {
        &self.slug
    }

    /// As it goes into URLs.
    pub fn text(&self) -> &str {
        self.text.expose_secret()
    }

    /// As it is stored.
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.text()).into()
    }

    /// Name and value of the cookie of the browser in which the consent began. With TLS no other host can set it.
    pub fn cookie(&self, tls: bool) -> (String, String) {
        let name = format!("{}agentapi-oauth-{}", if tls { "__Host-" } else { "" }, hex::encode(&self.hash()[..8]));
        (name, hex::encode(Sha256::digest(format!("agentapi/oauth/browser/{}", self.text()))))
    }
}

/// Where the consent of a state is sealed; `row` is its hash in hex.
pub(super) fn place(row: &str) -> Place<'_> {
    Place { table: "oauth_states", column: "pkce_ciphertext", row }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_state_comes_back_as_it_went_and_is_never_the_same() {
        let state = State::new("big-corp");
        let back = State::parse(state.text()).unwrap();
        assert_eq!((back.slug(), back.hash(), back.cookie(true)), ("big-corp", state.hash(), state.cookie(true)));
        assert_ne!(State::new("big-corp").hash(), state.hash());
        assert!(state.cookie(true).0.starts_with("__Host-") && !state.cookie(false).0.starts_with("__Host-"));
        assert!(!format!("{state:?}").contains(&state.text()[9..]), "Debug must not show it");
    }

    proptest! {
        #[test]
        fn whatever_comes_is_a_state_or_none(text in ".{0,200}") {
            if let Some(state) = State::parse(&text) {
                prop_assert_eq!(state.text(), text.as_str());
                prop_assert!(!state.slug().contains(['\0', '.', ';', ' ']));
            }
        }

        #[test]
        fn two_states_have_neither_hash_nor_cookie_in_common(a in "[a-z]{1,9}\\.[A-Za-z0-9_-]{1,43}", b in "[a-z]{1,9}\\.[A-Za-z0-9_-]{1,43}") {
            prop_assume!(a != b);
            let (a, b) = (State::parse(&a).unwrap(), State::parse(&b).unwrap());
            prop_assert_ne!(a.hash(), b.hash());
            prop_assert_ne!(a.cookie(true), b.cookie(true));
        }
    }
}
