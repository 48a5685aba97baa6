//! The last table on disk, so that a gateway serves after a restart without any server. Blocking; knows nothing of serving.
//!
//! The file: `SWELLRT1`, the SHA-256 of what follows, the table as MessagePack with field names.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use swell_model::{digest::Digest, routing::table::RouteTable};

const MAGIC: &[u8; 8] = b"SWELLRT1";
const HEAD_BYTES: usize = MAGIC.len() + 32;

/// Why a table could not be saved or read back.
#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    /// The file system said no.
    #[error("{doing} the saved route table {path}: {source}; check the folder's owner, mode and free space")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On which file.
        path: PathBuf,
        /// What came of it.
        source: io::Error,
    },
    /// The file is not what was saved.
    #[error("the saved route table {path} is damaged ({what}); it is left as it is and replaced when a server sends a table")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// How it shows.
        what: String,
    },
    /// A table that cannot be written down: never the case for one that was received.
    #[error("writing the route table as MessagePack: {0}")]
    Encoding(#[from] rmp_serde::encode::Error),
}

/// Reads the table back; `None` when there is no such file.
///
/// # Errors
/// When the file cannot be read or is not what was saved.
pub fn load(path: &Path) -> Result<Option<RouteTable>, SavedError> {
    let damaged = |what: &str| SavedError::Damaged { path: path.to_owned(), what: what.to_owned() };
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(SavedError::Io { doing: "reading", path: path.to_owned(), source }),
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

/// Saves the table so that after a crash at any moment the file is the old one or the new one.
///
/// # Errors
/// When the file system says no.
pub fn save(path: &Path, table: &RouteTable) -> Result<(), SavedError> {
    let body = rmp_serde::to_vec_named(table)?;
    let io = |doing| move |source| SavedError::Io { doing, path: path.to_owned(), source };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(io("creating the folder of"))?;
    let beside = path.with_extension("new");
    let write = || {
        let mut file = File::create(&beside)?;
        file.write_all(MAGIC)?;
        file.write_all(&Digest::of(&body).0)?;
        file.write_all(&body)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(io("writing"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_is_read_back_and_damage_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state/routes");
        assert!(load(&path).unwrap().is_none());
        let table = RouteTable { generation: 5, services: vec![] };
        save(&path, &table).unwrap();
        save(&path, &table).unwrap();
        assert_eq!(load(&path).unwrap(), Some(table));
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert!(load(&path).unwrap_err().to_string().contains("its digest does not match"));
        fs::write(&path, "").unwrap();
        assert!(matches!(load(&path), Err(SavedError::Damaged { .. })));
    }
}
