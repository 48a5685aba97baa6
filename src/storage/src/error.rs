//! What can be wrong with files, and the way out. Knows nothing of what the files mean.

use std::{
    io,
    path::{Path, PathBuf},
};

/// Why something could not be kept or read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StorageError {
    /// Another process has the folder open.
    #[error("cannot open {path}: another swell server uses this folder; stop it, or give this one another data folder", path = path.display())]
    Locked {
        /// The database's folder.
        path: PathBuf,
    },
    /// What was read is not what was written.
    #[error(
        "cannot read {path}: it is damaged: {cause}; nothing was repaired; check the disk, then remove this server's data \
         folder and let it join again, or restore a backup where it is the only server",
        path = path.display()
    )]
    Damaged {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it, with the file's name where it is known.
        cause: String,
    },
    /// The system does not let us.
    #[error("cannot use {path}: {cause}; give the user that runs swell read and write access to it", path = path.display())]
    Permission {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        cause: String,
    },
    /// No space is left.
    #[error("cannot write {path}: its disk is full: {cause}; free some space and start the server again", path = path.display())]
    Full {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        cause: String,
    },
    /// Anything else.
    #[error("cannot {tried} {path}: {cause}", path = path.display())]
    Failed {
        /// The verb.
        tried: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        cause: String,
    },
}

impl StorageError {
    /// What RocksDB said of the database in `path`. Its errors carry a kind and a text; the system's reasons are in the text.
    pub(super) fn rocks(tried: &'static str, path: &Path, error: rocksdb::Error) -> Self {
        let (path, kind, cause) = (path.to_owned(), error.kind(), error.into_string());
        let says = |text: &str| cause.contains(text);
        if says("No space left on device") || says("Disk quota exceeded") {
            return Self::Full { path, cause };
        }
        if says("Permission denied") || says("Read-only file system") {
            return Self::Permission { path, cause };
        }
        if says("LOCK: ") || says("lock hold by current process") || says("While lock file") {
            return Self::Locked { path };
        }
        if kind == rocksdb::ErrorKind::Corruption || says("No such file") || says("Corruption") {
            let named = says(&path.display().to_string());
            let cause = if named { cause } else { format!("{cause}, in {}", write_ahead_logs(&path)) };
            return Self::Damaged { path, cause };
        }
        Self::Failed { tried, path, cause }
    }

    /// What the system said of `path`.
    pub(super) fn io(tried: &'static str, path: &Path, error: &io::Error) -> Self {
        let (path, cause) = (path.to_owned(), error.to_string());
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { path, cause },
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Self::Permission { path, cause },
            _ => Self::Failed { tried, path, cause },
        }
    }

    pub(super) fn damaged(path: &Path, cause: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), cause: cause.into() }
    }
}

/// RocksDB names the table file that is damaged, but not the write-ahead log: seldom is there more than one with content.
fn write_ahead_logs(path: &Path) -> String {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let logs = entries.filter(|entry| entry.metadata().is_ok_and(|metadata| metadata.len() > 0));
    let names = logs.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<_> = names.filter(|name| name.ends_with(".log")).collect();
    names.sort();
    names.join(" or ")
}

impl From<StorageError> for io::Error {
    fn from(error: StorageError) -> Self {
        let kind = match &error {
            StorageError::Locked { .. } => io::ErrorKind::ResourceBusy,
            StorageError::Damaged { .. } => io::ErrorKind::InvalidData,
            StorageError::Permission { .. } => io::ErrorKind::PermissionDenied,
            StorageError::Full { .. } => io::ErrorKind::StorageFull,
            StorageError::Failed { .. } => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}
