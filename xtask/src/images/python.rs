//! Python packages by lock file, for the Python 3.11 of Debian bookworm.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::layer;
use crate::{cache, debian, paths, progress, sh};

/// `pip`, from wherever the machine has it.
pub(super) fn pip() -> Result<Command> {
    if sh::output(Command::new("python3").args(["-m", "pip", "--version"])).is_err() {
        debian::ensure(&[("/usr/lib/python3/dist-packages/pip/__init__.py", "python3-pip")])?;
    }
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--upgrade"]);
    Ok(pip)
}

/// Installs what `images/<name>/requirements.txt` lists, once, and gives back the folder and what it was made from.
pub(super) fn packages(name: &str) -> Result<(PathBuf, String)> {
    let list = format!("{name}/requirements.txt");
    let key = layer::key(&[b"python 3.11", &layer::input(&list)?]);
    let folder = paths::ensure(paths::cache()?.join("python"))?.join(format!("{name}-{}", &key[..16]));
    let _lock = layer::lock()?;
    if !folder.exists() {
        progress::step(&format!("Python packages for {name}"), || {
            let part = folder.with_extension("part");
            let mut pip = pip()?;
            pip.args(["--no-compile", "--only-binary", ":all:", "--python-version", "3.11", "--target"]).arg(&part);
            pip.arg("-r").arg(paths::repo().join("images").join(&list));
            sh::logged(&mut pip, &paths::logs()?.join(format!("images-python-{name}.log")))?;
            std::fs::rename(&part, &folder).with_context(|| format!("cannot make {}", folder.display()))
        })?;
    }
    cache::used(&folder);
    Ok((folder, key))
}
