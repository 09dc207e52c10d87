//! Chromium without a screen, driven by its own protocol over a pipe: pages, keys, and what a screen reader is told.
//! `cargo xtask test` installs Debian's package; by hand, `chromium` on PATH or its path in `CHROMIUM`.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::cluster::eventually;

/// It starts from a cold disk, and other tests have browsers too.
const ANSWER: Duration = Duration::from_secs(120);
const SOON: Duration = Duration::from_secs(60);

/// The browser.
pub struct Chromium {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    last: u64,
    _profile: TempDir,
}

/// One window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    target: String,
    session: String,
}

impl Chromium {
    /// A new profile.
    pub async fn start() -> Result<Self> {
        let profile = tempfile::tempdir()?;
        let program = std::env::var("CHROMIUM").unwrap_or_else(|_| "chromium".to_owned());
        // It takes commands on descriptor 3 and answers on 4: the shell puts our pipes there.
        let mut process = Command::new("sh")
            .args(["-c", r#"exec "$0" "$@" 3<&0 4>&1 </dev/null >/dev/null"#])
            .arg(program)
            .args(["--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--no-first-run"])
            .args(["--disable-dev-shm-usage", "--disable-background-networking", "--no-proxy-server"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start Chromium; apt-get install chromium, or set CHROMIUM to its path")?;
        let input = process.stdin.take().context("no input")?;
        let output = BufReader::new(process.stdout.take().context("no output")?);
        let mut browser = Self { process, input, output, last: 0, _profile: profile };
        browser.call(None, "Browser.getVersion", json!({})).await?;
        Ok(browser)
    }

    /// One command of the protocol, and its result.
    pub async fn call(&mut self, window: Option<&Window>, method: &str, parameters: Value) -> Result<Value> {
        self.last += 1;
        let id = self.last;
        let mut command = json!({"id": id, "method": method, "params": parameters});
        if let Some(window) = window {
            command["sessionId"] = window.session.as_str().into();
        }
        let mut bytes = serde_json::to_vec(&command)?;
        bytes.push(0);
        self.input.write_all(&bytes).await?;
        let answered = tokio::time::timeout(ANSWER, async {
            loop {
                let mut message = Vec::new();
                ensure!(self.output.read_until(0, &mut message).await? > 0, "Chromium is gone");
                message.pop();
                let message: Value = serde_json::from_slice(&message)?;
                // Events come in between; nobody here waits for one.
                if message["id"] != json!(id) {
                    continue;
                }
                match message.get("error") {
                    Some(error) => bail!("{method}: {error}"),
                    None => return Ok(message["result"].clone()),
                }
            }
        });
        answered.await.with_context(|| format!("{method}: no answer"))?
    }

    /// Opens a window.
    pub async fn open(&mut self, url: &str) -> Result<Window> {
        let made = self.call(None, "Target.createTarget", json!({"url": url})).await?;
        let target = made["targetId"].as_str().context("no targetId")?.to_owned();
        self.attach(target).await
    }

    async fn attach(&mut self, target: String) -> Result<Window> {
        let attached = self.call(None, "Target.attachToTarget", json!({"targetId": target, "flatten": true})).await?;
        Ok(Window { target, session: attached["sessionId"].as_str().context("no sessionId")?.to_owned() })
    }

    /// Windows that this one has opened and that are still there.
    pub async fn others(&mut self, window: &Window) -> Result<Vec<String>> {
        let all = self.call(None, "Target.getTargets", json!({})).await?;
        let opened =
            all["targetInfos"].as_array().into_iter().flatten().filter(|info| info["openerId"] == json!(window.target));
        Ok(opened.filter_map(|info| info["targetId"].as_str().map(str::to_owned)).collect())
    }

    /// The window that this one has opened.
    pub async fn popup(&mut self, window: &Window) -> Result<Window> {
        for _ in 0..(SOON.as_millis() / 50) {
            let all = self.call(None, "Target.getTargets", json!({})).await?;
            let mut pages = all["targetInfos"].as_array().into_iter().flatten();
            let opened = pages.find(|info| info["openerId"] == json!(window.target));
            if let Some(target) = opened.and_then(|info| info["targetId"].as_str()) {
                let target = target.to_owned();
                return self.attach(target).await;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("no window was opened")
    }

    /// Closes a window as a user does.
    pub async fn close(&mut self, window: &Window) -> Result<()> {
        self.call(None, "Target.closeTarget", json!({"targetId": window.target})).await?;
        Ok(())
    }

    /// The value of an expression in a window.
    pub async fn evaluate(&mut self, window: &Window, expression: &str) -> Result<Value> {
        let asked = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let answer = self.call(Some(window), "Runtime.evaluate", asked).await?;
        ensure!(answer["exceptionDetails"].is_null(), "{expression}: {}", answer["exceptionDetails"]);
        Ok(answer["result"]["value"].clone())
    }

    /// Waits until an expression is true. While a window goes somewhere else it has no answer.
    pub async fn wait(&mut self, window: &Window, expression: &str) -> Result<()> {
        let mut seen = String::new();
        for _ in 0..(SOON.as_millis() / 50) {
            match self.evaluate(window, expression).await {
                Ok(Value::Bool(true)) => return Ok(()),
                other => seen = format!("{other:?}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let page = self.evaluate(window, "document.body.innerText").await;
        bail!("{expression} did not become true: {seen}; the page: {page:?}")
    }

    /// Presses a key, such as `Tab` or `Enter`.
    pub async fn press(&mut self, window: &Window, key: &str) -> Result<()> {
        let (code, text) = match key {
            "Tab" => (9, ""),
            "Enter" => (13, "\r"),
            other => bail!("no such key here: {other}"),
        };
        for kind in ["keyDown", "keyUp"] {
            let event = json!({"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": if kind == "keyDown" { text } else { "" }});
            self.call(Some(window), "Input.dispatchKeyEvent", event).await?;
        }
        Ok(())
    }

    /// Role and name of everything that a screen reader finds, as `role: name`.
    pub async fn spoken(&mut self, window: &Window) -> Result<Vec<String>> {
        let tree = self.call(Some(window), "Accessibility.getFullAXTree", json!({})).await?;
        let nodes = tree["nodes"].as_array().into_iter().flatten().filter(|node| node["ignored"] != json!(true));
        let word = |node: &Value, field: &str| node[field]["value"].as_str().unwrap_or_default().to_owned();
        Ok(nodes.map(|node| format!("{}: {}", word(node, "role"), word(node, "name"))).collect())
    }

    /// Ends it.
    pub async fn quit(mut self) -> Result<()> {
        // It answers, or is gone before it can.
        let _ = self.call(None, "Browser.close", json!({})).await;
        eventually("the end of Chromium", SOON, async || {
            Ok(match self.process.try_wait()? {
                Some(_) => Ok(()),
                None => Err("it still runs".to_owned()),
            })
        })
        .await
    }
}
