//! Our own programs as static binaries. They are built in a target folder of their own: other flags than a developer's
//! build would throw its artefacts away, and a clean checkout does not start cold.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::{paths, progress, sh};

/// A binary and the package that has it.
pub(super) const OPERATOR: (&str, &str) = ("agentapi-operator", "agentapi-operator");
pub(super) const RUNTIME: (&str, &str) = ("agentapi-runtime", "agentapi-runtime");
pub(super) const FAKE_MODEL: (&str, &str) = ("fake-model", "agentapi-tests");

/// Builds the binaries in one run of cargo and gives back the folder that they are in.
pub(super) fn build(binaries: &[(&str, &str)], profile: &str) -> Result<PathBuf> {
    let target = host()?;
    let folder = paths::ensure(paths::cache()?.join("target"))?;
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(paths::repo()).args(["build", "--locked", "--profile", profile, "--target", &target]);
    for (binary, package) in binaries {
        command.args(["--package", package, "--bin", binary]);
    }
    command.env("CARGO_TARGET_DIR", &folder).env("RUSTFLAGS", "-C target-feature=+crt-static");
    let names: Vec<&str> = binaries.iter().map(|(binary, _)| *binary).collect();
    progress::step(&format!("cargo build --profile {profile}: {}", names.join(", ")), || {
        sh::logged(&mut command, &paths::logs()?.join("images-cargo.log"))
    })?;
    // The profile `dev` is the one whose folder has another name.
    Ok(folder.join(target).join(if profile == "dev" { "debug" } else { profile }))
}

/// The compiler's own target; naming it keeps the static flag away from build scripts and macros.
fn host() -> Result<String> {
    let version = sh::output(Command::new("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc -vV does not name its host")
}
