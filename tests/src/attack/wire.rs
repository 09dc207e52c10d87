//! Bytes on a bare TCP connection, for requests that no HTTP library would send.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

/// One answer of a server.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Status line and headers.
    pub head: String,
    /// Body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Sends the bytes and gives back all answers until the server closes the connection or is silent for `patience`.
///
/// # Errors
/// When there is no connection, or the answer is not HTTP.
pub async fn exchange(address: SocketAddr, bytes: &[u8], patience: Duration) -> Result<Vec<Answer>> {
    let mut stream = TcpStream::connect(address).await?;
    // A server that refuses early resets a connection that is still written to.
    let _ = timeout(patience, stream.write_all(bytes)).await;
    let received = read_all(&mut stream, patience).await;
    answers(&received)
}

/// Everything that arrives until the end, a reset, or silence.
pub async fn read_all(stream: &mut TcpStream, patience: Duration) -> Vec<u8> {
    let (mut received, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
    while let Ok(Ok(count @ 1..)) = timeout(patience, stream.read(&mut buffer)).await {
        received.extend_from_slice(&buffer[..count]);
        if received.len() > 64 * 1024 * 1024 {
            break;
        }
    }
    received
}

/// Splits what was received into answers.
///
/// # Errors
/// When it is not a sequence of them.
pub fn answers(mut received: &[u8]) -> Result<Vec<Answer>> {
    let mut found = Vec::new();
    while !received.is_empty() {
        let end =
            received.windows(4).position(|four| four == b"\r\n\r\n").context("an answer without an end of its head")?;
        let head = String::from_utf8_lossy(&received[..end]).into_owned();
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|code| code.parse().ok())
            .with_context(|| format!("no status: {head:?}"))?;
        let mut answer = Answer { status, head, body: Vec::new() };
        received = &received[end + 4..];
        if let Some(length) = answer.header("content-length").and_then(|text| text.parse::<usize>().ok()) {
            let length = length.min(received.len());
            answer.body = received[..length].to_vec();
            received = &received[length..];
        } else if answer.header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
            (answer.body, received) = chunks(received);
        } else if !matches!(status, 100..200 | 204 | 304) {
            answer.body = std::mem::take(&mut received).to_vec();
        }
        found.push(answer);
    }
    Ok(found)
}

fn chunks(mut received: &[u8]) -> (Vec<u8>, &[u8]) {
    let mut body = Vec::new();
    while let Some(end) = received.windows(2).position(|two| two == b"\r\n") {
        let size =
            std::str::from_utf8(&received[..end]).ok().and_then(|text| usize::from_str_radix(text.trim(), 16).ok());
        received = &received[end + 2..];
        let Some(size) = size.filter(|size| *size <= received.len()) else { break };
        body.extend_from_slice(&received[..size]);
        received = received.get(size + 2..).unwrap_or_default();
        if size == 0 {
            break;
        }
    }
    (body, received)
}

/// Sends the bytes one by one with pauses, until the server has had enough. Gives back what it said and after how long.
///
/// # Errors
/// When there is no connection.
pub async fn drip(
    address: SocketAddr,
    start: &[u8],
    every: Duration,
    at_most: Duration,
) -> Result<(Vec<u8>, Duration)> {
    let mut stream = TcpStream::connect(address).await?;
    let began = Instant::now();
    stream.write_all(start).await?;
    let mut received = Vec::new();
    let mut buffer = [0; 4096];
    while began.elapsed() < at_most {
        match timeout(every, stream.read(&mut buffer)).await {
            Ok(Ok(0) | Err(_)) => break,
            Ok(Ok(count)) => received.extend_from_slice(&buffer[..count]),
            Err(_) => {
                if stream.write_all(b"x").await.is_err() {
                    break;
                }
            }
        }
    }
    Ok((received, began.elapsed()))
}

/// Percent-encodes everything but letters and digits; bytes that are encoded already are encoded again.
pub fn encode(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() {
            out.push(char::from(byte));
        } else {
            out.push('%');
            // Writing to a String does not fail.
            let _ = write!(out, "{byte:02X}");
        }
        out
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn answers_are_told_apart() {
        let text = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhiHTTP/1.1 404 Not Found\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
        let found = answers(text).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].status, found[0].text().as_str()), (200, "hi"));
        assert_eq!((found[1].status, found[1].text().as_str()), (404, "abc"));
        assert_eq!(encode("../é"), "%2E%2E%2F%C3%A9");
    }
}
