//! What an agent refuses, and what it does when it is stopped.

use std::{fs, os::unix::fs::PermissionsExt, process::Command};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use swell_model::{fleet::observation::Progress, rollout::assignment::DesiredService};
use swell_sandbox::shim::ProcessRef;

use super::support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_generation_is_refused_also_after_a_restart() {
    if !can_run() {
        return;
    }
    let server = FakeServer::start().await;
    let mut target = Target::new(&[&server]);
    let ports = free_ports();
    let pack = packed(&[("bin/web", WEB)]);
    server.keep(&pack);
    let releases = [1, 2].map(|version| release("shop", version, &pack, &[("api", web(version, "", &ports))]));
    server.want_at(&target.name, &releases[1..], 20);
    target.start();
    server.until_healthy("shop", 2).await;
    server.want_at(&target.name, &releases[..1], 19);
    target.stop();
    target.start();
    eventually("it was offered the older one again", || server.followed().len() == 2).await;
    assert!(server.followed().iter().all(|generation| generation.index == 0 || generation.index == 20));
    server.until_healthy("shop", 2).await;
    server.want_at(&target.name, &releases[..1], 21);
    server.until_healthy("shop", 1).await;
    assert!(
        server
            .history("shop")
            .iter()
            .rev()
            .skip_while(|report| report.release.as_ref().unwrap().number == 1)
            .all(|report| report.release.as_ref().unwrap().number == 2)
    );
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_outlive_the_agent_and_are_found_again() {
    if !can_run() {
        return;
    }
    let server = FakeServer::start().await;
    let mut target = Target::new(&[&server]);
    let ports = free_ports();
    let pack = packed(&[("bin/web", WEB)]);
    server.keep(&pack);
    server.want(&target.name, &[release("shop", 1, &pack, &[("api", web(1, "", &ports))])]);
    target.start();
    server.until_healthy("shop", 1).await;
    let before = target.running("shop");
    let said = target.start_second();
    assert!(said.contains("another agent works in"), "{said}");
    for stop in [Target::stop, Target::kill] {
        stop(&mut target);
        assert_eq!(target.running("shop"), before);
        let sessions = server.followed().len();
        target.start();
        eventually("a new session", || server.followed().len() > sessions).await;
        server.until_healthy("shop", 1).await;
    }
    assert_eq!(target.running("shop"), before);
    assert!(
        server.history("shop").iter().all(|report| report.progress != Progress::Unhealthy),
        "found again means no interruption"
    );
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_hangs_when_the_agent_comes_back_is_never_told_to_serve() {
    if !can_run() {
        return;
    }
    let server = FakeServer::start().await;
    let mut target = Target::new(&[&server]);
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let sick = folder.path().join("sick");
    let mut service = web(1, "", &free_ports());
    service.settings.env.insert("SICK".to_owned(), sick.to_string_lossy().into_owned());
    let pack = packed(&[("bin/web", WEB)]);
    server.keep(&pack);
    server.want(&target.name, &[release("shop", 1, &pack, &[("api", service)])]);
    target.start();
    server.until_healthy("shop", 1).await;
    target.stop();
    let told = server.history("shop").len();
    fs::write(&sick, "").unwrap();
    target.start();
    server.until_progress("shop", Progress::Unhealthy).await;
    let since: Vec<_> = server.history("shop").split_off(told);
    assert!(since.iter().all(|report| report.progress == Progress::Unhealthy && !report.serving), "{since:#?}");
    fs::remove_file(&sick).unwrap();
    server.until_healthy("shop", 1).await;
    target.stop();
}

/// A file that cannot be read as what it is, until this is dropped.
struct Broken(std::path::PathBuf, Vec<u8>);

impl Broken {
    fn of(path: std::path::PathBuf) -> Self {
        let whole = fs::read(&path).unwrap();
        fs::write(&path, "{").unwrap();
        Self(path, whole)
    }
}

impl Drop for Broken {
    fn drop(&mut self) {
        fs::write(&self.0, &self.1).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_cannot_be_cleared_away_keeps_nothing_else_waiting() {
    if !can_run() {
        return;
    }
    let server = FakeServer::start().await;
    let mut target = Target::new(&[&server]);
    let (ports, more) = (free_ports(), free_ports());
    let pack = packed(&[("bin/web", WEB)]);
    server.keep(&pack);
    let shop = |number: u64| {
        let services = [("api", web(number, "", &ports)), ("web", web(1, "", &more))];
        // The second service is in the first and the last release.
        release("shop", number, &pack, &services[..if number == 2 { 1 } else { 2 }])
    };
    server.want(&target.name, &[shop(1)]);
    target.start();
    server.until_healthy("shop", 1).await;
    // As where a process hangs in the kernel: what is left of `web` cannot be removed.
    let instances = target.data_dir.join("pipelines/shop/instances");
    let stuck = instances.join(names(&instances).into_iter().find(|name| name.starts_with("web-")).unwrap());
    let broken = Broken::of(stuck.join("spec.json"));
    server.want(&target.name, &[shop(2)]);
    server.until_healthy("shop", 2).await;
    eventually("it cannot be cleared", || target.log().contains("step failed")).await;
    // Others still die and are started again, and a release that is wanted comes.
    let (_, pid) = target.running("shop").into_iter().find(|(name, _)| name.starts_with("api-")).unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    server.until("shop", "started again", |report| report.instances.iter().any(|instance| instance.restarts == 1)).await;
    server.want(&target.name, &[shop(3)]);
    server.until_healthy("shop", 3).await;
    assert!(stuck.exists());
    drop(broken);
    eventually("it is cleared in the end", || !stuck.exists()).await;
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_server_is_found_when_one_goes() {
    if !can_run() {
        return;
    }
    let (first, second) = (FakeServer::start().await, FakeServer::start().await);
    let mut target = Target::new(&[&first, &second]);
    let ports = free_ports();
    let pack = packed(&[("bin/web", WEB)]);
    for server in [&first, &second] {
        server.keep(&pack);
        server.want(&target.name, &[release("shop", 1, &pack, &[("api", web(1, "", &ports))])]);
    }
    target.start();
    eventually("a session", || first.followed().len() + second.followed().len() > 0).await;
    let (used, other) = if first.followed().is_empty() { (second, first) } else { (first, second) };
    used.until_healthy("shop", 1).await;
    used.stop();
    other.until_healthy("shop", 1).await;
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_reboot_everything_is_started_again_with_no_server() {
    if !can_run() {
        return;
    }
    let server = FakeServer::start().await;
    let mut target = Target::new(&[&server]);
    let ports = free_ports();
    let pack = packed(&[("bin/web", WEB)]);
    server.keep(&pack);
    server.want(&target.name, &[release("shop", 1, &pack, &[("api", web(1, "", &ports))])]);
    target.start();
    server.until_healthy("shop", 1).await;
    server.stop();
    target.kill();
    // As after a power cut: no process is left, and what the shims recorded is of another boot.
    let instances = target.data_dir.join("pipelines/shop/instances");
    for name in names(&instances) {
        for file in ["shim.pid", "child.pid"] {
            let path = instances.join(&name).join(file);
            let mut process: ProcessRef = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            kill(Pid::from_raw(process.pid), Signal::SIGKILL).unwrap();
            process.boot_id = "an earlier boot".to_owned();
            fs::write(&path, serde_json::to_vec(&process).unwrap()).unwrap();
        }
    }
    eventually("the old one is gone", || get(ports[0]).is_none()).await;
    target.start();
    eventually("it answers again", || get(ports[0]).as_deref() == Some("1")).await;
    let server = server.again().await;
    let report = server.until_healthy("shop", 1).await;
    assert_eq!(report.instances[0].restarts, 1);
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_root_it_says_so_or_runs_instances_bare() {
    if !can_run() {
        return;
    }
    let server = FakeServer::start().await;
    let ports = free_ports();
    let pack = packed(&[("bin/web", WEB)]);
    server.keep(&pack);
    for more in ["", "allow_unisolated = true"] {
        let mut target = Target::of_user(65_534, &[&server], more);
        server.want(&target.name, &[release("shop", 1, &pack, &[("api", web(1, "", &ports))])]);
        target.start();
        if more.is_empty() {
            target.wait();
            assert!(target.log().contains("instances cannot be isolated here (root: running as user 65534)"), "{}", target.log());
            continue;
        }
        server.until_healthy("shop", 1).await;
        assert_eq!(get(ports[0]).as_deref(), Some("1"));
        server.want(&target.name, &[]);
        server.until_progress("shop", Progress::Stopped).await;
        assert_eq!(target.traces(), [] as [&str; 0]);
        target.stop();
    }
}

/// Removes the user that the agent made.
struct OwnUser(String);

impl Drop for OwnUser {
    fn drop(&mut self) {
        Command::new("userdel").arg(&self.0).output().ok();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_without_a_user_gets_one_of_its_own_and_its_limits_hold() {
    if !can_run() {
        return;
    }
    let server = FakeServer::start().await;
    let root = tempfile::tempdir().unwrap();
    fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut target = Target::in_folder(root, "data", &[&server], "");
    let eat = "#!/bin/sh\necho I am $(id -un); exec perl -e 'my @all; while (1) { push @all, \"x\" x 1000000 }'\n";
    let pack = packed(&[("bin/eat", eat)]);
    server.keep(&pack);
    let mut eat = service(
        serde_json::json!({ "command": ["bin/eat"], "limits": { "memory": "32MiB" }, "health": { "min_healthy": "30s" } }),
    );
    eat.user = None;
    let pipeline = format!("own{}", std::process::id());
    let eat = DesiredService { settings: eat, ports: [].into() };
    server.want(&target.name, &[release(&pipeline, 1, &pack, &[("eat", eat)])]);
    target.start();
    let failure = server.until_progress(&pipeline, Progress::Failed).await.failure.unwrap();
    let user = failure.output.trim().strip_prefix("I am ").unwrap().to_owned();
    let user = OwnUser(user);
    assert!(user.0.starts_with("swell-own"), "{}", user.0);
    assert_eq!(failure.exit.as_deref(), Some("signal 9 (out of memory)"));
    assert!(failure.reason.contains("was killed for lack of memory") && failure.hint.contains("limits.memory"), "{failure:#?}");
    server.want(&target.name, &[]);
    server.until_progress(&pipeline, Progress::Stopped).await;
    assert_eq!(target.traces(), [] as [&str; 0]);
    target.stop();
}
