//! Layers: tars with sorted names, one time stamp and numeric owners, kept under the digest of what they were made from.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::{cache, paths};

/// The time stamp of every file, and of the images: a build says nothing about when it ran.
pub(super) const TIME: u64 = 1_767_225_600;
/// The same, as images write it.
pub(super) const CREATED: &str = "2026-01-01T00:00:00Z";
/// Part of every key: raise it when this module packs the same input differently.
const FORMAT: &str = "1";

/// A layer on disk.
#[derive(Clone)]
pub(super) struct Layer {
    /// What it holds, for the image's history.
    pub(super) name: String,
    /// The uncompressed tar.
    pub(super) tar: PathBuf,
    /// Digest of the tar.
    pub(super) diff: String,
}

/// A file or folder that goes into a layer by name.
pub(super) enum Entry<'a> {
    /// A folder that the user may write to, or only root.
    Folder {
        /// Path in the image without the leading slash.
        target: &'a str,
        /// Permissions.
        mode: u32,
        /// User and group.
        owner: u64,
    },
    /// A file with this content, owned by root.
    Content {
        /// Path in the image without the leading slash.
        target: &'a str,
        /// Permissions.
        mode: u32,
        /// What is in it.
        body: Vec<u8>,
    },
    /// A copy of a file of this machine, owned by root.
    Copy {
        /// Path in the image without the leading slash.
        target: &'a str,
        /// Permissions.
        mode: u32,
        /// Path on this machine.
        source: PathBuf,
    },
}

/// Digest over the parts, each with its length, so that two lists never give the same key.
pub(super) fn key(parts: &[&[u8]]) -> String {
    let mut digest = Sha256::new();
    digest.update(FORMAT);
    digest.update(super::archive::architecture());
    for part in parts {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    hex::encode(digest.finalize())
}

/// Gives back the layer kept under `key`, or makes it with `write` and keeps it.
pub(super) fn cached(
    name: &str,
    key: &str,
    write: impl FnOnce(&mut tar::Builder<BufWriter<File>>) -> Result<()>,
) -> Result<Layer> {
    let folder = paths::ensure(paths::cache()?.join("layers"))?;
    let tar = folder.join(format!("{}-{}.tar", name.replace(' ', "-"), &key[..16]));
    let stamp = tar.with_extension("diff");
    let _lock = lock()?;
    if let (true, Ok(diff)) = (tar.exists(), fs::read_to_string(&stamp)) {
        cache::used(&tar);
        return Ok(Layer { name: name.to_owned(), tar, diff });
    }
    let part = tar.with_extension("part");
    let file = File::create(&part).with_context(|| format!("cannot write {}", part.display()))?;
    let mut builder = tar::Builder::new(BufWriter::with_capacity(1 << 20, file));
    write(&mut builder)?;
    builder.into_inner()?.flush()?;
    let diff = digest_of(&part)?;
    fs::rename(&part, &tar)?;
    fs::write(&stamp, &diff)?;
    forget_old(&tar)?;
    Ok(Layer { name: name.to_owned(), tar, diff })
}

/// Held while something in the cache folder is made: two runs, say of two checkouts, would write the same files.
/// Not held while cargo runs, and never twice by one run.
pub(crate) fn lock() -> Result<File> {
    let path = paths::cache()?.join("images.lock");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    if file.try_lock().is_err() {
        println!("  wait   another `cargo xtask images` is at work");
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}

/// Layers of one name that stay beside the newest: other checkouts may be about to pack theirs.
const OLD_LAYERS: usize = 3;

/// Removes the oldest layers of the same name: each change of our code makes a new one of some 80 MB.
fn forget_old(newest: &Path) -> Result<()> {
    let name = |path: &Path| {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        stem.rsplit_once('-').map(|(name, _)| name.to_owned())
    };
    let folder = newest.parent().unwrap_or(newest);
    let mut others = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path != newest && path.extension().is_some_and(|end| end == "tar") && name(&path) == name(newest) {
            others.push((fs::metadata(&path)?.modified()?, path));
        }
    }
    others.sort();
    others.truncate(others.len().saturating_sub(OLD_LAYERS));
    for (_, old) in others {
        fs::remove_file(old.with_extension("diff"))?;
        fs::remove_file(old)?;
    }
    Ok(())
}

/// A layer of named entries; parent folders that are not listed belong to root.
pub(super) fn of_entries(name: &str, mut entries: Vec<Entry<'_>>) -> Result<Layer> {
    entries.sort_by_key(Entry::target);
    let mut parts: Vec<Vec<u8>> = Vec::new();
    for entry in &entries {
        parts.push(entry.target().as_bytes().to_vec());
        parts.push(match entry {
            Entry::Folder { mode, owner, .. } => format!("folder {mode:o} {owner}").into_bytes(),
            Entry::Content { mode, body, .. } => [format!("file {mode:o} ").into_bytes(), body.clone()].concat(),
            Entry::Copy { mode, source, .. } => format!("copy {mode:o} {}", digest_of(source)?).into_bytes(),
        });
    }
    let key = key(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>());
    cached(name, &key, |tar| {
        let mut made: Vec<PathBuf> = Vec::new();
        for entry in &entries {
            let target = Path::new(entry.target());
            let mut parents: Vec<&Path> = target.ancestors().skip(1).filter(|path| *path != Path::new("")).collect();
            parents.reverse();
            for parent in parents {
                if !made.iter().any(|path| path == parent) {
                    folder(tar, parent, 0o755, 0)?;
                    made.push(parent.to_owned());
                }
            }
            entry.append(tar)?;
            if let Entry::Folder { .. } = entry {
                made.push(target.to_owned());
            }
        }
        Ok(())
    })
}

impl<'a> Entry<'a> {
    fn target(&self) -> &'a str {
        match self {
            Entry::Folder { target, .. } | Entry::Content { target, .. } | Entry::Copy { target, .. } => target,
        }
    }

    fn append<W: Write>(&self, tar: &mut tar::Builder<W>) -> Result<()> {
        match self {
            Entry::Folder { target, mode, owner } => folder(tar, Path::new(target), *mode, *owner),
            Entry::Content { target, mode, body } => {
                let mut head = header(*mode, 0, 0);
                head.set_size(body.len() as u64);
                Ok(tar.append_data(&mut head, target, body.as_slice())?)
            }
            Entry::Copy { target, mode, source } => {
                let file = File::open(source).with_context(|| format!("cannot read {}", source.display()))?;
                let mut head = header(*mode, 0, 0);
                head.set_size(file.metadata()?.len());
                Ok(tar.append_data(&mut head, target, file)?)
            }
        }
    }
}

/// Packs a folder of this machine below `target`, with its owners. What overlayfs marks as deleted becomes the mark
/// that images use. Sockets and devices are left out: the container runtime brings its own.
pub(super) fn tree<W: Write>(
    tar: &mut tar::Builder<W>,
    root: &Path,
    target: &Path,
    keep: &dyn Fn(&Path) -> bool,
) -> Result<()> {
    let mut links: HashMap<(u64, u64), PathBuf> = HashMap::new();
    walk(tar, root, Path::new(""), target, keep, &mut links)
}

fn walk<W: Write>(
    tar: &mut tar::Builder<W>,
    root: &Path,
    inner: &Path,
    target: &Path,
    keep: &dyn Fn(&Path) -> bool,
    links: &mut HashMap<(u64, u64), PathBuf>,
) -> Result<()> {
    let folder = root.join(inner);
    let mut names: Vec<_> = fs::read_dir(&folder)
        .with_context(|| format!("cannot list {}", folder.display()))?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<std::io::Result<_>>()?;
    names.sort();
    for name in names {
        let inner = inner.join(&name);
        if !keep(&inner) {
            continue;
        }
        let source = root.join(&inner);
        let place = target.join(&inner);
        let meta = fs::symlink_metadata(&source)?;
        let kind = meta.file_type();
        let mut head = header(meta.permissions().mode() & 0o7777, u64::from(meta.uid()), u64::from(meta.gid()));
        if kind.is_dir() {
            head.set_entry_type(tar::EntryType::Directory);
            tar.append_data(&mut head, &place, std::io::empty())?;
            walk(tar, root, &inner, target, keep, links)?;
        } else if kind.is_symlink() {
            head.set_entry_type(tar::EntryType::Symlink);
            tar.append_link(&mut head, &place, fs::read_link(&source)?)?;
        } else if kind.is_char_device() && meta.rdev() == 0 {
            let mark = place.with_file_name(format!(".wh.{}", name.to_string_lossy()));
            tar.append_data(&mut header(0o644, 0, 0), mark, std::io::empty())?;
        } else if kind.is_file() {
            let first = links.get(&(meta.dev(), meta.ino())).filter(|_| meta.nlink() > 1);
            if let Some(first) = first {
                head.set_entry_type(tar::EntryType::Link);
                tar.append_link(&mut head, &place, first)?;
            } else {
                links.insert((meta.dev(), meta.ino()), place.clone());
                head.set_size(meta.len());
                tar.append_data(&mut head, &place, File::open(&source)?)?;
            }
        }
    }
    Ok(())
}

fn folder<W: Write>(tar: &mut tar::Builder<W>, target: &Path, mode: u32, owner: u64) -> Result<()> {
    let mut head = header(mode, owner, owner);
    head.set_entry_type(tar::EntryType::Directory);
    Ok(tar.append_data(&mut head, target, std::io::empty())?)
}

/// A tar header with the fixed time stamp and numeric owners.
pub(super) fn header(mode: u32, uid: u64, gid: u64) -> tar::Header {
    let mut head = tar::Header::new_gnu();
    head.set_mode(mode);
    head.set_uid(uid);
    head.set_gid(gid);
    head.set_mtime(TIME);
    head.set_size(0);
    head
}

/// Digest of a file.
pub(super) fn digest_of(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(hex::encode(digest.finalize()));
        }
        digest.update(&buffer[..read]);
    }
}

/// Reads an input of the images from the repository.
pub(super) fn input(path: &str) -> Result<Vec<u8>> {
    let path = paths::repo().join("images").join(path);
    let body = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    if body.is_empty() {
        bail!("{} is empty", path.display());
    }
    Ok(body)
}

#[cfg(test)]
mod tests;
