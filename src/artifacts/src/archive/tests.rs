//! Same tree, same bytes; and what cannot be packed is named.

use std::{
    fs,
    os::unix::{ffi::OsStrExt, fs::PermissionsExt, net::UnixListener},
    process::Command,
    time::{Duration, SystemTime},
};

use proptest::prelude::*;

use super::*;

const OPTIONS: PackOptions = PackOptions { mtime_secs: 1_700_000_000 };

fn packed(dir: &Path) -> (Vec<u8>, Packed) {
    let mut bytes = Vec::new();
    let packed = pack(dir, &mut bytes, OPTIONS).unwrap();
    (bytes, packed)
}

#[test]
fn archive_matches_its_figures_and_is_read_by_gnu_tar() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("bin/empty")).unwrap();
    fs::write(dir.path().join("bin/api"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(dir.path().join("bin/api"), fs::Permissions::from_mode(0o4711)).unwrap();
    fs::hard_link(dir.path().join("bin/api"), dir.path().join("bin/api2")).unwrap();
    std::os::unix::fs::symlink("api", dir.path().join("bin/link")).unwrap();
    let long = "n".repeat(200);
    fs::write(dir.path().join(&long), super::super::testing::noise(3 << 20)).unwrap();
    fs::write(dir.path().join("z"), "").unwrap();

    let (bytes, packed) = packed(dir.path());
    assert_eq!(packed.digest, Digest::of(&bytes));
    assert_eq!(packed.size, bytes.len() as u64);
    assert_eq!(packed.pieces, bytes.chunks(1 << 20).map(Digest::of).collect::<Vec<_>>());
    let tar = zstd::decode_all(&bytes[..]).unwrap();
    assert_eq!((packed.unpacked_digest, packed.unpacked_size), (Digest::of(&tar), tar.len() as u64));
    assert_eq!(packed.files, 4);

    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), &tar).unwrap();
    let listed = Command::new("tar").args(["--utc", "--numeric-owner", "-tvf"]).arg(file.path()).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let lines: Vec<_> = listed.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let when = "2023-11-14 22:13";
    assert_eq!(
        lines,
        [
            format!("drwxr-xr-x 0/0 0 {when} bin/"),
            format!("-rwxr-xr-x 0/0 10 {when} bin/api"),
            format!("hrwxr-xr-x 0/0 0 {when} bin/api2 link to bin/api"),
            format!("drwxr-xr-x 0/0 0 {when} bin/empty/"),
            format!("lrwxrwxrwx 0/0 0 {when} bin/link -> api"),
            format!("-rw-r--r-- 0/0 3145728 {when} {long}"),
            format!("-rw-r--r-- 0/0 0 {when} z"),
        ]
    );
}

fn error_of(make: impl FnOnce(&Path)) -> String {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "x").unwrap();
    make(dir.path());
    let mut out = Vec::new();
    pack(dir.path(), &mut out, OPTIONS).unwrap_err().to_string()
}

#[test]
fn entry_that_cannot_be_packed_is_named() {
    let link = std::os::unix::fs::symlink::<&str, std::path::PathBuf>;
    for target in ["/etc/passwd", "../x", "a/../../x"] {
        let error = error_of(|dir| link(target, dir.join("out")).unwrap());
        assert!(error.contains("`out`") && error.contains(target), "{error}");
    }
    let error = error_of(|dir| nix::unistd::mkfifo(&dir.join("pipe"), Mode::S_IRWXU).unwrap());
    assert!(error.contains("`pipe` is a fifo"), "{error}");
    let error = error_of(|dir| drop(UnixListener::bind(dir.join("sock")).unwrap()));
    assert!(error.contains("`sock` is a socket"), "{error}");
    let error = error_of(|dir| fs::remove_file(dir.join("file")).unwrap());
    assert!(error.contains("holds no file"), "{error}");
    let error = error_of(|dir| {
        fs::remove_file(dir.join("file")).unwrap();
        fs::create_dir(dir.join("only-a-folder")).unwrap();
    });
    assert!(error.contains("holds no file"), "{error}");
    let error = error_of(|dir| fs::create_dir_all(dir.join(vec!["d"; 140].join("/"))).unwrap());
    assert!(error.contains("128 folders deep"), "{error}");
}

#[test]
fn too_large_tree_is_refused_before_it_is_read() {
    let sized = |size| Node {
        path: b"disk.img".to_vec(),
        kind: Kind::File(FileNode { executable: false, size, links: 1, inode: (0, 0) }),
    };
    assert!(tar_size_max(Path::new("out"), &[sized(62 << 30)]).is_ok());
    let error = tar_size_max(Path::new("out"), &[sized(40 << 30), sized(24 << 30)]).unwrap_err().to_string();
    assert!(error.contains("63 GiB") && error.contains("package less"), "{error}");
}

/// As many entries as there may be, and names as long as they may be, would take gigabytes.
#[test]
fn names_beyond_memory_bound_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "x").unwrap();
    fs::create_dir(dir.path().join("n".repeat(200))).unwrap();
    std::os::unix::fs::symlink("t".repeat(1000), dir.path().join("link")).unwrap();
    let top = Root::open(dir.path()).unwrap().folder(b"").unwrap();
    let collect = |bytes_max| {
        let mut nodes = Vec::new();
        Walk { dir: dir.path(), nodes: &mut nodes, names: NamesBudget::of(bytes_max) }
            .folder(&top, &mut Vec::new())
            .map(|()| nodes)
    };
    assert_eq!(collect(1208).unwrap().len(), 3, "file, link and its target, and a folder");
    for short in [100, 208, 1207] {
        let Err(PackError::TooManyNames(_)) = collect(short) else { panic!("{short}") };
    }
    let error = PackError::TooManyNames(dir.path().to_owned()).to_string();
    assert!(error.contains("268435456 bytes") && error.contains("shorter names"), "{error}");
}

#[test]
fn missing_folder_and_full_disk_are_errors() {
    assert!(matches!(pack(Path::new("/nonexistent"), Vec::new(), OPTIONS), Err(PackError::Read { .. })));
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), super::super::testing::noise(1 << 20)).unwrap();
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    assert!(matches!(pack(dir.path(), full, OPTIONS), Err(PackError::Write(_))));
}

/// A tree of files, links and folders, as paths with what is there.
#[derive(Debug, Clone)]
enum Made {
    Folder,
    File { content: Vec<u8>, executable: bool },
    Link,
    HardLink,
}

fn trees() -> impl Strategy<Value = Vec<(Vec<u8>, Made)>> {
    let name = prop_oneof![
        "[a-c]{1,2}".prop_map(String::into_bytes),
        "[a-c]{120}".prop_map(String::into_bytes),
        Just(b"\xff\xfe-".to_vec()),
        Just("é ü".as_bytes().to_vec()),
    ];
    let path = prop::collection::vec(name, 1..4).prop_map(|parts| parts.join(&b'/'));
    let made = prop_oneof![
        1 => Just(Made::Folder),
        4 => (prop::collection::vec(any::<u8>(), 0..3000), any::<bool>()).prop_map(|(content, executable)| Made::File { content, executable }),
        1 => Just(Made::Link),
        1 => Just(Made::HardLink),
    ];
    prop::collection::vec((path, made), 1..12)
}

/// Makes the tree; paths that another entry blocks are passed over, the same ones in each order of `entries` only if they were unique.
fn make(dir: &Path, entries: &[(Vec<u8>, Made)], mode: u32, age_secs: u64) {
    let time = SystemTime::now() - Duration::from_secs(age_secs);
    let anchor = dir.join("anchor");
    fs::write(&anchor, "always here").unwrap();
    for (path, made) in entries {
        let path = dir.join(as_path(path));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        match made {
            Made::Folder => fs::create_dir_all(&path).unwrap(),
            Made::File { content, executable } => {
                fs::write(&path, content).unwrap();
                let exec = if *executable { 0o100 } else { 0 };
                fs::set_permissions(&path, fs::Permissions::from_mode(mode | exec)).unwrap();
                File::open(&path).unwrap().set_modified(time).unwrap();
            }
            Made::Link => std::os::unix::fs::symlink("anywhere/below", &path).unwrap(),
            Made::HardLink => fs::hard_link(&anchor, &path).unwrap(),
        }
    }
}

/// Entries of which none is at or below another that is no folder.
fn consistent(mut entries: Vec<(Vec<u8>, Made)>) -> Vec<(Vec<u8>, Made)> {
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    entries.dedup_by(|a, b| a.0 == b.0);
    let all = entries.clone();
    let below = |path: &[u8], other: &[u8]| path.len() > other.len() && path.starts_with(other) && path[other.len()] == b'/';
    entries.retain(|(path, _)| !all.iter().any(|(other, made)| !matches!(made, Made::Folder) && below(path, other)));
    entries
}

/// Everything below `dir` that an artifact keeps.
fn seen(dir: &Path) -> Vec<(Vec<u8>, String)> {
    let mut all = Vec::new();
    for entry in walkdir::WalkDir::new(dir).min_depth(1) {
        let entry = entry.unwrap();
        let path = entry.path().strip_prefix(dir).unwrap().as_os_str().as_bytes().to_vec();
        let metadata = entry.path().symlink_metadata().unwrap();
        let what = if metadata.is_dir() {
            "folder".to_owned()
        } else if metadata.is_symlink() {
            format!("link to {:?}", fs::read_link(entry.path()).unwrap())
        } else {
            format!("{:?} {}", Digest::of(&fs::read(entry.path()).unwrap()), metadata.permissions().mode() & 0o100)
        };
        all.push((path, what));
    }
    all.sort();
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_same_tree_is_the_same_artifact(entries in trees(), swap in any::<u64>()) {
        let entries = consistent(entries);
        let mut shuffled = entries.clone();
        shuffled.sort_by_key(|(path, _)| Digest::of(&[&swap.to_le_bytes()[..], path].concat()));
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        make(one.path(), &entries, 0o644, 0);
        make(two.path(), &shuffled, 0o600, 1_000_000_000);
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::lchown(two.path().join("anchor"), Some(1234), Some(1234)).unwrap();
        }
        prop_assert_eq!(packed(one.path()), packed(two.path()));
    }

    #[test]
    fn what_was_packed_is_unpacked(entries in trees()) {
        let dir = tempfile::tempdir().unwrap();
        let (tree, copy) = (dir.path().join("tree"), dir.path().join("copy"));
        fs::create_dir(&tree).unwrap();
        make(&tree, &consistent(entries), 0o644, 0);
        let (bytes, first) = packed(&tree);
        let limits = super::super::unpack::Limits {
            entries_max: 1000, unpacked_bytes_max: u64::MAX, names_bytes_max: 1 << 20, expected: Some((first.unpacked_digest, first.unpacked_size)),
        };
        super::super::unpack::unpack(&bytes[..], &copy, &limits).unwrap();
        prop_assert_eq!(seen(&tree), seen(&copy));
        prop_assert_eq!(packed(&copy), (bytes, first));
    }
}
