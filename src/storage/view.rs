//! A consistent look at state, for readers. Knows nothing of who writes.

use std::sync::Arc;

use crate::model::tables::{Key, MemoryTables, ReadTables, Record, Scan, TablesError};

/// State as it was at one moment: whatever is applied later does not show. Cheap to clone; drop it soon, since it keeps old
/// versions of records from being forgotten.
#[derive(Clone)]
pub struct View {
    tables: Arc<MemoryTables>,
    applied: u64,
}

impl View {
    pub(crate) fn of_memory(tables: Arc<MemoryTables>, applied: u64) -> Self {
        Self { tables, applied }
    }

    /// The index of the last log entry that this shows.
    pub fn applied(&self) -> u64 {
        self.applied
    }
}

impl ReadTables for View {
    fn get<R: Record>(&self, key: &Key) -> Result<Option<R>, TablesError> {
        self.tables.get(key)
    }

    fn scan<R: Record>(&self, scan: &Scan, limit: usize) -> Result<Vec<R>, TablesError> {
        self.tables.scan(scan, limit)
    }
}
