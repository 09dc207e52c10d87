//! The format that `docker save` writes and containerd imports: a configuration, the layers, a manifest.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::layer::{Layer, header};

/// How a container of the image is started when the pod does not say otherwise.
#[derive(Default)]
pub(super) struct Run {
    /// The program and its first arguments.
    pub(super) entrypoint: Vec<&'static str>,
    /// `uid:gid`.
    pub(super) user: &'static str,
    /// The folder it starts in.
    pub(super) folder: &'static str,
    /// Further environment, `NAME=value`.
    pub(super) env: Vec<&'static str>,
    /// Ports that it listens on.
    pub(super) ports: Vec<u16>,
}

/// An image: layers from the bottom up, and how to run it.
pub(super) struct Image {
    pub(super) name: String,
    pub(super) layers: Vec<Layer>,
    pub(super) run: Run,
}

impl Image {
    pub(super) fn reference(&self) -> String {
        format!("agentapi.dev/{}:dev", self.name)
    }

    fn config(&self) -> Result<Vec<u8>> {
        let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let env: Vec<&str> = std::iter::once(path).chain(self.run.env.iter().copied()).collect();
        let ports: serde_json::Map<String, Value> =
            self.run.ports.iter().map(|port| (format!("{port}/tcp"), json!({}))).collect();
        let diffs: Vec<String> = self.layers.iter().map(|layer| format!("sha256:{}", layer.diff)).collect();
        let history: Vec<Value> = self
            .layers
            .iter()
            .map(|layer| json!({"created": super::layer::CREATED, "created_by": layer.name}))
            .collect();
        Ok(serde_json::to_vec(&json!({
            "architecture": architecture(),
            "os": "linux",
            "created": super::layer::CREATED,
            "config": {"Entrypoint": self.run.entrypoint, "User": self.run.user, "WorkingDir": self.run.folder,
                "Env": env, "ExposedPorts": ports},
            "rootfs": {"type": "layers", "diff_ids": diffs},
            "history": history,
        }))?)
    }

    /// Digest of the configuration, which holds the digests of all layers: it names the image.
    pub(super) fn digest(&self) -> Result<String> {
        Ok(format!("sha256:{}", hex::encode(Sha256::digest(self.config()?))))
    }

    /// Writes the tar beside its place and moves it there, so that a stop halfway leaves the old one.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let part = path.with_extension("part");
        let file = File::create(&part).with_context(|| format!("cannot write {}", part.display()))?;
        let mut tar = tar::Builder::new(BufWriter::with_capacity(1 << 20, file));
        let config = self.config()?;
        let config_name = format!("{}.json", hex::encode(Sha256::digest(&config)));
        let layer_names: Vec<String> = self.layers.iter().map(|layer| format!("{}/layer.tar", layer.diff)).collect();
        let manifest =
            json!([{"Config": config_name, "RepoTags": [self.reference()], "Layers": layer_names}]).to_string();
        bytes(&mut tar, &config_name, &config)?;
        for (layer, name) in self.layers.iter().zip(&layer_names) {
            let source = File::open(&layer.tar).with_context(|| format!("cannot read {}", layer.tar.display()))?;
            let mut head = header(0o644, 0, 0);
            head.set_size(source.metadata()?.len());
            tar.append_data(&mut head, name, source).with_context(|| format!("cannot pack {}", layer.tar.display()))?;
        }
        bytes(&mut tar, "manifest.json", manifest.as_bytes())?;
        tar.into_inner()?.flush()?;
        std::fs::rename(&part, path).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// The architecture as images name it.
pub(super) fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

fn bytes<W: Write>(tar: &mut tar::Builder<W>, name: &str, body: &[u8]) -> Result<()> {
    let mut head = header(0o644, 0, 0);
    head.set_size(body.len() as u64);
    tar.append_data(&mut head, name, body).with_context(|| format!("cannot pack {name}"))
}
