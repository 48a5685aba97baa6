//! The agent dies at each of its crash points, as in a power cut, and the next one goes on to the same end.

use swell_model::fleet::observation::Progress;

use super::support::*;

/// Each point, and how often it is passed before the crash.
async fn dies_at(point: &str) {
    let server = FakeServer::start().await;
    let mut target = Target::new(&[&server]);
    let ports = free_ports();
    let packs = [1, 2].map(|version: u64| packed(&[("bin/web", WEB), ("version", &version.to_string())]));
    packs.iter().for_each(|pack| server.keep(pack));
    let release =
        |version: u64, mode: &str| release("shop", version, &packs[version as usize - 1], &[("api", web(version, mode, &ports))]);
    server.want(&target.name, &[release(1, "")]);
    target.start();
    server.until_healthy("shop", 1).await;
    target.stop();

    // From release 1 to 2 every point of the way is passed; a failure only where the release fails.
    let mode = if point == "agent::failure_recorded" { "crash" } else { "" };
    server.want(&target.name, &[release(2, mode)]);
    let armed = tempfile::tempdir().unwrap();
    let point_file = armed.path().join(point);
    std::fs::write(&point_file, "").unwrap();
    let wanted = if point == "agent::removed" { vec![] } else { vec![release(2, mode)] };
    if point == "agent::removed" {
        // A release that never became active is not kept.
        server.want(&target.name, &[release(2, "deaf")]);
        target.start_with(&[("SWELL_CRASH_DIR", armed.path().to_str().unwrap())]);
        server.until("shop", "starting", |report| report.instances.len() == 2).await;
        server.want(&target.name, &wanted);
    } else {
        target.start_with(&[("SWELL_CRASH_DIR", armed.path().to_str().unwrap())]);
    }
    target.wait();
    assert!(!point_file.exists(), "{point} was not passed");
    target.start();
    match (point, mode) {
        (_, "crash") => {
            let report = server.until_progress("shop", Progress::Failed).await;
            assert!(report.serving && report.failure.is_some());
            server.want(&target.name, &[release(1, "")]);
            server.until_healthy("shop", 1).await;
            assert_eq!(get(ports[0]).as_deref(), Some("1"));
        }
        ("agent::removed", _) => {}
        _ => {
            let report = server.until_healthy("shop", 2).await;
            assert_eq!(report.instances.len(), 1, "{point}");
            let port = *report.instances[0].ports.values().next().unwrap();
            assert_eq!(get(port).as_deref(), Some("2"), "{point}");
        }
    }
    if point != "agent::removed" {
        eventually("one instance is left", || target.running("shop").len() == 1).await;
        let shims = || names(&target.data_dir.join("pipelines/shop/instances"));
        eventually("one shim is left", || shims().len() == 1).await;
    }
    server.want(&target.name, &[]);
    server.until_progress("shop", Progress::Stopped).await;
    assert_eq!(target.traces(), [] as [&str; 0], "{point}");
    assert_eq!(names(&target.data_dir.join("pipelines/shop/instances")).len(), 0, "{point}");
    assert_eq!(names(&target.data_dir.join("current")).len(), 0, "{point}");
    target.stop();
}

macro_rules! points {
    ($($name:ident $point:literal;)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            if can_run() {
                dies_at($point).await;
            }
        }
    )*};
}

points! {
    after_the_desired_state_was_saved "agent::desired_saved";
    after_the_archive_came "agent::fetched";
    after_the_archive_was_unpacked "agent::unpacked";
    after_the_start_was_recorded "agent::start_recorded";
    before_the_shim "runtime::before_shim";
    after_the_shim "runtime::after_shim";
    after_the_start "agent::started";
    after_the_failure_was_recorded "agent::failure_recorded";
    after_the_switch_was_recorded "agent::switch_recorded";
    after_the_link "agent::linked";
    after_the_drain_was_recorded "agent::drain_recorded";
    after_the_stop_was_asked_for "agent::stop_asked";
    after_the_shim_was_cleared "agent::cleared";
    after_the_instance_was_forgotten "agent::forgotten";
    after_the_release_was_removed "agent::removed";
}

/// The one point that is passed only when nothing is wanted any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_leaving_was_recorded() {
    if !can_run() {
        return;
    }
    let server = FakeServer::start().await;
    let mut target = Target::new(&[&server]);
    let pack = packed(&[("bin/web", WEB)]);
    server.keep(&pack);
    server.want(&target.name, &[release("shop", 1, &pack, &[("api", web(1, "", &free_ports()))])]);
    target.start_with(&[("SWELL_CRASH_AT", "agent::leave_recorded")]);
    server.until_healthy("shop", 1).await;
    server.want(&target.name, &[]);
    target.wait();
    target.start();
    server.until_progress("shop", Progress::Stopped).await;
    assert_eq!(target.traces(), [] as [&str; 0]);
    target.stop();
}
