//! The beginning of a multipart body: the name of the file that comes, while the file itself still streams. May touch:
//! the body that it is given.

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use http::HeaderMap;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};

use super::error::Problem;
use super::extract::BODY_TIMEOUT;
use super::linger;

/// Longest head of a part.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// Longest file name that is recorded.
const MAX_NAME_CHARS: usize = 255;

/// What a form begins with.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    /// Field of the first part.
    field: String,
    /// File name of the first part.
    file: Option<String>,
    /// Bytes before the file.
    length: usize,
}

/// A file on its way.
pub(super) struct Incoming {
    /// Its name, as the client says it.
    pub(super) name: String,
    /// Its bytes, where the request says how long it is and nothing but the file is in it.
    pub(super) bytes: Option<usize>,
    /// The whole body.
    pub(super) body: Body,
}

/// Reads a form up to its first file, which must be what it begins with.
pub(super) async fn begin(headers: &HeaderMap, body: Body) -> Result<Incoming, Problem> {
    let header = |name| headers.get(name).and_then(|value: &http::HeaderValue| value.to_str().ok());
    let boundary = header(CONTENT_TYPE).and_then(boundary).ok_or_else(|| {
        Problem::bad_request(
            "Content-Type has no boundary; let your HTTP library write it: multipart/form-data; boundary=…",
        )
    })?;
    let mut stream = body.into_data_stream();
    let mut read = BytesMut::new();
    let head = loop {
        if let Some(head) = head(&read, &boundary) {
            break head;
        }
        if read.len() > MAX_HEAD_BYTES {
            return Err(Problem::invalid_field("file", "The form's first part has a head that is too long."));
        }
        match tokio::time::timeout(BODY_TIMEOUT, stream.next()).await {
            Ok(Some(Ok(chunk))) => read.extend_from_slice(&chunk),
            Ok(Some(Err(error))) if linger::is_too_slow(&error) => return Err(Problem::too_slow()),
            Ok(Some(Err(_))) => return Err(Problem::bad_request("The body ended early.")),
            Ok(None) => return Err(no_file()),
            Err(_) => return Err(Problem::too_slow()),
        }
    };
    let Head { field, file: Some(name), length } = head else { return Err(no_file()) };
    if field != "file" {
        return Err(no_file());
    }
    // CR LF, two dashes, the boundary, two dashes, CR LF.
    let end = boundary.len() + 8;
    let bytes = header(CONTENT_LENGTH).and_then(|text| text.parse::<usize>().ok()?.checked_sub(length + end));
    let first = futures::stream::once(async move { Ok::<Bytes, axum::Error>(read.freeze()) });
    Ok(Incoming { name, bytes, body: Body::from_stream(first.chain(stream)) })
}

fn no_file() -> Problem {
    let detail = "The form must begin with the file, in a field named file; send it as multipart/form-data.";
    Problem::invalid_field("file", detail)
}

/// The parameter of a Content-Type.
fn boundary(content_type: &str) -> Option<String> {
    let value = content_type.split(';').skip(1).find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("boundary").then(|| value.trim().trim_matches('"'))
    })?;
    (1..=70).contains(&value.len()).then(|| value.to_owned())
}

/// The first part's head, once all of it is there. What is not as it should be is a head without a file.
fn head(read: &[u8], boundary: &str) -> Option<Head> {
    let opening = format!("--{boundary}\r\n");
    let nothing = Head { field: String::new(), file: None, length: 0 };
    let start = opening.len();
    let common = read.len().min(start);
    if read[..common] != opening.as_bytes()[..common] {
        return Some(nothing);
    }
    let end = read.get(start..)?.windows(4).position(|window| window == b"\r\n\r\n")?;
    let lines = String::from_utf8_lossy(&read[start..start + end]);
    let disposition = lines.split("\r\n").find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.trim().eq_ignore_ascii_case("content-disposition").then_some(value)
    });
    let Some(disposition) = disposition else { return Some(nothing) };
    let field = parameter(disposition, "name").unwrap_or_default();
    Some(Head { field, file: parameter(disposition, "filename"), length: start + end + 4 })
}

/// A quoted parameter, with what no log should hold taken out.
fn parameter(header: &str, wanted: &str) -> Option<String> {
    let mut rest = header;
    loop {
        let (_, next) = rest.split_once(';')?;
        let (name, value) = next.split_once('=')?;
        let value = value.trim_start();
        let mut text = String::new();
        let mut used = value.len();
        let mut escaped = false;
        let quoted = value.strip_prefix('"');
        for (at, c) in quoted.unwrap_or(value).char_indices() {
            match c {
                '\\' if quoted.is_some() && !escaped => {
                    escaped = true;
                    continue;
                }
                '"' if quoted.is_some() && !escaped => {
                    used = at + 2;
                    break;
                }
                ';' if quoted.is_none() => {
                    used = at;
                    break;
                }
                _ => text.push(c),
            }
            escaped = false;
        }
        if name.trim().eq_ignore_ascii_case(wanted) {
            let plain = text.trim().chars().filter(|c| !c.is_control()).take(MAX_NAME_CHARS);
            return Some(plain.collect());
        }
        rest = value.get(used.min(value.len())..)?;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rstest::rstest;

    fn form(disposition: &str) -> Vec<u8> {
        format!("--b\r\ncontent-type: text/plain\r\nContent-Disposition: {disposition}\r\n\r\nhello\r\n--b--\r\n")
            .into()
    }

    #[rstest]
    #[case::plain("form-data; name=\"file\"; filename=\"a.txt\"", Some("a.txt"))]
    #[case::the_other_way_round("form-data; filename=\"a.txt\"; name=\"file\"", Some("a.txt"))]
    #[case::not_quoted("form-data; name=file; filename=a.txt", Some("a.txt"))]
    #[case::semicolon("form-data; name=\"file\"; filename=\"a;name=x.txt\"", Some("a;name=x.txt"))]
    #[case::quote("form-data; name=\"file\"; filename=\"a\\\"b.txt\"", Some("a\"b.txt"))]
    #[case::control("form-data; name=\"file\"; filename=\"a\0\u{7}b\"", Some("ab"))]
    #[case::no_file("form-data; name=\"file\"", None)]
    #[case::folders("form-data; name=\"file\"; filename=\"../../etc/passwd\"", Some("../../etc/passwd"))]
    fn the_file_is_named(#[case] disposition: &str, #[case] file: Option<&str>) {
        let body = form(disposition);
        let found = head(&body, "b").unwrap();
        assert_eq!((found.field.as_str(), found.file.as_deref()), ("file", file));
        assert_eq!(&body[found.length..found.length + 5], b"hello");
        // However it is cut into pieces: not yet, then this.
        for cut in 0..found.length {
            assert_eq!(head(&body[..cut], "b"), None, "{cut}");
        }
    }

    #[test]
    fn something_else_is_no_file() {
        for body in [&b"hello"[..], b"--c\r\n", b"--b\r\nx: y\r\n\r\n", b"\r\n--b\r\n", b"--b--\r\n"] {
            assert_eq!(head(body, "b").and_then(|head| head.file), None);
            assert!(head(body, "b").is_some());
        }
    }

    #[tokio::test]
    async fn the_size_is_that_of_the_file_and_the_body_stays_whole() {
        let body = form("form-data; name=\"file\"; filename=\"a.txt\"");
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, "multipart/form-data; boundary=\"b\"".parse().unwrap());
        headers.insert(CONTENT_LENGTH, body.len().into());
        let pieces: Vec<Result<Bytes, axum::Error>> =
            body.chunks(3).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        let incoming = begin(&headers, Body::from_stream(futures::stream::iter(pieces))).await.unwrap();
        assert_eq!((incoming.name.as_str(), incoming.bytes), ("a.txt", Some(5)));
        assert_eq!(axum::body::to_bytes(incoming.body, 1000).await.unwrap(), body);
        let other = form("form-data; name=\"note\"; filename=\"a.txt\"");
        assert!(begin(&headers, Body::from(other)).await.is_err());
        let endless = vec![b'x'; MAX_HEAD_BYTES * 2];
        let endless = [&b"--b\r\n"[..], &endless].concat();
        assert!(begin(&headers, Body::from(endless)).await.is_err());
        assert!(begin(&HeaderMap::new(), Body::from(body)).await.is_err());
    }
}
