//! The newest events, each encoded once for all streams, with an index by subject. Bounded; who asks for older ones reads them from the
//! database.

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
