//! The last table on disk, so that a gateway serves after a restart without any server. Blocking; knows nothing of serving.

use std::path::Path;

use serde::{Deserialize, Serialize};

use swell_model::routing::{messages::GatewayId, table::RouteTable};
use swell_system::checksummed_file::{self, Error, Magic};

const MAGIC: &Magic = b"SWELLRT2";

/// Table and identity of a gateway, as they are saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedTable {
    pub gateway: GatewayId,
    pub table: RouteTable,
}

/// Loads what was saved; `None` when there is no such file.
///
/// # Errors
/// When the file cannot be read or is damaged. It is left as it is until the next table is saved.
pub fn load(path: &Path) -> Result<Option<SavedTable>, Error> {
    checksummed_file::load(path, MAGIC)
}

/// Saves the table so that after a crash at any moment the file is the old one or the new one.
///
/// # Errors
/// When the file cannot be written; the old one is still there.
pub fn save(path: &Path, saved: &SavedTable) -> Result<(), Error> {
    checksummed_file::save(path, MAGIC, saved)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn saved_table_is_loaded_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state/routes");
        assert!(load(&path).unwrap().is_none());
        let saved = SavedTable { gateway: GatewayId("7".into()), table: crate::tests::support::table(5, vec![]) };
        save(&path, &saved).unwrap();
        assert_eq!(load(&path).unwrap(), Some(saved));
    }
}
