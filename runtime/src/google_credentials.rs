//! Google's credentials as Google's libraries want them: a file, whose path is in a variable. They come as JSON in the
//! environment, from a Secret. Writes and removes only that one file.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Where Google's libraries look for the file's path.
pub(crate) const VARIABLE: &str = "GOOGLE_APPLICATION_CREDENTIALS";

/// Why there is no file.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The Secret holds something else. Its text is not repeated.
    #[error(
        "the Google credentials are not a JSON object; put the whole credentials file into the Secret's key, as kubectl create secret generic NAME --from-file=KEY=FILE does"
    )]
    NotJson,
    /// The folder is not writable.
    #[error("cannot write the Google credentials to {0}: {1}")]
    Write(PathBuf, io::Error),
}

/// Writes the file into `home`, readable by its user alone, and gives back its path. What was there is replaced: after a
/// restart of the container the Secret may hold something new. Without `json` it goes: a home may outlive its pod, and
/// the next one may have another model. It is not where Google's libraries look by themselves; what is there is the user's.
pub(crate) fn keep(home: &Path, json: Option<&str>) -> Result<Option<PathBuf>, CredentialsError> {
    let path = home.join(".config/agentapi/google-credentials.json");
    match json {
        Some(json) => write(&path, json).map(|()| Some(path)),
        None => match fs::remove_file(&path) {
            Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Err(CredentialsError::Write(path, error))
            }
            _ => Ok(None),
        },
    }
}

fn write(path: &Path, json: &str) -> Result<(), CredentialsError> {
    if !serde_json::from_str::<serde_json::Value>(json).is_ok_and(|value| value.is_object()) {
        return Err(CredentialsError::NotJson);
    }
    let part = path.with_extension("part");
    let folder = path.parent().unwrap_or(path);
    let written = fs::create_dir_all(folder).and_then(|()| {
        match fs::remove_file(&part) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part)?;
        file.write_all(json.as_bytes())?;
        fs::rename(&part, path)
    });
    written.map_err(|error| CredentialsError::Write(path.to_owned(), error))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_file_is_its_users_alone_and_follows_the_secret() {
        let home = tempfile::tempdir().unwrap();
        keep(home.path(), Some(r#"{"type": "service_account"}"#)).unwrap();
        let path = keep(home.path(), Some(r#"{"type": "external_account"}"#)).unwrap().unwrap();
        assert!(fs::read_to_string(&path).unwrap().contains("external_account"));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn without_credentials_the_file_goes_and_the_users_own_stays() {
        let home = tempfile::tempdir().unwrap();
        let own = home.path().join(".config/gcloud/application_default_credentials.json");
        fs::create_dir_all(own.parent().unwrap()).unwrap();
        fs::write(&own, "{}").unwrap();
        let path = keep(home.path(), Some("{}")).unwrap().unwrap();
        for _ in 0..2 {
            assert_eq!(keep(home.path(), None).unwrap(), None);
            assert!(!path.exists() && own.exists());
        }
    }

    #[test]
    fn what_is_no_credentials_file_is_not_repeated() {
        let home = tempfile::tempdir().unwrap();
        for text in ["AIza-a-key-and-no-file", "\"AIza-a-key\"", ""] {
            let error = keep(home.path(), Some(text)).unwrap_err().to_string();
            assert!(error.contains("--from-file") && !error.contains("AIza"), "{error}");
        }
        let error = keep(Path::new("/proc/nowhere"), Some("{}")).unwrap_err().to_string();
        assert!(error.contains("/proc/nowhere"), "{error}");
    }
}
