//! What an agent says and obeys at the beginning of a session, and how it comes back after one.

use std::time::{Duration, Instant};

use swell_model::{
    fleet::observation::Progress,
    units::Millis,
    wire::{Refusal, ServerToAgent},
};

use super::support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agent_that_is_known_is_told_and_says_nothing_again() {
    if !can_run() {
        return;
    }
    let server = FakeServer::start().await;
    let mut target = Target::new(&[&server]);
    let pack = packed(&[("bin/web", WEB)]);
    server.keep(&pack);
    server.want(&target.name, &[release("shop", 1, &pack, &[("api", web(1, "", &free_ports()))])]);
    target.start();
    server.until_healthy("shop", 1).await;
    let (reported, desired) = (server.history("shop").len(), server.sent_desired());
    server.drop_sessions();
    eventually("the agent is back", || server.hellos().len() == 2).await;
    let hellos = server.hellos();
    assert_eq!((hellos[0].incarnation, hellos[1].incarnation), (1, 1));
    assert_eq!(hellos[0].agent, hellos[1].agent);
    assert_eq!((hellos[0].desired_hash.is_some(), hellos[1].desired_hash.is_some()), (false, true));
    // Whatever it had to say would come before this.
    server.want(&target.name, &[]);
    server.until_progress("shop", Progress::Stopped).await;
    let repeated = server.history("shop").split_off(reported).into_iter().filter(|report| report.progress == Progress::Healthy);
    assert_eq!((repeated.count(), server.sent_desired() - desired), (0, 1));
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarted_agent_is_the_same_agent_in_another_incarnation() {
    if !can_run() {
        return;
    }
    let server = FakeServer::start().await;
    let mut target = Target::new(&[&server]);
    for incarnation in 1..=3 {
        target.start();
        eventually("a session", || server.hellos().len() == incarnation).await;
        target.kill();
    }
    let hellos = server.hellos();
    assert_eq!(hellos.iter().map(|hello| hello.incarnation).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(hellos.iter().all(|hello| hello.agent == hellos[0].agent));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_agent_says_why_and_what_to_do_and_tries_again() {
    if !can_run() {
        return;
    }
    let server = FakeServer::start().await;
    let mut target = Target::new(&[&server]);
    server.answer_once(ServerToAgent::Refused(Refusal::NameInUse { by: "10.0.0.9".parse().unwrap() }));
    target.start();
    eventually("another try", || server.hellos().len() >= 2).await;
    let expected = format!(
        "refused this agent: another agent at 10.0.0.9 is the target {name}; rename the target or remove the old one with `swell fleet rm \
         {name}`",
        name = target.name
    );
    assert!(target.log().contains(&expected), "{}", target.log());
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn busy_server_is_left_alone_as_long_as_it_asks() {
    if !can_run() {
        return;
    }
    let server = FakeServer::start().await;
    let mut target = Target::new(&[&server]);
    server.answer_once(ServerToAgent::Busy { retry_after: Millis(1_500) });
    target.start();
    eventually("a first try", || server.hellos().len() == 1).await;
    let refused_at = Instant::now();
    eventually("another try", || server.hellos().len() == 2).await;
    // Far above the agent's own longest wait, 200 ms.
    assert!(refused_at.elapsed() >= Duration::from_millis(1_400), "{:?}", refused_at.elapsed());
    target.stop();
}
