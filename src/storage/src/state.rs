//! The database `state/`: entities, and the log index up to which entries were applied. Knows nothing of how servers agreed on it.
//!
//! Each time a snapshot of another server is installed, a new generation of the database takes the old one's place: a folder
//! with a higher number. Renaming it into `state/` is what makes it count; the highest number is the present one. Readers of the
//! old one keep it until they are done.
//!
//! The write-ahead log is written and not synced: after a power loss a tail of it may be missing, and consensus applies that
//! again. So the database is opened at the last consistent point (`PointInTime`): whatever remains is exactly what some prefix of
//! the log led to, and how far it goes is in it. The node compares that with what the log still holds, and refuses when entries
//! between are gone. Tolerating only an incomplete last record would refuse to start after many power losses, since blocks
//! that were never synced reach the disk in any order.

use std::{
    fs,
    mem::ManuallyDrop,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use arc_swap::ArcSwap;
use rocksdb::{
    ColumnFamily, DBAccess, DBRecoveryMode, OptimisticTransactionDB, SnapshotWithThreadMode, Transaction, checkpoint::Checkpoint,
};

use super::{StateTx, StorageError, View, checkpoint::SnapshotDir, files, rocks};
use swell_model::tables::Table;

const META: &str = "meta";
const APPLIED_INDEX: &[u8] = b"applied_index";
const APPLIED: &[u8] = b"applied";
const LOG_FLUSHED: &[u8] = b"log_flushed";

/// How far state has come.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Applied {
    /// Index of the last log entry that was applied.
    pub index: u64,
    /// Index of the last entry, up to [`Applied::index`], that this server's own log had on disk by then. It lags where the others
    /// made a quorum without this server. A log that ends before it has lost entries; one that only ends before `index` has not.
    /// `None` where that is not known: nothing was on disk, or state came as a snapshot of another server.
    pub log_flushed: Option<u64>,
    /// What consensus keeps beside the index (the entry's id, the membership), in its own encoding.
    pub details: Vec<u8>,
}

/// One generation of the database.
pub struct StateDb {
    db: ManuallyDrop<OptimisticTransactionDB>,
    path: PathBuf,
    /// Another generation took its place: the folder is removed with the last reader.
    retired: AtomicBool,
}

impl StateDb {
    fn open(path: &Path) -> Result<Self, StorageError> {
        let mut options = rocks::options();
        options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
        let failed = |error| StorageError::rocks("open", path, error);
        let families = Table::ALL.iter().map(|table| table.name()).chain([META]);
        let db = OptimisticTransactionDB::open_cf(&options, path, families).map_err(failed)?;
        Ok(Self { db: ManuallyDrop::new(db), path: path.to_owned(), retired: AtomicBool::new(false) })
    }

    /// Reads every record while `go_on` says so, so that a damaged block is found before somebody needs it. Takes as long as reading all
    /// files once.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] with the name of the first file that is not as it was written.
    pub fn verify(&self, go_on: impl Fn() -> bool) -> Result<(), StorageError> {
        for family in Table::ALL.iter().map(|table| table.name()).chain([META]) {
            let records = self.db.raw_iterator_cf_opt(self.family(family)?, rocks::once());
            rocks::verify(records, &go_on).map_err(|error| StorageError::rocks("read", &self.path, error))?;
        }
        Ok(())
    }

    pub(super) fn rocks(&self) -> &OptimisticTransactionDB {
        &self.db
    }

    /// Returns the folder of the database.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn family(&self, name: &str) -> Result<&ColumnFamily, StorageError> {
        self.db.cf_handle(name).ok_or_else(|| StorageError::damaged(&self.path, format!("it has no column family {name}")))
    }

    /// A transaction. There is one writer: two at a time would fail at their commit.
    pub fn transaction(&self) -> StateTx<'_> {
        StateTx::new(self)
    }

    /// How far state has come; `None` where nothing was applied yet.
    ///
    /// # Errors
    /// When that cannot be read.
    pub fn applied(&self) -> Result<Option<Applied>, StorageError> {
        read_applied(&self.path, |key| {
            self.db.get_cf(self.family(META)?, key).map_err(|e| StorageError::rocks("read", &self.path, e))
        })
    }

    pub(super) fn applied_in<D: DBAccess>(&self, snapshot: &SnapshotWithThreadMode<'_, D>) -> u64 {
        let value = self.db.cf_handle(META).and_then(|meta| snapshot.get_cf(meta, APPLIED_INDEX).ok().flatten());
        value.and_then(|bytes| Some(u64::from_be_bytes(bytes.try_into().ok()?))).unwrap_or(0)
    }

    pub(super) fn put_applied(
        &self,
        transaction: &Transaction<'_, OptimisticTransactionDB>,
        applied: &Applied,
    ) -> Result<(), StorageError> {
        let failed = |error| StorageError::rocks("write", &self.path, error);
        let meta = self.family(META)?;
        transaction.put_cf(meta, APPLIED_INDEX, applied.index.to_be_bytes()).map_err(failed)?;
        match applied.log_flushed {
            Some(index) => transaction.put_cf(meta, LOG_FLUSHED, index.to_be_bytes()).map_err(failed)?,
            None => transaction.delete_cf(meta, LOG_FLUSHED).map_err(failed)?,
        }
        transaction.put_cf(meta, APPLIED, &applied.details).map_err(failed)
    }

    /// A snapshot says how far the log of the server that took it was on disk, which means nothing for this one.
    fn forget_flushed_log(&self) -> Result<(), StorageError> {
        let deleted = self.db.delete_cf(self.family(META)?, LOG_FLUSHED);
        deleted.map_err(|error| StorageError::rocks("write", &self.path, error))?;
        self.sync()
    }

    /// Syncs everything that was committed.
    ///
    /// # Errors
    /// When the disk refuses; nothing is known about it then, and the node must stop.
    pub fn sync(&self) -> Result<(), StorageError> {
        swell_system::crash::point("storage::before_state_sync");
        self.db.flush_wal(true).map_err(|error| StorageError::rocks("sync", &self.path, error))?;
        swell_system::crash::point("storage::after_state_sync");
        Ok(())
    }

    /// A copy of the database in the folder `to`, which must not exist, that shares the large files. Take it where nothing is
    /// applied beside it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn checkpoint(&self, to: &Path) -> Result<(), StorageError> {
        let failed = |error| StorageError::rocks("take a checkpoint in", to, error);
        Checkpoint::new(&*self.db).map_err(failed)?.create_checkpoint(to).map_err(failed)
    }
}

impl Drop for StateDb {
    fn drop(&mut self) {
        // SAFETY: nothing uses the database after this, which runs once.
        unsafe { ManuallyDrop::drop(&mut self.db) };
        if self.retired.load(Ordering::Acquire)
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "failed to remove a former generation of state, the next start tries again");
        }
    }
}

fn read_applied(
    path: &Path,
    get: impl Fn(&[u8]) -> Result<Option<Vec<u8>>, StorageError>,
) -> Result<Option<Applied>, StorageError> {
    let number = |bytes: Vec<u8>| match bytes.try_into() {
        Ok(bytes) => Ok(u64::from_be_bytes(bytes)),
        Err(_) => Err(StorageError::damaged(path, "the applied index has not eight bytes")),
    };
    let Some(index) = get(APPLIED_INDEX)?.map(number).transpose()? else { return Ok(None) };
    let log_flushed = get(LOG_FLUSHED)?.map(number).transpose()?;
    Ok(Some(Applied { index, log_flushed, details: get(APPLIED)?.unwrap_or_default() }))
}

/// How far the state in a checkpoint has come, read from the checkpoint itself.
///
/// # Errors
/// When it cannot be opened.
pub fn applied_of_checkpoint(path: &Path) -> Result<Option<Applied>, StorageError> {
    let failed = |error| StorageError::rocks("open", path, error);
    let db = rocksdb::DB::open_cf_for_read_only(&rocksdb::Options::default(), path, [META], false).map_err(failed)?;
    let meta = db.cf_handle(META).ok_or_else(|| StorageError::damaged(path, "it has no column family meta"))?;
    read_applied(path, |key| db.get_cf(meta, key).map_err(failed))
}

/// The present generation of the database, wherever it is used.
#[derive(Clone)]
pub struct StateStore {
    dir: PathBuf,
    current: Arc<ArcSwap<StateDb>>,
}

impl StateStore {
    /// Opens the database in `dir`, and makes an empty one where there is none. Missing files and files of another size are found now,
    /// damaged bytes when they are read or by [`StateDb::verify`]: a start does not take longer because state is large.
    ///
    /// # Errors
    /// When it is damaged, in use, or may not be written.
    pub fn open(dir: &Path) -> Result<Self, StorageError> {
        files::create_dir(dir)?;
        let mut generations = Vec::new();
        for path in files::entries(dir)? {
            match generation_of(&path) {
                Some(generation) => generations.push(generation),
                // What was not renamed into its place never counted.
                None => files::remove(&path)?,
            }
        }
        let present = generations.iter().copied().max().unwrap_or(1);
        for old in generations.into_iter().filter(|old| *old < present) {
            files::remove(&folder(dir, old))?;
        }
        let db = StateDb::open(&folder(dir, present))?;
        Ok(Self { dir: dir.to_owned(), current: Arc::new(ArcSwap::from_pointee(db)) })
    }

    /// The present generation.
    pub fn current(&self) -> Arc<StateDb> {
        self.current.load_full()
    }

    /// State as it is now.
    pub fn view(&self) -> View {
        View::new(self.current())
    }

    /// How many clones of this there are, this one included.
    pub fn holders(&self) -> usize {
        Arc::strong_count(&self.current)
    }

    /// Puts the snapshot in the place of what is there. The snapshot's files remain as they are. Verify a snapshot that came over the
    /// network first, with [`SnapshotDir::verify`]: this compares sizes only.
    ///
    /// # Errors
    /// When the snapshot is damaged or cannot be copied: the present state remains.
    pub fn install(&self, snapshot: &SnapshotDir) -> Result<(), StorageError> {
        self.replace(|coming| {
            snapshot.copy_database(coming)?;
            StateDb::open(coming)?.forget_flushed_log()
        })
    }

    /// Puts an empty database in the place of what is there, for a log that still has every entry.
    ///
    /// # Errors
    /// When it cannot be made: the present state remains.
    pub fn start_over(&self) -> Result<(), StorageError> {
        self.replace(|coming| StateDb::open(coming)?.sync())
    }

    fn replace(&self, fill: impl FnOnce(&Path) -> Result<(), StorageError>) -> Result<(), StorageError> {
        let old = self.current();
        let generation = generation_of(old.path()).unwrap_or(0) + 1;
        let coming = self.dir.join(format!("coming-{generation}"));
        files::remove(&coming)?;
        fill(&coming)?;
        let path = folder(&self.dir, generation);
        swell_system::crash::point("storage::before_install");
        files::rename(&coming, &path)?;
        swell_system::crash::point("storage::after_install");
        let new = StateDb::open(&path)?;
        self.current.store(Arc::new(new));
        old.retired.store(true, Ordering::Release);
        Ok(())
    }
}

fn folder(dir: &Path, generation: u64) -> PathBuf {
    dir.join(format!("{generation:06}"))
}

fn generation_of(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.parse().ok()
}

#[cfg(test)]
mod tests;
