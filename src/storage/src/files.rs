//! Files and folders, with errors that name them; whatever must survive a power loss is synced here.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use super::StorageError;

pub(super) fn create_dir(path: &Path) -> Result<(), StorageError> {
    fs::create_dir_all(path).map_err(|error| StorageError::io("create", path, &error))
}

/// Paths in the folder, ordered by name.
pub(super) fn entries(dir: &Path) -> Result<Vec<PathBuf>, StorageError> {
    let failed = |error| StorageError::io("list", dir, &error);
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        paths.push(entry.map_err(failed)?.path());
    }
    paths.sort();
    Ok(paths)
}

/// Removes the file or folder, if it is there.
pub(super) fn remove(path: &Path) -> Result<(), StorageError> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(StorageError::io("remove", path, &error)),
        _ => Ok(()),
    }
}

pub(super) fn sync(path: &Path) -> Result<(), StorageError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(|error| StorageError::io("sync", path, &error))
}

/// Renames, and returns once a power loss cannot undo it. Both must be in one folder.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), StorageError> {
    fs::rename(from, to).map_err(|error| StorageError::io("rename", from, &error))?;
    to.parent().map_or(Ok(()), sync)
}

pub(super) fn copy(from: &Path, to: &Path) -> Result<(), StorageError> {
    fs::copy(from, to).map_err(|error| StorageError::io("copy", from, &error))?;
    sync(to)
}

pub(super) fn link(from: &Path, to: &Path) -> Result<(), StorageError> {
    fs::hard_link(from, to).map_err(|error| StorageError::io("link", from, &error))
}

/// Total size in bytes of the files in and below `dir`; unreadable ones count as 0.
pub fn size_of_dir(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => size_of_dir(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    });
    sizes.sum()
}
