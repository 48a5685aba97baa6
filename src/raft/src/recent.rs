//! The newest entries of the log, decoded, in memory: an entry is replicated to each server and applied right after it was appended,
//! and nobody should decode it again for that, or wait for a thread that may block. Knows nothing of the disk.

use std::{collections::VecDeque, ops::Range};

use super::types::Entry;

/// How many entries are kept.
const ENTRIES_MAX: usize = 1024;

/// How many encoded bytes of entries are kept; decoded they take a few times as much.
const BYTES_MAX: usize = 8 << 20;

/// The end of the log: without holes, up to its last entry.
#[derive(Default)]
pub struct RecentEntries {
    entries: VecDeque<(Entry, usize)>,
    bytes: usize,
}

impl RecentEntries {
    fn first(&self) -> Option<u64> {
        self.entries.front().map(|(entry, _)| entry.log_id.index)
    }

    /// Adds the entry that was appended to the log, whose encoding has `bytes`.
    pub fn push(&mut self, entry: Entry, bytes: usize) {
        let follows = self.entries.back().is_none_or(|(last, _)| last.log_id.index + 1 == entry.log_id.index);
        if !follows {
            (self.bytes, self.entries) = (0, VecDeque::new());
        }
        self.bytes += bytes;
        self.entries.push_back((entry, bytes));
        while self.entries.len() > ENTRIES_MAX || self.bytes > BYTES_MAX && self.entries.len() > 1 {
            self.pop_front();
        }
    }

    fn pop_front(&mut self) {
        if let Some((_, bytes)) = self.entries.pop_front() {
            self.bytes -= bytes;
        }
    }

    /// Forgets every entry from `from` on.
    pub fn truncate(&mut self, from: u64) {
        while self.entries.back().is_some_and(|(entry, _)| entry.log_id.index >= from) {
            if let Some((_, bytes)) = self.entries.pop_back() {
                self.bytes -= bytes;
            }
        }
    }

    /// Forgets every entry up to `last`.
    pub fn purge(&mut self, last: u64) {
        while self.first().is_some_and(|first| first <= last) {
            self.pop_front();
        }
    }

    /// The entries of `range`: as many as fit into `bytes`, but at least one. `None` where the log may hold others than these.
    pub fn read(&self, range: Range<u64>, bytes: usize) -> Option<Vec<Entry>> {
        let skipped = range.start.checked_sub(self.first()?)?;
        let mut size = 0;
        let mut entries = Vec::new();
        for (entry, length) in self.entries.iter().skip(usize::try_from(skipped).ok()?) {
            if entry.log_id.index >= range.end || (size >= bytes && !entries.is_empty()) {
                break;
            }
            size += length;
            entries.push(entry.clone());
        }
        Some(entries)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use openraft::EntryPayload;

    use super::*;
    use crate::types::LogId;

    fn entry(index: u64) -> Entry {
        Entry { log_id: LogId::new_term_index(1, index), payload: EntryPayload::Blank }
    }

    fn indexes(recent: &RecentEntries, range: Range<u64>, bytes: usize) -> Option<Vec<u64>> {
        recent.read(range, bytes).map(|entries| entries.iter().map(|entry| entry.log_id.index).collect())
    }

    #[test]
    fn recent_entries_are_the_end_of_the_log_or_nothing() {
        let mut recent = RecentEntries::default();
        assert_eq!(indexes(&recent, 0..9, 9), None);
        (5..10).for_each(|index| recent.push(entry(index), 100));
        assert_eq!(indexes(&recent, 4..9, 999), None, "an entry before them is on disk");
        assert_eq!(indexes(&recent, 6..8, 999), Some(vec![6, 7]));
        assert_eq!(indexes(&recent, 6..u64::MAX, 150), Some(vec![6, 7]), "as many as fit, and one more");
        assert_eq!(indexes(&recent, 6..9, 0), Some(vec![6]), "one at least");
        assert_eq!(indexes(&recent, 10..12, 9), Some(vec![]));
        recent.truncate(8);
        recent.push(entry(8), 100);
        recent.purge(6);
        assert_eq!(indexes(&recent, 7..99, 999), Some(vec![7, 8]));
        recent.push(entry(20), 100);
        assert_eq!(indexes(&recent, 7..99, 999), None, "a hole makes them begin anew");
        assert_eq!((indexes(&recent, 20..99, 999), recent.bytes), (Some(vec![20]), 100));
    }

    #[test]
    fn recent_entries_are_bounded_in_count_and_bytes() {
        let mut recent = RecentEntries::default();
        (0..5000).for_each(|index| recent.push(entry(index), 1));
        assert_eq!(recent.entries.len(), ENTRIES_MAX);
        (5000..5010).for_each(|index| recent.push(entry(index), BYTES_MAX));
        assert_eq!((recent.entries.len(), recent.bytes), (1, BYTES_MAX));
    }
}
