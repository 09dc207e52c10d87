//! The cache folder does not grow for ever: what is kept under a digest of its inputs is noted when it is used, and goes when
//! it was not for a month. `cargo xtask down --cache` removes the whole folder.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use crate::{images, mounts, paths};

/// So long does something stay that nothing uses.
const UNUSED: Duration = Duration::from_secs(30 * 24 * 3600);
/// Folders whose entries are made again when they are missing.
const FOLDERS: [&str; 8] = ["go", "images", "kind", "layers", "node", "npm", "python", "rootfs"];

/// Notes that this entry of the cache is used now. Whoever may read it and not write it keeps no note.
pub(crate) fn used(entry: &Path) {
    let _ = File::open(entry).and_then(|file| file.set_modified(SystemTime::now()));
}

/// Removes what nothing has used for a month, and says so.
pub(crate) fn sweep() -> Result<()> {
    let root = paths::cache()?;
    let _lock = images::lock()?;
    let (mut count, mut bytes) = (0, 0);
    for entry in unused(&root, SystemTime::now())? {
        bytes += size(&entry)?;
        count += 1;
        remove(&entry)?;
    }
    if count > 0 {
        println!("  cache  {count} entries that nothing has used for 30 days are gone: {} MB", bytes / 1_000_000);
    }
    Ok(())
}

/// Removes all of it.
pub(crate) fn clear() -> Result<()> {
    let root = paths::cache()?;
    let _lock = images::lock()?;
    let bytes = remove_all(&root)?;
    println!("  cache  {} is gone: {} MB", root.display(), bytes / 1_000_000);
    Ok(())
}

/// Also what it links to, for a folder that was put on a larger disk. Gives back how large it was.
fn remove_all(root: &Path) -> Result<u64> {
    let folder = root.canonicalize().with_context(|| format!("cannot see {}", root.display()))?;
    if let Some(mount) = mounts::below(&folder)?.first() {
        bail!("{} is still mounted: unmount it, then run the same command again", mount.display());
    }
    let bytes = size(&folder)?;
    remove(&folder)?;
    if root.is_symlink() {
        remove(root)?;
    }
    Ok(bytes)
}

/// Entries, in their order, that were used too long ago. A file `x.diff` or `x.digest` says what `x.tar` holds and goes
/// with it.
fn unused(root: &Path, now: SystemTime) -> Result<Vec<PathBuf>> {
    let mut unused = Vec::new();
    for folder in FOLDERS {
        let entries = match fs::read_dir(root.join(folder)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| format!("cannot read {folder} in {}", root.display())),
        };
        for entry in entries {
            let entry = entry?.path();
            let tar = entry.with_extension("tar");
            let used = if tar.exists() { &tar } else { &entry };
            // What was used after now is new.
            let idle = now.duration_since(fs::symlink_metadata(used)?.modified()?).unwrap_or_default();
            if idle > UNUSED {
                unused.push(entry);
            }
        }
    }
    unused.sort();
    Ok(unused)
}

fn size(path: &Path) -> Result<u64> {
    let data = fs::symlink_metadata(path).with_context(|| format!("cannot see {}", path.display()))?;
    if !data.is_dir() {
        return Ok(data.len());
    }
    fs::read_dir(path)?.map(|entry| size(&entry?.path())).sum()
}

fn remove(path: &Path) -> Result<()> {
    let removed = if fs::symlink_metadata(path)?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.with_context(|| format!("cannot remove {}", path.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_nothing_uses_goes_and_the_rest_stays() {
        let root = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let day = Duration::from_secs(24 * 3600);
        let old = |path: &str, days: u32| {
            let path = root.path().join(path);
            File::open(&path).unwrap().set_modified(now - days * day).unwrap();
        };
        for folder in ["layers", "images", "npm/claude-1/node_modules", "npm/claude-2", "cluster/native", "go/helm-1"] {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        for file in
            ["layers/a-1.tar", "layers/a-1.diff", "layers/b-1.tar", "layers/b-1.diff", "cluster/native/x", "api-url"]
        {
            fs::write(root.path().join(file), "x").unwrap();
        }
        for path in
            ["layers/a-1.tar", "layers/b-1.diff", "npm/claude-1", "cluster/native", "cluster/native/x", "api-url"]
        {
            old(path, 31);
        }
        old("npm/claude-2", 29);
        let gone = unused(root.path(), now).unwrap();
        let names: Vec<_> = gone.iter().map(|path| path.strip_prefix(root.path()).unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["layers/a-1.diff", "layers/a-1.tar", "npm/claude-1"]);
        // Used, it stays, and so does what says what it holds.
        used(&root.path().join("layers/a-1.tar"));
        used(&root.path().join("npm/claude-1"));
        assert!(unused(root.path(), SystemTime::now()).unwrap().is_empty());
        old("npm/claude-1", 31);
        assert_eq!(size(&root.path().join("layers")).unwrap(), 4);
        for entry in unused(root.path(), now).unwrap() {
            remove(&entry).unwrap();
        }
        assert!(!root.path().join("npm/claude-1").exists() && root.path().join("npm/claude-2").exists());
        assert!(unused(&root.path().join("nothing"), now).unwrap().is_empty());
    }

    #[test]
    fn all_of_it_goes_and_nothing_beside_it() {
        let disk = tempfile::tempdir().unwrap();
        let at = |path: &str| disk.path().join(path);
        for folder in ["real/layers", "elsewhere"] {
            fs::create_dir_all(at(folder)).unwrap();
        }
        for file in ["real/layers/a.tar", "elsewhere/kept"] {
            fs::write(at(file), "12345").unwrap();
        }
        std::os::unix::fs::symlink(at("elsewhere"), at("real/link")).unwrap();
        std::os::unix::fs::symlink(at("real"), at("agentapi")).unwrap();
        let link = fs::symlink_metadata(at("real/link")).unwrap().len();
        assert_eq!(remove_all(&at("agentapi")).unwrap(), 5 + link);
        assert!(!at("real").exists() && !at("agentapi").is_symlink());
        assert_eq!(fs::read_to_string(at("elsewhere/kept")).unwrap(), "12345");
        assert!(remove_all(&at("agentapi")).is_err(), "there is nothing");
    }
}
