//! Consistent reads of state. Knows nothing of who writes.

use std::sync::Arc;

use rocksdb::{ColumnFamily, DBRawIteratorWithThreadMode, OptimisticTransactionDB, ReadOptions, SnapshotWithThreadMode};

use super::{
    rocks::{self, Source},
    state::StateDb,
};
use swell_model::tables::{Key, ReadTables, Record, Scan, Table, TablesError};

/// State as it was at one moment: what is applied later does not show. Cheap to clone. Drop it soon: it keeps old versions of records
/// on disk.
#[derive(Clone)]
pub struct View {
    inner: Arc<Inner>,
}

struct Inner {
    applied: u64,
    // Dropped before the database that it belongs to, since fields are dropped in this order.
    snapshot: SnapshotWithThreadMode<'static, OptimisticTransactionDB>,
    db: Arc<StateDb>,
}

impl View {
    pub(super) fn new(db: Arc<StateDb>) -> Self {
        let snapshot = db.rocks().snapshot();
        // SAFETY: the snapshot borrows the database inside `db`, whose place in memory does not change: it is behind an `Arc`
        // that is kept beside the snapshot and dropped after it, and the database is only closed when the last `Arc` is dropped.
        let snapshot = unsafe {
            std::mem::transmute::<
                SnapshotWithThreadMode<'_, OptimisticTransactionDB>,
                SnapshotWithThreadMode<'static, OptimisticTransactionDB>,
            >(snapshot)
        };
        let applied = db.applied_in(&snapshot);
        Self { inner: Arc::new(Inner { applied, snapshot, db }) }
    }

    /// Index of the last log entry that this shows; 0 where nothing was applied yet.
    pub fn applied(&self) -> u64 {
        self.inner.applied
    }
}

impl ReadTables for View {
    fn get<R: Record>(&self, key: &Key) -> Result<Option<R>, TablesError> {
        rocks::get(&*self.inner, key)
    }

    fn read_first<R: Record>(&self, scan: &Scan, limit: usize) -> Result<Vec<R>, TablesError> {
        rocks::read_first(&*self.inner, scan, limit)
    }
}

impl Source for Inner {
    type Db = OptimisticTransactionDB;

    fn family(&self, table: Table) -> Result<&ColumnFamily, TablesError> {
        rocks::family(self.db.rocks(), table)
    }

    fn value(&self, family: &ColumnFamily, key: &[u8]) -> Result<Option<Vec<u8>>, rocksdb::Error> {
        self.snapshot.get_cf(family, key)
    }

    fn iterate(&self, family: &ColumnFamily, options: ReadOptions) -> DBRawIteratorWithThreadMode<'_, Self::Db> {
        self.snapshot.raw_iterator_cf_opt(family, options)
    }
}
