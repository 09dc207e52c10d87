//! Runs the real `agentapi-runtime session` with a small real agent and talks to it over HTTP.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use futures::StreamExt;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

/// Everything that a test waits for happens within this time, also on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// The runtime's side of the session tokens.
pub struct Signer {
    key: EncodingKey,
    /// Value of `AGENTAPI_SESSION_PUBLIC_KEY`.
    pub public: String,
}

impl Signer {
    pub fn new() -> Self {
        let pair = Ed25519KeyPair::generate().unwrap();
        let public = URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
        Self { key: EncodingKey::from_ed_der(pair.to_pkcs8().unwrap().as_ref()), public }
    }

    /// A token for a session in a pod.
    pub fn token(&self, session: &str, pod: &str) -> String {
        let claims = json!({
            "iss": "agentapi-runtime", "aud": "agentapi-session-pod", "sub": session, "pod": pod,
            "exp": jiff::Timestamp::now().as_second() + 60,
        });
        jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), &claims, &self.key).unwrap()
    }
}

/// What outlives a container: the pod's volumes.
pub struct Pod {
    pub dir: tempfile::TempDir,
    pub env: Vec<(String, String)>,
}

/// A mounted disk.
pub struct Disk(PathBuf);

impl Disk {
    /// Leaves no room.
    pub fn fill(&self) {
        use std::io::Write;
        let name = format!("work/{}", uuid::Uuid::new_v4());
        let mut file = std::fs::File::create(self.0.join(name)).unwrap();
        // The last bytes too: a small file needs a block or two.
        for size in [64 * 1024, 1] {
            while file.write_all(&vec![b'x'; size]).is_ok() {}
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // What is open on it goes with whoever has it open.
        let _ = std::process::Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

impl Pod {
    /// A pod whose agent is the test agent in `fixtures/repl.sh`.
    pub fn new() -> Self {
        let repl = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/repl.sh");
        Self::with_command(&["bash", repl.to_str().unwrap()])
    }

    pub fn with_command(command: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["state", "work", "home", "secret"] {
            std::fs::create_dir(dir.path().join(folder)).unwrap();
        }
        let pod = Self { dir, env: Vec::new() };
        pod.set("AGENTAPI_AGENT_COMMAND", &serde_json::to_string(command).unwrap())
    }

    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Puts all its folders on one small disk, as those of a session that may be suspended are. None: this user may not
    /// mount one.
    pub fn on_disk(self, size: &str) -> Option<(Self, Disk)> {
        let done = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(self.dir.path())
            .status();
        if !done.is_ok_and(|status| status.success()) {
            return None;
        }
        let disk = Disk(self.dir.path().to_owned());
        for folder in ["state", "work", "home", "secret"] {
            std::fs::create_dir(self.path(folder)).unwrap();
        }
        Some((self, disk))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Waits until nothing has been saved for a second, so that what a stable session still saves is in place, too.
    pub async fn at_rest(&self) {
        let began = Instant::now();
        let rest = Duration::from_secs(1);
        let saved = self.path("state/state.json");
        until("the last save", async || {
            let age = std::fs::metadata(&saved).ok()?.modified().ok()?.elapsed().ok()?;
            (age > rest && began.elapsed() > rest).then_some(())
        })
        .await;
    }

    /// Starts the container.
    pub async fn start(&self) -> Session {
        let with_key = self.env.iter().any(|(name, _)| name == "AGENTAPI_SESSION_PUBLIC_KEY");
        let mut command = Command::new(env!("CARGO_BIN_EXE_agentapi-runtime"));
        command.arg("session").env_clear().envs(self.env.iter().cloned());
        if !with_key {
            command.arg("--insecure-no-auth");
        }
        let mut child = command
            .env("PATH", std::env::var("PATH").unwrap())
            .env("HOME", self.path("home"))
            .env("AGENTAPI_LISTEN", "127.0.0.1:0")
            .env("AGENTAPI_STATE_DIR", self.path("state"))
            .env("AGENTAPI_WORKDIR", self.path("work"))
            .env("AGENTAPI_SESSION_SECRET_DIR", self.path("secret"))
            .env("AGENTAPI_POD_NAME", "pod-1")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let logs = Arc::new(Mutex::new(Vec::new()));
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let sink = Arc::clone(&logs);
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                sink.lock().unwrap().push(line);
            }
        });
        let url = until("the host to listen", async || {
            let logs = logs.lock().unwrap().clone();
            logs.iter().find_map(|line| {
                let line: Value = serde_json::from_str(line).ok()?;
                Some(format!("http://{}", line["address"].as_str()?))
            })
        })
        .await;
        Session { child, url, logs, client: reqwest::Client::builder().no_proxy().build().unwrap(), token: None }
    }
}

/// A running container.
pub struct Session {
    pub child: Child,
    pub url: String,
    pub logs: Arc<Mutex<Vec<String>>>,
    pub client: reqwest::Client,
    pub token: Option<String>,
}

impl Session {
    pub fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.url));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        answer(self.request(reqwest::Method::GET, path)).await
    }

    pub async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        answer(self.request(reqwest::Method::POST, path).json(&body)).await
    }

    /// Sends a user message to a stable agent.
    pub async fn say(&self, text: &str) {
        self.stable().await;
        let sent = self.post("/message", json!({"content": text, "type": "user"})).await;
        assert_eq!(sent, (200, json!({"ok": true})), "{text}");
    }

    /// Waits until the agent is stable.
    pub async fn stable(&self) {
        until("a stable agent", async || (self.get("/status").await.1["status"] == "stable").then_some(())).await;
    }

    /// Says something and returns the answer.
    pub async fn ask(&self, text: &str) -> String {
        self.say(text).await;
        self.stable().await;
        let messages = self.messages().await;
        let (user, agent) = (&messages[messages.len() - 2], &messages[messages.len() - 1]);
        assert_eq!((user.1.as_str(), user.2.as_str()), ("user", text));
        assert_eq!(agent.1, "agent");
        agent.2.clone()
    }

    /// Id, role and content of all messages.
    pub async fn messages(&self) -> Vec<(u64, String, String)> {
        let (_, body) = self.get("/messages").await;
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        body["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|message| (message["id"].as_u64().unwrap(), text(&message["role"]), text(&message["content"])))
            .collect()
    }

    /// Server-sent events of a route as (event, id, data).
    pub async fn events(&self, path: &str, last: Option<&str>) -> Events {
        let mut request = self.request(reqwest::Method::GET, path);
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Events { body: response.bytes_stream().boxed(), buffer: String::new() }
    }

    /// Ends the container as the kubelet does, and returns its exit code.
    pub async fn terminate(&mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.child.id().unwrap()).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.exit().await
    }

    /// Waits for the container to end.
    pub async fn exit(&mut self) -> Option<i32> {
        tokio::time::timeout(DEADLINE, self.child.wait()).await.expect("the host to end").unwrap().code()
    }

    pub fn log_text(&self) -> String {
        self.logs.lock().unwrap().join("\n")
    }
}

pub struct Events {
    body: futures::stream::BoxStream<'static, reqwest::Result<bytes::Bytes>>,
    buffer: String,
}

#[derive(Clone, Debug, PartialEq)]
pub struct SseEvent {
    pub name: String,
    pub id: String,
    pub data: Value,
}

impl Events {
    /// The next event; `None` at the end of the stream.
    pub async fn next(&mut self) -> Option<SseEvent> {
        loop {
            if let Some((block, rest)) = self.buffer.split_once("\n\n").map(|(a, b)| (a.to_owned(), b.to_owned())) {
                self.buffer = rest;
                let field = |name: &str| {
                    block.lines().filter_map(|line| line.strip_prefix(name)).map(str::trim_start).collect::<String>()
                };
                if field("event:").is_empty() {
                    continue;
                }
                let data = serde_json::from_str(&field("data:")).unwrap();
                return Some(SseEvent { name: field("event:"), id: field("id:"), data });
            }
            let chunk = tokio::time::timeout(DEADLINE, self.body.next()).await.expect("an event")?;
            self.buffer.push_str(std::str::from_utf8(&chunk.ok()?).unwrap());
        }
    }

    /// Events up to and with the first that `last` accepts.
    pub async fn until(&mut self, last: impl Fn(&SseEvent) -> bool) -> Vec<SseEvent> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            let found = last(&event);
            events.push(event);
            if found {
                return events;
            }
        }
        panic!("the stream ended before the event; got {events:?}");
    }
}

pub async fn answer(request: reqwest::RequestBuilder) -> (u16, Value) {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    if status >= 400 {
        assert_eq!(response.headers()["content-type"], "application/problem+json", "{status}");
    }
    (status, response.json().await.unwrap_or(Value::Null))
}

/// Polls until there is a value.
pub async fn until<T>(what: &str, mut poll: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = poll().await {
            return value;
        }
        assert!(Instant::now() < deadline, "waited too long for {what}");
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}
