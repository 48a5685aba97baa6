//! One server: it answers each command by itself, once, and knows everything again after a restart.

use std::collections::BTreeSet;

use futures::future::join_all;
use tempfile::TempDir;

use super::{disk::write_ahead_log, *};
use swell_model::{cluster::Cluster, event::Event, rejection::Rejection, tables::Key};
use swell_storage::log::RaftLog;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarted_server_keeps_what_it_acknowledged() {
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
async fn retry_with_the_same_key_gets_the_first_answer() {
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
async fn waiting_proposals_are_grouped_and_answered_one_by_one() {
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
    let events = node.events().range(EventSeq::default(), 1000).unwrap();
    let places: BTreeSet<_> = events.iter().map(|event| event.seq).collect();
    assert_eq!((events.len(), places.len()), (32, 32), "no two events in one place");
    node.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proposal_beyond_the_queue_is_refused_as_busy() {
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
async fn lost_state_comes_back_from_the_snapshot_behind_a_purged_log() {
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

/// The events as in the store, and the chain's head as in state.
fn events_of(node: &Node) -> (Vec<Event>, Cluster) {
    let cluster = node.view().get::<Cluster>(&Key::all()).unwrap().unwrap();
    (node.events().range(EventSeq::default(), 1000).unwrap(), cluster)
}

/// As after a power loss that took the events' tail and left state: a start writes them again, from the log or from a snapshot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_lost_with_the_power_are_written_again() {
    for (names, snapshot_every_entries) in [(3, 20_000), (50, 20)] {
        let dir = TempDir::new().unwrap();
        let options = Options { snapshot_every_entries, keep_entries: 5, ..Options::new(dir.path(), 1) };
        let node = Node::start(options.clone()).await.unwrap();
        leads(&node).await;
        for number in 0..names {
            node.propose(create(&format!("r{number}"))).await.unwrap();
        }
        if snapshot_every_entries < names {
            eventually("a purge", || node.purged().is_some()).await;
        }
        let (events, cluster) = events_of(&node);
        assert_eq!(cluster.event_head, events.last().unwrap().chain_hash());
        node.shutdown().await.unwrap();
        drop(node);
        // The events' log is cut before its last few events.
        let path = write_ahead_log(&dir.path().join("events"));
        let good = std::fs::read(&path).unwrap();
        std::fs::write(&path, &good[..good.len() - 500]).unwrap();
        let node = Node::start(options).await.unwrap();
        leads(&node).await;
        node.linearizable_view().await.unwrap();
        assert_eq!(events_of(&node), (events, cluster), "{names} names");
        node.shutdown().await.unwrap();
    }
}

/// Not a test: what one client waits for, and what the disk alone takes for that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints a measurement: cargo nextest run -p swell-raft --run-ignored only latency_of_one_client --no-capture"]
async fn latency_of_one_client() {
    const WRITES: usize = 500;
    let dir = TempDir::new().unwrap();
    let node = started(dir.path()).await;
    let mut latencies = Vec::new();
    for number in 0..WRITES {
        let begun = Instant::now();
        node.propose(create(&format!("r{number}"))).await.unwrap();
        latencies.push(begun.elapsed());
    }
    node.shutdown().await.unwrap();
    let log = RaftLog::open(&dir.path().join("alone")).unwrap();
    let mut alone = Vec::new();
    for index in 0..WRITES as u64 {
        let begun = Instant::now();
        let (done, written) = tokio::sync::oneshot::channel();
        log.append(vec![(index, vec![7; 300])], Box::new(move |result| done.send(result).unwrap())).await.unwrap();
        written.await.unwrap().unwrap();
        alone.push(begun.elapsed());
    }
    let file = std::fs::File::create(dir.path().join("preallocated")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &vec![0; 4 << 20], 0).unwrap();
    file.sync_all().unwrap();
    let mut overwritten = Vec::new();
    for index in 0..WRITES as u64 {
        let begun = Instant::now();
        std::os::unix::fs::FileExt::write_all_at(&file, &[7; 300], index * 300).unwrap();
        file.sync_data().unwrap();
        overwritten.push(begun.elapsed());
    }
    for (what, mut times) in
        [("one client", latencies), ("the log alone", alone), ("fdatasync in a preallocated file", overwritten)]
    {
        times.sort();
        println!("{what}: p50 {:?}, p90 {:?}", times[WRITES / 2], times[WRITES * 9 / 10]);
    }
}
