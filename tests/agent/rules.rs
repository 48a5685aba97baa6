//! What an agent refuses, and what it does when it is stopped.

use groundswell::model::observation::Progress;

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
