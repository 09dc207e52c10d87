//! System packages: installed when we may (root on Debian), else named.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{paths, progress, sh};

/// A program that must be there, and the Debian package that brings it.
pub(crate) type Need = (&'static str, &'static str);

/// Makes sure that every program is there. A `Need` starting with `/` is a file, else a name on PATH.
pub(crate) fn ensure(needs: &[Need]) -> Result<()> {
    let mut missing: Vec<&str> =
        needs.iter().filter(|(probe, _)| !present(probe)).map(|(_, package)| *package).collect();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !Path::new("/etc/debian_version").exists() || !is_root() {
        bail!(
            "these Debian packages are needed and not installed: {list}\ninstall them as root: apt-get install -y {list}"
        );
    }
    progress::step(&format!("install {list}"), || {
        let logs = paths::logs()?;
        sh::logged(apt_get().args(["update", "-qq"]), &logs.join("apt-update.log"))?;
        let mut install = apt_get();
        install.args(["install", "-y", "-qq", "--no-install-recommends"]).args(&missing);
        // Installing must not start system-wide daemons: the cluster runs its own.
        install.env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1");
        sh::logged(&mut install, &logs.join("apt-install.log"))
    })
}

/// Downloads that break off are tried again.
fn apt_get() -> Command {
    let mut apt_get = Command::new("apt-get");
    apt_get.args(["-o", "Acquire::Retries=3"]);
    apt_get
}

/// A program out of a Debian package, without installing the package and the service that it would start.
pub(crate) fn unpacked(name: &str, package: &str) -> Result<PathBuf> {
    if let Some(program) = sh::which(name) {
        return Ok(program);
    }
    let program = paths::bin()?.join(name);
    if program.exists() {
        return Ok(program);
    }
    progress::step(&format!("{name} from the Debian package {package}"), || {
        let (logs, folder) = (paths::logs()?, tempfile::tempdir()?);
        if is_root() {
            sh::logged(apt_get().args(["update", "-qq"]), &logs.join("apt-update.log"))?;
        }
        let mut download = apt_get();
        download.current_dir(folder.path()).args(["download", "-qq", package]);
        sh::logged(&mut download, &logs.join("apt-download.log")).with_context(|| {
            format!("{name} is not on PATH; install it, for example with apt-get install {package}")
        })?;
        for file in std::fs::read_dir(folder.path())? {
            sh::output(Command::new("dpkg-deb").arg("-x").arg(file?.path()).arg(folder.path().join("root")))?;
        }
        std::fs::copy(folder.path().join("root/usr/bin").join(name), &program)?;
        Ok(program)
    })
}

fn present(probe: &str) -> bool {
    if probe.starts_with('/') { Path::new(probe).exists() } else { sh::which(probe).is_some() }
}

/// Whether this process may do what root may.
pub(crate) fn is_root() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| {
        status.lines().any(|line| line.starts_with("Uid:") && line.split_whitespace().nth(2) == Some("0"))
    })
}
