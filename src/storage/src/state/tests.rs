//! State in RocksDB behaves as state in memory does, and survives what it must.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::checkpoint::SnapshotStore;
use swell_model::{
    cluster::AnswerByTime,
    repository::Repository,
    tables::{Key, MemoryTables, ReadTables, Record, Scan, Tables, key},
    units::Timestamp,
};

pub fn repository(name: &str, next_bundle: u64) -> Repository {
    Repository { name: name.parse().unwrap(), default_branch: "main".into(), next_bundle, created_at: Timestamp(1) }
}

fn put(state: &StateStore, index: u64, name: &str) {
    let db = state.current();
    let mut tx = db.transaction();
    tx.put(&repository(name, index)).unwrap();
    tx.commit(&Applied { index, log_flushed: None, details: vec![index as u8] }).unwrap();
}

fn names(tables: &impl ReadTables) -> Vec<String> {
    let all: Vec<Repository> = tables.scan(&Scan::all(), 100).unwrap();
    all.iter().map(|repository| repository.name.to_string()).collect()
}

#[test]
fn view_stays_as_it_was_and_reopened_store_has_everything() {
    let dir = TempDir::new().unwrap();
    let state = StateStore::open(dir.path()).unwrap();
    assert_eq!((state.view().applied(), state.current().applied().unwrap()), (0, None));
    put(&state, 3, "one");
    let before = state.view();
    put(&state, 5, "two");
    assert_eq!((before.applied(), names(&before)), (3, vec!["one".to_owned()]));
    assert_eq!((state.view().applied(), names(&state.view())), (5, vec!["one".to_owned(), "two".to_owned()]));
    drop((before, state));

    let state = StateStore::open(dir.path()).unwrap();
    assert_eq!(names(&state.view()), ["one", "two"]);
    assert_eq!(state.current().applied().unwrap(), Some(Applied { index: 5, log_flushed: None, details: vec![5] }));
}

#[test]
fn rejected_command_and_dropped_transaction_leave_nothing() {
    let dir = TempDir::new().unwrap();
    let state = StateStore::open(dir.path()).unwrap();
    put(&state, 1, "kept");
    let db = state.current();
    let mut tx = db.transaction();
    tx.savepoint();
    tx.put(&repository("first", 1)).unwrap();
    tx.savepoint();
    tx.put(&repository("rejected", 1)).unwrap();
    tx.delete::<Repository>(&key("kept")).unwrap();
    tx.delete::<Repository>(&key("first")).unwrap();
    assert!(names(&tx).iter().all(|name| name == "rejected"), "it reads its own writes");
    tx.rollback_to_savepoint().unwrap();
    tx.savepoint();
    tx.put(&repository("second", 1)).unwrap();
    assert_eq!(names(&tx), ["first", "kept", "second"]);
    tx.commit(&Applied { index: 2, ..Applied::default() }).unwrap();
    assert_eq!(names(&state.view()), ["first", "kept", "second"]);

    let mut dropped = db.transaction();
    dropped.put(&repository("dropped", 1)).unwrap();
    drop(dropped);
    assert_eq!(names(&state.view()), ["first", "kept", "second"]);
    assert_eq!(state.view().applied(), 2);
}

#[test]
fn installed_snapshot_replaces_state_while_readers_keep_the_old_one() {
    let dir = TempDir::new().unwrap();
    let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));
    let snapshots = SnapshotStore::open(&dir.path().join("snapshots")).unwrap();
    let source = StateStore::open(&theirs).unwrap();
    put(&source, 9, "theirs");
    let snapshot = snapshots.finish(&snapshots.begin(&source.current()).unwrap()).unwrap();

    let state = StateStore::open(&ours).unwrap();
    put(&state, 2, "ours");
    let reader = state.view();
    state.install(&snapshot).unwrap();
    assert_eq!((names(&state.view()), state.view().applied()), (vec!["theirs".to_owned()], 9));
    assert_eq!(names(&reader), ["ours"], "who reads the former state still does");
    assert_eq!(fs::read_dir(&ours).unwrap().count(), 2);
    drop(reader);
    assert_eq!(fs::read_dir(&ours).unwrap().count(), 1, "the former state goes with its last reader");
    put(&state, 10, "more");
    drop(state);
    // As a crash between copying and renaming leaves it.
    fs::create_dir(ours.join("coming-3")).unwrap();
    let state = StateStore::open(&ours).unwrap();
    assert_eq!((names(&state.view()), state.view().applied()), (vec!["more".to_owned(), "theirs".to_owned()], 10));
    assert_eq!(fs::read_dir(&ours).unwrap().count(), 1);
}

#[test]
fn state_that_starts_over_is_empty_and_stays_so_after_a_restart() {
    let dir = TempDir::new().unwrap();
    let state = StateStore::open(dir.path()).unwrap();
    put(&state, 3, "one");
    state.start_over().unwrap();
    assert_eq!((names(&state.view()), state.current().applied().unwrap()), (vec![], None));
    drop(state);
    assert_eq!(StateStore::open(dir.path()).unwrap().current().applied().unwrap(), None);
}

#[test]
fn second_open_of_a_folder_is_refused_as_in_use() {
    let dir = TempDir::new().unwrap();
    let _first = StateStore::open(dir.path()).unwrap();
    let second = StateStore::open(dir.path()).err().unwrap();
    assert!(second.to_string().contains("another swell server uses this folder"), "{second}");
}

#[test]
fn damaged_table_file_is_refused_by_name() {
    let dir = TempDir::new().unwrap();
    let state = StateStore::open(dir.path()).unwrap();
    for index in 1..200 {
        put(&state, index, &format!("r{index}"));
    }
    state.current().rocks().flush_cf(state.current().family(Table::Repositories.name()).unwrap()).unwrap();
    let path = state.current().path().to_owned();
    drop(state);
    let tables = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    for table in tables.filter(|path| path.extension().is_some_and(|extension| extension == "sst")) {
        let good = fs::read(&table).unwrap();
        let mut bad = good.clone();
        bad[20] ^= 1;
        fs::write(&table, &bad).unwrap();
        let flipped = StateStore::open(dir.path()).and_then(|state| state.current().verify(|| true));
        let flipped = flipped.unwrap_err().to_string();
        fs::write(&table, &good[..good.len() / 2]).unwrap();
        let cut = StateStore::open(dir.path()).err().unwrap().to_string();
        fs::write(&table, &good).unwrap();
        let file = table.file_name().unwrap().to_str().unwrap();
        assert!(flipped.contains("damaged") && flipped.contains(file), "{flipped}");
        assert!(cut.contains("damaged") && cut.contains(file), "{cut}");
    }
    assert_eq!(names(&StateStore::open(dir.path()).unwrap().view()).len(), 100);
}

/// What is done to both kinds of tables.
#[derive(Debug, Clone)]
enum Step {
    Put(u64, u8),
    Delete(u64, u8),
    Savepoint,
    Rollback,
    Commit,
}

fn step() -> impl Strategy<Value = Step> {
    let key = || (0..4_u64, 0..4_u8);
    prop_oneof![
        4 => key().prop_map(|(at, name)| Step::Put(at, name)),
        2 => key().prop_map(|(at, name)| Step::Delete(at, name)),
        1 => Just(Step::Savepoint),
        1 => Just(Step::Rollback),
        1 => Just(Step::Commit),
    ]
}

/// A record with a number and a text in its key.
fn record(at: u64, name: u8) -> AnswerByTime {
    AnswerByTime { at: Timestamp(at), key: ["", "a", "ab", "b"][name as usize].to_owned() }
}

fn scans() -> Vec<Scan> {
    let mut scans = Vec::new();
    for prefix in [Key::all(), key(1_u64), key(3_u64), record(1, 1).key(), key(9_u64)] {
        let scan = Scan::prefix(prefix);
        for after in
            [None, Some(record(1, 1).key()), Some(key(1_u64)), Some(key(2_u64)), Some(record(3, 3).key()), Some(Key::all())]
        {
            let scan = Scan { after, ..scan.clone() };
            scans.extend([scan.clone(), scan.backwards()]);
        }
    }
    scans
}

fn assert_same(memory: &MemoryTables, rocks: &impl ReadTables) -> Result<(), TestCaseError> {
    for scan in scans() {
        for limit in [0, 1, 3, 100] {
            let (a, b): (Vec<AnswerByTime>, Vec<AnswerByTime>) =
                (memory.scan(&scan, limit).unwrap(), rocks.scan(&scan, limit).unwrap());
            prop_assert_eq!(a, b, "{:?} {}", scan, limit);
        }
    }
    for (at, name) in (0..4).flat_map(|at| (0..4).map(move |name| (at, name))) {
        let key = record(at, name).key();
        prop_assert_eq!(memory.get::<AnswerByTime>(&key).unwrap(), rocks.get::<AnswerByTime>(&key).unwrap());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]
    #[test]
    fn rocksdb_tables_behave_as_tables_in_memory(steps in prop::collection::vec(step(), 1..40)) {
        let dir = TempDir::new().unwrap();
        let state = StateStore::open(dir.path()).unwrap();
        let db = state.current();
        let (mut tx, mut memory, mut saved) = (db.transaction(), MemoryTables::new(), Vec::new());
        for (index, step) in steps.into_iter().enumerate() {
            match step {
                Step::Put(at, name) => {
                    tx.put(&record(at, name)).unwrap();
                    memory.put(&record(at, name)).unwrap();
                }
                Step::Delete(at, name) => {
                    tx.delete::<AnswerByTime>(&record(at, name).key()).unwrap();
                    memory.delete::<AnswerByTime>(&record(at, name).key()).unwrap();
                }
                Step::Savepoint => {
                    tx.savepoint();
                    saved.push(memory.clone());
                }
                Step::Rollback => if let Some(before) = saved.pop() {
                    tx.rollback_to_savepoint().unwrap();
                    memory = before;
                },
                Step::Commit => {
                    tx.commit(&Applied { index: index as u64, ..Applied::default() }).unwrap();
                    saved.clear();
                    assert_same(&memory, &state.view())?;
                    tx = db.transaction();
                }
            }
        }
        assert_same(&memory, &tx)?;
    }
}
