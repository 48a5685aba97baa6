//! The adopted time: what a wall clock that is wrong by a year may and may not do.

use crate::{
    apply::testing::*,
    cluster::Cluster,
    command::*,
    principal::{Principal, Role},
    release::retention::expired_artifacts,
    tables::Key,
};

const YEAR: i64 = 365 * 86_400_000;

fn now(world: &World) -> u64 {
    world.get::<Cluster>(Key::all()).clock.now.0
}

#[test]
fn clock_ahead_by_a_year_expires_no_artifact_and_forgets_no_answer() {
    let (mut world, file) = World::with_fleet(1, FILE);
    (1..=9).for_each(|number| drop(world.deployed(number, &file)));
    let mut first = world.command(request(100));
    first.idempotency_key = Some("k".into());
    world.propose(first.clone()).unwrap();
    let before = now(&world);
    world.wall_offset = YEAR;
    for number in 0..20 {
        let mut command = world.command(request(number + 101));
        command.idempotency_key = Some(format!("k{number}"));
        world.propose(command).unwrap();
    }
    assert!(now(&world) <= before + 20 * 6000, "it advanced by {} ms", now(&world) - before);
    assert!(world.propose(first).unwrap().outcome.replayed, "the answer is remembered");
    let clock = world.get::<Cluster>(Key::all()).clock.now;
    assert!(expired_artifacts(&world.tables, clock, 9).unwrap().is_empty());
    // Set right again, time goes on.
    world.wall_offset = 0;
    let ahead = now(&world);
    world.ok(request(90));
    assert!(now(&world) > ahead);
}

#[test]
fn clock_behind_by_a_year_does_not_stop_time() {
    let (mut world, _) = World::with_fleet(1, FILE);
    world.wall_offset = -YEAR;
    let before = now(&world);
    world.now.0 += 60_000;
    world.ok(request(1));
    assert!(now(&world) >= before + 30_000);
}

#[test]
fn time_is_confirmed_after_a_steady_disagreement_or_by_an_admin() {
    let (mut world, _) = World::with_fleet(1, FILE);
    world.wall_offset = YEAR;
    world.ok(request(1));
    assert_eq!(world.refused(ClusterAction::ConfirmTime), "unavailable");
    let mut other = world.clone();
    let mut by_admin = other.command(ClusterAction::ConfirmTime);
    by_admin.principal = Principal::new(Role::Admin, "root");
    let wall = by_admin.at;
    other.propose(by_admin).unwrap();
    assert_eq!(now(&other), wall.0);
    world.now.0 += 601_000;
    let confirm = world.command(ClusterAction::ConfirmTime);
    let wall = confirm.at;
    world.propose(confirm).unwrap();
    assert_eq!(now(&world), wall.0);
}
