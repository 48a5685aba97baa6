//! Tables that count what one `apply` reads and writes, so that a test and a benchmark see which command costs more in a larger fleet.
//! Counts are exact and the same on every machine, as times are not. For tests and tools only.

use std::{
    cell::Cell,
    ops::{AddAssign, Sub},
};

use serde::Serialize;

use super::codec::encode;
use swell_model::tables::{Key, ReadTables, Record, Scan, Tables, TablesError};

/// What was read and written. Bytes are those of the encoded values, as they are on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Records asked for by their key, whether or not there was one.
    pub gets: u64,
    /// Scans of key ranges, however many records they returned.
    pub scans: u64,
    /// Records that the ranges returned.
    pub scanned_records: u64,
    pub read_bytes: u64,
    /// Records written or deleted.
    pub writes: u64,
    pub written_bytes: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.gets += other.gets;
        self.scans += other.scans;
        self.scanned_records += other.scanned_records;
        self.read_bytes += other.read_bytes;
        self.writes += other.writes;
        self.written_bytes += other.written_bytes;
    }
}

impl Sub for Counts {
    type Output = Self;

    /// What was counted since `earlier`.
    fn sub(self, earlier: Self) -> Self {
        Self {
            gets: self.gets - earlier.gets,
            scans: self.scans - earlier.scans,
            scanned_records: self.scanned_records - earlier.scanned_records,
            read_bytes: self.read_bytes - earlier.read_bytes,
            writes: self.writes - earlier.writes,
            written_bytes: self.written_bytes - earlier.written_bytes,
        }
    }
}

/// Tables around others that count every access.
pub struct CountingTables<T> {
    tables: T,
    counts: Cell<Counts>,
}

impl<T> CountingTables<T> {
    /// Nothing is counted yet.
    pub fn new(tables: T) -> Self {
        Self { tables, counts: Cell::default() }
    }

    /// What was counted so far.
    pub fn counts(&self) -> Counts {
        self.counts.get()
    }

    /// The tables within.
    pub fn into_inner(self) -> T {
        self.tables
    }

    fn count(&self, more: Counts) {
        let mut counts = self.counts.get();
        counts += more;
        self.counts.set(counts);
    }
}

/// A record that cannot be encoded is refused where it is written.
fn size<R: Serialize>(record: &R) -> u64 {
    encode(record).map_or(0, |bytes| bytes.len() as u64)
}

impl<T: ReadTables> ReadTables for CountingTables<T> {
    fn get<R: Record>(&self, key: &Key) -> Result<Option<R>, TablesError> {
        let found: Option<R> = self.tables.get(key)?;
        self.count(Counts { gets: 1, read_bytes: found.as_ref().map_or(0, size), ..Counts::default() });
        Ok(found)
    }

    fn read_first<R: Record>(&self, scan: &Scan, limit: usize) -> Result<Vec<R>, TablesError> {
        let found: Vec<R> = self.tables.read_first(scan, limit)?;
        let read_bytes = found.iter().map(size).sum();
        self.count(Counts { scans: 1, scanned_records: found.len() as u64, read_bytes, ..Counts::default() });
        Ok(found)
    }
}

impl<T: Tables> Tables for CountingTables<T> {
    fn put<R: Record>(&mut self, record: &R) -> Result<(), TablesError> {
        self.count(Counts { writes: 1, written_bytes: size(record), ..Counts::default() });
        self.tables.put(record)
    }

    fn delete<R: Record>(&mut self, key: &Key) -> Result<(), TablesError> {
        self.count(Counts { writes: 1, ..Counts::default() });
        self.tables.delete::<R>(key)
    }
}

#[cfg(test)]
mod tests;
