//! A snapshot is whole or refused, and tells by itself how far it goes.

#![allow(clippy::unwrap_used)]

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
    tx.commit(&Applied { index, details: vec![7] }).unwrap();
}

#[test]
fn a_checkpoint_comes_back_as_it_was_and_two_are_kept() {
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
        tx.commit(&Applied { index, details: vec![7] }).unwrap();
    }
    drop(snapshots);
    fs::create_dir(dir.path().join("snapshots/unfinished-0")).unwrap();
    let snapshots = SnapshotStore::open(&dir.path().join("snapshots")).unwrap();
    assert_eq!(fs::read_dir(dir.path().join("snapshots")).unwrap().count(), 2);
    let newest = snapshots.newest().unwrap().unwrap();
    newest.verify().unwrap();
    assert_eq!(newest.applied().unwrap(), Applied { index: 4, details: vec![7] });

    let copy = dir.path().join("copy");
    newest.copy(&copy).unwrap();
    let other = StateStore::open(&dir.path().join("other")).unwrap();
    other.install(&SnapshotDir::open(&copy).unwrap()).unwrap();
    assert!(other.view().get::<Repository>(&key("r4")).unwrap().is_some());
    assert!(other.view().get::<Repository>(&key("r104")).unwrap().is_none());
    assert_eq!(other.view().applied(), 4);
}

#[test]
fn a_flipped_or_missing_byte_is_refused_by_name() {
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
            let error = state.install(&snapshot).unwrap_err().to_string();
            assert!(error.contains(&record.name) && error.contains("damaged"), "{error}");
        }
        fs::write(&path, good).unwrap();
    }
    state.install(&snapshot).unwrap();
    let manifest = snapshot.path().join(MANIFEST);
    let text = fs::read_to_string(&manifest).unwrap().replacen("\"name\": \"", "\"name\": \"../", 1);
    fs::write(&manifest, text).unwrap();
    assert!(SnapshotDir::open(snapshot.path()).unwrap_err().to_string().contains("is not the name of a file"));
}
