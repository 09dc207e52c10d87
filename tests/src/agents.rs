//! Real agents for tests without a cluster, and whatever else comes from npm: installed from the lock files in
//! `images/`. `cargo xtask test` brings Node.js and the packages (`NODE`, `SESSION_CLAUDE_MODULES` and so on); by hand,
//! `node` and `npm` on PATH do.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

const REPO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Node.js.
pub fn node() -> OsString {
    std::env::var_os("NODE").unwrap_or_else(|| "node".into())
}

/// The folder that holds the `node_modules` of an image: what xtask says, else installed once per lock file.
pub fn modules(image: &str) -> Result<PathBuf> {
    static INSTALLING: Mutex<()> = Mutex::new(());
    let variable = format!("{}_MODULES", image.to_uppercase().replace('-', "_"));
    if let Some(folder) = std::env::var_os(variable) {
        return Ok(folder.into());
    }
    let _one = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    let source = Path::new(REPO).join("images").join(image);
    let lock = std::fs::read(source.join("package-lock.json"))?;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &lock);
    let folder = std::env::temp_dir().join(format!("agentapi-{image}-{}", hex::encode(&digest.as_ref()[..6])));
    if folder.exists() {
        return Ok(folder);
    }
    let part = tempfile::tempdir()?;
    for file in ["package.json", "package-lock.json", ".npmrc"] {
        std::fs::copy(source.join(file), part.path().join(file)).with_context(|| format!("images/{image}/{file}"))?;
    }
    let npm = ["ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund"];
    let done = Command::new("npm").args(npm).current_dir(part.path()).output().context("npm is not on PATH")?;
    ensure!(done.status.success(), "npm ci: {}", String::from_utf8_lossy(&done.stderr));
    // Another process may have been faster; its folder is the same.
    if let Err(error) = std::fs::rename(part.keep(), &folder)
        && !folder.exists()
    {
        bail!("cannot make {}: {error}", folder.display());
    }
    Ok(folder)
}

/// A folder with an agent's programs as its image has them in `/usr/local/bin`, and `node`; for PATH.
pub fn bin_dir(agent: &str) -> Result<PathBuf> {
    static LINKING: Mutex<()> = Mutex::new(());
    let modules = modules(&format!("session-{agent}"))?.join("node_modules");
    let file = Path::new(REPO).join(format!("runtime/src/session/agents/{agent}.json"));
    let file: Value = serde_json::from_slice(&std::fs::read(file)?)?;
    let _one = LINKING.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = modules.with_file_name("bin");
    std::fs::create_dir_all(&folder)?;
    for kind in ["programs", "scripts"] {
        for (name, path) in file["image"][kind].as_object().into_iter().flatten() {
            let target = modules.join(filled(path.as_str().context("paths are texts")?));
            ensure!(target.exists(), "{agent}: there is no {}", target.display());
            link(&target, &folder.join(name), kind == "programs")?;
        }
    }
    if let Some(program) = std::env::var_os("NODE") {
        link(Path::new(&program), &folder.join("node"), false)?;
    }
    Ok(folder)
}

/// A program must not find what is beside it in its package, as it does not in the image; a script must.
fn link(target: &Path, link: &Path, hard: bool) -> Result<()> {
    // Also another process makes these, so the link that is there may be good already.
    let made = if hard { std::fs::hard_link(target, link) } else { std::os::unix::fs::symlink(target, link) };
    match made {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("cannot link {}", link.display()))
        }
        _ => Ok(()),
    }
}

fn filled(path: &str) -> String {
    let (npm, machine) = if cfg!(target_arch = "aarch64") { ("arm64", "aarch64") } else { ("x64", "x86_64") };
    path.replace("{{arch}}", npm).replace("{{machine}}", machine)
}
