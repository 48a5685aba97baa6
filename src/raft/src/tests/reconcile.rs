//! Folders whose parts fit together start, others are refused: how far the log was on disk decides.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use tempfile::TempDir;

use super::*;

struct Folder {
    state: StateStore,
    snapshots: SnapshotStore,
    _dir: TempDir,
}

/// State at entry 10, written when the log was on disk up to `log_flushed`.
fn folder(log_flushed: Option<u64>) -> Folder {
    let dir = TempDir::new().unwrap();
    let state = StateStore::open(&dir.path().join("state")).unwrap();
    let snapshots = SnapshotStore::open(&dir.path().join("snapshots")).unwrap();
    state.current().transaction().commit(&Applied { index: 10, log_flushed, details: Vec::new() }).unwrap();
    Folder { state, snapshots, _dir: dir }
}

fn reconciled(folder: &Folder, end: Option<u64>, purged: Option<u64>) -> Result<(), StorageError> {
    reconcile(LogBounds { end, purged }, &folder.state, &folder.snapshots, Path::new("/data/raft"))
}

#[test]
fn log_that_ends_before_what_was_flushed_is_refused() {
    let error = reconciled(&folder(Some(8)), Some(7), None).unwrap_err();
    assert!(matches!(error, StorageError::LogLost { end: Some(7), flushed: 8, .. }), "{error}");
    assert!(error.to_string().contains("/data/raft") && !error.to_string().contains("remove"), "{error}");
    assert!(matches!(reconciled(&folder(Some(0)), None, None), Err(StorageError::LogLost { end: None, .. })));
}

#[test]
fn log_that_ends_before_what_was_applied_is_healthy() {
    reconciled(&folder(Some(8)), Some(8), None).unwrap();
    reconciled(&folder(Some(8)), Some(9), None).unwrap();
    reconciled(&folder(None), None, None).unwrap();
}

#[test]
fn state_behind_a_purged_log_needs_a_snapshot() {
    let folder = folder(Some(10));
    let error = reconciled(&folder, Some(20), Some(11)).unwrap_err();
    assert!(matches!(error, StorageError::StateBehindLog { applied: 10, purged: 11, .. }), "{error}");
    let other = StateStore::open(&folder._dir.path().join("other")).unwrap();
    other.current().transaction().commit(&Applied { index: 12, log_flushed: Some(12), details: Vec::new() }).unwrap();
    folder.snapshots.finish(&folder.snapshots.begin(&other.current()).unwrap()).unwrap();
    reconciled(&folder, Some(20), Some(11)).unwrap();
    assert_eq!(folder.state.current().applied().unwrap(), Some(Applied { index: 12, ..Applied::default() }));
}

#[test]
fn received_snapshot_that_was_not_installed_is_installed() {
    let folder = folder(Some(10));
    let other = StateStore::open(&folder._dir.path().join("other")).unwrap();
    other.current().transaction().commit(&Applied { index: 30, log_flushed: Some(30), details: Vec::new() }).unwrap();
    folder.snapshots.finish(&folder.snapshots.begin(&other.current()).unwrap()).unwrap();
    reconciled(&folder, Some(10), None).unwrap();
    assert_eq!(folder.state.view().applied(), 30);
    reconciled(&folder, Some(10), None).unwrap();
}
