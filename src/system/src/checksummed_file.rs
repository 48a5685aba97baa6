//! Small files that hold one value and are the old one or the new one after a crash or a power cut at any moment. Blocking; knows
//! nothing of what the values mean.
//!
//! The form: eight magic bytes that name the kind of file, the SHA-256 of what follows, the value as MessagePack with field names.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

use crate::files::{FileError, Survives, create_folder, failed, replace};

/// The first bytes of a file: its kind and the version of its form, such as `SWELLAG1`.
pub type Magic = [u8; 8];

const CHECKSUM_BYTES: usize = 32;
const HEAD_BYTES: usize = size_of::<Magic>() + CHECKSUM_BYTES;

/// Why a file could not be saved or loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system refused.
    #[error("{0}; check the owner, mode and free space of its folder")]
    File(#[from] FileError),
    /// The bytes are not those that were saved. They are left as they are.
    #[error("{} is damaged: {reason}; restore it from a backup, or move it away to start without it", path.display())]
    Damaged {
        path: PathBuf,
        /// The check that failed, as part of a sentence.
        reason: String,
    },
    /// The value has no MessagePack form; a defect of the caller.
    #[error("failed to encode the value for {}: {source}; please report it", path.display())]
    Encoding { path: PathBuf, source: rmp_serde::encode::Error },
}

/// Reads the value of the file at `path`; `None` when there is no such file.
///
/// # Errors
/// [`Error::File`] when it cannot be read; [`Error::Damaged`] when magic bytes, checksum or value are not as saved.
pub fn load<T: DeserializeOwned>(path: &Path, magic: &Magic) -> Result<Option<T>, Error> {
    let damaged = |reason: String| Error::Damaged { path: path.to_owned(), reason };
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("read", path)(error).into()),
    };
    if bytes.len() < HEAD_BYTES || !bytes.starts_with(magic) {
        return Err(damaged(format!("it does not begin with {}", String::from_utf8_lossy(magic))));
    }
    let (head, body) = bytes.split_at(HEAD_BYTES);
    if head[magic.len()..] != *Sha256::digest(body) {
        return Err(damaged("its checksum does not match".to_owned()));
    }
    rmp_serde::from_slice(body).map(Some).map_err(|error| damaged(error.to_string()))
}

/// Replaces the file at `path`, or makes it and its folders, readable by its owner only. Takes two syncs, more where folders are made.
///
/// # Errors
/// [`Error::File`] when it cannot be written: then the old value is still there; [`Error::Encoding`] for values without a form.
pub fn save<T: Serialize>(path: &Path, magic: &Magic, value: &T) -> Result<(), Error> {
    let body = rmp_serde::to_vec_named(value).map_err(|source| Error::Encoding { path: path.to_owned(), source })?;
    let bytes = [magic.as_slice(), Sha256::digest(&body).as_slice(), &body].concat();
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.map_or(Ok(()), |folder| create_folder(folder).map_err(failed("create", folder)))?;
    Ok(replace(path, &bytes, Survives::PowerCuts).map_err(failed("write", path))?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    const MAGIC: &Magic = b"SWELLXX1";

    fn reason(path: &Path, magic: &Magic) -> String {
        match load::<Vec<u64>>(path, magic) {
            Err(Error::Damaged { reason, .. }) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn saved_value_is_loaded_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state/deep/file");
        assert_eq!(load::<Vec<u64>>(&path, MAGIC).unwrap(), None);
        save(&path, MAGIC, &vec![1_u64, 2]).unwrap();
        save(&path, MAGIC, &vec![3_u64]).unwrap();
        assert_eq!(load(&path, MAGIC).unwrap(), Some(vec![3_u64]));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn damaged_file_is_refused_and_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        save(&path, MAGIC, &vec![1_u64]).unwrap();
        let whole = fs::read(&path).unwrap();
        assert_eq!(reason(&path, b"SWELLXX2"), "it does not begin with SWELLXX2");
        for index in MAGIC.len()..whole.len() {
            let mut bytes = whole.clone();
            bytes[index] ^= 1;
            fs::write(&path, &bytes).unwrap();
            assert_eq!(reason(&path, MAGIC), "its checksum does not match");
            assert_eq!(fs::read(&path).unwrap(), bytes);
        }
        for bytes in 0..whole.len() {
            fs::write(&path, &whole[..bytes]).unwrap();
            reason(&path, MAGIC);
        }
        save(&path, MAGIC, &"a text").unwrap();
        assert!(reason(&path, MAGIC).contains("invalid type"));
    }

    #[test]
    fn failed_save_names_the_file_and_keeps_the_old_value() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        save(&path, MAGIC, &7_u64).unwrap();
        // In place of the file that is written first stands a folder.
        fs::create_dir(crate::files::beside(&path)).unwrap();
        let error = save(&path, MAGIC, &8_u64).unwrap_err().to_string();
        assert!(error.starts_with(&format!("failed to write {}: ", path.display())), "{error}");
        assert_eq!(load(&path, MAGIC).unwrap(), Some(7_u64));
    }
}
