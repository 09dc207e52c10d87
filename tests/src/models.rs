//! Pods of a Workspace with a model, as processes: built by the operator's own code, with environment and Secrets as the
//! kubelet would resolve them. Only addresses and folders are the test's.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use agentapi_crds::{Workspace, names::env};
use agentapi_operator::controllers::{
    reference::Tenancy,
    workspace::{
        build::{Surroundings, build},
        validate::validate,
    },
};
use agentapi_operator::egress::{Closed, decide};
use agentapi_runtime::model_router::{self, RouterArgs, RouterError};
use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::{Container, PodSpec};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::agents;
use crate::cluster::eventually;
use crate::serve::pods::container::end_all;

/// An agent that draws on a terminal on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
const ROUTER: &str = "node_modules/@musistudio/claude-code-router/dist/cli.js";
const STREAM_FIX: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../images/model-router/vertex-stream.cjs");

/// Keys of Secrets in the tenant namespace: name, key, value.
pub type Secrets<'a> = &'a [(&'a str, &'a str, String)];

/// A Workspace of an agent `kind` with `model`.
pub fn workspace(kind: &str, model: &Value) -> Result<Workspace> {
    Ok(serde_json::from_value(json!({
        "apiVersion": "agentapi.dev/v1alpha1", "kind": "Workspace",
        "metadata": {"name": "web", "namespace": "team-a", "uid": Uuid::new_v4()},
        "spec": {
            "organizationRef": {"name": "acme"},
            "agent": {"type": kind, "image": "example/agent:1", "model": model},
        },
    }))?)
}

/// A Google credentials file of type `external_account` for the fake model at `base`.
pub fn google_credentials(base: &str) -> String {
    let account = json!({
        "type": "external_account",
        "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/pool/providers/acme",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": format!("{base}/sts/token"),
        "credential_source": {"url": format!("{base}/sts/subject"), "format": {"type": "text"}},
    });
    account.to_string()
}

/// The pod that the operator makes for it.
pub fn pod(workspace: &Workspace) -> Result<PodSpec> {
    let tenancy = Tenancy {
        id: Uuid::new_v4(),
        slug: "acme".into(),
        namespace_ready: true,
        database_ready: true,
        workspaces: 1,
        mcp_servers: 0,
        prompt_policies: 9,
        allowed_egress: None,
    };
    let accepted = validate(workspace, Ok(tenancy), []).map_err(|refusal| anyhow::anyhow!(refusal.message))?;
    let surroundings =
        Surroundings { runtime_internal_url: "http://127.0.0.1:9".into(), session_public_keys: vec!["x".into()] };
    let egress = decide(&[], None, &Closed::new([], "agentapi-system"));
    let template = build(workspace, &accepted, &surroundings, &egress).template.template;
    template.and_then(|template| template.spec).context("the template has no pod")
}

/// As the kubelet resolves it; also its words when a Secret is missing.
pub fn environment(container: &Container, secrets: Secrets<'_>) -> Result<BTreeMap<String, String>> {
    let mut variables = BTreeMap::new();
    for variable in container.env.iter().flatten() {
        let reference = variable.value_from.as_ref().and_then(|from| from.secret_key_ref.as_ref());
        let value = match (&variable.value, reference) {
            (Some(value), _) => value.replace("$$", "$"),
            (None, Some(reference)) => {
                let found = secrets.iter().find(|(name, key, _)| *name == reference.name && *key == reference.key);
                found.with_context(|| format!("secret {:?} not found", reference.name))?.2.clone()
            }
            // The name of the pod, from the downward API.
            (None, None) => "pod-1".into(),
        };
        variables.insert(variable.name.clone(), value);
    }
    Ok(variables)
}

/// The router of a pod, with the real claude-code-router.
pub struct Router {
    /// Where the agent finds it.
    pub url: String,
    /// Where probes find it.
    pub health: String,
    /// Its home, with the configuration of claude-code-router.
    pub home: TempDir,
    task: JoinHandle<Result<(), RouterError>>,
    stop: CancellationToken,
}

impl Router {
    /// Starts it and waits until it answers.
    pub async fn start(spec: &PodSpec, secrets: Secrets<'_>) -> Result<Self> {
        let container = spec.init_containers.iter().flatten().next().context("the pod has no router")?;
        let mut variables = environment(container, secrets)?;
        variables.insert("PATH".into(), std::env::var("PATH")?);
        let home = tempfile::tempdir()?;
        let (listen, health) = (free_address()?, free_address()?);
        let script = agents::modules("model-router")?.join(ROUTER);
        let node = agents::node().into_string().map_err(|_| anyhow::anyhow!("NODE is no text"))?;
        let command = vec![node, "--require".into(), STREAM_FIX.into(), script.display().to_string(), "start".into()];
        let args = RouterArgs { listen, health, home: home.path().to_owned(), command };
        let stop = CancellationToken::new();
        let task = tokio::spawn(model_router::run(args, variables, stop.clone()));
        let router =
            Self { url: format!("http://{listen}"), health: format!("http://{health}/health"), home, task, stop };
        let http = reqwest::Client::builder().no_proxy().build()?;
        eventually("the router's health", PATIENCE, async || {
            if router.task.is_finished() {
                bail!("the router has ended");
            }
            Ok(match http.get(&router.health).send().await {
                Ok(answer) if answer.status().is_success() => Ok(()),
                other => Err(format!("{other:?}")),
            })
        })
        .await?;
        Ok(router)
    }

    /// Ends it.
    pub async fn end(self) -> Result<()> {
        self.stop.cancel();
        Ok(self.task.await??)
    }
}

/// The agent's container: the session host with the real agent.
pub struct Agent {
    base: String,
    http: reqwest::Client,
    child: Child,
    folder: TempDir,
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        end_all(&format!("HOME={}", self.folder.path().join("home").display()));
    }
}

impl Agent {
    /// `binary` is `session-pod`, `name` the agent's. With `router` the agent finds that one.
    pub async fn start(
        binary: &str,
        name: &str,
        spec: &PodSpec,
        secrets: Secrets<'_>,
        router: Option<&Router>,
    ) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        for part in ["state", "workspace", "home"] {
            std::fs::create_dir(folder.path().join(part))?;
        }
        let mut variables = environment(&spec.containers[0], secrets)?;
        variables.retain(|name, _| ![env::SESSION_PUBLIC_KEY, env::RUNTIME_INTERNAL_URL].contains(&name.as_str()));
        let address = free_address()?;
        let path = |part: &str| folder.path().join(part).display().to_string();
        let bin = agents::bin_dir(name)?;
        variables.extend([
            (env::LISTEN.to_owned(), address.to_string()),
            (env::STATE_DIR.to_owned(), path("state")),
            (env::WORKDIR.to_owned(), path("workspace")),
            (env::SESSION_SECRET_DIR.to_owned(), path("no-secret")),
            ("HOME".to_owned(), path("home")),
            ("PATH".to_owned(), format!("{}:/usr/local/bin:/usr/bin:/bin", bin.display())),
        ]);
        if let Some(router) = router {
            variables.insert("ANTHROPIC_BASE_URL".to_owned(), router.url.clone());
        }
        let log = std::fs::File::create(folder.path().join("log"))?;
        let mut command = Command::new(binary);
        command.arg("--insecure-no-auth").env_clear().envs(variables).stdin(Stdio::null());
        let child = command.stdout(log.try_clone()?).stderr(log).spawn()?;
        let http = reqwest::Client::builder().no_proxy().build()?;
        let agent = Self { base: format!("http://{address}"), http, child, folder };
        agent.stable().await?;
        Ok(agent)
    }

    async fn get(&self, path: &str) -> Result<Value> {
        Ok(self.http.get(format!("{}{path}", self.base)).send().await?.error_for_status()?.json().await?)
    }

    async fn stable(&self) -> Result<()> {
        eventually("a stable agent", PATIENCE, async || {
            Ok(match self.get("/status").await {
                Ok(status) if status["status"] == "stable" => Ok(()),
                other => Err(format!("{other:?}; {}", self.log())),
            })
        })
        .await
    }

    /// Says something and gives back the answer.
    pub async fn ask(&self, text: &str) -> Result<String> {
        let message = json!({"content": text, "type": "user"});
        // It may draw something between two turns, and counts as busy then.
        eventually("the message is taken", PATIENCE, async || {
            let sent = self.http.post(format!("{}/message", self.base)).json(&message).send().await?;
            let (status, said) = (sent.status(), sent.text().await?);
            Ok(match status.as_u16() {
                200 => Ok(()),
                409 if said.contains("agent-busy") => Err(said),
                _ => bail!("{status}: {said}"),
            })
        })
        .await?;
        self.stable().await?;
        let messages = self.get("/messages").await?;
        let last = messages["messages"].as_array().and_then(|all| all.last()).context("there are no messages")?;
        Ok(last["content"].as_str().unwrap_or_default().to_owned())
    }

    /// What its session host has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// A file in its home.
    pub fn home(&self, path: &str) -> Result<String> {
        Ok(std::fs::read_to_string(self.folder.path().join("home").join(Path::new(path)))?)
    }
}

fn free_address() -> Result<SocketAddr> {
    Ok(([127, 0, 0, 1], crate::ports::reserve()?).into())
}
