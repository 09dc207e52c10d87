//! What runs in the native cluster from the start: the images of pause and
//! `CoreDNS`, and cluster DNS; and the removal of containers.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use super::layout::{COREDNS_IMAGE, Layout, PAUSE_IMAGE};
use crate::image_tar::{self, Entry, Image, Layer};
use crate::progress::wait_for;
use crate::{paths, sh};

/// Builds and loads the images that the cluster itself needs; says whether any was new.
pub(crate) fn images(layout: &Layout, tools: &Path, coredns: &Path) -> Result<bool> {
    let mut new = false;
    let dir = layout.dir("images")?;
    let present = ctr(layout, &["images", "list", "-q"])?;
    for (image, source, program) in
        [(PAUSE_IMAGE, tools.join("nodetool"), "pause"), (COREDNS_IMAGE, coredns.to_owned(), "coredns")]
    {
        // The file name carries the program's hash, so a new build is loaded and an old one is not again.
        let hash = source.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
        let tar = dir.join(format!("{hash}.tar"));
        if tar.exists() && present.lines().any(|line| line == image) {
            continue;
        }
        let layer = Layer::new(&[Entry::File(&source, program)])?;
        let entrypoint = vec![format!("/{program}")];
        let names = vec![image.to_owned()];
        image_tar::write(&tar, &[Image { names, layers: vec![&layer], entrypoint, user: "65532:65532" }])?;
        import(layout, &tar)?;
        new = true;
    }
    Ok(new)
}

/// Loads an image tar into the node.
pub(crate) fn import(layout: &Layout, tar: &Path) -> Result<()> {
    ctr(layout, &["images", "import", &tar.to_string_lossy()]).map(drop)
}

/// Applies cluster DNS and waits until it answers its readiness probe. A `new` image under the
/// same name replaces the running pod.
pub(crate) fn apply(programs: &Path, new: bool) -> Result<()> {
    let kubeconfig = paths::kubeconfig()?;
    let kubectl = |args: &[&str]| {
        sh::output(Command::new(programs.join("kubectl")).arg("--kubeconfig").arg(&kubeconfig).args(args))
    };
    let manifest = paths::repo().join("devcluster/manifests/coredns.yaml");
    // The default service account's token controller may be a moment behind a fresh API server.
    wait_for("cluster DNS manifest", Duration::from_secs(60), || {
        kubectl(&["apply", "--server-side", "--force-conflicts", "-f", &manifest.to_string_lossy()])
            .map(drop)
            .map_err(|error| error.to_string())
    })?;
    if new {
        kubectl(&["-n", "kube-system", "rollout", "restart", "deployment/coredns"])?;
    }
    kubectl(&["-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=90s"]).map(drop)
}

/// Forgets every container and task, so that no shim stays behind.
pub(crate) fn remove_containers(layout: &Layout) {
    let Ok(containers) = ctr(layout, &["containers", "list", "-q"]) else { return };
    for id in containers.lines() {
        let _ = ctr(layout, &["tasks", "delete", "-f", id]);
        let _ = ctr(layout, &["containers", "delete", id]);
    }
}

/// What others keep in folders that cannot be moved: the CNI library a record per sandbox, the
/// kubelet a link per container log. Ours are removed.
pub(crate) fn remove_leftovers(layout: &Layout) {
    let prefix = format!("{}-", layout.name());
    let entries = |dir| std::fs::read_dir(dir).into_iter().flatten().flatten();
    for entry in entries("/var/lib/cni/results") {
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
    for entry in entries("/var/log/containers") {
        if std::fs::read_link(entry.path()).is_ok_and(|target| target.starts_with(&layout.root)) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn ctr(layout: &Layout, args: &[&str]) -> Result<String> {
    sh::output(Command::new("ctr").args(["-a", &layout.containerd(), "-n", "k8s.io"]).args(args))
}
