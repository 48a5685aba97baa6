//! An instance that was replaced keeps running until servers and gateways know that it was.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use serde_json::json;
use swell_model::{
    fleet::observation::{InstanceState, Report},
    rollout::assignment::{DesiredRelease, DesiredService},
};

use super::support::*;

/// Where web servers note that they were asked to end.
struct Ends(tempfile::TempDir);

impl Ends {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        Self(folder)
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("ended")
    }

    /// The versions of those that were asked to end, in order.
    fn versions(&self) -> Vec<String> {
        fs::read_to_string(self.file()).unwrap_or_default().lines().map(str::to_owned).collect()
    }
}

fn shop(version: u64, pack: &Packed, ports: &[u16], ends: &Path) -> DesiredRelease {
    let mut service = web(version, "", ports);
    service.settings.env.insert("ENDED".to_owned(), ends.to_string_lossy().into_owned());
    release("shop", version, pack, &[("api", service)])
}

fn states(report: &Report) -> Vec<(u64, InstanceState)> {
    let mut states: Vec<_> = report.instances.iter().map(|one| (one.release.number, one.state)).collect();
    states.sort_by_key(|(number, _)| *number);
    states
}

async fn until_states(server: &FakeServer, expected: &[(u64, InstanceState)]) {
    server.until("shop", &format!("{expected:?}"), |report| states(report) == expected).await;
}

fn tries(target: &Target) -> usize {
    target.log().matches("session lost").count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_instances_answer_while_all_servers_are_gone_after_the_switch() {
    if !can_run() {
        return;
    }
    let (first, second) = (FakeServer::start().await, FakeServer::start().await);
    let mut target = Target::new(&[&first, &second]);
    let (ports, ends) = (free_ports(), Ends::new());
    let pack = packed(&[("bin/web", WEB)]);
    let releases = [1, 2].map(|version| shop(version, &pack, &ports, &ends.file()));
    for server in [&first, &second] {
        server.keep(&pack);
        server.want(&target.name, &releases[..1]);
    }
    target.start();
    eventually("a session", || first.hellos().len() + second.hellos().len() > 0).await;
    let (used, other) = if first.hellos().is_empty() { (second, first) } else { (first, second) };
    used.until_healthy("shop", 1).await;
    other.stop();
    used.route(false);
    used.want(&target.name, &releases[1..]);
    until_states(&used, &[(1, InstanceState::Draining), (2, InstanceState::Serving)]).await;
    // No gateway heard of it, and now there is no server.
    used.stop();
    let before = target.running("shop");
    assert_eq!(before.len(), 2);
    for restarts in [false, true] {
        if restarts {
            target.kill();
            target.start();
        }
        // Ten tries take far longer than the drain of 100 ms.
        let tried = tries(&target);
        eventually("it looks for servers for a while", || tries(&target) >= tried + 10).await;
        assert_eq!([get(ports[0]).as_deref(), get(ports[1]).as_deref()], [Some("1"), Some("2")]);
        assert_eq!(target.running("shop"), before);
    }
    let server = used.again().await;
    until_states(&server, &[(1, InstanceState::Draining), (2, InstanceState::Serving)]).await;
    assert_eq!(target.running("shop"), before, "acknowledged is not yet routed");
    server.route(true);
    server.until_healthy("shop", 2).await;
    assert_eq!((get(ports[0]), get(ports[1]).as_deref()), (None, Some("2")));
    assert_eq!(ends.versions(), ["1"], "drains once");
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replaced_instance_that_dies_while_gateways_may_use_it_is_restarted() {
    if !can_run() {
        return;
    }
    let server = FakeServer::start().await;
    let mut target = Target::new(&[&server]);
    let (ports, ends) = (free_ports(), Ends::new());
    let pack = packed(&[("bin/web", WEB)]);
    server.keep(&pack);
    server.want(&target.name, &[shop(1, &pack, &ports, &ends.file())]);
    target.start();
    server.until_healthy("shop", 1).await;
    let (_, pid) = target.running("shop").pop_first().unwrap();
    server.route(false);
    server.want(&target.name, &[shop(2, &pack, &ports, &ends.file())]);
    until_states(&server, &[(1, InstanceState::Draining), (2, InstanceState::Serving)]).await;
    server.stop();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    eventually("it answers again", || get(ports[0]).as_deref() == Some("1")).await;
    let server = server.again().await;
    server.route(true);
    server.until_healthy("shop", 2).await;
    assert_eq!(ends.versions(), ["1"]);
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rollback_reuses_instance_whose_departure_is_not_routed() {
    if !can_run() {
        return;
    }
    let server = FakeServer::start().await;
    let mut target = Target::new(&[&server]);
    let (ports, ends) = (free_ports(), Ends::new());
    let pack = packed(&[("bin/web", WEB)]);
    server.keep(&pack);
    let releases = [1, 2].map(|version| shop(version, &pack, &ports, &ends.file()));
    server.want(&target.name, &releases[..1]);
    target.start();
    server.until_healthy("shop", 1).await;
    server.route(false);
    server.want(&target.name, &releases[1..]);
    until_states(&server, &[(1, InstanceState::Draining), (2, InstanceState::Serving)]).await;
    let before = target.running("shop");
    server.want(&target.name, &releases[..1]);
    until_states(&server, &[(1, InstanceState::Serving), (2, InstanceState::Draining)]).await;
    assert_eq!(target.running("shop"), before);
    server.route(true);
    server.until_healthy("shop", 1).await;
    assert_eq!((get(ports[0]).as_deref(), get(ports[1])), (Some("1"), None));
    assert_eq!(ends.versions(), ["2"]);
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worker_without_ports_leaves_once_its_departure_is_acknowledged() {
    if !can_run() {
        return;
    }
    let server = FakeServer::start().await;
    let mut target = Target::new(&[&server]);
    let pack = packed(&[("bin/work", "#!/bin/sh\nexec sleep 1000\n")]);
    server.keep(&pack);
    let work = DesiredService { settings: service(json!({ "command": ["bin/work"] })), ports: [].into() };
    let worker = |number| release("shop", number, &pack, &[("worker", work.clone())]);
    server.route(false);
    server.want(&target.name, &[worker(1)]);
    target.start();
    server.until_healthy("shop", 1).await;
    server.want(&target.name, &[worker(2)]);
    server.until_healthy("shop", 2).await;
    eventually("one instance is left", || target.running("shop").len() == 1).await;
    target.stop();
}
