//! Google's credentials as Google's libraries want them: a file, whose path is in a variable. They come as JSON in the
//! environment, from a Secret. Writes only that one file.

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
/// restart of the container the Secret may hold something new.
pub(crate) fn write(home: &Path, json: &str) -> Result<PathBuf, CredentialsError> {
    if !serde_json::from_str::<serde_json::Value>(json).is_ok_and(|value| value.is_object()) {
        return Err(CredentialsError::NotJson);
    }
    let folder = home.join(".config/gcloud");
    let path = folder.join("application_default_credentials.json");
    let part = folder.join("application_default_credentials.json.part");
    let written = fs::create_dir_all(&folder).and_then(|()| {
        match fs::remove_file(&part) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part)?;
        file.write_all(json.as_bytes())?;
        fs::rename(&part, &path)
    });
    written.map_err(|error| CredentialsError::Write(path.clone(), error))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_file_is_its_users_alone_and_follows_the_secret() {
        let home = tempfile::tempdir().unwrap();
        write(home.path(), r#"{"type": "service_account"}"#).unwrap();
        let path = write(home.path(), r#"{"type": "external_account"}"#).unwrap();
        assert!(fs::read_to_string(&path).unwrap().contains("external_account"));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_is_no_credentials_file_is_not_repeated() {
        let home = tempfile::tempdir().unwrap();
        for text in ["AIza-a-key-and-no-file", "\"AIza-a-key\"", ""] {
            let error = write(home.path(), text).unwrap_err().to_string();
            assert!(error.contains("--from-file") && !error.contains("AIza"), "{error}");
        }
        let error = write(Path::new("/proc/nowhere"), "{}").unwrap_err().to_string();
        assert!(error.contains("/proc/nowhere"), "{error}");
    }
}
