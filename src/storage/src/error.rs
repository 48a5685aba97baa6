//! Errors of files and databases, with the way out. Knows nothing of what the files mean.

use std::{
    io,
    path::{Path, PathBuf},
};

/// Why a file or database cannot be opened, read or written.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StorageError {
    /// Another process has the folder open.
    #[error("failed to open {path}: another swell server uses this folder; stop it, or give this one another data folder", path = path.display())]
    Locked { path: PathBuf },
    /// The content is not what was written.
    #[error(
        "failed to read {path}: it is damaged: {cause}; nothing was changed; check the disk, then move this server's \
         data folder aside (keep it) and join the server again, or restore a backup where it is the only server",
        path = path.display()
    )]
    Damaged {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it, with the file's name where it is known.
        cause: String,
    },
    /// The log lacks entries that it had on disk: this server may have acknowledged them.
    #[error(
        "the log in {log} ends at entry {end}, but it had entry {flushed} on disk when {state} was written: acknowledged entries are missing; \
         nothing was changed; check the disk, then move this server's data folder aside (keep it) and join the server again, or restore a \
         backup where it is the only server",
        log = log.display(), state = state.display(), end = end.map_or("none".to_owned(), |end| end.to_string())
    )]
    LogLost {
        /// Folder of the log.
        log: PathBuf,
        /// Index of the last entry that the log has; `None` when it is empty.
        end: Option<u64>,
        /// The last entry that it is known to have had.
        flushed: u64,
        /// Folder of the state that knows.
        state: PathBuf,
    },
    /// State lacks entries that the log does not have any more either.
    #[error(
        "the state in {state} goes to entry {applied}, but the log in {log} was purged up to entry {purged} and no snapshot covers the \
         entries between; nothing was changed; put the missing snapshots back where they were moved, else move this server's data folder \
         aside (keep it) and join the server again, or restore a backup where it is the only server",
        state = state.display(), log = log.display()
    )]
    StateBehindLog {
        /// Folder of the state.
        state: PathBuf,
        /// Index of the last entry that state has applied.
        applied: u64,
        /// Folder of the log.
        log: PathBuf,
        /// The last entry that was purged.
        purged: u64,
    },
    /// The operating system denies access.
    #[error("failed to use {path}: {cause}; give the user that runs swell read and write access to it", path = path.display())]
    Permission {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's or RocksDB's message.
        cause: String,
    },
    /// The disk or quota is full.
    #[error("failed to write {path}: its disk is full: {cause}; free some space and start the server again", path = path.display())]
    Full {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's or RocksDB's message.
        cause: String,
    },
    /// An operation failed for a reason that no other variant names.
    #[error("failed to {tried} {path}: {cause}", path = path.display())]
    Failed {
        /// A verb, such as `open`.
        tried: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's or RocksDB's message.
        cause: String,
    },
}

impl StorageError {
    /// From RocksDB's error on the database in `path`. Its errors carry a kind and a text; the system's reasons are in the text.
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

    /// From the operating system's error on `path`.
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
            StorageError::Damaged { .. } | StorageError::LogLost { .. } | StorageError::StateBehindLog { .. } => {
                io::ErrorKind::InvalidData
            }
            StorageError::Permission { .. } => io::ErrorKind::PermissionDenied,
            StorageError::Full { .. } => io::ErrorKind::StorageFull,
            StorageError::Failed { .. } => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}
