//! A ring of the newest events, each encoded once for all streams, with an index by subject. Bounded in events and bytes; older ones
//! are read from state. Pure: knows nothing of HTTP.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use swell_model::{
    change::AppliedBatch,
    event::{Event, EventSeq, Subject},
};

/// One event with its encoded form.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedEvent {
    pub event: Arc<Event>,
    pub encoded: Arc<[u8]>,
}

/// What the tail has after a place in the log.
#[derive(Debug, Clone, PartialEq)]
pub enum Read {
    /// All that follow, oldest first, up to the limit asked for; none: there is nothing newer.
    Events(Vec<EncodedEvent>),
    /// What follows begins before the oldest event that is kept: read the database.
    OlderThanKept,
}

/// A ring of encoded events.
#[derive(Debug)]
pub struct EventTail {
    encode: fn(&Event) -> Vec<u8>,
    events_max: usize,
    bytes_max: usize,
    events: VecDeque<EncodedEvent>,
    bytes: usize,
    /// Number of the first event in the ring; the next one has `first + events.len()`.
    first: u64,
    /// Numbers of the events in the ring by subject, ascending.
    by_subject: HashMap<Subject, VecDeque<u64>>,
    /// Everything up to here was dropped or came before the tail began.
    dropped_up_to: EventSeq,
}

impl EventTail {
    /// An empty tail that begins after `last`, the newest event so far. `encode` gives the form that streams send.
    pub fn new(last: EventSeq, events_max: usize, bytes_max: usize, encode: fn(&Event) -> Vec<u8>) -> Self {
        let (events, by_subject) = (VecDeque::new(), HashMap::new());
        Self { encode, events_max, bytes_max, events, bytes: 0, first: 0, by_subject, dropped_up_to: last }
    }

    /// Takes a batch in and drops the oldest events beyond the bounds.
    pub fn update(&mut self, batch: &AppliedBatch) {
        for event in &batch.events {
            let encoded: Arc<[u8]> = (self.encode)(event).into();
            self.bytes += encoded.len();
            let number = self.first + self.events.len() as u64;
            self.by_subject.entry(event.subject.clone()).or_default().push_back(number);
            self.events.push_back(EncodedEvent { event: Arc::clone(event), encoded });
        }
        while self.events.len() > self.events_max || self.bytes > self.bytes_max {
            let Some(oldest) = self.events.pop_front() else { break };
            self.bytes -= oldest.encoded.len();
            self.first += 1;
            self.dropped_up_to = oldest.event.seq;
            if let Some(numbers) = self.by_subject.get_mut(&oldest.event.subject) {
                numbers.pop_front();
                if numbers.is_empty() {
                    self.by_subject.remove(&oldest.event.subject);
                }
            }
        }
    }

    /// The events after `after`: at most `limit`.
    pub fn read(&self, after: EventSeq, limit: usize) -> Read {
        if after < self.dropped_up_to {
            return Read::OlderThanKept;
        }
        let from = self.events.partition_point(|kept| kept.event.seq <= after);
        Read::Events(self.events.range(from..).take(limit).cloned().collect())
    }

    /// The same of one subject.
    pub fn read_subject(&self, subject: &Subject, after: EventSeq, limit: usize) -> Read {
        if after < self.dropped_up_to {
            return Read::OlderThanKept;
        }
        let Some(numbers) = self.by_subject.get(subject) else { return Read::Events(Vec::new()) };
        let event = |number: &u64| &self.events[(*number - self.first) as usize];
        let from = numbers.partition_point(|number| event(number).event.seq <= after);
        Read::Events(numbers.range(from..).take(limit).map(event).cloned().collect())
    }

    /// The newest event, or where the tail began.
    pub fn last(&self) -> EventSeq {
        self.events.back().map_or(self.dropped_up_to, |kept| kept.event.seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use swell_model::{event::EventKind, ids::BuildId, principal::Principal, units::Timestamp};

    fn event(index: u64) -> Arc<Event> {
        Arc::new(Event {
            seq: EventSeq { index, ordinal: 0 },
            at: Timestamp(0),
            principal: Principal::system("test"),
            subject: Subject::Build(BuildId(index % 3)),
            kind: EventKind::BuildStarted,
            from: None,
            to: None,
            note: None,
            data: Default::default(),
            previous: swell_model::digest::Digest([0; 32]),
        })
    }

    fn tail(events: std::ops::RangeInclusive<u64>, events_max: usize, bytes_max: usize) -> EventTail {
        let mut tail = EventTail::new(EventSeq { index: 0, ordinal: 0 }, events_max, bytes_max, |_| vec![0; 100]);
        tail.update(&AppliedBatch { index: *events.end(), events: events.map(event).collect(), ..Default::default() });
        tail
    }

    fn indexes(read: Read) -> Option<Vec<u64>> {
        match read {
            Read::Events(events) => Some(events.into_iter().map(|kept| kept.event.seq.index).collect()),
            Read::OlderThanKept => None,
        }
    }

    fn at(index: u64) -> EventSeq {
        EventSeq { index, ordinal: 0 }
    }

    #[test]
    fn tail_returns_events_after_cursor_in_order_up_to_limit() {
        let tail = tail(1..=10, 100, 1 << 20);
        assert_eq!(indexes(tail.read(at(0), 100)), Some((1..=10).collect()));
        assert_eq!(indexes(tail.read(at(4), 3)), Some(vec![5, 6, 7]));
        assert_eq!(indexes(tail.read(tail.last(), 3)), Some(vec![]));
        assert_eq!(indexes(tail.read_subject(&Subject::Build(BuildId(1)), at(1), 100)), Some(vec![4, 7, 10]));
        assert_eq!(indexes(tail.read_subject(&Subject::Build(BuildId(9)), at(1), 100)), Some(vec![]));
    }

    #[test]
    fn tail_drops_oldest_events_beyond_either_bound_and_says_so() {
        for tail in [tail(1..=10, 4, 1 << 20), tail(1..=10, 100, 400)] {
            assert_eq!(indexes(tail.read(at(6), 100)), Some(vec![7, 8, 9, 10]));
            assert_eq!(indexes(tail.read(at(5), 100)), None);
            assert_eq!(indexes(tail.read_subject(&Subject::Build(BuildId(1)), at(5), 100)), None);
            assert_eq!(indexes(tail.read_subject(&Subject::Build(BuildId(1)), at(6), 100)), Some(vec![7, 10]));
        }
    }
}
