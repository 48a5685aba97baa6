//! The database `events/`: what happened, by sequence number and by subject. Append-only, outside state and its snapshots. Knows
//! nothing of who reads.
//!
//! Events are written before the state that they belong to, without a sync. A server that dies in between applies the same entries
//! again and writes the same bytes; what state does not show yet is not read either. After a power loss the tail may be missing
//! although state is further: [`EventStore::last_written`] shows it, and the node applies from an older state again.
//!
//! What a server never had (it installed a snapshot) or no longer has (the cluster agreed to forget it) is a [`Gap`]. Readers never pass
//! over one unaware.

mod gaps;
pub mod segment;

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use rocksdb::{ColumnFamily, DB, DBRecoveryMode, Direction, IteratorMode, ReadOptions, WriteBatch};

use super::{
    StorageError,
    codec::{self, encode_key},
    files, rocks,
};
use swell_model::{
    digest::Digest,
    event::{Event, EventSeq, Subject},
    tables::key,
};

pub use gaps::Gap;
use gaps::Gaps;

const BY_SEQ: &str = "by_seq";
const BY_SUBJECT: &str = "by_subject";
const META: &str = "meta";
const GAPS: &[u8] = b"gaps";

/// The most events that one read returns.
pub const EVENTS_READ_MAX: usize = 10_000;

/// How many events are forgotten in one write.
const FORGOTTEN_AT_ONCE: usize = 1000;

/// Why events cannot be read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EventsError {
    /// What follows the cursor is not here: forgotten, or never received. Other servers or the archive may have it.
    #[error("events up to {resume_after} are not kept on this server; read the present state, then follow from there")]
    Gone {
        /// The oldest event after the gap; `None` where none was appended since.
        first_kept: Option<EventSeq>,
        /// The cursor that continues after the gap.
        resume_after: EventSeq,
    },
    /// The database fails.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// The database of events. Cheap to clone; every clone is the same database.
#[derive(Clone)]
pub struct EventStore {
    shared: Arc<Shared>,
}

struct Shared {
    db: DB,
    path: PathBuf,
    gaps: Mutex<Gaps>,
    /// The newest event that state shows.
    visible: Mutex<EventSeq>,
}

impl Shared {
    fn family(&self, name: &str) -> Result<&ColumnFamily, StorageError> {
        self.db.cf_handle(name).ok_or_else(|| StorageError::damaged(&self.path, format!("it has no column family {name}")))
    }

    fn failed(&self, tried: &'static str) -> impl Fn(rocksdb::Error) -> StorageError + '_ {
        move |error| StorageError::rocks(tried, &self.path, error)
    }

    fn write(&self, batch: WriteBatch) -> Result<(), StorageError> {
        self.db.write(batch).map_err(self.failed("write"))
    }

    fn gaps(&self) -> Gaps {
        self.gaps.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the gaps together with what `batch` writes.
    fn change_gaps(&self, mut batch: WriteBatch, change: impl FnOnce(&mut Gaps)) -> Result<(), StorageError> {
        let mut gaps = self.gaps.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = gaps.clone();
        change(&mut changed);
        batch.put_cf(self.family(META)?, GAPS, codec::encode(&changed).map_err(|error| self.unusable(error))?);
        self.write(batch)?;
        *gaps = changed;
        Ok(())
    }

    fn unusable(&self, cause: impl ToString) -> StorageError {
        StorageError::damaged(&self.path, cause.to_string())
    }

    fn seq_of(&self, key: &[u8]) -> Result<EventSeq, StorageError> {
        seq_of_key(key).ok_or_else(|| self.unusable("a key is not a sequence number"))
    }
}

/// Twelve bytes, ordered as sequence numbers are.
fn key_of_seq(seq: EventSeq) -> [u8; 12] {
    let mut key = [0; 12];
    key[..8].copy_from_slice(&seq.index.to_be_bytes());
    key[8..].copy_from_slice(&seq.ordinal.to_be_bytes());
    key
}

fn seq_of_key(key: &[u8]) -> Option<EventSeq> {
    let (index, ordinal) = key.split_at_checked(8)?;
    Some(EventSeq { index: u64::from_be_bytes(index.try_into().ok()?), ordinal: u32::from_be_bytes(ordinal.try_into().ok()?) })
}

/// The first sequence number after `seq`.
fn next(seq: EventSeq) -> EventSeq {
    match seq.ordinal.checked_add(1) {
        Some(ordinal) => EventSeq { ordinal, ..seq },
        None => EventSeq { index: seq.index.saturating_add(1), ordinal: 0 },
    }
}

impl EventStore {
    /// Opens the database in `path`, and makes an empty one where there is none. Shows nothing until [`EventStore::show_up_to`].
    ///
    /// # Errors
    /// When it is damaged, in use, or may not be written.
    pub fn open(path: &Path) -> Result<Self, StorageError> {
        files::create_dir(path)?;
        let mut options = rocks::options();
        options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
        let db = DB::open_cf(&options, path, [BY_SEQ, BY_SUBJECT, META]);
        let db = db.map_err(|error| StorageError::rocks("open", path, error))?;
        let (gaps, visible) = (Mutex::default(), Mutex::default());
        let shared = Shared { db, path: path.to_owned(), gaps, visible };
        if let Some(bytes) = shared.db.get_cf(shared.family(META)?, GAPS).map_err(shared.failed("read"))? {
            *shared.gaps.lock().unwrap_or_else(PoisonError::into_inner) =
                codec::decode(&bytes).map_err(|error| shared.unusable(error))?;
        }
        Ok(Self { shared: Arc::new(shared) })
    }

    /// How many clones of this there are, this one included.
    pub fn holders(&self) -> usize {
        Arc::strong_count(&self.shared)
    }

    /// Writes `events`, in the page cache when this returns. Writing the same ones again changes nothing.
    ///
    /// # Errors
    /// When they could not be written: the node must stop.
    pub fn append<'e>(&self, events: impl IntoIterator<Item = &'e Event>) -> Result<(), StorageError> {
        let shared = &*self.shared;
        let (by_seq, by_subject) = (shared.family(BY_SEQ)?, shared.family(BY_SUBJECT)?);
        let mut batch = WriteBatch::default();
        for event in events {
            let value = codec::encode(event).map_err(|error| shared.unusable(error))?;
            batch.put_cf(by_seq, key_of_seq(event.seq), value);
            batch.put_cf(by_subject, subject_key(shared, &event.subject, event.seq)?, []);
        }
        if batch.is_empty() { Ok(()) } else { shared.write(batch) }
    }

    /// Lets readers see events up to `last`: those that belong to state that is committed.
    pub fn show_up_to(&self, last: EventSeq) {
        *self.shared.visible.lock().unwrap_or_else(PoisonError::into_inner) = last;
    }

    /// The newest event that readers see; `0.0` before the first.
    pub fn last(&self) -> EventSeq {
        *self.shared.visible.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest event that was written, or the end of a gap after it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn last_written(&self) -> Result<EventSeq, StorageError> {
        let shared = &*self.shared;
        let mut iterator = shared.db.raw_iterator_cf(shared.family(BY_SEQ)?);
        iterator.seek_to_last();
        let last = iterator.key().map(|key| shared.seq_of(key)).transpose()?;
        iterator.status().map_err(shared.failed("read"))?;
        Ok(last.unwrap_or_default().max(shared.gaps().end()))
    }

    /// The oldest event that this server has without a gap before it counting back from the newest: readers that begin there or later
    /// see everything. `None` where there is none after the last gap.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn first_kept(&self) -> Result<Option<EventSeq>, StorageError> {
        self.first_after(self.shared.gaps().end())
    }

    fn first_after(&self, after: EventSeq) -> Result<Option<EventSeq>, StorageError> {
        let shared = &*self.shared;
        let visible = self.last();
        let mut iterator = shared.db.raw_iterator_cf(shared.family(BY_SEQ)?);
        iterator.seek(key_of_seq(next(after)));
        let first = iterator.key().map(|key| shared.seq_of(key)).transpose()?;
        iterator.status().map_err(shared.failed("read"))?;
        Ok(first.filter(|first| *first <= visible))
    }

    /// The oldest events after `after`, at most `limit` and at most [`EVENTS_READ_MAX`]. Empty where nothing followed yet.
    ///
    /// # Errors
    /// [`EventsError::Gone`] where what follows `after` is not kept.
    pub fn range(&self, after: EventSeq, limit: usize) -> Result<Vec<Event>, EventsError> {
        let shared = &*self.shared;
        let gaps = shared.gaps();
        if let Some(gap) = gaps.at(after) {
            return Err(EventsError::Gone { first_kept: self.first_after(gap.up_to)?, resume_after: gap.up_to });
        }
        let last = gaps.first_from(after).map_or(self.last(), |gap| gap.after.min(self.last()));
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(key_of_seq(next(last)));
        let from = key_of_seq(next(after));
        let mut events = Vec::new();
        if last <= after {
            return Ok(events);
        }
        let found = shared.db.iterator_cf_opt(shared.family(BY_SEQ)?, options, IteratorMode::From(&from, Direction::Forward));
        for item in found.take(limit.min(EVENTS_READ_MAX)) {
            let (_, value) = item.map_err(shared.failed("read"))?;
            events.push(self.decode(&value)?);
        }
        Ok(events)
    }

    /// The events about `subject` that this server has: at most `limit` (and [`EVENTS_READ_MAX`]), after `after` and oldest first, or
    /// before `after` and newest first where `backwards` is set. Leaves out what stands in a gap.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn by_subject(
        &self,
        subject: &Subject,
        after: Option<EventSeq>,
        backwards: bool,
        limit: usize,
    ) -> Result<Vec<Event>, StorageError> {
        let shared = &*self.shared;
        let prefix = encode_key(&key(subject.to_string().as_str())).map_err(|error| shared.unusable(error))?;
        let visible = next(self.last());
        let (first, end) = match (backwards, after) {
            (false, Some(after)) => (next(after), visible),
            (true, Some(before)) => (EventSeq::default(), before.min(visible)),
            (_, None) => (EventSeq::default(), visible),
        };
        if first >= end {
            return Ok(Vec::new());
        }
        let (first, end) = (subject_key(shared, subject, first)?, subject_key(shared, subject, end)?);
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(first.clone());
        options.set_iterate_upper_bound(end.clone());
        let mode = if backwards { IteratorMode::End } else { IteratorMode::Start };
        let mut events = Vec::new();
        for item in shared.db.iterator_cf_opt(shared.family(BY_SUBJECT)?, options, mode).take(limit.min(EVENTS_READ_MAX)) {
            let (key, _) = item.map_err(shared.failed("read"))?;
            let seq = key.split_at_checked(prefix.len()).map(|(_, seq)| shared.seq_of(seq)).transpose()?;
            let seq = seq.ok_or_else(|| shared.unusable("a key of a subject is cut short"))?;
            // Forgotten between the two reads.
            let Some(value) = shared.db.get_cf(shared.family(BY_SEQ)?, key_of_seq(seq)).map_err(shared.failed("read"))? else {
                continue;
            };
            events.push(self.decode(&value)?);
        }
        Ok(events)
    }

    fn decode(&self, value: &[u8]) -> Result<Event, StorageError> {
        codec::decode(value).map_err(|error| self.shared.unusable(error))
    }

    /// Removes every event up to `last`, which [`EventStore::write_segment`] or another server keeps. Reading them is answered with
    /// [`EventsError::Gone`] from the first moment. Forgetting again what is forgotten does nothing.
    ///
    /// # Errors
    /// When it cannot be written. Call it again: it goes on where it was.
    pub fn forget_up_to(&self, last: EventSeq) -> Result<(), StorageError> {
        let shared = &*self.shared;
        // First the gap: a reader sees all of the rest, or that it is gone.
        shared.change_gaps(WriteBatch::default(), |gaps| gaps.add(Gap { after: EventSeq::default(), up_to: last }))?;
        let end = key_of_seq(next(last));
        loop {
            let mut options = ReadOptions::default();
            options.set_iterate_upper_bound(end);
            let found = shared.db.iterator_cf_opt(shared.family(BY_SEQ)?, options, IteratorMode::Start);
            let mut batch = WriteBatch::default();
            let mut newest = None;
            for item in found.take(FORGOTTEN_AT_ONCE) {
                let (key, value) = item.map_err(shared.failed("read"))?;
                let event = self.decode(&value)?;
                batch.delete_cf(shared.family(BY_SUBJECT)?, subject_key(shared, &event.subject, event.seq)?);
                newest = Some(shared.seq_of(&key)?);
            }
            let Some(newest) = newest else { return Ok(()) };
            batch.delete_range_cf(shared.family(BY_SEQ)?, key_of_seq(EventSeq::default()), key_of_seq(next(newest)));
            shared.write(batch)?;
        }
    }

    /// Notes that events up to `last` were never received: state came as a snapshot that goes further than what was written here.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn skip_to(&self, last: EventSeq) -> Result<(), StorageError> {
        let after = self.last_written()?;
        if last <= after {
            return Ok(());
        }
        tracing::warn!(%after, up_to = %last, "events are missing on this server, others have them");
        self.shared.change_gaps(WriteBatch::default(), |gaps| gaps.add(Gap { after, up_to: last }))
    }

    /// Writes the events after `after`, up to `last`, as one segment; see [`segment`].
    ///
    /// # Errors
    /// [`EventsError::Gone`] where some are missing here; or when reading or writing fails.
    pub fn write_segment<W: io::Write>(
        &self,
        after: EventSeq,
        last: EventSeq,
        previous: Digest,
        output: W,
    ) -> Result<segment::Summary, segment::SegmentError> {
        let mut writer = segment::Writer::new(output, previous)?;
        let mut cursor = after;
        while cursor < last {
            let events = self.range(cursor, FORGOTTEN_AT_ONCE)?;
            let Some(newest) = events.last().map(|event| event.seq) else { break };
            for event in events.iter().take_while(|event| event.seq <= last) {
                writer.push(event)?;
            }
            cursor = newest;
        }
        writer.finish()
    }

    /// Syncs everything that was appended.
    ///
    /// # Errors
    /// When the disk refuses; the node must stop.
    pub fn sync(&self) -> Result<(), StorageError> {
        self.shared.db.flush_wal(true).map_err(self.shared.failed("sync"))
    }

    /// Returns the folder of the event log.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }
}

/// The subject as the start of a key, then the sequence number.
fn subject_key(shared: &Shared, subject: &Subject, seq: EventSeq) -> Result<Vec<u8>, StorageError> {
    let mut bytes = encode_key(&key(subject.to_string().as_str())).map_err(|error| shared.unusable(error))?;
    bytes.extend(key_of_seq(seq));
    Ok(bytes)
}

#[cfg(test)]
mod tests;
