//! A simulated target answers desired states as an agent does.

use std::collections::BTreeMap;

use swell_model::{
    digest::Digest,
    fleet::{
        PortRange, TargetInfo,
        observation::{InstanceState, Progress},
    },
    pipeline_file::Service,
    rollout::assignment::{DesiredRelease, DesiredService, DesiredTarget, Generation},
    units::ByteSize,
    wire::AgentId,
};

use super::{FAIL_PERCENT, START_MS, SimulatedTarget};
use crate::counters::Notice;

fn target(seed: u64) -> SimulatedTarget {
    let info = TargetInfo {
        name: "t1".parse().unwrap(),
        region: "r".into(),
        zone: "z".into(),
        labels: BTreeMap::new(),
        address: "10.0.0.1".parse().unwrap(),
        ports: PortRange::default(),
        agent_version: "0".into(),
    };
    SimulatedTarget::new(info, AgentId("a".into()), seed)
}

fn desired(index: u64, release: &str, fail_percent: u64) -> DesiredTarget {
    let env = [(START_MS, 100), (FAIL_PERCENT, fail_percent)].map(|(name, value)| (name.to_owned(), value.to_string()));
    let settings = Service { env: env.into(), ..Service::default() };
    let ports = [("http".parse().unwrap(), vec![20_000, 20_001])].into();
    let release = DesiredRelease {
        release: release.parse().unwrap(),
        environment: "production".parse().unwrap(),
        artifact: Digest::of(b"a"),
        artifact_size: ByteSize(1),
        unpacked_size: ByteSize(1),
        manifest: Digest::of(b"m"),
        services: [("web".parse().unwrap(), DesiredService { settings, ports })].into(),
    };
    DesiredTarget {
        generation: Generation { cluster: 1, index },
        target: "t1".parse().unwrap(),
        deployments: [(release.release.pipeline.clone(), release)].into(),
    }
}

fn said(target: &mut SimulatedTarget) -> (u64, Progress, Vec<(String, InstanceState)>) {
    let message = target.take_message().expect("something is reported");
    let [report] = message.reports.as_slice() else { panic!("one report: {:?}", message.reports) };
    let instances = report.instances.iter().map(|instance| (instance.release.to_string(), instance.state)).collect();
    (message.sequence, report.progress, instances)
}

fn shop(number: u64, state: InstanceState) -> (String, InstanceState) {
    (format!("shop@{number}"), state)
}

#[test]
fn new_release_starts_beside_the_old_one_which_drains_until_it_is_routed() {
    use InstanceState::{Draining, Serving, Starting};
    let mut target = target(1);
    target.follow(&desired(1, "shop@1", 0), 0);
    assert_eq!(said(&mut target), (1, Progress::Starting, vec![shop(1, Starting)]));
    target.advance(99);
    assert_eq!((target.take_message(), target.due()), (None, Some(100)));
    target.advance(100);
    assert_eq!(said(&mut target), (2, Progress::Healthy, vec![shop(1, Serving)]));

    target.follow(&desired(2, "shop@2", 0), 1000);
    assert_eq!(said(&mut target), (3, Progress::Starting, vec![shop(1, Serving), shop(2, Starting)]));
    target.advance(1100);
    assert_eq!(said(&mut target), (4, Progress::Healthy, vec![shop(2, Serving), shop(1, Draining)]));
    target.routed(3);
    assert_eq!(target.take_message(), None, "those routes still show the old instance as serving");
    target.routed(4);
    assert_eq!(said(&mut target), (5, Progress::Healthy, vec![shop(2, Serving)]));
    let [one, two] = ["shop@1", "shop@2"].map(|release| release.parse().unwrap());
    let expected = [
        Notice::Assigned(one),
        Notice::Healthy("shop@1".parse().unwrap()),
        Notice::Assigned(two),
        Notice::Healthy("shop@2".parse().unwrap()),
    ];
    assert_eq!(target.take_notices(), expected);
}

#[test]
fn failed_release_leaves_the_old_one_serving_and_going_back_takes_no_time() {
    let mut target = target(1);
    target.follow(&desired(1, "shop@1", 0), 0);
    target.advance(100);
    target.follow(&desired(2, "shop@2", 100), 200);
    target.advance(600);
    let (_, progress, instances) = said(&mut target);
    assert_eq!((progress, instances), (Progress::Failed, vec![shop(1, InstanceState::Serving)]));
    target.follow(&desired(3, "shop@1", 0), 700);
    let (_, progress, instances) = said(&mut target);
    assert_eq!((progress, instances), (Progress::Healthy, vec![shop(1, InstanceState::Serving)]));
    assert_eq!(target.due(), None);
}

#[test]
fn unacknowledged_messages_are_sent_again_with_their_numbers() {
    let mut target = target(1);
    target.follow(&desired(1, "shop@1", 0), 0);
    let first = target.take_message().unwrap();
    target.advance(100);
    let second = target.take_message().unwrap();
    assert_eq!((first.sequence, second.sequence), (1, 2));
    target.acknowledged(1);
    assert_eq!(target.welcomed(true), std::slice::from_ref(&second));
    target.acknowledged(2);
    assert_eq!(target.welcomed(true), []);
    assert_eq!(target.take_message(), None, "a server that knows the reports gets none");
    assert_eq!(target.welcomed(false), []);
    let again = target.take_message().unwrap();
    assert_eq!((again.sequence, again.reports), (3, second.reports), "else all of them are new");
}

#[test]
fn hello_tells_what_is_followed_and_reported() {
    let mut target = target(1);
    let before = target.hello();
    assert_eq!((before.desired_hash, before.reports_hash), (None, Default::default()));
    let wanted = desired(7, "shop@1", 0);
    target.follow(&wanted, 0);
    let hello = target.hello();
    assert_eq!((hello.following, hello.desired_hash), (wanted.generation, Some(wanted.hash())));
    let mut expected = swell_model::fleet::observation::ReportsHash::default();
    target.take_message().unwrap().reports.iter().for_each(|report| expected.add(report));
    assert_eq!(hello.reports_hash, expected);
}

#[test]
fn removed_pipeline_stops_and_older_states_are_refused() {
    let mut target = target(1);
    target.follow(&desired(5, "shop@1", 0), 0);
    target.take_message().unwrap();
    target.follow(&desired(4, "shop@2", 0), 1);
    assert_eq!(target.take_message(), None);
    let nothing = DesiredTarget { deployments: BTreeMap::new(), ..desired(6, "shop@1", 0) };
    target.follow(&nothing, 2);
    assert_eq!(said(&mut target), (2, Progress::Stopped, vec![]));
}

#[test]
fn share_of_failing_targets_is_what_was_asked_for() {
    let release = "shop@3".parse().unwrap();
    let failing = (0..10_000).filter(|seed| super::is_chosen(*seed, &release, 20)).count();
    assert!((1_900..2_100).contains(&failing), "{failing}");
    assert!((0..10_000).all(|seed| !super::is_chosen(seed, &release, 0) && super::is_chosen(seed, &release, 100)));
}
