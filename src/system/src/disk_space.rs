//! Room on disks: asked before a lot is written, and told with figures when it runs out. Knows nothing of what is written.

use std::{
    io,
    path::{Path, PathBuf},
};

use nix::{errno::Errno, sys::statvfs::statvfs};

/// A file system has not enough room.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: free some space there or give it a larger disk", self.shortage())]
pub struct NoSpace {
    /// Bytes that were to be written, where that is known.
    pub needed: Option<u64>,
    /// Bytes free to this process, without the reserve.
    pub available: u64,
    /// A path on the file system.
    pub path: PathBuf,
}

impl NoSpace {
    fn shortage(&self) -> String {
        let (path, available) = (self.path.display(), self.available);
        match self.needed {
            Some(needed) => format!("`{path}` has {available} bytes free beyond its reserve and {needed} are needed"),
            None => format!("the disk of `{path}` is full: it has {available} bytes free beyond its reserve"),
        }
    }
}

/// Why space could not be granted.
#[derive(Debug, thiserror::Error)]
pub enum SpaceError {
    /// There is too little.
    #[error(transparent)]
    NoSpace(#[from] NoSpace),
    /// The file system could not be asked.
    #[error("cannot ask how much space `{}` has", path.display())]
    Unknown {
        /// Which path was asked about.
        path: PathBuf,
        source: io::Error,
    },
}

/// What is kept free for others (logs, databases): a twentieth of the file system, at most this many bytes.
pub const RESERVE_BYTES_MAX: u64 = 256 << 20;

/// Size and room of a file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes of the whole file system, used or not.
    pub capacity: u64,
    /// Free to an ordinary user.
    pub free: u64,
    /// Free without the reserve.
    pub available: u64,
}

/// The room of the file system that holds `path`, which must exist.
pub fn room(path: &Path) -> io::Result<Room> {
    let stat = statvfs(path)?;
    // The types differ between libcs; all are at most 64 bits.
    #[allow(clippy::unnecessary_cast)]
    let (unit, blocks, free) = (stat.fragment_size() as u64, stat.blocks() as u64, stat.blocks_available() as u64);
    let (capacity, free) = (blocks.saturating_mul(unit), free.saturating_mul(unit));
    let reserve = (capacity / 20).min(RESERVE_BYTES_MAX);
    Ok(Room { capacity, free, available: free.saturating_sub(reserve) })
}

/// Whether `needed` bytes can be written below `path`, which must exist, leaving the reserve.
pub fn check_space(path: &Path, needed: u64) -> Result<(), SpaceError> {
    let room = room(path).map_err(|source| SpaceError::Unknown { path: path.to_owned(), source })?;
    if needed <= room.available {
        return Ok(());
    }
    Err(NoSpace { needed: Some(needed), available: room.available, path: path.to_owned() }.into())
}

/// The figures, with what was `needed` where that is known, when `error` says that a disk or a quota below `path` is full.
pub fn no_space(error: &io::Error, path: &Path, needed: Option<u64>) -> Option<NoSpace> {
    let code = error.raw_os_error()?;
    if code != Errno::ENOSPC as i32 && code != Errno::EDQUOT as i32 {
        return None;
    }
    let available = room(path).map_or(0, |room| room.available);
    Some(NoSpace { needed, available, path: path.to_owned() })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn missing_space_is_refused_with_figures() {
        let dir = tempfile::tempdir().unwrap();
        check_space(dir.path(), 0).unwrap();
        let error = check_space(dir.path(), u64::MAX).unwrap_err();
        let SpaceError::NoSpace(error) = error else { panic!("{error}") };
        assert_eq!(error.needed, Some(u64::MAX));
        assert!(error.available <= room(dir.path()).unwrap().capacity);
        assert!(error.to_string().contains("free some space"), "{error}");
        let full = no_space(&Errno::ENOSPC.into(), dir.path(), None).unwrap().to_string();
        assert!(full.contains("is full") && full.contains("free some space") && !full.contains("needed"), "{full}");
        assert!(matches!(check_space(&dir.path().join("nothing"), 1), Err(SpaceError::Unknown { .. })));
    }
}
