//! Addresses that a tenant must not make the runtime call: whatever way they are written, resolved to or redirected to,
//! nothing is contacted, and the refusal says why.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use agentapi_runtime::outbound::{Lookup, Outbound, Ranges, Refused};
use futures::FutureExt;
use reqwest::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// A listener that counts who comes, and answers with this.
async fn listener(answer: String) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, came) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&came);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    (address, came)
}

async fn call(outbound: &Outbound, url: &str, allow: &Ranges) -> Result<reqwest::Response, String> {
    let request =
        outbound.request(Method::POST, url, allow, Duration::from_secs(5)).map_err(|refused| refused.to_string())?;
    request.body("{}").send().await.map_err(|error| match Refused::within(&error) {
        Some(refused) => refused.to_string(),
        None => format!("not refused, but failed: {error:?}"),
    })
}

#[tokio::test]
async fn no_way_of_writing_an_inner_address_contacts_it() {
    let (address, came) = listener("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}".to_owned()).await;
    let port = address.port();
    let outbound = Outbound::new(Ranges::default());
    for host in [
        "127.0.0.1",
        "127.1",
        "127.0.1",
        "2130706433",
        "0x7f000001",
        "0x7f.0.0.1",
        "0177.0.0.1",
        "017700000001",
        "127.0.0.1.",
        "%31%32%37.0.0.1",
        "\u{ff11}27.0.0.1",
        "127\u{3002}0\u{3002}0\u{3002}1",
        "0.0.0.0",
        "0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::127.0.0.1]",
        "[::ffff:0:127.0.0.1]",
        // A name that resolves to it, by the system's own resolver.
        "localhost",
        "LOCALHOST",
    ] {
        for scheme in ["http", "https"] {
            let url = format!("{scheme}://{host}:{port}/mcp");
            let error = call(&outbound, &url, &Ranges::default()).await.unwrap_err();
            assert!(error.contains("is not called"), "{url}: {error}");
        }
    }
    assert_eq!(came.load(Ordering::SeqCst), 0, "somebody was there");
    // The listener itself works: where it is opened, it is contacted.
    let open = Ranges::new(["127.0.0.0/8".parse().unwrap()]);
    let answer = call(&outbound, &format!("http://127.0.0.1:{port}/mcp"), &open).await.unwrap();
    assert_eq!((answer.status().as_u16(), came.load(Ordering::SeqCst)), (200, 1));
}

#[tokio::test]
async fn a_redirect_leads_nowhere() {
    let (inner, came) = listener("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_owned()).await;
    for target in [format!("http://{inner}/secret"), "http://169.254.169.254/latest/meta-data/".to_owned()] {
        for status in ["301 Moved", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"] {
            let head = format!("HTTP/1.1 {status}\r\nlocation: {target}\r\ncontent-length: 0\r\n\r\n");
            let (outer, outer_came) = listener(head).await;
            // Only the first server is in an opened range; even that does not make the second one be called.
            let open = Ranges::new(["127.0.0.0/8".parse().unwrap()]);
            let outbound = Outbound::new(open.clone());
            let answer = call(&outbound, &format!("http://{outer}/mcp"), &Ranges::default()).await.unwrap();
            assert!(answer.status().is_redirection(), "{}", answer.status());
            assert_eq!(outer_came.load(Ordering::SeqCst), 1);
        }
    }
    assert_eq!(came.load(Ordering::SeqCst), 0, "the redirect was followed");
}

#[tokio::test]
async fn a_name_that_changes_its_mind_is_judged_by_what_it_means_now() {
    let (address, came) = listener("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_owned()).await;
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    // First a public address, then ours: what a rebinding server answers.
    let lookup: Lookup = Arc::new(move |_| {
        let first = count.fetch_add(1, Ordering::SeqCst) == 0;
        let answer: IpAddr = if first { [192, 0, 2, 77].into() } else { [127, 0, 0, 1].into() };
        async move { Ok(vec![answer]) }.boxed()
    });
    let documentation = Ranges::new(["192.0.2.0/24".parse().unwrap()]);
    let outbound = Outbound::with_lookup(documentation, lookup);
    let url = format!("https://rebinding.example:{}/mcp", address.port());
    let (first, second) = (outbound.check(&url, &Ranges::default()), outbound.clone());
    assert!(first.is_ok(), "a name says nothing yet");
    let connect = second.request(Method::GET, &url, &Ranges::default(), Duration::from_millis(300)).unwrap();
    assert!(connect.send().await.is_err(), "nobody is at a documentation address");
    let error = call(&second, &url, &Ranges::default()).await.unwrap_err();
    assert!(error.contains("loopback"), "{error}");
    assert_eq!((came.load(Ordering::SeqCst), asked.load(Ordering::SeqCst)), (0, 2));
}
