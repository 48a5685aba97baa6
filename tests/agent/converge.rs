//! Releases come, go, fail and come back.

use std::{fs, net::TcpListener, process::Command};

use serde_json::json;
use swell_model::{
    digest::Digest,
    fleet::observation::{InstanceState, Progress},
    rollout::assignment::DesiredService,
};

use super::support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_is_replaced_beside_without_a_gap_and_back_without_moving_a_byte() {
    if !can_run() {
        return;
    }
    let server = FakeServer::start().await;
    let mut target = Target::new(&[&server]);
    let ports = free_ports();
    let packs = [1, 2].map(|version: u64| packed(&[("bin/web", WEB), ("version", &version.to_string())]));
    packs.iter().for_each(|pack| server.keep(pack));
    let releases =
        [1, 2].map(|version| release("shop", version, &packs[version as usize - 1], &[("api", web(version, "", &ports))]));

    server.want(&target.name, &releases[..1]);
    target.start();
    let report = server.until_healthy("shop", 1).await;
    assert!(report.serving);
    assert_eq!(report.instances[0].ports.values().next(), Some(&ports[0]));
    assert_eq!(get(ports[0]).as_deref(), Some("1"));
    let link = target.data_dir.join("current/shop");
    assert_eq!(fs::read_to_string(link.join("version")).unwrap(), "1");

    // Whoever asks where the reports say to ask always gets an answer.
    let asking = server.clone();
    let stop = tokio_util::sync::CancellationToken::new();
    let stopped = stop.clone();
    let asked = tokio::task::spawn_blocking(move || {
        let mut answers = Vec::new();
        while !stopped.is_cancelled() {
            let last = asking.history("shop").pop().unwrap();
            assert!(last.serving, "{last:#?}");
            let serving = last.instances.iter().find(|instance| instance.state == InstanceState::Serving).unwrap();
            let answer = get(*serving.ports.values().next().unwrap());
            answers.push(answer.unwrap_or_else(|| panic!("no answer from {serving:?}")));
        }
        answers
    });
    server.want(&target.name, &releases[1..]);
    let report = server.until_healthy("shop", 2).await;
    assert_eq!(report.instances[0].ports.values().next(), Some(&ports[1]));
    assert_eq!(fs::read_to_string(link.join("version")).unwrap(), "2");
    let sent = server.sent_bytes();
    server.want(&target.name, &releases[..1]);
    server.until_healthy("shop", 1).await;
    stop.cancel();
    let answers = asked.await.unwrap();
    assert!(answers.iter().any(|answer| answer == "1") && answers.iter().any(|answer| answer == "2"), "{}", answers.len());
    assert_eq!(server.sent_bytes(), sent, "going back moved bytes");
    assert!(server.history("shop").iter().any(|report| report.instances.iter().any(|one| one.state == InstanceState::Draining)));

    server.want(&target.name, &[]);
    let report = server.until_progress("shop", Progress::Stopped).await;
    assert_eq!((report.release, report.serving, report.instances), (None, false, vec![]));
    assert_eq!(target.traces(), [] as [&str; 0]);
    assert!(!link.exists());
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_that_fails_leaves_the_old_one_and_its_evidence() {
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

    server.want(&target.name, &[release("shop", 2, &pack, &[("api", web(2, "crash", &ports))])]);
    let report = server.until_progress("shop", Progress::Failed).await;
    let failure = report.failure.unwrap();
    assert!(report.serving);
    assert_eq!(failure.exit.as_deref(), Some("exit 3"));
    assert!(failure.reason.contains("service api of shop@2 ended by itself"), "{failure:#?}");
    assert!(failure.output.contains("cannot find the database"), "{failure:#?}");
    // It is tried again while it is wanted, and the old one goes on.
    eventually("it is tried again", || {
        server.history("shop").iter().filter(|report| report.instances.iter().any(|one| one.release.number == 2)).count() >= 2
    })
    .await;
    assert_eq!(get(ports[0]).as_deref(), Some("1"));

    server.want(&target.name, &[release("shop", 3, &pack, &[("api", web(3, "sick", &ports))])]);
    let mut sick = web(4, "sick", &ports);
    sick.settings.health.start_timeout = swell_model::units::Millis(500);
    server.want(&target.name, &[release("shop", 4, &pack, &[("api", sick)])]);
    let report = server
        .until("shop", "failed with release 4", |report| {
            report.progress == Progress::Failed && report.release.as_ref().is_some_and(|release| release.number == 4)
        })
        .await;
    let failure = report.failure.unwrap();
    let probe = failure.probe.unwrap();
    assert!(probe.contains("answered 500") && probe.contains("the queue is stuck"), "{probe}");
    assert!(report.serving);
    assert_eq!(get(ports[0]).as_deref(), Some("1"));

    server.want(&target.name, &[release("shop", 1, &pack, &[("api", web(1, "", &ports))])]);
    server.until_healthy("shop", 1).await;
    eventually("only the old one runs", || target.running("shop").len() == 1).await;
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn much_output_of_a_failure_is_kept_beside() {
    if !can_run() {
        return;
    }
    let server = FakeServer::start().await;
    let mut target = Target::new(&[&server]);
    let script = "#!/bin/sh\ni=0; while [ $i -lt 3000 ]; do echo line $i of a long story; i=$((i+1)); done; echo $$; exit 7\n";
    let pack = packed(&[("bin/talk", script)]);
    server.keep(&pack);
    let talk = DesiredService { settings: service(json!({ "command": ["bin/talk"] })), ports: [].into() };
    server.want(&target.name, &[release("shop", 1, &pack, &[("talk", talk)])]);
    target.start();
    let report = server
        .until("shop", "failed with its output kept", |report| {
            report.failure.as_ref().is_some_and(|failure| failure.output_blob.is_some())
        })
        .await;
    let failure = report.failure.unwrap();
    assert!(failure.output.contains("line 2999 of a long story\n") && failure.output.len() <= 4096);
    let kept = server.blob(failure.output_blob.as_ref().unwrap()).unwrap();
    assert!(kept.len() <= 65_536 && kept.len() > 60_000 && kept.ends_with(failure.output.as_bytes()), "{}", kept.len());
    // It fails on and on, in ever other words; what the store was given is enough for now, and still named.
    let runs = |server: &FakeServer| {
        let failures = server.history("shop").into_iter().filter_map(|report| report.failure);
        let kept = failures.skip_while(|failure| failure.output_blob.is_none());
        kept.map(|failure| (failure.output, failure.output_blob)).collect::<std::collections::BTreeSet<_>>()
    };
    eventually("it failed four times more", || runs(&server).len() >= 5).await;
    assert!(runs(&server).iter().all(|(_, blob)| *blob == failure.output_blob));
    assert_eq!(server.blobs(), 1);
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_dies_is_started_again_also_with_no_server() {
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
    let kill = |target: &Target| {
        let (_, pid) = target.running("shop").pop_first().unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
        pid
    };
    kill(&target);
    let report = server
        .until("shop", "started again", |report| report.progress == Progress::Healthy && report.instances[0].restarts == 1)
        .await;
    assert!(report.failure.unwrap().exit.unwrap().starts_with("signal 9"));

    server.stop();
    let killed = kill(&target);
    let is_new = |target: &Target| target.running("shop").values().any(|pid| *pid != killed);
    eventually("it runs again with no server", || is_new(&target) && get(ports[0]).is_some()).await;
    // Nor does it need a server to begin with.
    target.kill();
    let killed = kill(&target);
    target.start();
    eventually("it runs again after a cold start", || {
        target.running("shop").values().any(|pid| *pid != killed) && get(ports[0]).is_some()
    })
    .await;
    let server = server.again().await;
    server.until_healthy("shop", 1).await;
    assert_eq!(server.followed().first().map(|generation| generation.index), Some(1));
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_place_stops_the_old_one_first() {
    if !can_run() {
        return;
    }
    let server = FakeServer::start().await;
    let mut target = Target::new(&[&server]);
    let port = free_port();
    let pack = packed(&[("bin/web", WEB)]);
    server.keep(&pack);
    let in_place = |version, mode| {
        let mut service = web(version, mode, &[port]);
        service.settings.start = swell_model::pipeline_file::Start::InPlace;
        release("shop", version, &pack, &[("api", service)])
    };
    server.want(&target.name, &[in_place(1, "")]);
    target.start();
    server.until_healthy("shop", 1).await;
    server.want(&target.name, &[in_place(2, "")]);
    server.until_healthy("shop", 2).await;
    assert_eq!(get(port).as_deref(), Some("2"));
    let most = server.history("shop").iter().map(|report| report.instances.len()).max();
    assert_eq!(most, Some(1), "never two at once");

    server.want(&target.name, &[in_place(3, "crash")]);
    let report = server.until_progress("shop", Progress::Failed).await;
    assert!(!report.serving);
    server
        .until("shop", "restarted while failed", |report| {
            report.progress == Progress::Failed && report.instances.iter().any(|instance| instance.restarts >= 2)
        })
        .await;
    server.want(&target.name, &[in_place(2, "")]);
    server.until_healthy("shop", 2).await;
    assert_eq!(get(port).as_deref(), Some("2"));
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_with_each_kind_of_probe_and_two_pipelines_side_by_side() {
    if !can_run() {
        return;
    }
    let server = FakeServer::start().await;
    let mut target = Target::new(&[&server]);
    let (ports, more) = (free_ports(), free_ports());
    let data = tempfile::tempdir().unwrap();
    fs::set_permissions(data.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let kept = data.path().join("kept");
    let alive = "#!/bin/sh\ntest -e \"$KEPT/up\" || { echo not yet up; exit 1; }\n";
    let work = "#!/bin/sh\nid -un > \"$KEPT/up\"; pwd >> \"$KEPT/up\"; exec sleep 1000\n";
    let pack = packed(&[("bin/web", WEB), ("bin/alive", alive), ("bin/work", work)]);
    let other = packed(&[("bin/web", WEB), ("other", "")]);
    server.keep(&pack);
    server.keep(&other);
    let mut tcp = web(1, "", &ports);
    tcp.settings.health.http = None;
    let worker = service(json!({
        "command": ["bin/work"], "health": { "command": ["bin/alive"] }, "env": { "KEPT": kept }, "data": [kept],
        "limits": { "memory": "256MiB", "cpu": 1.0, "pids": 50, "nofile": 512 },
    }));
    let worker = DesiredService { settings: worker, ports: [].into() };
    let shop = |number| release("shop", number, &pack, &[("api", tcp.clone()), ("worker", worker.clone())]);
    let blog = release("blog", 7, &other, &[("api", web(7, "", &more))]);
    server.want(&target.name, &[shop(1), blog.clone()]);
    target.start();
    let report = server.until_healthy("shop", 1).await;
    assert_eq!(report.instances.len(), 2);
    server.until_healthy("blog", 7).await;
    let up = fs::read_to_string(kept.join("up")).unwrap();
    let folder = target.data_dir.join("pipelines/shop/releases").join(pack.manifest.digest.hex());
    assert_eq!(up, format!("nobody\n{}\n", folder.display()));
    assert_eq!(get(more[0]).as_deref(), Some("7"));

    // A release of one pipeline is no matter of the other.
    let before = target.running("blog");
    server.want(&target.name, &[shop(2), blog]);
    server.until_healthy("shop", 2).await;
    assert_eq!(target.running("blog"), before);
    server.want(&target.name, &[]);
    server.until_progress("shop", Progress::Stopped).await;
    server.until_progress("blog", Progress::Stopped).await;
    assert_eq!(target.traces(), [] as [&str; 0], "processes and control groups are gone");
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_a_stranger_has_is_told_with_its_name() {
    if !can_run() {
        return;
    }
    let server = FakeServer::start().await;
    let mut target = Target::new(&[&server]);
    let port = free_port();
    let stranger = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let pack = packed(&[("bin/web", WEB)]);
    server.keep(&pack);
    server.want(&target.name, &[release("shop", 1, &pack, &[("api", web(1, "", &[port]))])]);
    target.start();
    let failure = server.until_progress("shop", Progress::Failed).await.failure.unwrap();
    assert!(failure.reason.contains(&format!("port {port} (http) of service api is in use by another program")), "{failure:#?}");
    assert!(failure.reason.contains(&format!("pid {}", std::process::id())), "{failure:#?}");
    assert!(failure.hint.contains("stop that program"));
    drop(stranger);
    server.until_healthy("shop", 1).await;
    target.stop();
}

/// A small disk of its own, unmounted at the end.
struct Mount(std::path::PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        Command::new("umount").args(["-l"]).arg(&self.0).status().ok();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_is_too_small_is_told_with_figures() {
    if !can_run() {
        return;
    }
    let server = FakeServer::start().await;
    let root = tempfile::tempdir().unwrap();
    fs::set_permissions(root.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let disk = root.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m,mode=755", "tmpfs"]).arg(&disk).status().unwrap();
    assert!(mounted.success());
    let mount = Mount(disk);
    let mut target = Target::in_folder(root, "disk", &[&server], "reserve = \"1MiB\"\ndefault_user = \"nobody\"");
    let ports = free_ports();
    let noise: String = (0..400_000_u32).map(|i| char::from(b'a' + (i.wrapping_mul(2_654_435_761) >> 27) as u8 % 26)).collect();
    let pack = packed(&[("bin/web", WEB), ("noise", &format!("{noise}{noise}{noise}"))]);
    let small = packed(&[("bin/web", WEB)]);
    server.keep(&pack);
    server.keep(&small);
    server.want(&target.name, &[release("shop", 1, &small, &[("api", web(1, "", &ports))])]);
    target.start();
    server.until_healthy("shop", 1).await;
    server.want(&target.name, &[release("shop", 2, &pack, &[("api", web(2, "", &ports))])]);
    let report = server.until_progress("shop", Progress::Failed).await;
    let failure = report.failure.unwrap();
    assert!(failure.reason.contains("the release needs 1.") && failure.reason.contains("beyond its reserve"), "{failure:#?}");
    assert!(failure.hint.contains("free some space"), "{failure:#?}");
    assert!(report.serving);
    server.want(&target.name, &[]);
    server.until_progress("shop", Progress::Stopped).await;
    target.stop();
    drop(target);
    drop(mount);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_three_releases_stay_on_the_disk() {
    if !can_run() {
        return;
    }
    let server = FakeServer::start().await;
    let mut target = Target::new(&[&server]);
    let ports = free_ports();
    let packs: Vec<Packed> = (1..=5_u64).map(|version| packed(&[("bin/web", WEB), ("version", &version.to_string())])).collect();
    packs.iter().for_each(|pack| server.keep(pack));
    target.start();
    for version in 1..=5 {
        server
            .want(&target.name, &[release("shop", version, &packs[version as usize - 1], &[("api", web(version, "", &ports))])]);
        server.until_healthy("shop", version).await;
    }
    let hex = |pack: &Packed| Digest::hex(&pack.manifest.digest);
    let expected = packs[2..].iter().map(hex).collect();
    eventually("three are left", || target.releases("shop") == expected).await;
    let archives = target.data_dir.join("pipelines/shop/fetch");
    assert_eq!(names(&archives).len(), 0, "archives are gone");
    // What is left of a release that never came goes with the next one, and with the pipeline everything goes.
    let left = archives.join(format!(".{}.tar.zst.partial", Digest::of(b"never came").hex()));
    fs::write(&left, "x").unwrap();
    server.want(&target.name, &[release("shop", 6, &packs[0], &[("api", web(6, "", &ports))])]);
    server.until_healthy("shop", 6).await;
    assert!(!left.exists());
    fs::write(&left, "x").unwrap();
    server.want(&target.name, &[]);
    server.until_progress("shop", Progress::Stopped).await;
    eventually("no release is left", || target.releases("shop").is_empty()).await;
    assert_eq!(names(&archives).len(), 0);
    target.stop();
}
