//! Every payload in every place of every route that the OpenAPI document names: the answer is a success or a problem
//! document, never a failure of the server, a panic, a line of the client's own in the log, a request to an address of
//! the client's choice, or a byte of another tenant.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use agentapi_tests::attack::log::Log;
use agentapi_tests::attack::openapi::{Operation, Place, operations, with};
use agentapi_tests::attack::payloads::{self, Payload};
use agentapi_tests::attack::wire;
use agentapi_tests::serve::steps::SOON;
use agentapi_tests::serve::{Platform, Replica, Tenant};
use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::net::TcpListener;

const SESSION_POD: &str = env!("CARGO_BIN_EXE_session-pod");
/// In everything that the other tenant has.
const CANARY: &str = "canary-5c1f0e";
/// In everything that the attacker sends.
const MARKER: &str = "marker-77ab31";
const SLOW: Duration = Duration::from_secs(15);

struct Attack {
    document: Value,
    address: SocketAddr,
    token: String,
    session: String,
    log: Log,
}

/// What came back, without regard to what it is.
struct Seen {
    status: u16,
    head: String,
    body: String,
}

impl Attack {
    async fn send(&self, operation: &Operation, place: &Place, payload: &Payload) -> Result<Option<Seen>> {
        let method = Method::from_bytes(operation.method.to_uppercase().as_bytes())?;
        let parameter = |name: &str| if name == "id" { self.session.clone() } else { "x".to_owned() };
        let mut path = operation.path.clone();
        while let (Some(start), Some(end)) = (path.find('{'), path.find('}')) {
            let name = path[start + 1..end].to_owned();
            let text = match place {
                Place::Path(wanted) if *wanted == name => wire::encode(&payload.text),
                _ => parameter(&name),
            };
            path.replace_range(start..=end, &text);
        }
        if let Place::Query(name) = place {
            path = format!("{path}?{}={}", wire::encode(name), wire::encode(&payload.text));
        }
        let (mut kind, body) = self.body(operation, place, payload);
        // CR, LF and NUL end a header or are refused by every parser: attack_wire.rs sends those.
        let value: Vec<u8> = payload.text.bytes().filter(|byte| !matches!(byte, b'\r' | b'\n' | 0)).collect();
        let named = |wanted: &str| matches!(place, Place::Header(name) if name == wanted);
        let mut request = format!("{method} {path} HTTP/1.1\r\n").into_bytes();
        let mut header = |name: &str, value: &[u8]| {
            request.extend_from_slice(&[name.as_bytes(), b": ", value, b"\r\n"].concat());
        };
        header("Host", if named("host") { &value } else { b"agentapi" });
        header("Connection", b"close");
        header("Authorization", format!("Bearer {}", self.token).as_bytes());
        match place {
            Place::Header(name) if name == "content-type" => kind = Some(String::from_utf8_lossy(&value).into_owned()),
            Place::Header(name) if name != "host" => header(name, &value),
            _ => {}
        }
        if !named("user-agent") {
            header("User-Agent", MARKER.as_bytes());
        }
        if let Some(kind) = kind {
            header("Content-Type", kind.as_bytes());
        }
        header("Content-Length", body.len().to_string().as_bytes());
        request.extend_from_slice(b"\r\n");
        request.extend_from_slice(&body);
        self.exchange(&request).await
    }

    /// Content type and body.
    fn body(&self, operation: &Operation, place: &Place, payload: &Payload) -> (Option<String>, Vec<u8>) {
        if operation.is_upload() {
            let plain = |text: &str| text.replace(['\r', '\n'], "%0A").replace('"', "%22");
            let text = plain(&payload.text);
            let field = if *place == Place::FieldName { text.as_str() } else { "file" };
            let file = if *place == Place::FileName { text.as_str() } else { MARKER };
            let form = format!(
                "--b\r\nContent-Disposition: form-data; name=\"{field}\"; filename=\"{file}\"\r\n\r\n{MARKER}\r\n--b--\r\n"
            );
            return (Some("multipart/form-data; boundary=b".to_owned()), form.into_bytes());
        }
        match operation.body(&self.document) {
            Some(mut body) => {
                if !body["workspace"].is_null() {
                    body["workspace"] = json!("main");
                }
                (Some("application/json".to_owned()), with(&body, place, &payload.text).to_string().into_bytes())
            }
            None => (None, Vec::new()),
        }
    }

    /// None: the server ended the connection without a word, as it may when what it got is not HTTP.
    async fn exchange(&self, request: &[u8]) -> Result<Option<Seen>> {
        let mut stream = tokio::net::TcpStream::connect(self.address).await?;
        tokio::io::AsyncWriteExt::write_all(&mut stream, request).await?;
        let received = read_some(&mut stream).await?;
        let Some(end) = received.find("\r\n\r\n") else {
            assert!(received.is_empty(), "half an answer: {received}");
            return Ok(None);
        };
        let (head, body) = received.split_at(end);
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no status")?;
        Ok(Some(Seen { status, head: head.to_owned(), body: body.trim_start().to_owned() }))
    }
}

/// To the end, or the beginning of an event stream.
async fn read_some(stream: &mut tokio::net::TcpStream) -> Result<String> {
    use tokio::io::AsyncReadExt;
    let (began, mut received, mut buffer) = (Instant::now(), Vec::new(), vec![0; 64 * 1024]);
    loop {
        let streams = received.windows(17).any(|part| part == b"text/event-stream");
        let patience = if streams { Duration::from_millis(200) } else { SLOW.saturating_sub(began.elapsed()) };
        match tokio::time::timeout(patience, stream.read(&mut buffer)).await {
            Ok(Ok(0) | Err(_)) => break,
            Ok(Ok(count)) => received.extend_from_slice(&buffer[..count]),
            Err(_) if streams => break,
            Err(_) => anyhow::bail!("no answer within {SLOW:?}: {}", String::from_utf8_lossy(&received)),
        }
    }
    Ok(String::from_utf8_lossy(&received).into_owned())
}

fn judge(payload: &Payload, seen: &Seen) -> Result<()> {
    let Seen { status, head, body } = seen;
    let lower = head.to_lowercase();
    ensure!(*status < 500, "{head}\n{body}");
    ensure!(!lower.contains("\nx-injected") && !lower.contains("\nset-cookie"), "a header of the client's: {head}");
    ensure!(head.matches("HTTP/1.1").count() == 1, "two answers: {head}");
    for text in [head, body] {
        ensure!(!text.contains(CANARY), "another tenant's data: {text}");
        // What the client has sent itself may come back in a message.
        for inner in ["/work/", ".rs:", "panicked", "SELECT ", "sqlx", "root:x:0"] {
            ensure!(payload.text.contains(inner) || !text.contains(inner), "tells {inner}: {text}");
        }
    }
    if *status >= 400 && *status != 431 && !body.is_empty() {
        ensure!(lower.contains("content-type: application/problem+json"), "no problem document: {head}\n{body}");
        ensure!(lower.contains("x-content-type-options: nosniff"), "may be sniffed: {head}");
    }
    if (200..300).contains(status) && lower.contains("content-type:") {
        let known =
            ["application/json", "application/x-ndjson", "text/event-stream"].iter().any(|kind| lower.contains(kind));
        ensure!(known, "an unknown type: {head}");
    }
    Ok(())
}

async fn prepare(platform: &Platform, replica: &Replica, acme: &Tenant, log: Log) -> Result<Attack> {
    for limit in [
        "update organizations set quota = '{\"sessions\": 100000}'",
        "update workspaces set max_sessions = 1000 where name = $1",
    ] {
        let parameters: &[&str] = if limit.contains("$1") { &["main"] } else { &[] };
        platform.operator(limit, parameters).await?;
    }
    let api = replica.api(Some(&acme.alice))?;
    let create = api.request(Method::POST, "/v1/sessions").header("prefer", "wait=30");
    let session = api.send(create.json(&json!({"workspace": "main"}))).await?.expect(201)?;
    let session = session["id"].as_str().context("no id")?.to_owned();
    api.stable(&session, SOON).await?;
    let document = replica.api(None)?.get("/openapi.json").await?.expect(200)?;
    // Sessions that the payloads create need no pod: they fail, and what was stored can be read.
    platform.pods.refuse(Some("no more pods in this test"));
    Ok(Attack { document, address: replica.addresses.public, token: acme.admin.clone(), session, log })
}

/// The other tenant, full of canaries.
async fn neighbour(platform: &Platform, replica: &Replica) -> Result<Tenant> {
    let globex = platform.tenant("globex").await?;
    let token = platform.token(&globex.organization.slug, CANARY, "admin")?;
    let api = replica.api(Some(&token))?;
    let create = api.request(Method::POST, "/v1/sessions").header("prefer", "wait=30").header("user-agent", CANARY);
    let body = json!({"workspace": "main", "prompt": CANARY, "env": {"CANARY": CANARY}});
    let session = api.send(create.json(&body)).await?.expect(201)?;
    let id = session["id"].as_str().context("no id")?;
    let messages = api.stable(id, SOON).await?;
    assert!(json!(messages).to_string().contains(CANARY));
    Ok(globex)
}

/// Every audit row of a session's creation.
async fn audit(replica: &Replica, tenant: &Tenant) -> Result<String> {
    let (api, mut all, mut before) = (replica.api(Some(&tenant.admin))?, String::new(), String::new());
    loop {
        let page = api.get(&format!("/v1/audit?action=session.create&limit=1000{before}")).await?.expect(200)?;
        all.push_str(&page["entries"].to_string());
        match page["nextBefore"].as_i64() {
            Some(next) => before = format!("&before={next}"),
            None => return Ok(all),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_payload_in_any_place_does_harm() -> Result<()> {
    let log = Log::capture("debug,sqlx=info,hyper=info")?;
    let panics = std::sync::Arc::new(AtomicUsize::new(0));
    let (hook, count) = (std::panic::take_hook(), std::sync::Arc::clone(&panics));
    std::panic::set_hook(Box::new(move |info| {
        count.fetch_add(1, Ordering::Relaxed);
        hook(info);
    }));
    let platform = Platform::start(SESSION_POD).await?;
    let replica = platform.replica().await?;
    let (acme, globex) = (platform.tenant("acme").await?, neighbour(&platform, &replica).await?);
    let attack = prepare(&platform, &replica, &acme, log).await?;
    let canary = TcpListener::bind("127.0.0.1:0").await?;
    let payloads = payloads::all(canary.local_addr()?);

    let mut cases = Vec::new();
    for operation in operations(&attack.document) {
        for place in operation.places(&attack.document) {
            // What every request has goes one way for all routes; one that stores it is enough.
            let common = matches!(&place, Place::Header(name) if name.chars().all(|c| !c.is_uppercase()));
            if common && operation.path != "/v1/sessions" && !place.is_of_body() {
                continue;
            }
            // Ending the session under attack would leave nothing to attack; its id is attacked.
            if operation.method == "delete" && !matches!(place, Place::Path(_)) {
                continue;
            }
            cases.extend(payloads.iter().map(|payload| (operation.clone(), place.clone(), payload)));
        }
    }
    assert!(cases.len() > 4000, "only {} cases: has the document lost its parameters?", cases.len());
    let (began, silent) = (Instant::now(), AtomicUsize::new(0));
    let done = futures::stream::iter(&cases).map(|(operation, place, payload)| {
        let (attack, silent) = (&attack, &silent);
        async move {
            let what =
                format!("{} {} {place:?} {}: {:.80?}", operation.method, operation.path, payload.aim, payload.text);
            for _ in 0..40 {
                let asked = Instant::now();
                match attack.send(operation, place, payload).await.with_context(|| what.clone())? {
                    None => {
                        silent.fetch_add(1, Ordering::Relaxed);
                    }
                    // Too many at a time, by our own choice.
                    Some(seen) if seen.status == 429 => {
                        tokio::time::sleep(Duration::from_millis(250)).await;
                        continue;
                    }
                    Some(seen) => judge(payload, &seen).with_context(|| what.clone())?,
                }
                ensure!(asked.elapsed() < SLOW, "{what}: took {:?}", asked.elapsed());
                if asked.elapsed() > SLOW / 10 {
                    println!("{what}: took {:?}", asked.elapsed());
                }
                return anyhow::Ok(());
            }
            anyhow::bail!("{what}: always 429")
        }
    });
    let harm: Vec<String> = done
        .buffer_unordered(4)
        .filter_map(async |result| result.err().map(|error| format!("{error:#}")))
        .collect()
        .await;
    println!("{} requests in {:?}, {} without an answer", cases.len(), began.elapsed(), silent.into_inner());
    assert!(harm.is_empty(), "{} did harm:\n{}", harm.len(), harm[..harm.len().min(20)].join("\n"));

    // What was stored is the attacker's own, word for word, and nobody else's.
    let own = audit(&replica, &acme).await?;
    assert!(own.contains(MARKER) && !own.contains(CANARY), "{} bytes of audit log", own.len());
    for path in ["/v1/audit?limit=1000", "/v1/sessions?limit=200", "/v1/workspaces"] {
        let theirs = replica.api(Some(&globex.admin))?.get(path).await?.expect(200)?.to_string();
        assert!(!theirs.contains(MARKER), "{path} shows another tenant's {MARKER}");
    }
    for text in ["' OR '1'='1", "{{ 7*7 }}", "$(id)", "<script>alert(1)</script>", "../../../../etc/passwd"] {
        assert!(own.contains(&format!("\"userAgent\":\"{text}\"")), "{text} was not kept as it is");
    }

    let connected = tokio::time::timeout(Duration::from_millis(300), canary.accept()).await;
    assert!(connected.is_err(), "the server connected to an address in a payload");
    let records = attack.log.records()?;
    assert!(records.len() > cases.len() / 2, "{} records", records.len());
    assert!(records.iter().all(|record| record["target"] != "forged"), "a forged record");
    let text = attack.log.text();
    assert!(!text.contains("panicked"), "a handler panicked");
    assert!(!text.contains('\u{1b}') && !text.contains('\u{9b}'), "control characters in the log");
    assert_eq!(panics.load(Ordering::Relaxed), 0, "a panic somewhere");
    assert!(!platform.pods.logs()?.contains("panicked"), "a session host panicked");
    assert!(!text.contains(&acme.admin), "a token is in the log");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_agent_gets_is_what_was_written() -> Result<()> {
    let platform = Platform::start(SESSION_POD).await?;
    let replica = platform.replica().await?;
    let acme = platform.tenant("acme").await?;
    let api = replica.api(Some(&acme.alice))?;
    let trap = "$(id) `id` ${HOME} {{7*7}} $$ %n ' \" \\ ; & | > < é字";
    let body = json!({"workspace": "main", "env": {"TRAP": trap}, "prompt": "env TRAP"});
    let create = api.request(Method::POST, "/v1/sessions").header("prefer", "wait=30").json(&body);
    let session = api.send(create).await?.expect(201)?;
    let id = session["id"].as_str().context("no id")?;
    let messages = api.stable(id, SOON).await?;
    let answer = messages.last().and_then(|message| message["content"].as_str()).unwrap_or_default();
    // The terminal is 80 columns wide, so the end of a long line is on the next one.
    assert!(answer.replace('\n', "").contains(&format!("TRAP={trap}").replace('\n', "")), "{answer}");
    assert!(!answer.contains("uid=") && !answer.contains("49"), "{answer}");

    // One message with everything that fits on a line.
    let canary = TcpListener::bind("127.0.0.1:0").await?;
    let texts = payloads::all(canary.local_addr()?).into_iter().map(|payload| payload.text);
    let plain = texts.filter(|text| text.len() < 200 && !text.chars().any(char::is_control));
    let all = plain.collect::<Vec<_>>().join(" ");
    let path = format!("/v1/sessions/{id}/message");
    api.post(&path, &json!({"content": all, "type": "user"})).await?.expect(200)?;
    let messages = api.stable(id, SOON).await?;
    let kept =
        messages.iter().rev().find(|message| message["role"] == "user").map(|message| message["content"].clone());
    assert_eq!(kept, Some(json!(all.trim())));
    // Nothing to type is no message; waiting for the agent to show it would be in vain.
    for nothing in ["\u{0}", "\u{1b}", "\u{7f}\u{8}", "\u{9b}\u{85}"] {
        let answer = api.post(&path, &json!({"content": nothing, "type": "user"})).await?;
        assert_eq!(answer.status, 400, "{nothing:?}: {}", answer.body);
    }
    Ok(())
}
