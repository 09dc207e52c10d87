//! What is mounted in a folder of ours: it is unmounted, or nothing is removed there.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Mount points at this path and below it, deepest first.
pub(crate) fn below(root: &Path) -> Result<Vec<PathBuf>> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").context("cannot see what is mounted")?;
    Ok(points(&mounts, root))
}

fn points(mounts: &str, root: &Path) -> Vec<PathBuf> {
    let mut points: Vec<PathBuf> = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(plain).collect();
    points.retain(|point| point.starts_with(root));
    points.sort_by_key(|point| std::cmp::Reverse(point.components().count()));
    points
}

/// The kernel writes blanks and backslashes as three octal digits.
fn plain(escaped: &str) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = escaped.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        let digits = behind.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(byte) = digits.filter(|_| *first == b'\\').and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            bytes.push(byte);
            rest = &behind[3..];
        } else {
            bytes.push(*first);
            rest = behind;
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_in_a_folder_are_found_whatever_it_is_called() {
        let mounts = "proc /proc proc rw 0 0\n\
            tmpfs /my\\040cache/agentapi/a tmpfs rw 0 0\n\
            overlay /my\\040cache/agentapi/a/b\\134c overlay rw 0 0\n\
            tmpfs /my\\040cache/agentapi2 tmpfs rw 0 0\n\
            broken\n";
        let found = points(mounts, Path::new("/my cache/agentapi"));
        assert_eq!(found, ["/my cache/agentapi/a/b\\c", "/my cache/agentapi/a"].map(PathBuf::from));
        assert_eq!(points(mounts, Path::new("/proc")), [PathBuf::from("/proc")]);
    }
}
