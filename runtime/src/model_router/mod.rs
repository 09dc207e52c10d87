//! `agentapi-runtime model-router`: claude-code-router in the pod of a session, with a guard in front. The router holds
//! the keys of its upstreams and shows them to whoever asks its administration routes; the agent shares the pod's network
//! and runs what a model wrote. So the router gets a password that only the guard knows, and the guard passes on nothing
//! but messages for the models of the workspace. Imports nothing from the other rooms but the Google credentials' file;
//! may touch: its own child process, its home, the loopback address.

mod config;
mod guard;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use agentapi_crds::names::{MODEL_ROUTER_HEALTH_PORT, MODEL_ROUTER_PORT, env};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use crate::google_credentials::{self, CredentialsError};
use config::Configuration;
use guard::Guard;

/// Where the image has claude-code-router.
const ROUTER: [&str; 5] = [
    "node",
    "--require",
    "/app/vertex-stream.cjs",
    "/app/node_modules/@musistudio/claude-code-router/dist/cli.js",
    "start",
];
/// Between two looks whether the router answers.
const LOOK: Duration = Duration::from_millis(100);
/// The router answers within this time, or something is wrong with it.
const START: Duration = Duration::from_secs(60);
/// Requests in flight get this long when the pod stops.
const DRAIN: Duration = Duration::from_secs(5);

/// What `model-router` is told.
#[derive(Debug, Clone, clap::Args)]
pub struct RouterArgs {
    /// Address for the agent; a loopback address.
    #[arg(long, default_value_t = SocketAddr::from(([127, 0, 0, 1], MODEL_ROUTER_PORT)))]
    pub listen: SocketAddr,
    /// Address for probes.
    #[arg(long, default_value_t = SocketAddr::from(([0, 0, 0, 0], MODEL_ROUTER_HEALTH_PORT)))]
    pub health: SocketAddr,
    /// Folder for the router's configuration.
    #[arg(long, env = "HOME")]
    pub home: PathBuf,
    /// Command of claude-code-router. Left out: the image's.
    #[arg(last = true)]
    pub command: Vec<String>,
}

/// Why it does not run.
#[derive(Debug, thiserror::Error)]
pub enum RouterError {
    /// Others could use the keys.
    #[error("the model router serves a loopback address only, and {0} is none; use --listen 127.0.0.1:3456")]
    NotLoopback(SocketAddr),
    /// The address is taken or not ours.
    #[error("cannot listen on {0}: {1}; set --listen and --health to free addresses")]
    Listen(SocketAddr, std::io::Error),
    /// No configuration, or one that makes no sense.
    #[error("AGENTAPI_MODEL_ROUTER: {0}; the operator writes it from spec.agent.model.router of the Workspace")]
    Configuration(String),
    /// The home is not writable.
    #[error("cannot write the router's configuration to {0}: {1}")]
    Write(PathBuf, std::io::Error),
    /// The credentials of Vertex AI.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// No random numbers, or no HTTP client.
    #[error("cannot prepare the router: {0}")]
    Prepare(String),
    /// The program is not there.
    #[error("cannot start {program}: {source}; the image must have claude-code-router and Node.js")]
    Start {
        /// What was started.
        program: String,
        /// Why not.
        source: std::io::Error,
    },
    /// It has ended by itself.
    #[error("claude-code-router has ended ({0}); its own words are in the log above")]
    Ended(String),
    /// It never answered.
    #[error("claude-code-router does not answer after {START:?}; its own words are in the log above")]
    Silent,
}

/// Serves until `stop` is cancelled or the router has ended. `variables` is the environment of this process.
pub async fn run(
    args: RouterArgs,
    variables: BTreeMap<String, String>,
    stop: CancellationToken,
) -> Result<(), RouterError> {
    if !args.listen.ip().is_loopback() {
        return Err(RouterError::NotLoopback(args.listen));
    }
    let configuration = variables.get(env::MODEL_ROUTER).map_or("", String::as_str);
    let configuration = Configuration::parse(configuration).map_err(RouterError::Configuration)?;
    let listener = listen(args.listen).await?;
    let probes = listen(args.health).await?;
    let guard = Guard::new(&configuration)?;
    let mut router = start(&args, &configuration, &guard, &variables)?;
    let ended = async |router: &mut Child| match router.wait().await {
        Ok(status) => RouterError::Ended(status.to_string()),
        Err(error) => RouterError::Ended(error.to_string()),
    };
    tokio::select! {
        answers = guard.answers(START, LOOK) => if !answers { return Err(RouterError::Silent) },
        error = ended(&mut router) => return Err(error),
        () = stop.cancelled() => return Ok(()),
    }
    tracing::info!(listen = %args.listen, upstreams = configuration.upstreams(), "the model router is ready");
    let closing = stop.clone();
    let health = tokio::spawn({
        let (router, closing) = (guard.health(), closing.clone());
        async move { axum::serve(probes, router).with_graceful_shutdown(closing.cancelled_owned()).await }
    });
    let mut served = tokio::spawn({
        let router = guard.router();
        async move { axum::serve(listener, router).with_graceful_shutdown(closing.cancelled_owned()).await }
    });
    let outcome = tokio::select! {
        () = stop.cancelled() => Ok(()),
        error = ended(&mut router) => Err(error),
    };
    if outcome.is_ok() && tokio::time::timeout(DRAIN, &mut served).await.is_err() {
        served.abort();
    }
    health.abort();
    outcome
}

async fn listen(address: SocketAddr) -> Result<TcpListener, RouterError> {
    TcpListener::bind(address).await.map_err(|error| RouterError::Listen(address, error))
}

/// Writes the router's configuration and starts it.
fn start(
    args: &RouterArgs,
    configuration: &Configuration,
    guard: &Guard,
    variables: &BTreeMap<String, String>,
) -> Result<Child, RouterError> {
    let folder = args.home.join(".claude-code-router");
    let failed = |error| RouterError::Write(folder.clone(), error);
    // What a container before this one has left: a file with its process's number would keep the router from starting.
    match std::fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    std::fs::create_dir_all(&folder).map_err(failed)?;
    std::fs::write(folder.join("config.json"), configuration.of_router(guard.upstream_port()).to_string())
        .map_err(failed)?;
    let words: Vec<String> =
        if args.command.is_empty() { ROUTER.map(str::to_owned).into() } else { args.command.clone() };
    let program = words.first().cloned().unwrap_or_default();
    let mut command = Command::new(&program);
    // Only what it needs: it puts any variable into its configuration where a `$NAME` stands.
    command.args(words.get(1..).unwrap_or_default()).env_clear().env("HOME", &args.home);
    let wanted = |name: &str| {
        name.starts_with(env::MODEL_ROUTER_KEY)
            || ["PATH", "GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_LOCATION", "NODE_EXTRA_CA_CERTS"].contains(&name)
    };
    command.envs(variables.iter().filter(|(name, _)| wanted(name)));
    command.env(config::PASSWORD, guard.password());
    let credentials = variables.get(env::GOOGLE_CREDENTIALS);
    if let Some(file) = google_credentials::keep(&args.home, credentials.map(String::as_str))? {
        command.env(google_credentials::VARIABLE, file);
    }
    command.current_dir(&args.home).stdin(Stdio::null()).kill_on_drop(true);
    command.spawn().map_err(|source| RouterError::Start { program, source })
}
