//! The native cluster: real Kubernetes straight on this machine, one node, state
//! in one folder. For machines where kind cannot run or no node image can be had.
//! It touches: its state folder, one network device, kube-proxy's nftables
//! tables, one control group. `down` takes all of it back.

mod addons;
mod config;
mod layout;
mod machine;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::procs::Procs;
use crate::progress::{step, wait_for};
use crate::{debian, gobuild, paths, sh};
use layout::{API_PORT, Layout, NODE, NODE_IP};

const NEEDS: &[debian::Need] = &[
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("/usr/lib/cni/ptp", "containernetworking-plugins"),
    ("nft", "nftables"),
    ("conntrack", "conntrack"),
    ("ip", "iproute2"),
    ("mount", "mount"),
];
const MULTI_CALL: &[&str] = &[
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "kubectl",
    "kubeadm",
    "netpol",
    "local-path",
];
/// Stopped after the others, in this order; containerd last, when the pods are gone.
const STOPPED_LATE: &[&str] = &["kube-apiserver", "etcd", "containerd"];

/// What the images, the containers and a build take together, with some to spare.
const ROOM_MIB: u64 = 12 * 1024;

/// Starts what does not run yet; with everything running it only looks.
pub(crate) fn up() -> Result<()> {
    if !debian::is_root() {
        bail!("the native cluster needs root (network devices, mounts): run this as root, or use --cluster kind");
    }
    debian::ensure(NEEDS)?;
    let programs = gobuild::build(&gobuild::DEVCLUSTER)?.parent().map(Path::to_path_buf).unwrap_or_default();
    gobuild::link(&programs.join("devcluster"), &programs, MULTI_CALL)?;
    let tools = gobuild::build(&gobuild::NODETOOL)?.parent().map(Path::to_path_buf).unwrap_or_default();
    gobuild::link(&tools.join("nodetool"), &tools, &["pause", "runc-nosys", "forward", "netpol-gate"])?;
    let coredns = gobuild::build(&gobuild::COREDNS)?;
    let helm = gobuild::build(&gobuild::HELM)?;
    let bin = paths::bin()?;
    gobuild::link(&programs.join("kubectl"), &bin, &["kubectl"])?;
    gobuild::link(&helm, &bin, &["helm"])?;

    let layout = Layout::new()?;
    tell_of_room(&layout)?;
    step("network and control groups", || {
        machine::network_up(&layout)?;
        machine::cgroups_up(&layout)
    })?;
    let mut procs = Procs::open(layout.root.join("processes.json"), layout.dir("log")?)?;
    step("certificates", || certificates(&layout, &programs))?;
    step("etcd, API server, containerd", || control_plane(&layout, &programs, &tools, &mut procs))?;
    let new = step("images of the cluster itself", || addons::images(&layout, &tools, &coredns))?;
    step("node", || node(&layout, &programs, &mut procs))?;
    step("cluster DNS", || addons::apply(&programs, new))?;
    procs.ensure("forward", &tools.join("forward"), &["127.0.0.1:8080".to_owned(), format!("{NODE_IP}:30080")], "")
}

/// A node without room takes no pods and ends those that it has, and says so only in its conditions.
fn tell_of_room(layout: &Layout) -> Result<()> {
    let shown = sh::output(Command::new("df").args(["--output=avail", "-B1M"]).arg(&layout.root))?;
    let free: Option<u64> = shown.lines().last().and_then(|line| line.trim().parse().ok());
    if let Some(free) = free.filter(|free| *free < ROOM_MIB) {
        println!("  note   only {free} MiB are free below {}: images and builds may not fit", layout.root.display());
    }
    Ok(())
}

/// Stops and removes everything that `up` made.
pub(crate) fn down() -> Result<()> {
    let layout = Layout::new()?;
    if !layout.root.join("processes.json").exists() {
        // Nothing of ours: the tables in the kernel would be another user's.
        return Ok(());
    }
    let mut procs = Procs::open(layout.root.join("processes.json"), layout.dir("log")?)?;
    step("stop the processes", || {
        for name in procs.names().iter().map(String::as_str).filter(|name| !STOPPED_LATE.contains(name)) {
            procs.stop(name)?;
        }
        procs.stop("kube-apiserver")?;
        procs.stop("etcd")?;
        machine::cgroups_down(&layout)?;
        addons::remove_containers(&layout);
        procs.stop("containerd")
    })?;
    step("remove network, mounts and state", || {
        super::unmount_below(&layout.root);
        machine::network_down(&layout);
        addons::remove_leftovers(&layout);
        std::fs::remove_dir_all(&layout.root)
            .with_context(|| format!("cannot remove {}: is something still mounted there?", layout.root.display()))?;
        let _ = std::fs::remove_file(paths::kubeconfig()?);
        Ok(())
    })
}

/// Loads an image tar into the node.
pub(crate) fn load(tar: &Path) -> Result<()> {
    addons::import(&Layout::new()?, tar)
}

/// Whether this user's native cluster has a running API server.
pub(crate) fn running() -> Result<bool> {
    let root = paths::cache()?.join("cluster").join("native");
    if !root.join("processes.json").exists() {
        return Ok(false);
    }
    Ok(Procs::open(root.join("processes.json"), root.join("log"))?.alive("kube-apiserver"))
}

/// Keys, certificates and kubeconfig files as kubeadm makes them; existing ones are kept.
fn certificates(layout: &Layout, programs: &Path) -> Result<()> {
    let file = layout.root.join("kubeadm.yaml");
    std::fs::write(&file, config::kubeadm(layout))?;
    let pki = layout.dir("pki")?;
    let log = layout.dir("log")?.join("kubeadm.log");
    if !pki.join("admin.conf").exists() {
        for phase in [&["certs", "all"][..], &["kubeconfig", "all"][..]] {
            let mut command = Command::new(programs.join("kubeadm"));
            command.args(["init", "phase"]).args(phase).arg("--config").arg(&file);
            if phase[0] == "kubeconfig" {
                command.arg("--kubeconfig-dir").arg(&pki);
            }
            sh::logged(&mut command, &log)?;
        }
    }
    for (name, user) in [("kube-proxy.conf", "system:kube-proxy"), ("node-helper.conf", "agentapi:node-helper")] {
        let target = pki.join(name);
        if !target.exists() {
            let text = sh::output(
                Command::new(programs.join("kubeadm"))
                    .args(["kubeconfig", "user", "--client-name", user, "--config"])
                    .arg(&file),
            )?;
            write_private(&target, text.as_bytes())?;
        }
    }
    write_private(&paths::kubeconfig()?, &std::fs::read(pki.join("admin.conf"))?)
}

fn control_plane(layout: &Layout, programs: &Path, tools: &Path, procs: &mut Procs) -> Result<()> {
    let plugins = layout.dir("cni-bin")?;
    for name in ["ptp", "host-local", "loopback"] {
        gobuild::link(&Path::new("/usr/lib/cni").join(name), &plugins, &[name])?;
    }
    gobuild::link(&tools.join("nodetool"), &plugins, &["netpol-gate"])?;
    layout.dir("cni")?;
    std::fs::write(layout.root.join("cni").join("10-agentapi.conflist"), config::cni(layout))?;
    let wrapper = tools.join("runc-nosys").to_string_lossy().into_owned();
    let wrapper = (!super::has_sys_resource()).then_some(wrapper.as_str());
    let file = layout.root.join("containerd.toml");
    let text = config::containerd(layout, wrapper);
    std::fs::write(&file, &text)?;
    procs.ensure(
        "containerd",
        &program("containerd")?,
        &["--config".to_owned(), file.to_string_lossy().into_owned()],
        &text,
    )?;
    procs.ensure("etcd", &programs.join("etcd"), &config::etcd_args(layout), "")?;
    procs.ensure("kube-apiserver", &programs.join("kube-apiserver"), &config::api_server_args(layout), "")?;
    let kubectl = |args: &[&str]| {
        sh::probe(
            Command::new(programs.join("kubectl"))
                .args(["--request-timeout=5s", "--kubeconfig"])
                .arg(layout.path("pki/super-admin.conf"))
                .args(args),
        )
    };
    alive_until(procs, &["containerd", "etcd", "kube-apiserver"], "the API server", || {
        kubectl(&["get", "--raw", "/readyz"]).map(drop)
    })?;
    let manifests = paths::repo().join("devcluster/manifests");
    for name in ["bootstrap.yaml", "storage.yaml"] {
        // A fresh API server is ready a moment before it has all that apply asks for.
        let manifest = manifests.join(name);
        wait_for(name, Duration::from_secs(60), || kubectl(&["apply", "-f", &manifest.to_string_lossy()]).map(drop))?;
    }
    procs.ensure(
        "kube-controller-manager",
        &programs.join("kube-controller-manager"),
        &config::controller_manager_args(layout),
        "",
    )?;
    procs.ensure("kube-scheduler", &programs.join("kube-scheduler"), &config::scheduler_args(layout), "")
}

fn node(layout: &Layout, programs: &Path, procs: &mut Procs) -> Result<()> {
    let (kubelet, kube_proxy) = (config::kubelet(layout), config::kube_proxy(layout));
    // kube-proxy ends when its file is touched, changed or not.
    write_changed(&layout.root.join("kubelet.yaml"), &kubelet)?;
    write_changed(&layout.root.join("kube-proxy.yaml"), &kube_proxy)?;
    layout.dir("kubelet")?;
    let socket = format!("--socket={}", layout.path("netpol.sock"));
    procs.ensure("netpol", &programs.join("netpol"), &config::helper_args(layout, &socket), "")?;
    let base = format!("--base={}", layout.dir("volumes")?.display());
    procs.ensure("local-path", &programs.join("local-path"), &config::helper_args(layout, &base), "")?;
    procs.ensure("kubelet", &programs.join("kubelet"), &config::kubelet_args(layout), &kubelet)?;
    procs.ensure(
        "kube-proxy",
        &programs.join("kube-proxy"),
        &[format!("--config={}", layout.path("kube-proxy.yaml"))],
        &kube_proxy,
    )?;
    let node = format!("node/{NODE}");
    alive_until(
        procs,
        &["kubelet", "kube-proxy", "netpol", "local-path", "kube-controller-manager", "kube-scheduler"],
        "the node",
        || {
            sh::probe(
                Command::new(programs.join("kubectl")).arg("--kubeconfig").arg(layout.path("pki/admin.conf")).args([
                    "wait",
                    "--for=condition=Ready",
                    "--timeout=2s",
                    &node,
                ]),
            )
            .map(drop)
        },
    )
}

/// Polls, and fails at once when one of the processes is gone.
fn alive_until(
    procs: &Procs,
    names: &[&str],
    what: &str,
    mut ready: impl FnMut() -> std::result::Result<(), String>,
) -> Result<()> {
    let mut dead = None;
    let result = wait_for(&format!("{what} on port {API_PORT}"), Duration::from_mins(2), || {
        if let Some(error) = names.iter().find_map(|name| procs.check(name).err()) {
            dead = Some(error);
            return Ok(());
        }
        ready()
    });
    dead.map_or(result, Err)
}

fn program(name: &str) -> Result<PathBuf> {
    sh::which(name).with_context(|| format!("{name} is not on PATH"))
}

/// Writes the file unless it holds this text already.
fn write_changed(file: &Path, text: &str) -> Result<()> {
    if std::fs::read_to_string(file).is_ok_and(|before| before == text) {
        return Ok(());
    }
    std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

/// A file that only this user may read.
pub(super) fn write_private(file: &Path, body: &[u8]) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let partial = file.with_extension("partial");
    let _ = std::fs::remove_file(&partial);
    std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial)?.write_all(body)?;
    std::fs::rename(&partial, file).with_context(|| format!("cannot write {}", file.display()))
}
