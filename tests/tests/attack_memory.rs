//! One tenant that wants to fill the memory of the process that serves all: bodies that are sent and never end, answers
//! that nobody reads, transcripts that are longer than there is room for. It is told to do less at a time, others go on,
//! and when it lets go all is as before.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::SocketAddr;

use agentapi_tests::api::{Answer, Api};
use agentapi_tests::cluster::eventually;
use agentapi_tests::serve::steps::{SOON, phase, running_in_main};
use agentapi_tests::serve::{Platform, Replica, Tenant};
use anyhow::Result;
use futures::future::join_all;
use reqwest::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

const SESSION_POD: &str = env!("CARGO_BIN_EXE_session-pod");
const MIB: usize = 1024 * 1024;
/// So many answers of some MiB each are more than one organization may have at a time.
const READERS: usize = 24;

async fn platform() -> Result<(Platform, Replica, Tenant, Tenant)> {
    let platform = Platform::start(SESSION_POD).await?;
    let mut config = platform.config();
    config.check_pod_address = false;
    let replica = platform.replica_with(config).await?;
    let (acme, globex) = (platform.tenant("acme").await?, platform.tenant("globex").await?);
    Ok((platform, replica, acme, globex))
}

/// A connection on which somebody reads as little as the system allows.
async fn open(address: SocketAddr, head: &str) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(4096)?;
    let mut stream = socket.connect(address).await?;
    stream.write_all(head.as_bytes()).await?;
    Ok(stream)
}

/// What is asked for, from when it is answered in this way.
async fn answered(what: &str, status: u16, mut ask: impl AsyncFnMut() -> Result<Answer>) -> Result<Answer> {
    eventually(what, SOON, async || {
        let answer = ask().await?;
        Ok(if answer.status.as_u16() == status { Ok(answer) } else { Err(answer.status.to_string()) })
    })
    .await
}

fn is_too_much(answer: &Answer) {
    assert_eq!((answer.problem(), &*answer.content_type), ("too-much-at-a-time", "application/problem+json"));
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_never_end() -> Result<()> {
    let (platform, replica, acme, globex) = platform().await?;
    let push = async |tenant: &Tenant| -> Result<(String, String, Api)> {
        let session = running_in_main(&replica.api(Some(&tenant.alice))?).await?;
        let token = platform.pods.session_token(session.parse()?)?;
        let api = replica.internal_api(Some(&token), platform.pods.of(session.parse()?)?.1)?;
        Ok((format!("/internal/v1/sessions/{session}/messages"), token, api))
    };
    let (hostile, other) = (push(&acme).await?, push(&globex).await?);
    let put = async |(path, _, api): &(String, String, Api), length: usize| {
        let message =
            json!({"id": 900, "role": "agent", "content": "x".repeat(length), "time": "2026-01-01T00:00:00Z"});
        api.send(api.request(Method::PUT, path).json(&json!({"messages": [message], "status": "stable"}))).await
    };
    put(&hostile, 2 * MIB).await?.expect(200)?;

    let (path, token, _) = &hostile;
    let length = 32 * MIB;
    let head = format!(
        "PUT {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    );
    let begun = async || -> Result<TcpStream> {
        let mut endless = open(replica.addresses.internal, &head).await?;
        // One that is refused may be cut off.
        let _ = endless.write_all(&vec![b' '; length - 1]).await;
        Ok(endless)
    };
    let mut endless = begun().await?;
    let refused = answered("no room for one more", 429, async || {
        // What was sent is not all read yet, so it may be the one that there was no room for.
        let waits = |error: std::io::Error| error.kind() == std::io::ErrorKind::WouldBlock;
        if !endless.try_read(&mut [0; 64]).is_err_and(waits) {
            endless = begun().await?;
        }
        put(&hostile, 2 * MIB).await
    })
    .await?;
    is_too_much(&refused);
    put(&hostile, 1000).await?.expect(200)?;
    put(&other, 2 * MIB).await?.expect(200)?;
    drop(endless);
    answered("room again", 200, async || put(&hostile, 2 * MIB).await).await?;

    // Who is nobody yet is not read at all.
    let stranger = replica.api(None)?;
    let long = json!({ "state": "x".repeat(100_000) });
    let answer = stranger.send(stranger.request(Method::POST, "/oauth/connect").json(&long)).await?;
    assert_eq!((answer.status.as_u16(), answer.problem()), (413, "body-too-large"), "{}", answer.body);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_nobody_reads() -> Result<()> {
    let (_platform, replica, acme, globex) = platform().await?;
    let body = json!({"workspace": "main", "prompt": "x\n".repeat(100_000)}).to_string();
    let preview = async |token: &str| {
        let api = replica.api(Some(token))?;
        let request = api.request(Method::POST, "/v1/prompts/preview").header("content-type", "application/json");
        api.send(request.body(body.clone())).await
    };
    let shown = preview(&acme.alice).await?.expect(200)?;
    assert_eq!(shown["lines"].as_array().map(Vec::len), Some(100_001));
    let head = format!(
        "POST /v1/prompts/preview HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        acme.alice,
        body.len()
    );
    let mut readers = join_all((0..READERS).map(|_| open(replica.addresses.public, &head))).await;
    let refused = answered("no room for one more", 429, async || {
        let answer = preview(&acme.alice).await?;
        if answer.status == 200 {
            // A reader may have been refused because of it.
            readers.push(open(replica.addresses.public, &head).await);
        }
        Ok(answer)
    })
    .await?;
    is_too_much(&refused);
    preview(&globex.alice).await?.expect(200)?;
    drop(readers);
    answered("room again", 200, async || preview(&acme.alice).await).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn transcripts_that_nobody_reads() -> Result<()> {
    let (platform, replica, acme, globex) = platform().await?;
    let mut sessions = Vec::new();
    for tenant in [&acme, &globex] {
        let api = replica.api(Some(&tenant.alice))?;
        let session = running_in_main(&api).await?;
        api.send(api.request(Method::DELETE, &format!("/v1/sessions/{session}"))).await?.expect(204)?;
        phase(&api, &session, "Ended").await?;
        let mut admin = platform.db.connect(&platform.db.admin_url()).await?;
        for statement in [
            "insert into messages (org_id, session_id, id, user_id, role, content)
             select s.org_id, s.id, 1000 + n, s.user_id, 'agent', n || repeat('x', 1000000)
             from sessions s, generate_series(1, 20) n where s.id = $1::uuid",
            "update sessions set transcript_bytes = 20000000 where id = $1::uuid",
        ] {
            sqlx::query(statement).bind(&session).execute(&mut admin).await?;
        }
        sessions.push(session);
    }
    let path = |session: &str| format!("/v1/sessions/{session}/messages");
    let read = async |tenant: &Tenant, session: &str| replica.api(Some(&tenant.alice))?.get(&path(session)).await;
    let whole = read(&acme, &sessions[0]).await?.expect(200)?;
    let ids: Vec<i64> = whole["messages"].as_array().unwrap().iter().filter_map(|it| it["id"].as_i64()).collect();
    assert!(ids.is_sorted() && ids.ends_with(&(1001..=1020).collect::<Vec<_>>()), "{ids:?}");
    let contents = whole["messages"].as_array().unwrap().iter().filter_map(|it| it["content"].as_str());
    assert_eq!(contents.filter(|text| text.len() > 1_000_000).count(), 20);

    let head =
        format!("GET {} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\r\n", path(&sessions[0]), acme.alice);
    let mut readers = join_all((0..READERS).map(|_| open(replica.addresses.public, &head))).await;
    let refused = answered("no room for one more", 429, async || {
        let answer = read(&acme, &sessions[0]).await?;
        if answer.status == 200 {
            // A reader may have been refused because of it.
            readers.push(open(replica.addresses.public, &head).await);
        }
        Ok(answer)
    })
    .await?;
    is_too_much(&refused);
    read(&globex, &sessions[1]).await?.expect(200)?;
    // Who reads on gets the rest.
    let mut begun = [0; 12];
    readers[0].as_mut().unwrap().read_exact(&mut begun).await?;
    assert!(begun.starts_with(b"HTTP/1.1 "), "{:?}", String::from_utf8_lossy(&begun));
    drop(readers);
    answered("room again", 200, async || read(&acme, &sessions[0]).await).await?;
    Ok(())
}
