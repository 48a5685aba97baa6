//! Options of a node: its folder, its id, and how it is tuned.

use std::{path::PathBuf, time::Duration};

/// Options of a node. [`Options::new`] sets all but the folder and the id to their defaults.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folder of the node's log, state, events and snapshots. Created when it does not exist; one node a folder.
    pub data_dir: PathBuf,
    /// From 1. Never reused for another node.
    pub node_id: u64,
    /// How long a proposal may take until it is applied. 10 s: longer than an election.
    pub propose_timeout: Duration,
    /// Most proposals that wait to be grouped into a log entry; further ones are refused as busy. 4,096: about a second's work of one disk.
    pub waiting_max: usize,
    /// Most proposals in one log entry. 256.
    pub group_commands_max: usize,
    /// Most bytes of proposals in one log entry (a larger one goes alone). 1 MiB.
    pub group_bytes_max: usize,
    /// Interval of a leader's heartbeats. 150 ms.
    pub heartbeat: Duration,
    /// Time without a heartbeat after which others elect a new leader: random between this and twice this. 500 ms: with the
    /// lease that must run out first, a new leader stands within about 2 s (docs/adr/0001-openraft-version.md).
    pub election_timeout_min: Duration,
    /// Log entries between two snapshots. 20,000.
    pub snapshot_every_entries: u64,
    /// Log entries kept although a snapshot covers them, so that a server that was away briefly need not fetch
    /// it. 5,000; also how many are purged at once, since purging often slows RocksDB down.
    pub keep_entries: u64,
}

impl Options {
    /// The defaults for a folder and an id.
    pub fn new(data_dir: impl Into<PathBuf>, node_id: u64) -> Self {
        Self {
            data_dir: data_dir.into(),
            node_id,
            propose_timeout: Duration::from_secs(10),
            waiting_max: 4096,
            group_commands_max: 256,
            group_bytes_max: 1 << 20,
            heartbeat: Duration::from_millis(150),
            election_timeout_min: Duration::from_millis(500),
            snapshot_every_entries: 20_000,
            keep_entries: 5_000,
        }
    }
}
