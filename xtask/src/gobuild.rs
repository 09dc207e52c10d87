//! Builds of the Go programs in `devcluster/`, kept by a hash of what goes into
//! them, so that a second run builds nothing.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::{cache, paths, progress, sh};

/// The version that the Kubernetes parts say they are; the same as in `devcluster/go.mod`.
pub(crate) const KUBERNETES: &str = "v1.34.4";

/// One program: the module's folder under `devcluster/`, the package, and what the linker is told.
pub(crate) struct Program {
    /// File name of the result.
    pub(crate) name: &'static str,
    module: &'static str,
    package: &'static str,
    variables: &'static [&'static str],
}

/// Kubernetes and what belongs to it.
pub(crate) const DEVCLUSTER: Program = Program {
    name: "devcluster",
    module: ".",
    package: ".",
    variables: &[
        "k8s.io/component-base/version.gitVersion=v1.34.4",
        "k8s.io/component-base/version.gitMajor=1",
        "k8s.io/component-base/version.gitMinor=34",
        "k8s.io/component-base/version.gitTreeState=clean",
    ],
};
/// The small programs of a node.
pub(crate) const NODETOOL: Program = Program { name: "nodetool", module: ".", package: "./nodetool", variables: &[] };
/// Cluster DNS.
pub(crate) const COREDNS: Program = Program { name: "coredns", module: "coredns", package: ".", variables: &[] };
/// Helm, for the charts.
pub(crate) const HELM: Program = Program {
    name: "helm",
    module: "helm",
    package: "helm.sh/helm/v3/cmd/helm",
    variables: &["helm.sh/helm/v3/internal/version.version=v3.22.0"],
};

/// kind, for the cluster in containers.
pub(crate) const KIND: Program = Program { name: "kind", module: "kind", package: "sigs.k8s.io/kind", variables: &[] };

/// Gives the path of the program, building it if these inputs were not built before.
pub(crate) fn build(program: &Program) -> Result<PathBuf> {
    let go = toolchain()?;
    let module = paths::repo().join("devcluster").join(program.module);
    let dir = paths::cache()?.join("go").join(format!("{}-{}", program.name, fingerprint(program, &module, &go)?));
    let file = dir.join(program.name);
    if file.is_file() {
        cache::used(&dir);
        return Ok(file);
    }
    paths::ensure(dir)?;
    progress::step(&format!("build {} (minutes the first time)", program.name), || {
        let partial = file.with_extension("partial");
        let log = paths::logs()?.join(format!("go-build-{}.log", program.name));
        let mut command = Command::new(&go);
        command
            .current_dir(&module)
            .args(["build", "-p", "2", "-trimpath", "-buildvcs=false", "-ldflags", &ldflags(program), "-o"])
            .arg(&partial)
            .arg(program.package)
            .envs(environment());
        sh::logged(&mut command, &log)
            .context("if a module could not be fetched, check the network and run the same command again")?;
        std::fs::rename(&partial, &file).with_context(|| format!("cannot move {} into place", partial.display()))
    })?;
    Ok(file)
}

/// Runs the tests of the part that enforces network policies; the first time it compiles for some minutes.
pub(crate) fn test() -> Result<()> {
    let mut command = Command::new(toolchain()?);
    command
        .current_dir(paths::repo().join("devcluster"))
        .args(["test", "-p", "2", "-trimpath", "./netpol"])
        .envs(environment());
    sh::logged(&mut command, &paths::logs()?.join("go-test.log"))
}

/// Links the program under the names into the folder of fixed paths.
pub(crate) fn link(file: &Path, dir: &Path, names: &[&str]) -> Result<()> {
    for name in names {
        let link = dir.join(name);
        if std::fs::read_link(&link).is_ok_and(|target| target == file) {
            continue;
        }
        let fresh = dir.join(format!(".{name}.new"));
        let _ = std::fs::remove_file(&fresh);
        std::os::unix::fs::symlink(file, &fresh)
            .and_then(|()| std::fs::rename(&fresh, &link))
            .with_context(|| format!("cannot link {}", link.display()))?;
    }
    Ok(())
}

/// Static, so that the same file runs in an image without a C library.
fn environment() -> [(&'static str, &'static str); 3] {
    [("CGO_ENABLED", "0"), ("GOFLAGS", "-mod=readonly"), ("GOWORK", "off")]
}

fn ldflags(program: &Program) -> String {
    let mut flags = String::from("-s -w");
    for variable in program.variables {
        flags.push_str(" -X ");
        flags.push_str(variable);
    }
    flags
}

fn toolchain() -> Result<PathBuf> {
    sh::which("go")
        .or_else(|| Some(PathBuf::from("/usr/local/go/bin/go")).filter(|file| file.is_file()))
        .context("no Go found: install Go 1.26 or newer and put `go` on PATH (Debian 12's own is too old)")
}

fn fingerprint(program: &Program, module: &Path, go: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update(sh::output(Command::new(go).arg("version").current_dir(module))?);
    hash.update(ldflags(program));
    hash.update(program.package);
    for (name, value) in environment() {
        hash.update(format!("{name}={value};"));
    }
    let mut files = Vec::new();
    sources(module, &mut files)?;
    if files.is_empty() {
        bail!("no Go source in {}: is this a complete checkout?", module.display());
    }
    files.sort();
    for file in files {
        hash.update(file.strip_prefix(module).unwrap_or(&file).to_string_lossy().as_bytes());
        hash.update(std::fs::read(&file)?);
    }
    Ok(hex::encode(&hash.finalize()[..6]))
}

/// Everything that the compiler of this module reads; a folder with a `go.mod` of its own is another module.
fn sources(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if !path.join("go.mod").exists() {
                sources(&path, files)?;
            }
        } else if path.extension().is_some_and(|kind| kind == "go") && !name.ends_with("_test.go")
            || name == "go.mod"
            || name == "go.sum"
        {
            files.push(path);
        }
    }
    Ok(())
}
