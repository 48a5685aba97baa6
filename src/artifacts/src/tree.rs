//! Rules for the trees in artifacts, and opening their files without following symbolic links. The packer and the unpacker share these
//! rules, so that whatever was packed can be unpacked. Knows nothing of tar.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::{
    fcntl::{OFlag, openat},
    sys::stat::Mode,
};

/// The most entries (files, folders, links) of one artifact.
pub(super) const ENTRIES_MAX: u64 = 1_000_000;
/// The longest path below the artifact's root, in bytes: leaves 1 KiB of Linux's `PATH_MAX` (4096) for where it is unpacked.
pub(super) const PATH_BYTES_MAX: usize = 3072;
/// The most bytes that all paths and targets of symbolic links of one artifact may have together: packer and unpacker hold them in memory.
pub(super) const NAMES_BYTES_MAX: u64 = 256 << 20;
/// The longest name of one file, in bytes (`NAME_MAX`).
const NAME_BYTES_MAX: usize = 255;
/// The deepest folder. Removing a tree holds one descriptor a level open, and many systems allow 1024.
pub(super) const DEPTH_MAX: usize = 128;

/// Bytes of names so far and at most: [`NAMES_BYTES_MAX`] except in tests.
pub(super) struct NamesBudget {
    bytes_max: u64,
    taken: u64,
}

impl NamesBudget {
    pub(super) fn of(bytes_max: u64) -> Self {
        Self { bytes_max, taken: 0 }
    }

    pub(super) fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// Counts a name of so many bytes, if the bound allows it.
    pub(super) fn take(&mut self, bytes: usize) -> bool {
        self.taken = self.taken.saturating_add(bytes as u64);
        self.taken <= self.bytes_max
    }
}

/// Bytes of a path as the path they are on Unix: any bytes but NUL, UTF-8 or not.
pub(super) fn as_path(bytes: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    PathBuf::from(std::ffi::OsStr::from_bytes(bytes))
}

/// Whether `path` may name an entry: relative, each part a plain name, within the bounds. The error says what is wrong with it.
pub(super) fn check_path(path: &[u8]) -> Result<(), &'static str> {
    if path.is_empty() {
        return Err("it is empty");
    }
    if path.starts_with(b"/") {
        return Err("it is absolute");
    }
    if path.len() > PATH_BYTES_MAX {
        return Err("it is longer than 3072 bytes");
    }
    let mut depth = 0;
    for name in path.split(|byte| *byte == b'/') {
        depth += 1;
        match name {
            b"" | b"." => return Err("it has an empty part or a `.`"),
            b".." => return Err("it has a `..`"),
            name if name.len() > NAME_BYTES_MAX => return Err("a part of it is longer than 255 bytes"),
            name if name.contains(&0) => return Err("it contains a NUL byte"),
            _ => {}
        }
    }
    if depth > DEPTH_MAX {
        return Err("it is more than 128 folders deep");
    }
    Ok(())
}

/// Whether the symbolic link at `path` may point to `target`.
///
/// `..` is allowed only at the beginning of a target, and at most as often as the link is deep. The folder of a link is a real folder,
/// so these first steps go exactly where they seem to; the names after them lead into real folders or through links that obey the same
/// rule. By induction no chain of links leaves the root. A `..` after a name is refused because that name may itself be a link
/// to a shallower place, from which `..` would leave.
pub(super) fn check_link(path: &[u8], target: &[u8]) -> Result<(), &'static str> {
    if target.is_empty() {
        return Err("its target is empty");
    }
    if target.starts_with(b"/") {
        return Err("its target is absolute");
    }
    if target.len() > PATH_BYTES_MAX {
        return Err("its target is longer than 3072 bytes");
    }
    if target.contains(&0) {
        return Err("its target contains a NUL byte");
    }
    let depth = path.split(|byte| *byte == b'/').count() - 1;
    let (mut ups, mut named) = (0, false);
    for part in target.split(|byte| *byte == b'/') {
        match part {
            b".." if named => return Err("its target has a `..` after a name, which could lead out"),
            b".." => ups += 1,
            b"" | b"." => {}
            _ => named = true,
        }
    }
    if ups > depth { Err("its target is outside the artifact") } else { Ok(()) }
}

/// A folder opened once, below which paths are resolved name by name without following links, whatever happens to the tree meanwhile.
/// (`openat2` would do it in one call, but older kernels and some container engines refuse it.)
pub(super) struct Root {
    top: Arc<OwnedFd>,
    /// The folder used last: entries come sorted, so it is nearly always the next one's too.
    last: Option<(Vec<u8>, Arc<OwnedFd>)>,
}

const FOLDER: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

impl Root {
    /// Opens the folder at `path` itself; a link there is followed, since the caller chose it.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let top = nix::fcntl::open(path, flags, Mode::empty())?;
        Ok(Self { top: Arc::new(top), last: None })
    }

    /// The folder at `path`; empty means the root. Fails on a link anywhere in it.
    pub(super) fn folder(&mut self, path: &[u8]) -> io::Result<Arc<OwnedFd>> {
        if path.is_empty() {
            return Ok(self.top.clone());
        }
        if let Some((last, folder)) = &self.last
            && last == path
        {
            return Ok(folder.clone());
        }
        let mut folder = self.top.clone();
        for name in path.split(|byte| *byte == b'/') {
            folder = Arc::new(openat(folder.as_fd(), name, FOLDER, Mode::empty())?);
        }
        self.last = Some((path.to_vec(), folder.clone()));
        Ok(folder)
    }

    /// The folder that holds `path`, and the name in it. `path` has passed [`check_path`].
    pub(super) fn parent<'p>(&mut self, path: &'p [u8]) -> io::Result<(Arc<OwnedFd>, &'p [u8])> {
        match path.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => Ok((self.folder(&path[..slash])?, &path[slash + 1..])),
            None => Ok((self.top.clone(), path)),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_relative_paths_pass() {
        for good in [&b"a"[..], b"a/b.c", b"..a/b..", b"\xff\xfe", &[b'x'; 255]] {
            assert_eq!(check_path(good), Ok(()), "{good:?}");
        }
        let deep = vec!["d"; 129].join("/");
        let long = vec!["d".repeat(200); 16].join("/");
        let bad = [
            &b""[..],
            b"/etc",
            b"a/../b",
            b"..",
            b"./a",
            b"a//b",
            b"a/",
            b"a\0b",
            &[b'x'; 256],
            deep.as_bytes(),
            long.as_bytes(),
        ];
        for bad in bad {
            assert!(check_path(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn links_stay_inside() {
        for (path, target) in [("a", "b"), ("d/a", "../b"), ("d/e/a", "../../b/c"), ("a", "./b/"), ("d/a", "..")] {
            assert_eq!(check_link(path.as_bytes(), target.as_bytes()), Ok(()), "{path} -> {target}");
        }
        for (path, target) in [("a", ""), ("a", "/etc/passwd"), ("a", ".."), ("d/a", "../../b"), ("d/a", "x/../y"), ("a", "b\0")]
        {
            assert!(check_link(path.as_bytes(), target.as_bytes()).is_err(), "{path} -> {target}");
        }
    }

    #[test]
    fn a_link_on_the_way_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("real/sub")).unwrap();
        std::os::unix::fs::symlink("real", dir.path().join("link")).unwrap();
        let mut root = Root::open(dir.path()).unwrap();
        assert!(root.folder(b"real/sub").is_ok());
        assert!(root.folder(b"link/sub").is_err());
        assert!(root.folder(b"link").is_err());
    }
}
