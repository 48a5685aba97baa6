//! Unpacks an artifact, or leaves nothing. The archive is treated as hostile, even after its digest was checked: whoever can build
//! chooses its bytes. Knows nothing of releases. Synchronous: async callers use `spawn_blocking`.
//!
//! No link is followed: each folder is opened name by name without links, each file is created anew, so a second entry of one name is
//! an error and no entry can write through an earlier one. Modes become 0755 or 0644, owner is who unpacks; set-id and sticky bits,
//! devices, fifos, extended headers and sparse files are refused, since [`super::archive`] never writes them.

mod disk;
mod inspect;

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Read},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};
use tar::{Archive, EntryType};

use super::{
    manifest::Manifest,
    pieces::CONTENT_BYTES_MAX,
    tree::{self, NamesBudget, as_path},
};
use swell_model::digest::Digest;
use swell_system::disk_space::{self, NoSpace, SpaceError};

/// Bounds of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Entries: files, folders and links.
    pub entries_max: u64,
    /// Bytes of the tar, when the archive's manifest is not at hand.
    pub unpacked_bytes_max: u64,
    /// Bytes of all paths and targets of symbolic links.
    pub names_bytes_max: u64,
    /// Digest and size that its tar must have.
    pub expected: Option<(Digest, u64)>,
}

impl Limits {
    /// Exactly what `manifest` says.
    pub fn of(manifest: &Manifest) -> Self {
        let expected = Some((manifest.unpacked_digest, manifest.unpacked_size));
        Self { unpacked_bytes_max: manifest.unpacked_size, expected, ..Self::of_any() }
    }

    /// The bounds of any artifact, without its manifest.
    pub fn of_any() -> Self {
        Self {
            entries_max: tree::ENTRIES_MAX,
            unpacked_bytes_max: CONTENT_BYTES_MAX,
            names_bytes_max: tree::NAMES_BYTES_MAX,
            expected: None,
        }
    }

    /// Bytes of the tar.
    fn bytes_max(&self) -> u64 {
        self.expected.map_or(self.unpacked_bytes_max, |(_, size)| size.min(self.unpacked_bytes_max))
    }
}

/// Figures of an unpacked artifact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unpacked {
    /// SHA-256 of the tar.
    pub digest: Digest,
    /// Bytes of the tar.
    pub size: u64,
    /// Entries: files, folders and links.
    pub entries: u64,
}

/// Why an archive was not unpacked. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// An entry that could do harm is refused.
    #[error("the archive holds `{}`, which is refused: {why}", path.display())]
    Refused { path: PathBuf, why: &'static str },
    /// Two entries of one name.
    #[error("the archive holds `{}` twice, which is refused", .0.display())]
    Duplicate(PathBuf),
    /// More than the limits allow.
    #[error("the archive holds more than the {0} bytes allowed: it does not match its manifest, or is a decompression bomb")]
    TooLarge(u64),
    /// More than the limits allow.
    #[error("the archive holds more than the {0} entries allowed")]
    TooMany(u64),
    /// Longer names than any artifact may have.
    #[error("the paths and link targets in the archive have more than {0} bytes together, which is refused")]
    TooManyNames(u64),
    /// Not an archive, or only a part of one.
    #[error("the archive is damaged: {0}; fetch it again")]
    Damaged(String),
    /// It does not match its manifest.
    #[error("the archive unpacks to {found} ({found_size} bytes), its manifest says {expected} ({expected_size} bytes)")]
    Mismatch { expected: Digest, expected_size: u64, found: Digest, found_size: u64 },
    /// The disk has too little room.
    #[error(transparent)]
    NoSpace(#[from] NoSpace),
    /// The destination exists.
    #[error("`{}` exists: remove it to unpack again", .0.display())]
    Exists(PathBuf),
    /// A file operation failed.
    #[error("failed to {action} `{}` while unpacking an archive", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

type Result<T, E = UnpackError> = std::result::Result<T, E>;

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
    match disk_space::check_space(parent, expected_size) {
        Ok(()) => {}
        Err(SpaceError::NoSpace(error)) => return Err(error.into()),
        Err(SpaceError::Unknown { path, source }) => return Err(io("ask for the space of", &path)(source)),
    }

    fs::DirBuilder::new().mode(0o700).create(&partial).map_err(io("create", &partial))?;
    let mut leftover = RemoveOnDrop(Some(partial.clone()));
    let unpacked = lay_out(reader, &partial, limits)?;
    swell_system::crash::point("unpack::before_rename");
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
            tracing::warn!(path = %path.display(), %error, "failed to remove an unfinished folder");
        }
    }
}

/// Reads an archive without writing: whatever [`unpack`] would refuse is refused here, before it is deployed. Memory: at most the
/// names, 256 MiB, and about 100 bytes an entry.
pub fn inspect(reader: impl Read, limits: &Limits) -> Result<Unpacked> {
    read_archive(reader, limits, &mut inspect::Seen::default())
}

fn lay_out(reader: impl Read, partial: &Path, limits: &Limits) -> Result<Unpacked> {
    let mut layout = disk::Layout::open(partial, limits.bytes_max())?;
    let unpacked = read_archive(reader, limits, &mut layout)?;
    layout.finish()?;
    Ok(unpacked)
}

fn read_archive(reader: impl Read, limits: &Limits, place: &mut impl Place) -> Result<Unpacked> {
    let damaged = |error: io::Error| damaged(&error);
    let mut decoder = zstd::Decoder::with_buffer(BufReader::with_capacity(128 << 10, reader)).map_err(damaged)?.single_frame();
    decoder.window_log_max(WINDOW_LOG_MAX).map_err(damaged)?;
    let mut archive = Archive::new(HashedRead { inner: decoder, hash: Sha256::new(), size: 0, size_max: limits.bytes_max() });
    let (mut entries, mut files) = (0, 0);
    let (mut names, mut budget) = (LongNames::default(), NamesBudget::of(limits.names_bytes_max));
    // Raw, because the library would read a long name of any length into memory.
    for entry in archive.entries().map_err(damaged)?.raw(true) {
        let mut entry = entry.map_err(damaged)?;
        if names.take(&mut entry)? {
            continue;
        }
        entries += 1;
        if entries > limits.entries_max {
            return Err(UnpackError::TooMany(limits.entries_max));
        }
        files += u64::from(entry.header().entry_type() == EntryType::Regular);
        let (path, link) = names.of(&entry);
        add(place, &mut budget, entry, path, &link)?;
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
    if files == 0 {
        return Err(UnpackError::Damaged("it holds no file".to_owned()));
    }
    Ok(Unpacked { digest, size, entries })
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

/// A file's header, as far as it is kept.
struct FileHeader {
    size: u64,
    executable: bool,
    mtime_secs: u64,
}

/// Takes entries whose names were checked. Refuses those that conflict with earlier ones.
trait Place {
    fn folder(&mut self, path: Vec<u8>, mtime_secs: u64) -> Result<()>;

    /// Takes all of `content`, with [`each_chunk`].
    fn file(&mut self, path: &[u8], header: FileHeader, content: &mut dyn Read) -> Result<()>;

    fn symbolic_link(&mut self, path: &[u8], target: &[u8]) -> Result<()>;

    fn hard_link(&mut self, path: &[u8], to: &[u8]) -> Result<()>;
}

/// Gives the content of a file in parts, and is an error when it is not `size` bytes.
fn each_chunk(content: &mut dyn Read, size: u64, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut buffer = vec![0; size.clamp(1, 256 << 10) as usize];
    let mut seen = 0;
    loop {
        match content.read(&mut buffer) {
            Ok(0) if seen == size => return Ok(()),
            Ok(0) => return Err(UnpackError::Damaged("it ends within a file".to_owned())),
            Ok(read) => {
                each(&buffer[..read])?;
                seen += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(damaged(&error)),
        }
    }
}

fn refused(path: &[u8], why: &'static str) -> UnpackError {
    UnpackError::Refused { path: as_path(path), why }
}

const NO_FOLDER: &str = "its folder is no folder that came before it";
const NO_FILE: &str = "it links to something that is no file before it";

/// Refuses an entry that could do harm, and passes others to `place`.
fn add<R: Read>(
    place: &mut impl Place,
    names: &mut NamesBudget,
    mut entry: Entry<'_, R>,
    mut path: Vec<u8>,
    link: &[u8],
) -> Result<()> {
    let header = entry.header();
    let kind = header.entry_type();
    if kind == EntryType::Directory && path.ends_with(b"/") {
        path.pop();
    }
    tree::check_path(&path).map_err(|why| refused(&path, why))?;
    // What a hard link names was counted where it came.
    let target_len = if kind == EntryType::Symlink { link.len() } else { 0 };
    if !names.take(path.len() + target_len) {
        return Err(UnpackError::TooManyNames(names.bytes_max()));
    }
    let number = |number: io::Result<u64>| number.map_err(|error| damaged(&error));
    let (size, mtime_secs) = (number(header.entry_size())?, number(header.mtime())?);
    let mode = header.mode().map_err(|error| damaged(&error))?;
    if mode & 0o7000 != 0 {
        return Err(refused(&path, "it has a set-user-id, set-group-id or sticky bit"));
    }
    if size != 0 && kind != EntryType::Regular {
        return Err(refused(&path, "only a file may have content"));
    }
    match kind {
        EntryType::Regular => {
            let executable = mode & 0o111 != 0;
            place.file(&path, FileHeader { size, executable, mtime_secs }, &mut entry)
        }
        EntryType::Directory => place.folder(path, mtime_secs),
        EntryType::Symlink => {
            tree::check_link(&path, link).map_err(|why| refused(&path, why))?;
            place.symbolic_link(&path, link)
        }
        EntryType::Link => {
            tree::check_path(link).map_err(|_| refused(&path, "it links to something outside"))?;
            place.hard_link(&path, link)
        }
        EntryType::Char | EntryType::Block => Err(refused(&path, "it is a device")),
        EntryType::Fifo => Err(refused(&path, "it is a fifo")),
        _ => Err(refused(&path, "an artifact holds only files, folders and links")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
