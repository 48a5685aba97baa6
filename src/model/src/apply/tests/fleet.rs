//! Targets that join, leave and are cordoned, also while a rollout is at work; their ports; and what they are told.

use std::collections::BTreeMap;

use roaring::RoaringBitmap;

use crate::{
    apply::testing::*,
    command::*,
    fleet::{Environment, PolicyLimits, PortLease, TargetInfo, observation::Progress},
    pipeline_file::PipelineFile,
    rollout::{Purpose, RolloutState, Verdict, assignment::desired},
    tables::{ReadTables, Scan, Tables, key},
};

fn labelled(number: u32, role: &str) -> TargetInfo {
    TargetInfo { labels: BTreeMap::from([("role".into(), role.into())]), ..info(number) }
}

/// `count` targets that belong to production by a label.
fn selected(count: u32) -> (World, PipelineFile) {
    let (mut world, file) = World::with_fleet(0, FILE);
    let mut environment: Environment = world.get(key("production"));
    environment.selector = BTreeMap::from([("role".into(), "web".into())]);
    world.tables.put(&environment).unwrap();
    for number in 0..count {
        world.ok(FleetAction::Join { info: labelled(number, "web") });
    }
    world.ok(FleetAction::Presence { server: 1, connected: (0..count).collect() });
    (world, file)
}

#[test]
fn target_that_joins_gets_the_stable_release_and_the_new_one_at_the_end() {
    let (mut world, file) = World::with_fleet(3, FILE);
    let first = world.deployed(1, &file);
    let wider = PipelineFile::parse(&FILE.replace("{ http = \"auto\" }", "{ http = \"auto\", admin = \"auto\" }")).unwrap();
    let second = world.release(2, &wider);
    let id = world.start(&second, Purpose::Deploy).unwrap();
    world.change_wave(id);
    world.ok(FleetAction::Join { info: info(3) });
    assert_eq!(world.assigned(3), Some(first));
    let stranger =
        RolloutAction::ChangeTargets { rollout: id, targets: RoaringBitmap::from_iter([3]), unreachable: RoaringBitmap::new() };
    assert_eq!(world.refused(stranger), "illegal_transition");
    for target in world.wave_targets(id) {
        world.report(target, Some(&second), Progress::Healthy, true);
    }
    world.judge(id, Verdict::Pass).unwrap();
    world.judge(id, Verdict::Pass).unwrap();
    world.complete(id);
    assert_eq!(world.assigned(3), Some(second));
    let desired = desired(&world.tables, &world.get(key(3u32)), 1).unwrap();
    let service = desired.deployments.into_values().next().unwrap().services.into_values().next().unwrap();
    assert!(service.ports.len() == 2 && service.ports.values().all(|ports| ports.len() == 2), "{:?}", service.ports);
}

#[test]
fn target_that_leaves_counts_against_no_one() {
    let (mut world, file) = selected(4);
    world.deployed(1, &file);
    let second = world.release(2, &file);
    let id = world.start(&second, Purpose::Deploy).unwrap();
    world.change_wave(id);
    let canary = world.wave_targets(id).min().unwrap();
    world.report(canary, Some(&second), Progress::Failed, false);
    world.ok(FleetAction::Join { info: labelled(canary, "none") });
    assert_eq!(world.assigned(canary), None);
    world.ok(RolloutAction::Abort { rollout: id, why: "no".into() });
    world.ok(RolloutAction::FinishRollback { rollout: id, unreachable: RoaringBitmap::new() });
    assert_eq!(world.rollout(id).state, RolloutState::RolledBack);
}

#[test]
fn cordoned_target_keeps_its_release_until_it_is_uncordoned() {
    let (mut world, file) = World::with_fleet(3, FILE);
    let first = world.deployed(1, &file);
    world.ok(FleetAction::Cordon { name: name("web-1"), why: "disk".into() });
    let (second, third) = (world.deployed(2, &file), world.deployed(3, &file));
    assert_eq!((world.assigned(0), world.assigned(1)), (Some(third.clone()), Some(first.clone())));
    assert_ne!(second, third);
    world.ok(FleetAction::Uncordon { name: name("web-1") });
    assert_eq!((world.assigned(1), world.deployment().retained.len()), (Some(third), 0));
    assert_eq!(world.refused(FleetAction::Cordon { name: name("web-9"), why: "disk".into() }), "not_found");
}

#[test]
fn target_cordoned_during_a_rollout_is_not_changed() {
    let (mut world, file) = World::with_fleet(3, FILE);
    world.deployed(1, &file);
    let second = world.release(2, &file);
    let id = world.start(&second, Purpose::Deploy).unwrap();
    let canary = world.wave_targets(id).min().unwrap();
    world.ok(FleetAction::Cordon { name: name(&format!("web-{canary}")), why: "disk".into() });
    let targets = world.wave_targets(id);
    let tell = RolloutAction::ChangeTargets { rollout: id, targets, unreachable: RoaringBitmap::new() };
    assert_eq!(world.refused(tell), "illegal_transition");
}

#[test]
fn services_lease_one_pair_each_and_a_full_range_is_refused() {
    let text = FILE.replace("[deploy", "[service.api]\ncommand = [\"bin/api\"]\nports = { http = \"auto\" }\n[deploy");
    let file = PipelineFile::parse(&text).unwrap();
    let (mut world, _) = World::with_fleet(1, FILE);
    world.deployed(1, &file);
    let leases: Vec<PortLease> = world.tables.scan(&Scan::prefix(key(0u32)), 9).unwrap();
    let pairs: Vec<_> = leases.iter().map(|lease| lease.pair).collect();
    assert_eq!(pairs, [[20_000, 20_001], [20_002, 20_003]]);
    let mut narrow = info(1);
    narrow.ports.last = narrow.ports.first + 1;
    assert_eq!(world.refused(FleetAction::Join { info: narrow.clone() }), "invalid", "it could not run what is deployed");
    narrow.ports.last = narrow.ports.first;
    assert_eq!(world.refused(FleetAction::Join { info: narrow }), "invalid");
    world.deployed(2, &file);
    assert_eq!(world.tables.scan::<PortLease>(&Scan::all(), 9).unwrap().len(), 2, "each keeps its own");
}

#[test]
fn fixed_port_within_the_range_of_a_target_is_refused() {
    let (mut world, _) = World::with_fleet(2, FILE);
    let of = |port: u32| PipelineFile::parse(&FILE.replace("\"auto\"", &port.to_string())).unwrap();
    let (within, outside) = (world.release(1, &of(20_000)), world.release(2, &of(8080)));
    let refused = world.start(&within, Purpose::Deploy).unwrap_err().to_string();
    assert!(refused.contains("20000 is of the range 20000-20099 that target web-"), "{refused}");
    world.start(&outside, Purpose::Deploy).unwrap();
}

#[test]
fn ports_that_no_release_needs_are_released() {
    let with = |ports: &str| PipelineFile::parse(&FILE.replace("{ http = \"auto\" }", ports)).unwrap();
    let (one, two) = (with("{ http = \"auto\" }"), with("{ http = \"auto\", admin = \"auto\" }"));
    let (mut world, _) = World::with_fleet(3, FILE);
    let leases = |world: &World| world.tables.scan::<PortLease>(&Scan::all(), 99).unwrap().len();
    let wide = world.deployed(1, &two);
    assert_eq!(leases(&world), 6);
    world.deployed(2, &one);
    assert_eq!(leases(&world), 6, "the former one may still be draining");
    world.deployed(3, &one);
    assert_eq!(leases(&world), 3);
    let back = world.start(&wide, Purpose::Rollback).unwrap();
    assert_eq!(leases(&world), 6, "whoever goes back gets them again");
    world.complete(back);
}

#[test]
fn target_gets_a_pipeline_from_one_environment_only() {
    let (mut world, file) = selected(2);
    let release = world.deployed(1, &file);
    let create = |name_: &str, role: &str| EnvironmentAction::Create {
        name: name(name_),
        selector: BTreeMap::from([("role".into(), role.into())]),
        policy: PolicyLimits::default(),
    };
    world.ok(create("staging", "web"));
    let start = RolloutAction::Start {
        environment: name("staging"),
        release: release.clone(),
        purpose: Purpose::Deploy,
        why: None,
        if_plan: None,
    };
    let refused = world.try_apply(start).unwrap_err();
    assert!(refused.code() == "invalid" && refused.to_string().contains("production"), "{refused}");
}

#[test]
fn join_is_bounded_and_idempotent() {
    let mut world = World::new();
    assert_eq!(world.ok(FleetAction::Join { info: info(0) }).events.len(), 1);
    assert!(world.ok(FleetAction::Join { info: info(0) }).events.is_empty());
    let bad = [
        TargetInfo { zone: String::new(), ..info(1) },
        TargetInfo { region: "x".repeat(101), ..info(1) },
        TargetInfo { labels: (0..33).map(|number| (number.to_string(), String::new())).collect(), ..info(1) },
    ];
    for info in bad {
        assert_eq!(world.refused(FleetAction::Join { info }), "invalid");
    }
}
