//! A small cluster in memory, for the tests of the rules: apply commands, look at state.

#![allow(missing_docs, clippy::unwrap_used)]

use std::{cell::Cell, collections::BTreeMap};

use roaring::RoaringBitmap;

use crate::{
    apply::{Applied, apply},
    build::{AttemptEnd, Cause, Phase, PhaseRecord, Resources},
    change::RecordingTables,
    clock::MonotonicTime,
    command::*,
    digest::Digest,
    event::{EventSeq, Subject},
    fleet::{
        Environment, PolicyLimits, PortRange, TargetInfo,
        observation::{Progress, Report, ReportOrigin, TargetReports},
    },
    ids::*,
    pipeline::{Pipeline, Retention, Source},
    pipeline_file::PipelineFile,
    principal::{Principal, Role},
    rejection::{Rejection, RuleError},
    release::uses::settle,
    repository::CommitId,
    rollout::{Deployment, Evidence, Gate, Purpose, Rollout, TargetSample, Verdict, assignment::desired, deployment_key},
    tables::{Key, MemoryTables, ReadTables, Record, Scan, Tables, TablesError, key},
    units::{ByteSize, Millis, Timestamp},
};

pub const FILE: &str = r#"
[build]
run = "make"
[package]
run = "make install"
[service.web]
command = ["bin/web"]
ports = { http = "auto" }
health = { port = "http", http = "/healthz" }
[deploy.production]
waves = [1, "50%", "100%"]
bake = "10s"
"#;

/// State, a clock and a log.
#[derive(Clone)]
pub struct World {
    pub tables: MemoryTables,
    pub index: u64,
    /// The true time. The leader's wall clock differs from it by `wall_offset`.
    pub now: Timestamp,
    /// In milliseconds.
    pub wall_offset: i64,
    pub applied: Vec<Applied>,
    /// How many records the last command read.
    pub reads: usize,
}

impl World {
    #[allow(clippy::new_without_default)] // a world has a pipeline and an environment: not the empty one that a default stands for
    pub fn new() -> Self {
        let mut world = Self {
            tables: MemoryTables::new(),
            index: 0,
            now: Timestamp(1_000_000),
            wall_offset: 0,
            applied: Vec::new(),
            reads: 0,
        };
        world.ok(ClusterAction::BeginEpoch { epoch: crate::cluster::Epoch(1), server: 1 });
        world
    }

    /// A pipeline `shop`, an environment `production`, a runner, and `count` targets in two zones that are connected.
    pub fn with_fleet(count: u32, file: &str) -> (Self, PipelineFile) {
        let mut world = Self::new();
        world.ok(PipelineAction::Create {
            name: name("shop"),
            source: Source::Remote("https://git.example/shop".into()),
            file: "swell.toml".into(),
            concurrency: 1,
            supersede: true,
            retention: Retention::default(),
        });
        world.ok(EnvironmentAction::Create {
            name: name("production"),
            selector: BTreeMap::new(),
            policy: PolicyLimits::default(),
        });
        let resources = Resources { cpu_millis: 4000, memory: ByteSize(8 << 30) };
        world.ok(FleetAction::RegisterRunner { name: name("r1"), resources });
        for number in 0..count {
            world.ok(FleetAction::Join { info: info(number) });
        }
        world.ok(FleetAction::Presence { server: 1, connected: (0..count).collect() });
        (world, PipelineFile::parse(file).unwrap())
    }

    pub fn propose(&mut self, command: Command) -> Result<Applied, Rejection> {
        self.index += 1;
        let mut tables = Savepoint { tables: &mut self.tables, undo: Vec::new(), reads: Cell::new(0) };
        let result = apply(&mut tables, EventSeq { index: self.index, ordinal: 0 }, &command);
        self.reads = tables.reads.get();
        match result {
            Ok(applied) => {
                self.applied.push(applied.clone());
                Ok(applied)
            }
            Err(RuleError::Rejected(rejection)) => {
                tables.roll_back();
                Err(rejection)
            }
            Err(RuleError::Tables(error)) => panic!("{error}"),
        }
    }

    pub fn command(&mut self, action: impl Into<Action>) -> Command {
        self.now.0 += 1000;
        let principal = Principal::new(Role::Developer, "ada");
        Command {
            action: action.into(),
            principal,
            at: Timestamp(self.now.0.saturating_add_signed(self.wall_offset)),
            monotonic: MonotonicTime { run: 1, elapsed: Millis(self.now.0) },
            idempotency_key: None,
            fingerprint: None,
            epoch: None,
            if_revision: None,
        }
    }

    pub fn try_apply(&mut self, action: impl Into<Action>) -> Result<Applied, Rejection> {
        let command = self.command(action);
        self.propose(command)
    }

    pub fn ok(&mut self, action: impl Into<Action>) -> Applied {
        self.try_apply(action).unwrap()
    }

    pub fn request(&mut self, commit: u8) -> BuildId {
        let applied = self.ok(request(commit));
        let Subject::Build(id) = applied.outcome.subject else { panic!("not a build") };
        id
    }

    /// Queues, runs and ends a build of `commit` with an artifact; returns its release.
    pub fn release(&mut self, commit: u8, file: &PipelineFile) -> ReleaseId {
        let build = self.request(commit);
        self.built(build, commit, file)
    }

    /// Runs and ends the queued `build` of `commit` with an artifact; returns its release.
    pub fn built(&mut self, build: BuildId, commit: u8, file: &PipelineFile) -> ReleaseId {
        self.ok(BuildAction::Assign { build, runner: name("r1") });
        self.ok(BuildAction::Acknowledge { build, attempt: 1, unisolated: None });
        for phase in Phase::ALL {
            self.ok(BuildAction::Progress { build, attempt: 1, phase: phase_record(phase) });
        }
        let artifact = artifact(commit);
        let file = Box::new(file.clone());
        self.ok(BuildAction::Succeed { build, attempt: 1, artifact, file, log: None });
        let kept: crate::build::Build = self.get(key(build.0));
        kept.release.unwrap()
    }

    pub fn start(&mut self, release: &ReleaseId, purpose: Purpose) -> Result<RolloutId, Rejection> {
        let (environment, release) = (name("production"), release.clone());
        let applied = self.try_apply(RolloutAction::Start { environment, release, purpose, why: None, if_plan: None })?;
        let Subject::Rollout(id) = applied.outcome.subject else { panic!("not a rollout") };
        Ok(id)
    }

    pub fn rollout(&self, id: RolloutId) -> Rollout {
        self.get(key(id.0))
    }

    pub fn get<R: Record>(&self, key: crate::tables::Key) -> R {
        self.tables.get(&key).unwrap().unwrap()
    }

    pub fn report(&mut self, target: u32, release: Option<&ReleaseId>, progress: Progress, serving: bool) {
        let report =
            Report { pipeline: name("shop"), release: release.cloned(), progress, serving, instances: Vec::new(), failure: None };
        let action = self.reports(vec![(target, report)]);
        self.ok(action);
    }

    /// Reports of the targets' only agents, newer than any before.
    pub fn reports(&self, reports: Vec<(u32, Report)>) -> FleetAction {
        let of = |(number, (target, report)): (usize, (u32, Report))| {
            let sequence = (self.index << 20) + number as u64;
            let origin = ReportOrigin { agent: AgentId(format!("agent-{target}")), incarnation: 1, sequence };
            TargetReports { target, origin, reports: vec![report] }
        };
        FleetAction::Report { targets: reports.into_iter().enumerate().map(of).collect() }
    }

    /// Writes `record` as a rule would: uses of releases are counted.
    pub fn put<R: Record>(&mut self, record: &R) {
        let mut recording = RecordingTables::new(&mut self.tables);
        recording.put(record).unwrap();
        settle(&mut recording, self.now).unwrap();
    }

    /// Changes the pipeline's retention.
    pub fn retain(&mut self, retention: Retention) {
        let pipeline: Pipeline = self.get(key("shop"));
        self.put(&Pipeline { retention, ..pipeline });
    }

    /// The rejection's code.
    pub fn refused(&mut self, action: impl Into<Action>) -> &'static str {
        self.try_apply(action).unwrap_err().code()
    }

    /// The targets of the present wave.
    pub fn wave_targets(&self, id: RolloutId) -> RoaringBitmap {
        let rollout = self.rollout(id);
        let environment: Environment = self.get(key(rollout.environment.as_str()));
        rollout.wave_targets(&environment.members)
    }

    /// Assigns every target of the present wave the release.
    pub fn change_wave(&mut self, id: RolloutId) {
        let targets = self.wave_targets(id) - self.rollout(id).sets.changed;
        self.ok(RolloutAction::ChangeTargets { rollout: id, targets, unreachable: Default::default() });
    }

    /// Records a verdict of the present gate.
    pub fn judge(&mut self, id: RolloutId, verdict: Verdict) -> Result<Applied, Rejection> {
        let Rollout { wave, gate, .. } = self.rollout(id);
        self.try_apply(RolloutAction::RecordVerdict { rollout: id, wave, gate, verdict, evidence: evidence(verdict) })
    }

    /// Takes the rollout to its end, with every target healthy.
    pub fn complete(&mut self, id: RolloutId) {
        while !self.rollout(id).state.is_end() {
            let rollout = self.rollout(id);
            if rollout.gate == Gate::Convergence {
                self.change_wave(id);
                for target in self.wave_targets(id) {
                    self.report(target, Some(&rollout.release), Progress::Healthy, true);
                }
            }
            self.judge(id, Verdict::Pass).unwrap();
        }
    }

    /// Deploys a release of `commit` to all targets.
    pub fn deployed(&mut self, commit: u8, file: &PipelineFile) -> ReleaseId {
        let release = self.release(commit, file);
        let id = self.start(&release, Purpose::Deploy).unwrap();
        self.complete(id);
        release
    }

    /// The release that a target is assigned.
    pub fn assigned(&self, target: u32) -> Option<ReleaseId> {
        let desired = desired(&self.tables, &self.get(key(target)), self.index).unwrap();
        desired.deployments.get(&name::<PipelineName>("shop")).map(|desired| desired.release.clone())
    }

    pub fn deployment(&self) -> Deployment {
        self.get(deployment_key(&name("production"), &name("shop")))
    }

    /// Every kind of event so far, with its transition.
    pub fn story(&self) -> Vec<String> {
        let events = self.applied.iter().flat_map(|applied| &applied.events);
        events
            .map(|event| format!("{} {} {}", event.subject, event.kind, event.to.clone().unwrap_or_default()).trim().to_owned())
            .collect()
    }
}

type Undo = Box<dyn FnOnce(&mut MemoryTables)>;

/// What storage does around a command: on a rejection, whatever was written is undone.
struct Savepoint<'t> {
    tables: &'t mut MemoryTables,
    undo: Vec<Undo>,
    reads: Cell<usize>,
}

impl Savepoint<'_> {
    fn roll_back(&mut self) {
        while let Some(undo) = self.undo.pop() {
            undo(self.tables);
        }
    }

    fn remember<R: Record>(&mut self, key: &Key) {
        let (before, key) = (self.tables.get::<R>(key).unwrap(), key.clone());
        self.undo.push(Box::new(move |tables| match before {
            Some(record) => tables.put(&record).unwrap(),
            None => tables.delete::<R>(&key).unwrap(),
        }));
    }
}

impl ReadTables for Savepoint<'_> {
    fn get<R: Record>(&self, key: &Key) -> Result<Option<R>, TablesError> {
        self.reads.set(self.reads.get() + 1);
        self.tables.get(key)
    }

    fn read_first<R: Record>(&self, scan: &Scan, limit: usize) -> Result<Vec<R>, TablesError> {
        let found = self.tables.read_first(scan, limit)?;
        self.reads.set(self.reads.get() + found.len());
        Ok(found)
    }
}

impl Tables for Savepoint<'_> {
    fn put<R: Record>(&mut self, record: &R) -> Result<(), TablesError> {
        self.remember::<R>(&record.key());
        self.tables.put(record)
    }

    fn delete<R: Record>(&mut self, key: &Key) -> Result<(), TablesError> {
        self.remember::<R>(key);
        self.tables.delete::<R>(key)
    }
}

pub fn name<N: std::str::FromStr<Err = IdError>>(text: &str) -> N {
    text.parse().unwrap()
}

pub fn commit(number: u8) -> CommitId {
    format!("{number:040x}").parse().unwrap()
}

pub fn request(number: u8) -> BuildAction {
    BuildAction::Request {
        pipeline: name("shop"),
        commit: commit(number),
        git_ref: "refs/heads/main".into(),
        cause: Cause::Push,
        again: false,
        resources: Resources::default(),
    }
}

pub fn artifact(number: u8) -> StoredArtifact {
    StoredArtifact {
        digest: Digest::of(&[number]),
        size: ByteSize(100),
        unpacked_size: ByteSize(200),
        manifest: Digest::of(&[number, 1]),
    }
}

pub fn phase_record(phase: Phase) -> PhaseRecord {
    let (started_at, ended_at) = (Timestamp(1), Some(Timestamp(2)));
    PhaseRecord { phase, started_at, ended_at, skipped: false, exit_code: Some(0), memory_peak: None, cpu_time: None }
}

/// Some evidence for a verdict.
pub fn evidence(verdict: Verdict) -> Evidence {
    match verdict {
        Verdict::Pass => Evidence::Converged { healthy: 1, failed: 0, down_before: 0, left_out: 0 },
        Verdict::Fail => {
            let failed = TargetSample { names: Vec::new(), count: 1 };
            Evidence::TooManyFailures { failed, max_failures: 0, cause: None }
        }
        Verdict::Overridden => Evidence::Promoted("it is fine".into()),
    }
}

pub fn lost() -> AttemptEnd {
    AttemptEnd::Lost("the runner is gone".into())
}

pub fn info(number: u32) -> TargetInfo {
    TargetInfo {
        name: name(&format!("web-{number}")),
        region: "eu".into(),
        zone: ["a", "b"][number as usize % 2].into(),
        labels: BTreeMap::new(),
        address: [10, 0, (number >> 8) as u8, number as u8].into(),
        ports: PortRange { first: 20_000, last: 20_099 },
        agent_version: "0".into(),
    }
}
