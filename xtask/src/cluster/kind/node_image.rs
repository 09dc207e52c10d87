//! The node image where the stock one cannot be had: Debian packages, the files
//! that kind's own node image is made of (they come with the kind module), and
//! the programs of `devcluster/` under the names that kubeadm expects.

use std::collections::BTreeSet;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use super::docker::Docker;
use crate::image_tar::{self, Entry, Image, Layer};
use crate::progress::step;
use crate::{cache, gobuild, paths, sh};

const PACKAGES: &str = "systemd,systemd-sysv,dbus,conntrack,iptables,nftables,iproute2,ethtool,util-linux,mount,\
                        kmod,procps,jq,ca-certificates,containerd,runc,containernetworking-plugins,socat,e2fsprogs";
/// As kind's own node image does it: no unit of the distribution starts by itself.
const CLEAN: &str = "rm -f \"$1\"/lib/systemd/system/multi-user.target.wants/* \"$1\"/etc/systemd/system/*.wants/* \
                     \"$1\"/lib/systemd/system/local-fs.target.wants/* \
                     \"$1\"/lib/systemd/system/sockets.target.wants/*udev* \
                     \"$1\"/lib/systemd/system/sockets.target.wants/*initctl* \
                     \"$1\"/lib/systemd/system/basic.target.wants/* \
                     \"$1\"/lib/systemd/system/sysinit.target.wants/systemd-tmpfiles-setup.service; \
                     echo ReadKMsg=no >> \"$1\"/etc/systemd/journald.conf; \
                     ln -sf /dev/null \"$1\"/etc/systemd/system/systemd-binfmt.service; \
                     mkdir -p \"$1\"/etc/kubernetes/manifests";
const DOCKERFILE: &str = "FROM scratch
ADD base.tar /
COPY overlay/ /
ENV container=docker
STOPSIGNAL SIGRTMIN+3
ENTRYPOINT [\"/usr/local/bin/entrypoint\", \"/sbin/init\"]
";
const UNITS: &[&str] = &["kubelet", "containerd", "undo-mount-hacks", "load-images", "netpol", "local-path"];

/// The programs that go into the image.
struct Parts {
    kubernetes: PathBuf,
    tools: PathBuf,
    coredns: PathBuf,
}

/// The image to give to kind: ours for our own Docker, nothing (the stock one) for the user's.
pub(crate) fn available(docker: &Docker) -> Result<Option<String>> {
    if !docker.is_ours() {
        return Ok(None);
    }
    let parts = Parts {
        kubernetes: gobuild::build(&gobuild::DEVCLUSTER)?,
        tools: gobuild::build(&gobuild::NODETOOL)?,
        coredns: gobuild::build(&gobuild::COREDNS)?,
    };
    let mut hash = Sha256::new();
    for part in [&parts.kubernetes, &parts.tools, &parts.coredns] {
        hash.update(part.as_os_str().as_encoded_bytes());
    }
    hash.update(PACKAGES);
    hash.update(CLEAN);
    hash.update(DOCKERFILE);
    let own = paths::repo().join("devcluster");
    for tree in [own.join("node"), own.join("manifests")] {
        for file in files(&tree)? {
            hash.update(std::fs::read(&file)?);
        }
    }
    let tag = format!("agentapi.dev/kind-node:{}", hex::encode(&hash.finalize()[..6]));
    if docker.output(&["image", "inspect", "--format", "{{.Id}}", &tag]).is_ok() {
        return Ok(Some(tag));
    }
    let folder = paths::ensure(paths::cache()?.join("kind"))?;
    let base = step("Debian packages of the node", || base(&folder))?;
    step("node image", || {
        let context = folder.join("context");
        let _ = std::fs::remove_dir_all(&context);
        let overlay = paths::ensure(context.join("overlay"))?;
        fill(&overlay, &parts)?;
        std::fs::hard_link(&base, context.join("base.tar"))?;
        std::fs::write(context.join("Dockerfile"), DOCKERFILE)?;
        let mut build = docker.command(&["build", "--quiet", "--tag", &tag]);
        build.arg(&context);
        sh::logged(&mut build, &paths::logs()?.join("kind-node-image.log"))?;
        std::fs::remove_dir_all(&context).context("cannot remove the build context")
    })?;
    Ok(Some(tag))
}

/// The Debian part, kept by its package list.
fn base(folder: &Path) -> Result<PathBuf> {
    let tar = folder.join(format!("base-{}.tar", hex::encode(&Sha256::digest(format!("{PACKAGES}{CLEAN}"))[..6])));
    if !tar.exists() {
        let partial = folder.join("base.partial.tar");
        let mut command = Command::new("mmdebstrap");
        command.args(["--quiet", "--variant=minbase"]).arg(format!("--include={PACKAGES}"));
        command.arg(format!("--customize-hook={CLEAN}")).arg("bookworm").arg(&partial);
        sh::logged(&mut command, &paths::logs()?.join("kind-node-base.log"))?;
        std::fs::rename(&partial, &tar)?;
    }
    cache::used(&tar);
    Ok(tar)
}

fn fill(overlay: &Path, parts: &Parts) -> Result<()> {
    let images = kubeadm_images(&parts.kubernetes)?;
    let module = sh::output(
        Command::new("go").args(["list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/kind"]).current_dir(kind_module()),
    )?;
    copy_tree(&Path::new(module.trim()).join("images/base/files"), overlay)?;
    copy_tree(&paths::repo().join("devcluster/node"), overlay)?;
    let manifests = paths::ensure(overlay.join("kind/manifests"))?;
    std::fs::copy(paths::repo().join("devcluster/manifests/storage.yaml"), manifests.join("default-storage.yaml"))?;
    std::fs::write(overlay.join("kind/version"), gobuild::KUBERNETES)?;

    let config = overlay.join("etc/containerd/config.toml");
    let pause = images.iter().find(|name| name.contains("/pause:")).context("kubeadm names no pause image")?;
    std::fs::write(&config, std::fs::read_to_string(&config)?.replace("@PAUSE@", pause))?;

    program(&parts.kubernetes, &overlay.join("usr/bin/devcluster"))?;
    for name in ["kubelet", "kubeadm", "kubectl", "netpol", "local-path"] {
        link("devcluster", &overlay.join("usr/bin").join(name))?;
    }
    program(&parts.tools, &overlay.join("usr/local/sbin/nodetool"))?;
    link("nodetool", &overlay.join("usr/local/sbin/runc-nosys"))?;
    for name in ["containerd", "containerd-shim-runc-v2", "ctr"] {
        link(&format!("/usr/bin/{name}"), &overlay.join("usr/local/bin").join(name))?;
    }
    for name in ["host-local", "loopback", "ptp", "portmap"] {
        link(&format!("/usr/lib/cni/{name}"), &overlay.join("opt/cni/bin").join(name))?;
    }
    link("/usr/local/sbin/nodetool", &overlay.join("opt/cni/bin/netpol-gate"))?;
    for unit in UNITS {
        let wants = overlay.join("etc/systemd/system/multi-user.target.wants").join(format!("{unit}.service"));
        link(&format!("/etc/systemd/system/{unit}.service"), &wants)?;
    }
    node_images(&overlay.join("kind/images.tar"), &images, parts)
}

/// The images that the node starts with, under the names that kubeadm asks for.
fn node_images(out: &Path, names: &[String], parts: &Parts) -> Result<()> {
    let servers = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy"];
    let links: Vec<String> = servers.iter().map(|name| format!("usr/local/bin/{name}")).collect();
    let mut entries = vec![Entry::File(&parts.kubernetes, "usr/local/bin/devcluster")];
    entries.extend(links.iter().map(|link| Entry::Link(link, "devcluster")));
    let kubernetes = Layer::new(&entries)?;
    let nft = nft_layer()?;
    let coredns = Layer::new(&[Entry::File(&parts.coredns, "coredns")])?;
    let pause = Layer::new(&[Entry::File(&parts.tools, "pause")])?;
    let images: Vec<Image<'_>> = names
        .iter()
        .map(|name| {
            let short = name.rsplit('/').next().and_then(|last| last.split(':').next()).unwrap_or_default();
            let (layers, entrypoint, user) = match short {
                "pause" => (vec![&pause], vec!["/pause".to_owned()], "65535:65535"),
                "coredns" => (vec![&coredns], vec!["/coredns".to_owned()], ""),
                "kube-proxy" => (vec![&nft, &kubernetes], Vec::new(), ""),
                _ => (vec![&kubernetes], Vec::new(), ""),
            };
            Image { names: vec![name.clone()], layers, entrypoint, user }
        })
        .collect();
    image_tar::write(out, &images)
}

/// kube-proxy calls `nft`: the program of this machine with the libraries that it is linked to.
fn nft_layer() -> Result<Layer> {
    let nft = sh::which("nft").context("nft is not on PATH: install the package nftables")?;
    let listed = sh::output(Command::new("ldd").arg(&nft))?;
    let mut files: BTreeSet<PathBuf> =
        listed.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect();
    files.insert(nft);
    let targets: Vec<(PathBuf, String)> =
        files.into_iter().map(|file| (file.clone(), file.to_string_lossy()[1..].to_owned())).collect();
    let entries: Vec<Entry<'_>> = targets.iter().map(|(source, target)| Entry::File(source, target)).collect();
    Layer::new(&entries)
}

fn kubeadm_images(kubernetes: &Path) -> Result<Vec<String>> {
    let folder = kubernetes.parent().unwrap_or(kubernetes);
    gobuild::link(kubernetes, folder, &["kubeadm"])?;
    let list = sh::output(
        Command::new(folder.join("kubeadm"))
            .args(["config", "images", "list", "--kubernetes-version"])
            .arg(gobuild::KUBERNETES),
    )?;
    Ok(list.lines().map(str::to_owned).collect())
}

fn kind_module() -> PathBuf {
    paths::repo().join("devcluster/kind")
}

fn program(source: &Path, target: &Path) -> Result<()> {
    paths::ensure(target.parent().unwrap_or(target).to_owned())?;
    std::fs::copy(source, target).with_context(|| format!("cannot copy {}", source.display()))?;
    Ok(())
}

fn link(to: &str, at: &Path) -> Result<()> {
    paths::ensure(at.parent().unwrap_or(at).to_owned())?;
    symlink(to, at).with_context(|| format!("cannot link {}", at.display()))
}

/// Copies the files; scripts (in a `bin` folder) become executable, the rest readable.
fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    for file in files(from)? {
        let target = to.join(file.strip_prefix(from)?);
        paths::ensure(target.parent().unwrap_or(to).to_owned())?;
        let _ = std::fs::remove_file(&target);
        std::fs::copy(&file, &target).with_context(|| format!("cannot copy {}", file.display()))?;
        let script = file.parent().is_some_and(|dir| dir.ends_with("bin"));
        std::fs::set_permissions(&target, PermissionsExt::from_mode(if script { 0o755 } else { 0o644 }))?;
    }
    Ok(())
}

/// All files below the folder, in a fixed order.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() { found.extend(files(&path)?) } else { found.push(path) }
    }
    found.sort();
    Ok(found)
}
