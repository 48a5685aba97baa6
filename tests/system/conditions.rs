//! Machines as they are: a disk that is full, a user who is not root. What works goes on, and what does not is told.

use crate::{
    harness::{Conditions, isolation_is_here},
    push::{HOST, cluster_under, hurry},
    traffic::{Traffic, ask},
};

#[test]
fn a_full_disk_on_one_target_turns_the_release_back_and_harms_nothing() {
    if !isolation_is_here() {
        return;
    }
    let conditions = Conditions { disks: vec![("web-2", "4m")], ..Conditions::default() };
    let (mut dev, repo) = cluster_under(3, conditions);
    hurry(&repo);
    repo.push(&dev, "hello");
    assert_eq!(dev.ended_rollout("hello", 0)["state"], "deployed");
    dev.wait_until("the gateway routes to the service", |dev| matches!(ask(dev.gateway, HOST, "/"), Ok((200, _))));
    let traffic = Traffic::start(dev.gateway, HOST, 2);

    // A release that does not fit on one of the three disks.
    let file = std::fs::read_to_string(repo.path.join("swell.toml")).unwrap();
    let larger =
        file.replace("make install prefix=$OUT", "make install prefix=$OUT && head -c 8000000 /dev/urandom > $OUT/noise");
    assert_ne!(larger, file);
    repo.write("swell.toml", &larger).commit("much larger");
    repo.push(&dev, "hello");
    let rollout = dev.ended_rollout("hello", 1);
    assert_eq!(rollout["state"], "rolled-back", "{rollout:#}");
    let why = dev.ok(&["why", rollout["id"].as_str().unwrap()]);
    assert!(why.contains("web-2") && why.contains("the release needs") && why.contains("beyond its reserve"), "{why}");
    assert!(why.contains("free some space"), "it says what to do: {why}");

    // With room, the next push goes through.
    dev.resize_disk("web-2", "64m");
    repo.write("VERSION", "with room\n").commit("again");
    repo.push(&dev, "hello");
    assert_eq!(dev.ended_rollout("hello", 2)["state"], "deployed");
    let met = traffic.stop();
    assert!(met.failures.is_empty(), "of {} requests, {} failed: {:?}", met.requests(), met.failures.len(), met.failures.first());
    dev.stop();
    assert_eq!(dev.left_behind(), Vec::<String>::new());
}

/// `nobody`, who owns nothing.
const ORDINARY: u32 = 65_534;

#[test]
fn an_ordinary_user_can_try_everything_and_is_told_loudly_what_is_missing() {
    if !isolation_is_here() {
        return;
    }
    let (mut dev, repo) = cluster_under(2, Conditions { user: Some(ORDINARY), ..Conditions::default() });
    hurry(&repo);
    repo.push(&dev, "hello");
    let rollout = dev.ended_rollout("hello", 0);
    assert_eq!(rollout["state"], "deployed", "{rollout:#}");
    let why = format!("running as user {ORDINARY}");
    let status = dev.ok(&["status", "b1"]);
    assert!(status.contains("NOT ISOLATED") && status.contains(&why), "every result says so: {status}");
    let log = dev.log();
    for loud in ["BUILDS ARE NOT ISOLATED", "INSTANCES ARE NOT ISOLATED"] {
        assert!(log.lines().any(|line| line.contains(loud) && line.contains(&why)), "{loud}: {}", dev.log_tail());
    }
    dev.stop();
    assert_eq!(dev.left_behind(), Vec::<String>::new());
}
