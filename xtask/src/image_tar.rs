//! Writes container images as a tar that containerd and Docker load. Images may
//! share layers; nothing of this machine (owner, time) gets into them.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;
use sha2::{Digest, Sha256};

/// Something that goes into a layer; paths in the image have no leading slash.
pub(crate) enum Entry<'a> {
    /// A program of this machine, and where it goes.
    File(&'a Path, &'a str),
    /// A link, and what it points to.
    Link(&'a str, &'a str),
}

/// One layer, ready to be written.
pub(crate) struct Layer {
    tar: Vec<u8>,
    digest: String,
}

/// An image made of layers.
pub(crate) struct Image<'a> {
    /// All its names.
    pub(crate) names: Vec<String>,
    /// From the lowest up.
    pub(crate) layers: Vec<&'a Layer>,
    /// The program and its first arguments; empty where the pod says it.
    pub(crate) entrypoint: Vec<String>,
    /// User and group, or "" for root.
    pub(crate) user: &'a str,
}

impl Layer {
    /// Packs the entries.
    pub(crate) fn new(entries: &[Entry<'_>]) -> Result<Self> {
        let mut tar = tar::Builder::new(Vec::new());
        for entry in entries {
            match entry {
                Entry::File(source, target) => {
                    let body = std::fs::read(source).with_context(|| format!("cannot read {}", source.display()))?;
                    append(&mut tar, target, &body, 0o755)?;
                }
                Entry::Link(name, target) => {
                    let mut header = tar::Header::new_gnu();
                    header.set_entry_type(tar::EntryType::Symlink);
                    header.set_size(0);
                    header.set_mode(0o777);
                    tar.append_link(&mut header, name, target)?;
                }
            }
        }
        let tar = tar.into_inner()?;
        let digest = hex::encode(Sha256::digest(&tar));
        Ok(Self { tar, digest })
    }

    fn file(&self) -> String {
        format!("{}/layer.tar", self.digest)
    }
}

/// Writes all the images into one tar.
pub(crate) fn write(out: &Path, images: &[Image<'_>]) -> Result<()> {
    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut layers: BTreeMap<String, &Layer> = BTreeMap::new();
    let mut manifest = Vec::new();
    for image in images {
        let digests: Vec<String> = image.layers.iter().map(|layer| format!("sha256:{}", layer.digest)).collect();
        let config = serde_json::to_vec(&json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": {
                "Entrypoint": image.entrypoint,
                "User": image.user,
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            },
            "rootfs": {"type": "layers", "diff_ids": digests},
        }))?;
        let name = format!("{}.json", hex::encode(Sha256::digest(&config)));
        let layer_files: Vec<String> = image.layers.iter().map(|layer| layer.file()).collect();
        manifest.push(json!({"Config": name, "RepoTags": image.names, "Layers": layer_files}));
        files.insert(name, config);
        layers.extend(image.layers.iter().map(|layer| (layer.file(), *layer)));
    }
    files.insert("manifest.json".to_owned(), serde_json::to_vec(&manifest)?);

    let file = std::fs::File::create(out).with_context(|| format!("cannot write {}", out.display()))?;
    let mut tar = tar::Builder::new(std::io::BufWriter::new(file));
    for (name, layer) in layers {
        append(&mut tar, &name, &layer.tar, 0o644)?;
    }
    for (name, body) in files {
        append(&mut tar, &name, &body, 0o644)?;
    }
    tar.into_inner()?.flush().with_context(|| format!("cannot write {}", out.display()))
}

fn append<W: Write>(tar: &mut tar::Builder<W>, name: &str, body: &[u8], mode: u32) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(body.len() as u64);
    header.set_mode(mode);
    tar.append_data(&mut header, name, body).with_context(|| format!("cannot add {name} to the image"))
}
