//! Uploads by somebody who wants a file elsewhere, more than fits, or a server that is busy for ever; and an agent that
//! plants links where uploads go. Session pods are real processes with a working folder on this machine.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use agentapi_tests::api::{Answer, Api};
use agentapi_tests::cluster::eventually;
use agentapi_tests::serve::steps::SOON;
use agentapi_tests::serve::{Platform, Replica, Tenant};
use anyhow::{Context, Result};
use reqwest::Method;
use serde_json::json;

const SESSION_POD: &str = env!("CARGO_BIN_EXE_session-pod");
const LIMIT: usize = 10 * 1024 * 1024;

struct Session {
    _platform: Platform,
    _replica: Replica,
    _tenant: Tenant,
    api: Api,
    path: String,
    workspace: PathBuf,
    address: std::net::SocketAddr,
    token: String,
}

async fn session() -> Result<Session> {
    let platform = Platform::start(SESSION_POD).await?;
    let replica = platform.replica().await?;
    let tenant = platform.tenant("acme").await?;
    let api = replica.api(Some(&tenant.alice))?;
    let create = api.request(Method::POST, "/v1/sessions").header("prefer", "wait=30");
    let session = api.send(create.json(&json!({"workspace": "main"}))).await?.expect(201)?;
    let id = session["id"].as_str().context("no id")?;
    let workspace = platform.pods.folder(id.parse()?)?.join("workspace");
    let (address, token) = (replica.addresses.public, tenant.alice.clone());
    let path = format!("/v1/sessions/{id}/upload");
    Ok(Session { _platform: platform, _replica: replica, _tenant: tenant, api, path, workspace, address, token })
}

impl Session {
    async fn form(&self, form: Vec<u8>) -> Result<Answer> {
        let request = self.api.request(Method::POST, &self.path);
        self.api.send(request.header("content-type", "multipart/form-data; boundary=b").body(form)).await
    }

    async fn file(&self, name: &str, content: &[u8]) -> Result<Answer> {
        self.form(part(&format!("form-data; name=\"file\"; filename=\"{name}\""), content)).await
    }

    /// The file that an answer names, if it is where uploads belong.
    fn stored(&self, answer: &Answer) -> PathBuf {
        let path = PathBuf::from(answer.body["filePath"].as_str().unwrap_or_default());
        let real = path.canonicalize().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let home = self.workspace.join("uploads").canonicalize().expect("no uploads folder");
        assert!(real.starts_with(&home), "{} is not below {}", real.display(), home.display());
        assert_eq!(real.strip_prefix(&home).map_or(0, |rest| rest.components().count()), 2, "{}", real.display());
        real
    }
}

fn part(disposition: &str, content: &[u8]) -> Vec<u8> {
    [format!("--b\r\nContent-Disposition: {disposition}\r\n\r\n").as_bytes(), content, b"\r\n--b--\r\n"].concat()
}

fn files_below(folder: &Path) -> usize {
    std::fs::read_dir(folder).into_iter().flatten().flatten().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_a_name_and_never_a_place() -> Result<()> {
    let session = session().await?;
    let outside = tempfile::tempdir()?;
    let absolute = outside.path().join("planted").display().to_string();
    let long = "a".repeat(5000);
    let names = [
        "../../../../tmp/x",
        "..",
        ".",
        "",
        "/",
        "//",
        "..\\..\\x",
        "C:\\x",
        absolute.as_str(),
        "a/b/c",
        ".bashrc",
        "...",
        ".git/config",
        "%2e%2e%2fx",
        "..%2fx",
        "x\u{202e}gpj.exe",
        "\u{202e}",
        "\u{200b}",
        "．．／x",
        "a\u{2215}b",
        "~",
        "~root",
        "-rf",
        "--help",
        "$(id)",
        "`id`",
        "; id",
        "x\ty",
        "con",
        "nul",
        "x ",
        " x",
        "\u{feff}x",
        long.as_str(),
        "字",
        "e\u{301}",
        "a'b",
        "<script>",
        "{{7*7}}",
    ];
    for name in names {
        let content = format!("content of {name}").into_bytes();
        let answer = session.file(name, &content).await?;
        let code = answer.status.as_u16();
        assert!(code == 200 || (400..500).contains(&code), "{name:.60?}: {code} {}", answer.body);
        if code == 200 {
            let stored = session.stored(&answer);
            assert_eq!(std::fs::read(&stored)?, content, "{name:?}");
            let text = stored.file_name().unwrap_or_default().to_string_lossy().into_owned();
            assert!(text.len() <= 255 && !text.starts_with('.') && !text.chars().any(char::is_control), "{text:?}");
            let turning = ['\u{202a}', '\u{202b}', '\u{202d}', '\u{202e}', '\u{2066}', '\u{2067}', '\u{2068}'];
            assert!(!text.contains(turning), "a name that reads as another: {text:?}");
        }
    }
    // Encodings of the name that some parsers decode.
    for disposition in [
        "form-data; name=\"file\"; filename*=UTF-8''%2e%2e%2f%2e%2e%2fx",
        "form-data; name=\"file\"; filename=\"a\"; filename=\"../../x\"",
        "form-data; name=file; filename=../../x",
        "form-data; name=\"file\"; filename=\"a\\\"/../../x\"",
        "form-data; filename=\"../x\"; name=\"file\"",
        "form-data; name=\"file\"; filename=\"a\0b/../x\"",
    ] {
        let answer = session.form(part(disposition, b"x")).await?;
        assert!(answer.status.as_u16() < 500, "{disposition}: {}", answer.body);
        if answer.status == 200 {
            session.stored(&answer);
        }
    }
    assert_eq!(files_below(outside.path()), 0);
    assert_eq!(files_below(&session.workspace), 1, "something is beside the uploads folder");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn links_that_the_agent_plants_lead_nowhere() -> Result<()> {
    let session = session().await?;
    let outside = tempfile::tempdir()?;
    std::fs::write(outside.path().join("secret"), "untouched")?;
    let uploads = session.workspace.join("uploads");
    let first = session.stored(&session.file("a.txt", b"content").await?);
    let folder = first.parent().context("no folder")?.to_owned();

    // In place of the file: replaced, not followed.
    std::fs::remove_file(&first)?;
    std::os::unix::fs::symlink(outside.path().join("secret"), &first)?;
    let answer = session.file("a.txt", b"content").await?;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert!(std::fs::symlink_metadata(&first)?.is_file());

    // In place of each folder on the way: refused, since what is there is the agent's doing and can be undone by it.
    std::fs::remove_dir_all(&folder)?;
    std::os::unix::fs::symlink(outside.path(), &folder)?;
    let answer = session.file("a.txt", b"content").await?;
    assert!((400..500).contains(&answer.status.as_u16()), "{} {}", answer.status, answer.body);
    std::fs::remove_dir_all(&uploads)?;
    std::os::unix::fs::symlink(outside.path(), &uploads)?;
    let answer = session.file("a.txt", b"content").await?;
    assert!((400..500).contains(&answer.status.as_u16()), "{} {}", answer.status, answer.body);
    std::fs::remove_file(&uploads)?;
    std::fs::write(&uploads, "a file")?;
    let answer = session.file("a.txt", b"content").await?;
    assert!((400..500).contains(&answer.status.as_u16()), "{} {}", answer.status, answer.body);
    // A folder in place of the file.
    std::fs::remove_file(&uploads)?;
    std::fs::create_dir_all(folder.join("a.txt").join("x"))?;
    let answer = session.file("a.txt", b"content").await?;
    assert!((400..500).contains(&answer.status.as_u16()), "{} {}", answer.status, answer.body);

    assert_eq!(std::fs::read_to_string(outside.path().join("secret"))?, "untouched");
    assert_eq!(files_below(outside.path()), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn forms_of_any_shape_are_stored_or_refused() -> Result<()> {
    let session = session().await?;
    let ok = "form-data; name=\"file\"; filename=\"x\"";
    let many: Vec<u8> = (0..3000)
        .flat_map(|n| format!("--b\r\nContent-Disposition: form-data; name=\"f{n}\"\r\n\r\nx\r\n").into_bytes())
        .collect();
    let whole = part(ok, b"hello");
    let forms: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", vec![]),
        ("no part", b"--b--\r\n".to_vec()),
        ("another field", part("form-data; name=\"document\"; filename=\"x\"", b"x")),
        ("no name", part("form-data", b"x")),
        ("no disposition", b"--b\r\n\r\nx\r\n--b--\r\n".to_vec()),
        ("another boundary", whole.iter().map(|byte| if *byte == b'b' { b'c' } else { *byte }).collect()),
        ("cut in the content", whole[..whole.len() - 12].to_vec()),
        ("cut in the head", whole[..20].to_vec()),
        ("many parts and no file", [many.as_slice(), b"--b--\r\n"].concat()),
        ("a head without end", [b"--b\r\nX: ".as_slice(), &vec![b'a'; 2 * 1024 * 1024]].concat()),
        ("10,000 headers", [b"--b\r\n".as_slice(), &b"X: y\r\n".repeat(10_000), b"\r\nx\r\n--b--\r\n"].concat()),
        ("no form", b"hello".to_vec()),
    ];
    for (why, form) in forms {
        let answer = session.form(form).await?;
        let code = answer.status.as_u16();
        assert!((400..500).contains(&code), "{why}: {code} {}", answer.body);
        assert_eq!(answer.content_type, "application/problem+json", "{why}");
    }
    // Parts around the file do not matter.
    let answer = session.form([many, part(ok, b"behind three thousand")].concat()).await?;
    assert!(matches!(answer.status.as_u16(), 200 | 400 | 413 | 422), "{}", answer.body);
    for kind in [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=\"\r\n\"",
        "multipart/mixed; boundary=b",
        "text/plain",
    ] {
        let Ok(kind) = reqwest::header::HeaderValue::from_str(kind) else { continue };
        let request =
            session.api.request(Method::POST, &session.path).header("content-type", &kind).body(part(ok, b"x"));
        let answer = session.api.send(request).await?;
        assert!((400..500).contains(&answer.status.as_u16()), "{kind:?}: {} {}", answer.status, answer.body);
    }
    // Ten MiB fit, one byte more does not, and neither does much more with or without a length in advance.
    let answer = session.file("large", &vec![b'x'; LIMIT]).await?;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(std::fs::metadata(session.stored(&answer))?.len(), LIMIT as u64);
    assert_eq!(session.file("too-large", &vec![b'x'; LIMIT + 1]).await?.status, 413);
    let chunks = (0..400).map(|_| Ok::<_, std::io::Error>(bytes::Bytes::from(vec![b'x'; 64 * 1024])));
    let head = format!("--b\r\nContent-Disposition: {ok}\r\n\r\n");
    let start = bytes::Bytes::from(head);
    let stream = futures::stream::iter(std::iter::once(Ok(start)).chain(chunks));
    let request =
        session.api.request(Method::POST, &session.path).header("content-type", "multipart/form-data; boundary=b");
    let answer = session.api.send(request.body(reqwest::Body::wrap_stream(stream))).await?;
    assert_eq!(answer.status, 413, "{}", answer.body);
    // What looks compressed is stored as it is: nobody unpacks it.
    let bomb = [[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3].as_slice(), &vec![0; 100_000]].concat();
    let request =
        session.api.request(Method::POST, &session.path).header("content-type", "multipart/form-data; boundary=b");
    let answer = session.api.send(request.header("content-encoding", "gzip").body(part(ok, &bomb))).await?;
    assert!(matches!(answer.status.as_u16(), 200 | 415), "{}", answer.body);
    if answer.status == 200 {
        assert_eq!(std::fs::read(session.stored(&answer))?, bomb);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_that_never_end_hold_up_nobody() -> Result<()> {
    use tokio::io::AsyncWriteExt;
    let session = session().await?;
    let head = format!(
        "POST {} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: 1000000\r\n\r\n--b\r\n",
        session.path, session.token
    );
    let mut open = Vec::new();
    for _ in 0..60 {
        let mut stream = tokio::net::TcpStream::connect(session.address).await?;
        stream.write_all(head.as_bytes()).await?;
        open.push(stream);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    for path in ["/status", "/messages"] {
        let began = std::time::Instant::now();
        let answer = session.api.get(&session.path.replace("/upload", path)).await?;
        assert!(matches!(answer.status.as_u16(), 200 | 429), "{}", answer.body);
        assert!(began.elapsed() < Duration::from_secs(5), "{path} took {:?}", began.elapsed());
    }
    // Half of a file leaves nothing behind.
    drop(open);
    eventually("room for an upload", SOON, async || {
        let answer = session.file("after", b"after").await?;
        // Until the server has noticed that the others are gone.
        Ok(if answer.status == 429 { Err(answer.body.to_string()) } else { Ok(answer) })
    })
    .await?
    .expect(200)?;
    assert_eq!(files_below(&session.workspace.join("uploads")), 1);
    Ok(())
}
