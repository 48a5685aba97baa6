//! State that counts what is read and written. Knows nothing of what it holds.

use std::cell::Cell;

use swell_model::tables::{Key, MemoryTables, ReadTables, Record, Scan, Tables, TablesError};

/// Tables in memory, with counts since they were made.
#[derive(Default)]
pub struct CountingTables {
    pub tables: MemoryTables,
    /// Records asked for, and records that scans returned.
    pub reads: Cell<u64>,
    /// Bytes of the records that were written, as MessagePack.
    pub bytes: u64,
}

impl CountingTables {
    pub fn new(tables: MemoryTables) -> Self {
        Self { tables, ..Self::default() }
    }

    fn count(&self, reads: usize) {
        self.reads.set(self.reads.get() + reads as u64);
    }
}

impl ReadTables for CountingTables {
    fn get<R: Record>(&self, key: &Key) -> Result<Option<R>, TablesError> {
        self.count(1);
        self.tables.get(key)
    }

    fn read_first<R: Record>(&self, scan: &Scan, limit: usize) -> Result<Vec<R>, TablesError> {
        let found = self.tables.read_first(scan, limit)?;
        // One that finds nothing has looked, too.
        self.count(found.len().max(1));
        Ok(found)
    }
}

impl Tables for CountingTables {
    fn put<R: Record>(&mut self, record: &R) -> Result<(), TablesError> {
        let failed =
            |error: rmp_serde::encode::Error| TablesError::Failed { tried: "write", table: R::TABLE, cause: error.to_string() };
        self.bytes += rmp_serde::to_vec(record).map_err(failed)?.len() as u64;
        self.tables.put(record)
    }

    fn delete<R: Record>(&mut self, key: &Key) -> Result<(), TablesError> {
        self.tables.delete::<R>(key)
    }
}
