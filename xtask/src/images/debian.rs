//! The Debian layers: one root file system, and packages installed on top of it in an overlay. Needs root.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use super::layer::{self, Layer};
use crate::{cache, debian, paths, progress, sh};

/// What a package manager leaves behind and no container needs, or what would differ between two builds.
const LEFT_OUT: &[&str] = &[
    "dev",
    "proc",
    "sys",
    "run",
    "tmp",
    "boot",
    "etc/machine-id",
    "etc/resolv.conf",
    "etc/hostname",
    "etc/ssl/private/ssl-cert-snakeoil.key",
    "etc/ssl/certs/ssl-cert-snakeoil.pem",
    "usr/sbin/policy-rc.d",
    "usr/share/doc",
    "usr/share/man",
    "usr/share/info",
    "usr/share/locale",
    "var/cache",
    "var/lib/apt/lists",
    "var/log",
    "var/tmp",
];

/// The root file system on disk, and as a layer.
pub(super) struct Base {
    root: PathBuf,
    key: String,
    /// The bottom layer of every image that has a shell.
    pub(super) layer: Layer,
}

/// Makes the root file system, or finds the one that was made from the same list of packages.
pub(super) fn base() -> Result<Base> {
    let packages = packages("debian/packages.txt")?;
    let key = layer::key(&[b"debian bookworm minbase", packages.join(" ").as_bytes()]);
    let root = paths::ensure(paths::cache()?.join("rootfs"))?.join(&key[..16]);
    let lock = layer::lock()?;
    if !root.join("etc/debian_version").exists() {
        need_root()?;
        debian::ensure(&[("mmdebstrap", "mmdebstrap")])?;
        progress::step("Debian root file system", || {
            let part = root.with_extension("part");
            if part.exists() {
                std::fs::remove_dir_all(&part)?;
            }
            let mut command = Command::new("mmdebstrap");
            command.args(["--variant=minbase", "--mode=root", &format!("--include={}", packages.join(","))]);
            command.args(["--aptopt=Acquire::Languages \"none\"", "--aptopt=APT::Install-Recommends \"false\""]);
            for folder in ["doc", "man", "info", "locale"] {
                command.arg(format!("--dpkgopt=path-exclude=/usr/share/{folder}/*"));
            }
            command.arg("bookworm").arg(&part).env("SOURCE_DATE_EPOCH", layer::TIME.to_string());
            sh::logged(&mut command, &paths::logs()?.join("images-debian.log"))?;
            Ok(std::fs::rename(&part, &root)?)
        })?;
    }
    cache::used(&root);
    drop(lock);
    let layer = layer::cached("debian", &key, |tar| {
        layer::tree(tar, &root, Path::new(""), &kept)?;
        empty_folders(tar)
    })?;
    Ok(Base { root, key, layer })
}

impl Base {
    /// The bundle of certificate authorities, for images without a package manager.
    pub(super) fn certificates(&self) -> PathBuf {
        self.root.join("etc/ssl/certs/ca-certificates.crt")
    }

    /// A layer with further packages: what an installation on top of the root file system changed.
    /// `user` is `name:uid:home`; it is made first, so that packages find it.
    pub(super) fn with_packages(&self, name: &str, list: &str, user: &str) -> Result<Layer> {
        let packages = packages(list)?;
        let script = layer::input("debian/install.sh")?;
        let key = layer::key(&[self.key.as_bytes(), packages.join(" ").as_bytes(), user.as_bytes(), &script]);
        layer::cached(name, &key, |tar| {
            need_root()?;
            progress::step(&format!("packages for {name}"), || {
                let work = paths::ensure(paths::cache()?.join("rootfs"))?.join(format!("{name}.work"));
                if work.exists() {
                    std::fs::remove_dir_all(&work)?;
                }
                let upper = paths::ensure(work.join("upper"))?;
                let mut command = Command::new("unshare");
                command.args(["--mount", "--propagation", "private", "sh"]);
                command
                    .arg(paths::repo().join("images/debian/install.sh"))
                    .args([&self.root, &work])
                    .arg(user)
                    .args(&packages);
                command.env("SOURCE_DATE_EPOCH", layer::TIME.to_string());
                sh::logged(&mut command, &paths::logs()?.join(format!("images-{name}.log")))?;
                layer::tree(tar, &upper, Path::new(""), &kept)?;
                Ok(std::fs::remove_dir_all(&work)?)
            })
        })
    }
}

/// The folders that are left out with what is in them, but must be there.
fn empty_folders<W: std::io::Write>(tar: &mut tar::Builder<W>) -> Result<()> {
    for (name, mode) in [
        ("dev", 0o755),
        ("proc", 0o555),
        ("run", 0o755),
        ("sys", 0o555),
        ("tmp", 0o1777),
        ("var/cache", 0o755),
        ("var/lib/apt/lists", 0o755),
        ("var/log", 0o755),
        ("var/tmp", 0o1777),
    ] {
        let mut head = layer::header(mode, 0, 0);
        head.set_entry_type(tar::EntryType::Directory);
        tar.append_data(&mut head, name, std::io::empty())?;
    }
    Ok(())
}

fn kept(path: &Path) -> bool {
    let backup = path.extension().is_some_and(|end| end == "dpkg-old") || path.to_string_lossy().ends_with("-old");
    !backup && !LEFT_OUT.iter().any(|left_out| path == Path::new(left_out))
}

/// The package names in a file: one a line, `#` starts a remark.
fn packages(list: &str) -> Result<Vec<String>> {
    let text = String::from_utf8(layer::input(list)?)?;
    let names = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    Ok(names.filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

fn need_root() -> Result<()> {
    if !debian::is_root() {
        bail!(
            "a Debian root file system is made as root: run `cargo xtask images` with sudo once; later runs reuse it"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    #[test]
    fn lists_have_names_without_remarks() {
        for list in ["debian/packages.txt", "session/packages.txt", "postgres/packages.txt", "mcp-server/packages.txt"]
        {
            let names = packages(list).unwrap();
            assert!(!names.is_empty() && names.iter().all(|name| !name.contains([' ', '#'])), "{list}: {names:?}");
        }
    }

    #[test]
    fn keys_and_caches_stay_out_but_not_what_only_looks_alike() {
        for path in ["var/cache", "etc/ssl/private/ssl-cert-snakeoil.key", "etc/shadow-", "var/lib/dpkg/status-old"] {
            assert_eq!(kept(Path::new(path)), path == "etc/shadow-", "{path}");
        }
        assert!(kept(Path::new("usr/share/locales")));
    }
}
