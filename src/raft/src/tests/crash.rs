//! Killed at any moment, around every sync: whatever was acknowledged is there after the restart.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

use super::*;
use swell_model::{cluster::Cluster, digest::Digest, tables::Key};

const DIR: &str = "SWELL_TEST_CRASH_DIR";
const ROUND: &str = "SWELL_TEST_CRASH_ROUND";

/// Kills that come from outside, at random moments.
const KILLS: u64 = 20;

/// The child stops by itself after this, so that it is never left behind.
const CHILD_LIFE: Duration = Duration::from_secs(60);

fn options(dir: &Path) -> Options {
    Options { snapshot_every_entries: 20, keep_entries: 5, ..Options::new(dir, 1) }
}

/// Not a test: what the others start in a process of its own. Proposes, and prints what was acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "is started by the tests of kills"]
async fn child() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let round = std::env::var(ROUND).unwrap();
    let node = Node::start(options(Path::new(&dir))).await.unwrap();
    leads(&node).await;
    let work = (0..4).map(|worker| {
        let (node, round) = (node.clone(), round.clone());
        tokio::spawn(async move {
            for number in 0.. {
                let name = format!("r{round}-{worker}-{number}");
                node.propose(create_keyed(&name, &name)).await.unwrap();
                // One write call a line: a kill leaves no half of one.
                std::io::stdout().write_all(format!("\nacknowledged {name}\n").as_bytes()).unwrap();
            }
        })
    });
    let work: Vec<_> = work.collect();
    sleep(CHILD_LIFE).await;
    drop(work);
    std::process::exit(3);
}

/// Not a test either: three servers in one process, of which one is brought forward by a snapshot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "is started by the tests of kills"]
async fn child_that_is_brought_forward() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let cluster = cluster::Cluster::at(Path::new(&dir)).await;
    tokio::time::timeout(CHILD_LIFE, cluster.bring_one_forward()).await.ok();
    std::process::exit(3);
}

fn spawn(dir: &Path, round: &str, crash_at: Option<&str>) -> Child {
    spawn_as("child", dir, round, crash_at)
}

fn spawn_as(test: &str, dir: &Path, round: &str, crash_at: Option<&str>) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let test = format!("tests::crash::{test}");
    command.args(["--exact", &test, "--ignored", "--nocapture", "--test-threads=1"]);
    command.env(DIR, dir).env(ROUND, round).envs(crash_at.map(|point| ("SWELL_CRASH_AT", point)));
    command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap()
}

/// What the child acknowledged until it was killed after `kill_after` of them, or died by itself.
fn acknowledged(mut child: Child, kill_after: usize) -> Vec<String> {
    let mut names = Vec::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let Ok(line) = line else { break };
        if let Some(name) = line.strip_prefix("acknowledged ") {
            names.push(name.to_owned());
            if names.len() == kill_after {
                child.kill().unwrap();
            }
        }
    }
    let status = child.wait().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "it was killed, it did not fail: {status}");
    names
}

async fn assert_there(dir: &Path, expected: &[String]) {
    let node = Node::start(options(dir)).await.unwrap();
    leads(&node).await;
    let view = node.linearizable_view().await.unwrap();
    let there = names(&view);
    for name in expected {
        assert!(there.contains(name), "{name} was acknowledged and is lost");
    }
    assert_events_lead_to(&node, &view);
    // Asked again, it gets the first answer.
    if let Some(name) = expected.last() {
        assert!(node.propose(create_keyed(name, name)).await.unwrap().replayed);
    }
    node.shutdown().await.unwrap();
}

/// The events are one chain without holes, and its head is the one in state.
fn assert_events_lead_to(node: &Node, view: &View) {
    let cluster: Cluster = view.get(&Key::all()).unwrap().unwrap_or_default();
    let (mut cursor, mut head, mut count) = (EventSeq::default(), Digest([0; 32]), 0);
    loop {
        let events = node.events().range(cursor, 1000).unwrap();
        let Some(last) = events.last() else { break };
        cursor = last.seq;
        for event in &events {
            assert_eq!(event.previous, head, "an event is missing before {}", event.seq);
            head = event.chain_hash();
        }
        count += events.len() as u64;
    }
    assert!(cursor >= cluster.last_event && count >= cluster.event_count, "events are missing after {cursor}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_killed_at_random_moments_keeps_what_it_acknowledged() {
    let dir = TempDir::new().unwrap();
    let mut all = Vec::new();
    let mut random = u64::from(std::process::id());
    for round in 0..KILLS {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let kill_after = 1 + (random >> 33) as usize % 60;
        let child = spawn(dir.path(), &round.to_string(), None);
        all.extend(tokio::task::spawn_blocking(move || acknowledged(child, kill_after)).await.unwrap());
        if round % 5 == 4 {
            assert_there(dir.path(), &all).await;
        }
    }
    println!("{KILLS} kills, {} acknowledged commands, none lost", all.len());
    assert!(all.len() as u64 >= KILLS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_killed_around_every_sync_keeps_what_it_acknowledged() {
    let dir = TempDir::new().unwrap();
    let mut all = Vec::new();
    let points = [
        "storage::before_log_sync:7",
        "storage::after_log_sync:7",
        "raft::events_appended:7",
        "storage::before_state_commit:7",
        "storage::after_state_commit:7",
        "storage::before_state_sync",
        "storage::after_state_sync",
        "storage::before_snapshot",
        "storage::after_snapshot",
    ];
    for (round, point) in points.into_iter().enumerate() {
        let child = spawn(dir.path(), &round.to_string(), Some(point));
        let names = tokio::task::spawn_blocking(move || acknowledged(child, usize::MAX)).await.unwrap();
        println!("{point}: died after {} acknowledged commands", names.len());
        all.extend(names);
        assert_there(dir.path(), &all).await;
    }
    // A snapshot takes the place of state, and the process dies just before and just after it counts.
    for point in ["storage::before_install", "storage::after_install"] {
        std::fs::remove_dir_all(dir.path().join("state")).unwrap();
        let child = spawn(dir.path(), point.rsplit('_').next().unwrap(), Some(point));
        tokio::task::spawn_blocking(move || acknowledged(child, usize::MAX)).await.unwrap();
        assert_there(dir.path(), &all).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_killed_while_it_installs_a_snapshot_finishes_after_the_restart() {
    for point in ["raft::snapshot_adopted", "storage::before_install", "storage::after_install"] {
        let dir = TempDir::new().unwrap();
        let child = spawn_as("child_that_is_brought_forward", dir.path(), "0", Some(point));
        tokio::task::spawn_blocking(move || acknowledged(child, usize::MAX)).await.unwrap();
        let cluster = cluster::Cluster::at(dir.path()).await;
        cluster.all_have("r99").await;
        cluster.stop().await;
    }
}
