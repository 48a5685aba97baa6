//! Small files that are the old ones or the new ones after a crash or a power cut at any moment. Blocking; knows nothing of
//! what is in them.
//!
//! The form: `SWELLAG1`, the SHA-256 of what follows, the value as MessagePack with field names.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};

use swell_model::digest::Digest;
use swell_system::files::{Survives, replace};

const MAGIC: &[u8; 8] = b"SWELLAG1";
const HEAD_BYTES: usize = MAGIC.len() + 32;

/// Why a file could not be written or read back.
#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    /// The file system said no.
    #[error("{what} {}: {source}; check the folder's owner, mode and free space", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// What came of it.
        source: io::Error,
    },
    /// The file is not what was saved.
    #[error("{} is damaged ({what}); it is left as it is until a server says what should run", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// How it shows.
        what: String,
    },
    /// A value that cannot be written down.
    #[error("writing a record as MessagePack: {0}")]
    Encoding(#[from] rmp_serde::encode::Error),
    /// The program is ending.
    #[error("the agent is stopping")]
    Stopping,
}

/// Reads a value back; `None` when there is no such file.
pub(super) fn load<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, SavedError> {
    let damaged = |what: &str| SavedError::Damaged { path: path.to_owned(), what: what.to_owned() };
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(SavedError::Io { what: "reading", path: path.to_owned(), source }),
    };
    if bytes.len() < HEAD_BYTES || !bytes.starts_with(MAGIC) {
        return Err(damaged("it does not begin as one"));
    }
    let (head, body) = bytes.split_at(HEAD_BYTES);
    if head[MAGIC.len()..] != Digest::of(body).0 {
        return Err(damaged("its digest does not match"));
    }
    rmp_serde::from_slice(body).map(Some).map_err(|error| damaged(&error.to_string()))
}

/// Saves a value, readable by its owner only.
pub(super) fn save<T: Serialize>(path: &Path, value: &T) -> Result<(), SavedError> {
    let body = rmp_serde::to_vec_named(value)?;
    let bytes = [MAGIC.as_slice(), &Digest::of(&body).0, &body].concat();
    let made = path.parent().map_or(Ok(()), fs::create_dir_all);
    let written = made.and_then(|()| replace(path, &bytes, Survives::PowerCuts));
    written.map_err(|source| SavedError::Io { what: "writing", path: path.to_owned(), source })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_is_read_back_and_damage_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state/file");
        assert_eq!(load::<Vec<u64>>(&path).unwrap(), None);
        save(&path, &vec![1, 2]).unwrap();
        save(&path, &vec![3_u64]).unwrap();
        assert_eq!(load(&path).unwrap(), Some(vec![3_u64]));
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert!(load::<Vec<u64>>(&path).unwrap_err().to_string().contains("its digest does not match"));
        fs::write(&path, "").unwrap();
        assert!(matches!(load::<Vec<u64>>(&path), Err(SavedError::Damaged { .. })));
    }
}
