//! A node's leadership and status, for actors, `swell status` and `doctor`.

use serde::Serialize;

/// The leader, as this node knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Leadership {
    /// The Raft term that this node knows; a change of leader raises it.
    pub term: u64,
    /// Whether this node believes that it leads. It may have been deposed already: safety rests on epochs.
    pub is_leader: bool,
    /// The leader, if one is known.
    pub leader: Option<u64>,
}

/// Positions and sizes of a node.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    pub node_id: u64,
    /// The Raft term that this node knows; a change of leader raises it.
    pub term: u64,
    /// The leader, if one is known.
    pub leader: Option<u64>,
    /// The index of the last log entry on this node's disk.
    pub last_log: Option<u64>,
    /// The index of the last log entry that was applied.
    pub applied: Option<u64>,
    /// The index of the last log entry that the newest snapshot covers.
    pub snapshot: Option<u64>,
    /// The size of the log's files, in bytes.
    pub log_bytes: u64,
    /// The size of the state's files, in bytes.
    pub state_bytes: u64,
    /// The size of the event store's files, in bytes.
    pub event_bytes: u64,
    /// The size of the snapshots' files, in bytes; those that state shares are counted in both.
    pub snapshot_bytes: u64,
    /// Why it stopped, if it did.
    pub stopped: Option<String>,
}
