//! FastMCP as a process, from a virtual environment in the user's cache folder that is made when it is not there.
use anyhow::{Context, Result, bail, ensure};
use std::{
    fs::File,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

/// What is installed; the folder's name says it, so that another version gets another folder.
const PACKAGES: [&str; 2] = ["fastmcp==4.1.2", "mcp==2.3.0"];

/// A running server.
#[derive(Debug)]
pub struct Fastmcp {
    process: Child,
    /// Where it listens.
    pub address: SocketAddr,
    transport: &'static str,
}

/// Python with FastMCP: `FASTMCP_PYTHON`, or one that is made once per user.
pub fn python() -> Result<PathBuf> {
    if let Some(python) = std::env::var_os("FASTMCP_PYTHON") {
        return Ok(python.into());
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cache"))).context("no HOME")?;
    let folder = cache.join("agentapi").join(PACKAGES[0].replace("==", "-"));
    let (python, done) = (folder.join("bin/python"), folder.join("installed"));
    std::fs::create_dir_all(&folder)?;
    // Tests run in several processes at a time; one of them installs.
    let lock = File::create(folder.join("lock"))?;
    lock.lock()?;
    if !done.exists() {
        let run = |command: &mut Command| -> Result<()> {
            let output = command.output().with_context(|| format!("{command:?}: apt-get install python3-venv"))?;
            ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
            Ok(())
        };
        run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
        run(Command::new(folder.join("bin/pip")).args(["install", "--quiet"]).args(PACKAGES))?;
        File::create(done)?;
    }
    Ok(python)
}

impl Fastmcp {
    /// `http` (streamable HTTP) or `sse`, with a bearer token that it wants, or without.
    pub async fn start(transport: &'static str, token: Option<&str>) -> Result<Self> {
        let python = tokio::task::spawn_blocking(python).await??;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/mcp/server.py");
        let port = crate::ports::reserve()?;
        let mut command = Command::new(python);
        command.arg(script).arg(transport).arg(port.to_string()).args(token);
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let mut server = Self { process, address: SocketAddr::from(([127, 0, 0, 1], port)), transport };
        // Python reads a thousand files before it listens.
        for _ in 0..2400 {
            if tokio::net::TcpStream::connect(server.address).await.is_ok() {
                return Ok(server);
            }
            if let Some(status) = server.process.try_wait()? {
                bail!("FastMCP ended: {status}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("FastMCP does not listen on {}", server.address)
    }

    /// Its endpoint.
    pub fn url(&self) -> String {
        format!("http://{}/{}", self.address, if self.transport == "sse" { "sse" } else { "mcp" })
    }
}

impl Drop for Fastmcp {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
