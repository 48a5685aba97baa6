//! The cluster as a whole: who leads, what time it is, which numbers are taken, and answers given before.

use serde::{Deserialize, Serialize};
use std::sync::Arc;

use crate::change::Change;
use crate::{
    clock::ClusterClock,
    command::Outcome,
    digest::Digest,
    event::EventSeq,
    rejection::Rejection,
    tables::{Key, Record, Table, key},
    units::{Millis, Timestamp},
};

/// The number of a leadership: the Raft term in which the leader committed `BeginEpoch`. Never runs backwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

/// The behaviour of `apply` that all servers agreed on. Raised by a person, once every server's binary knows it.
pub const FEATURE_LEVEL: u32 = 1;

/// How long an answer to a command with an idempotency key is remembered.
pub const ANSWER_AGE_MAX: Millis = Millis(24 * 3_600_000);

/// How many answers are remembered at the most.
pub const ANSWERS_MAX: u64 = 200_000;

/// The one record of the whole cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Grows with each restore or recovery, so that what came before cannot return.
    pub generation: u64,
    /// The present leadership.
    pub epoch: Epoch,
    /// The server that leads it.
    pub leader: u64,
    /// Which rules `apply` follows.
    pub feature_level: u32,
    pub clock: ClusterClock,
    /// The chain's hash over every event.
    pub event_head: Digest,
    /// Where the newest event stands.
    pub last_event: EventSeq,
    /// The last event that left the event log for a sealed segment.
    #[serde(default)]
    pub events_forgotten_to: EventSeq,
    /// The chain's hash at that event: where the chain in the log begins.
    #[serde(default)]
    pub events_forgotten_head: Digest,
    /// How many events there were.
    pub event_count: u64,
    /// The number of the next build.
    pub next_build: u64,
    /// The number of the next rollout.
    pub next_rollout: u64,
    /// The number of the next target.
    pub next_target: u32,
    /// How many answers are remembered.
    pub answer_count: u64,
}

impl Default for Cluster {
    fn default() -> Self {
        Self {
            generation: 1,
            epoch: Epoch(0),
            leader: 0,
            feature_level: FEATURE_LEVEL,
            clock: ClusterClock::default(),
            event_head: Digest::default(),
            last_event: EventSeq::default(),
            events_forgotten_to: EventSeq::default(),
            events_forgotten_head: Digest::default(),
            event_count: 0,
            next_build: 1,
            next_rollout: 1,
            next_target: 0,
            answer_count: 0,
        }
    }
}

impl Record for Cluster {
    const TABLE: Table = Table::Cluster;
    const IS_FOLLOWED: bool = true;

    fn key(&self) -> Key {
        Key::all()
    }

    fn change(record: Arc<Self>) -> Option<Change> {
        Some(Change::Cluster(record))
    }
}

/// What a command with an idempotency key was answered; a retry gets the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The key that the proposer chose.
    pub key: String,
    /// What it stands for, where the proposer said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<Digest>,
    /// When it was applied.
    pub at: Timestamp,
    /// What it led to.
    pub outcome: Outcome,
}

impl Answer {
    /// The answer for a retry: for a request with the same fingerprint.
    ///
    /// # Errors
    /// [`Rejection::KeyReused`] where the key stood for another request.
    pub fn replay(self, fingerprint: Option<Digest>) -> Result<Outcome, Rejection> {
        if self.fingerprint != fingerprint {
            return Err(Rejection::KeyReused);
        }
        Ok(Outcome { replayed: true, ..self.outcome })
    }
}

impl Record for Answer {
    const TABLE: Table = Table::Answers;

    fn key(&self) -> Key {
        key(self.key.as_str())
    }
}

/// The same answers in the order of time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerByTime {
    /// When it was applied.
    pub at: Timestamp,
    /// The idempotency key.
    pub key: String,
}

impl Record for AnswerByTime {
    const TABLE: Table = Table::AnswersByTime;

    fn key(&self) -> Key {
        key(self.at.0).then(self.key.as_str())
    }
}
