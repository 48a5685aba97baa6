//! Rollouts forward: waves, gates, pauses, what blocks them, and what is refused.

use roaring::RoaringBitmap;

use crate::{
    apply::testing::*,
    command::*,
    fleet::{
        PolicyLimits,
        observation::{Progress, ReportOrigin, TargetReports},
    },
    pipeline_file::PipelineFile,
    rollout::{BlockReason, Gate, Purpose, RolloutState, Verdict, plan_input::planned},
    units::{Amount, Millis},
    wire::AgentId,
};

const PRODUCTION: &str = "production";

fn freeze(why: &str) -> EnvironmentAction {
    EnvironmentAction::Freeze { name: name(PRODUCTION), why: why.into() }
}

fn with(deploy: &str) -> PipelineFile {
    PipelineFile::parse(&format!("{}{deploy}\n", FILE.replace("waves = [1, \"50%\", \"100%\"]\n", ""))).unwrap()
}

#[test]
fn canary_goes_wave_by_wave_with_one_event_for_each_transition() {
    let (mut world, file) = World::with_fleet(6, FILE);
    let release = world.release(1, &file);
    let id = world.start(&release, Purpose::Deploy).unwrap();
    world.complete(id);
    let story = world.story();
    let is_state = |word: &&str| matches!(*word, "deploying" | "canary-check" | "rolling-out" | "deployed");
    let of_rollout = story.iter().filter_map(|line| line.strip_prefix("rollout/r1 "));
    let states: Vec<_> = of_rollout.filter_map(|line| line.split(' ').nth(1)).filter(is_state).collect();
    assert_eq!(states, ["deploying", "canary-check", "rolling-out", "deployed"]);
    let rollout = world.rollout(id);
    assert_eq!(rollout.plan.sizes(), [1, 2, 3]);
    let gates: Vec<_> = rollout.verdicts.iter().map(|record| (record.wave, record.gate)).collect();
    use Gate::*;
    assert_eq!(gates, [(0, Convergence), (0, Bake), (1, Convergence), (1, Bake), (2, Convergence)]);
    assert_eq!((world.deployment().stable, world.deployment().rollout), (Some(release), None));
}

#[test]
fn targets_change_once_in_their_wave_and_only_at_its_start() {
    let (mut world, file) = World::with_fleet(6, FILE);
    let release = world.release(1, &file);
    let id = world.start(&release, Purpose::Deploy).unwrap();
    let first = world.wave_targets(id);
    let tell = |targets: &RoaringBitmap| RolloutAction::ChangeTargets {
        rollout: id,
        targets: targets.clone(),
        unreachable: RoaringBitmap::new(),
    };
    let others = RoaringBitmap::from_iter(0..6) - &first;
    assert_eq!(world.refused(tell(&others)), "illegal_transition");
    assert_eq!(world.judge(id, Verdict::Pass).unwrap_err().code(), "illegal_transition", "nothing was changed");
    assert_eq!(world.refused(RolloutAction::Promote { rollout: id, why: "now".into() }), "illegal_transition");
    world.ok(tell(&first));
    assert_eq!(world.refused(tell(&first)), "illegal_transition");
    assert_eq!(world.judge(id, Verdict::Pass).unwrap_err().code(), "illegal_transition", "nothing is healthy");
    world.report(first.min().unwrap(), Some(&release), Progress::Healthy, true);
    world.judge(id, Verdict::Pass).unwrap();
    assert_eq!(world.rollout(id).gate, Gate::Bake);
    let again = RolloutAction::RecordVerdict {
        rollout: id,
        wave: 0,
        gate: Gate::Convergence,
        verdict: Verdict::Pass,
        evidence: evidence(Verdict::Pass),
    };
    assert_eq!(world.refused(again), "illegal_transition");
    // A pass that was reached before the failure was known is late.
    world.report(first.min().unwrap(), Some(&release), Progress::Unhealthy, false);
    assert_eq!(world.judge(id, Verdict::Pass).unwrap_err().code(), "illegal_transition");
    world.report(first.min().unwrap(), Some(&release), Progress::Healthy, true);
    world.judge(id, Verdict::Pass).unwrap();
}

#[test]
fn in_place_change_is_refused_beyond_max_unavailable_or_one_zone() {
    let file = with("strategy = \"rolling\"\nmax_unavailable = 2\nspread = \"zone\"");
    let mut file = file;
    file.service.values_mut().for_each(|service| service.start = crate::pipeline_file::Start::InPlace);
    let (mut world, _) = World::with_fleet(6, FILE);
    world.deployed(1, &file);
    let release = world.release(2, &file);
    let id = world.start(&release, Purpose::Deploy).unwrap();
    let tell = |targets: &[u32]| RolloutAction::ChangeTargets {
        rollout: id,
        targets: targets.iter().copied().collect(),
        unreachable: RoaringBitmap::new(),
    };
    assert_eq!(world.refused(tell(&[0, 2, 4])), "unavailable");
    assert_eq!(world.refused(tell(&[0, 1])), "unavailable", "they are of two zones");
    world.ok(tell(&[0, 2]));
    assert_eq!(world.refused(tell(&[4])), "unavailable");
    world.report(0, Some(&release), Progress::Healthy, true);
    world.ok(tell(&[4]));
    // What serves nothing is repaired outside the budget.
    world.report(1, None, Progress::Unhealthy, false);
    world.ok(tell(&[1]));
    assert_eq!(world.rollout(id).sets.down_before, RoaringBitmap::from_iter([1]));
    world.report(1, Some(&release), Progress::Healthy, true);
    assert!(world.rollout(id).sets.down_before.is_empty(), "from now on its failures are ours");
}

#[test]
fn paused_rollout_refuses_steps_until_resumed_or_promoted() {
    let (mut world, file) = World::with_fleet(3, FILE);
    let release = world.release(1, &file);
    let id = world.start(&release, Purpose::Deploy).unwrap();
    assert_eq!(world.refused(RolloutAction::Resume { rollout: id }), "illegal_transition");
    world.ok(RolloutAction::Pause { rollout: id, why: "lunch".into() });
    let targets = world.wave_targets(id);
    let tell = RolloutAction::ChangeTargets { rollout: id, targets, unreachable: RoaringBitmap::new() };
    assert_eq!(world.refused(tell), "illegal_transition");
    world.ok(RolloutAction::Resume { rollout: id });
    world.change_wave(id);
    world.ok(RolloutAction::Pause { rollout: id, why: "tea".into() });
    assert_eq!(world.judge(id, Verdict::Pass).unwrap_err().code(), "illegal_transition");
    world.ok(RolloutAction::Promote { rollout: id, why: "it is fine".into() });
    let rollout = world.rollout(id);
    assert!(rollout.paused.is_none() && rollout.state == RolloutState::CanaryCheck);
    assert_eq!(
        world.refused(RolloutAction::RecordElapsed { rollout: id, wave: 1, gate: Gate::Bake, targets: 1, elapsed: Millis(1) }),
        "illegal_transition"
    );
    world.ok(RolloutAction::RecordElapsed { rollout: id, wave: 0, gate: Gate::Bake, targets: 1, elapsed: Millis(5000) });
    let back = RolloutAction::RecordElapsed { rollout: id, wave: 0, gate: Gate::Bake, targets: 1, elapsed: Millis(4000) };
    assert_eq!(world.refused(back), "illegal_transition");
}

#[test]
fn second_rollout_waits_and_a_third_replaces_it() {
    let (mut world, file) = World::with_fleet(3, FILE);
    let releases: Vec<_> = (1..=3).map(|number| world.release(number, &file)).collect();
    let ids: Vec<_> = releases.iter().map(|release| world.start(release, Purpose::Deploy).unwrap()).collect();
    assert_eq!(world.rollout(ids[1]).state, RolloutState::Canceled, "a newer one takes its place");
    assert_eq!((world.rollout(ids[2]).state, world.deployment().next), (RolloutState::Blocked, Some(ids[2])));
    assert_eq!(world.refused(RolloutAction::Unblock { rollout: ids[2] }), "held");
    world.complete(ids[0]);
    world.ok(RolloutAction::Unblock { rollout: ids[2] });
    assert_eq!(world.rollout(ids[2]).stable.as_ref(), Some(&releases[0]));
    assert_eq!(world.refused(RolloutAction::Unblock { rollout: ids[2] }), "illegal_transition");
}

#[test]
fn a_freeze_blocks_and_what_waited_is_not_followed_by_something_older() {
    let (mut world, file) = World::with_fleet(3, FILE);
    let (old, new) = (world.release(1, &file), world.release(2, &file));
    assert_eq!(world.refused(freeze(" ")), "invalid");
    world.ok(freeze("holiday"));
    let waits = world.start(&old, Purpose::Deploy).unwrap();
    let blocked = world.rollout(waits).blocked;
    assert!(matches!(&blocked, Some(BlockReason::Frozen(freeze)) if freeze.why == "holiday"), "{blocked:?}");
    assert_eq!(world.refused(RolloutAction::Unblock { rollout: waits }), "frozen");
    world.ok(EnvironmentAction::Unfreeze { name: name(PRODUCTION) });
    let id = world.start(&new, Purpose::Deploy).unwrap();
    assert_eq!(world.rollout(waits).state, RolloutState::Canceled);
    world.complete(id);
    assert_eq!(world.deployment().stable, Some(new));
}

#[test]
fn blocked_rollout_is_canceled_when_its_release_is_quarantined() {
    let (mut world, file) = World::with_fleet(3, FILE);
    let release = world.release(1, &file);
    let first = world.start(&release, Purpose::Deploy).unwrap();
    let second = world.start(&release, Purpose::Deploy).unwrap();
    world.change_wave(first);
    world.ok(RolloutAction::Abort { rollout: first, why: "no".into() });
    let targets = world.rollout(first).touched();
    world.ok(RolloutAction::RevertTargets { rollout: first, targets });
    world.ok(RolloutAction::FinishRollback { rollout: first, unreachable: RoaringBitmap::new() });
    world.ok(RolloutAction::Unblock { rollout: second });
    assert_eq!(world.rollout(second).state, RolloutState::Canceled, "the release is quarantined meanwhile");
    assert_eq!(world.deployment().next, None);
}

#[test]
fn deploy_with_if_plan_is_refused_when_the_plan_changed() {
    let (mut world, file) = World::with_fleet(6, FILE);
    let release = world.release(1, &file);
    let plan = planned(&world.tables, &name(PRODUCTION), &release, Purpose::Deploy, 1).unwrap().digest(&release);
    let start = |environment: &str, release: &crate::ids::ReleaseId| RolloutAction::Start {
        environment: name(environment),
        release: release.clone(),
        purpose: Purpose::Deploy,
        why: None,
        if_plan: Some(plan),
    };
    assert_eq!(world.refused(start("nowhere", &release)), "not_found");
    assert_eq!(world.refused(start(PRODUCTION, &name("shop@9"))), "not_found");
    world.ok(FleetAction::Cordon { name: name("web-0"), why: "disk".into() });
    assert_eq!(world.refused(start(PRODUCTION, &release)), "plan_changed");
    world.ok(FleetAction::Uncordon { name: name("web-0") });
    world.ok(start(PRODUCTION, &release));
    let (mut empty, file) = World::with_fleet(0, FILE);
    let release = empty.release(1, &file);
    assert_eq!(empty.start(&release, Purpose::Deploy).unwrap_err().code(), "no_targets");
}

#[test]
fn policy_limits_hold_whatever_strategy_the_file_names() {
    let (mut world, _) = World::with_fleet(10, FILE);
    let policy = PolicyLimits { least_bake: Some(Millis(60_000)), first_wave_max: Some(Amount::Count(1)) };
    let zero = PolicyLimits { first_wave_max: Some(Amount::Count(0)), ..policy.clone() };
    let create = |policy| EnvironmentAction::Create { name: name("strict"), selector: Default::default(), policy };
    assert_eq!(world.refused(create(zero)), "invalid");
    world.ok(create(policy.clone()));
    assert_eq!(world.refused(create(policy)), "exists");
    for deploy in ["strategy = \"rolling\"", "waves = [\"50%\", \"100%\"]", "waves = [1, \"100%\"]"] {
        let text = FILE.replace("production", "strict").replace("waves = [1, \"50%\", \"100%\"]\n", "");
        let file = PipelineFile::parse(&format!("{text}{deploy}\n")).unwrap();
        let release = world.release(deploy.len() as u8, &file);
        let planned = planned(&world.tables, &name("strict"), &release, Purpose::Deploy, 1).unwrap();
        assert_eq!(planned.plan.waves[0].targets.len(), 1, "{deploy}");
        assert!(planned.plan.waves.len() > 1 && planned.settings.bake == Millis(60_000) && planned.settings.canary, "{deploy}");
    }
}

#[test]
fn redeploy_of_the_same_release_is_healthy_at_once() {
    let (mut world, file) = World::with_fleet(3, FILE);
    let release = world.deployed(1, &file);
    let id = world.start(&release, Purpose::Deploy).unwrap();
    world.change_wave(id);
    assert_eq!(world.rollout(id).sets.healthy, world.rollout(id).sets.changed, "nobody has anything new to say");
}

#[test]
fn batch_of_reports_is_one_event_per_rollout() {
    let (mut world, file) = World::with_fleet(20, FILE);
    let release = world.release(1, &file);
    let id = world.start(&release, Purpose::Deploy).unwrap();
    world.change_wave(id);
    let mut rollout = world.rollout(id);
    rollout.sets.changed = RoaringBitmap::from_iter(0..20);
    crate::tables::Tables::put(&mut world.tables, &rollout).unwrap();
    let report = crate::fleet::observation::Report {
        pipeline: name("shop"),
        release: Some(release),
        progress: Progress::Healthy,
        serving: true,
        instances: Vec::new(),
        failure: None,
    };
    let reports: Vec<_> = (0..5000).map(|number| (number % 20, report.clone())).collect();
    let action = world.reports(reports.clone());
    let events = world.ok(action).events;
    assert_eq!(events.len(), 2, "one for the rollout, one for the batch");
    assert_eq!(world.rollout(id).sets.healthy.len(), 20);
    let action = world.reports(reports);
    let events = world.ok(action).events;
    assert_eq!(events.len(), 1, "nothing new");
    let stranger = world.reports(vec![(20, report.clone())]);
    assert_eq!(world.refused(stranger), "invalid");
    let too_many = world.reports(vec![(0, report); 10_001]);
    assert_eq!(world.refused(too_many), "invalid");
}

#[test]
fn report_that_is_not_newer_for_its_agent_changes_nothing() {
    let (mut world, file) = World::with_fleet(1, FILE);
    let release = world.release(1, &file);
    let id = world.start(&release, Purpose::Deploy).unwrap();
    world.change_wave(id);
    let report = |progress| crate::fleet::observation::Report {
        pipeline: name("shop"),
        release: Some(release.clone()),
        progress,
        serving: true,
        instances: Vec::new(),
        failure: None,
    };
    let by = |agent: &str, incarnation, sequence, progress| {
        let origin = ReportOrigin { agent: AgentId(agent.to_owned()), incarnation, sequence };
        FleetAction::Report { targets: vec![TargetReports { target: 0, origin, reports: vec![report(progress)] }] }
    };
    world.ok(by("a", 1, 7, Progress::Healthy));
    for late in [by("a", 1, 6, Progress::Failed), by("a", 1, 7, Progress::Failed), by("a", 0, 99, Progress::Failed)] {
        world.ok(late);
        let rollout = world.rollout(id);
        assert!(rollout.sets.healthy.contains(0) && rollout.sets.failed.is_empty(), "{:?}", rollout.sets);
    }
    world.ok(by("a", 2, 1, Progress::Failed));
    assert!(world.rollout(id).sets.failed.contains(0), "an agent that was started again says newer things");
    world.ok(by("b", 1, 1, Progress::Healthy));
    assert!(world.rollout(id).sets.healthy.contains(0), "another agent took its place");
}
