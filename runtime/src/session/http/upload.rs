//! `/upload`: one file into the agent's working folder.

use std::{io::Write, path::Path};

use axum::{
    Json,
    extract::{Multipart, State, multipart::MultipartRejection},
    http::StatusCode,
};
use rustix::{
    fd::OwnedFd,
    fs::{AtFlags, CWD, Mode, OFlags, mkdirat, openat, renameat, unlinkat},
    io::Errno,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{App, problem::Problem};

/// Largest file, as in coder/agentapi.
const MAX_FILE_BYTES: usize = 10 * 1024 * 1024;
/// Folder below the working folder.
const FOLDER: &str = "uploads";
/// Longest file name that every file system takes.
const MAX_NAME_BYTES: usize = 200;

pub(super) async fn upload(
    State(app): State<App>,
    multipart: Result<Multipart, MultipartRejection>,
) -> Result<Json<Value>, Problem> {
    let multipart = multipart
        .map_err(|error| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "validation-failed", error.body_text()))?;
    let (name, content) = file_field(multipart).await?;
    let workdir = app.host.config.workdir.clone();
    let stored = tokio::task::spawn_blocking(move || store(&workdir, &name, &content)).await;
    match stored {
        Ok(Ok(path)) => Ok(Json(json!({ "ok": true, "filePath": path }))),
        // The agent has put something of its own where uploads go; it can take it away again.
        Ok(Err(Errno::LOOP | Errno::NOTDIR | Errno::ISDIR | Errno::EXIST | Errno::NOTEMPTY | Errno::ACCESS)) => {
            let detail =
                "the agent has replaced the uploads folder or the file by something else; remove it and try again";
            Err(Problem::new(StatusCode::CONFLICT, "upload-blocked", detail))
        }
        Ok(Err(error)) => {
            tracing::error!(%error, "an upload could not be stored");
            let detail = "the file could not be stored in the working folder; is it full or was uploads replaced?";
            Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "upload-failed", detail))
        }
        Err(_) => Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "upload-failed", "storing was interrupted")),
    }
}

/// Name and content of the field `file`.
async fn file_field(mut multipart: Multipart) -> Result<(String, Vec<u8>), Problem> {
    let broken = |error: axum::extract::multipart::MultipartError| match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => too_large(),
        status => Problem::new(status, "bad-request", error.body_text()),
    };
    while let Some(mut field) = multipart.next_field().await.map_err(broken)? {
        if field.name() != Some("file") {
            continue;
        }
        let name = file_name(field.file_name().unwrap_or_default());
        let (mut content, mut size) = (Vec::new(), 0);
        // Read to the end also when it is too large: a client that is still writing would see no answer.
        while let Some(chunk) = field.chunk().await.map_err(broken)? {
            size += chunk.len();
            if size <= MAX_FILE_BYTES {
                content.extend_from_slice(&chunk);
            }
        }
        if size > MAX_FILE_BYTES {
            return Err(too_large());
        }
        return Ok((name, content));
    }
    let detail = "the form has no field \"file\"; send the file as multipart/form-data in it";
    Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "validation-failed", detail))
}

fn too_large() -> Problem {
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "the file is larger than 10 MiB; send a smaller one")
}

/// A plain file name: the last part of what the client sent, nothing that means a folder, hides, looks like another
/// name or reads as an option of a command. It is cleaned and not refused: clients don't choose their users' names.
fn file_name(sent: &str) -> String {
    let base = sent.rsplit(['/', '\\']).next().unwrap_or_default();
    let clean: String = base.chars().filter(|c| !c.is_control() && !is_invisible(*c)).collect();
    let mut name = clean.trim().trim_start_matches(['.', '-', '~', ' ']).to_owned();
    while name.len() > MAX_NAME_BYTES {
        name.pop();
    }
    if name.is_empty() { "file".to_owned() } else { name }
}

/// Characters that change how a name looks without being seen: bidirectional controls, zero width, separators of
/// lines, tags, variation selectors.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
        | '\u{e0000}'..='\u{e0fff}')
}

/// Stores the file in a folder named after its content, so that equal names do not replace each other. Every
/// step is relative to an open folder and follows no symbolic link: the agent can write here too.
fn store(workdir: &Path, name: &str, content: &[u8]) -> Result<String, Errno> {
    let digest = hex::encode(&Sha256::digest(content)[..8]);
    let open = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, workdir, open, Mode::empty())?;
    let uploads = subfolder(&root, FOLDER)?;
    let folder = subfolder(&uploads, &digest)?;
    // The final name appears with the whole content, and replaces a link instead of following it.
    let temporary = format!(".{}", uuid::Uuid::new_v4().simple());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(&folder, &temporary, flags, Mode::from_raw_mode(0o644))?;
    let written = std::fs::File::from(file)
        .write_all(content)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
        .and_then(|()| renameat(&folder, &temporary, &folder, name));
    if let Err(error) = written {
        let _ = unlinkat(&folder, &temporary, AtFlags::empty());
        return Err(error);
    }
    Ok(workdir.join(FOLDER).join(digest).join(name).display().to_string())
}

fn subfolder(parent: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
    match mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

/// Reads a form as the handler does, for the fuzz target.
#[cfg(test)]
pub(in crate::session) async fn parse_form(body: Vec<u8>, boundary: &str) -> Result<(String, Vec<u8>), StatusCode> {
    use axum::{extract::FromRequest, response::IntoResponse};
    let mut request = axum::extract::Request::new(axum::body::Body::from(body));
    let kind = format!("multipart/form-data; boundary={boundary}");
    request.headers_mut().insert("content-type", kind.parse().map_err(|_| StatusCode::IM_A_TEAPOT)?);
    let multipart = Multipart::from_request(request, &()).await.map_err(|error| error.status())?;
    file_field(multipart).await.map_err(|problem| problem.into_response().status())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn names_are_plain() {
        for (sent, expected) in [
            ("notes.txt", "notes.txt"),
            ("../../etc/passwd", "passwd"),
            ("C:\\dir\\a b.txt", "a b.txt"),
            ("..", "file"),
            ("", "file"),
            (".bashrc", "bashrc"),
            ("a\0b\n.txt", "ab.txt"),
            ("日本.txt", "日本.txt"),
            ("evil\u{202e}txt.exe", "eviltxt.exe"),
            ("a\u{200b}b\u{feff}\u{2066}\u{e0041}.txt", "ab.txt"),
            ("\u{200d}\u{202d}", "file"),
            ("-rf", "rf"),
            ("-- ..~x", "x"),
            ("a/..", "file"),
            ("a/.", "file"),
            ("..\\..\\x", "x"),
            ("x/\u{202e}../y", "y"),
            ("line\u{2028}two\r\n", "linetwo"),
        ] {
            assert_eq!(file_name(sent), expected, "{sent:?}");
        }
        assert!(file_name(&"é".repeat(300)).len() <= MAX_NAME_BYTES);
    }

    #[test]
    fn a_link_in_place_of_the_folder_is_not_followed() {
        let work = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), work.path().join(FOLDER)).unwrap();
        assert!(store(work.path(), "a", b"x").is_err());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_link_in_place_of_the_contents_folder_is_not_followed() {
        let work = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        let path = store(work.path(), "a", b"x").unwrap();
        let folder = Path::new(&path).parent().unwrap().to_owned();
        std::fs::remove_dir_all(&folder).unwrap();
        std::os::unix::fs::symlink(outside.path(), &folder).unwrap();
        assert!(store(work.path(), "a", b"x").is_err());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_link_in_place_of_the_file_is_replaced() {
        let work = tempfile::tempdir().unwrap();
        let outside = tempfile::NamedTempFile::new().unwrap();
        let path = store(work.path(), "a", b"x").unwrap();
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(outside.path(), &path).unwrap();
        assert_eq!(store(work.path(), "a", b"x").unwrap(), path);
        assert_eq!(std::fs::read(outside.path()).unwrap(), b"");
        assert_eq!(std::fs::read(&path).unwrap(), b"x");
    }
}
