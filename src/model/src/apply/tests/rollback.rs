//! Back: failing verdicts, aborts from every state, rollbacks asked for by a person, and quarantine.

use roaring::RoaringBitmap;

use crate::{
    apply::testing::*,
    command::*,
    event::DataKey,
    fleet::{Environment, observation::Progress},
    ids::RolloutId,
    principal::Principal,
    release::{Artifact, Release, release_key},
    rollout::{EndReason, Past, PauseReason, Purpose, Quarantined, RollbackReason, RolloutState, Verdict},
    tables::{Tables, key},
    units::Timestamp,
};

fn abort(id: RolloutId) -> RolloutAction {
    RolloutAction::Abort { rollout: id, why: "it burns".into() }
}

fn reason() -> RollbackReason {
    RollbackReason::Requested { by: Principal::system("test"), text: None }
}

fn revert_all(world: &mut World, id: RolloutId) {
    let targets = world.rollout(id).touched();
    world.ok(RolloutAction::RevertTargets { rollout: id, targets });
}

fn finish(id: RolloutId, unreachable: &[u32]) -> RolloutAction {
    RolloutAction::FinishRollback { rollout: id, unreachable: unreachable.iter().copied().collect() }
}

#[test]
fn failing_verdict_reverts_targets_and_quarantines_the_release() {
    let (mut world, file) = World::with_fleet(4, FILE);
    let (good, bad) = (world.deployed(1, &file), world.release(2, &file));
    let id = world.start(&bad, Purpose::Deploy).unwrap();
    world.change_wave(id);
    let told = world.wave_targets(id).min().unwrap();
    world.report(told, Some(&bad), Progress::Failed, true);
    assert_eq!(world.rollout(id).sets.failed.len(), 1);
    world.judge(id, Verdict::Fail).unwrap();
    assert_eq!(world.rollout(id).state, RolloutState::RollingBack);
    assert_eq!(world.refused(RolloutAction::Pause { rollout: id, why: "wait".into() }), "illegal_transition");
    assert_eq!(world.refused(finish(id, &[])), "illegal_transition", "it was not reverted");
    let stranger = RoaringBitmap::from_iter([(told + 1) % 4]);
    assert_eq!(world.refused(RolloutAction::RevertTargets { rollout: id, targets: stranger }), "illegal_transition");
    assert_eq!(world.assigned(told), Some(bad.clone()));
    revert_all(&mut world, id);
    assert_eq!(world.assigned(told), Some(good.clone()));
    world.report(told, Some(&good), Progress::Healthy, true);
    world.ok(finish(id, &[]));
    assert_eq!(world.rollout(id).state, RolloutState::RolledBack);
    assert_eq!(world.start(&bad, Purpose::Deploy).unwrap_err().code(), "quarantined");
    let clear = EnvironmentAction::ClearQuarantine { name: name("production"), release: bad.clone() };
    let seen = world.get::<Environment>(key("production")).revision;
    let mut guarded = world.command(clear.clone());
    guarded.if_revision = Some(seen - 1);
    assert_eq!(world.propose(guarded.clone()).unwrap_err().code(), "changed");
    guarded.if_revision = Some(seen);
    world.propose(guarded).unwrap();
    assert!(world.get::<Environment>(key("production")).revision > seen, "whoever looked before has seen something else");
    assert_eq!(world.refused(clear), "not_found");
    world.start(&bad, Purpose::Deploy).unwrap();
}

#[test]
fn failed_first_deploy_stops_what_it_started() {
    let (mut world, file) = World::with_fleet(2, FILE);
    let release = world.release(1, &file);
    let id = world.start(&release, Purpose::Deploy).unwrap();
    world.change_wave(id);
    let told = world.wave_targets(id).min().unwrap();
    world.report(told, Some(&release), Progress::Starting, false);
    world.judge(id, Verdict::Fail).unwrap();
    revert_all(&mut world, id);
    assert_eq!(world.assigned(told), None);
    world.report(told, None, Progress::Stopped, false);
    let applied = world.ok(finish(id, &[]));
    assert_eq!(applied.events[0].data[&DataKey::Reason], "restored");
    assert_eq!(world.rollout(id).end_reason, Some(EndReason::Restored { unreachable: 0 }));
    assert_eq!(world.deployment().stable, None);
}

#[test]
fn target_that_cannot_go_back_is_unreachable_or_fails_the_rollout() {
    for (unreachable, expected) in [(vec![], RolloutState::Failed), (vec![0, 1, 2, 3], RolloutState::RolledBack)] {
        let (mut world, file) = World::with_fleet(4, FILE);
        world.deployed(1, &file);
        let bad = world.release(2, &file);
        let id = world.start(&bad, Purpose::Deploy).unwrap();
        world.change_wave(id);
        let told = world.wave_targets(id).min().unwrap();
        world.report(told, Some(&bad), Progress::Failed, false);
        world.ok(abort(id));
        revert_all(&mut world, id);
        world.ok(finish(id, &unreachable));
        let rollout = world.rollout(id);
        assert_eq!(rollout.state, expected);
        assert_eq!(rollout.sets.unreachable.contains(told), !unreachable.is_empty());
        assert_eq!(rollout.sets.unrestored.contains(told), unreachable.is_empty());
        assert_ne!(world.assigned(told), Some(bad), "whatever the end, it is assigned the stable release");
    }
}

#[test]
fn abort_wins_from_every_state_that_is_not_an_end() {
    let (mut world, file) = World::with_fleet(6, FILE);
    world.deployed(1, &file);
    for steps in 0..6 {
        let release = world.release(10 + steps, &file);
        let id = world.start(&release, Purpose::Deploy).unwrap();
        for _ in 0..steps {
            let rollout = world.rollout(id);
            if rollout.sets.changed.is_disjoint(&world.wave_targets(id)) {
                world.change_wave(id);
                for target in world.wave_targets(id) {
                    world.report(target, Some(&release), Progress::Healthy, true);
                }
            } else {
                world.judge(id, Verdict::Pass).unwrap();
            }
        }
        if steps == 3 {
            world.ok(RolloutAction::Pause { rollout: id, why: "hm".into() });
        }
        world.ok(abort(id));
        let expected = if steps == 0 { RolloutState::Canceled } else { RolloutState::RollingBack };
        assert_eq!(world.rollout(id).state, expected, "after {steps} steps");
        if steps > 0 {
            world.ok(abort(id));
            revert_all(&mut world, id);
            world.ok(finish(id, &[0, 1, 2, 3, 4, 5]));
        }
        assert_eq!(world.refused(abort(id)), "illegal_transition");
    }
    let blocks = world.release(30, &file);
    let first = world.start(&blocks, Purpose::Deploy).unwrap();
    world.change_wave(first);
    let waits = world.start(&blocks, Purpose::Deploy).unwrap();
    world.ok(abort(waits));
    assert_eq!(world.rollout(waits).state, RolloutState::Canceled);
}

#[test]
fn irreversible_release_pauses_on_a_failing_verdict() {
    let (mut world, file) = World::with_fleet(3, &format!("{FILE}irreversible = true\n"));
    let release = world.release(1, &file);
    let id = world.start(&release, Purpose::Deploy).unwrap();
    world.change_wave(id);
    world.judge(id, Verdict::Fail).unwrap();
    let rollout = world.rollout(id);
    assert!(rollout.state == RolloutState::Deploying && matches!(rollout.paused.unwrap().reason, PauseReason::Irreversible(_)));
    world.ok(abort(id));
    assert_eq!(world.rollout(id).state, RolloutState::RollingBack, "a person decides");
}

#[test]
fn rollback_preempts_a_rollout_and_keeps_what_targets_were_assigned() {
    let (mut world, file) = World::with_fleet(6, FILE);
    let (first, second) = (world.deployed(1, &file), world.deployed(2, &file));
    let third = world.release(3, &file);
    let forward = world.start(&third, Purpose::Deploy).unwrap();
    let waits = world.start(&third, Purpose::Deploy).unwrap();
    world.change_wave(forward);
    let moved = world.wave_targets(forward);
    let canary = moved.min().unwrap();
    world.report(canary, Some(&third), Progress::Healthy, true);
    world.ok(EnvironmentAction::Freeze { name: name("production"), why: "holiday".into() });
    let back = world.start(&first, Purpose::Rollback).unwrap();
    assert_eq!((world.rollout(forward).state, world.rollout(forward).preempted_by), (RolloutState::Preempted, Some(back)));
    assert_eq!(world.rollout(waits).state, RolloutState::Preempted);
    assert_eq!(world.rollout(back).before, vec![(Some(third.clone()), moved.clone())]);
    assert_eq!((world.assigned(canary), world.assigned((canary + 1) % 6)), (Some(third.clone()), Some(second.clone())));
    let quarantined: Vec<_> = world.deployment().quarantined.into_iter().map(|kept| kept.release).collect();
    assert_eq!(quarantined, [third.clone(), second.clone()]);
    // Aborting the rollback before it told anyone still takes the canary back to what is stable.
    let mut other = world.clone();
    other.ok(abort(back));
    assert_eq!((other.rollout(back).state, other.assigned(canary)), (RolloutState::RollingBack, Some(third)));
    revert_all(&mut other, back);
    assert_eq!(other.assigned(canary), Some(second.clone()));
    other.report(canary, Some(&second), Progress::Healthy, true);
    other.ok(finish(back, &[]));
    assert_eq!((other.rollout(back).state, other.deployment().stable), (RolloutState::RolledBack, Some(second)));
    assert!(!other.deployment().quarantined.iter().any(|kept| kept.release == first), "nothing is known against it");
    world.complete(back);
    assert_eq!(world.deployment().stable, Some(first));
}

#[test]
fn rollback_to_the_stable_release_undoes_a_rollout() {
    let (mut world, file) = World::with_fleet(4, FILE);
    let stable = world.deployed(1, &file);
    assert_eq!(world.start(&stable, Purpose::Rollback).unwrap_err().code(), "invalid", "it runs already");
    let next = world.release(2, &file);
    let forward = world.start(&next, Purpose::Deploy).unwrap();
    world.change_wave(forward);
    let back = world.start(&stable, Purpose::Rollback).unwrap();
    world.change_wave(back);
    let moved = world.rollout(forward).sets.changed;
    assert_eq!(world.rollout(back).sets.healthy, RoaringBitmap::from_iter(0..4) - &moved, "the others never left it");
    world.report(moved.min().unwrap(), Some(&stable), Progress::Healthy, true);
    world.judge(back, Verdict::Pass).unwrap();
    assert_eq!(world.rollout(back).state, RolloutState::Deployed);
}

#[test]
fn rollback_is_refused_to_a_newer_release_that_was_never_deployed() {
    let (mut world, file) = World::with_fleet(3, FILE);
    let (old, first) = (world.release(1, &file), world.release(2, &file));
    assert_eq!(world.start(&first, Purpose::Rollback).unwrap_err().code(), "no_former_release");
    let id = world.start(&first, Purpose::Deploy).unwrap();
    world.complete(id);
    let new = world.release(3, &file);
    assert_eq!(world.start(&new, Purpose::Rollback).unwrap_err().code(), "invalid", "that is a deploy without its gates");
    let back = world.start(&old, Purpose::Rollback).unwrap();
    assert_eq!(world.rollout(back).plan.waves.len(), 1);
}

#[test]
fn failed_rollback_stays_and_aborted_rollback_goes_back() {
    let (mut world, file) = World::with_fleet(3, FILE);
    let (first, second) = (world.deployed(1, &file), world.deployed(2, &file));
    let mut other = world.clone();
    let back = world.start(&first, Purpose::Rollback).unwrap();
    world.change_wave(back);
    world.judge(back, Verdict::Fail).unwrap();
    assert_eq!((world.rollout(back).state, world.assigned(0)), (RolloutState::Failed, Some(first.clone())));
    let back = other.start(&first, Purpose::Rollback).unwrap();
    other.change_wave(back);
    other.report(0, Some(&first), Progress::Failed, false);
    other.ok(abort(back));
    revert_all(&mut other, back);
    other.report(0, Some(&second), Progress::Failed, false);
    other.ok(finish(back, &[]));
    assert_eq!((other.rollout(back).state, other.assigned(0)), (RolloutState::Failed, Some(second)));
}

#[test]
fn history_keeps_a_good_release_whatever_failed_since() {
    let (mut world, file) = World::with_fleet(2, FILE);
    let first = world.deployed(1, &file);
    let second = world.deployed(2, &file);
    let mut deployment = world.deployment();
    for number in 0..200 {
        let release = crate::ids::ReleaseId { number: 100 + number, ..second.clone() };
        deployment.remember(Past { release, rollout: RolloutId(number), end: RolloutState::RolledBack, at: Timestamp(0) });
    }
    assert_eq!(deployment.history.len(), crate::rollout::HISTORY_MAX);
    assert_eq!(deployment.former(Some(&second)), Some(&first));
    world.tables.put(&deployment).unwrap();
    world.start(&first, Purpose::Rollback).unwrap();
}

#[test]
fn quarantine_forgets_releases_without_artifacts() {
    let (mut world, file) = World::with_fleet(2, FILE);
    world.deployed(1, &file);
    let mut deployment = world.deployment();
    for number in 2..60 {
        let release = world.release(number, &file);
        let kept: Release = world.get(release_key(&release));
        let mut artifact: Artifact = world.get(key(kept.artifact.hex().as_str()));
        artifact.deleted_at = (number < 55).then_some(Timestamp(1));
        world.tables.put(&artifact).unwrap();
        deployment.quarantined.push(Quarantined { release, rollout: RolloutId(1), reason: reason(), at: Timestamp(0) });
    }
    world.tables.put(&deployment).unwrap();
    let bad = world.release(70, &file);
    let id = world.start(&bad, Purpose::Deploy).unwrap();
    world.change_wave(id);
    world.ok(RolloutAction::Abort { rollout: id, why: "no".repeat(5000) });
    let quarantined = world.deployment().quarantined;
    assert_eq!(quarantined.len(), 6, "those that are still there, and the newest");
    let newest = quarantined.last().map(|kept| &kept.reason);
    assert!(matches!(newest, Some(RollbackReason::Aborted { text, .. }) if text.len() <= 2000), "{newest:?}");
}
