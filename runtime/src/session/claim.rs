//! The claim: which session a pod belongs to. Comes from `POST /internal/claim`, from the mounted Secret or,
//! after a container restart, from the state folder.

use std::{collections::BTreeMap, io, path::Path};

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

/// What a pod is told when a session takes it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Claim {
    /// The session.
    pub session_id: String,
    /// Environment for the agent, on top of the workspace's.
    #[serde(default)]
    pub env: BTreeMap<String, SecretString>,
    /// Token with which this pod calls the runtime.
    #[serde(default)]
    pub token: Option<SecretString>,
    /// First user message.
    #[serde(default)]
    pub initial_prompt: Option<String>,
    /// What the agent is told before that.
    #[serde(default)]
    pub system_prompt: Option<String>,
}

/// A claim that makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// The session id is missing.
    #[error("sessionId is empty; send the id of the session that takes this pod")]
    NoSession,
    /// A variable has a name that no program could read or that the host reserves.
    #[error("env name {0:?} cannot be used; names are letters, digits and _, and AGENTAPI_ is reserved")]
    EnvName(String),
    /// The Secret's files can't be read.
    #[error("session secret {path}: {source}")]
    Secret {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
}

impl Claim {
    /// Checks a claim from outside.
    pub(super) fn validate(&self) -> Result<(), ClaimError> {
        if self.session_id.trim().is_empty() {
            return Err(ClaimError::NoSession);
        }
        let valid = |name: &str| {
            !name.starts_with("AGENTAPI_")
                && name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        match self.env.iter().find(|(name, value)| !valid(name) || value.expose_secret().contains('\0')) {
            Some((name, _)) => Err(ClaimError::EnvName(name.clone())),
            None => Ok(()),
        }
    }

    /// The environment in the clear, for the agent's process.
    pub(super) fn plain_env(&self) -> BTreeMap<String, String> {
        self.env.iter().map(|(name, value)| (name.clone(), value.expose_secret().to_owned())).collect()
    }

    /// In the clear, for the state folder.
    pub(super) fn exposed(&self) -> impl Serialize + use<> {
        serde_json::json!({
            "sessionId": self.session_id,
            "env": self.plain_env(),
            "token": self.token.as_ref().map(|token| token.expose_secret().to_owned()),
            "initialPrompt": self.initial_prompt,
            "systemPrompt": self.system_prompt,
        })
    }

    /// The claim in the mounted Secret, when there is one already.
    pub(super) fn from_secret_dir(folder: &Path) -> Result<Option<Self>, ClaimError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Session {
            id: String,
            #[serde(default)]
            initial_prompt: Option<String>,
            #[serde(default)]
            system_prompt: Option<String>,
        }
        let Some(session) = secret_file(folder, "session.json")? else { return Ok(None) };
        let session: Session = parse(folder, "session.json", &session)?;
        let env = match secret_file(folder, "env.json")? {
            Some(text) => parse(folder, "env.json", &text)?,
            None => BTreeMap::new(),
        };
        let token = secret_file(folder, "token")?.map(|text| SecretString::from(text.trim().to_owned()));
        let Session { id: session_id, initial_prompt, system_prompt } = session;
        let claim = Self { session_id, env, token, initial_prompt, system_prompt };
        claim.validate()?;
        Ok(Some(claim))
    }
}

fn secret_file(folder: &Path, name: &str) -> Result<Option<String>, ClaimError> {
    let path = folder.join(name);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ClaimError::Secret { path: path.display().to_string(), source }),
    }
}

fn parse<T: serde::de::DeserializeOwned>(folder: &Path, name: &str, text: &str) -> Result<T, ClaimError> {
    // The parser's message could quote the secret, so only its position is passed on.
    serde_json::from_str(text).map_err(|error| ClaimError::Secret {
        path: folder.join(name).display().to_string(),
        source: io::Error::other(format!("not the expected JSON (line {} column {})", error.line(), error.column())),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn a_claim_is_read_from_the_secret_and_shows_no_secret() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Claim::from_secret_dir(folder.path()).unwrap().is_none());
        std::fs::write(folder.path().join("session.json"), r#"{"id":"abc","organization":"acme","workspace":"web"}"#)
            .unwrap();
        std::fs::write(folder.path().join("env.json"), r#"{"API_KEY":"hunter2"}"#).unwrap();
        std::fs::write(folder.path().join("token"), "tok\n").unwrap();
        let claim = Claim::from_secret_dir(folder.path()).unwrap().unwrap();
        assert_eq!(claim.session_id, "abc");
        assert_eq!(claim.plain_env()["API_KEY"], "hunter2");
        assert_eq!(claim.token.as_ref().unwrap().expose_secret(), "tok");
        assert!(!format!("{claim:?}").contains("hunter2"));
    }

    #[test]
    fn reserved_and_broken_names_are_refused() {
        for name in ["AGENTAPI_LISTEN", "1A", "A-B", "", "A=B"] {
            let claim: Claim =
                serde_json::from_value(serde_json::json!({"sessionId": "s", "env": {name: "v"}})).unwrap();
            assert!(claim.validate().is_err(), "{name}");
        }
    }
}
