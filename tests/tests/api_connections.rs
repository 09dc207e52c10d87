//! Connections as they come from the network, on raw sockets: slow heads, slow bodies, and clients that keep their
//! connection.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use agentapi_tests::serve::steps::running_in_main;
use agentapi_tests::serve::{Platform, Replica, Tenant};
use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

const SESSION_POD: &str = env!("CARGO_BIN_EXE_session-pod");
/// More than the ten seconds that a head or a body may take.
const PATIENCE: Duration = Duration::from_secs(25);

/// What comes until the other side is silent for a moment or closes.
async fn answer(stream: &mut TcpStream) -> Result<String> {
    let mut bytes = vec![0; 64 * 1024];
    let read = timeout(PATIENCE, stream.read(&mut bytes)).await.context("no answer")??;
    Ok(String::from_utf8_lossy(&bytes[..read]).into_owned())
}

/// How long the other side keeps the connection.
async fn closed_after(stream: &mut TcpStream) -> Result<Duration> {
    let began = Instant::now();
    let mut byte = [0; 1];
    match timeout(PATIENCE, stream.read(&mut byte)).await.context("it is still open")? {
        Ok(0) | Err(_) => Ok(began.elapsed()),
        Ok(_) => anyhow::bail!("an answer to a request that is not complete"),
    }
}

async fn connect(address: SocketAddr) -> Result<TcpStream> {
    Ok(TcpStream::connect(address).await?)
}

async fn replica() -> Result<(Platform, Replica, Tenant)> {
    let platform = Platform::start(SESSION_POD).await?;
    let tenant = platform.tenant("acme").await?;
    let mut config = platform.config();
    config.http_idle_seconds = 14;
    let replica = platform.replica_with(config).await?;
    Ok((platform, replica, tenant))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_has_ten_seconds_and_a_kept_connection_has_longer() -> Result<()> {
    let (_platform, replica, _) = replica().await?;
    let address = replica.addresses.public;
    let slow_head = async {
        let mut stream = connect(address).await?;
        stream.write_all(b"GET /live HT").await?;
        closed_after(&mut stream).await
    };
    // One byte now and then does not make it longer.
    let trickling_head = async {
        let (mut reader, mut writer) = connect(address).await?.into_split();
        let drip = tokio::spawn(async move {
            for byte in b"GET /live HTTP/1.1\r\nhost: x\r\n" {
                if writer.write_all(&[*byte]).await.is_err() {
                    break;
                }
                sleep(Duration::from_secs(1)).await;
            }
        });
        let began = Instant::now();
        let mut byte = [0; 1];
        let ended = timeout(PATIENCE, reader.read(&mut byte)).await.context("it is still open")?;
        drip.abort();
        ensure!(!matches!(ended, Ok(1)), "it was answered");
        Ok(began.elapsed())
    };
    let kept = async {
        let mut stream = connect(address).await?;
        let mut idle = Instant::now();
        for _ in 0..2 {
            stream.write_all(b"GET /live HTTP/1.1\r\nhost: x\r\n\r\n").await?;
            let text = answer(&mut stream).await?;
            ensure!(text.starts_with("HTTP/1.1 200"), "{text}");
            idle = Instant::now();
            sleep(Duration::from_secs(12)).await;
        }
        closed_after(&mut stream).await?;
        let rest = idle.elapsed();
        // And a head that begins after a request has its ten seconds like the first.
        let mut stream = connect(address).await?;
        stream.write_all(b"GET /live HTTP/1.1\r\nhost: x\r\n\r\n").await?;
        answer(&mut stream).await?;
        stream.write_all(b"GET /live HT").await?;
        Ok::<_, anyhow::Error>((rest, closed_after(&mut stream).await?))
    };
    let (slow, trickle, kept): (Result<Duration>, Result<Duration>, _) = tokio::join!(slow_head, trickling_head, kept);
    let (slow, trickle, (kept, second)) = (slow?, trickle?, kept?);
    let about = |took: Duration, seconds: u64| (seconds - 1..seconds + 7).contains(&took.as_secs());
    assert!(about(slow, 10), "a slow head was cut off after {slow:?}");
    assert!(about(trickle, 10), "a trickling head was cut off after {trickle:?}");
    assert!(about(kept, 14), "a kept connection was closed after {kept:?}");
    assert!(about(second, 10), "a slow second head was cut off after {second:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trickling_body_is_408() -> Result<()> {
    let (_platform, replica, tenant) = replica().await?;
    let session = running_in_main(&replica.api(Some(&tenant.alice))?).await?;
    let slow = async |path: &str, kind: &str, begin: &str| -> Result<(Duration, String)> {
        let mut stream = connect(replica.addresses.public).await?;
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: {kind}\r\ncontent-length: 5000\r\n\r\n",
            tenant.alice
        );
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(begin.as_bytes()).await?;
        let (mut reader, mut writer) = stream.into_split();
        let drip = tokio::spawn(async move {
            while writer.write_all(b"x").await.is_ok() {
                sleep(Duration::from_millis(500)).await;
            }
        });
        let began = Instant::now();
        let mut text = Vec::new();
        let _ended = timeout(PATIENCE, reader.read_to_end(&mut text)).await.context("it is still open")?;
        drip.abort();
        Ok((began.elapsed(), String::from_utf8_lossy(&text).into_owned()))
    };
    let multipart = "multipart/form-data; boundary=b";
    let (message, upload) = (format!("/v1/sessions/{session}/message"), format!("/v1/sessions/{session}/upload"));
    let part = "--b\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\n";
    let json = "application/json";
    let calls = [("/v1/sessions", json, "{"), (&message, json, "{"), (&upload, multipart, part)];
    let answers = futures::future::join_all(calls.map(|(path, kind, begin)| slow(path, kind, begin))).await;
    for (answer, (path, ..)) in answers.into_iter().zip(calls) {
        let (took, text) = answer?;
        assert!(text.starts_with("HTTP/1.1 408") && text.contains("request-timeout"), "{path} after {took:?}: {text}");
        assert!(took < Duration::from_secs(20), "{path}: {took:?}");
    }
    // The session does not suffer.
    replica.api(Some(&tenant.alice))?.get(&format!("/v1/sessions/{session}/status")).await?.expect(200)?;
    Ok(())
}
