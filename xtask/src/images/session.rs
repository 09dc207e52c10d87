//! What an agent brings to its session image. The `image` part of its data file in `runtime/src/session/agents/` names
//! programs and scripts in the npm packages that `images/session-<agent>/` pins.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::layer::{self, Entry, Layer};
use crate::paths;

/// User of session images; the session host seeds its home.
pub(super) const AGENT: u64 = 10001;
/// Where the packages of scripts are.
const MODULES: &str = "opt/agent/node_modules";

/// The `image` part; paths are below `node_modules`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    /// Native programs: only these files go into the image.
    #[serde(default)]
    programs: BTreeMap<String, String>,
    /// Scripts for Node.js: the packages go into the image with them.
    #[serde(default)]
    scripts: BTreeMap<String, String>,
    /// Beginnings of the names of packages that do not: native programs of packages that scripts need.
    #[serde(default)]
    left_out: BTreeSet<String>,
}

/// Names of the images; empty when the folder of the agents can't be read.
pub(super) fn names() -> Vec<String> {
    let folder = paths::repo().join("runtime/src/session/agents");
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let agents = files.filter_map(|path| path.file_stem().map(|name| name.to_string_lossy().into_owned()));
    let mut names: Vec<String> =
        agents.filter(|agent| matches!(contents(agent), Ok(Some(_)))).map(|agent| format!("session-{agent}")).collect();
    names.sort();
    names
}

/// The agent's layers, from the packages that are installed in `packages`.
pub(super) fn layers(image: &str, packages: &Path) -> Result<Vec<Layer>> {
    let agent = image.strip_prefix("session-").unwrap_or(image);
    let contents = contents(agent)?.with_context(|| format!("the data file of {agent} has no part `image`"))?;
    let modules = packages.join("node_modules");
    let mut layers = Vec::new();
    if !contents.scripts.is_empty() {
        layers.push(scripts(image, &contents, &modules)?);
    }
    let targets: Vec<String> = contents.programs.keys().map(|program| format!("usr/local/bin/{program}")).collect();
    let sources = contents.programs.values().map(|path| modules.join(filled(path)));
    let copies = targets.iter().zip(sources).map(|(target, source)| Entry::Copy { target, mode: 0o755, source });
    layers.push(layer::of_entries(&format!("{image} programs"), copies.collect())?);
    Ok(layers)
}

/// The packages without what is left out, and a link to each script.
fn scripts(image: &str, contents: &Contents, modules: &Path) -> Result<Layer> {
    let lock = layer::input(&format!("{image}/package-lock.json"))?;
    let how = format!("{:?} {:?}", contents.scripts, contents.left_out);
    layer::cached(&format!("{image} scripts"), &layer::key(&[how.as_bytes(), &lock]), |tar| {
        let mut folder = layer::header(0o755, 0, 0);
        folder.set_entry_type(tar::EntryType::Directory);
        for path in ["opt", "opt/agent", "usr", "usr/local", "usr/local/bin"] {
            tar.append_data(&mut folder.clone(), path, std::io::empty())?;
        }
        let keep = |path: &Path| {
            let name = path.to_string_lossy();
            !name.starts_with('.') && !contents.left_out.iter().any(|start| name.starts_with(start.as_str()))
        };
        tar.append_data(&mut folder, MODULES, std::io::empty())?;
        layer::tree(tar, modules, Path::new(MODULES), &keep)?;
        for (program, path) in &contents.scripts {
            let mut link = layer::header(0o777, 0, 0);
            link.set_entry_type(tar::EntryType::Symlink);
            tar.append_link(&mut link, format!("usr/local/bin/{program}"), format!("/{MODULES}/{path}"))?;
        }
        Ok(())
    })
}

/// What the agent's data file says about its image; `None`: it has none.
fn contents(agent: &str) -> Result<Option<Contents>> {
    #[derive(Deserialize)]
    struct File {
        image: Option<Contents>,
    }
    let path = paths::repo().join("runtime/src/session/agents").join(format!("{agent}.json"));
    let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let file: File = serde_json::from_slice(&text).with_context(|| path.display().to_string())?;
    Ok(file.image)
}

/// Packages with native programs carry the architecture in their names.
fn filled(path: &str) -> String {
    let (npm, machine) = if cfg!(target_arch = "aarch64") { ("arm64", "aarch64") } else { ("x64", "x86_64") };
    path.replace("{{arch}}", npm).replace("{{machine}}", machine)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn each_image_has_its_pinned_packages_and_names_something_in_them() {
        let names = names();
        assert!(
            ["session-claude", "session-codex", "session-droid"].iter().all(|name| names.contains(&(*name).into()))
        );
        for name in names {
            let lock = layer::input(&format!("{name}/package-lock.json")).unwrap();
            let lock: serde_json::Value = serde_json::from_slice(&lock).unwrap();
            let contents = contents(name.strip_prefix("session-").unwrap()).unwrap().unwrap();
            for path in contents.programs.values().chain(contents.scripts.values()) {
                let package: Vec<String> = filled(path).split('/').take(2).map(str::to_owned).collect();
                let pinned = &lock["packages"][format!("node_modules/{}", package.join("/"))];
                assert!(pinned["integrity"].is_string(), "{name}: {path} is in no package of the lock file");
            }
        }
    }
}
