//! `agentapi-runtime probe`: tries, from the place of a session pod, to connect to what a session pod must not reach, and
//! writes what it saw where the kubelet passes it on as the container's termination message. Judges nothing: the operator
//! does. May touch: TCP, the termination message, the folder of a service account's token.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

/// Nobody who answers at all takes longer.
const CONNECT: Duration = Duration::from_secs(2);
/// A pod that has just started may have to wait for its network policies to let it out.
const CONTROL: Duration = Duration::from_secs(10);
/// And for them to shut it in, where the network plugin is late.
const SETTLE: Duration = Duration::from_secs(2);
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The environment holds something else.
    #[error("AGENTAPI_PROBE_TARGETS is not what the operator writes: {0}")]
    Targets(#[from] serde_json::Error),
    /// The kubelet gave no file.
    #[error("cannot write {path}: {error}")]
    Write {
        /// Where to.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
}

/// Arguments of `agentapi-runtime probe`.
#[derive(Clone, Debug, clap::Args)]
pub struct ProbeArgs {
    /// What to connect to, as JSON.
    #[arg(long, env = "AGENTAPI_PROBE_TARGETS")]
    pub targets: String,
    /// File for the result.
    #[arg(long, default_value = "/dev/termination-log")]
    pub result: PathBuf,
}

#[derive(Debug, Deserialize)]
struct Wanted {
    /// The one target that must answer before the others mean anything.
    control: String,
    targets: BTreeMap<String, String>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    service_account_token: bool,
    results: BTreeMap<String, &'static str>,
}

/// Try everything and write the report.
pub async fn run(args: &ProbeArgs) -> Result<(), Error> {
    let wanted: Wanted = serde_json::from_str(&args.targets)?;
    let report = look(wanted, Path::new(TOKEN)).await;
    let text = serde_json::to_string(&report)?;
    std::fs::write(&args.result, text).map_err(|error| Error::Write { path: args.result.clone(), error })
}

async fn look(wanted: Wanted, token: &Path) -> Report {
    let Wanted { control, mut targets } = wanted;
    let mut results = BTreeMap::new();
    if let Some(address) = targets.remove(&control) {
        let deadline = Instant::now() + CONTROL;
        let mut seen = connect(&address).await;
        while seen != "open" && Instant::now() < deadline {
            sleep(Duration::from_millis(250)).await;
            seen = connect(&address).await;
        }
        results.insert(control, seen);
    }
    let first = connect_all(&targets).await;
    targets.retain(|name, _| first.get(name) == Some(&"open"));
    results.extend(first);
    if !targets.is_empty() {
        sleep(SETTLE).await;
        results.extend(connect_all(&targets).await);
    }
    Report { service_account_token: token.exists(), results }
}

async fn connect_all(targets: &BTreeMap<String, String>) -> BTreeMap<String, &'static str> {
    let mut tries = JoinSet::new();
    for (name, address) in targets.clone() {
        tries.spawn(async move { (name, connect(&address).await) });
    }
    tries.join_all().await.into_iter().collect()
}

async fn connect(address: &str) -> &'static str {
    let found = match timeout(CONNECT, lookup_host(address)).await {
        Ok(Ok(found)) => found.collect::<Vec<_>>(),
        Ok(Err(_)) | Err(_) => return "unresolved",
    };
    for address in found {
        if matches!(timeout(CONNECT, TcpStream::connect(address)).await, Ok(Ok(_))) {
            return "open";
        }
    }
    "closed"
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn what_listens_is_open_and_what_does_not_is_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = listener.local_addr().unwrap().to_string();
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let closed = gone.local_addr().unwrap().to_string();
        drop(gone);
        let wanted = json!({ "control": "runtime", "targets":
            { "runtime": open, "pod": open, "postgres": closed, "nameless": "nobody.invalid:1" } });
        let folder = tempfile::tempdir().unwrap();
        let report = look(serde_json::from_value(wanted).unwrap(), folder.path()).await;
        assert!(report.service_account_token, "there is a folder");
        let expected = [("runtime", "open"), ("pod", "open"), ("postgres", "closed"), ("nameless", "unresolved")];
        assert_eq!(report.results, expected.map(|(name, seen)| (name.to_owned(), seen)).into());
    }
}
