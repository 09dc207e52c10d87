//! An MCP server of a few lines on a raw socket, which misbehaves as it is told. It speaks the versions with
//! `initialize` and sessions only.
use anyhow::Result;
use serde_json::{Value, json};
use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// What it does to `tools/call`; everything else it does well, unless said otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mood {
    /// Answers.
    Well,
    /// Answers with so many bytes.
    Long(usize),
    /// Answers with a list of so many numbers.
    Numbers(usize),
    /// Sends so many bytes of an answer, and no more of it.
    Hangs(usize),
    /// Sends half of a message and closes.
    Half,
    /// Answers with HTML.
    Html,
    /// Begins an event stream, tells some progress, and closes.
    DiesMidStream,
    /// Sends one byte of a comment a second.
    Drips,
    /// Never says anything.
    Silent,
    /// Answers everything with this status.
    Status(u16),
    /// Redirects everything to there.
    Redirects(String),
    /// Has forgotten all sessions.
    Forgetful,
    /// Wants this text in the head of a call.
    WantsHeader(&'static str),
}

/// What came in.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The request line and the headers, in lower case.
    pub head: String,
    /// The message.
    pub body: Value,
}

#[derive(Debug)]
struct State {
    mood: Mood,
    tools: Vec<Value>,
    token: Option<String>,
    stream: Vec<Value>,
    sessions: usize,
    hanging: usize,
    seen: Vec<Seen>,
}

/// The server.
#[derive(Clone, Debug)]
pub struct Raw {
    /// Where it listens.
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Raw {
    /// On a free port, with a tool `echo`.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let tools =
            vec![json!({"name": "echo", "description": "Gives back what it gets.", "inputSchema": {"type": "object"}})];
        let state = State {
            mood: Mood::Well,
            tools,
            token: None,
            stream: Vec::new(),
            sessions: 0,
            hanging: 0,
            seen: Vec::new(),
        };
        let server = Self { address: listener.local_addr()?, state: Arc::new(Mutex::new(state)) };
        let accepting = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = accepting.clone();
                tokio::spawn(async move { server.serve(stream).await });
            }
        });
        Ok(server)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its endpoint.
    pub fn url(&self) -> String {
        format!("http://{}/mcp", self.address)
    }

    /// How it behaves from now on.
    pub fn set_mood(&self, mood: Mood) {
        self.state().mood = mood;
    }

    /// Its tools from now on.
    pub fn set_tools(&self, tools: Vec<Value>) {
        self.state().tools = tools;
    }

    /// What its own stream brings, numbered from 1: all of it, or what comes after `Last-Event-ID`. Then it breaks off.
    pub fn set_stream(&self, messages: Vec<Value>) {
        self.state().stream = messages;
    }

    /// The bearer token that it wants from now on.
    pub fn set_token(&self, token: &str) {
        self.state().token = Some(token.to_owned());
    }

    /// All that came in so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.state().seen.clone()
    }

    /// How often this method came in.
    pub fn count(&self, method: &str) -> usize {
        self.state().seen.iter().filter(|seen| seen.body["method"] == method).count()
    }

    /// How many answers hang.
    pub fn hanging(&self) -> usize {
        self.state().hanging
    }

    async fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let Some(seen) = read(&mut stream).await? else { return Ok(()) };
        let (mood, answer) = {
            let mut state = self.state();
            state.seen.push(seen.clone());
            (state.mood.clone(), state.answer(&seen))
        };
        let calls = seen.body["method"] == "tools/call";
        match mood {
            Mood::Status(status) => head(&mut stream, &format!("{status} X"), "content-length: 0\r\n").await,
            Mood::Redirects(to) => {
                head(&mut stream, "307 X", &format!("location: {to}\r\ncontent-length: 0\r\n")).await
            }
            Mood::Forgetful if seen.head.contains("mcp-session-id:") => {
                self.state().mood = Mood::Well;
                head(&mut stream, "404 Not Found", "content-length: 0\r\n").await
            }
            Mood::WantsHeader(header) if calls && !seen.head.contains(header) => {
                let error = json!({"code": -32020, "message": "Header mismatch"});
                let answer = json!({"jsonrpc": "2.0", "id": seen.body["id"], "error": error});
                json_body(&mut stream, "400 Bad Request", "", &answer).await
            }
            Mood::Long(bytes) if calls => {
                let text = "x".repeat(bytes);
                long_body(&mut stream, &seen, &format!(r#"{{"content":[{{"type":"text","text":"{text}"}}]}}"#)).await
            }
            Mood::Numbers(count) if calls => {
                let numbers = "0,".repeat(count.max(1) - 1);
                long_body(&mut stream, &seen, &format!(r#"{{"numbers":[{numbers}0]}}"#)).await
            }
            Mood::Hangs(bytes) if calls => {
                let length = format!("content-type: application/json\r\ncontent-length: {}\r\n", bytes + 1);
                head(&mut stream, "200 OK", &length).await?;
                stream.write_all(&vec![b' '; bytes]).await?;
                self.state().hanging += 1;
                stream.read(&mut [0]).await.map(drop)
            }
            Mood::Half if calls => {
                head(&mut stream, "200 OK", "content-type: application/json\r\ncontent-length: 22\r\n").await?;
                stream.write_all(b"{\"jsonrpc\":\"2.0\",\"id\":").await
            }
            Mood::Html if calls => {
                head(&mut stream, "200 OK", "content-type: text/html\r\ncontent-length: 6\r\n").await?;
                stream.write_all(b"<html>").await
            }
            Mood::DiesMidStream if calls => {
                head(&mut stream, "200 OK", "content-type: text/event-stream\r\n").await?;
                let progress = json!({"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": 1, "progress": 1}});
                stream.write_all(format!("id: 1\ndata: {progress}\n\ndata: {{\"jsonrpc\"").as_bytes()).await
            }
            Mood::Drips if calls => {
                head(&mut stream, "200 OK", "content-type: text/event-stream\r\n").await?;
                loop {
                    stream.write_all(b":\n\n").await?;
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
            _ if seen.head.starts_with("get ") => {
                let last = seen.head.lines().find_map(|line| line.strip_prefix("last-event-id: ")?.parse().ok());
                let messages = self.state().stream.clone();
                head(&mut stream, "200 OK", "content-type: text/event-stream\r\n").await?;
                for (index, message) in messages.iter().enumerate().skip(last.unwrap_or(0)) {
                    stream.write_all(format!("id: {}\ndata: {message}\n\n", index + 1).as_bytes()).await?;
                }
                Ok(())
            }
            _ if seen.body["method"] == "subscriptions/listen" => {
                head(&mut stream, "200 OK", "content-type: text/event-stream\r\n").await?;
                for number in 1..=2 {
                    let told = json!({"jsonrpc": "2.0", "method": "notifications/tools/list_changed", "params": {"n": number}});
                    stream.write_all(format!("data: {told}\n\n").as_bytes()).await?;
                    // Longer than a call may take.
                    tokio::time::sleep(Duration::from_millis(1500)).await;
                }
                Ok(())
            }
            // Until the other side gives up.
            Mood::Silent if calls => stream.read(&mut [0]).await.map(drop),
            _ => {
                let (status, headers, body) = answer;
                match body {
                    Some(body) => json_body(&mut stream, status, &headers, &body).await,
                    None => head(&mut stream, status, &format!("{headers}content-length: 0\r\n")).await,
                }
            }
        }
    }
}

impl State {
    /// Status, headers and message of a server that behaves well.
    fn answer(&mut self, seen: &Seen) -> (&'static str, String, Option<Value>) {
        let none = String::new;
        if let Some(token) = &self.token
            && !seen.head.contains(&format!("authorization: bearer {}\r\n", token.to_lowercase()))
        {
            return ("401 Unauthorized", "www-authenticate: Bearer\r\n".to_owned(), None);
        }
        let id = &seen.body["id"];
        let result = |value: Value| Some(json!({"jsonrpc": "2.0", "id": id, "result": value}));
        match seen.body["method"].as_str().unwrap_or_default() {
            "initialize" => {
                self.sessions += 1;
                let capabilities = json!({"tools": {}});
                let info = json!({"name": "raw", "version": "1"});
                let answer = json!({"protocolVersion": "2025-06-18", "capabilities": capabilities, "serverInfo": info});
                ("200 OK", format!("mcp-session-id: session-{}\r\n", self.sessions), result(answer))
            }
            "tools/list" => ("200 OK", none(), result(json!({"tools": self.tools}))),
            "tools/call" => {
                let text = seen.body["params"]["arguments"].to_string();
                ("200 OK", none(), result(json!({"content": [{"type": "text", "text": text}]})))
            }
            "" => ("202 Accepted", none(), None),
            method if method.starts_with("notifications/") => ("202 Accepted", none(), None),
            _ => {
                let error = json!({"code": -32601, "message": "Method not found"});
                ("200 OK", none(), Some(json!({"jsonrpc": "2.0", "id": id, "error": error})))
            }
        }
    }
}

async fn head(stream: &mut TcpStream, status: &str, headers: &str) -> std::io::Result<()> {
    stream.write_all(format!("HTTP/1.1 {status}\r\nconnection: close\r\n{headers}\r\n").as_bytes()).await
}

async fn json_body(stream: &mut TcpStream, status: &str, headers: &str, body: &Value) -> std::io::Result<()> {
    let body = body.to_string();
    let length = format!("{headers}content-type: application/json\r\ncontent-length: {}\r\n", body.len());
    head(stream, status, &length).await?;
    stream.write_all(body.as_bytes()).await
}

/// What serde would take seconds for.
async fn long_body(stream: &mut TcpStream, seen: &Seen, result: &str) -> std::io::Result<()> {
    let body = format!(r#"{{"jsonrpc":"2.0","id":{},"result":{result}}}"#, seen.body["id"]);
    let length = format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len());
    head(stream, "200 OK", &length).await?;
    stream.write_all(body.as_bytes()).await
}

/// One request; nothing when the other side said nothing.
async fn read(stream: &mut TcpStream) -> std::io::Result<Option<Seen>> {
    let (mut bytes, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end + 2]).to_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok());
            if bytes.len() >= end + 4 + length.unwrap_or(0) {
                let body = serde_json::from_slice(&bytes[end + 4..]).unwrap_or(Value::Null);
                return Ok(Some(Seen { head, body }));
            }
        }
        match stream.read(&mut buffer).await? {
            0 => return Ok(None),
            count => bytes.extend_from_slice(&buffer[..count]),
        }
    }
}
