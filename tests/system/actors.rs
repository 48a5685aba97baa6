//! Each kind of actor panics at each of its steps, and the work is done once all the same.

use std::collections::BTreeMap;

use crate::{
    harness::{Conditions, isolation_is_here},
    push::{cluster_under, hurry},
};

/// The kinds of actors that work on a push.
const KINDS: [&str; 7] = ["scheduler", "pipeline", "build", "rollout", "leader", "fleet", "runner"];

/// How many steps of each kind are tried.
const STEPS: u32 = 12;

/// How many clusters share the steps: each failure of an actor doubles the delay before it is started again.
const SHARES: u32 = 3;

/// Panics at the steps of one share: `first`, `first + SHARES`, and so on, for each kind.
fn share(first: u32) {
    if !isolation_is_here() {
        return;
    }
    let steps = || (first..=STEPS).step_by(SHARES as usize);
    let planted: Vec<String> = KINDS.iter().flat_map(|kind| steps().map(move |step| format!("{kind}:{step}"))).collect();
    let conditions = Conditions { env: vec![("SWELL_PANIC_AT", planted.join(","))], ..Conditions::default() };
    let (mut dev, repo) = cluster_under(3, conditions);
    hurry(&repo);
    repo.push(&dev, "hello");
    let good = dev.ended_rollout("hello", 0);
    assert_eq!(good["state"], "deployed", "{good:#}");
    repo.write("BROKEN", "").commit("a bad idea");
    repo.push(&dev, "hello");
    let bad = dev.ended_rollout("hello", 1);
    assert_eq!((&bad["state"], &bad["wave"]), (&"rolled-back".into(), &1.into()), "{bad:#}");

    // Once: a build of one attempt for each push, a release and a rollout for each build, a verdict for each gate.
    let items = |path: &str| dev.get(path)["items"].as_array().unwrap().clone();
    let builds = items("/v1/builds?pipeline=hello&limit=100");
    let attempts: Vec<usize> = builds
        .iter()
        .map(|build| dev.get(&format!("/v1/builds/{}", build["id"].as_str().unwrap()))["attempts"].as_array().unwrap().len())
        .collect();
    assert_eq!(attempts, [1, 1], "{builds:#?}");
    assert_eq!(items("/v1/rollouts?pipeline=hello&limit=100").len(), 2);
    let gates: Vec<(u64, &str)> = good["verdicts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|verdict| (verdict["wave"].as_u64().unwrap(), verdict["gate"].as_str().unwrap()))
        .collect();
    assert_eq!(gates.iter().collect::<std::collections::BTreeSet<_>>().len(), gates.len(), "no gate is judged twice: {gates:?}");

    let log = dev.log();
    let mut panicked = BTreeMap::<&str, u32>::new();
    for line in log.lines().filter_map(|line| line.split("planted panic at ").nth(1)) {
        let kind = line.split(':').next().unwrap();
        *panicked.entry(KINDS.iter().find(|known| **known == kind).unwrap()).or_default() += 1;
    }
    eprintln!("actors: panics happened {panicked:?}");
    for kind in KINDS {
        assert!(panicked.contains_key(kind), "no {kind} panicked: {panicked:?}");
    }
    dev.stop();
    assert_eq!(dev.left_behind(), Vec::<String>::new());
}

#[test]
fn a_rollout_whose_actor_keeps_failing_says_so_until_it_works_again() {
    if !isolation_is_here() {
        return;
    }
    let planted: Vec<String> = (1..=6).map(|step| format!("rollout:{step}")).collect();
    let conditions = Conditions { env: vec![("SWELL_PANIC_AT", planted.join(","))], ..Conditions::default() };
    let (mut dev, repo) = cluster_under(1, conditions);
    hurry(&repo);
    repo.push(&dev, "hello");
    dev.wait_until("the rollout says what it waits for", |dev| {
        let rollout = dev.try_get("/v1/rollouts/r1").unwrap_or_default();
        rollout["waits_for"].as_str().is_some_and(|waits| waits.contains("its actor") && waits.contains("planted panic"))
    });
    assert!(dev.ok(&["status", "r1"]).contains("its actor on the leading server"));
    assert_eq!(dev.ended_rollout("hello", 0)["state"], "deployed");
    dev.wait_until("the mark is gone", |dev| {
        dev.ok(&["--json", "events", "--subject", "rollout/r1"]).contains("actor.recovered")
    });
    dev.stop();
    assert_eq!(dev.left_behind(), Vec::<String>::new());
}

#[test]
fn a_server_whose_root_actor_fails_ends_and_is_started_again() {
    if !isolation_is_here() {
        return;
    }
    let armed = tempfile::tempdir().unwrap();
    std::fs::write(armed.path().join("node"), "").unwrap();
    let folder = armed.path().to_string_lossy().into_owned();
    let conditions = Conditions { env: vec![("SWELL_CRASH_DIR", folder)], ..Conditions::default() };
    let (mut dev, repo) = cluster_under(1, conditions);
    assert!(!armed.path().join("node").exists() && dev.log().contains("the root actor failed"), "{}", dev.log_tail());
    hurry(&repo);
    repo.push(&dev, "hello");
    assert_eq!(dev.ended_rollout("hello", 0)["state"], "deployed");
    dev.stop();
    assert_eq!(dev.left_behind(), Vec::<String>::new());
}

#[test]
fn work_is_done_once_though_actors_panic_at_every_third_step() {
    share(1);
}

#[test]
fn work_is_done_once_though_actors_panic_at_every_third_step_from_the_second() {
    share(2);
}

#[test]
fn work_is_done_once_though_actors_panic_at_every_third_step_from_the_third() {
    share(3);
}
