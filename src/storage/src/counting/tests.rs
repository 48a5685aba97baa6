//! Counting is exact, and the cost of applying a command does not grow with the fleet.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::{codec::encode_key, state::Applied};
use swell_model::{
    apply::{
        apply,
        testing::{FILE, World, artifact, commit, name, phase_record, request},
    },
    build::{Cause, Phase, Resources},
    command::{Action, BuildAction, EnvironmentAction, FleetAction, PipelineAction, RepositoryAction, RolloutAction},
    digest::Digest,
    event::EventSeq,
    fleet::observation::{Progress, Report},
    pipeline::{Retention, Source},
    pipeline_file::PipelineFile,
    repository::{RefUpdate, Repository},
    rollout::Purpose,
    tables::{MemoryTables, key},
    units::{ByteSize, Timestamp},
};

fn repository(name: &str) -> Repository {
    Repository { name: name.parse().unwrap(), default_branch: "main".into(), next_bundle: 0, created_at: Timestamp(1) }
}

#[test]
fn counting_tables_count_every_access_and_change_nothing() {
    let mut tables = CountingTables::new(MemoryTables::new());
    let bytes = encode(&repository("one")).unwrap().len() as u64;
    tables.put(&repository("one")).unwrap();
    tables.put(&repository("two")).unwrap();
    assert_eq!(tables.counts(), Counts { writes: 2, written_bytes: 2 * bytes, ..Counts::default() });
    let before = tables.counts();
    assert_eq!(tables.get::<Repository>(&key("one")).unwrap(), Some(repository("one")));
    assert_eq!(tables.get::<Repository>(&key("none")).unwrap(), None);
    assert_eq!(tables.scan::<Repository>(&Scan::all(), 9).unwrap().len(), 2);
    let read = Counts { gets: 2, scans: 1, scanned_records: 2, read_bytes: 3 * bytes, ..Counts::default() };
    assert_eq!(tables.counts() - before, read);
    tables.delete::<Repository>(&key("one")).unwrap();
    assert_eq!(tables.counts().writes, 3);
    assert_eq!(tables.into_inner().scan::<Repository>(&Scan::all(), 9).unwrap(), [repository("two")]);
}

#[test]
fn bytes_are_those_that_state_keeps() {
    let dir = tempfile::TempDir::new().unwrap();
    let state = crate::StateStore::open(dir.path()).unwrap();
    let db = state.current();
    let mut tables = CountingTables::new(db.transaction());
    tables.put(&repository("one")).unwrap();
    let counted = tables.counts().written_bytes;
    tables.into_inner().commit(&Applied::default()).unwrap();
    let family = db.rocks().cf_handle("repositories").unwrap();
    let kept = db.rocks().get_cf(family, encode_key(&key("one")).unwrap()).unwrap().unwrap();
    assert_eq!(kept.len() as u64, counted);
}

/// Targets at 1×; pipelines with a queued build are half as many.
const TARGETS: u32 = 20;

/// Commands that cost more in a larger fleet today, with the finding that says why (its row in the list of costs that grow). A row leaves
/// this list with the change that makes it flat: the test fails when a command in it does not grow any more. Nothing may be added.
const GROWING: &[(&str, &str)] = &[
    ("report of one target", "9: the open rollout is one record with every target in its sets"),
    ("presence without one target", "7: a server's connected targets are one record"),
    ("freeze", "7: an environment's members are in its record"),
    ("rollout start", "8: the plan is made inside, with a lease of ports for each target"),
    ("wave start", "9: the open rollout is one record with every target in its sets"),
];

/// A fleet of `scale` times [`TARGETS`] that runs one release and is about to get another, and a queue of builds.
fn world(scale: u32) -> (World, PipelineFile) {
    let (mut world, file) = World::with_fleet(TARGETS * scale, FILE);
    for number in 0..TARGETS / 2 * scale {
        let pipeline = format!("other-{number}");
        world.ok(PipelineAction::Create {
            name: name(&pipeline),
            source: Source::Remote("https://git.example/other".into()),
            file: "swell.toml".into(),
            concurrency: 1,
            supersede: true,
            retention: Retention::default(),
        });
        world.ok(BuildAction::Request {
            pipeline: name(&pipeline),
            commit: commit(1),
            git_ref: "refs/heads/main".into(),
            cause: Cause::Push,
            again: false,
            resources: Resources::default(),
        });
    }
    world.ok(RepositoryAction::Create { name: name("site"), default_branch: "main".into() });
    world.deployed(1, &file);
    (world, file)
}

/// Prepares a world for a command and returns it.
type Prepare = fn(&mut World, &PipelineFile) -> Action;

fn queued(world: &mut World) -> swell_model::ids::BuildId {
    world.request(9)
}

fn running(world: &mut World) -> swell_model::ids::BuildId {
    let build = queued(world);
    world.ok(BuildAction::Assign { build, runner: name("r1") });
    world.ok(BuildAction::Acknowledge { build, attempt: 1, unisolated: None });
    build
}

fn rolling(world: &mut World, file: &PipelineFile) -> swell_model::ids::RolloutId {
    let release = world.release(2, file);
    world.start(&release, Purpose::Deploy).unwrap()
}

const COMMANDS: &[(&str, Prepare)] = &[
    ("report of one target", |world, file| {
        let id = rolling(world, file);
        world.change_wave(id);
        let target = world.wave_targets(id).min().unwrap();
        let release = Some(world.rollout(id).release);
        let report = Report {
            pipeline: name("shop"),
            release,
            progress: Progress::Healthy,
            serving: true,
            instances: Vec::new(),
            failure: None,
        };
        world.reports(vec![(target, report)]).into()
    }),
    ("presence without one target", |world, _| {
        let count = world.index_of_targets();
        FleetAction::Presence { server: 1, connected: (1..count).collect() }.into()
    }),
    ("build request", |_, _| request(9).into()),
    ("build assign", |world, _| BuildAction::Assign { build: queued(world), runner: name("r1") }.into()),
    ("build progress", |world, _| {
        let build = running(world);
        BuildAction::Progress { build, attempt: 1, phase: phase_record(Phase::ALL[0]) }.into()
    }),
    ("build end", |world, file| {
        let build = running(world);
        for phase in Phase::ALL {
            world.ok(BuildAction::Progress { build, attempt: 1, phase: phase_record(phase) });
        }
        BuildAction::Succeed { build, attempt: 1, artifact: artifact(9), file: Box::new(file.clone()), log: None }.into()
    }),
    ("push", |_, _| {
        let update = RefUpdate { name: "refs/heads/main".into(), old: None, new: Some(commit(1)) };
        let bundle = Some((Digest::of(b"bundle"), ByteSize(77)));
        RepositoryAction::Push { repository: name("site"), updates: vec![update], bundle }.into()
    }),
    ("cordon", |_, _| FleetAction::Cordon { name: name("web-3"), why: "its disk is replaced".into() }.into()),
    ("freeze", |_, _| EnvironmentAction::Freeze { name: name("production"), why: "holidays".into() }.into()),
    ("rollout start", |world, file| {
        let release = world.release(2, file);
        let environment = name("production");
        RolloutAction::Start { environment, release, purpose: Purpose::Deploy, why: None, if_plan: None }.into()
    }),
    ("wave start", |world, file| {
        let rollout = rolling(world, file);
        let targets = world.wave_targets(rollout);
        assert_eq!(targets.len(), 1, "the first wave is as large in every fleet");
        RolloutAction::ChangeTargets { rollout, targets, unreachable: Default::default() }.into()
    }),
];

trait Fleet {
    fn index_of_targets(&self) -> u32;
}

impl Fleet for World {
    /// The number that the next target gets.
    fn index_of_targets(&self) -> u32 {
        self.get::<swell_model::cluster::Cluster>(Key::all()).next_target
    }
}

fn counts_of(prepare: Prepare, (world, file): &(World, PipelineFile)) -> Counts {
    let mut world = world.clone();
    let action = prepare(&mut world, file);
    let command = world.command(action);
    let mut tables = CountingTables::new(world.tables);
    apply(&mut tables, EventSeq { index: world.index + 1, ordinal: 0 }, &command).unwrap();
    tables.counts()
}

fn operations(counts: Counts) -> u64 {
    counts.gets + counts.scanned_records + counts.writes
}

fn bytes(counts: Counts) -> u64 {
    counts.read_bytes + counts.written_bytes
}

/// A few records and bytes more are no growth: a number takes another byte, a name a digit more.
fn grows(small: Counts, large: Counts) -> bool {
    operations(large) > operations(small) + 4 || bytes(large) > bytes(small) * 5 / 4
}

#[test]
fn apply_cost_does_not_grow_with_the_fleet() {
    let worlds = [1, 10, 50].map(world);
    let mut wrong = Vec::new();
    println!("{:28} {:>24} {:>24} {:>24}", "command", "1x", "10x", "50x");
    for (command, prepare) in COMMANDS {
        let counts = worlds.each_ref().map(|world| counts_of(*prepare, world));
        let shown = counts.map(|counts| format!("{} records, {} B", operations(counts), bytes(counts)));
        println!("{command:28} {:>24} {:>24} {:>24}", shown[0], shown[1], shown[2]);
        let grows = grows(counts[0], counts[2]);
        let listed = GROWING.iter().any(|(growing, _)| growing == command);
        match (grows, listed) {
            (true, false) => wrong.push(format!("`{command}` costs more in a larger fleet: {shown:?}")),
            (false, true) => wrong.push(format!("`{command}` is flat now: take it off the list, so that it stays flat")),
            _ => {}
        }
    }
    assert!(
        GROWING.iter().all(|(growing, _)| COMMANDS.iter().any(|(command, _)| command == growing)),
        "a listed command is not tried"
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
