//! What gates conclude where the fleet is large, and where targets fail, leave, die or return.

use crate::apply::tests::{
    builds::failed,
    waits::{LATE, decide, sample, set, verdict, waits},
};
use crate::{
    apply::testing::*,
    build::Phase,
    command::*,
    event::Subject,
    fleet::{Environment, observation::Progress},
    ids::{ReleaseId, RolloutId},
    pipeline_file::PipelineFile,
    rollout::{Evidence, Gate, Purpose, RolloutState, Verdict, WaitReason, plan_input::planned},
    tables::{Tables, key},
    units::Millis,
};

/// `count` targets that run a release, and a rollout to one whose file says `deploy` instead of its waves.
fn rollout(count: u32, deploy: &str) -> (World, RolloutId, ReleaseId) {
    let text = FILE.replace("waves = [1, \"50%\", \"100%\"]\n", deploy);
    let file = PipelineFile::parse(&text).unwrap();
    let (mut world, _) = World::with_fleet(count, FILE);
    world.deployed(1, &file);
    let release = world.release(2, &file);
    let id = world.start(&release, Purpose::Deploy).unwrap();
    (world, id, release)
}

fn leave(world: &mut World, target: u32) {
    let mut environment: Environment = world.get(key("production"));
    environment.members.remove(target);
    world.tables.put(&environment).unwrap();
}

#[test]
fn max_failures_share_is_of_attempted_targets_and_never_a_whole_wave() {
    let (all, none) = (set(0..200), set([]));
    for (waves, may_fail, failing) in [("1", "\"2%\"", 1), ("10", "\"2%\"", 1), ("1", "3", 1), ("3", "3", 3)] {
        let (mut world, id, release) = rollout(200, &format!("waves = [{waves}, \"100%\"]\nmax_failures = {may_fail}\n"));
        world.change_wave(id);
        let canaries: Vec<u32> = world.wave_targets(id).iter().collect();
        for (place, canary) in canaries.iter().enumerate() {
            let progress = if place < failing { Progress::Failed } else { Progress::Healthy };
            world.report(*canary, Some(&release), progress, true);
        }
        let next = decide(&world, id, &all, &none, 1);
        assert!(
            matches!(verdict(&next), Some((Verdict::Fail, Evidence::TooManyFailures { .. } | Evidence::NoneHealthy { .. }))),
            "{waves} {may_fail}: {next:?}"
        );
        assert!(world.judge(id, Verdict::Pass).is_err(), "{waves} {may_fail}: nor does anyone else pass it");
    }
    let (mut world, id, release) = rollout(200, "waves = [50, \"100%\"]\nmax_failures = \"2%\"\n");
    world.change_wave(id);
    for (place, canary) in world.wave_targets(id).iter().enumerate() {
        world.report(canary, Some(&release), if place == 7 { Progress::Failed } else { Progress::Healthy }, true);
    }
    assert!(matches!(verdict(&decide(&world, id, &all, &none, 1)), Some((Verdict::Pass, _))), "one of fifty may");
}

#[test]
fn target_that_left_takes_nothing_of_the_unavailability_budget() {
    let (mut world, id, release) = rollout(4, "strategy = \"rolling\"\nmax_unavailable = 1\n");
    let (all, none) = (set(0..4), set([]));
    world.ok(decide(&world, id, &all, &none, 0).action.unwrap());
    assert_eq!(world.rollout(id).sets.changed, set([0]));
    world.report(0, Some(&release), Progress::Healthy, true);
    leave(&mut world, 0);
    world.report(0, None, Progress::Stopped, false);
    let next = decide(&world, id, &all, &none, LATE);
    assert_eq!(next.action, Some(RolloutAction::ChangeTargets { rollout: id, targets: set([1]), unreachable: none }));
    world.ok(next.action.unwrap());
}

#[test]
fn wave_does_not_pass_on_reports_of_targets_that_are_lost() {
    let (mut world, id, release) = rollout(9, "waves = [3, \"100%\"]\n");
    world.change_wave(id);
    let canaries: Vec<u32> = world.wave_targets(id).iter().collect();
    canaries.iter().for_each(|canary| world.report(*canary, Some(&release), Progress::Healthy, true));
    world.judge(id, Verdict::Pass).unwrap();
    assert_eq!(world.rollout(id).gate, Gate::Bake);
    let dead = set(canaries[..2].iter().copied());
    let next = decide(&world, id, &(set(0..9) - &dead), &dead, LATE);
    assert_eq!(*waits(&next), WaitReason::HealthyTargetsLost { targets: sample(dead) });
    let back = decide(&world, id, &set(0..9), &set([]), LATE);
    assert!(matches!(verdict(&back), Some((Verdict::Pass, Evidence::Baked { healthy: 3, changed: 3, .. }))), "{back:?}");
}

#[test]
fn target_missed_by_its_wave_is_changed_and_judged_with_a_later_one() {
    let (mut world, id, release) = rollout(6, "waves = [3, \"100%\"]\n");
    let first: Vec<u32> = world.wave_targets(id).iter().collect();
    let (off, all, none) = (set([first[0]]), set(0..6), set([]));
    world.ok(decide(&world, id, &(&all - &off), &off, 0).action.unwrap());
    for target in &first[1..] {
        world.report(*target, Some(&release), Progress::Healthy, true);
    }
    for _ in 0..2 {
        world.ok(decide(&world, id, &(&all - &off), &off, LATE).action.unwrap());
    }
    assert_eq!((world.rollout(id).wave, world.rollout(id).sets.unreachable), (1, off.clone()));
    // It is back: the second wave tells it, and does not pass without it.
    world.ok(decide(&world, id, &all, &none, 0).action.unwrap());
    assert!(off.is_subset(&world.rollout(id).sets.changed));
    for target in world.rollout(id).plan.waves[1].targets.clone() {
        world.report(target, Some(&release), Progress::Healthy, true);
    }
    let next = decide(&world, id, &all, &none, 1);
    assert!(matches!(waits(&next), WaitReason::Convergence { targets, .. } if *targets == sample(off.clone())), "{next:?}");
    world.report(first[0], Some(&release), Progress::Healthy, true);
    assert!(matches!(verdict(&decide(&world, id, &all, &none, 1)), Some((Verdict::Pass, _))));
}

#[test]
fn aborted_redeploy_of_the_stable_release_does_not_quarantine_it() {
    let (mut world, file) = World::with_fleet(4, FILE);
    let good = world.deployed(1, &file);
    let id = world.start(&good, Purpose::Deploy).unwrap();
    world.change_wave(id);
    world.ok(RolloutAction::Abort { rollout: id, why: "a mistake".into() });
    assert_eq!(world.rollout(id).state, RolloutState::RollingBack);
    assert!(world.deployment().quarantined.is_empty());
}

#[test]
fn rollback_deadline_is_that_of_the_slower_release() {
    let health =
        |timeout: &str| FILE.replace("http = \"/healthz\" }", &format!("http = \"/healthz\", start_timeout = \"{timeout}\" }}"));
    let (slow, fast) = (PipelineFile::parse(&health("10m")).unwrap(), PipelineFile::parse(&health("10s")).unwrap());
    let (mut world, _) = World::with_fleet(4, FILE);
    world.deployed(1, &slow);
    let release = world.release(2, &fast);
    let settings = planned(&world.tables, &name("production"), &release, Purpose::Deploy, 1).unwrap().settings;
    assert!(settings.rollback_deadline > Millis::from_secs(600), "{settings:?}");
}

#[test]
fn rebuilt_old_commit_does_not_replace_a_newer_release() {
    let text = FILE.replace("[deploy.production]\n", "[deploy.production]\nauto = [\"main\"]\n");
    let (mut world, file) = World::with_fleet(2, &text);
    let old = world.request(1);
    world.ok(BuildAction::Assign { build: old, runner: name("r1") });
    world.ok(BuildAction::Acknowledge { build: old, attempt: 1, unisolated: None });
    world.ok(BuildAction::End { build: old, attempt: 1, end: failed(Phase::Test), log: None });
    let newer = world.release(2, &file);
    let by_itself = world.deployment().rollout.unwrap();
    world.complete(by_itself);
    let Subject::Build(again) = world.ok(BuildAction::Retry { build: old }).outcome.subject else { panic!("not a build") };
    world.built(again, 1, &file);
    assert_eq!((world.deployment().stable, world.deployment().rollout), (Some(newer), None));
    assert!(world.story().iter().any(|event| event.contains("release.deploy-skipped")), "and it is said");
}
