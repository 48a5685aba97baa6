//! Builds: attempts, phases, ends, and what a commit that is known leads to.

use std::collections::BTreeSet;

use crate::{
    apply::testing::*,
    build::{
        AttemptEnd, Build, BuildFailure, BuildState, Cause, LiveAttempt, OpenBuild, Phase, PipelineLoad, QueuedBuild,
        QueuedByRef, Resources, RunnerLoad,
    },
    command::*,
    event::{EventKind, Subject},
    ids::BuildId,
    pipeline::Pipeline,
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
fn build_with_lost_attempts_is_requeued_three_times() {
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
fn unacknowledged_attempt_counts_when_it_is_lost() {
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
fn assignment_is_refused_beyond_the_concurrency_and_beside_a_live_attempt() {
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
fn commit_is_built_once_and_queued_build_is_superseded_by_a_newer_push() {
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
fn phase_that_ended_is_not_reported_again_and_never_goes_back() {
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
fn failed_phase_ends_the_build_in_every_phase() {
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
fn running_build_is_canceled_once_its_runner_has_stopped_it() {
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
fn canceled_build_that_succeeds_late_makes_no_release() {
    let (mut world, file) = World::with_fleet(2, &format!("{FILE}auto = [\"main\"]\n"));
    let build = world.request(1);
    reach(&mut world, build, 1, Phase::Upload);
    world.ok(BuildAction::Cancel { build });
    world.ok(BuildAction::Succeed { build, attempt: 1, artifact: artifact(1), file: Box::new(file), log: None });
    assert_eq!(state(&world, build), BuildState::Canceled);
    assert!(world.tables.scan::<OpenRollout>(&Scan::all(), 9).unwrap().is_empty());
}

#[test]
fn retry_is_refused_for_a_build_that_did_not_fail() {
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
fn imported_artifact_is_a_release_at_once() {
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
fn older_build_that_ends_later_does_not_replace_a_newer_one_automatically() {
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
fn automatic_deploy_that_cannot_start_leaves_nothing_behind() {
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

/// The indexes as the builds in state say that they must be.
fn check_indexes(world: &World) {
    let builds: Vec<Build> = world.tables.scan(&Scan::all(), 1000).unwrap();
    let open: Vec<&Build> = builds.iter().filter(|build| !build.state.is_end()).collect();
    let live: Vec<&Build> = open.iter().filter(|build| build.live_attempt().is_some()).copied().collect();
    let mut queued: Vec<_> = open.iter().filter(|build| build.live_attempt().is_none()).map(|build| build.id).collect();
    queued.sort();
    let found: Vec<OpenBuild> = world.tables.scan(&Scan::all(), 1000).unwrap();
    assert_eq!(found.iter().map(|open| open.build).collect::<Vec<_>>(), open.iter().map(|build| build.id).collect::<Vec<_>>());
    let found: Vec<QueuedBuild> = world.tables.scan(&Scan::all(), 1000).unwrap();
    assert!(found.is_sorted_by_key(|queued| queued.queued_at), "the longest waiting first");
    assert_eq!(found.iter().map(|queued| queued.build).collect::<BTreeSet<_>>(), queued.iter().copied().collect());
    let found: Vec<QueuedByRef> = world.tables.scan(&Scan::all(), 1000).unwrap();
    assert_eq!(found.iter().map(|queued| queued.build).collect::<BTreeSet<_>>(), queued.iter().copied().collect());
    let found: Vec<LiveAttempt> = world.tables.scan(&Scan::all(), 1000).unwrap();
    assert_eq!(found.iter().map(|live| live.build).collect::<Vec<_>>(), live.iter().map(|build| build.id).collect::<Vec<_>>());
    let load: Option<PipelineLoad> = world.tables.get(&key("shop")).unwrap();
    let counts = load.map_or((0, 0), |load| (load.open as usize, load.running as usize));
    assert_eq!(counts, (open.len(), live.len()));
    let load: Option<RunnerLoad> = world.tables.get(&key("r1")).unwrap();
    let cpu: u32 = live.iter().map(|build| build.resources.cpu_millis).sum();
    assert_eq!(load.map_or((0, 0), |load| (load.attempts as usize, load.resources.cpu_millis)), (live.len(), cpu));
}

#[test]
fn indexes_follow_builds_through_every_state() {
    let (mut world, file) = World::with_fleet(2, FILE);
    let mut pipeline: Pipeline = world.get(key("shop"));
    pipeline.concurrency = 2;
    world.put(&pipeline);
    let first = world.request(1);
    check_indexes(&world);
    take(&mut world, first, 1);
    check_indexes(&world);
    let superseded = other_branch(&mut world, 2);
    let second = other_branch(&mut world, 3);
    assert_eq!(world.get::<Build>(key(superseded.0)).state, BuildState::Superseded);
    check_indexes(&world);
    take(&mut world, second, 1);
    assert_eq!(world.get::<PipelineLoad>(key("shop")).running, 2);
    check_indexes(&world);
    world.ok(end(first, 1, lost()));
    check_indexes(&world);
    world.ok(BuildAction::Cancel { build: first });
    check_indexes(&world);
    world.ok(BuildAction::Cancel { build: second });
    world.ok(end(second, 1, AttemptEnd::Canceled));
    check_indexes(&world);
    world.release(4, &file);
    check_indexes(&world);
    assert_eq!(world.tables.get::<PipelineLoad>(&key("shop")).unwrap(), None);
}

#[test]
fn assignment_reads_the_same_number_of_records_whatever_is_open() {
    let reads = |open: u8| {
        let (mut world, _) = World::with_fleet(1, FILE);
        for number in 0..open {
            world.ok(push_to(&format!("b{number}"), number));
        }
        let build = world.request(200);
        let requested = world.reads;
        world.ok(BuildAction::Assign { build, runner: name("r1") });
        let assigned = world.reads;
        world.ok(BuildAction::Cancel { build });
        (requested, assigned, world.reads)
    };
    assert_eq!(reads(1), reads(100));
}

#[test]
fn batch_assigns_what_can_be_assigned_and_leaves_out_the_rest() {
    let (mut world, _) = World::with_fleet(1, FILE);
    let [first, second] = [push_to("a", 1), push_to("b", 2)].map(|push| match world.ok(push).outcome.subject {
        Subject::Build(id) => id,
        other => panic!("{other}"),
    });
    let assignments = vec![(first, name("r1")), (second, name("r1")), (first, name("r1")), (second, name("gone"))];
    let applied = world.ok(BuildAction::AssignBatch { assignments: assignments.clone() });
    let kinds: Vec<_> = applied.events.iter().map(|event| (event.kind, event.subject.clone())).collect();
    assert_eq!(kinds, [(EventKind::BuildAssigned, Subject::Build(first))], "its concurrency is one");
    check_indexes(&world);
    let many = assignments.into_iter().cycle().take(501).collect();
    assert_eq!(world.refused(BuildAction::AssignBatch { assignments: many }), "invalid");
}
