//! What the native cluster asks of the kernel: a device, routes, forwarding and
//! control groups; and taking all of it back.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::layout::{Layout, NODE_IP, PODS, SERVICES};
use crate::sh;

const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

/// The device with the node's address. Pod and service ranges are routed to it, so
/// that what no rule catches ends there and never leaves the machine.
pub(crate) fn network_up(layout: &Layout) -> Result<()> {
    let device = layout.device();
    if ip(&["link", "show", "dev", &device]).is_err() {
        ip(&["link", "add", &device, "type", "bridge"])?;
    }
    ip(&["addr", "replace", &format!("{NODE_IP}/32"), "dev", &device])?;
    ip(&["link", "set", &device, "up"])?;
    for range in [PODS, SERVICES] {
        ip(&["route", "replace", range, "dev", &device, "src", NODE_IP])?;
    }
    let before = std::fs::read_to_string(FORWARDING).context("cannot read the forwarding setting")?;
    let kept = layout.root.join("ip_forward.before");
    if !kept.exists() {
        std::fs::write(&kept, &before)?;
    }
    if before.trim() != "1" {
        std::fs::write(FORWARDING, "1").context("cannot turn on IP forwarding: are you root on this machine?")?;
    }
    Ok(())
}

/// Removes the device, its routes and kube-proxy's tables, and puts forwarding back.
pub(crate) fn network_down(layout: &Layout) {
    let _ = ip(&["link", "del", &layout.device()]);
    for [family, table] in [["ip", "kube-proxy"], ["ip6", "kube-proxy"], ["inet", "agentapi_netpol"]] {
        let _ = sh::output(Command::new("nft").args(["delete", "table", family, table]));
    }
    if let Ok(before) = std::fs::read_to_string(layout.root.join("ip_forward.before")) {
        let _ = std::fs::write(FORWARDING, before);
    }
}

fn ip(args: &[&str]) -> Result<()> {
    sh::output(Command::new("ip").args(args)).map(drop)
}

/// One control group for all pods, so that this kubelet never takes another's pods for its own.
pub(crate) fn cgroups_up(layout: &Layout) -> Result<()> {
    for controller in cgroup_roots()? {
        let group = controller.join(layout.name());
        std::fs::create_dir_all(&group).with_context(|| format!("cannot make {}", group.display()))?;
        // A version 1 cpuset starts with no CPU at all, and then no process may enter it.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(value) = std::fs::read_to_string(controller.join(file)) {
                std::fs::write(group.join(file), value.trim())?;
            }
        }
        if controller.join("cgroup.subtree_control").exists() && !is_version_1() {
            for dir in [&controller, &group] {
                std::fs::write(dir.join("cgroup.subtree_control"), "+cpu +memory +pids +cpuset +io")
                    .with_context(|| format!("cannot pass controllers on in {}", dir.display()))?;
            }
        }
    }
    Ok(())
}

/// Kills what is left in the pods' control group (all of it is ours) and removes the group.
pub(crate) fn cgroups_down(layout: &Layout) -> Result<()> {
    for controller in cgroup_roots()? {
        let group = controller.join(layout.name());
        for dir in below(&group) {
            for pid in std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().lines() {
                let _ = sh::output(Command::new("kill").args(["-KILL", pid]));
            }
        }
        // The processes leave their group a moment after the signal.
        let _ = crate::progress::wait_for("empty control group", std::time::Duration::from_secs(5), || {
            below(&group).into_iter().try_for_each(|dir| std::fs::remove_dir(dir).map_err(|error| error.to_string()))
        });
    }
    Ok(())
}

/// The folder and all below it, deepest first.
fn below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(below(&entry.path()));
        }
    }
    if dir.exists() {
        found.push(dir.to_owned());
    }
    found
}

fn is_version_1() -> bool {
    !Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// Version 2: the one root. Version 1: one root per controller.
fn cgroup_roots() -> Result<Vec<PathBuf>> {
    let root = Path::new("/sys/fs/cgroup");
    if !is_version_1() {
        return Ok(vec![root.to_owned()]);
    }
    let mut roots = Vec::new();
    for entry in std::fs::read_dir(root).context("no control groups on this machine")? {
        let entry = entry?;
        if entry.file_type()?.is_dir() && entry.file_name() != "unified" {
            roots.push(entry.path());
        }
    }
    Ok(roots)
}
