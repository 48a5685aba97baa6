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
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole_whatever_was_left_beside_it() {
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
