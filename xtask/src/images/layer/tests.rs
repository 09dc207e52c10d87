#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;

fn listing(bytes: &[u8]) -> Vec<(String, u64, u32, u8)> {
    let mut archive = tar::Archive::new(bytes);
    let entries = archive.entries().unwrap().map(Result::unwrap);
    entries
        .map(|entry| {
            let head = entry.header();
            assert_eq!(head.mtime().unwrap(), TIME);
            let path = entry.path().unwrap().to_string_lossy().into_owned();
            (path, head.uid().unwrap(), head.mode().unwrap(), head.entry_type().as_byte())
        })
        .collect()
}

fn packed(root: &Path) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    tree(&mut tar, root, Path::new("opt"), &|path| path != Path::new("cache")).unwrap();
    tar.into_inner().unwrap()
}

#[test]
fn a_folder_is_packed_sorted_with_links_and_without_what_is_left_out() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("b")).unwrap();
    fs::create_dir(root.path().join("cache")).unwrap();
    fs::write(root.path().join("cache/x"), "x").unwrap();
    fs::write(root.path().join("b/file"), "text").unwrap();
    fs::hard_link(root.path().join("b/file"), root.path().join("b/hard")).unwrap();
    std::os::unix::fs::symlink("b/file", root.path().join("a-link")).unwrap();
    let names: Vec<_> = listing(&packed(root.path())).into_iter().map(|(path, _, _, kind)| (path, kind)).collect();
    let expected = [("opt/a-link", b'2'), ("opt/b", b'5'), ("opt/b/file", b'0'), ("opt/b/hard", b'1')];
    assert_eq!(names, expected.map(|(path, kind)| (path.to_owned(), kind)));
}

#[test]
fn the_same_folder_packs_to_the_same_bytes_whatever_its_times() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for (root, names) in [(&one, ["a", "b"]), (&two, ["b", "a"])] {
        for name in names {
            fs::write(root.path().join(name), name).unwrap();
        }
    }
    fs::File::options()
        .write(true)
        .open(two.path().join("a"))
        .unwrap()
        .set_modified(std::time::SystemTime::UNIX_EPOCH)
        .unwrap();
    assert_eq!(packed(one.path()), packed(two.path()));
}

#[test]
fn keys_differ_when_only_the_borders_between_parts_move() {
    assert_ne!(key(&[b"ab", b"c"]), key(&[b"a", b"bc"]));
    assert_eq!(key(&[b"ab", b"c"]), key(&[b"ab", b"c"]));
}

#[test]
fn the_oldest_layers_of_a_name_go() {
    let folder = tempfile::tempdir().unwrap();
    let layer = |name: &str, age: u64| {
        let tar = folder.path().join(format!("{name}.tar"));
        fs::write(tar.with_extension("diff"), "").unwrap();
        let file = fs::File::create(&tar).unwrap();
        file.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(age)).unwrap();
        tar
    };
    let layers: Vec<_> = (0..6).map(|age| layer(&format!("session-host-{age}"), 10 * age)).collect();
    let other = layer("session-4", 1000);
    forget_old(&layers[0]).unwrap();
    let left: Vec<_> = layers.iter().map(|path| path.exists()).collect();
    assert_eq!(left, [true, true, true, true, false, false]);
    assert!(other.exists());
}
