//! Hostile archives, made by hand: nothing of them may be left, inside or outside.

use std::os::unix::fs::MetadataExt;

use proptest::prelude::*;
use tar::Header;

use super::{disk::SYNC_EACH_MAX, *};
use crate::{
    archive::{PackOptions, pack},
    testing,
};

const LIMITS: Limits = Limits { entries_max: 100, unpacked_bytes_max: 8 << 20, names_bytes_max: 10_000, expected: None };

/// One entry, with whatever header: names are written as they are.
fn entry(kind: EntryType, path: &str, link: &str, mode: u32, content: &[u8]) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(content.len() as u64);
    let fields = header.as_old_mut();
    fields.name[..path.len()].copy_from_slice(path.as_bytes());
    fields.linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_cksum();
    let mut bytes = [header.as_bytes(), content].concat();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn file(path: &str) -> Vec<u8> {
    entry(EntryType::Regular, path, "", 0o644, b"content")
}

fn folder(path: &str) -> Vec<u8> {
    entry(EntryType::Directory, path, "", 0o755, b"")
}

fn link(path: &str, target: &str) -> Vec<u8> {
    entry(EntryType::Symlink, path, target, 0o777, b"")
}

fn compressed(tar: &[u8]) -> Vec<u8> {
    zstd::encode_all(tar, 1).unwrap()
}

fn archive(entries: &[Vec<u8>]) -> Vec<u8> {
    compressed(&[entries.concat(), vec![0; 1024]].concat())
}

/// A folder with something beside the place to unpack at.
fn place() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("victim"), "untouched").unwrap();
    let dest = dir.path().join("release");
    (dir, dest)
}

fn assert_untouched(dir: &Path) {
    let names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["victim"], "something was left");
    assert_eq!(fs::read(dir.join("victim")).unwrap(), b"untouched");
    assert_eq!(fs::metadata(dir.join("victim")).unwrap().nlink(), 1);
}

fn refused(bytes: &[u8]) -> UnpackError {
    let (dir, dest) = place();
    let error = unpack(bytes, &dest, &LIMITS).unwrap_err();
    assert_untouched(dir.path());
    // Whoever only looks into it is told the same.
    assert_eq!(inspect(bytes, &LIMITS).unwrap_err().to_string(), error.to_string());
    error
}

#[test]
fn valid_archive_is_unpacked() {
    let (dir, dest) = place();
    let good = archive(&[
        folder("bin/"),
        file("bin/api"),
        link("current", "bin/api"),
        entry(EntryType::Link, "copy", "bin/api", 0o644, b""),
    ]);
    let unpacked = unpack(&good[..], &dest, &LIMITS).unwrap();
    assert_eq!(unpacked.entries, 4);
    assert_eq!(inspect(&good[..], &LIMITS).unwrap(), unpacked);
    assert_eq!(fs::read(dest.join("current")).unwrap(), b"content");
    assert_eq!(fs::metadata(dest.join("copy")).unwrap().ino(), fs::metadata(dest.join("bin/api")).unwrap().ino());
    assert_eq!(fs::metadata(&dest).unwrap().mode() & 0o7777, 0o755);
    assert_eq!(fs::metadata(dest.join("bin/api")).unwrap().mtime(), 0);
    assert!(!dir.path().join(".release.partial").exists());
    assert!(matches!(unpack(&good[..], &dest, &LIMITS), Err(UnpackError::Exists(_))));
    assert_eq!(fs::read(dest.join("current")).unwrap(), b"content");
}

#[test]
fn path_that_leaves_the_root_is_refused() {
    for path in ["../victim", "/tmp/evil", "a/../../victim", "..", ".", "./a", "a//b", "", "/"] {
        let error = refused(&archive(&[file("ok"), folder("a/"), file(path)]));
        assert!(matches!(error, UnpackError::Refused { .. }), "{path}: {error}");
        let error = refused(&archive(&[file("ok"), folder(path)]));
        assert!(matches!(error, UnpackError::Refused { .. }), "{path}: {error}");
    }
    let long = entry(EntryType::GNULongName, "././@LongLink", "", 0o644, b"../victim\0");
    assert!(matches!(refused(&archive(&[long, file("harmless")])), UnpackError::Refused { .. }));
}

#[test]
fn link_that_leaves_the_root_is_refused() {
    for target in ["/etc/passwd", "..", "../victim", "a/../../victim", ""] {
        let error = refused(&archive(&[file("ok"), link("l", target)]));
        assert!(matches!(error, UnpackError::Refused { .. }), "{target}: {error}");
    }
    for target in ["../victim", "/etc/passwd", "nothing", "", "l", "d"] {
        let hard = entry(EntryType::Link, "h", target, 0o644, b"");
        let error = refused(&archive(&[file("ok"), folder("d/"), link("l", "ok"), hard]));
        assert!(matches!(error, UnpackError::Refused { .. }), "{target}: {error}");
    }
    // Safe two folders down, a way out from the top.
    let moved = [folder("a/"), folder("a/b/"), link("a/b/l", "../../ok"), entry(EntryType::Link, "h", "a/b/l", 0o644, b"")];
    assert!(matches!(refused(&archive(&moved)), UnpackError::Refused { .. }));
    // Each step looks as if it stayed inside.
    let chain = [folder("a/"), folder("a/b/"), link("a/b/up", "../.."), link("out", "a/b/up/../victim")];
    assert!(matches!(refused(&archive(&chain)), UnpackError::Refused { .. }));
}

#[test]
fn entry_is_not_written_through_a_link() {
    for way in [[folder("d/"), link("l", "d"), file("l/through")], [folder("d/"), link("l", "d"), folder("l/through/")]] {
        assert!(matches!(refused(&archive(&way)), UnpackError::Refused { .. }));
    }
    assert!(matches!(refused(&archive(&[file("d"), link("l", "d"), file("l")])), UnpackError::Duplicate(_)));
    assert!(matches!(refused(&archive(&[folder("d/"), link("d", "e")])), UnpackError::Duplicate(_)));
    assert!(matches!(refused(&archive(&[file("f"), file("f")])), UnpackError::Duplicate(_)));
    assert!(matches!(refused(&archive(&[file("d/before-its-folder")])), UnpackError::Refused { .. }));
    assert!(matches!(refused(&archive(&[file("f"), file("f/below-a-file")])), UnpackError::Refused { .. }));
}

#[test]
fn device_or_set_id_bit_is_refused() {
    for kind in [EntryType::Char, EntryType::Block, EntryType::Fifo, EntryType::Continuous, EntryType::GNUSparse] {
        assert!(
            matches!(refused(&archive(&[file("ok"), entry(kind, "dev", "", 0o644, b"")])), UnpackError::Refused { .. }),
            "{kind:?}"
        );
    }
    for kind in [EntryType::XHeader, EntryType::XGlobalHeader] {
        let pax = entry(kind, "pax", "", 0o644, b"18 path=../victim\n");
        assert!(matches!(refused(&archive(&[pax, file("ok")])), UnpackError::Refused { .. }), "{kind:?}");
    }
    for mode in [0o4755, 0o2755, 0o1755] {
        let error = refused(&archive(&[entry(EntryType::Regular, "su", "", mode, b"x")]));
        assert!(error.to_string().contains("set-user-id"), "{error}");
    }
}

#[test]
fn decompression_bomb_is_stopped() {
    let zeros = entry(EntryType::Regular, "bomb", "", 0o644, &vec![0; 64 << 20]);
    assert!(matches!(refused(&archive(&[zeros])), UnpackError::TooLarge(_)));
    let many: Vec<_> = (0..101).map(|number| file(&number.to_string())).collect();
    assert!(matches!(refused(&archive(&many)), UnpackError::TooMany(100)));
    let long = |number: u32| {
        let name = format!("{}/{number:03}{}", vec!["d"; 45].join("/"), "n".repeat(200));
        [entry(EntryType::GNULongName, "././@LongLink", "", 0o644, name.as_bytes()), file("cut")].concat()
    };
    let folders = (1..=45).map(|depth| folder(&format!("{}/", vec!["d"; depth].join("/"))));
    let names: Vec<_> = folders.chain((0..30).map(long)).collect();
    assert!(matches!(refused(&archive(&names)), UnpackError::TooManyNames(10_000)));
    // A name of 64 MiB is not read into memory.
    let name = entry(EntryType::GNULongName, "././@LongLink", "", 0o644, &vec![b'n'; 4 << 20]);
    assert!(matches!(refused(&archive(&[name, file("f")])), UnpackError::Refused { .. }));
    for claimed in [9 << 20, 1 << 40, i64::MAX as u64, u64::MAX / 2] {
        let mut lie = file("lie");
        let mut header = Header::from_byte_slice(&lie[..512]).clone();
        header.set_size(claimed);
        header.set_cksum();
        lie[..512].copy_from_slice(header.as_bytes());
        assert!(matches!(refused(&archive(&[lie])), UnpackError::Damaged(_) | UnpackError::TooLarge(_)), "{claimed}");
    }
}

#[test]
fn damaged_archive_is_refused() {
    let good = archive(&[file("a"), entry(EntryType::Regular, "b", "", 0o644, &testing::noise(100_000))]);
    for cut in [0, 1, 10, good.len() / 2, good.len() - 1] {
        assert!(matches!(refused(&good[..cut]), UnpackError::Damaged(_)), "{cut}");
    }
    assert!(matches!(refused(&[&good[..], b"x"].concat()), UnpackError::Damaged(_)));
    assert!(matches!(refused(&[&good[..], &good[..]].concat()), UnpackError::Damaged(_)));
    let after_end = compressed(&[file("a"), vec![0; 1024], file("hidden"), vec![0; 1024]].concat());
    assert!(matches!(refused(&after_end), UnpackError::Damaged(_)));
    assert!(matches!(refused(&archive(&[])), UnpackError::Damaged(_)));
    assert!(matches!(refused(&compressed(&file("a")[..515])), UnpackError::Damaged(_)));
    let dangling = entry(EntryType::GNULongName, "././@LongLink", "", 0o644, b"name\0");
    assert!(matches!(refused(&archive(&[file("a"), dangling])), UnpackError::Damaged(_)));
}

#[test]
fn archive_that_differs_from_manifest_is_refused() {
    let (dir, dest) = place();
    let limits = Limits { expected: Some((Digest::of(b"other"), 1 << 20)), ..LIMITS };
    assert!(matches!(unpack(&archive(&[file("a")])[..], &dest, &limits), Err(UnpackError::Mismatch { .. })));
    assert_untouched(dir.path());
}

#[test]
fn leftovers_of_a_crash_are_replaced() {
    let (dir, dest) = place();
    let leftover = dir.path().join(".release.partial");
    fs::create_dir_all(leftover.join("bin")).unwrap();
    fs::write(leftover.join("bin/half"), "ha").unwrap();
    assert!(!dest.exists());
    unpack(&archive(&[file("a")])[..], &dest, &LIMITS).unwrap();
    let names: Vec<_> = fs::read_dir(&dest).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["a"]);
    assert!(!leftover.exists());
}

#[test]
fn many_files_are_unpacked() {
    let (_dir, dest) = place();
    let many: Vec<_> = (0..SYNC_EACH_MAX + 10).map(|number| file(&number.to_string())).collect();
    unpack(&archive(&many)[..], &dest, &Limits { entries_max: 1000, ..LIMITS }).unwrap();
    assert_eq!(fs::read_dir(&dest).unwrap().count() as u64, SYNC_EACH_MAX + 10);
}

#[test]
fn full_disk_is_reported_with_figures() {
    let Some((_disk, path)) = testing::small_disk(1 << 20) else { return };
    let large = archive(&[entry(EntryType::Regular, "large", "", 0o644, &testing::noise(3 << 20))]);
    let tar = zstd::decode_all(&large[..]).unwrap();
    let foreseen = Limits { expected: Some((Digest::of(&tar), tar.len() as u64)), ..LIMITS };
    // Foreseen from the manifest, and met while writing.
    for limits in [foreseen, LIMITS] {
        let error = unpack(&large[..], &path.join("release"), &limits).unwrap_err();
        let UnpackError::NoSpace(error) = error else { panic!("{error}") };
        assert!(error.needed > Some(error.available) && error.available <= 1 << 20, "{error}");
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0, "something was left");
    }
}

fn sample() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("a/b")).unwrap();
    fs::write(dir.path().join("a/b/file"), testing::noise(5000)).unwrap();
    fs::write(dir.path().join("x".repeat(150)), "long").unwrap();
    fs::hard_link(dir.path().join("a/b/file"), dir.path().join("hard")).unwrap();
    std::os::unix::fs::symlink("../b/file", dir.path().join("a/b/link")).unwrap();
    let mut bytes = Vec::new();
    pack(dir.path(), &mut bytes, PackOptions { mtime_secs: 1 }).unwrap();
    bytes
}

/// Whatever `bytes` are: either they are laid out, or nothing is left; nothing beside is touched.
fn harmless(bytes: &[u8]) {
    let (dir, dest) = place();
    let unpacked = unpack(bytes, &dest, &LIMITS);
    let outcome = |result: &Result<Unpacked>| result.as_ref().map_err(ToString::to_string).copied();
    assert_eq!(outcome(&inspect(bytes, &LIMITS)), outcome(&unpacked));
    if unpacked.is_ok() {
        for entry in walkdir::WalkDir::new(&dest) {
            let mode = entry.unwrap().path().symlink_metadata().unwrap().mode();
            assert_eq!(mode & 0o7000, 0);
        }
        fs::remove_dir_all(&dest).unwrap();
    }
    assert_untouched(dir.path());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        harmless(&bytes);
        harmless(&compressed(&bytes));
    }

    #[test]
    fn damage_does_no_harm(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut bytes = sample();
        for (index, byte) in &changes {
            let index = index.index(bytes.len());
            bytes[index] = *byte;
        }
        harmless(&bytes);
    }

    #[test]
    fn damage_within_the_tar_does_no_harm(changes in prop::collection::vec((0usize..512, 0usize..16, any::<u8>()), 1..8)) {
        let mut tar = zstd::decode_all(&sample()[..]).unwrap();
        let headers: Vec<_> = (0..tar.len()).step_by(512).filter(|at| tar[at + 257..].starts_with(b"ustar")).collect();
        for (offset, which, byte) in changes {
            let at = headers[which % headers.len()];
            tar[at + offset] = byte;
            // With a right checksum the damage reaches further.
            let mut header = Header::from_byte_slice(&tar[at..at + 512]).clone();
            header.set_cksum();
            tar[at..at + 512].copy_from_slice(header.as_bytes());
        }
        harmless(&compressed(&tar));
    }
}
