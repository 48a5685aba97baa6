//! A snapshot is whole or refused, and tells by itself how far it goes.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use tempfile::TempDir;

use super::*;
use crate::StateStore;
use swell_model::{
    repository::Repository,
    tables::{ReadTables, Tables, key},
    units::Timestamp,
};

fn put(state: &StateStore, index: u64) {
    let name = format!("r{index}").parse().unwrap();
    let record = Repository { name, default_branch: "main".into(), next_bundle: 0, created_at: Timestamp(1) };
    let db = state.current();
    let mut tx = db.transaction();
    tx.put(&record).unwrap();
    tx.commit(&Applied { index, log_flushed: Some(index), details: vec![7] }).unwrap();
}

#[test]
fn installed_checkpoint_equals_the_original_and_two_snapshots_are_kept() {
    let dir = TempDir::new().unwrap();
    let state = StateStore::open(&dir.path().join("state")).unwrap();
    let snapshots = SnapshotStore::open(&dir.path().join("snapshots")).unwrap();
    assert_eq!(snapshots.newest().unwrap(), None);
    for index in 1..=4 {
        put(&state, index);
        let begun = snapshots.begin(&state.current()).unwrap();
        // What is applied after the checkpoint is not in the snapshot.
        put(&state, 100 + index);
        snapshots.finish(&begun).unwrap();
        let db = state.current();
        let tx = db.transaction();
        tx.commit(&Applied { index, log_flushed: Some(index), details: vec![7] }).unwrap();
    }
    drop(snapshots);
    fs::create_dir(dir.path().join("snapshots/unfinished-0")).unwrap();
    let snapshots = SnapshotStore::open(&dir.path().join("snapshots")).unwrap();
    assert_eq!(fs::read_dir(dir.path().join("snapshots")).unwrap().count(), 2);
    let newest = snapshots.newest().unwrap().unwrap();
    newest.verify().unwrap();
    assert_eq!(newest.applied().unwrap(), Applied { index: 4, log_flushed: Some(4), details: vec![7] });

    let copy = dir.path().join("copy");
    newest.copy(&copy).unwrap();
    let other = StateStore::open(&dir.path().join("other")).unwrap();
    other.install(&SnapshotDir::open(&copy).unwrap()).unwrap();
    assert!(other.view().get::<Repository>(&key("r4")).unwrap().is_some());
    assert!(other.view().get::<Repository>(&key("r104")).unwrap().is_none());
    assert_eq!(other.view().applied(), 4);
    let applied = other.current().applied().unwrap().unwrap();
    assert_eq!(applied.log_flushed, None, "what another server's log had on disk says nothing about ours");
}

#[test]
fn second_snapshot_after_a_small_change_hashes_only_the_new_files() {
    let dir = TempDir::new().unwrap();
    let state = StateStore::open(&dir.path().join("state")).unwrap();
    let snapshots = SnapshotStore::open(&dir.path().join("snapshots")).unwrap();
    // A checkpoint writes what is in memory to a table file of its own. So few are not merged yet.
    for index in 1..=2 {
        put(&state, index);
        snapshots.finish(&snapshots.begin(&state.current()).unwrap()).unwrap();
    }
    let tables = |snapshot: &SnapshotDir| -> BTreeSet<String> {
        let names = snapshot.manifest().files.iter().map(|file| file.name.clone());
        names.filter(|name| never_changes(name)).collect()
    };
    let before = snapshots.newest().unwrap().unwrap();
    let hashed_before = snapshots.files_hashed();
    put(&state, 3);
    let after = snapshots.finish(&snapshots.begin(&state.current()).unwrap()).unwrap();
    let others = after.manifest().files.len() - tables(&after).len();
    let new = tables(&after).difference(&tables(&before)).count();
    assert!(tables(&after).intersection(&tables(&before)).count() > 0, "they share files");
    assert_eq!(snapshots.files_hashed() - hashed_before, (new + others) as u64);
    after.verify().unwrap();
    // The same name, but another file: its hash is not taken over.
    let shared = tables(&after).intersection(&tables(&before)).next().unwrap().clone();
    let copy = dir.path().join("copy.sst");
    fs::copy(after.file(&shared), &copy).unwrap();
    assert!(after.record_of_same_file(&shared, &after.file(&shared)).is_some());
    assert_eq!(after.record_of_same_file(&shared, &copy), None);
}

#[test]
fn snapshot_with_a_flipped_or_missing_byte_is_refused_by_file_name() {
    let dir = TempDir::new().unwrap();
    let state = StateStore::open(&dir.path().join("state")).unwrap();
    let snapshots = SnapshotStore::open(&dir.path().join("snapshots")).unwrap();
    put(&state, 1);
    let snapshot = snapshots.finish(&snapshots.begin(&state.current()).unwrap()).unwrap();
    assert!(snapshot.manifest().files.iter().any(|file| file.name.ends_with(".sst")));
    for record in snapshot.manifest().files.iter().filter(|file| file.size > 0) {
        let path = snapshot.file(&record.name);
        let good = fs::read(&path).unwrap();
        for bad in [good[..good.len() - 1].to_vec(), good.iter().enumerate().map(|(n, byte)| byte ^ u8::from(n == 1)).collect()] {
            fs::remove_file(&path).unwrap();
            fs::write(&path, bad).unwrap();
            let error = snapshot.verify().unwrap_err().to_string();
            assert!(error.contains(&record.name) && error.contains("damaged"), "{error}");
            if fs::metadata(&path).unwrap().len() != record.size {
                let error = state.install(&snapshot).unwrap_err().to_string();
                assert!(error.contains(&record.name) && error.contains("damaged"), "{error}");
            }
        }
        fs::write(&path, good).unwrap();
    }
    snapshot.verify().unwrap();
    state.install(&snapshot).unwrap();
    let manifest = snapshot.path().join(MANIFEST);
    let text = fs::read_to_string(&manifest).unwrap().replacen("\"name\": \"", "\"name\": \"../", 1);
    fs::write(&manifest, text).unwrap();
    assert!(SnapshotDir::open(snapshot.path()).unwrap_err().to_string().contains("is not the name of a file"));
}
