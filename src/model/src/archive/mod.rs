//! What leaves state for the archive: builds, rollouts and releases, some time after their end. Knows nothing of how the archive's segments
//! are written.

pub(crate) mod apply;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    ids::{BuildId, ReleaseId, RolloutId},
    tables::{Key, ReadTables, Record, Scan, Table, TablesError, key},
    units::Timestamp,
};

/// The most entries that one command archives, so that it costs little to apply.
pub const ARCHIVED_AT_ONCE_MAX: usize = 500;

/// Something that can leave state.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Archivable {
    Build(BuildId),
    Rollout(RolloutId),
    Release(ReleaseId),
}

impl fmt::Display for Archivable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Archivable::Build(id) => id.fmt(f),
            Archivable::Rollout(id) => id.fmt(f),
            Archivable::Release(id) => id.fmt(f),
        }
    }
}

/// Something that ended, by the time from which on it may leave state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveEntry {
    pub due_at: Timestamp,
    pub what: Archivable,
}

impl Record for ArchiveEntry {
    const TABLE: Table = Table::ArchiveEntries;

    fn key(&self) -> Key {
        let due_at = key(self.due_at.0);
        match &self.what {
            Archivable::Build(id) => due_at.then(0_u64).then(id.0),
            Archivable::Rollout(id) => due_at.then(1_u64).then(id.0),
            Archivable::Release(id) => due_at.then(2_u64).then(id.pipeline.as_str()).then(id.number),
        }
    }
}

/// What may leave state at `now`, the longest due first, at most `limit`. Reads no more than it returns and one.
///
/// # Errors
/// When state cannot be read.
pub fn due_for_archive<T: ReadTables>(tables: &T, now: Timestamp, limit: usize) -> Result<Vec<ArchiveEntry>, TablesError> {
    let mut due: Vec<ArchiveEntry> = tables.scan(&Scan::all(), limit.min(ARCHIVED_AT_ONCE_MAX))?;
    due.retain(|entry| entry.due_at <= now);
    Ok(due)
}
