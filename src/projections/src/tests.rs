//! For random histories, updating a projection change by change gives what starting over gives.

use roaring::RoaringBitmap;

use swell_model::{
    apply::testing::{FILE, World, artifact, info, lost, name, phase_record},
    build::{AttemptEnd, Build, OpenBuild, Phase},
    change::{AppliedBatch, Change},
    command::*,
    fleet::{
        Target,
        observation::{Observation, Progress, Report},
    },
    ids::*,
    pipeline_file::PipelineFile,
    rollout::{OpenRollout, Purpose, Rollout, RolloutState, Verdict, assignment::DesiredReader},
    tables::{ReadTables, Scan, key},
};

use crate::{
    assignments::Assignments,
    build_queue::BuildQueue,
    event_tail::{EventTail, Read},
    observations::Observations,
    open_rollouts::OpenRollouts,
    presence::Presence,
    targets::Targets,
};

/// Histories tried, and commands in each.
const HISTORIES: u64 = 40;
const COMMANDS: u64 = 200;

/// A small generator of random numbers (splitmix64); a seed repeats a history.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    fn some_of(&mut self, targets: &RoaringBitmap) -> RoaringBitmap {
        targets.iter().filter(|_| self.below(2) == 0).collect()
    }
}

struct History {
    world: World,
    random: Random,
    file: PipelineFile,
    releases: Vec<ReleaseId>,
    commits: u8,
}

impl History {
    fn new(seed: u64) -> Self {
        let (world, file) = World::with_fleet(6, FILE);
        Self { world, random: Random(seed), file, releases: Vec::new(), commits: 0 }
    }

    /// What was applied since this was last called.
    fn applied_since(&self, from: usize) -> Vec<AppliedBatch> {
        let batch = |(number, applied): (usize, &swell_model::apply::Applied)| AppliedBatch {
            index: 1000 + (from + number) as u64,
            changes: applied.changes.clone(),
            events: applied.events.iter().cloned().map(std::sync::Arc::new).collect(),
        };
        self.world.applied[from..].iter().enumerate().map(batch).collect()
    }

    /// Tries something; the rules refuse much of it.
    fn step(&mut self) {
        let open: Vec<OpenRollout> = self.world.tables.scan(&Scan::all(), 100).unwrap();
        let pick = self.random.below(open.len().max(1) as u64) as usize;
        let rollout: Option<Rollout> = open.get(pick).map(|open| self.world.get(key(open.rollout.0)));
        let target = self.random.below(8) as u32;
        match self.random.below(14) {
            0 => self.attempt(FleetAction::Join { info: info(target) }),
            1 => {
                let connected = self.random.some_of(&(0..6).collect());
                let server = 1 + self.random.below(2);
                self.attempt(FleetAction::Presence { server, connected });
            }
            2 => {
                let target = info(target).name;
                if self.random.below(2) == 0 {
                    self.attempt(FleetAction::Cordon { name: target, why: "disk".into() });
                } else {
                    self.attempt(FleetAction::Uncordon { name: target });
                }
            }
            3 if self.commits < 100 => self.release(),
            4 => self.build(),
            5 => {
                let pick = self.random.below(self.releases.len().max(1) as u64) as usize;
                let purpose = if self.random.below(4) == 0 { Purpose::Rollback } else { Purpose::Deploy };
                if let Some(release) = self.releases.get(pick).cloned() {
                    self.world.start(&release, purpose).ok();
                }
            }
            6..=8 => {
                if let Some(rollout) = rollout.filter(|rollout| rollout.state.is_forward()) {
                    let wave = self.world.wave_targets(rollout.id) - rollout.sets.changed;
                    let targets = self.random.some_of(&wave);
                    let unreachable = RoaringBitmap::new();
                    self.attempt(RolloutAction::ChangeTargets { rollout: rollout.id, targets, unreachable });
                }
            }
            9 | 10 => self.report(target, rollout.as_ref()),
            11 => {
                if let Some(rollout) = rollout {
                    let verdict = if self.random.below(4) == 0 { Verdict::Fail } else { Verdict::Pass };
                    self.world.judge(rollout.id, verdict).ok();
                }
            }
            12 => {
                if let Some(rollout) = rollout.filter(|rollout| rollout.state == RolloutState::RollingBack) {
                    let targets = self.random.some_of(&rollout.touched());
                    self.attempt(RolloutAction::RevertTargets { rollout: rollout.id, targets });
                    let unreachable = RoaringBitmap::new();
                    self.attempt(RolloutAction::FinishRollback { rollout: rollout.id, unreachable });
                }
            }
            _ => match rollout {
                Some(rollout) if self.random.below(4) == 0 => {
                    self.attempt(RolloutAction::Abort { rollout: rollout.id, why: "no".into() });
                }
                Some(rollout) => {
                    self.attempt(RolloutAction::Unblock { rollout: rollout.id });
                    self.attempt(RolloutAction::Promote { rollout: rollout.id, why: "yes".into() });
                }
                None => {}
            },
        }
    }

    fn attempt(&mut self, action: impl Into<Action>) {
        self.world.try_apply(action).ok();
    }

    /// Builds the next commit, where the pipeline's concurrency allows.
    fn release(&mut self) {
        self.commits += 1;
        let build = self.world.request(self.commits);
        self.attempt(BuildAction::Assign { build, runner: name("r1") });
        self.attempt(BuildAction::Acknowledge { build, attempt: 1, unisolated: None });
        for phase in Phase::ALL {
            self.attempt(BuildAction::Progress { build, attempt: 1, phase: phase_record(phase) });
        }
        let (artifact, file) = (artifact(self.commits), Box::new(self.file.clone()));
        self.attempt(BuildAction::Succeed { build, attempt: 1, artifact, file, log: None });
        let kept: Build = self.world.get(key(build.0));
        self.releases.extend(kept.release);
    }

    fn build(&mut self) {
        let open: Vec<OpenBuild> = self.world.tables.scan(&Scan::all(), 10).unwrap();
        if let Some(build) = open.first().map(|open| open.build) {
            let attempt = self.world.get::<Build>(key(build.0)).live_attempt().map_or(1, |attempt| attempt.number);
            self.attempt(BuildAction::Cancel { build });
            self.attempt(BuildAction::End { build, attempt, end: AttemptEnd::Canceled, log: None });
            return;
        }
        if self.commits > 100 {
            return;
        }
        self.commits += 1;
        let build = self.world.request(self.commits);
        if self.random.below(3) == 0 {
            return;
        }
        self.attempt(BuildAction::Assign { build, runner: name("r1") });
        self.attempt(BuildAction::Acknowledge { build, attempt: 1, unisolated: None });
        match self.random.below(6) {
            0 => self.attempt(BuildAction::Progress { build, attempt: 1, phase: phase_record(Phase::Checkout) }),
            1 => self.attempt(BuildAction::End { build, attempt: 1, end: lost(), log: None }),
            _ => {
                self.attempt(BuildAction::Cancel { build });
                self.attempt(BuildAction::End { build, attempt: 1, end: AttemptEnd::Canceled, log: None });
            }
        }
    }

    fn report(&mut self, target: u32, rollout: Option<&Rollout>) {
        let progress =
            [Progress::Fetching, Progress::Healthy, Progress::Failed, Progress::Stopped][self.random.below(4) as usize];
        let release = rollout.map(|rollout| rollout.release.clone());
        let serving = progress == Progress::Healthy;
        let report = Report { pipeline: name("shop"), release, progress, serving, instances: Vec::new(), failure: None };
        let action = self.world.reports(vec![(target, report)]);
        self.attempt(action);
    }
}

/// Gives `check` each batch of random histories, with the world after it or, for all but the last of a step (`false`), later.
fn for_each_batch(mut check: impl FnMut(u64, &mut Option<Projections>, &AppliedBatch, &World, bool)) {
    for seed in 0..HISTORIES {
        let mut history = History::new(seed);
        let mut projections = None;
        for _ in 0..COMMANDS {
            let from = history.world.applied.len();
            history.step();
            let batches = history.applied_since(from);
            for (number, batch) in batches.iter().enumerate() {
                check(seed, &mut projections, batch, &history.world, number + 1 == batches.len());
            }
        }
    }
}

#[derive(Debug)]
struct Projections {
    assignments: Assignments,
    observations: Observations,
    presence: Presence,
    targets: Targets,
    rollouts: OpenRollouts,
    queue: BuildQueue,
}

impl Projections {
    fn from(world: &World) -> Self {
        Self {
            assignments: Assignments::from_tables(&world.tables, world.index).unwrap(),
            observations: Observations::from_tables(&world.tables).unwrap(),
            presence: Presence::from_tables(&world.tables).unwrap(),
            targets: Targets::from_tables(&world.tables).unwrap(),
            rollouts: OpenRollouts::from_tables(&world.tables).unwrap(),
            queue: BuildQueue::from_tables(&world.tables).unwrap(),
        }
    }
}

#[test]
fn projections_that_are_updated_equal_projections_that_start_over() {
    let (mut compared, mut moved, mut rollouts_seen) = (0, 0, 0);
    for_each_batch(|seed, projections, batch, world, is_last| {
        let Some(held) = projections else {
            *projections = is_last.then(|| Projections::from(world));
            return;
        };
        moved += held.assignments.update(batch, &world.tables).unwrap().len();
        held.observations.update(batch);
        held.presence.update(batch);
        held.targets.update(batch);
        held.rollouts.update(batch);
        held.queue.update(batch);
        if !is_last {
            return;
        }
        compared += 1;
        rollouts_seen += held.rollouts.ids().count();
        let fresh = Projections::from(world);
        let mut assignments = fresh.assignments;
        assignments.at_index(held.assignments.generation().index);
        assert_eq!(held.assignments, assignments, "seed {seed}, {batch:?}");
        assert_eq!(held.observations, fresh.observations, "seed {seed}, {batch:?}");
        assert_eq!(held.presence, fresh.presence, "seed {seed}, {batch:?}");
        assert_eq!(held.targets, fresh.targets, "seed {seed}, {batch:?}");
        assert_eq!(held.rollouts, fresh.rollouts, "seed {seed}, {batch:?}");
        assert_eq!(held.queue, fresh.queue, "seed {seed}, {batch:?}");
    });
    assert!(compared > 1000 && moved > 500 && rollouts_seen > 500, "{compared} {moved} {rollouts_seen}");
}

#[test]
fn assignments_say_what_the_rules_say_and_name_every_target_that_changes() {
    let mut before: Vec<Option<swell_model::digest::Digest>> = Vec::new();
    for_each_batch(|seed, projections, batch, world, is_last| {
        let Some(held) = projections else {
            let fresh = Projections::from(world);
            before = (0..10).map(|target| fresh.assignments.hash(target)).collect();
            *projections = is_last.then_some(fresh);
            return;
        };
        let changed = held.assignments.update(batch, &world.tables).unwrap();
        for target in 0..10 {
            let now = held.assignments.hash(target);
            assert!(now == before[target as usize] || changed.contains(target), "seed {seed}: {target} changed in {batch:?}");
            before[target as usize] = now;
        }
        if !is_last {
            return;
        }
        let mut reader = DesiredReader::new(&world.tables, held.assignments.generation().index).unwrap();
        for target in world.tables.scan::<Target>(&Scan::all(), 100).unwrap() {
            let (rules, held) = (reader.of(&target).unwrap(), &held.assignments);
            assert_eq!(held.hash(target.index), Some(rules.hash()), "seed {seed}");
            assert_eq!(held.desired(target.index), Some(rules), "seed {seed}");
        }
    });
}

#[test]
fn rollout_step_changes_the_assignments_of_its_targets_alone() {
    let (mut world, file) = World::with_fleet(50, FILE);
    world.deployed(1, &file);
    let release = world.release(2, &file);
    let id = world.start(&release, Purpose::Deploy).unwrap();
    let mut assignments = Assignments::from_tables(&world.tables, world.index).unwrap();
    let wave = world.wave_targets(id);
    let applied = world.ok(RolloutAction::ChangeTargets { rollout: id, targets: wave.clone(), unreachable: Default::default() });
    let batch = AppliedBatch { index: world.index, changes: applied.changes, events: Vec::new() };
    assert_eq!(assignments.update(&batch, &world.tables).unwrap(), wave);
    let target = wave.min().unwrap();
    let report = Report {
        pipeline: name("shop"),
        release: Some(release),
        progress: Progress::Healthy,
        serving: true,
        instances: Vec::new(),
        failure: None,
    };
    let action = world.reports(vec![(target, report)]);
    let applied = world.ok(action);
    assert!(applied.changes.iter().any(|change| matches!(change, Change::Rollout(_))), "its progress is recorded");
    let batch = AppliedBatch { index: world.index, changes: applied.changes, events: Vec::new() };
    assert!(assignments.update(&batch, &world.tables).unwrap().is_empty(), "progress changes nobody's desired state");
}

#[test]
fn observations_hash_equals_the_sum_over_reports() {
    let mut history = History::new(7);
    (0..COMMANDS).for_each(|_| history.step());
    let observations = Observations::from_tables(&history.world.tables).unwrap();
    let mut known: std::collections::BTreeMap<u32, swell_model::fleet::observation::ReportsHash> = Default::default();
    history
        .world
        .tables
        .for_each(Scan::all(), |seen: Observation| known.entry(seen.target).or_default().add(&seen.report))
        .unwrap();
    assert!(!known.is_empty());
    known.into_iter().for_each(|(target, hash)| assert_eq!(observations.hash(target), hash));
}

#[test]
fn event_tail_serves_what_it_keeps_and_says_what_it_does_not() {
    const EVENTS_MAX: usize = 20;
    let mut history = History::new(3);
    let from = history.world.applied.len();
    let start = history.world.applied.last().unwrap().outcome.last_event;
    let mut tail = EventTail::new(start, EVENTS_MAX, 1 << 20, |event| event.kind.to_string().into_bytes());
    (0..COMMANDS).for_each(|_| history.step());
    let batches = history.applied_since(from);
    let all: Vec<_> = batches.iter().flat_map(|batch| batch.events.clone()).collect();
    assert!(all.len() > 2 * EVENTS_MAX);
    assert_eq!(tail.read(start, 5), Read::Events(Vec::new()));
    batches.iter().for_each(|batch| tail.update(batch));
    assert_eq!(tail.read(start, 5), Read::OlderThanKept);
    let kept = &all[all.len() - EVENTS_MAX..];
    let before = all[all.len() - EVENTS_MAX - 1].seq;
    let events = |read| match read {
        Read::Events(events) => events.into_iter().map(|kept| kept.event).collect::<Vec<_>>(),
        Read::OlderThanKept => panic!("dropped too early"),
    };
    assert_eq!(events(tail.read(before, 1000)), kept);
    assert_eq!(events(tail.read(before, 3)), kept[..3]);
    assert_eq!(events(tail.read(tail.last(), 3)), []);
    for event in kept {
        let expected: Vec<_> = kept.iter().filter(|other| other.subject == event.subject).cloned().collect();
        assert_eq!(events(tail.read_subject(&event.subject, before, 1000)), expected);
        let after: Vec<_> = expected.iter().filter(|other| other.seq > event.seq).cloned().collect();
        assert_eq!(events(tail.read_subject(&event.subject, event.seq, 1000)), after);
    }
}

#[test]
fn event_tail_is_bounded_in_bytes() {
    let mut history = History::new(4);
    let start = history.world.applied.last().unwrap().outcome.last_event;
    let mut tail = EventTail::new(start, 1000, 1000, |_| vec![0; 100]);
    let from = history.world.applied.len();
    (0..COMMANDS).for_each(|_| history.step());
    let batches = history.applied_since(from);
    batches.iter().for_each(|batch| tail.update(batch));
    let last = batches.iter().flat_map(|batch| &batch.events).rev().nth(10).unwrap().seq;
    assert!(matches!(tail.read(last, 100), Read::Events(events) if events.len() == 10));
}
