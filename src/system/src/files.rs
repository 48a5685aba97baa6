//! Small files that are the old ones or the new ones, whatever happens while they are written. Blocking; knows nothing of what is in them.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// Through what a file must survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Survives {
    /// The death of any process.
    Crashes,
    /// A power cut too. It takes two syncs.
    PowerCuts,
}

/// What the file system refused.
#[derive(Debug, thiserror::Error)]
#[error("failed to {action} {}: {source}", path.display())]
pub struct FileError {
    /// A verb in the infinitive, such as `read`.
    pub action: &'static str,
    /// The file or folder.
    pub path: PathBuf,
    /// The system's reason.
    pub source: io::Error,
}

/// Adds to an error of the file system which `action` failed on which path.
pub fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |source| FileError { action, path, source }
}

/// Makes a folder and those above it; what it makes survives power cuts.
///
/// # Errors
/// As of [`fs::create_dir`].
pub fn create_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    create_folder(parent(folder))?;
    match fs::create_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        Err(error) => Err(error),
        Ok(()) => File::open(parent(folder))?.sync_all(),
    }
}

/// The folder that holds `path`.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        None => Path::new("/"),
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
    }
}

/// Where the new content of `path` is written until it is whole.
pub fn beside(path: &Path) -> PathBuf {
    path.with_extension("tmp")
}

/// Replaces the file at `path`, or makes it, readable by its owner only.
pub fn replace(path: &Path, bytes: &[u8], survives: Survives) -> io::Result<()> {
    let beside = beside(path);
    // Over what is there: room on the disk that was reserved by writing it must not be given back first.
    let mut file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&beside)?;
    file.write_all(bytes)?;
    file.set_len(bytes.len() as u64)?;
    if survives == Survives::PowerCuts {
        file.sync_all()?;
    }
    fs::rename(&beside, path)?;
    if survives == Survives::PowerCuts {
        File::open(parent(path))?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn replaced_file_is_whole_whatever_was_left_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record.json");
        replace(&path, b"a secret", Survives::Crashes).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        for survives in [Survives::Crashes, Survives::PowerCuts] {
            // By a process that died while it wrote.
            fs::write(beside(&path), "something that was longer").unwrap();
            replace(&path, b"short", survives).unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"short");
            assert!(!beside(&path).exists());
        }
    }
}
