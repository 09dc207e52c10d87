//! The Docker that kind uses: the one that runs, else one of our own with its own
//! data, socket and no say in the machine's firewall.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cluster::procs::Procs;
use crate::progress::{step, wait_for};
use crate::{debian, gobuild, paths, sh};

const NEEDS: &[debian::Need] = &[
    ("dockerd", "docker.io"),
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("mmdebstrap", "mmdebstrap"),
    ("nft", "nftables"),
    ("ip", "iproute2"),
];

/// A reachable Docker daemon.
pub(crate) struct Docker {
    client: PathBuf,
    /// The socket of our own daemon; nothing for the user's.
    socket: Option<PathBuf>,
}

/// Why there is no Docker and none can be started, if so.
pub(crate) fn obstacle() -> Result<Option<String>> {
    if Docker::running()?.is_some() || (debian::is_root() && Path::new("/etc/debian_version").exists()) {
        return Ok(None);
    }
    Ok(Some("no Docker daemon answers, and starting one needs root on Debian".to_owned()))
}

impl Docker {
    /// The daemon that answers: the user's first, then ours.
    pub(crate) fn running() -> Result<Option<Self>> {
        let Some(client) = client() else { return Ok(None) };
        for socket in [None, Some(folder()?.join("docker.sock"))] {
            let docker = Self { client: client.clone(), socket };
            if docker.output(&["version", "--format", "{{.Server.Version}}"]).is_ok() {
                return Ok(Some(docker));
            }
        }
        Ok(None)
    }

    /// The daemon that answers, or our own, started now.
    pub(crate) fn running_or_started() -> Result<Self> {
        if let Some(docker) = Self::running()? {
            return Ok(docker);
        }
        debian::ensure(NEEDS)?;
        step("Docker daemon of our own", start)?;
        Self::running()?.context("the Docker daemon has stopped again: see its log")
    }

    /// Whether we started it.
    pub(crate) fn is_ours(&self) -> bool {
        self.socket.is_some()
    }

    /// Points a program that uses Docker (kind) to this daemon.
    pub(crate) fn apply(&self, command: &mut Command) {
        if let Some(socket) = &self.socket {
            command.env("DOCKER_HOST", format!("unix://{}", socket.display()));
        }
    }

    /// A Docker command line.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.client);
        command.args(args).env("DOCKER_BUILDKIT", "0");
        self.apply(&mut command);
        command
    }

    /// Runs it and gives back what it prints.
    pub(crate) fn output(&self, args: &[&str]) -> Result<String> {
        sh::output(&mut self.command(args))
    }

    /// Stops our own daemon and removes its data.
    pub(crate) fn stop_if_ours(&self) -> Result<()> {
        if !self.is_ours() {
            return Ok(());
        }
        step("stop the Docker daemon", || {
            let _ = self.output(&["network", "rm", "kind"]);
            procs()?.stop("dockerd")?;
            let folder = folder()?;
            super::super::unmount_below(&folder);
            std::fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))
        })
    }
}

fn start() -> Result<()> {
    let folder = paths::ensure(folder()?)?;
    let text = |name: &str| folder.join(name).to_string_lossy().into_owned();
    std::fs::write(folder.join("daemon.json"), "{}")?;
    let mut args: Vec<String> = vec![
        format!("--host=unix://{}", text("docker.sock")),
        format!("--data-root={}", text("data")),
        format!("--exec-root={}", text("exec")),
        format!("--pidfile={}", text("docker.pid")),
        format!("--config-file={}", text("daemon.json")),
    ];
    // kind needs neither the default bridge nor rules of Docker's: its ports are
    // passed on by docker-proxy, and a firewall changed here would cut off others.
    args.extend(
        ["--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-masq=false", "--oom-score-adjust=0"]
            .map(str::to_owned),
    );
    if !crate::cluster::has_sys_resource() {
        let tool = gobuild::build(&gobuild::NODETOOL)?;
        let tools = tool.parent().map(Path::to_path_buf).unwrap_or_default();
        gobuild::link(&tool, &tools, &["runc-nosys"])?;
        args.push(format!("--add-runtime=nosys={}", tools.join("runc-nosys").display()));
        args.push("--default-runtime=nosys".to_owned());
    }
    let mut procs = procs()?;
    procs.ensure("dockerd", &sh::which("dockerd").context("dockerd is not on PATH")?, &args, "")?;
    wait_for("the Docker daemon", Duration::from_mins(1), || {
        if let Err(gone) = procs.check("dockerd") {
            return Err(gone.to_string());
        }
        match Docker::running() {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(format!("no answer yet; its log is {}", procs.log("dockerd").display())),
            Err(error) => Err(error.to_string()),
        }
    })
}

/// Debian's client, which belongs to Debian's daemon, before any other on PATH.
fn client() -> Option<PathBuf> {
    Some(PathBuf::from("/usr/bin/docker")).filter(|file| file.is_file()).or_else(|| sh::which("docker"))
}

fn folder() -> Result<PathBuf> {
    Ok(paths::cache()?.join("cluster").join("docker"))
}

fn procs() -> Result<Procs> {
    let folder = paths::ensure(folder()?)?;
    Procs::open(folder.join("processes.json"), folder)
}
