//! How a node is started, and how it is tuned. Knows nothing of what it does with that.

use std::{path::PathBuf, time::Duration};

/// How a node is started. [`Options::new`] gives everything but the folder and the id its default.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the node keeps its log and its state. Created when it does not exist; one node a folder.
    pub data_dir: PathBuf,
    /// The node's number, from 1. Never given to another node again.
    pub node_id: u64,
    /// How long a proposal may take from being handed over until it is applied. 10 s: longer than an election.
    pub propose_timeout: Duration,
    /// How many proposals may wait to be grouped into a log entry. 4,096: about a second's work of one disk.
    pub waiting_max: usize,
    /// How many proposals one log entry carries at the most. 256.
    pub group_commands_max: usize,
    /// How many bytes of proposals one log entry carries at the most (a larger one goes alone). 1 MiB.
    pub group_bytes_max: usize,
    /// How often a leader tells the others that it leads. 150 ms.
    pub heartbeat: Duration,
    /// After how long without a heartbeat the others elect another: a random time between this and twice this. 500 ms: with the
    /// lease that must run out first, a new leader stands within about 2 s (docs/adr/0001-openraft-version.md).
    pub election_timeout_min: Duration,
    /// After how many log entries a snapshot is taken. 20,000.
    pub snapshot_every_entries: u64,
    /// How many log entries are kept that a snapshot already covers, so that a server that was away briefly need not fetch
    /// it. 5,000; also how many are purged at once, since purging often slows RocksDB down.
    pub keep_entries: u64,
}

impl Options {
    /// Everything but the folder and the id by default.
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
