//! Our own programs, compiled for images.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::{paths, sh};

/// The Debian of the images.
const BOOKWORM: u32 = 12;

/// A binary and the package that has it.
pub(super) const OPERATOR: (&str, &str) = ("agentapi-operator", "agentapi-operator");
pub(super) const RUNTIME: (&str, &str) = ("agentapi-runtime", "agentapi-runtime");
pub(super) const FAKE_MODEL: (&str, &str) = ("fake-model", "agentapi-tests");

/// The binaries on disk.
pub(super) struct Binaries {
    folder: PathBuf,
    /// They need nothing from the image. Otherwise they need Debian's C library.
    pub(super) is_static: bool,
}

/// Builds all binaries in one run of cargo: always the same set, so that features resolve the same way every time.
///
/// They are static, built in a target folder of their own: other flags than a developer's build would throw its
/// artefacts away, and a clean checkout does not start cold. For the profile `dev` on the Debian that the images have,
/// the developer's own target folder serves: nothing is compiled twice.
pub(super) fn build(profile: &str) -> Result<Binaries> {
    let shares_target = profile == "dev" && debian_major() == Some(BOOKWORM);
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(paths::repo()).args(["build", "--locked", "--profile", profile]);
    for (binary, package) in [OPERATOR, RUNTIME, FAKE_MODEL] {
        command.args(["--package", package, "--bin", binary]);
    }
    // The profile `dev` is the one whose folder has another name.
    let built = if profile == "dev" { "debug" } else { profile };
    let folder = if shares_target {
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| paths::repo().join("target"), PathBuf::from);
        target.join(built)
    } else {
        let (target, folder) = (host()?, paths::ensure(paths::cache()?.join("target"))?);
        command.args(["--target", &target]);
        command.env("CARGO_TARGET_DIR", &folder).env("RUSTFLAGS", "-C target-feature=+crt-static");
        folder.join(target).join(built)
    };
    let (log, start) = (paths::logs()?.join("images-cargo.log"), Instant::now());
    println!("  start  cargo build --profile {profile} (log: {})", log.display());
    sh::logged(&mut command, &log)?;
    println!("  ok     cargo build --profile {profile} ({:.1} s)", start.elapsed().as_secs_f64());
    Ok(Binaries { folder, is_static: !shares_target })
}

impl Binaries {
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// This machine's Debian, if it is one.
fn debian_major() -> Option<u32> {
    let version = std::fs::read_to_string("/etc/debian_version").ok()?;
    version.trim().split('.').next()?.parse().ok()
}

/// The compiler's own target; naming it keeps the static flag away from build scripts and macros.
fn host() -> Result<String> {
    let version = sh::output(Command::new("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc -vV does not name its host")
}
