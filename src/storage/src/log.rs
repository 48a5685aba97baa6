//! The database `raft/`: the log and the vote, as bytes. Knows nothing of any Raft library.
//!
//! One thread writes. It drains its bounded queue into one batch, writes and syncs that once, and answers in the order of the
//! queue: nothing is acknowledged before it is on disk, and no answer overtakes another. What is queued and not yet written is
//! read from memory, so an entry can be read as soon as it is queued.
//!
//! The write-ahead log is opened in the mode `TolerateCorruptedTailRecords`: a record that the end of the file cuts off is what a
//! kill in the middle of a write leaves; it was never acknowledged and is dropped. Anything else that is not as it was
//! written, the last record's bytes included, is refused. (`AbsoluteConsistency` would refuse after every such kill;
//! `PointInTime` would silently drop acknowledged entries behind a flipped byte.) What a cut file cannot show by itself, that
//! acknowledged entries are missing, the node finds by comparing the log's end with state.

use std::{
    collections::BTreeMap,
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use rocksdb::{ColumnFamily, DB, DBRecoveryMode, ReadOptions, WriteBatch, WriteOptions};
use tokio::sync::{mpsc, oneshot};

use super::{StorageError, files, rocks};

#[cfg(feature = "testing")]
pub mod gate;

const ENTRIES: &str = "entries";
const META: &str = "meta";
const VOTE: &[u8] = b"vote";
const PURGED: &[u8] = b"purged";

/// How many changes wait for the writer; further callers wait for a place.
const QUEUE_MAX: usize = 1024;

/// Bytes at which a group is written, so that the first change in it does not wait for a huge write.
const GROUP_BYTES: usize = 4 << 20;

/// Called once a change is on disk, or failed to get there. Must not block.
pub type Done = Box<dyn FnOnce(Result<(), StorageError>) + Send>;

enum Change {
    Append(Vec<(u64, Arc<[u8]>)>),
    Vote(Vec<u8>),
    /// Removes the entries of this range from the end of the log.
    Truncate(Range<u64>),
    /// Removes the entries of this range from the start of the log, and keeps the id of the last of them.
    Purge(Range<u64>, Vec<u8>),
}

struct Request {
    change: Change,
    done: Done,
}

#[derive(Default)]
struct State {
    vote: Option<Vec<u8>>,
    purged: Option<Vec<u8>>,
    first: u64,
    next: u64,
    /// Queued and not yet written; always the end of the log.
    tail: BTreeMap<u64, Arc<[u8]>>,
}

/// The log and the vote. Cheap to clone. Dropping the last clone waits until everything queued is written and the database is
/// closed: its folder may be opened again, and the process may end.
#[derive(Clone)]
pub struct RaftLog {
    open: Arc<Open>,
}

struct Open {
    shared: Arc<Shared>,
    /// Empty only while the log is closed.
    queue: Option<mpsc::Sender<Request>>,
    writer: Option<thread::JoinHandle<()>>,
}

impl Drop for Open {
    /// RocksDB must not be closed by a thread that still runs when the process ends: it takes locks that are gone by then, and
    /// the process would die of that.
    fn drop(&mut self) {
        self.queue = None;
        let Some(writer) = self.writer.take() else { return };
        // A callback that the writer calls may hold the last clone.
        if writer.thread().id() != thread::current().id() && writer.join().is_err() {
            tracing::error!(path = %self.shared.path.display(), "the writer of the log panicked");
        }
    }
}

struct Shared {
    db: DB,
    path: PathBuf,
    state: Mutex<State>,
    flushed: FlushedLog,
    #[cfg(feature = "testing")]
    gate: gate::WriterGate,
}

/// How far the log is on disk. Cheap to clone; does not keep the log open.
#[derive(Debug, Clone, Default)]
pub struct FlushedLog {
    /// Index after the last entry on disk.
    end: Arc<AtomicU64>,
}

impl FlushedLog {
    /// Index of the last entry that is on disk or was purged; `None` where there never was one.
    pub fn last(&self) -> Option<u64> {
        self.end.load(Ordering::Acquire).checked_sub(1)
    }

    fn set_end(&self, end: u64) {
        self.end.store(end, Ordering::Release);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn family(&self, name: &str) -> Result<&ColumnFamily, StorageError> {
        self.db.cf_handle(name).ok_or_else(|| StorageError::damaged(&self.path, format!("it has no column family {name}")))
    }

    fn meta(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        self.db.get_cf(self.family(META)?, key).map_err(|error| StorageError::rocks("read", &self.path, error))
    }

    fn damaged(&self, cause: impl Into<String>) -> StorageError {
        StorageError::damaged(&self.path, cause)
    }

    fn index_of(&self, key: &[u8]) -> Result<u64, StorageError> {
        let bytes = key.try_into().map_err(|_| self.damaged("a key of the log is not an index"))?;
        Ok(u64::from_be_bytes(bytes))
    }

    /// Reads every entry, so that damage and holes are found now; returns the range of the indexes held.
    fn verify(&self, first: u64) -> Result<Range<u64>, StorageError> {
        let failed = |error| StorageError::rocks("read", &self.path, error);
        rocks::verify(self.db.raw_iterator_cf_opt(self.family(META)?, rocks::once()), || true).map_err(failed)?;
        let mut iterator = self.db.raw_iterator_cf_opt(self.family(ENTRIES)?, rocks::once());
        // From the purge point, never from the first key: nothing looks at the tombstones before it.
        iterator.seek(first.to_be_bytes());
        let mut held: Option<Range<u64>> = None;
        while let Some(key) = iterator.key() {
            let index = self.index_of(key)?;
            held = Some(match held {
                None => index..index + 1,
                Some(held) if held.end == index => held.start..index + 1,
                Some(held) => return Err(self.damaged(format!("the log has no entry {}", held.end))),
            });
            iterator.next();
        }
        iterator.status().map_err(failed)?;
        match held {
            Some(held) if first > 0 && held.start != first => Err(self.damaged(format!("the log has no entry {first}"))),
            held => Ok(held.unwrap_or(first..first)),
        }
    }
}

impl RaftLog {
    /// Opens the log in `path`, and makes an empty one where there is none. Reads all of it once, to find damage now.
    ///
    /// # Errors
    /// When it is damaged, in use, or may not be written.
    pub fn open(path: &Path) -> Result<Self, StorageError> {
        files::create_dir(path)?;
        let mut options = rocks::options();
        options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
        let db = DB::open_cf(&options, path, [ENTRIES, META]).map_err(|error| StorageError::rocks("open", path, error))?;
        let shared = Shared {
            db,
            path: path.to_owned(),
            state: Mutex::default(),
            flushed: FlushedLog::default(),
            #[cfg(feature = "testing")]
            gate: gate::WriterGate::default(),
        };
        let mut state = State { vote: shared.meta(VOTE)?, ..State::default() };
        if let Some(value) = shared.meta(PURGED)? {
            let (first, id) = value.split_at_checked(8).ok_or_else(|| shared.damaged("the purge point is cut short"))?;
            state.first = shared.index_of(first)?;
            state.purged = Some(id.to_vec());
        }
        let held = shared.verify(state.first)?;
        (state.first, state.next) = (held.start, held.end);
        shared.flushed.set_end(state.next);
        *shared.state() = state;
        let shared = Arc::new(shared);
        let (queue, requests) = mpsc::channel(QUEUE_MAX);
        let writer = Writer { shared: Arc::clone(&shared), failed: None };
        let writer = thread::Builder::new().name("raft-log".into()).spawn(move || writer.run(requests));
        let writer = writer.map_err(|error| StorageError::io("write", path, &error))?;
        Ok(Self { open: Arc::new(Open { shared, queue: Some(queue), writer: Some(writer) }) })
    }

    /// How many clones there are. With one, dropping it closes the log.
    pub fn holders(&self) -> usize {
        Arc::strong_count(&self.open)
    }

    fn shared(&self) -> &Shared {
        &self.open.shared
    }

    /// Waits for a place in the queue.
    async fn reserve(&self) -> Result<mpsc::Permit<'_, Request>, StorageError> {
        let queue = self.open.queue.as_ref().ok_or_else(|| self.ended_error())?;
        queue.reserve().await.map_err(|_| self.ended_error())
    }

    /// Returns the folder of the log.
    pub fn path(&self) -> &Path {
        &self.shared().path
    }

    /// The indexes held, and the encoded id of the last entry purged.
    pub fn bounds(&self) -> (Range<u64>, Option<Vec<u8>>) {
        let state = self.shared().state();
        (state.first..state.next, state.purged.clone())
    }

    /// How far the log is on disk, also for whoever must not keep it open.
    pub fn flushed(&self) -> FlushedLog {
        self.shared().flushed.clone()
    }

    /// Where tests hold the writer back.
    #[cfg(feature = "testing")]
    pub fn writer_gate(&self) -> gate::WriterGate {
        self.shared().gate.clone()
    }

    /// The vote, if there ever was one.
    pub fn vote(&self) -> Option<Vec<u8>> {
        self.shared().state().vote.clone()
    }

    /// Keeps the vote; returns once it is on disk.
    ///
    /// # Errors
    /// When it is not.
    pub async fn save_vote(&self, vote: Vec<u8>) -> Result<(), StorageError> {
        self.on_disk(|_| Some(Change::Vote(vote))).await
    }

    /// Appends `entries`, whose indexes must continue the log. Readable when this returns, on disk when `done` is called.
    ///
    /// # Errors
    /// When there would be a hole, or the writer has ended.
    pub async fn append(&self, entries: Vec<(u64, Vec<u8>)>, done: Done) -> Result<(), StorageError> {
        let permit = self.reserve().await?;
        let entries: Vec<(u64, Arc<[u8]>)> = entries.into_iter().map(|(index, bytes)| (index, bytes.into())).collect();
        let mut state = self.shared().state();
        let mut next = state.next;
        let empty = state.first == state.next;
        for (position, (index, _)) in entries.iter().enumerate() {
            if *index != next && !(empty && position == 0 && *index >= next) {
                let cause = format!("entry {index} would leave a hole after {}", next.saturating_sub(1));
                return Err(self.shared().damaged(cause));
            }
            next = index + 1;
        }
        if let Some((first, _)) = entries.first().filter(|_| empty) {
            state.first = *first;
        }
        state.next = next;
        state.tail.extend(entries.iter().map(|(index, bytes)| (*index, Arc::clone(bytes))));
        // Queued under the lock: the order in the queue is the order in the log.
        permit.send(Request { change: Change::Append(entries), done });
        Ok(())
    }

    /// Removes every entry from `from` on; returns once that is on disk.
    ///
    /// # Errors
    /// When it is not.
    pub async fn truncate(&self, from: u64) -> Result<(), StorageError> {
        let change = |state: &mut State| {
            let removed = from.max(state.first)..state.next;
            if removed.is_empty() {
                return None;
            }
            state.next = removed.start;
            state.tail.split_off(&removed.start);
            Some(Change::Truncate(removed))
        };
        self.on_disk(change).await
    }

    /// Removes every entry up to `last`, whose encoded id is `id`; returns once that is on disk.
    ///
    /// # Errors
    /// When it is not.
    pub async fn purge(&self, last: u64, id: Vec<u8>) -> Result<(), StorageError> {
        let change = |state: &mut State| {
            let removed = state.first..last + 1;
            if state.purged.is_some() && removed.is_empty() {
                return None;
            }
            state.first = removed.end.max(state.first);
            state.next = state.next.max(state.first);
            let kept = state.first;
            state.tail = state.tail.split_off(&kept);
            state.purged = Some(id.clone());
            Some(Change::Purge(removed, id))
        };
        self.on_disk(change).await
    }

    /// The entries of this range that the log holds: at most `bytes` of them, but at least one.
    ///
    /// # Errors
    /// When one is missing or cannot be read.
    pub fn read(&self, range: Range<u64>, bytes: usize) -> Result<Vec<Arc<[u8]>>, StorageError> {
        let state = self.shared().state();
        let (start, end) = (range.start.max(state.first), range.end.min(state.next));
        if start >= end {
            return Ok(Vec::new());
        }
        let in_memory: Vec<Arc<[u8]>> = state.tail.range(start..end).map(|(_, entry)| Arc::clone(entry)).collect();
        let on_disk = start..end - in_memory.len() as u64;
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(on_disk.end.to_be_bytes());
        // Made under the lock, so that it sees what is not in the tail and no later purge; it reads afterwards.
        let mut iterator = self.shared().db.raw_iterator_cf_opt(self.shared().family(ENTRIES)?, options);
        drop(state);

        let mut entries = Vec::new();
        let mut size = 0;
        if !on_disk.is_empty() {
            iterator.seek(on_disk.start.to_be_bytes());
        }
        for index in on_disk {
            let Some((key, value)) = iterator.item().filter(|(key, _)| *key == index.to_be_bytes()) else {
                iterator.status().map_err(|error| StorageError::rocks("read", &self.shared().path, error))?;
                return Err(self.shared().damaged(format!("the log has no entry {index}")));
            };
            debug_assert_eq!(key.len(), 8);
            size += value.len();
            entries.push(value.into());
            if size >= bytes {
                return Ok(entries);
            }
            iterator.next();
        }
        for entry in in_memory {
            size += entry.len();
            entries.push(entry);
            if size >= bytes {
                break;
            }
        }
        Ok(entries)
    }

    async fn on_disk(&self, change: impl FnOnce(&mut State) -> Option<Change>) -> Result<(), StorageError> {
        let permit = self.reserve().await?;
        let (done, written) = oneshot::channel();
        {
            let mut state = self.shared().state();
            let Some(change) = change(&mut state) else { return Ok(()) };
            // The receiver is gone where the caller does not wait any more.
            permit.send(Request { change, done: Box::new(move |result| drop(done.send(result))) });
        }
        written.await.map_err(|_| self.ended_error())?
    }

    fn ended_error(&self) -> StorageError {
        let cause = "its writer has ended".to_owned();
        StorageError::Failed { tried: "write", path: self.shared().path.clone(), cause }
    }
}

struct Writer {
    shared: Arc<Shared>,
    /// After a failed write or sync nothing is known about the disk, so nothing is acknowledged any more.
    failed: Option<StorageError>,
}

impl Writer {
    fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut group = Vec::new();
        while let Some(first) = requests.blocking_recv() {
            let mut bytes = first.size();
            group.push(first);
            while bytes < GROUP_BYTES
                && let Ok(request) = requests.try_recv()
            {
                bytes += request.size();
                group.push(request);
            }
            #[cfg(feature = "testing")]
            if self.shared.gate.wait() == gate::Passage::Dead {
                // As in a killed process: nothing more reaches the disk, and no callback is called.
                return;
            }
            if self.failed.is_none()
                && let Err(error) = self.write(&group)
            {
                tracing::error!(%error, "failed to write the log, acknowledging nothing more");
                self.failed = Some(error);
            }
            for request in group.drain(..) {
                (request.done)(self.failed.clone().map_or(Ok(()), Err));
            }
        }
    }

    fn write(&self, group: &[Request]) -> Result<(), StorageError> {
        let (entries, meta) = (self.shared.family(ENTRIES)?, self.shared.family(META)?);
        let mut batch = WriteBatch::default();
        for request in group {
            match &request.change {
                Change::Append(appended) => {
                    appended.iter().for_each(|(index, bytes)| batch.put_cf(entries, index.to_be_bytes(), bytes));
                }
                Change::Vote(vote) => batch.put_cf(meta, VOTE, vote),
                Change::Truncate(removed) => {
                    removed.clone().for_each(|index| batch.delete_cf(entries, index.to_be_bytes()));
                }
                Change::Purge(removed, id) => {
                    if !removed.is_empty() {
                        batch.delete_range_cf(entries, removed.start.to_be_bytes(), removed.end.to_be_bytes());
                    }
                    batch.put_cf(meta, PURGED, [&removed.end.to_be_bytes(), id.as_slice()].concat());
                }
            }
        }
        let mut synced = WriteOptions::default();
        synced.set_sync(true);
        swell_system::crash::point("storage::before_log_sync");
        self.shared.db.write_opt(batch, &synced).map_err(|error| StorageError::rocks("write", &self.shared.path, error))?;
        swell_system::crash::point("storage::after_log_sync");

        let mut end = self.shared.flushed.end.load(Ordering::Acquire);
        let mut state = self.shared.state();
        for request in group {
            match &request.change {
                Change::Append(appended) => end = appended.last().map_or(end, |(index, _)| index + 1),
                Change::Truncate(removed) => end = end.min(removed.start),
                Change::Purge(removed, _) => end = end.max(removed.end),
                Change::Vote(_) => {}
            }
            match &request.change {
                // A truncated entry may have been queued again meanwhile: only what was written leaves.
                Change::Append(appended) => {
                    for (index, bytes) in appended {
                        if state.tail.get(index).is_some_and(|queued| Arc::ptr_eq(queued, bytes)) {
                            state.tail.remove(index);
                        }
                    }
                }
                Change::Vote(vote) => state.vote = Some(vote.clone()),
                Change::Truncate(_) | Change::Purge(..) => {}
            }
        }
        self.shared.flushed.set_end(end);
        Ok(())
    }
}

impl Request {
    fn size(&self) -> usize {
        match &self.change {
            Change::Append(entries) => entries.iter().map(|(_, bytes)| bytes.len()).sum(),
            Change::Vote(bytes) | Change::Purge(_, bytes) => bytes.len(),
            Change::Truncate(range) => (range.end - range.start) as usize * 8,
        }
    }
}

#[cfg(test)]
mod tests;
