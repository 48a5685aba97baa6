//! Lays an artifact out on a disk, or leaves nothing. The archive is taken as hostile, even after its digest was checked:
//! whoever can build can choose its bytes. Knows nothing of releases. Synchronous: async callers use `spawn_blocking`.
//!
//! Nothing is ever followed: each folder is opened name by name without links, each file is created anew, so a second entry of one name is
//! an error and no entry can write through an earlier one. Modes become 0755 or 0644, owner is who unpacks; set-id and sticky bits,
//! devices, fifos, extended headers and sparse files are refused, since [`super::archive`] never writes them.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Write},
    os::{
        fd::AsFd,
        unix::fs::{DirBuilderExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat},
    sys::{
        stat::{Mode, SFlag, fchmod, fstatat, futimens, mkdirat},
        time::TimeSpec,
    },
    unistd::{fsync, linkat, symlinkat, syncfs},
};
use sha2::{Digest as _, Sha256};
use tar::{Archive, EntryType};

use super::{
    manifest::Manifest,
    space::{self, NoSpace, SpaceError},
    tree::{self, Root, as_path},
};
use crate::model::digest::Digest;

/// How much an archive may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Entries: files, folders and links.
    pub entries_max: u64,
    /// Bytes of the tar, when the archive's manifest is not at hand.
    pub unpacked_bytes_max: u64,
    /// Digest and size of the tar that it must be.
    pub expected: Option<(Digest, u64)>,
}

impl Limits {
    /// Exactly what `manifest` says.
    pub fn of(manifest: &Manifest) -> Self {
        let expected = Some((manifest.unpacked_digest, manifest.unpacked_size));
        Self { entries_max: tree::ENTRIES_MAX, unpacked_bytes_max: manifest.unpacked_size, expected }
    }
}

/// What was laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unpacked {
    /// SHA-256 of the tar.
    pub digest: Digest,
    /// Bytes of the tar.
    pub size: u64,
    /// Entries: files, folders and links.
    pub entries: u64,
}

/// Why an archive was not laid out. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// An entry that could do harm.
    #[error("the archive holds `{}`, which is refused: {why}", path.display())]
    Refused {
        /// Its path as the archive gives it.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Two entries of one name.
    #[error("the archive holds `{}` twice, which is refused", .0.display())]
    Duplicate(PathBuf),
    /// More than the limits allow.
    #[error("the archive holds more than the {0} bytes it may: its manifest and its bytes do not fit, or it is a trap")]
    TooLarge(u64),
    /// More than the limits allow.
    #[error("the archive holds more than the {0} entries it may")]
    TooMany(u64),
    /// Not an archive, or only a part of one.
    #[error("the archive is damaged: {0}; fetch it again")]
    Damaged(String),
    /// Its manifest promises something else.
    #[error("the archive unpacks to {found} ({found_size} bytes), its manifest says {expected} ({expected_size} bytes)")]
    Mismatch {
        /// The digest promised.
        expected: Digest,
        /// The bytes promised.
        expected_size: u64,
        /// The digest found.
        found: Digest,
        /// The bytes found.
        found_size: u64,
    },
    /// The disk has too little room.
    #[error(transparent)]
    NoSpace(#[from] NoSpace),
    /// The place is taken.
    #[error("`{}` is there already: remove it first if it should be unpacked again", .0.display())]
    Exists(PathBuf),
    /// The disk did not do as told.
    #[error("cannot {action} `{}` to unpack an archive", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

type Result<T, E = UnpackError> = std::result::Result<T, E>;

/// Up to so many files each is synced by itself; more are synced with one `syncfs`, which then is cheaper though it waits for others' data.
const SYNC_EACH_MAX: u64 = 512;
/// The longest distance back that a compressed frame may refer to, as a power of two: 8 MiB of memory. The packer's is 2 MiB.
const WINDOW_LOG_MAX: u32 = 23;

/// Unpacks the artifact from `reader` to the new folder `dest`, whose parent must exist. It is built in `.<name>.partial` beside it, synced,
/// and renamed when all of it has been checked; what an interrupted call left there is removed by the next. Two calls for one `dest`
/// must not run at once.
pub fn unpack(reader: impl Read, dest: &Path, limits: &Limits) -> Result<Unpacked> {
    let io = |action, path: &Path| {
        let path = path.to_owned();
        move |source| UnpackError::Io { action, path, source }
    };
    let (Some(parent), Some(name)) = (dest.parent(), dest.file_name()) else {
        return Err(io("use", dest)(io::ErrorKind::InvalidInput.into()));
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    if dest.symlink_metadata().is_ok() {
        return Err(UnpackError::Exists(dest.to_owned()));
    }
    let mut partial_name = std::ffi::OsString::from(".");
    partial_name.push(name);
    partial_name.push(".partial");
    let partial = parent.join(partial_name);
    remove_tree(&partial).map_err(io("remove what an interrupted attempt left at", &partial))?;
    let expected_size = limits.expected.map_or(0, |(_, size)| size);
    match space::check_space(parent, expected_size) {
        Ok(()) => {}
        Err(SpaceError::NoSpace(error)) => return Err(error.into()),
        Err(SpaceError::Unknown { path, source }) => return Err(io("ask for the space of", &path)(source)),
    }

    fs::DirBuilder::new().mode(0o700).create(&partial).map_err(io("create", &partial))?;
    let mut leftover = RemoveOnDrop(Some(partial.clone()));
    let unpacked = lay_out(reader, &partial, limits)?;
    crate::crash::point("unpack::before_rename");
    fs::rename(&partial, dest).map_err(io("rename a finished folder to", dest))?;
    leftover.0 = Some(dest.to_owned());
    File::open(parent).and_then(|parent| parent.sync_all()).map_err(io("sync", parent))?;
    leftover.0 = None;
    Ok(unpacked)
}

fn remove_tree(path: &Path) -> io::Result<()> {
    match path.symlink_metadata() {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

struct RemoveOnDrop(Option<PathBuf>);

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        if let Some(path) = self.0.take()
            && let Err(error) = remove_tree(&path)
        {
            tracing::warn!(path = %path.display(), %error, "cannot remove a folder that was not finished");
        }
    }
}

fn lay_out(reader: impl Read, partial: &Path, limits: &Limits) -> Result<Unpacked> {
    let damaged = |error: io::Error| damaged(&error);
    let mut decoder = zstd::Decoder::with_buffer(BufReader::with_capacity(128 << 10, reader)).map_err(damaged)?.single_frame();
    decoder.window_log_max(WINDOW_LOG_MAX).map_err(damaged)?;
    let bytes_max = limits.expected.map_or(limits.unpacked_bytes_max, |(_, size)| size.min(limits.unpacked_bytes_max));
    let mut archive = Archive::new(HashedRead { inner: decoder, hash: Sha256::new(), size: 0, size_max: bytes_max });

    let root = Root::open(partial).map_err(|source| UnpackError::Io { action: "open", path: partial.to_owned(), source })?;
    let mut layout = Layout { partial, root, needed: bytes_max, entries: 0, files: 0, folders: Vec::new() };
    let mut names = LongNames::default();
    // Raw, because the library would read a long name of any length into memory.
    for entry in archive.entries().map_err(damaged)?.raw(true) {
        let mut entry = entry.map_err(damaged)?;
        if names.take(&mut entry)? {
            continue;
        }
        layout.entries += 1;
        if layout.entries > limits.entries_max {
            return Err(UnpackError::TooMany(limits.entries_max));
        }
        let (path, link) = names.of(&entry);
        layout.add(entry, path, link)?;
    }
    if names.pending() {
        return Err(UnpackError::Damaged("it ends after a long name".to_owned()));
    }
    let mut stream = archive.into_inner();
    stream.expect_zeros()?;
    let (digest, size) = (Digest(stream.hash.finalize().into()), stream.size);
    let mut rest = stream.inner.finish();
    if !rest.fill_buf().map_err(damaged)?.is_empty() {
        return Err(UnpackError::Damaged("something follows its end".to_owned()));
    }
    if let Some((expected, expected_size)) = limits.expected
        && (expected, expected_size) != (digest, size)
    {
        return Err(UnpackError::Mismatch { expected, expected_size, found: digest, found_size: size });
    }
    layout.finish()?;
    Ok(Unpacked { digest, size, entries: layout.entries })
}

/// Counts, hashes and bounds what is decompressed.
struct HashedRead<R> {
    inner: R,
    hash: Sha256,
    size: u64,
    size_max: u64,
}

#[derive(Debug, thiserror::Error)]
#[error("more than {0} bytes")]
struct OverLimit(u64);

impl<R: Read> Read for HashedRead<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.size += read as u64;
        if self.size > self.size_max {
            return Err(io::Error::other(OverLimit(self.size_max)));
        }
        self.hash.update(&buffer[..read]);
        Ok(read)
    }
}

impl<R: Read> HashedRead<R> {
    /// After the end of a tar only padding may come.
    fn expect_zeros(&mut self) -> Result<()> {
        let mut buffer = [0; 4096];
        loop {
            match self.read(&mut buffer).map_err(|error| damaged(&error))? {
                0 => return Ok(()),
                read if buffer[..read].iter().all(|byte| *byte == 0) => {}
                _ => return Err(UnpackError::Damaged("something follows the end of the tar".to_owned())),
            }
        }
    }
}

fn damaged(error: &io::Error) -> UnpackError {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<OverLimit>()) {
        Some(OverLimit(max)) => UnpackError::TooLarge(*max),
        None => UnpackError::Damaged(error.to_string()),
    }
}

type Entry<'a, R> = tar::Entry<'a, R>;

/// Names too long for a header, given in entries before the one they name.
#[derive(Default)]
struct LongNames {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl LongNames {
    /// Takes `entry` if it is a long name.
    fn take<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<bool> {
        let slot = match entry.header().entry_type() {
            EntryType::GNULongName => &mut self.path,
            EntryType::GNULongLink => &mut self.link,
            _ => return Ok(false),
        };
        let refused = |why| Err(UnpackError::Refused { path: PathBuf::from("a long name"), why });
        let size = entry.header().entry_size().map_err(|error| damaged(&error))?;
        if size > tree::PATH_BYTES_MAX as u64 + 1 {
            return refused("it is longer than 3072 bytes");
        }
        if slot.is_some() {
            return refused("it is given twice");
        }
        let mut name = Vec::with_capacity(size as usize);
        entry.read_to_end(&mut name).map_err(|error| damaged(&error))?;
        if name.len() as u64 != size {
            return Err(UnpackError::Damaged("it ends within a long name".to_owned()));
        }
        if name.last() == Some(&0) {
            name.pop();
        }
        *slot = Some(name);
        Ok(true)
    }

    /// Path and link of the entry that follows.
    fn of<R: Read>(&mut self, entry: &Entry<'_, R>) -> (Vec<u8>, Vec<u8>) {
        let header = entry.header();
        let path = self.path.take().unwrap_or_else(|| header.path_bytes().into_owned());
        let link = self.link.take();
        let link = link.unwrap_or_else(|| header.link_name_bytes().map(|link| link.into_owned()).unwrap_or_default());
        (path, link)
    }

    fn pending(&self) -> bool {
        self.path.is_some() || self.link.is_some()
    }
}

/// The tree that is being made.
struct Layout<'a> {
    partial: &'a Path,
    root: Root,
    /// Bytes that all of it may take: told when the disk is full.
    needed: u64,
    entries: u64,
    files: u64,
    folders: Vec<(Vec<u8>, u64)>,
}

impl Layout<'_> {
    fn add<R: Read>(&mut self, entry: Entry<'_, R>, mut path: Vec<u8>, link: Vec<u8>) -> Result<()> {
        let header = entry.header();
        let kind = header.entry_type();
        if kind == EntryType::Directory && path.ends_with(b"/") {
            path.pop();
        }
        let refused = |why| Err(UnpackError::Refused { path: as_path(&path), why });
        if let Err(why) = tree::check_path(&path) {
            return refused(why);
        }
        let number = |number: io::Result<u64>| number.map_err(|error| damaged(&error));
        let (size, mtime_secs) = (number(header.entry_size())?, number(header.mtime())?);
        let mode = header.mode().map_err(|error| damaged(&error))?;
        if mode & 0o7000 != 0 {
            return refused("it has a set-user-id, set-group-id or sticky bit");
        }
        if size != 0 && kind != EntryType::Regular {
            return refused("only a file may have content");
        }
        match kind {
            EntryType::Regular => self.add_file(entry, &path, size, mode & 0o111 != 0, mtime_secs),
            EntryType::Directory => {
                let (folder, name) = self.parent(&path)?;
                self.made(&path, mkdirat(folder.as_fd(), name, Mode::S_IRWXU))?;
                self.folders.push((path, mtime_secs));
                Ok(())
            }
            EntryType::Symlink => {
                if let Err(why) = tree::check_link(&path, &link) {
                    return refused(why);
                }
                let (folder, name) = self.parent(&path)?;
                self.made(&path, symlinkat(&link[..], folder.as_fd(), name))
            }
            EntryType::Link => self.add_hard_link(&path, &link),
            EntryType::Char | EntryType::Block => refused("it is a device"),
            EntryType::Fifo => refused("it is a fifo"),
            _ => refused("an artifact holds only files, folders and links"),
        }
    }

    fn add_file<R: Read>(
        &mut self,
        mut entry: Entry<'_, R>,
        path: &[u8],
        size: u64,
        executable: bool,
        mtime_secs: u64,
    ) -> Result<()> {
        let (folder, name) = self.parent(path)?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(folder.as_fd(), name, flags, Mode::S_IRUSR | Mode::S_IWUSR);
        let mut file = match file {
            Ok(file) => File::from(file),
            Err(error) => return self.made(path, Err(error)),
        };
        let mut buffer = vec![0; size.clamp(1, 256 << 10) as usize];
        let mut written = 0;
        loop {
            let read = match entry.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(damaged(&error)),
            };
            file.write_all(&buffer[..read]).map_err(|error| self.io("write", path, error))?;
            written += read as u64;
        }
        if written != size {
            return Err(UnpackError::Damaged("it ends within a file".to_owned()));
        }
        let mode = if executable { 0o755 } else { 0o644 };
        file.set_permissions(fs::Permissions::from_mode(mode)).map_err(|error| self.io("set the mode of", path, error))?;
        set_mtime(&file, mtime_secs).map_err(|error| self.io("set the time of", path, error))?;
        self.files += 1;
        if self.files <= SYNC_EACH_MAX {
            file.sync_all().map_err(|error| self.io("sync", path, error))?;
        }
        Ok(())
    }

    fn add_hard_link(&mut self, path: &[u8], link: &[u8]) -> Result<()> {
        let refused = |why| Err(UnpackError::Refused { path: as_path(path), why });
        if tree::check_path(link).is_err() {
            return refused("it links to something outside");
        }
        let Ok((old_folder, old_name)) = self.root.parent(link) else {
            return refused("it links to a file that does not come before it");
        };
        // A symbolic link that is safe where it stands would lead elsewhere from another depth.
        let is_file = fstatat(old_folder.as_fd(), old_name, AtFlags::AT_SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFREG.bits());
        if !is_file {
            return refused("it links to something that is no file before it");
        }
        let (folder, name) = self.parent(path)?;
        self.made(path, linkat(old_folder.as_fd(), old_name, folder.as_fd(), name, AtFlags::empty()))
    }

    /// The folder that holds `path`: it must have come before.
    fn parent<'p>(&mut self, path: &'p [u8]) -> Result<(std::sync::Arc<std::os::fd::OwnedFd>, &'p [u8])> {
        self.root.parent(path).map_err(|error| match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => {
                UnpackError::Refused { path: as_path(path), why: "its folder is no folder that came before it" }
            }
            _ => self.io("open the folder of", path, error),
        })
    }

    fn made(&self, path: &[u8], result: nix::Result<()>) -> Result<()> {
        match result {
            Ok(()) => Ok(()),
            Err(Errno::EEXIST) => Err(UnpackError::Duplicate(as_path(path))),
            Err(error) => Err(self.io("create", path, error.into())),
        }
    }

    fn io(&self, action: &'static str, path: &[u8], source: io::Error) -> UnpackError {
        match space::no_space(&source, self.partial, self.needed) {
            Some(error) => error.into(),
            None => UnpackError::Io { action, path: self.partial.join(as_path(path)), source },
        }
    }

    /// Gives folders their modes and times, deepest first, and brings everything to the disk.
    fn finish(&mut self) -> Result<()> {
        if self.files == 0 {
            return Err(UnpackError::Damaged("it holds no file".to_owned()));
        }
        self.folders.sort_unstable_by(|a, b| b.0.cmp(&a.0));
        let sync_all = self.files > SYNC_EACH_MAX;
        let below = std::mem::take(&mut self.folders).into_iter().map(|(path, mtime_secs)| (path, Some(mtime_secs)));
        for (path, mtime_secs) in below.chain([(Vec::new(), None)]) {
            let folder = self.root.folder(&path).map_err(|error| self.io("open", &path, error))?;
            fchmod(folder.as_fd(), Mode::from_bits_truncate(0o755))
                .map_err(|error| self.io("set the mode of", &path, error.into()))?;
            if let Some(mtime_secs) = mtime_secs {
                set_mtime(&*folder, mtime_secs).map_err(|error| self.io("set the time of", &path, error))?;
            }
            if !sync_all {
                fsync(folder.as_fd()).map_err(|error| self.io("sync", &path, error.into()))?;
            }
        }
        if sync_all {
            let top = self.root.folder(b"").map_err(|error| self.io("open", b"", error))?;
            syncfs(top.as_fd()).map_err(|error| self.io("sync", b"", error.into()))?;
        }
        Ok(())
    }
}

fn set_mtime(file: impl AsFd, secs: u64) -> io::Result<()> {
    // Not every file system holds later times than 2106; a time beyond is a hostile one, and the last will do.
    let time = TimeSpec::new(i64::from(u32::try_from(secs).unwrap_or(u32::MAX)), 0);
    Ok(futimens(file.as_fd(), &time, &time)?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
