//! Targets that are lost, removed, or at an address that another one has: what gateways may route to.

use std::collections::BTreeMap;

use crate::{
    apply::{testing::*, tests::waits::set},
    command::*,
    fleet::{
        Environment, LostTargets, PortLease, PortRange, TargetByAddress, TargetByName, TargetInfo,
        observation::{InstanceObserved, InstanceState, Observation, Progress, Report},
    },
    ids::ReleaseId,
    rollout::plan_input::lost,
    routing::derive::route_table,
    tables::{Key, ReadTables, Scan, key},
};

/// Three targets that serve a release, each with one instance.
fn serving() -> (World, ReleaseId) {
    let (mut world, file) = World::with_fleet(3, FILE);
    let release = world.deployed(1, &file);
    for target in 0..3 {
        let instance = InstanceObserved {
            service: name("web"),
            release: release.clone(),
            ports: BTreeMap::from([(name("http"), 20_000)]),
            state: InstanceState::Serving,
            restarts: 0,
        };
        let report = Report {
            pipeline: name("shop"),
            release: Some(release.clone()),
            progress: Progress::Healthy,
            serving: true,
            instances: vec![instance],
            failure: None,
        };
        let action = world.reports(vec![(target, report)]);
        world.ok(action);
    }
    (world, release)
}

/// The targets that gateways route to.
fn routed(world: &World) -> Vec<String> {
    let table = route_table(&world.tables, 1).unwrap();
    let routes = table.services().values().flat_map(|service| service.releases.values()).flatten();
    routes.map(|instance| instance.target.to_string()).collect()
}

#[test]
fn lost_target_leaves_the_routes_until_it_connects_again() {
    let (mut world, _) = serving();
    world.ok(FleetAction::Presence { server: 1, connected: set([0, 1]) });
    assert_eq!(routed(&world), ["web-0", "web-1", "web-2"], "it may be back in a moment");
    world.ok(FleetAction::DeclareLost { targets: set([1, 2, 77]) });
    assert_eq!(lost(&world.tables).unwrap(), set([2]), "a connected one is not lost, nor is one that does not exist");
    assert_eq!(routed(&world), ["web-0", "web-1"]);
    world.ok(FleetAction::Presence { server: 2, connected: set([2]) });
    assert_eq!((lost(&world.tables).unwrap(), routed(&world).len()), (set([]), 3));
}

#[test]
fn routes_stay_when_every_target_of_a_service_is_lost() {
    let (mut world, _) = serving();
    world.ok(FleetAction::Presence { server: 1, connected: set([]) });
    world.ok(FleetAction::DeclareLost { targets: set(0..3) });
    assert_eq!(routed(&world).len(), 3, "silence of all of them says nothing about their instances");
}

#[test]
fn join_is_refused_at_an_address_whose_ports_another_target_has() {
    let (mut world, _) = serving();
    let at = |first, last| TargetInfo { address: info(2).address, ports: PortRange { first, last }, ..info(9) };
    assert_eq!(world.refused(FleetAction::Join { info: at(20_050, 20_200) }), "address_in_use");
    world.ok(FleetAction::Join { info: at(20_100, 20_200) });
    // The target itself may say something new of itself.
    world.ok(FleetAction::Join { info: TargetInfo { agent_version: "1".into(), ..info(2) } });
    assert_eq!(world.refused(FleetAction::Join { info: TargetInfo { address: info(0).address, ..info(2) } }), "address_in_use");
    world.ok(FleetAction::Presence { server: 1, connected: set([0, 1]) });
    world.ok(FleetAction::DeclareLost { targets: set([2]) });
    world.ok(FleetAction::Join { info: TargetInfo { address: info(2).address, ..info(10) } });
}

#[test]
fn removed_target_leaves_nothing_behind() {
    let (mut world, release) = serving();
    let remove = || FleetAction::Remove { name: name("web-2") };
    assert_eq!(world.refused(remove()), "needed", "it is connected");
    world.ok(FleetAction::Presence { server: 1, connected: set([0, 1]) });
    world.ok(FleetAction::DeclareLost { targets: set([2]) });
    world.ok(remove());
    assert_eq!(world.refused(remove()), "not_found");
    assert_eq!(world.get::<Environment>(key("production")).members, set([0, 1]));
    assert_eq!(world.get::<LostTargets>(Key::all()).targets, set([]));
    assert!(world.tables.scan::<PortLease>(&Scan::prefix(key(2u32)), 9).unwrap().is_empty());
    let names: Vec<TargetByName> = world.tables.scan(&Scan::all(), 9).unwrap();
    let addresses: Vec<TargetByAddress> = world.tables.scan(&Scan::all(), 9).unwrap();
    let observations: Vec<Observation> = world.tables.scan(&Scan::all(), 9).unwrap();
    assert_eq!((names.len(), addresses.len(), observations.len(), routed(&world).len()), (2, 2, 2, 2));
    // What its agent still reports is left out, and the others' reports count.
    world.report(2, Some(&release), Progress::Healthy, true);
    assert_eq!(world.tables.scan::<Observation>(&Scan::all(), 9).unwrap().len(), 2);
    // Its name and address are free, with a number of its own.
    world.ok(FleetAction::Join { info: info(2) });
    assert_eq!(world.get::<TargetByName>(key("web-2")).index, 3);
}

#[test]
fn cordoned_target_can_be_removed_although_it_is_connected() {
    let (mut world, _) = serving();
    world.ok(FleetAction::Cordon { name: name("web-1"), why: "sold".into() });
    world.ok(FleetAction::Remove { name: name("web-1") });
    assert_eq!(routed(&world), ["web-0", "web-2"]);
}
