//! Requests that no HTTP library would send: two ends of one body, heads without end, bodies that drip, floods. The
//! server answers each with one refusal, or closes the connection, and goes on serving everybody else meanwhile.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::{Duration, Instant};

use agentapi_tests::attack::wire;
use agentapi_tests::serve::{Platform, Replica, Tenant};
use anyhow::Result;
use futures::future::join_all;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const SESSION_POD: &str = env!("CARGO_BIN_EXE_session-pod");
const PATIENCE: Duration = Duration::from_secs(3);

async fn platform() -> Result<(Platform, Replica, Tenant)> {
    let platform = Platform::start(SESSION_POD).await?;
    let replica = platform.replica().await?;
    let tenant = platform.tenant("acme").await?;
    Ok((platform, replica, tenant))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_has_one_end() -> Result<()> {
    let (platform, replica, tenant) = platform().await?;
    platform.pods.refuse(Some("this test needs no pods"));
    // What is smuggled would be answered with 200 and a list of workspaces.
    let hidden = format!("GET /v1/workspaces HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\r\n", tenant.alice);
    let token = &tenant.bob;
    let post = |headers: &str, body: &str| {
        format!(
            "POST /v1/sessions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n{headers}\r\n{body}"
        )
    };
    let length = hidden.len();
    let empty = "{}";
    let cases = [
        ("CL then TE", post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", &format!("0\r\n\r\n{hidden}"))),
        ("TE then CL", post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", &format!("0\r\n\r\n{hidden}"))),
        (
            "TE twice",
            post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", &format!("0\r\n\r\n{hidden}")),
        ),
        ("TE list", post("Transfer-Encoding: identity, chunked\r\n", &format!("0\r\n\r\n{hidden}"))),
        ("TE not last", post("Transfer-Encoding: chunked, identity\r\n", &format!("0\r\n\r\n{hidden}"))),
        ("TE unknown", post(&format!("Transfer-Encoding: xchunked\r\nContent-Length: {length}\r\n"), &hidden)),
        ("TE with a tab", post("Transfer-Encoding:\tchunked\r\nContent-Length: 5\r\n", &format!("0\r\n\r\n{hidden}"))),
        ("TE with a space before the colon", post("Transfer-Encoding : chunked\r\n", &format!("0\r\n\r\n{hidden}"))),
        ("TE folded", post("Transfer-Encoding:\r\n chunked\r\n", &format!("0\r\n\r\n{hidden}"))),
        ("CL twice", post(&format!("Content-Length: 2\r\nContent-Length: {length}\r\n"), &format!("{empty}{hidden}"))),
        ("CL list", post(&format!("Content-Length: 2, {length}\r\n"), &format!("{empty}{hidden}"))),
        ("CL signed", post("Content-Length: +2\r\n", &format!("{empty}{hidden}"))),
        ("CL negative", post("Content-Length: -1\r\n", &format!("{empty}{hidden}"))),
        ("CL hexadecimal", post("Content-Length: 0x2\r\n", &format!("{empty}{hidden}"))),
        ("CL too large", post("Content-Length: 18446744073709551616\r\n", &format!("{empty}{hidden}"))),
        ("CL with a space inside", post("Content-Length: 2 2\r\n", &format!("{empty}{hidden}"))),
        ("chunk size too large", post("Transfer-Encoding: chunked\r\n", &format!("fffffffffffffffff\r\n{hidden}"))),
        ("chunk size signed", post("Transfer-Encoding: chunked\r\n", &format!("-1\r\n{hidden}"))),
        (
            "chunk longer than it says",
            post("Transfer-Encoding: chunked\r\n", &format!("2\r\n{{}}x\r\n0\r\n\r\n{hidden}")),
        ),
        (
            "chunk extension",
            post("Transfer-Encoding: chunked\r\n", &format!("0;{}\r\n\r\n{hidden}", "x=".repeat(20_000))),
        ),
        ("bare LF in the head", post("X: y\nTransfer-Encoding: chunked\r\n", &format!("0\r\n\r\n{hidden}"))),
        ("bare CR in the head", post("X: y\rTransfer-Encoding: chunked\r\n", &format!("0\r\n\r\n{hidden}"))),
        ("NUL in a header", post("X: a\u{0}b\r\nContent-Length: 2\r\n", &format!("{empty}{hidden}"))),
        (
            "HTTP/1.0 with TE",
            post("Transfer-Encoding: chunked\r\n", &format!("0\r\n\r\n{hidden}"))
                .replace("HTTP/1.1\r\nHost", "HTTP/1.0\r\nHost"),
        ),
        (
            "Upgrade to h2c",
            post(
                "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nContent-Length: 2\r\n",
                empty,
            ),
        ),
        (
            "trailers",
            post(
                "Transfer-Encoding: chunked\r\n",
                &format!("2\r\n{{}}\r\n0\r\nAuthorization: Bearer {}\r\n\r\n{hidden}", tenant.alice),
            ),
        ),
    ];
    let sent = cases.iter().map(|(why, bytes)| async move {
        let answers = wire::exchange(replica.addresses.public, bytes.as_bytes(), PATIENCE)
            .await
            .map_err(|error| error.context(*why))?;
        // A list, an empty session's refusal or no answer: never two answers to one request.
        assert!(answers.len() <= 1, "{why}: {} answers: {answers:?}", answers.len());
        for answer in &answers {
            assert!(
                !answer.text().contains("workspaces\":"),
                "{why}: the hidden request was answered: {}",
                answer.text()
            );
            assert!((400..500).contains(&answer.status), "{why}: {}", answer.head);
        }
        anyhow::Ok(())
    });
    join_all(sent).await.into_iter().collect::<Result<Vec<()>>>()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_of_any_shape_are_refused_and_nothing_more() -> Result<()> {
    let (_platform, replica, tenant) = platform().await?;
    let auth = format!("Authorization: Bearer {}\r\n", tenant.alice);
    let many = (0..5000).map(|n| format!("X-{n}: y\r\n")).collect::<Vec<_>>().concat();
    let cases: Vec<(&str, Vec<u8>)> = [
        ("garbage", "\u{1}\u{2}\u{3}\r\n\r\n".to_owned()),
        ("HTTP/2 without asking", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned()),
        ("HTTP/0.9", "GET /\r\n\r\n".to_owned()),
        ("HTTP/9.9", "GET / HTTP/9.9\r\nHost: x\r\n\r\n".to_owned()),
        ("no path", "GET  HTTP/1.1\r\nHost: x\r\n\r\n".to_owned()),
        ("CONNECT", "CONNECT 127.0.0.1:5432 HTTP/1.1\r\nHost: 127.0.0.1:5432\r\n\r\n".to_owned()),
        ("TRACE", format!("TRACE /v1/workspaces HTTP/1.1\r\nHost: x\r\n{auth}\r\n")),
        ("a method of 3000 letters", format!("{} / HTTP/1.1\r\nHost: x\r\n\r\n", "A".repeat(3000))),
        ("a path of 60 KiB", format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(60 * 1024))),
        ("a header of 70 KiB", format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "a".repeat(70 * 1024))),
        ("5000 headers", format!("GET / HTTP/1.1\r\nHost: x\r\n{many}\r\n")),
        ("another server's URL", format!("GET http://127.0.0.1:5432/v1/x HTTP/1.1\r\nHost: 127.0.0.1:5432\r\n{auth}\r\n")),
        ("two tokens", format!("GET /v1/workspaces HTTP/1.1\r\nHost: x\r\n{auth}{auth}\r\n")),
        ("up and down", format!("GET /v1/sessions/../../internal/v1/x HTTP/1.1\r\nHost: x\r\n{auth}\r\n")),
        ("encoded up", format!("GET /v1/sessions/%2e%2e/%2e%2e/metrics HTTP/1.1\r\nHost: x\r\n{auth}\r\n")),
        ("double slash", format!("GET //v1/workspaces HTTP/1.1\r\nHost: x\r\n{auth}\r\n")),
        ("NUL in the path", format!("GET /v1/sessions/a\u{0}b HTTP/1.1\r\nHost: x\r\n{auth}\r\n")),
        ("backslashes", format!("GET /v1\\workspaces HTTP/1.1\r\nHost: x\r\n{auth}\r\n")),
        ("metrics on the public port", format!("GET /metrics HTTP/1.1\r\nHost: x\r\n{auth}\r\n")),
        ("overridden method", format!("GET /v1/workspaces/x HTTP/1.1\r\nHost: x\r\nX-HTTP-Method-Override: DELETE\r\nX-Original-URL: /v1/workspaces\r\n{auth}\r\n")),
    ]
    .map(|(why, text)| (why, text.into_bytes()))
    .into();
    let sent = cases.iter().map(|(why, bytes)| async move {
        let answers =
            wire::exchange(replica.addresses.public, bytes, PATIENCE).await.map_err(|error| error.context(*why))?;
        for answer in &answers {
            assert!((400..500).contains(&answer.status), "{why}: {}", answer.head);
            assert!(!answer.text().contains("agentapi_http"), "{why}: metrics");
        }
        anyhow::Ok(())
    });
    join_all(sent).await.into_iter().collect::<Result<Vec<()>>>()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn slow_and_endless_requests_end_and_hold_up_nobody() -> Result<()> {
    let (platform, replica, tenant) = platform().await?;
    platform.pods.refuse(Some("this test needs no pods"));
    let (public, internal) = (replica.addresses.public, replica.addresses.internal);
    let token = &tenant.alice;
    let head = format!(
        "POST /v1/sessions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n"
    );
    let second = Duration::from_secs(1);

    let slow_head = wire::drip(public, b"GET /v1/workspaces HTTP/1.1\r\nX: ", second, Duration::from_secs(60));
    let body = format!("{head}Content-Length: 100000\r\n\r\n{{\"workspace\": \"");
    let slow_body = wire::drip(public, body.as_bytes(), second, Duration::from_secs(60));
    let stranger = b"PUT /internal/v1/sessions/x/messages HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n{";
    let slow_stranger = wire::drip(internal, stranger, second, Duration::from_secs(60));
    let silent = join_all((0..300).map(|_| async move {
        let mut stream = TcpStream::connect(public).await?;
        let began = Instant::now();
        let end = tokio::time::timeout(Duration::from_secs(60), stream.read(&mut [0; 1024])).await;
        anyhow::Ok(end.map(|_| began.elapsed()).ok())
    }));
    let endless = async {
        let mut stream = TcpStream::connect(public).await?;
        stream.write_all(format!("{head}Transfer-Encoding: chunked\r\n\r\n").as_bytes()).await?;
        let chunk = [b"10000\r\n".to_vec(), vec![b' '; 0x10000], b"\r\n".to_vec()].concat();
        let (began, mut written) = (Instant::now(), 0_usize);
        while began.elapsed() < Duration::from_secs(60) && stream.write_all(&chunk).await.is_ok() {
            written += chunk.len();
        }
        anyhow::Ok((written, began.elapsed(), wire::read_all(&mut stream, second).await))
    };
    let neighbours = async {
        let api = replica.api(Some(&tenant.bob))?;
        let (began, mut worst) = (Instant::now(), Duration::ZERO);
        while began.elapsed() < Duration::from_secs(8) {
            let asked = Instant::now();
            api.get("/v1/workspaces").await?.expect(200)?;
            worst = worst.max(asked.elapsed());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        anyhow::Ok(worst)
    };
    let (slow_head, slow_body, slow_stranger, silent, endless, worst) =
        tokio::join!(slow_head, slow_body, slow_stranger, silent, endless, neighbours);
    let worst = worst?;
    assert!(worst < Duration::from_secs(5), "another request took {worst:?}");
    let (_, took) = slow_head?;
    assert!(took < Duration::from_secs(20), "a head may take {took:?}");
    let (answer, took) = slow_body?;
    assert!(took < Duration::from_secs(45), "a body may take {took:?}");
    assert!(String::from_utf8_lossy(&answer).starts_with("HTTP/1.1 4"), "{}", String::from_utf8_lossy(&answer));
    let (answer, took) = slow_stranger?;
    assert!(took < Duration::from_secs(15), "without a token the body is not waited for: {took:?}");
    assert!(String::from_utf8_lossy(&answer).starts_with("HTTP/1.1 4"), "{}", String::from_utf8_lossy(&answer));
    for end in silent {
        assert!(end?.is_some_and(|took| took < Duration::from_secs(45)), "a silent connection stays open");
    }
    let (written, took, answer) = endless?;
    assert!(took < Duration::from_secs(30) && written < 64 * 1024 * 1024, "{written} bytes in {took:?}");
    let text = String::from_utf8_lossy(&answer);
    assert!(text.is_empty() || text.starts_with("HTTP/1.1 413"), "{text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_of_any_shape_are_refused() -> Result<()> {
    let (platform, replica, tenant) = platform().await?;
    let api = replica.api(Some(&tenant.alice))?;
    let create = api.request(reqwest::Method::POST, "/v1/sessions").header("prefer", "wait=30");
    let session = api.send(create.json(&json!({"workspace": "main"}))).await?.expect(201)?;
    let id = session["id"].as_str().unwrap_or_default().to_owned();
    let own = platform.pods.session_token(id.parse()?)?;
    let internal = replica.internal_api(Some(&own), platform.pods.of(id.parse()?)?.1)?;
    let gzip: &[u8] = &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 0xab, 0xae, 5, 0, 0x43, 0xbf, 0xa6, 0xa3, 2, 0, 0, 0];
    let nested = |open: &str, close: &str| {
        format!("{{\"workspace\":{}{}}}", open.repeat(50_000), close.repeat(50_000)).into_bytes()
    };
    let bodies: Vec<(&str, Vec<u8>)> = vec![
        ("a key twice", br#"{"workspace":"main","workspace":"x"}"#.to_vec()),
        ("lists in lists", nested("[", "]")),
        ("objects in objects", nested("{\"a\":", "}")),
        ("a huge number", br#"{"workspace":1e999}"#.to_vec()),
        ("a long number", format!("{{\"workspace\":{}}}", "9".repeat(100_000)).into_bytes()),
        ("half a surrogate", br#"{"workspace":"\ud800"}"#.to_vec()),
        ("not UTF-8", b"{\"workspace\":\"\xc0\xaf\"}".to_vec()),
        ("overlong UTF-8", b"{\"workspace\":\"\xf0\x80\x80\xaf\"}".to_vec()),
        ("a byte order mark", [b"\xef\xbb\xbf".as_slice(), b"{\"workspace\":\"x\"}"].concat()),
        ("UTF-16", "{\"workspace\":\"x\"}".encode_utf16().flat_map(u16::to_be_bytes).collect()),
        ("two values", b"{\"workspace\":\"x\"}{\"workspace\":\"main\"}".to_vec()),
        ("comments", b"{/* */\"workspace\":\"x\"}".to_vec()),
        ("single quotes", b"{'workspace':'x'}".to_vec()),
        ("a list", b"[\"main\"]".to_vec()),
        ("text", b"\"main\"".to_vec()),
        ("null", b"null".to_vec()),
        ("compressed", gzip.to_vec()),
        ("__proto__", br#"{"__proto__":{"workspace":"main"}}"#.to_vec()),
        ("100,000 fields", format!("{{{}\"workspace\":\"x\"}}", "\"a\":1,".repeat(100_000)).into_bytes()),
    ];
    for (why, body) in &bodies {
        for (api, method, path) in [
            (&api, "POST", "/v1/sessions".to_owned()),
            (&api, "POST", format!("/v1/sessions/{id}/message")),
            (&internal, "PUT", format!("/internal/v1/sessions/{id}/messages")),
        ] {
            for encoding in [None, Some("gzip"), Some("br"), Some("identity, gzip")] {
                let mut request = api.request(method.parse()?, &path).header("content-type", "application/json");
                if let Some(encoding) = encoding {
                    request = request.header("content-encoding", encoding);
                }
                let answer = api.send(request.body(body.clone())).await?;
                let code = answer.status.as_u16();
                assert!((400..500).contains(&code), "{why} {encoding:?} to {path}: {code} {}", answer.body);
                assert_eq!(answer.content_type, "application/problem+json", "{why} to {path}");
            }
        }
    }
    for kind in [
        "",
        "text/plain",
        "application/xml",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "application/json5",
        "*/*",
    ] {
        for path in ["/v1/sessions".to_owned(), format!("/v1/sessions/{id}/message")] {
            let request =
                api.request(reqwest::Method::POST, &path).header("content-type", kind).body("{\"workspace\":\"main\"}");
            let answer = api.send(request).await?;
            assert_eq!(answer.status, 415, "{kind:?} to {path}: {}", answer.body);
        }
    }
    // A pod is the tenant's: what it pushes is no more to be trusted.
    let message = |id: serde_json::Value, time: &str| json!({"id": id, "role": "agent", "content": "x", "time": time});
    let now = "2026-01-01T00:00:00Z";
    for (why, messages) in [
        ("an id twice", json!([message(json!(1), now), message(json!(1), now)])),
        ("a negative id", json!([message(json!(-1), now)])),
        ("a huge id", json!([message(json!(2_147_483_647), now)])),
        ("before the calendar", json!([message(json!(1), "-009999-01-02T01:59:59Z")])),
        ("after it", json!([message(json!(1), "9999-12-30T22:00:00Z")])),
        ("no time", json!([message(json!(1), "")])),
    ] {
        let request = internal.request(reqwest::Method::PUT, &format!("/internal/v1/sessions/{id}/messages"));
        let answer = internal.send(request.json(&json!({"messages": messages, "status": "stable"}))).await?;
        assert!(answer.status.as_u16() < 500, "{why}: {} {}", answer.status, answer.body);
    }
    assert_eq!(api.get(&format!("/v1/sessions/{id}")).await?.status, 200);
    Ok(())
}
