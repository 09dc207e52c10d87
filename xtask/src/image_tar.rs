//! Writes a container image of one layer as a tar that containerd and Docker load.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;
use sha2::{Digest, Sha256};

/// A file that goes into the image: where it is, and where it goes.
pub(crate) struct Entry<'a> {
    /// Path on this machine.
    pub(crate) source: &'a Path,
    /// Path in the image, without the leading slash.
    pub(crate) target: &'a str,
}

/// What the container runs.
pub(crate) struct Run<'a> {
    /// The program and its first arguments.
    pub(crate) entrypoint: &'a [&'a str],
    /// User and group, or "" for root.
    pub(crate) user: &'a str,
}

/// Writes the image under all the names; nothing from this machine (owner, time) gets into it.
pub(crate) fn write(out: &Path, names: &[String], entries: &[Entry<'_>], run: &Run<'_>) -> Result<()> {
    let mut layer = tar::Builder::new(Vec::new());
    for entry in entries {
        let body = std::fs::read(entry.source).with_context(|| format!("cannot read {}", entry.source.display()))?;
        append(&mut layer, entry.target, &body, 0o755)?;
    }
    let layer = layer.into_inner()?;
    let diff = hex::encode(Sha256::digest(&layer));
    let config = serde_json::to_vec(&json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {"Entrypoint": run.entrypoint, "User": run.user, "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{diff}")]},
    }))?;
    let config_name = format!("{}.json", hex::encode(Sha256::digest(&config)));
    let layer_name = format!("{diff}/layer.tar");
    let manifest = serde_json::to_vec(&json!([{"Config": config_name, "RepoTags": names, "Layers": [layer_name]}]))?;

    let file = std::fs::File::create(out).with_context(|| format!("cannot write {}", out.display()))?;
    let mut image = tar::Builder::new(std::io::BufWriter::new(file));
    append(&mut image, &config_name, &config, 0o644)?;
    append(&mut image, &layer_name, &layer, 0o644)?;
    append(&mut image, "manifest.json", &manifest, 0o644)?;
    image.into_inner()?.flush().with_context(|| format!("cannot write {}", out.display()))
}

fn append<W: Write>(tar: &mut tar::Builder<W>, name: &str, body: &[u8], mode: u32) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(body.len() as u64);
    header.set_mode(mode);
    tar.append_data(&mut header, name, body).with_context(|| format!("cannot add {name} to the image"))
}
