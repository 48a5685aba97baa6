//! Builds: attempts, phases, ends, and what a commit that is known leads to.

use crate::{
    apply::testing::*,
    build::{AttemptEnd, Build, BuildFailure, BuildState, Cause, OpenBuild, Phase, Resources},
    command::*,
    event::{EventKind, Subject},
    ids::BuildId,
    rollout::{OpenRollout, Purpose},
    tables::{ReadTables, Scan, key},
};

fn world() -> World {
    World::with_fleet(2, FILE).0
}

fn state(world: &World, build: BuildId) -> BuildState {
    world.get::<Build>(key(build.0)).state
}

fn take(world: &mut World, build: BuildId, attempt: u32) {
    world.ok(BuildAction::Assign { build, runner: name("r1") });
    world.ok(BuildAction::Acknowledge { build, attempt, unisolated: None });
}

fn reach(world: &mut World, build: BuildId, attempt: u32, last: Phase) {
    take(world, build, attempt);
    for phase in Phase::ALL.into_iter().filter(|phase| *phase <= last) {
        world.ok(BuildAction::Progress { build, attempt, phase: phase_record(phase) });
    }
}

pub(super) fn failed(phase: Phase) -> AttemptEnd {
    AttemptEnd::Failed(BuildFailure { phase, reason: "exit 1".into(), hint: String::new(), output: "ä".repeat(5000) })
}

fn end(build: BuildId, attempt: u32, end: AttemptEnd) -> BuildAction {
    BuildAction::End { build, attempt, end, log: None }
}

#[test]
fn lost_attempts_go_back_to_the_queue_three_times() {
    let mut world = world();
    let build = world.request(1);
    for attempt in 1..=4 {
        assert_eq!(state(&world, build), BuildState::Queued);
        take(&mut world, build, attempt);
        world.ok(end(build, attempt, lost()));
        assert_eq!(world.refused(end(build, attempt, lost())), "stale_attempt");
    }
    assert_eq!(state(&world, build), BuildState::Exhausted);
    assert_eq!(world.refused(BuildAction::Assign { build, runner: name("r1") }), "illegal_transition");
    let retried = world.ok(BuildAction::Retry { build }).outcome.subject;
    assert_ne!(retried, Subject::Build(build));
}

#[test]
fn attempts_that_nobody_acknowledged_count_too() {
    let mut world = world();
    let build = world.request(1);
    for attempt in 1..=4 {
        world.ok(BuildAction::Assign { build, runner: name("r1") });
        world.ok(end(build, attempt, lost()));
    }
    assert_eq!(state(&world, build), BuildState::Exhausted);
    assert!(world.tables.scan::<OpenBuild>(&Scan::all(), 9).unwrap().is_empty());
}

#[test]
fn assignments_keep_to_the_concurrency_and_to_one_live_attempt() {
    let mut world = world();
    let (first, second) = (world.request(1), {
        world.ok(request(1));
        other_branch(&mut world, 2)
    });
    assert_eq!(world.refused(BuildAction::Assign { build: first, runner: name("nobody") }), "not_found");
    world.ok(BuildAction::Assign { build: first, runner: name("r1") });
    assert_eq!(world.refused(BuildAction::Assign { build: first, runner: name("r1") }), "illegal_transition");
    assert_eq!(world.refused(BuildAction::Assign { build: second, runner: name("r1") }), "unavailable");
    assert_eq!(world.refused(BuildAction::Acknowledge { build: first, attempt: 2, unisolated: None }), "stale_attempt");
    let early = BuildAction::Progress { build: first, attempt: 1, phase: phase_record(Phase::Build) };
    assert_eq!(world.refused(early), "illegal_transition");
}

fn push_to(branch: &str, number: u8) -> BuildAction {
    BuildAction::Request {
        pipeline: name("shop"),
        commit: commit(number),
        git_ref: format!("refs/heads/{branch}"),
        cause: Cause::Push,
        again: false,
        resources: Resources::default(),
    }
}

fn other_branch(world: &mut World, number: u8) -> BuildId {
    let Subject::Build(id) = world.ok(push_to("next", number)).outcome.subject else { panic!("not a build") };
    id
}

#[test]
fn a_commit_is_built_once_and_a_newer_push_takes_the_place_of_a_queued_one() {
    let mut world = world();
    let first = world.request(1);
    assert_eq!(world.request(1), first);
    let second = world.request(2);
    assert_eq!(state(&world, first), BuildState::Superseded);
    assert_eq!(state(&world, second), BuildState::Queued);
    // What gave way was not built: pushed again elsewhere, it is.
    assert_ne!(other_branch(&mut world, 1), first);
    assert_eq!(world.refused(push_to(&"x".repeat(300), 3)), "invalid");
}

#[test]
fn phases_only_go_forward_and_what_ended_has_ended() {
    let mut world = world();
    let build = world.request(1);
    reach(&mut world, build, 1, Phase::Test);
    let before = BuildAction::Progress { build, attempt: 1, phase: phase_record(Phase::Build) };
    assert_eq!(world.refused(before), "illegal_transition");
    let events = world.ok(BuildAction::Progress { build, attempt: 1, phase: phase_record(Phase::Test) }).events;
    assert!(events.is_empty(), "said twice: {events:?}");
    let file = Box::new(crate::pipeline_file::PipelineFile::parse(FILE).unwrap());
    let early = BuildAction::Succeed { build, attempt: 1, artifact: artifact(1), file, log: None };
    assert_eq!(world.refused(early), "illegal_transition");
}

#[test]
fn a_failure_ends_the_build_in_whatever_phase_it_was() {
    for reached in Phase::ALL {
        for phase in Phase::ALL {
            let mut world = world();
            let build = world.request(1);
            reach(&mut world, build, 1, reached);
            world.ok(end(build, 1, failed(phase)));
            let expected =
                if phase == Phase::Test && reached <= Phase::Test { BuildState::TestFailed } else { BuildState::BuildFailed };
            assert_eq!(state(&world, build), expected, "{phase} failed while {reached} ran");
            let build: Build = world.get(key(build.0));
            let Some(AttemptEnd::Failed(failure)) = &build.attempts[0].end else { panic!("{build:?}") };
            assert!(failure.output.len() <= 4100 && failure.output.starts_with('…'), "only its end is kept");
        }
    }
}

#[test]
fn a_build_is_canceled_at_once_or_as_soon_as_its_runner_has_stopped() {
    let mut world = world();
    let queued = world.request(1);
    world.ok(BuildAction::Cancel { build: queued });
    assert_eq!(state(&world, queued), BuildState::Canceled);
    assert_eq!(world.refused(BuildAction::Cancel { build: queued }), "illegal_transition");
    for (number, reached) in (2..).zip(Phase::ALL) {
        let build = world.request(number);
        reach(&mut world, build, 1, reached);
        world.ok(BuildAction::Cancel { build });
        assert!(!state(&world, build).is_end());
        world.ok(end(build, 1, if reached == Phase::Test { lost() } else { AttemptEnd::Canceled }));
        assert_eq!(state(&world, build), BuildState::Canceled);
    }
}

#[test]
fn what_was_canceled_does_not_become_a_release() {
    let (mut world, file) = World::with_fleet(2, &format!("{FILE}auto = [\"main\"]\n"));
    let build = world.request(1);
    reach(&mut world, build, 1, Phase::Upload);
    world.ok(BuildAction::Cancel { build });
    world.ok(BuildAction::Succeed { build, attempt: 1, artifact: artifact(1), file: Box::new(file), log: None });
    assert_eq!(state(&world, build), BuildState::Canceled);
    assert!(world.tables.scan::<OpenRollout>(&Scan::all(), 9).unwrap().is_empty());
}

#[test]
fn only_what_failed_is_retried_and_an_end_says_what_ended() {
    let (mut world, file) = World::with_fleet(2, FILE);
    let build = world.request(1);
    assert_eq!(world.refused(BuildAction::Retry { build }), "illegal_transition");
    take(&mut world, build, 1);
    assert_eq!(world.refused(end(build, 1, AttemptEnd::Succeeded)), "invalid");
    world.ok(end(build, 1, failed(Phase::Build)));
    world.ok(BuildAction::Retry { build });
    let release = world.release(2, &file);
    let ready = world.get::<crate::release::Release>(crate::release::release_key(&release)).build;
    assert_eq!(world.refused(BuildAction::Retry { build: ready }), "illegal_transition");
}

#[test]
fn a_pushed_artifact_is_a_release_at_once() {
    let (mut world, file) = World::with_fleet(2, FILE);
    let (pipeline, git_ref, file) = (name("shop"), "refs/heads/main".to_owned(), Box::new(file));
    let applied = world.ok(BuildAction::ImportArtifact { pipeline, commit: commit(1), git_ref, artifact: artifact(1), file });
    let Subject::Build(id) = applied.outcome.subject else { panic!("not a build") };
    let states: Vec<_> =
        applied.events.iter().filter(|event| event.kind.is_build_transition()).filter_map(|event| event.to.clone()).collect();
    assert_eq!(states, ["queued", "uploading", "ready-to-deploy"]);
    assert!(world.get::<Build>(key(id.0)).release.is_some());
}

#[test]
fn branches_deploy_by_themselves_and_an_older_build_does_not_take_a_newer_ones_place() {
    let (mut world, file) = World::with_fleet(2, &format!("{FILE}auto = [\"main\", \"release/*\"]\n"));
    let old = world.request(1);
    take(&mut world, old, 1);
    world.ok(end(old, 1, lost()));
    let newer = other_branch(&mut world, 2);
    take(&mut world, newer, 1);
    // The older one is still queued while the newer one runs; `next` does not deploy.
    for phase in Phase::ALL {
        world.ok(BuildAction::Progress { build: newer, attempt: 1, phase: phase_record(phase) });
    }
    let succeed = |build, attempt, number| {
        let file = Box::new(file.clone());
        BuildAction::Succeed { build, attempt, artifact: artifact(number), file, log: None }
    };
    assert_eq!(world.ok(succeed(newer, 1, 2)).outcome.created.len(), 1, "only the release");
    // A fast-forward: a branch that deploys itself comes to a commit that was built for another one.
    let moved = world.ok(push_to("release/7", 2));
    assert!(matches!(moved.outcome.created[..], [Subject::Rollout(_)]), "{:?}", moved.outcome);
    assert!(world.ok(push_to("release/7", 2)).outcome.created.is_empty(), "said twice");
    reach(&mut world, old, 2, Phase::Upload);
    let late = world.ok(succeed(old, 2, 1));
    assert!(late.events.iter().any(|event| event.kind == EventKind::ReleaseDeploySkipped), "{:?}", late.events);
}

#[test]
fn a_deploy_that_cannot_start_by_itself_leaves_nothing_behind() {
    let text = FILE.replace("ports = { http = \"auto\" }", "ports = { http = \"auto\", a = \"auto\", b = \"auto\" }");
    let (mut world, file) = World::with_fleet(2, &format!("{text}auto = [\"main\"]\n"));
    let mut narrow = info(0);
    narrow.ports.last = narrow.ports.first + 3;
    world.ok(FleetAction::Join { info: narrow });
    let release = world.release(1, &file);
    assert!(world.tables.scan::<OpenRollout>(&Scan::all(), 9).unwrap().is_empty());
    assert_eq!(world.start(&release, Purpose::Deploy).unwrap_err().code(), "invalid");
    assert!(!world.story().iter().any(|line| line.contains("rollout.created")), "{:#?}", world.story());
    world.report(0, None, crate::fleet::observation::Progress::Stopped, false);
}
