//! `cargo xtask up` and `down`: from nothing to a sample tenant, in steps that can all be run again.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{cache, cluster, debian, images, paths, progress, sh};

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
    /// With `--cluster existing`: where its nodes pull the images from, such as registry.example.com/agentapi. Without
    /// it they are taken as loaded into the nodes, under the names that `cargo xtask images` gives them.
    #[arg(long, value_name = "PREFIX")]
    image_prefix: Option<String>,
    /// Also build and load this session image; may be given several times. Each takes some hundred megabytes.
    #[arg(long = "image", value_name = "NAME", value_parser = images::known)]
    images: Vec<String>,
}

impl Args {
    /// The arguments of another command that needs the cluster.
    pub(crate) fn new(cluster: cluster::Flavor, profile: Option<String>) -> Self {
        Self { cluster, profile, image_prefix: None, images: Vec::new() }
    }

    /// With the session images of all agents, as the tests of the cluster need them.
    pub(crate) fn with_all_agents(self) -> Self {
        Self { images: images::other_sessions(), ..self }
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
    let foreign = args.cluster == cluster::Flavor::Existing;
    if !foreign {
        debian::ensure(&[("curl", "curl")])?;
    }
    let built = if foreign {
        fs::write(existing_note()?, args.image_prefix.as_deref().unwrap_or_default())?;
        Vec::new()
    } else {
        println!("images");
        images::build(&[images::usual(), args.images.clone()].concat(), args.profile())?
    };
    let changed = load(&built)?;
    println!("charts");
    install(&built)?;
    println!("sample tenants");
    tenants(&changed)?;
    let url = api_url();
    fs::write(paths::cache()?.join("api-url"), &url)?;
    progress::step("the API answers", || {
        let path = format!("/api/v1/namespaces/{SYSTEM}/services/agentapi-runtime:80/proxy/ready");
        progress::wait_for("the API", Duration::from_secs(60), || {
            // An existing cluster's node ports are not ports of this machine.
            if foreign {
                return kubectl(&["get", "--raw", &path])
                    .map_err(|error| error.to_string())
                    .and_then(|mut command| sh::probe(&mut command))
                    .map(drop);
            }
            let url = format!("{url}/ready");
            sh::probe(Command::new("curl").args(["-fsS", "--max-time", "2", "-o", "/dev/null", &url])).map(drop)
        })
    })?;
    cache::sweep()?;
    next(&url, foreign && std::env::var_os("AGENTAPI_URL").is_none())
}

/// Arguments of `cargo xtask down`.
#[derive(clap::Args)]
pub(crate) struct DownArgs {
    /// Remove the caches of builds too, all of the state folder. Without it they stay, and the next `up` is quick.
    #[arg(long)]
    cache: bool,
}

/// Removes the cluster with everything in it, or what `up` put into an existing one.
pub(crate) fn down(args: &DownArgs) -> Result<()> {
    let note = existing_note()?;
    if note.exists() {
        remove_from_existing()?;
        fs::remove_file(note)?;
        fs::remove_file(paths::kubeconfig()?)?;
    }
    let url = paths::cache()?.join("api-url");
    if url.exists() {
        fs::remove_file(url)?;
    }
    cluster::down()?;
    if args.cache { cache::clear() } else { Ok(()) }
}

/// Is there while `up` has put something into a cluster that is not ours; holds the prefix of the images.
fn existing_note() -> Result<PathBuf> {
    Ok(paths::cache()?.join("existing-cluster"))
}

/// Takes back what `up` installed, tenants first: their finalizers need the operator.
fn remove_from_existing() -> Result<()> {
    let gone = ["--ignore-not-found", "--timeout", READY];
    let delete = |what: &[&str]| wait(&[&["delete"], what, &gone[..]].concat());
    let tenants = sh::output(&mut kubectl(&["get", "organizations", "-o", "name", "--ignore-not-found"])?)?;
    let names = tenants.lines().filter_map(|line| line.split('/').nth(1));
    let others: Vec<&str> = names.filter(|name| !["acme", "globex"].contains(name)).collect();
    if !others.is_empty() {
        bail!(
            "the cluster has Organizations that `up` did not make ({}): delete them first, or keep what is installed",
            others.join(", ")
        );
    }
    progress::step("sample tenants go", || {
        delete(&["namespace", "team-acme", "team-globex"])?;
        delete(&["organization", "acme", "globex"])
    })?;
    progress::step("charts and demo go", || {
        for release in ["agentapi", "agentapi-crds"] {
            let mut command = Command::new(cluster::helm()?);
            command.arg("--kubeconfig").arg(paths::kubeconfig()?).args(["uninstall", release, "--ignore-not-found"]);
            command.args(["--namespace", SYSTEM, "--wait", "--timeout", READY]);
            sh::logged(&mut command, &paths::logs()?.join(format!("helm-uninstall-{release}.log")))?;
        }
        // helm keeps definitions, since deleting one deletes all objects of its kind. There are none left.
        let kinds = ["organizations", "workspaces", "mcpconnections", "promptpolicies"];
        let definitions = kinds.map(|kind| format!("{kind}.agentapi.dev"));
        delete(&[&["crd"][..], &definitions.each_ref().map(String::as_str)].concat())?;
        delete(&["namespace", SYSTEM, "agentapi-demo"])
    })
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
    let log = paths::logs()?.join(format!("apply-{name}.log"));
    let Some(prefix) = image_prefix()? else { return sh::logged(command.arg(file), &log) };
    let text = fs::read_to_string(file)?.replace("image: agentapi.dev/", &format!("image: {prefix}/"));
    let renamed = paths::cache()?.join(format!("{name}.renamed.yaml"));
    fs::write(&renamed, text)?;
    let done = sh::logged(command.arg(&renamed), &log);
    fs::remove_file(&renamed)?;
    done
}

/// Where an existing cluster pulls the images from, if it was said.
fn image_prefix() -> Result<Option<String>> {
    let note = existing_note()?;
    let prefix = if note.exists() { fs::read_to_string(note)? } else { String::new() };
    Ok(Some(prefix.trim_end_matches('/').to_owned()).filter(|prefix| !prefix.is_empty()))
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
            if let Some(prefix) = image_prefix()? {
                args.extend(["--set-string".into(), format!("{part}.image.repository={prefix}/{part}")]);
            }
        }
        helm("agentapi", &args.iter().map(String::as_str).collect::<Vec<_>>())
    })?;
    for workload in ["statefulset/agentapi-postgres", "deployment/agentapi-operator", "deployment/agentapi-runtime"] {
        progress::step(&format!("{workload} is ready"), || {
            wait(&["-n", SYSTEM, "rollout", "status", workload, "--timeout", READY])
        })?;
    }
    for workload in [
        "deployment/fake-model",
        "deployment/oidc",
        "deployment/mcp-open",
        "deployment/mcp-bearer",
        "deployment/mcp-oauth",
    ] {
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

fn next(url: &str, forward: bool) -> Result<()> {
    let (bin, kubeconfig) = (paths::bin()?, paths::kubeconfig()?);
    let forward = if forward {
        "  kubectl -n agentapi-system port-forward svc/agentapi-runtime 8080:80 &   # or set AGENTAPI_URL to your Ingress\n"
    } else {
        ""
    };
    println!(
        r#"
Two tenants are up: acme (workspace web) and globex (workspace research). Type next:

  export KUBECONFIG={kubeconfig} PATH={bin}:$PATH
  kubectl get organizations; kubectl get workspaces -A
{forward}
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
