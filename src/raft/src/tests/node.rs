//! One server: it answers each command by itself, once, and knows everything again after a restart.

use std::collections::BTreeSet;

use futures::future::join_all;
use tempfile::TempDir;

use super::*;
use swell_model::{event::Event, rejection::Rejection};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_server_knows_what_it_acknowledged() {
    let dir = TempDir::new().unwrap();
    let node = started(dir.path()).await;
    let mut seen = node.last_event();
    let outcome = node.propose(create("one")).await.unwrap();
    assert_eq!(*seen.borrow_and_update(), outcome.last_event, "who is told of an event can read it");
    assert_eq!(names(&node.linearizable_view().await.unwrap()), ["one"]);
    assert!(matches!(node.propose(create("one")).await, Err(ProposeError::Rejected(Rejection::Exists(_)))));
    let status = node.status();
    assert_eq!((status.node_id, status.leader, &status.stopped), (1, Some(1), &None));
    assert!(status.log_bytes > 0 && status.state_bytes > 0 && status.applied.is_some(), "{status:?}");
    let second = refused(dir.path()).await.to_string();
    assert!(second.contains("another swell server uses this folder"), "{second}");
    node.shutdown().await.unwrap();
    assert!(is_stopped(&node.propose(create("late")).await));
    drop((node, seen));

    let node = started(dir.path()).await;
    assert_eq!(names(&node.view()), ["one"]);
    assert_eq!(*node.last_event().borrow(), outcome.last_event);
    node.propose(create("two")).await.unwrap();
    assert_eq!(names(&node.view()), ["one", "two"]);
    node.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_with_the_same_key_gets_the_first_answer() {
    let dir = TempDir::new().unwrap();
    let node = started(dir.path()).await;
    let first = node.propose(create_keyed("one", "k")).await.unwrap();
    assert!(!first.replayed);
    let twice = join_all([node.propose(create_keyed("one", "k")), node.propose(create_keyed("one", "k"))]).await;
    for again in twice {
        assert_eq!(again.unwrap(), Outcome { replayed: true, ..first.clone() });
    }
    node.shutdown().await.unwrap();
    drop(node);
    let node = started(dir.path()).await;
    assert_eq!(node.propose(create_keyed("one", "k")).await.unwrap(), Outcome { replayed: true, ..first });
    node.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_is_grouped_and_each_is_answered_by_itself() {
    let dir = TempDir::new().unwrap();
    let node = started(dir.path()).await;
    let before = node.status().last_log.unwrap();
    let proposals = (0..64).map(|number| node.propose(create(&format!("r{}", number / 2))));
    let answers = join_all(proposals).await;
    let created = answers.iter().filter(|answer| answer.is_ok()).count();
    let rejected = answers.iter().filter(|answer| matches!(answer, Err(ProposeError::Rejected(Rejection::Exists(_))))).count();
    assert_eq!((created, rejected), (32, 32), "of each pair one is created and the other rejected");
    let entries = node.status().last_log.unwrap() - before;
    println!("64 commands in {entries} log entries");
    assert!(entries < 32, "{entries} entries");
    let events: Vec<Event> = node.view().scan(&Scan::all(), 1000).unwrap();
    let places: BTreeSet<_> = events.iter().map(|event| event.seq).collect();
    assert_eq!((events.len(), places.len()), (32, 32), "no two events in one place");
    node.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_than_may_wait_is_refused_at_once() {
    let dir = TempDir::new().unwrap();
    let node = Node::start(Options { waiting_max: 2, group_commands_max: 1, ..Options::new(dir.path(), 1) }).await.unwrap();
    leads(&node).await;
    let names: Vec<_> = (0..64).map(|number| format!("r{number}")).collect();
    let answers = join_all(names.iter().map(|name| node.propose(create(name)))).await;
    assert!(answers.iter().any(|answer| matches!(answer, Err(ProposeError::Busy))));
    assert!(answers.iter().any(Result::is_ok));
    node.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_purged_behind_a_snapshot_and_a_lost_state_comes_back_from_it() {
    let dir = TempDir::new().unwrap();
    let options = Options { snapshot_every_entries: 20, keep_entries: 5, ..Options::new(dir.path(), 1) };
    let node = Node::start(options.clone()).await.unwrap();
    leads(&node).await;
    let mut expected = Vec::new();
    for number in 100..150 {
        expected.push(format!("r{number}"));
        node.propose(create(&format!("r{number}"))).await.unwrap();
    }
    eventually("a purge", || node.purged().is_some()).await;
    node.shutdown().await.unwrap();
    drop(node);
    std::fs::remove_dir_all(dir.path().join("state")).unwrap();
    let node = Node::start(options.clone()).await.unwrap();
    leads(&node).await;
    assert_eq!(names(&node.linearizable_view().await.unwrap()), expected);
    node.shutdown().await.unwrap();
    drop(node);

    std::fs::remove_dir_all(dir.path().join("state")).unwrap();
    std::fs::remove_dir_all(dir.path().join("snapshots")).unwrap();
    let error = Node::start(options).await.err().unwrap().to_string();
    let folder = |name| dir.path().join(name).display().to_string();
    assert!(error.contains(&folder("state")) && error.contains(&folder("raft")) && error.contains("purged"), "{error}");
}
