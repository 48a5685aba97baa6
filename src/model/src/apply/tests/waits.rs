//! What the leader does next, and what it says that it waits for.

use roaring::RoaringBitmap;

use crate::{
    apply::testing::*,
    command::*,
    fleet::observation::Progress,
    ids::RolloutId,
    pipeline_file::PipelineFile,
    rollout::{
        Blocked, Gate, Purpose, Verdict,
        decide::{Next, Seen, next},
    },
    units::Millis,
};

pub(super) fn set(targets: impl IntoIterator<Item = u32>) -> RoaringBitmap {
    targets.into_iter().collect()
}

pub(super) fn decide(world: &World, id: RolloutId, connected: &RoaringBitmap, lost: &RoaringBitmap, elapsed_secs: u64) -> Next {
    let blocked = Blocked::Rollout(RolloutId(77));
    let elapsed = Millis::from_secs(elapsed_secs);
    let seen = Seen { connected, lost, elapsed, blocked: Some(&blocked) };
    next(&world.tables, &world.rollout(id), seen).unwrap()
}

pub(super) fn verdict(next: &Next) -> Option<(Verdict, &str)> {
    match &next.action {
        Some(RolloutAction::RecordVerdict { verdict, evidence, .. }) => Some((*verdict, evidence)),
        _ => None,
    }
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
fn it_tells_the_wave_then_waits_for_it_by_name() {
    let (mut world, id, canary, release) = begun();
    let (all, none) = (set(0..6), set([]));
    let first = decide(&world, id, &all, &none, 0);
    assert_eq!(
        first.action,
        Some(RolloutAction::ChangeTargets { rollout: id, targets: set([canary]), unreachable: none.clone() })
    );
    world.tell_wave(id);
    let waits = decide(&world, id, &all, &none, 1);
    assert!(waits.action.is_none() && waits.waits_for.starts_with(&format!("web-{canary} to become healthy")), "{waits:?}");
    let late = decide(&world, id, &all, &none, LATE);
    assert!(matches!(verdict(&late), Some((Verdict::Fail, why)) if why.contains("not healthy within")), "{late:?}");
    world.report(canary, Some(&release), Progress::Healthy, true);
    assert!(matches!(verdict(&decide(&world, id, &all, &none, 1)), Some((Verdict::Pass, _))));
}

#[test]
fn a_target_that_went_away_is_waited_for_until_it_is_lost() {
    let (mut world, id, canary, release) = begun();
    let (others, none) = (set(0..6) - set([canary]), set([]));
    world.tell_wave(id);
    let away = decide(&world, id, &others, &none, LATE);
    assert!(away.action.is_none() && away.waits_for.contains("to connect again"), "{away:?}");
    let lost = decide(&world, id, &others, &set([canary]), LATE);
    assert!(matches!(verdict(&lost), Some((Verdict::Fail, _))), "{lost:?}");
    world.report(canary, Some(&release), Progress::Healthy, true);
    world.judge(id, Verdict::Pass).unwrap();
    assert_eq!(world.rollout(id).gate, Gate::Bake);
    let baking = decide(&world, id, &others, &none, 3);
    assert_eq!(baking.waits_for, "the bake: 3s of 10s");
    for lost in [none, set([canary])] {
        let baked = decide(&world, id, &others, &lost, 11);
        assert!(baked.action.is_none() && baked.waits_for.contains("connect"), "no data is not good news: {baked:?}");
    }
    assert!(matches!(verdict(&decide(&world, id, &set(0..6), &set([]), 11)), Some((Verdict::Pass, _))));
}

#[test]
fn flapping_during_the_bake_fails_it() {
    let (mut world, id, canary, release) = begun();
    world.tell_wave(id);
    world.report(canary, Some(&release), Progress::Healthy, true);
    world.judge(id, Verdict::Pass).unwrap();
    world.report(canary, Some(&release), Progress::Unhealthy, false);
    assert!(matches!(verdict(&decide(&world, id, &set(0..6), &set([]), 1)), Some((Verdict::Fail, _))));
}

#[test]
fn a_wave_that_nobody_can_hear_never_passes_and_says_so() {
    let (mut world, id, canary, _) = begun();
    let others = set(0..6) - set([canary]);
    assert!(decide(&world, id, &others, &set([]), LATE).waits_for.contains("to connect"));
    let left_out = decide(&world, id, &others, &set([canary]), LATE).action.unwrap();
    assert!(
        matches!(&left_out, RolloutAction::ChangeTargets { targets, unreachable, .. } if targets.is_empty() && unreachable.contains(canary))
    );
    world.ok(left_out);
    let waits = decide(&world, id, &others, &set([canary]), LATE);
    assert!(waits.action.is_none() && waits.waits_for.contains("no data is not good news"), "{waits:?}");
    // Once it is back it is told, and no longer left out.
    world.ok(decide(&world, id, &set(0..6), &set([]), 0).action.unwrap());
    assert!(world.rollout(id).sets.unreachable.is_empty());
}

#[test]
fn targets_that_were_down_already_fail_nothing_and_pass_nothing() {
    let (mut world, id, canary, release) = begun();
    world.report(canary, None, Progress::Unhealthy, false);
    world.tell_wave(id);
    world.report(canary, Some(&release), Progress::Failed, false);
    let waits = decide(&world, id, &set(0..6), &set([]), LATE);
    assert!(waits.action.is_none() && waits.waits_for.contains("promote or abort"), "{waits:?}");
    world.report(canary, Some(&release), Progress::Healthy, true);
    assert!(matches!(verdict(&decide(&world, id, &set(0..6), &set([]), 1)), Some((Verdict::Pass, _))), "it recovered");
}

#[test]
fn failures_within_bounds_pass_but_a_spent_budget_does_not_hang() {
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
    let waits = decide(&world, id, &all, &none, 1);
    assert!(waits.waits_for.ends_with("until others are available again"), "{waits:?}");
    let late = decide(&world, id, &all, &none, LATE);
    assert!(matches!(verdict(&late), Some((Verdict::Fail, why)) if why.contains("use up")), "{late:?}");
}

#[test]
fn who_left_the_environment_is_not_waited_for() {
    let (mut world, id, canary, _) = begun();
    world.tell_wave(id);
    let mut environment: crate::fleet::Environment = world.get(crate::tables::key("production"));
    environment.members.remove(canary);
    crate::tables::Tables::put(&mut world.tables, &environment).unwrap();
    let waits = decide(&world, id, &set(0..6), &set([]), LATE);
    assert!(waits.action.is_none() && waits.waits_for.contains("every target of this wave left"), "{waits:?}");
}

#[test]
fn what_does_not_move_says_who_must() {
    let (mut world, id, _, release) = begun();
    let (all, none) = (set(0..6), set([]));
    let waiting = world.start(&release, Purpose::Deploy).unwrap();
    assert_eq!(decide(&world, waiting, &all, &none, 0).waits_for, "rollout r77 is at work in this environment");
    world.ok(RolloutAction::Pause { rollout: id, why: "lunch".into() });
    assert_eq!(decide(&world, id, &all, &none, 0).waits_for, "ada to resume it: lunch");
    world.ok(RolloutAction::Abort { rollout: id, why: "no".into() });
    assert_eq!(decide(&world, id, &all, &none, 0).waits_for, "");
}

#[test]
fn going_back_in_place_is_bounded_and_never_hangs() {
    let text = format!("{FILE}max_unavailable = \"100%\"\nrollback = {{ max_unavailable = 1 }}\n")
        .replace("[1, \"50%\", \"100%\"]", "[4, \"100%\"]");
    let file =
        PipelineFile::parse(&text.replace("command = [\"bin/web\"]", "command = [\"bin/web\"]\nstart = \"in-place\"")).unwrap();
    let (mut world, _) = World::with_fleet(5, FILE);
    let good = world.deployed(1, &file);
    let bad = world.release(2, &file);
    let id = world.start(&bad, Purpose::Deploy).unwrap();
    world.tell_wave(id);
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
    let waits = decide(&world, id, &all, &none, 1);
    assert!(waits.action.is_none() && waits.waits_for.ends_with("to go back"), "{waits:?}");
    // They never come back: the others go all the same, a deadline apart.
    for _ in 0..2 {
        world.ok(decide(&world, id, &all, &none, LATE).action.unwrap());
    }
    world.report(touched[3], Some(&good), Progress::Healthy, true);
    let end = decide(&world, id, &all, &none, LATE).action.unwrap();
    assert!(matches!(end, RolloutAction::FinishRollback { .. }), "{end:?}");
}
