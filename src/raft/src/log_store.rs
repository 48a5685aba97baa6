//! openraft's log storage, over the log in `storage`. Knows nothing of what entries mean.

use std::{
    fmt::Debug,
    io,
    ops::{Bound, Range, RangeBounds},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use openraft::{
    OptionalSend, RaftLogReader,
    entry::RaftEntry,
    storage::{IOFlushed, LogState, RaftLogStorage},
};

use super::{
    format::{decode_entry, decode_id, decode_vote, encode_entry, encode_id, encode_vote},
    health::Health,
    recent::RecentEntries,
    types::{Entry, LogId, Types, Vote},
};
use swell_storage::{EventStore, StateStore, log::RaftLog};

/// Most bytes of entries in one replication message; a larger entry goes alone.
const READ_BYTES_MAX: usize = 4 << 20;

/// The log, and the databases that must be on disk before entries are purged.
#[derive(Clone)]
pub struct LogStore {
    log: RaftLog,
    state: StateStore,
    events: EventStore,
    health: Arc<Health>,
    recent: Arc<Mutex<RecentEntries>>,
}

impl LogStore {
    pub fn new(log: RaftLog, state: StateStore, events: EventStore, health: Arc<Health>) -> Self {
        Self { log, state, events, health, recent: Arc::default() }
    }

    fn recent(&self) -> MutexGuard<'_, RecentEntries> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Entries that were appended lately, as those to be applied and replicated are, come from memory at once. Others are read off the
    /// asynchronous threads.
    async fn read(&self, range: Range<u64>, bytes: usize) -> io::Result<Vec<Entry>> {
        if let Some(entries) = self.recent().read(range.clone(), bytes) {
            return Ok(entries);
        }
        let log = self.log.clone();
        let read =
            move || -> io::Result<Vec<Entry>> { log.read(range, bytes)?.iter().map(|entry| decode_entry(entry)).collect() };
        let entries = tokio::task::spawn_blocking(read).await.map_err(io::Error::other).flatten();
        entries.inspect_err(|error| self.health.stop(error))
    }
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<R>(&mut self, range: R) -> io::Result<Vec<Entry>>
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        self.read(half_open(&range), usize::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(start..end, READ_BYTES_MAX).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        self.log.vote().as_deref().map(decode_vote).transpose()
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        let (held, purged) = self.log.bounds();
        let last_purged_log_id: Option<LogId> = purged.as_deref().map(decode_id).transpose()?;
        let last_log_id = match held.clone().last() {
            None => last_purged_log_id,
            Some(last) => self.read(last..last + 1, usize::MAX).await?.first().map(RaftEntry::log_id),
        };
        Ok(LogState { last_purged_log_id, last_log_id })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let saved = self.log.save_vote(encode_vote(vote)?).await;
        saved.map_err(|error| self.health.stopped_by(error))
    }

    /// Returns once the entries are queued and readable; `flushed` is completed once they are on disk.
    async fn append<I>(&mut self, entries: I, flushed: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries = entries.into_iter().map(|entry| Ok((encode_entry(&entry)?, entry))).collect::<io::Result<Vec<_>>>()?;
        let entries = {
            let mut recent = self.recent();
            let note = |(bytes, entry): (Vec<u8>, Entry)| {
                let index = entry.log_id.index;
                recent.push(entry, bytes.len());
                (index, bytes)
            };
            entries.into_iter().map(note).collect()
        };
        let health = Arc::clone(&self.health);
        let done = Box::new(move |result: Result<(), _>| flushed.io_completed(result.map_err(|error| health.stopped_by(error))));
        self.log.append(entries, done).await.map_err(|error| self.health.stopped_by(error))
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let from = last.map_or(0, |last| last.index + 1);
        self.recent().truncate(from);
        let truncated = self.log.truncate(from).await;
        truncated.map_err(|error| self.health.stopped_by(error))
    }

    /// What is purged can never be applied again, so events and state are synced first.
    async fn purge(&mut self, last: LogId) -> io::Result<()> {
        let (state, events) = (self.state.current(), self.events.clone());
        let sync = move || events.sync().and_then(|()| state.sync());
        let synced = tokio::task::spawn_blocking(sync).await.map_err(io::Error::other)?;
        synced.map_err(|error| self.health.stopped_by(error))?;
        self.recent().purge(last.index);
        let purged = self.log.purge(last.index, encode_id(last)?).await;
        purged.map_err(|error| self.health.stopped_by(error))
    }
}

fn half_open(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(&start) => start,
        Bound::Excluded(&before) => before + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(&last) => last + 1,
        Bound::Excluded(&end) => end,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}
