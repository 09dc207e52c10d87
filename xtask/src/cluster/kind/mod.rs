//! The kind cluster. With a Docker that runs and can pull, kind does it all; on a
//! bare machine a Docker daemon of our own is started and the node image is made
//! from Debian packages and the programs of `devcluster/`.
//! It touches: the user's Docker or its own one in the state folder.

mod docker;
mod node_image;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::progress::step;
use crate::{gobuild, paths, sh};
use docker::Docker;

/// Name of the cluster in `kind-config.yaml`.
const CLUSTER: &str = "agentapi";

/// Creates the cluster if it is not there.
pub(crate) fn up() -> Result<()> {
    let kind = kind()?;
    let docker = Docker::running_or_started()?;
    if !exists(&kind, &docker)? {
        let image = node_image::available(&docker)?;
        step("kind create cluster (minutes the first time)", || create(&kind, &docker, image.as_deref()))?;
    }
    if docker.is_ours() {
        step("network policies and storage", || helpers(&docker))?;
    }
    if docker.is_ours() || sh::which("kubectl").is_none() {
        let kubernetes = gobuild::build(&gobuild::DEVCLUSTER)?;
        let folder = kubernetes.parent().map(Path::to_path_buf).unwrap_or_default();
        gobuild::link(&kubernetes, &folder, &["kubectl"])?;
        gobuild::link(&folder.join("kubectl"), &paths::bin()?, &["kubectl"])?;
    }
    if docker.is_ours() || sh::which("helm").is_none() {
        gobuild::link(&gobuild::build(&gobuild::HELM)?, &paths::bin()?, &["helm"])?;
    }
    Ok(())
}

/// Deletes the cluster, and the Docker daemon if it is ours.
pub(crate) fn down() -> Result<()> {
    let Some(docker) = Docker::running()? else { return Ok(()) };
    if !running()? && !docker.is_ours() {
        return Ok(());
    }
    let kind = kind()?;
    step("kind delete cluster", || {
        let mut command = Command::new(&kind);
        command.args(["delete", "cluster", "--name", CLUSTER, "--kubeconfig"]).arg(paths::kubeconfig()?);
        docker.apply(&mut command);
        sh::logged(&mut command, &paths::logs()?.join("kind-delete.log"))
    })?;
    let _ = std::fs::remove_file(marker()?);
    docker.stop_if_ours()
}

/// Loads an image tar into the node.
pub(crate) fn load(tar: &Path) -> Result<()> {
    let docker = Docker::running()?.context("no Docker runs: start the cluster with `cargo xtask cluster up`")?;
    let mut command = Command::new(kind()?);
    command.args(["load", "image-archive", "--name", CLUSTER]).arg(tar);
    docker.apply(&mut command);
    sh::logged(&mut command, &paths::logs()?.join("kind-load.log"))
}

/// Whether `up` made a kind cluster that was not taken down.
pub(crate) fn running() -> Result<bool> {
    Ok(marker()?.exists())
}

/// Why kind cannot run on this machine, if it cannot.
pub(crate) fn obstacle() -> Result<Option<String>> {
    docker::obstacle()
}

fn marker() -> Result<PathBuf> {
    Ok(paths::ensure(paths::cache()?.join("cluster"))?.join("kind.up"))
}

fn kind() -> Result<PathBuf> {
    let kind = gobuild::build(&gobuild::KIND)?;
    gobuild::link(&kind, &paths::bin()?, &["kind"])?;
    Ok(kind)
}

fn exists(kind: &Path, docker: &Docker) -> Result<bool> {
    let mut command = Command::new(kind);
    command.args(["get", "clusters"]);
    docker.apply(&mut command);
    Ok(sh::output(&mut command)?.lines().any(|line| line == CLUSTER))
}

fn create(kind: &Path, docker: &Docker, image: Option<&str>) -> Result<()> {
    let log = paths::logs()?.join("kind-create.log");
    let mut command = Command::new(kind);
    command.args(["create", "cluster", "--wait", "120s", "-v", "3", "--config"]);
    command.arg(paths::repo().join("kind-config.yaml")).arg("--kubeconfig").arg(paths::kubeconfig()?);
    if let Some(image) = image {
        command.args(["--image", image]);
    }
    docker.apply(&mut command);
    sh::logged(&mut command, &log).context("remedy: `cargo xtask cluster down`, or run with --cluster native")?;
    std::fs::write(marker()?, "")?;
    Ok(())
}

/// Gives the node's own services (policies, volumes) the kubeconfig that they wait for.
fn helpers(docker: &Docker) -> Result<()> {
    let node = format!("{CLUSTER}-control-plane");
    let script = "set -e; umask 077; target=/etc/kubernetes/node-helper.conf; [ -s $target ] || \
                  kubeadm kubeconfig user --client-name agentapi:node-helper --config /kind/kubeadm.conf > $target";
    docker.output(&["exec", &node, "sh", "-c", script]).map(drop)
}
