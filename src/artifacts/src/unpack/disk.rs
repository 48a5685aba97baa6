//! Creates entries on the disk, below one folder, without following or replacing anything. Must not judge names: they were checked.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::{fd::AsFd, unix::fs::PermissionsExt},
    path::Path,
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

use super::{FileHeader, NO_FILE, NO_FOLDER, Place, Result, UnpackError, each_chunk, refused};
use crate::tree::{Root, as_path};
use swell_system::disk_space;

/// Up to this many files are synced one by one; more with one `syncfs`, which is then cheaper although it waits for others' data.
pub(super) const SYNC_EACH_MAX: u64 = 512;

/// The tree that is being made.
pub(super) struct Layout<'a> {
    partial: &'a Path,
    root: Root,
    /// Bytes needed in all, reported when the disk is full.
    needed: u64,
    files: u64,
    folders: Vec<(Vec<u8>, u64)>,
}

impl<'a> Layout<'a> {
    /// Lays out in the empty folder `partial`; all of it may take `needed` bytes.
    pub(super) fn open(partial: &'a Path, needed: u64) -> Result<Self> {
        let root = Root::open(partial).map_err(|source| UnpackError::Io { action: "open", path: partial.to_owned(), source })?;
        Ok(Self { partial, root, needed, files: 0, folders: Vec::new() })
    }
}

impl Place for Layout<'_> {
    fn folder(&mut self, path: Vec<u8>, mtime_secs: u64) -> Result<()> {
        let (folder, name) = self.parent(&path)?;
        self.made(&path, mkdirat(folder.as_fd(), name, Mode::S_IRWXU))?;
        self.folders.push((path, mtime_secs));
        Ok(())
    }

    fn file(&mut self, path: &[u8], header: FileHeader, content: &mut dyn Read) -> Result<()> {
        let (folder, name) = self.parent(path)?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(folder.as_fd(), name, flags, Mode::S_IRUSR | Mode::S_IWUSR);
        let mut file = match file {
            Ok(file) => File::from(file),
            Err(error) => return self.made(path, Err(error)),
        };
        each_chunk(content, header.size, |chunk| file.write_all(chunk).map_err(|error| self.io("write", path, error)))?;
        let mode = if header.executable { 0o755 } else { 0o644 };
        file.set_permissions(fs::Permissions::from_mode(mode)).map_err(|error| self.io("set the mode of", path, error))?;
        set_mtime(&file, header.mtime_secs).map_err(|error| self.io("set the time of", path, error))?;
        self.files += 1;
        if self.files <= SYNC_EACH_MAX {
            file.sync_all().map_err(|error| self.io("sync", path, error))?;
        }
        Ok(())
    }

    fn symbolic_link(&mut self, path: &[u8], target: &[u8]) -> Result<()> {
        let (folder, name) = self.parent(path)?;
        self.made(path, symlinkat(target, folder.as_fd(), name))
    }

    fn hard_link(&mut self, path: &[u8], to: &[u8]) -> Result<()> {
        let Ok((old_folder, old_name)) = self.root.parent(to) else { return Err(refused(path, NO_FILE)) };
        // A symbolic link that is safe where it stands would lead elsewhere from another depth.
        let is_file = fstatat(old_folder.as_fd(), old_name, AtFlags::AT_SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFREG.bits());
        if !is_file {
            return Err(refused(path, NO_FILE));
        }
        let (folder, name) = self.parent(path)?;
        self.made(path, linkat(old_folder.as_fd(), old_name, folder.as_fd(), name, AtFlags::empty()))
    }
}

impl Layout<'_> {
    /// The folder that holds `path`: it must have come before.
    fn parent<'p>(&mut self, path: &'p [u8]) -> Result<(std::sync::Arc<std::os::fd::OwnedFd>, &'p [u8])> {
        self.root.parent(path).map_err(|error| match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => refused(path, NO_FOLDER),
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
        match disk_space::no_space(&source, self.partial, Some(self.needed)) {
            Some(error) => error.into(),
            None => UnpackError::Io { action, path: self.partial.join(as_path(path)), source },
        }
    }

    /// Gives folders their modes and times, deepest first, and brings everything to the disk.
    pub(super) fn finish(&mut self) -> Result<()> {
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
