//! The last table on disk, so that a gateway serves after a restart without any server. Blocking; knows nothing of serving.
//!
//! The file: `SWELLRT2`, the SHA-256 of what follows, a [`SavedTable`] as MessagePack with field names.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use swell_model::{
    digest::Digest,
    routing::{messages::GatewayId, table::RouteTable},
};

const MAGIC: &[u8; 8] = b"SWELLRT2";
const HEAD_BYTES: usize = MAGIC.len() + 32;

/// Table and identity of a gateway, as they are saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedTable {
    pub gateway: GatewayId,
    pub table: RouteTable,
}

/// Why a table was not saved or loaded.
#[derive(Debug, thiserror::Error)]
pub enum TableFileError {
    /// The file system refused.
    #[error("failed to {action} the saved routes at {}: {source}; check the folder's owner, mode and free space", path.display())]
    Io {
        /// Such as `read`.
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// The bytes are not those that were saved. The file is left as it is until the next table is saved.
    #[error("the saved routes at {} are damaged: {reason}; the gateway gets new ones from a server", path.display())]
    Damaged { path: PathBuf, reason: String },
    /// The table has no MessagePack form; a defect.
    #[error("failed to encode the routes: {0}; please report it")]
    Encoding(#[from] rmp_serde::encode::Error),
}

/// Loads what was saved; `None` when there is no such file.
///
/// # Errors
/// When the file cannot be read or is damaged.
pub fn load(path: &Path) -> Result<Option<SavedTable>, TableFileError> {
    let damaged = |reason: &str| TableFileError::Damaged { path: path.to_owned(), reason: reason.to_owned() };
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(TableFileError::Io { action: "read", path: path.to_owned(), source }),
    };
    if bytes.len() < HEAD_BYTES || !bytes.starts_with(MAGIC) {
        return Err(damaged("it does not begin with SWELLRT2"));
    }
    let (head, body) = bytes.split_at(HEAD_BYTES);
    if head[MAGIC.len()..] != Digest::of(body).0 {
        return Err(damaged("its checksum does not match"));
    }
    rmp_serde::from_slice(body).map(Some).map_err(|error| damaged(&error.to_string()))
}

/// Saves the table so that after a crash at any moment the file is the old one or the new one.
///
/// # Errors
/// When the file cannot be written; the old one is still there.
pub fn save(path: &Path, saved: &SavedTable) -> Result<(), TableFileError> {
    let body = rmp_serde::to_vec_named(saved)?;
    let io = |action| move |source| TableFileError::Io { action, path: path.to_owned(), source };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(io("create the folder of"))?;
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
    write().map_err(io("write"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn saved_table_is_loaded_again_and_damage_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state/routes");
        assert!(load(&path).unwrap().is_none());
        let saved = SavedTable { gateway: GatewayId("7".into()), table: crate::tests::support::table(5, vec![]) };
        save(&path, &saved).unwrap();
        save(&path, &saved).unwrap();
        assert_eq!(load(&path).unwrap(), Some(saved));
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert!(load(&path).unwrap_err().to_string().contains("its checksum does not match"));
        fs::write(&path, "").unwrap();
        assert!(matches!(load(&path), Err(TableFileError::Damaged { .. })));
    }
}
