//! Packs a folder into an artifact: the same tree gives the same bytes, whoever packs it, whenever and wherever.
//! Knows nothing of where the bytes go. Synchronous: async callers use `spawn_blocking`.
//!
//! Form: GNU tar (long names as `L` and `K` entries) in one zstd frame of level 3, single thread, with checksum. Entries are sorted by the
//! bytes of their paths; owner 0:0 without names; every time is `SOURCE_DATE_EPOCH` (not merely clamped to it, so that an older time
//! on one machine changes nothing); modes 0755 (folders and what anyone may execute) or 0644; no set-id bits, no extended attributes. Files
//! hard-linked to one another are stored once, at the first of their paths, then as links. Another zstd version may compress otherwise:
//! digests are compared between equal versions of this program, and the digest of the tar is kept beside.

use std::{
    collections::HashMap,
    ffi::CStr,
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use nix::{
    dir::Dir,
    fcntl::{AtFlags, OFlag, openat, readlinkat},
    sys::stat::{FileStat, Mode, SFlag, fstat, fstatat},
};
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};

use super::{
    pieces::{Content, ContentHasher},
    tree::{self, NamesBudget, Root, as_path},
};
use swell_model::digest::Digest;

/// Options of packing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackOptions {
    /// The time of every entry, in seconds since 1970 (`SOURCE_DATE_EPOCH`: the commit's).
    pub mtime_secs: u64,
}

/// Figures of a packed artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// SHA-256 of the compressed bytes.
    pub digest: Digest,
    pub size: u64,
    /// Bytes of a piece.
    pub piece_length: u64,
    pub pieces: Vec<Digest>,
    /// SHA-256 of the tar.
    pub unpacked_digest: Digest,
    /// Bytes of the tar.
    pub unpacked_size: u64,
    /// Regular files, hard links counted.
    pub files: u64,
}

/// Why a folder was not packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The folder has no file.
    #[error("`{}` holds no file, so there is nothing to deploy: let the package phase write into `$OUT`", .0.display())]
    Empty(PathBuf),
    /// A device, socket or fifo.
    #[error("`{}` is a {kind}, which an artifact cannot hold: remove it at the end of the package phase", path.display())]
    Unsupported { path: PathBuf, kind: &'static str },
    /// A path that not every target could unpack.
    #[error("failed to pack `{}`: {why}", path.display())]
    BadPath { path: PathBuf, why: &'static str },
    /// A symbolic link that leaves the artifact.
    #[error("failed to pack the link `{}` to `{}`: {why}; link relatively, to something in the artifact", path.display(), target.display())]
    BadLink { path: PathBuf, target: PathBuf, why: &'static str },
    /// More entries than any artifact may have.
    #[error("`{}` holds more than 1,000,000 entries: package fewer files", .0.display())]
    TooMany(PathBuf),
    /// Longer names than any artifact may have.
    #[error(
        "the paths and link targets in `{}` have more than {} bytes together: package fewer files, or give them shorter names",
        .0.display(), tree::NAMES_BYTES_MAX
    )]
    TooManyNames(PathBuf),
    /// More bytes than any artifact may have.
    #[error("`{}` makes a tar of {size} bytes, more than the 63 GiB of the largest artifact: package less", path.display())]
    TooLarge {
        path: PathBuf,
        /// Bytes of its tar, or a little more.
        size: u64,
    },
    /// The tree changed meanwhile.
    #[error("`{}` changed while it was packed: stop all processes before the package phase ends", .0.display())]
    Changed(PathBuf),
    /// The tree could not be read.
    #[error("failed to {action} `{}` while packing", path.display())]
    Read { action: &'static str, path: PathBuf, source: io::Error },
    /// The archive could not be written.
    #[error("failed to write the archive")]
    Write(#[source] io::Error),
}

type Result<T, E = PackError> = std::result::Result<T, E>;

/// The level of compression: fixed, since it decides the bytes.
const ZSTD_LEVEL: i32 = 3;
const BLOCK: u64 = 512;
/// The most bytes of a tar: what does not compress grows a little, and must still be content that a store takes.
const TAR_BYTES_MAX: u64 = super::pieces::CONTENT_BYTES_MAX - (1 << 30);
/// Names of this many bytes or more are given in an entry of their own.
const NAME_FIELD_BYTES: usize = 100;

/// Packs the folder `dir` and writes the artifact to `out`. Memory: the names, at most 256 MiB and
/// once more while folders are listed, and about 150 bytes an entry; no file is read whole.
pub fn pack(dir: &Path, out: impl Write, options: PackOptions) -> Result<Packed> {
    let read = |action| move |source| PackError::Read { action, path: dir.to_owned(), source };
    let mut root = Root::open(dir).map_err(read("open"))?;
    let mut nodes = Vec::new();
    let top = root.folder(b"").map_err(read("open"))?;
    Walk { dir, nodes: &mut nodes, names: NamesBudget::of(tree::NAMES_BYTES_MAX) }.folder(&top, &mut Vec::new())?;
    nodes.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    let files = nodes.iter().filter(|node| matches!(node.kind, Kind::File { .. })).count() as u64;
    if files == 0 {
        return Err(PackError::Empty(dir.to_owned()));
    }

    let tar_size_max = tar_size_max(dir, &nodes)?;
    // What cannot be compressed grows by a few bytes a block of 128 KiB; this bound is far above.
    let size_max = tar_size_max + tar_size_max / 128 + (1 << 20);
    let sink = HashedWrite { out, hasher: ContentHasher::new(size_max) };
    let mut encoder = zstd::Encoder::new(sink, ZSTD_LEVEL).map_err(PackError::Write)?;
    encoder.include_checksum(true).map_err(PackError::Write)?;

    let mut tar = TarWriter { out: encoder, hash: Sha256::new(), size: 0, mtime_secs: options.mtime_secs };
    // First path of each inode that has several.
    let mut linked: HashMap<(u64, u64), &[u8]> = HashMap::new();
    for node in &nodes {
        match &node.kind {
            Kind::Folder => {
                tar.entry(EntryType::Directory, &[&node.path[..], b"/"].concat(), b"", 0o755, 0).map_err(PackError::Write)?
            }
            Kind::Link(target) => tar.entry(EntryType::Symlink, &node.path, target, 0o777, 0).map_err(PackError::Write)?,
            Kind::File(file) => {
                let mode = if file.executable { 0o755 } else { 0o644 };
                if file.links > 1 {
                    if let Some(first) = linked.get(&file.inode) {
                        tar.entry(EntryType::Link, &node.path, first, mode, 0).map_err(PackError::Write)?;
                        continue;
                    }
                    linked.insert(file.inode, &node.path);
                }
                let reader = open_file(&mut root, &node.path, file)?;
                tar.entry(EntryType::Regular, &node.path, b"", mode, file.size).map_err(PackError::Write)?;
                tar.data(reader, &node.path, file.size)?;
            }
        }
    }
    let (mut sink, unpacked_digest, unpacked_size) = tar.finish().map_err(PackError::Write)?;
    sink.out.flush().map_err(PackError::Write)?;
    let Content { digest, size, piece_length, pieces } = sink.hasher.finish();
    Ok(Packed { digest, size, piece_length, pieces, unpacked_digest, unpacked_size, files })
}

/// An upper bound on the tar of `nodes`, if that is not too large.
fn tar_size_max(dir: &Path, nodes: &[Node]) -> Result<u64> {
    let size = nodes.iter().map(Node::tar_size_max).fold(2 * BLOCK, u64::saturating_add);
    if size > TAR_BYTES_MAX { Err(PackError::TooLarge { path: dir.to_owned(), size }) } else { Ok(size) }
}

struct Node {
    path: Vec<u8>,
    kind: Kind,
}

enum Kind {
    Folder,
    Link(Vec<u8>),
    File(FileNode),
}

struct FileNode {
    executable: bool,
    size: u64,
    links: u64,
    inode: (u64, u64),
}

impl Node {
    /// An upper bound on what it takes in the tar: its header, two long names, its data.
    fn tar_size_max(&self) -> u64 {
        let data = match &self.kind {
            Kind::File(file) => file.size,
            _ => 0,
        };
        // With its slash and a NUL.
        let path = self.path.len() as u64 + 2;
        let target = match &self.kind {
            Kind::Folder => 0,
            Kind::Link(target) => target.len() as u64 + 1,
            // It may become a hard link, to any path.
            Kind::File(file) if file.links > 1 => tree::PATH_BYTES_MAX as u64 + 1,
            Kind::File(_) => 0,
        };
        let long = |name: u64| if name > NAME_FIELD_BYTES as u64 { BLOCK + name.next_multiple_of(BLOCK) } else { 0 };
        BLOCK.saturating_add(data).saturating_add(BLOCK) + long(path) + long(target)
    }
}

/// Collects the entries below a folder, in any order.
struct Walk<'a> {
    dir: &'a Path,
    nodes: &'a mut Vec<Node>,
    names: NamesBudget,
}

impl Walk<'_> {
    /// What is below `folder`, whose path is `prefix`.
    fn folder(&mut self, folder: &OwnedFd, prefix: &mut Vec<u8>) -> Result<()> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let list_error =
            |error: nix::Error, path: &[u8]| PackError::Read { action: "list", path: as_path(path), source: error.into() };
        let mut entries = Dir::openat(folder.as_fd(), c".", flags, Mode::empty()).map_err(|error| list_error(error, prefix))?;
        let mut names = Vec::new();
        for entry in entries.iter() {
            let entry = entry.map_err(|error| list_error(error, prefix))?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            // Before it is kept: a build decides how much there is.
            if (self.nodes.len() + names.len()) as u64 >= tree::ENTRIES_MAX {
                return Err(PackError::TooMany(self.dir.to_owned()));
            }
            let slash = usize::from(!prefix.is_empty());
            self.take(prefix.len() + slash + name.to_bytes().len())?;
            names.push(name.to_owned());
        }
        drop(entries);

        for name in names {
            let prefix_len = prefix.len();
            if prefix_len > 0 {
                prefix.push(b'/');
            }
            prefix.extend_from_slice(name.to_bytes());
            tree::check_path(prefix).map_err(|why| PackError::BadPath { path: as_path(prefix), why })?;
            let kind = look_at(folder, &name, prefix)?;
            if let Kind::Link(target) = &kind {
                self.take(target.len())?;
            }
            let is_folder = matches!(kind, Kind::Folder);
            self.nodes.push(Node { path: prefix.clone(), kind });
            if is_folder {
                let flags = flags | OFlag::O_NOFOLLOW;
                let below = openat(folder.as_fd(), name.as_c_str(), flags, Mode::empty());
                let below =
                    below.map_err(|error| PackError::Read { action: "open", path: as_path(prefix), source: error.into() })?;
                self.folder(&below, prefix)?;
            }
            prefix.truncate(prefix_len);
        }
        Ok(())
    }

    fn take(&mut self, bytes: usize) -> Result<()> {
        if self.names.take(bytes) { Ok(()) } else { Err(PackError::TooManyNames(self.dir.to_owned())) }
    }
}

fn look_at(folder: &OwnedFd, name: &CStr, path: &[u8]) -> Result<Kind> {
    let read = |action| move |error: nix::Error| PackError::Read { action, path: as_path(path), source: error.into() };
    let stat = fstatat(folder.as_fd(), name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(read("look at"))?;
    let unsupported = |kind| Err(PackError::Unsupported { path: as_path(path), kind });
    match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFDIR => Ok(Kind::Folder),
        SFlag::S_IFREG => Ok(Kind::File(FileNode::of(&stat))),
        SFlag::S_IFLNK => {
            let target = readlinkat(folder.as_fd(), name).map_err(read("read the link"))?.as_bytes().to_vec();
            match tree::check_link(path, &target) {
                Ok(()) => Ok(Kind::Link(target)),
                Err(why) => Err(PackError::BadLink { path: as_path(path), target: as_path(&target), why }),
            }
        }
        SFlag::S_IFIFO => unsupported("fifo"),
        SFlag::S_IFSOCK => unsupported("socket"),
        SFlag::S_IFCHR | SFlag::S_IFBLK => unsupported("device"),
        _ => unsupported("file of unknown type"),
    }
}

impl FileNode {
    // The widths of these fields differ between architectures; all fit 64 bits.
    #[allow(clippy::unnecessary_cast)]
    fn of(stat: &FileStat) -> Self {
        Self {
            executable: stat.st_mode & 0o111 != 0,
            size: stat.st_size.max(0) as u64,
            links: stat.st_nlink as u64,
            inode: (stat.st_dev as u64, stat.st_ino as u64),
        }
    }
}

/// Opens what [`Walk`] found, and nothing that replaced it since: the tree was written by a build, which is not trusted.
fn open_file(root: &mut Root, path: &[u8], seen: &FileNode) -> Result<File> {
    let read = |source| PackError::Read { action: "open", path: as_path(path), source };
    let (folder, name) = root.parent(path).map_err(read)?;
    // Without waiting: a fifo put in its place must not block the packer.
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = openat(folder.as_fd(), name, flags, Mode::empty()).map_err(|error| read(error.into()))?;
    let now = FileNode::of(&fstat(file.as_fd()).map_err(|error| read(error.into()))?);
    if now.inode != seen.inode || now.size != seen.size {
        return Err(PackError::Changed(as_path(path)));
    }
    Ok(File::from(file))
}

/// Passes bytes on and hashes them.
struct HashedWrite<W> {
    out: W,
    hasher: ContentHasher,
}

impl<W: Write> Write for HashedWrite<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hasher.update(&bytes[..written]).map_err(io::Error::other)?;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

struct TarWriter<W: Write> {
    out: zstd::Encoder<'static, W>,
    hash: Sha256,
    size: u64,
    mtime_secs: u64,
}

impl<W: Write> TarWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn pad(&mut self) -> io::Result<()> {
        let missing = self.size.next_multiple_of(BLOCK) - self.size;
        self.write(&[0; BLOCK as usize][..missing as usize])
    }

    /// Writes the headers of one entry; its data, if any, follow.
    fn entry(&mut self, kind: EntryType, path: &[u8], link: &[u8], mode: u32, size: u64) -> io::Result<()> {
        for (long, kind) in [(link, EntryType::GNULongLink), (path, EntryType::GNULongName)] {
            if long.len() >= NAME_FIELD_BYTES {
                self.header(kind, b"././@LongLink", b"", 0o644, long.len() as u64 + 1, 0)?;
                self.write(long)?;
                self.write(&[0])?;
                self.pad()?;
            }
        }
        let cut = |name: &[u8]| name[..name.len().min(NAME_FIELD_BYTES - 1)].to_vec();
        self.header(kind, &cut(path), &cut(link), mode, size, self.mtime_secs)
    }

    fn header(&mut self, kind: EntryType, name: &[u8], link: &[u8], mode: u32, size: u64, mtime_secs: u64) -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(size);
        header.set_mtime(mtime_secs);
        let fields = header.as_old_mut();
        fields.name[..name.len()].copy_from_slice(name);
        fields.linkname[..link.len()].copy_from_slice(link);
        header.set_cksum();
        self.write(header.as_bytes())
    }

    /// Writes exactly `size` bytes of `file`.
    fn data(&mut self, mut file: File, path: &[u8], size: u64) -> Result<()> {
        let mut buffer = vec![0; size.clamp(1, 256 << 10) as usize];
        let mut left = size;
        while left > 0 {
            let wanted = left.min(buffer.len() as u64) as usize;
            let read = match file.read(&mut buffer[..wanted]) {
                Ok(0) => return Err(PackError::Changed(as_path(path))),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(PackError::Read { action: "read", path: as_path(path), source }),
            };
            self.write(&buffer[..read]).map_err(PackError::Write)?;
            left -= read as u64;
        }
        self.pad().map_err(PackError::Write)
    }

    /// Ends the archive: two empty blocks.
    fn finish(mut self) -> io::Result<(W, Digest, u64)> {
        self.write(&[0; 2 * BLOCK as usize])?;
        Ok((self.out.finish()?, Digest(self.hash.finalize().into()), self.size))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
