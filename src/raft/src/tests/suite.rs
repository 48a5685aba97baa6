//! openraft's own tests of a store, on ours.

use std::sync::Arc;

use openraft::{
    StorageError,
    testing::log::{StoreBuilder, Suite},
};
use tempfile::TempDir;

use super::super::{health::Health, log_store::LogStore, machine::Machine, types::Types};
use swell_storage::{EventStore, StateStore, checkpoint::SnapshotStore, log::RaftLog};

struct Builder;

impl StoreBuilder<Types, LogStore, Machine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine), StorageError<Types>> {
        let dir = TempDir::new().unwrap();
        let health = Arc::new(Health::new());
        let log = RaftLog::open(&dir.path().join("raft")).unwrap();
        let state = StateStore::open(&dir.path().join("state")).unwrap();
        let snapshots = Arc::new(SnapshotStore::open(&dir.path().join("snapshots")).unwrap());
        let events = EventStore::open(&dir.path().join("events")).unwrap();
        let machine = Machine::new(state.clone(), snapshots, events.clone(), log.flushed(), Arc::clone(&health)).unwrap();
        Ok((dir, LogStore::new(log, state, events, health), machine))
    }
}

#[test]
fn store_passes_the_suite_of_openraft() {
    // The suite brings its own runtimes.
    Suite::<Types, LogStore, Machine, Builder, TempDir>::test_all_blocking();
}

trait Blocking {
    fn test_all_blocking();
}

impl Blocking for Suite<Types, LogStore, Machine, Builder, TempDir> {
    fn test_all_blocking() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(Self::test_all(Builder)).unwrap();
    }
}
