//! Without a server the fleet goes on; afterwards everything converges to the present, not to the past.

use std::time::Duration;

use crate::{
    harness::{Dev, isolation_is_here},
    push::{HOST, cluster, hurry},
    traffic::{Traffic, ask},
};

/// The numbers of the processes of `hello`'s instances in this cluster.
fn instances(dev: &Dev) -> Vec<i32> {
    // An instance's folder is its release's: only ours are below this cluster's data.
    let data = dev.data();
    let ours = |pid: &i32| std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(&data));
    dev.processes(&["bin/hello"]).into_iter().filter(ours).collect()
}

#[test]
fn the_fleet_serves_and_mends_itself_without_a_server() {
    if !isolation_is_here() {
        return;
    }
    let (mut dev, repo) = cluster(3);
    hurry(&repo);
    repo.push(&dev, "hello");
    assert_eq!(dev.ended_rollout("hello", 0)["state"], "deployed");
    dev.wait_until("the gateway routes", |dev| matches!(ask(dev.gateway, HOST, "/"), Ok((200, _))));

    // The server is stopped, not killed: `swell dev` would start it again, so it is held still.
    let server = dev.role("server", "").unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(server), nix::sys::signal::Signal::SIGSTOP).unwrap();
    let traffic = Traffic::start(dev.gateway, HOST, 2);
    let before = instances(&dev);
    assert_eq!(before.len(), 3, "an instance on each target: {before:?}");
    Dev::kill(before[0]);
    dev.wait_until("the killed instance is replaced with no server at all", |dev| {
        let now = instances(dev);
        now.len() == 3 && !now.contains(&before[0])
    });
    std::thread::sleep(Duration::from_secs(1));
    let met = traffic.stop();
    assert!(met.failures.is_empty(), "users noticed: {:?} of {}", met.failures.first(), met.requests());

    nix::sys::signal::kill(nix::unistd::Pid::from_raw(server), nix::sys::signal::Signal::SIGCONT).unwrap();
    repo.write("VERSION", "2\n").commit("after the outage");
    repo.push(&dev, "hello");
    assert_eq!(dev.ended_rollout("hello", 1)["state"], "deployed");
    dev.stop();
    assert_eq!(dev.left_behind(), Vec::<String>::new());
}

#[test]
fn an_agent_that_was_away_converges_to_the_present() {
    if !isolation_is_here() {
        return;
    }
    let (dev, repo) = cluster(3);
    hurry(&repo);
    repo.push(&dev, "hello");
    assert_eq!(dev.ended_rollout("hello", 0)["state"], "deployed");

    // One agent is held still through two rollouts. Its instance goes on.
    let agent = dev.role("agent", "web-3").unwrap();
    let hold = |signal| nix::sys::signal::kill(nix::unistd::Pid::from_raw(agent), signal).unwrap();
    hold(nix::sys::signal::Signal::SIGSTOP);
    dev.wait_until("the agent counts as gone", |dev| dev.get("/v1/targets/web-3")["connected"] == false);
    for (version, before) in [("2\n", 1), ("3\n", 2)] {
        repo.write("VERSION", version).commit("another version");
        repo.push(&dev, "hello");
        let rollout = dev.ended_rollout("hello", before);
        assert_eq!(rollout["state"], "deployed", "the others are changed without it: {rollout:#}");
        assert_eq!(rollout["counts"]["unreachable"], 1, "{rollout:#}");
    }
    hold(nix::sys::signal::Signal::SIGCONT);
    dev.wait_until("it runs the newest release, and never ran the one between", |dev| {
        let target = dev.get("/v1/targets/web-3");
        let text = target.to_string();
        text.contains("hello@3") && !text.contains("hello@2") && text.contains("healthy")
    });
}
