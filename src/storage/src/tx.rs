//! A transaction on state that reads its own writes: many commands, each undone alone when it is rejected.

use rocksdb::{ColumnFamily, DBRawIteratorWithThreadMode, OptimisticTransactionDB, ReadOptions, Transaction};

use super::{
    StorageError,
    codec::{encode, encode_key},
    rocks::{self, Source, failed},
    state::{Applied, StateDb},
};
use swell_model::tables::{Key, ReadTables, Record, Scan, Table, Tables, TablesError};

/// Changes that become visible together, or not at all when it is dropped without [`StateTx::commit`].
pub struct StateTx<'a> {
    db: &'a StateDb,
    transaction: Transaction<'a, OptimisticTransactionDB>,
}

impl<'a> StateTx<'a> {
    pub(super) fn new(db: &'a StateDb) -> Self {
        Self { db, transaction: db.rocks().transaction() }
    }

    /// Where [`StateTx::rollback_to_savepoint`] goes back to. They nest.
    pub fn savepoint(&mut self) {
        self.transaction.set_savepoint();
    }

    /// Undoes what was written since the last savepoint, and forgets that savepoint.
    ///
    /// # Errors
    /// When there is none.
    pub fn rollback_to_savepoint(&mut self) -> Result<(), StorageError> {
        self.transaction.rollback_to_savepoint().map_err(|error| StorageError::rocks("undo a command in", self.db.path(), error))
    }

    /// Writes everything together with the position in the log that it brings state to. In the page cache when this returns, so
    /// that it survives the process; on disk after [`StateDb::sync`].
    ///
    /// # Errors
    /// When it could not be written: nothing is visible then, and the node must stop.
    pub fn commit(self, applied: &Applied) -> Result<(), StorageError> {
        let path = self.db.path();
        self.db.put_applied(&self.transaction, applied)?;
        swell_system::crash::point("storage::before_state_commit");
        self.transaction.commit().map_err(|error| StorageError::rocks("write", path, error))?;
        swell_system::crash::point("storage::after_state_commit");
        Ok(())
    }
}

impl ReadTables for StateTx<'_> {
    fn get<R: Record>(&self, key: &Key) -> Result<Option<R>, TablesError> {
        rocks::get(self, key)
    }

    fn read_first<R: Record>(&self, scan: &Scan, limit: usize) -> Result<Vec<R>, TablesError> {
        rocks::read_first(self, scan, limit)
    }
}

impl Tables for StateTx<'_> {
    fn put<R: Record>(&mut self, record: &R) -> Result<(), TablesError> {
        let wrong = |cause: String| failed("write", R::TABLE, cause);
        let key = encode_key(&record.key()).map_err(|error| wrong(error.to_string()))?;
        let value = encode(record).map_err(|error| wrong(error.to_string()))?;
        self.transaction.put_cf(self.family(R::TABLE)?, key, value).map_err(|error| wrong(error.to_string()))
    }

    fn delete<R: Record>(&mut self, key: &Key) -> Result<(), TablesError> {
        let wrong = |cause: String| failed("write", R::TABLE, cause);
        let key = encode_key(key).map_err(|error| wrong(error.to_string()))?;
        self.transaction.delete_cf(self.family(R::TABLE)?, key).map_err(|error| wrong(error.to_string()))
    }
}

impl<'a> Source for StateTx<'a> {
    type Db = Transaction<'a, OptimisticTransactionDB>;

    fn family(&self, table: Table) -> Result<&ColumnFamily, TablesError> {
        rocks::family(self.db.rocks(), table)
    }

    fn value(&self, family: &ColumnFamily, key: &[u8]) -> Result<Option<Vec<u8>>, rocksdb::Error> {
        self.transaction.get_cf(family, key)
    }

    fn iterate(&self, family: &ColumnFamily, options: ReadOptions) -> DBRawIteratorWithThreadMode<'_, Self::Db> {
        self.transaction.raw_iterator_cf_opt(family, options)
    }
}
