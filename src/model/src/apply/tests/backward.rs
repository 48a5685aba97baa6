//! Going back in place: within the rollback's availability, one zone after the other, and with targets that do not come back.

use crate::{
    apply::{
        testing::*,
        tests::waits::{LATE, decide, set, waits},
    },
    command::*,
    fleet::observation::Progress,
    ids::{ReleaseId, RolloutId},
    pipeline_file::PipelineFile,
    rollout::{
        Gate, Purpose, RolloutState, WaitReason,
        decide::{Seen, next},
    },
    units::Millis,
};

/// Six targets of two zones that are changed in place, all on a bad release whose rollout was aborted.
fn rolling_back() -> (World, RolloutId, ReleaseId) {
    let deploy = "strategy = \"rolling\"\nspread = \"zone\"\nmax_unavailable = 3\nrollback = { max_unavailable = 2 }\n";
    let text = FILE.replace("waves = [1, \"50%\", \"100%\"]\n", deploy);
    let text = text.replace("command = [\"bin/web\"]", "command = [\"bin/web\"]\nstart = \"in-place\"");
    let file = PipelineFile::parse(&text).unwrap();
    let (mut world, _) = World::with_fleet(6, FILE);
    let good = world.deployed(1, &file);
    let bad = world.release(2, &file);
    let id = world.start(&bad, Purpose::Deploy).unwrap();
    while world.rollout(id).sets.changed.len() < 6 {
        let RolloutAction::ChangeTargets { targets, .. } = change(&world, id, 0).unwrap() else { panic!("no change") };
        world.ok(RolloutAction::ChangeTargets { rollout: id, targets: targets.clone(), unreachable: set([]) });
        targets.iter().for_each(|target| world.report(target, Some(&bad), Progress::Healthy, true));
    }
    world.ok(RolloutAction::Abort { rollout: id, why: "it burns".into() });
    (world, id, good)
}

fn change(world: &World, id: RolloutId, elapsed_secs: u64) -> Option<RolloutAction> {
    decide(world, id, &set(0..6), &set([]), elapsed_secs).action
}

fn revert(id: RolloutId, targets: impl IntoIterator<Item = u32>) -> RolloutAction {
    RolloutAction::RevertTargets { rollout: id, targets: set(targets) }
}

#[test]
fn in_place_rollback_takes_one_zone_after_the_other() {
    let (mut world, id, good) = rolling_back();
    let mut steps = Vec::new();
    while world.rollout(id).sets.reverted.len() < 6 {
        let Some(RolloutAction::RevertTargets { targets, .. }) = change(&world, id, 0) else { panic!("no step") };
        world.ok(revert(id, targets.clone()));
        let waiting = decide(&world, id, &set(0..6), &set([]), 1);
        assert!(matches!(waits(&waiting), WaitReason::Restoration { .. }), "{waiting:?}");
        targets.iter().for_each(|target| world.report(target, Some(&good), Progress::Healthy, true));
        steps.push(Vec::from_iter(targets));
    }
    assert_eq!(steps, [vec![0, 2], vec![4], vec![1, 3], vec![5]]);
    world.ok(change(&world, id, 0).unwrap());
    assert_eq!(world.rollout(id).state, RolloutState::RolledBack);
}

#[test]
fn in_place_rollback_is_refused_beyond_its_bounds() {
    let (mut world, id, _) = rolling_back();
    assert_eq!(world.refused(revert(id, [0, 2, 4])), "unavailable");
    assert_eq!(world.refused(revert(id, [0, 1])), "unavailable", "they are of two zones");
    world.ok(revert(id, [0, 2]));
    assert_eq!(world.refused(revert(id, [4])), "unavailable");
    // Repairing is free.
    let bad = world.rollout(id).release;
    world.report(1, Some(&bad), Progress::Unhealthy, false);
    world.ok(revert(id, [1]));
}

#[test]
fn in_place_rollback_gives_up_targets_only_after_the_recorded_deadline() {
    let (mut world, id, _) = rolling_back();
    world.ok(revert(id, [0, 2]));
    let Some(RolloutAction::RecordElapsed { elapsed, .. }) = change(&world, id, LATE) else { panic!("not recorded first") };
    assert_eq!(world.refused(revert(id, [4])), "unavailable");
    let stale = RolloutAction::RecordElapsed { rollout: id, wave: 0, gate: Gate::Convergence, targets: 6, elapsed };
    assert_eq!(world.refused(stale), "illegal_transition", "that was the batch before");
    world.ok(RolloutAction::RecordElapsed { rollout: id, wave: 0, gate: Gate::Convergence, targets: 8, elapsed });
    assert_eq!(change(&world, id, LATE), Some(revert(id, [4])), "the disturbed zone comes first");
    world.ok(revert(id, [4]));
    assert_eq!(world.rollout(id).sets.given_up, set([0, 2]));
    assert_eq!(world.refused(revert(id, [1])), "unavailable", "the third is on its way");
}

#[test]
fn first_deploy_in_place_stops_at_once_when_aborted() {
    let text = FILE.replace("command = [\"bin/web\"]", "command = [\"bin/web\"]\nstart = \"in-place\"");
    let (mut world, file) = World::with_fleet(4, &text.replace("[1, \"50%\", ", "["));
    let release = world.release(1, &file);
    let id = world.start(&release, Purpose::Deploy).unwrap();
    world.change_wave(id);
    world.ok(RolloutAction::Abort { rollout: id, why: "no".into() });
    let changed = world.rollout(id).sets.changed;
    assert_eq!(decide(&world, id, &set(0..4), &set([]), 0).action, Some(revert(id, changed)));
}

#[test]
fn aborted_rollback_waits_for_a_connected_target_that_its_plan_left_out() {
    let (mut world, file) = World::with_fleet(6, FILE);
    let (first, second) = (world.deployed(1, &file), world.deployed(2, &file));
    let third = world.release(3, &file);
    let forward = world.start(&third, Purpose::Deploy).unwrap();
    world.change_wave(forward);
    let canary = world.wave_targets(forward).min().unwrap();
    world.report(canary, Some(&third), Progress::Healthy, true);
    world.ok(FleetAction::Cordon { name: name(&format!("web-{canary}")), why: "disk".into() });
    let back = world.start(&first, Purpose::Rollback).unwrap();
    assert!(!world.rollout(back).plan.targets().contains(canary));
    world.ok(RolloutAction::Abort { rollout: back, why: "no".into() });
    world.ok(revert(back, [canary]));
    let step = |world: &World, elapsed| {
        let rollout = world.rollout(back);
        next(&world.tables, &rollout, &Seen::from_state(&world.tables, &rollout, elapsed).unwrap()).unwrap()
    };
    let waiting = step(&world, Millis(0));
    assert!(matches!(waits(&waiting), WaitReason::Restoration { .. }), "{waiting:?}");
    let late = step(&world, Millis::from_secs(LATE)).action;
    assert_eq!(late, Some(RolloutAction::FinishRollback { rollout: back, unreachable: set([]) }), "it is connected");
    world.report(canary, Some(&second), Progress::Healthy, true);
    world.ok(step(&world, Millis(0)).action.unwrap());
    let rollout = world.rollout(back);
    assert!(rollout.state == RolloutState::RolledBack && rollout.sets.unreachable.is_empty(), "{rollout:?}");
}
