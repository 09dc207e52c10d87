//! Finding a process of the installation and killing it. A pid is taken only from the control group of a container that
//! the API server names, or from the list of processes that `cargo xtask cluster up` has written.

use std::fmt;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::cluster::{Cluster, eventually, repo};

const SYSTEM: &str = "agentapi-system";
const OPERATOR: &str = "deployment/agentapi-operator";

/// What is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// The operator's leader.
    Operator,
    /// One replica of the runtime.
    Runtime,
    /// The process of a session pod.
    SessionPod,
    /// Postgres with all its backends.
    Postgres,
    /// The API server. Only the native cluster's: nothing of ours supervises another one.
    ApiServer,
}

impl Victim {
    /// All of them that can be killed on this cluster.
    pub fn all() -> Vec<Self> {
        let mut all = vec![Self::SessionPod, Self::Operator, Self::Runtime, Self::Postgres];
        if process_list().is_ok() {
            all.push(Self::ApiServer);
        }
        all
    }

    /// SIGKILL.
    pub(super) fn kill(self, cluster: &Cluster, session_pod: Option<&(String, String)>) -> Result<()> {
        let pid = match self {
            Self::Operator => {
                let lease =
                    cluster.get("lease", Some(SYSTEM), "agentapi-operator")?.context("no Lease of the operator")?;
                let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned();
                let pods = running(cluster, "agentapi-operator")?;
                let leader =
                    pods.iter().find(|pod| pod["metadata"]["name"].as_str().is_some_and(|name| holder.contains(name)));
                of_container(leader.with_context(|| format!("no pod holds the Lease ({holder:?})"))?)?
            }
            Self::Runtime => {
                let pods = running(cluster, "agentapi-runtime")?;
                of_container(pods.first().context("no pod of the runtime")?)?
            }
            Self::Postgres => {
                let pod = cluster.get("pod", Some(SYSTEM), "agentapi-postgres-0")?;
                of_container(&pod.context("no pod agentapi-postgres-0: kill only the chart's own Postgres")?)?
            }
            Self::SessionPod => {
                let (namespace, name) = session_pod.context("the session has no pod")?;
                of_container(&cluster.get("pod", Some(namespace), name)?.context("the session's pod is gone")?)?
            }
            Self::ApiServer => listed("kube-apiserver")?,
        };
        let killed = Command::new("kill").args(["-KILL", &pid.to_string()]).status()?;
        if !killed.success() {
            bail!("cannot kill {self} (pid {pid}): run this as root on the machine of the cluster");
        }
        Ok(())
    }

    /// Starts again what nobody else starts again: the kubelet looks after containers, `cluster up` after the rest.
    pub(super) async fn help(self, cluster: &Cluster) -> Result<()> {
        if self != Self::ApiServer {
            return Ok(());
        }
        let mut command = if let Some(xtask) = std::env::var_os("AGENTAPI_XTASK") {
            Command::new(xtask)
        } else {
            let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
            cargo.args(["run", "--quiet", "--package", "xtask", "--"]);
            cargo
        };
        let done = command.current_dir(repo()).args(["cluster", "up", "--cluster", "native"]).output()?;
        if !done.status.success() {
            bail!("cluster up: {}", String::from_utf8_lossy(&done.stderr));
        }
        // Its own rules about who may do what are read a moment after it answers.
        eventually("the API server answers", Duration::from_secs(30), async || {
            Ok(cluster.kubectl(&["get", "organizations"]).map(drop).map_err(|error| format!("{error:#}")))
        })
        .await
    }
}

impl fmt::Display for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Operator => "operator (leader)",
            Self::Runtime => "runtime replica",
            Self::SessionPod => "session pod",
            Self::Postgres => "Postgres",
            Self::ApiServer => "API server",
        })
    }
}

/// Pods that run; evicted ones stay in the list for a while.
fn running(cluster: &Cluster, name: &str) -> Result<Vec<Value>> {
    let mut pods = cluster.list("pods", SYSTEM, &format!("app.kubernetes.io/name={name}"))?;
    pods.retain(|pod| pod["status"]["phase"] == "Running");
    Ok(pods)
}

/// The first process of a pod's first container, as this machine counts.
fn of_container(pod: &Value) -> Result<u32> {
    let id = pod["status"]["containerStatuses"][0]["containerID"].as_str().unwrap_or_default();
    let id = id.rsplit('/').next().unwrap_or_default();
    if id.len() < 32 {
        bail!("the container of {} does not run", pod["metadata"]["name"]);
    }
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let group = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        let status = std::fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
        if group.contains(id) && numbers.split_whitespace().nth(1) == Some("1") {
            return Ok(pid);
        }
    }
    bail!("no process of this machine is container {id}: chaos needs the native cluster, on this machine and as root")
}

fn process_list() -> Result<Value> {
    let base = std::env::var_os("XDG_CACHE_HOME").map(std::path::PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| std::path::PathBuf::from(home).join(".cache"));
    let file = base.or_else(home).context("no HOME")?.join("agentapi/cluster/native/processes.json");
    serde_json::from_slice(&std::fs::read(&file).with_context(|| file.display().to_string())?).context("not JSON")
}

/// A process of the list that is still the one that was started.
fn listed(name: &str) -> Result<u32> {
    let list = process_list()?;
    let pid =
        list[name]["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).with_context(|| format!("no {name}"))?;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect::<Vec<_>>()).unwrap_or_default();
    if fields.get(19).copied() != list[name]["start_time"].as_str() {
        bail!("{name} is not the process that cluster up started; run `cargo xtask cluster up`");
    }
    Ok(pid)
}

/// Sets the number of replicas and gives back what it was.
pub(super) fn scale_operator(cluster: &Cluster, replicas: u64) -> Result<u64> {
    let deployment =
        cluster.get("deployment", Some(SYSTEM), "agentapi-operator")?.context("no operator is installed")?;
    cluster.kubectl(&["-n", SYSTEM, "scale", OPERATOR, &format!("--replicas={replicas}")])?;
    Ok(deployment["spec"]["replicas"].as_u64().unwrap_or(2))
}

/// Waits until no pod of the operator is left.
pub(super) async fn operator_gone(cluster: &Cluster) -> Result<()> {
    eventually("no operator", Duration::from_secs(60), async || {
        let pods = running(cluster, "agentapi-operator")?.len();
        Ok(if pods == 0 { Ok(()) } else { Err(format!("{pods} pods")) })
    })
    .await
}
