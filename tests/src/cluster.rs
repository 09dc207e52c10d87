//! Access to the cluster that `cargo xtask up` made, for tests and benches: kubectl, the API server,
//! tokens from the real OIDC provider, the agent API. May start only kubectl.
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// What kubectl says when it reached nobody: the request was not taken, so it may be repeated.
const NOT_REACHED: [&str; 4] =
    ["TLS handshake timeout", "error dialing backend", "unable to upgrade connection", "connect: connection refused"];
/// kubectl port-forward says within this time which port it has.
const FORWARD: Duration = Duration::from_secs(30);

/// The repository's root.
pub fn repo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn cache() -> PathBuf {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache"), PathBuf::from);
    base.join("agentapi")
}

/// A cluster with the operator and the runtime installed.
#[derive(Clone, Debug)]
pub struct Cluster {
    kubectl: PathBuf,
    kubeconfig: PathBuf,
}

/// What a command printed.
#[derive(Debug)]
pub struct Output {
    /// Did it exit with 0.
    pub ok: bool,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Cluster {
    /// The cluster of `KUBECONFIG`, else the one of `cargo xtask up`.
    ///
    /// # Errors
    /// When there is none; the message says which command makes one.
    pub fn connect() -> Result<Self> {
        let kubeconfig = std::env::var_os("KUBECONFIG").map_or_else(|| cache().join("kubeconfig"), PathBuf::from);
        let own = cache().join("bin/kubectl");
        let kubectl = if own.exists() { own } else { PathBuf::from("kubectl") };
        if !kubeconfig.exists() {
            bail!(
                "no cluster: {} does not exist. Run `cargo xtask up` first, or set KUBECONFIG.",
                kubeconfig.display()
            );
        }
        Ok(Self { kubectl, kubeconfig })
    }

    /// Runs kubectl and gives back what it printed, whether or not it succeeded. When the API server or the kubelet could
    /// not be talked to at all, which says nothing about anything, it is run again.
    ///
    /// # Errors
    /// When kubectl can't be started.
    pub fn try_kubectl(&self, args: &[&str], stdin: &str) -> Result<Output> {
        for _ in 0..2 {
            let out = self.kubectl_once(args, stdin)?;
            if out.ok || !NOT_REACHED.iter().any(|words| out.stderr.contains(words)) {
                return Ok(out);
            }
            println!("kubectl {}: {}; again", args.join(" "), out.stderr.trim());
            std::thread::sleep(Duration::from_secs(1));
        }
        self.kubectl_once(args, stdin)
    }

    fn kubectl_once(&self, args: &[&str], stdin: &str) -> Result<Output> {
        let mut child = Command::new(&self.kubectl)
            .env("KUBECONFIG", &self.kubeconfig)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", self.kubectl.display()))?;
        child.stdin.take().context("no stdin")?.write_all(stdin.as_bytes())?;
        let out = child.wait_with_output()?;
        Ok(Output {
            ok: out.status.success(),
            stdout: String::from_utf8_lossy(&out.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&out.stderr).into_owned(),
        })
    }

    /// Runs kubectl and gives back its standard output.
    ///
    /// # Errors
    /// When it exits with anything but 0.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        let out = self.try_kubectl(args, "")?;
        if !out.ok {
            bail!("kubectl {}: {}", args.join(" "), out.stderr);
        }
        Ok(out.stdout)
    }

    /// `kubectl apply --server-side` of the text.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn apply(&self, yaml: &str) -> Result<()> {
        let out = self.try_kubectl(&["apply", "--server-side", "--field-manager=tests", "-f", "-"], yaml)?;
        if !out.ok {
            bail!("kubectl apply: {}", out.stderr);
        }
        Ok(())
    }

    /// An object as JSON, or `None` when it does not exist.
    ///
    /// # Errors
    /// When kubectl fails for another reason.
    pub fn get(&self, kind: &str, namespace: Option<&str>, name: &str) -> Result<Option<Value>> {
        let mut args = vec!["get", kind, name, "-o", "json", "--ignore-not-found"];
        if let Some(ns) = namespace {
            args.extend(["-n", ns]);
        }
        let out = self.kubectl(&args)?;
        if out.trim().is_empty() { Ok(None) } else { Ok(Some(serde_json::from_str(&out)?)) }
    }

    /// The objects that match a label selector.
    ///
    /// # Errors
    /// When kubectl fails.
    pub fn list(&self, kind: &str, namespace: &str, selector: &str) -> Result<Vec<Value>> {
        let mut args = vec!["get", kind, "-o", "json", "-l", selector];
        if namespace.is_empty() {
            args.push("-A");
        } else {
            args.extend(["-n", namespace]);
        }
        let out: Value = serde_json::from_str(&self.kubectl(&args)?)?;
        Ok(out["items"].as_array().cloned().unwrap_or_default())
    }

    /// Status and reason of a condition.
    ///
    /// # Errors
    /// When kubectl fails.
    pub fn condition(&self, kind: &str, ns: Option<&str>, name: &str, which: &str) -> Result<Option<(String, String)>> {
        let Some(object) = self.get(kind, ns, name)? else { return Ok(None) };
        let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        Ok(conditions.iter().find(|c| c["type"] == which).map(|c| {
            (c["status"].as_str().unwrap_or_default().to_owned(), c["reason"].as_str().unwrap_or_default().to_owned())
        }))
    }

    /// Waits until the object is Ready.
    ///
    /// # Errors
    /// When it is not within the limit.
    pub async fn ready(&self, kind: &str, namespace: Option<&str>, name: &str, limit: Duration) -> Result<()> {
        eventually(&format!("{kind}/{name} Ready"), limit, async || {
            let seen = self.condition(kind, namespace, name, "Ready")?;
            let ready = seen.as_ref().is_some_and(|(status, _)| status == "True");
            Ok(if ready { Ok(()) } else { Err(format!("{seen:?}")) })
        })
        .await
    }

    /// Namespace and name of a session's pod, or `None` when it has none.
    ///
    /// # Errors
    /// When kubectl fails.
    pub fn session_pod(&self, session: &str) -> Result<Option<(String, String)>> {
        let pods = self.list("pods", "", &format!("agentapi.dev/session={session}"))?;
        let field = |pod: &Value, name: &str| pod["metadata"][name].as_str().unwrap_or_default().to_owned();
        Ok(pods.first().map(|pod| (field(pod, "namespace"), field(pod, "name"))))
    }

    /// Ends the first container of a pod, and waits until it runs again.
    ///
    /// # Errors
    /// When it does not within the limit.
    pub async fn restart(&self, (namespace, pod): (&str, &str), limit: Duration) -> Result<()> {
        let restarts = || {
            let pod = self.get("pod", Some(namespace), pod)?.context("the pod is gone")?;
            anyhow::Ok(pod["status"]["containerStatuses"][0]["restartCount"].as_i64().unwrap_or_default())
        };
        let before = restarts()?;
        // The container may end before the answer comes.
        let asked = self.try_kubectl(&["-n", namespace, "exec", pod, "--", "kill", "-TERM", "1"], "")?;
        eventually("the container restarts", limit, async || {
            Ok(if restarts()? > before { Ok(()) } else { Err(format!("not yet; kill: {asked:?}")) })
        })
        .await
    }

    /// An access token from the demo's OIDC provider for one of its clients, such as `acme-alice`.
    ///
    /// # Errors
    /// When the provider does not answer.
    pub fn token(&self, client: &str) -> Result<String> {
        let out =
            self.kubectl(&["-n", "agentapi-demo", "exec", "deploy/oidc", "--", "node", "/app/token.mjs", client])?;
        Ok(out.trim().to_owned())
    }

    /// Waits until all pods of the Workspace that wait for a session are ready and were told the prompt of this digest:
    /// whatever is asked for then gets one of them.
    ///
    /// # Errors
    /// When that is not in time.
    pub async fn warm_pods_know(&self, workspace: (&str, &str), digest: &Value, limit: Duration) -> Result<()> {
        let (namespace, name) = workspace;
        let selector = format!("agentapi.dev/pool=warm,agentapi.dev/workspace={name}");
        eventually("the pods that wait know the prompt", limit, async || {
            let pods = self.list("pods", namespace, &selector)?;
            let told = |pod: &Value| pod["metadata"]["annotations"]["agentapi.dev/prompt-digest"] == *digest;
            let ready = |pod: &Value| {
                let mut conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
                conditions.any(|it| it["type"] == "Ready" && it["status"] == "True")
            };
            let all = !pods.is_empty() && pods.iter().all(|pod| told(pod) && ready(pod));
            Ok(if all { Ok(()) } else { Err(format!("{} pods", pods.len())) })
        })
        .await
    }

    /// Forwards a free loopback port to a port of a pod or Service, such as `pod/x` or `svc/y`.
    ///
    /// # Errors
    /// When kubectl does not say which port it took.
    pub fn port_forward(&self, namespace: &str, target: &str, port: u16) -> Result<PortForward> {
        let mut child = Command::new(&self.kubectl)
            .env("KUBECONFIG", &self.kubeconfig)
            .args(["-n", namespace, "port-forward", "--address", "127.0.0.1", target, &format!(":{port}")])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("starting {}", self.kubectl.display()))?;
        let mut lines = BufReader::new(child.stdout.take().context("no stdout")?).lines();
        let (first, said) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            first.send(lines.next()).ok();
            // kubectl dies of a closed pipe at its next connection.
            lines.for_each(drop);
        });
        let line = said.recv_timeout(FORWARD).ok().flatten().transpose()?.unwrap_or_default();
        let local =
            line.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next()).and_then(|p| p.parse().ok());
        if let Some(port) = local {
            return Ok(PortForward { child, port });
        }
        child.kill()?;
        bail!("kubectl port-forward {target}: {line}")
    }

    /// Base URL of the agent API: `AGENTAPI_URL`, else what `cargo xtask up` wrote down.
    ///
    /// # Errors
    /// When neither is there.
    pub fn api_url(&self) -> Result<String> {
        if let Ok(url) = std::env::var("AGENTAPI_URL") {
            return Ok(url);
        }
        let path = cache().join("api-url");
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("{}: run `cargo xtask up` first, or set AGENTAPI_URL", path.display()))?;
        Ok(text.trim().to_owned())
    }
}

/// A running `kubectl port-forward`; it ends when this is dropped.
#[derive(Debug)]
pub struct PortForward {
    child: Child,
    port: u16,
}

impl PortForward {
    /// Base URL on loopback.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

impl Drop for PortForward {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Polls until `check` gives a value; fails with the last thing that `check` said when it still had none after the
/// deadline. The time that the check itself takes does not count.
///
/// # Errors
/// When the deadline passes, or `check` fails for good.
pub async fn eventually<T>(
    what: &str,
    limit: Duration,
    mut check: impl AsyncFnMut() -> Result<Result<T, String>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        let asked = start.elapsed();
        match check().await? {
            Ok(value) => return Ok(value),
            Err(seen) if asked > limit => bail!("{what}: not within {limit:?}; last seen: {seen}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}
