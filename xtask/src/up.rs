//! `cargo xtask up` and `down`: from nothing to a sample tenant, in steps that can all be run again.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{cluster, images, paths, progress, sh};

/// Namespace of the operator, the runtime and the demo's Postgres.
const SYSTEM: &str = "agentapi-system";
/// Time for one thing to become ready; the first start pulls nothing, so this is generous.
const READY: &str = "180s";

/// Arguments of `cargo xtask up`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which Kubernetes to use.
    #[arg(long, value_enum, default_value_t)]
    cluster: cluster::Flavor,
    /// Cargo profile of the binaries in the images. By default `dev` on Debian 12, whose C library is that of the
    /// images, and `release` (static) elsewhere.
    #[arg(long)]
    profile: Option<String>,
}

impl Args {
    /// The arguments of another command that needs the cluster.
    pub(crate) fn new(cluster: cluster::Flavor, profile: Option<String>) -> Self {
        Self { cluster, profile }
    }

    fn profile(&self) -> &str {
        let bookworm = || fs::read_to_string("/etc/os-release").is_ok_and(|text| text.contains("CODENAME=bookworm"));
        self.profile.as_deref().unwrap_or_else(|| if bookworm() { "dev" } else { "release" })
    }
}

/// Makes the cluster, installs everything and prints what to type next.
pub(crate) fn main(args: &Args) -> Result<()> {
    println!("cluster");
    cluster::up(args.cluster)?;
    println!("images");
    let built = images::build(&[], args.profile())?;
    let changed = load(&built)?;
    println!("charts");
    install(&built)?;
    println!("sample tenants");
    tenants(&changed)?;
    let url = api_url();
    fs::write(paths::cache()?.join("api-url"), &url)?;
    progress::step("the API answers", || {
        progress::wait_for(&format!("{url}/ready"), Duration::from_secs(60), || {
            sh::probe(Command::new("curl").args([
                "-fsS",
                "--max-time",
                "2",
                "-o",
                "/dev/null",
                &format!("{url}/ready"),
            ]))
            .map(drop)
        })
    })?;
    next(&url)
}

/// Removes the cluster with everything in it; the caches of builds stay.
pub(crate) fn down() -> Result<()> {
    let url = paths::cache()?.join("api-url");
    if url.exists() {
        fs::remove_file(url)?;
    }
    cluster::down()
}

/// Where it is noted which images the cluster has.
fn notes() -> Result<PathBuf> {
    paths::ensure(paths::cache()?.join("loaded"))
}

/// Loads the images that the cluster does not have yet, and gives back their names.
fn load(images: &[images::Built]) -> Result<Vec<String>> {
    let notes = notes()?;
    let mut new = Vec::new();
    for image in images {
        let note = notes.join(&image.name);
        if fs::read_to_string(&note).is_ok_and(|digest| digest == image.digest) {
            continue;
        }
        cluster::load(&image.archive)?;
        fs::write(&note, &image.digest)?;
        new.push(image.name.clone());
    }
    Ok(new)
}

/// Base URL of the agent API from this machine.
fn api_url() -> String {
    std::env::var("AGENTAPI_URL").unwrap_or_else(|_| "http://127.0.0.1:8080".into())
}

/// kubectl against our cluster.
pub(crate) fn kubectl(args: &[&str]) -> Result<Command> {
    let own = paths::bin()?.join("kubectl");
    let mut command = Command::new(if own.exists() { own } else { PathBuf::from("kubectl") });
    command.arg("--kubeconfig").arg(paths::kubeconfig()?).args(args);
    Ok(command)
}

fn helm(release: &str, args: &[&str]) -> Result<()> {
    let mut command = Command::new(cluster::helm()?);
    command.arg("--kubeconfig").arg(paths::kubeconfig()?).args(["upgrade", "--install", release]);
    command
        .arg(paths::repo().join("charts").join(release))
        .args(["--namespace", SYSTEM, "--timeout", READY])
        .args(args);
    sh::logged(&mut command, &paths::logs()?.join(format!("helm-{release}.log")))
}

/// Applies the file; the log is named after it.
fn apply(file: &Path) -> Result<()> {
    let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let mut command = kubectl(&["apply", "--server-side", "--force-conflicts", "-f"])?;
    sh::logged(command.arg(file), &paths::logs()?.join(format!("apply-{name}.log")))
}

/// Waits with `kubectl wait`, or `rollout status` for workloads.
fn wait(args: &[&str]) -> Result<()> {
    sh::output(&mut kubectl(args)?).map(drop)
}

fn install(built: &[images::Built]) -> Result<()> {
    let namespace = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {SYSTEM}\n  labels:\n    pod-security.kubernetes.io/enforce: restricted\n"
    );
    let file = paths::cache()?.join("namespace.yaml");
    fs::write(&file, namespace)?;
    progress::step("namespace agentapi-system", || apply(&file))?;
    progress::step("chart agentapi-crds", || helm("agentapi-crds", &[]))?;
    progress::step("identity provider and model endpoint of the demo", || {
        apply(&paths::repo().join("examples/demo/demo.yaml"))
    })?;
    progress::step("chart agentapi", || {
        let values = paths::repo().join("examples/demo/values.yaml");
        let mut args = vec!["-f".to_owned(), values.display().to_string()];
        // The tag is always `dev`: the annotation makes the pods roll when the image is another one.
        for part in ["operator", "runtime", "postgres"] {
            if let Some(image) = built.iter().find(|image| image.name == part) {
                args.extend([
                    "--set-string".into(),
                    format!("{part}.podAnnotations.agentapi\\.dev/image={}", image.digest),
                ]);
            }
        }
        helm("agentapi", &args.iter().map(String::as_str).collect::<Vec<_>>())
    })?;
    for workload in ["statefulset/agentapi-postgres", "deployment/agentapi-operator", "deployment/agentapi-runtime"] {
        progress::step(&format!("{workload} is ready"), || {
            wait(&["-n", SYSTEM, "rollout", "status", workload, "--timeout", READY])
        })?;
    }
    for workload in ["deployment/fake-model", "deployment/oidc"] {
        progress::step(&format!("{workload} is ready"), || {
            wait(&["-n", "agentapi-demo", "rollout", "status", workload, "--timeout", READY])
        })?;
    }
    Ok(())
}

fn tenants(changed: &[String]) -> Result<()> {
    for tenant in ["acme", "globex"] {
        progress::step(&format!("examples/{tenant}.yaml"), || {
            apply(&paths::repo().join(format!("examples/{tenant}.yaml")))
        })?;
    }
    if changed.iter().any(|name| name.starts_with("session-")) {
        progress::step("warm pods of the old image go", || {
            wait(&["delete", "pods", "-A", "-l", "agentapi.dev/pool=warm", "--wait=false"])
        })?;
    }
    let ready = ["--for=condition=Ready", "--timeout", READY];
    progress::step("organizations acme and globex are Ready", || {
        wait(&[&["wait", "organization/acme", "organization/globex"][..], &ready].concat())
    })?;
    progress::step("workspaces web and research are Ready", || {
        wait(&[&["wait", "-n", "team-acme", "workspace/web"][..], &ready].concat())?;
        wait(&[&["wait", "-n", "team-globex", "workspace/research"][..], &ready].concat())
    })
}

fn next(url: &str) -> Result<()> {
    let (bin, kubeconfig) = (paths::bin()?, paths::kubeconfig()?);
    println!(
        r#"
Two tenants are up: acme (workspace web) and globex (workspace research). Type next:

  export KUBECONFIG={kubeconfig} PATH={bin}:$PATH
  kubectl get organizations; kubectl get workspaces -A

  TOKEN=$(cargo xtask token acme-alice)
  curl -sS {url}/v1/sessions -H "Authorization: Bearer $TOKEN" -H 'Content-Type: application/json' -d '{{"workspace":"web"}}'

  ID=…   # the id in the answer
  curl -sS {url}/v1/sessions/$ID/message -H "Authorization: Bearer $TOKEN" -H 'Content-Type: application/json' -d '{{"type":"user","content":"echo: hello"}}'
  curl -sS {url}/v1/sessions/$ID/messages -H "Authorization: Bearer $TOKEN"

The API is described at {url}/docs. `cargo xtask test` runs the tests, `cargo xtask down` removes all of this."#,
        bin = bin.display(),
        kubeconfig = kubeconfig.display(),
    );
    Ok(())
}

/// Arguments of `cargo xtask token`.
#[derive(clap::Args)]
pub(crate) struct TokenArgs {
    /// Client of the demo's identity provider: acme-admin, acme-alice, acme-bob, globex-admin or globex-gina.
    client: String,
}

/// Prints an access token for the demo's tenants.
pub(crate) fn token(args: &TokenArgs) -> Result<()> {
    let mut command =
        kubectl(&["-n", "agentapi-demo", "exec", "deploy/oidc", "--", "node", "/app/token.mjs", &args.client])?;
    let token = sh::output(&mut command).context("no token: is the cluster up (`cargo xtask up`)?")?;
    println!("{}", token.trim());
    Ok(())
}
