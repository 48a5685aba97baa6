//! What the leader does next, and what it says that it waits for.

use roaring::RoaringBitmap;

use crate::{
    apply::testing::*,
    command::*,
    fleet::observation::Progress,
    ids::RolloutId,
    pipeline_file::PipelineFile,
    principal::{Principal, Role},
    rollout::{
        BlockReason, Evidence, FailureCause, Gate, PauseReason, Purpose, TargetSample, Verdict, WaitReason,
        decide::{Next, Seen, next},
    },
    units::Millis,
};

pub(super) fn set(targets: impl IntoIterator<Item = u32>) -> RoaringBitmap {
    targets.into_iter().collect()
}

pub(super) fn decide(world: &World, id: RolloutId, connected: &RoaringBitmap, lost: &RoaringBitmap, elapsed_secs: u64) -> Next {
    let blocked = Some(BlockReason::Rollout(RolloutId(77)));
    let (connected, lost, elapsed) = (connected.clone(), lost.clone(), Millis::from_secs(elapsed_secs));
    next(&world.tables, &world.rollout(id), &Seen { connected, lost, elapsed, blocked }).unwrap()
}

pub(super) fn verdict(next: &Next) -> Option<(Verdict, &Evidence)> {
    match &next.action {
        Some(RolloutAction::RecordVerdict { verdict, evidence, .. }) => Some((*verdict, evidence)),
        _ => None,
    }
}

/// What the rollout waits for, where nothing is to be done.
pub(super) fn waits(next: &Next) -> &WaitReason {
    assert!(next.action.is_none(), "{next:?}");
    next.waits_for.as_ref().unwrap()
}

/// The sample of these targets.
pub(super) fn sample(targets: impl IntoIterator<Item = u32>) -> TargetSample {
    let names: Vec<_> = targets.into_iter().map(|number| name(&format!("web-{number}"))).collect();
    TargetSample { count: names.len() as u64, names }
}

pub(super) const LATE: u64 = 3600;

/// Six targets that run a release, and a rollout to the next one whose canary was told.
fn begun() -> (World, RolloutId, u32, crate::ids::ReleaseId) {
    let (mut world, file) = World::with_fleet(6, FILE);
    world.deployed(1, &file);
    let release = world.release(2, &file);
    let id = world.start(&release, Purpose::Deploy).unwrap();
    let canary = world.wave_targets(id).min().unwrap();
    (world, id, canary, release)
}

#[test]
fn wave_is_changed_then_waited_for_by_name() {
    let (mut world, id, canary, release) = begun();
    let (all, none) = (set(0..6), set([]));
    let first = decide(&world, id, &all, &none, 0);
    assert_eq!(
        first.action,
        Some(RolloutAction::ChangeTargets { rollout: id, targets: set([canary]), unreachable: none.clone() })
    );
    world.change_wave(id);
    let next = decide(&world, id, &all, &none, 1);
    assert!(matches!(waits(&next), WaitReason::Convergence { targets, .. } if *targets == sample([canary])), "{next:?}");
    let late = decide(&world, id, &all, &none, LATE);
    assert!(
        matches!(verdict(&late), Some((Verdict::Fail, Evidence::TooManyFailures { cause: Some(FailureCause::Deadline(_)), .. }))),
        "{late:?}"
    );
    world.report(canary, Some(&release), Progress::Healthy, true);
    assert!(matches!(verdict(&decide(&world, id, &all, &none, 1)), Some((Verdict::Pass, _))));
}

#[test]
fn disconnected_target_is_waited_for_until_it_is_lost() {
    let (mut world, id, canary, release) = begun();
    let (others, none) = (set(0..6) - set([canary]), set([]));
    world.change_wave(id);
    let away = decide(&world, id, &others, &none, LATE);
    assert_eq!(*waits(&away), WaitReason::Reconnection { targets: sample([canary]) });
    let lost = decide(&world, id, &others, &set([canary]), LATE);
    assert!(matches!(verdict(&lost), Some((Verdict::Fail, _))), "{lost:?}");
    world.report(canary, Some(&release), Progress::Healthy, true);
    world.judge(id, Verdict::Pass).unwrap();
    assert_eq!(world.rollout(id).gate, Gate::Bake);
    let baking = decide(&world, id, &others, &none, 3);
    assert_eq!(*waits(&baking), WaitReason::Bake { elapsed: Millis::from_secs(3), duration: Millis::from_secs(10) });
    let targets = sample([canary]);
    assert_eq!(*waits(&decide(&world, id, &others, &none, 11)), WaitReason::Reconnection { targets: targets.clone() });
    let lost = set([canary]);
    assert_eq!(*waits(&decide(&world, id, &others, &lost, 11)), WaitReason::HealthyTargetsLost { targets });
    assert!(matches!(verdict(&decide(&world, id, &set(0..6), &set([]), 11)), Some((Verdict::Pass, _))));
}

#[test]
fn bake_fails_when_a_target_becomes_unhealthy() {
    let (mut world, id, canary, release) = begun();
    world.change_wave(id);
    world.report(canary, Some(&release), Progress::Healthy, true);
    world.judge(id, Verdict::Pass).unwrap();
    world.report(canary, Some(&release), Progress::Unhealthy, false);
    assert!(matches!(verdict(&decide(&world, id, &set(0..6), &set([]), 1)), Some((Verdict::Fail, _))));
}

#[test]
fn wave_without_connected_targets_never_passes() {
    let (mut world, id, canary, _) = begun();
    let others = set(0..6) - set([canary]);
    let away = decide(&world, id, &others, &set([]), LATE);
    assert_eq!(*waits(&away), WaitReason::Connection { targets: sample([canary]) });
    let left_out = decide(&world, id, &others, &set([canary]), LATE).action.unwrap();
    assert!(
        matches!(&left_out, RolloutAction::ChangeTargets { targets, unreachable, .. } if targets.is_empty() && unreachable.contains(canary))
    );
    world.ok(left_out);
    assert_eq!(*waits(&decide(&world, id, &others, &set([canary]), LATE)), WaitReason::NoTargetsConnected { wave: 0 });
    // Once it is back it is told, and no longer left out.
    world.ok(decide(&world, id, &set(0..6), &set([]), 0).action.unwrap());
    assert!(world.rollout(id).sets.unreachable.is_empty());
}

#[test]
fn targets_that_were_down_before_neither_fail_nor_pass_a_wave() {
    let (mut world, id, canary, release) = begun();
    world.report(canary, None, Progress::Unhealthy, false);
    world.change_wave(id);
    world.report(canary, Some(&release), Progress::Failed, false);
    let next = decide(&world, id, &set(0..6), &set([]), LATE);
    assert_eq!(*waits(&next), WaitReason::NoTargetsHealthy { wave: 0, targets: sample([canary]) });
    assert!(waits(&next).needs_person());
    world.report(canary, Some(&release), Progress::Healthy, true);
    assert!(matches!(verdict(&decide(&world, id, &set(0..6), &set([]), 1)), Some((Verdict::Pass, _))), "it recovered");
}

#[test]
fn wave_fails_when_failed_targets_exhaust_the_unavailability_budget() {
    let deploy = "strategy = \"rolling\"\nmax_unavailable = 1\nmax_failures = 1\n";
    let text = format!("{}{deploy}", FILE.replace("waves = [1, \"50%\", \"100%\"]\n", ""));
    let file = PipelineFile::parse(&text).unwrap();
    let (mut world, _) = World::with_fleet(4, FILE);
    world.deployed(1, &file);
    let release = world.release(2, &file);
    let id = world.start(&release, Purpose::Deploy).unwrap();
    let (all, none) = (set(0..4), set([]));
    world.ok(decide(&world, id, &all, &none, 0).action.unwrap());
    assert_eq!(world.rollout(id).sets.changed, set([0]));
    world.report(0, Some(&release), Progress::Failed, true);
    let next = decide(&world, id, &all, &none, 1);
    assert_eq!(*waits(&next), WaitReason::Availability { targets: sample(1..4) });
    let late = decide(&world, id, &all, &none, LATE);
    let evidence = Evidence::UnavailabilityExhausted { unchanged: sample(1..4), unavailable: sample([0]) };
    assert_eq!(verdict(&late), Some((Verdict::Fail, &evidence)));
}

#[test]
fn target_that_left_the_environment_is_not_waited_for() {
    let (mut world, id, canary, _) = begun();
    world.change_wave(id);
    let mut environment: crate::fleet::Environment = world.get(crate::tables::key("production"));
    environment.members.remove(canary);
    crate::tables::Tables::put(&mut world.tables, &environment).unwrap();
    assert_eq!(*waits(&decide(&world, id, &set(0..6), &set([]), LATE)), WaitReason::NoTargetsLeft { wave: 0 });
}

#[test]
fn blocked_and_paused_rollouts_say_what_they_wait_for() {
    let (mut world, id, _, release) = begun();
    let (all, none) = (set(0..6), set([]));
    let waiting = world.start(&release, Purpose::Deploy).unwrap();
    let blocked = WaitReason::Blocked(BlockReason::Rollout(RolloutId(77)));
    assert_eq!(*waits(&decide(&world, waiting, &all, &none, 0)), blocked);
    world.ok(RolloutAction::Pause { rollout: id, why: "lunch".into() });
    let paused = decide(&world, id, &all, &none, 0);
    let reason = PauseReason::Requested("lunch".into());
    assert_eq!(*waits(&paused), WaitReason::Paused { by: Principal::new(Role::Developer, "ada"), reason });
    world.ok(RolloutAction::Abort { rollout: id, why: "no".into() });
    assert_eq!(decide(&world, id, &all, &none, 0).waits_for, None);
}

#[test]
fn in_place_rollback_is_bounded_and_gives_up_targets_after_the_deadline() {
    let text = format!("{FILE}max_unavailable = \"100%\"\nrollback = {{ max_unavailable = 1 }}\n")
        .replace("[1, \"50%\", \"100%\"]", "[4, \"100%\"]");
    let file =
        PipelineFile::parse(&text.replace("command = [\"bin/web\"]", "command = [\"bin/web\"]\nstart = \"in-place\"")).unwrap();
    let (mut world, _) = World::with_fleet(5, FILE);
    let good = world.deployed(1, &file);
    let bad = world.release(2, &file);
    let id = world.start(&bad, Purpose::Deploy).unwrap();
    world.change_wave(id);
    for target in world.wave_targets(id) {
        world.report(target, Some(&bad), Progress::Healthy, true);
    }
    let touched: Vec<u32> = world.wave_targets(id).iter().collect();
    world.report(touched[0], Some(&bad), Progress::Unhealthy, false);
    world.ok(RolloutAction::Abort { rollout: id, why: "no".into() });
    let (all, none) = (set(0..5), set([]));
    // One that serves, and the one that is broken anyway.
    world.ok(decide(&world, id, &all, &none, 0).action.unwrap());
    assert_eq!(world.rollout(id).sets.reverted, set([touched[0], touched[1]]));
    let next = decide(&world, id, &all, &none, 1);
    assert!(matches!(waits(&next), WaitReason::Restoration { .. }), "{next:?}");
    // They never come back: the others go all the same, a deadline apart.
    for _ in 0..2 {
        let (wave, gate, elapsed) = (0, Gate::Convergence, Millis::from_secs(LATE));
        let targets = world.rollout(id).targets_assigned();
        assert_eq!(
            decide(&world, id, &all, &none, LATE).action,
            Some(RolloutAction::RecordElapsed { rollout: id, wave, gate, targets, elapsed })
        );
        world.ok(RolloutAction::RecordElapsed { rollout: id, wave, gate, targets, elapsed });
        world.ok(decide(&world, id, &all, &none, LATE).action.unwrap());
    }
    world.report(touched[3], Some(&good), Progress::Healthy, true);
    let end = decide(&world, id, &all, &none, LATE).action.unwrap();
    assert!(matches!(end, RolloutAction::FinishRollback { .. }), "{end:?}");
}
