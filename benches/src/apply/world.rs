//! A cluster in memory: a fleet, a pipeline and its rollouts, made by commands as a server applies them. Measures one command at a time.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    ops::Range,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use swell_model::{
    apply::apply,
    build::Build,
    cluster::Epoch,
    command::{
        Action, BuildAction, ClusterAction, Command, EnvironmentAction, FleetAction, PipelineAction, RolloutAction,
        StoredArtifact,
    },
    digest::Digest,
    event::{EventSeq, Subject},
    fleet::{
        PolicyLimits, PortRange, TargetInfo,
        observation::{Progress, Report, ReportOrigin, TargetReports},
    },
    ids::{ReleaseId, RolloutId},
    pipeline::{Retention, Source},
    pipeline_file::PipelineFile,
    principal::Principal,
    rollout::{Evidence, Gate, Purpose, Rollout, Verdict},
    tables::{MemoryTables, ReadTables as _, key},
    units::{ByteSize, Millis, Timestamp},
    wire::AgentId,
};

use super::counting::CountingTables;

/// The environment of the whole fleet, and the pipeline that runs there.
pub const ENVIRONMENT: &str = "production";
const PIPELINE: &str = "shop";

/// All targets may change at once, and nobody waits.
const FILE: &str = "[service.web]\ncommand = [\"web\"]\nports = { http = \"auto\" }\nhealth = { http = \"/\" }\n\
                    [deploy.production]\nstrategy = \"rolling\"\nmax_unavailable = \"100%\"\n";

/// Targets that report in one batch while the world is set up.
const BATCH: u32 = 1000;

/// What one command cost.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    pub reads: u64,
    pub bytes: u64,
    pub time: Duration,
}

/// State and the log's end. A copy shares its records.
#[derive(Clone)]
pub struct World {
    tables: MemoryTables,
    index: u64,
    targets: u32,
    created: Option<Subject>,
}

impl World {
    /// A pipeline, an environment, and `targets` that are connected.
    pub fn with_fleet(targets: u32) -> Result<Self> {
        let mut world = Self { tables: MemoryTables::new(), index: 0, targets, created: None };
        world.apply(ClusterAction::BeginEpoch { epoch: Epoch(1), server: 1 }.into())?;
        let create = PipelineAction::Create {
            name: PIPELINE.parse()?,
            source: Source::Remote("https://git.example/shop".into()),
            file: "swell.toml".into(),
            concurrency: 1,
            supersede: true,
            retention: Retention::default(),
        };
        world.apply(create.into())?;
        let (name, policy) = (ENVIRONMENT.parse()?, PolicyLimits::default());
        world.apply(EnvironmentAction::Create { name, selector: BTreeMap::new(), policy }.into())?;
        for number in 0..targets {
            world.apply(FleetAction::Join { info: info(number)? }.into())?;
        }
        world.apply(FleetAction::Presence { server: 1, connected: (0..targets).collect() }.into())?;
        Ok(world)
    }

    /// Carries out one command.
    pub fn apply(&mut self, action: Action) -> Result<Cost> {
        self.index += 1;
        let command = Command {
            action,
            principal: Principal::system("bench"),
            at: Timestamp(self.index * 1000),
            monotonic: Default::default(),
            idempotency_key: None,
            fingerprint: None,
            epoch: None,
            if_revision: None,
        };
        let mut tables = CountingTables::new(std::mem::take(&mut self.tables));
        let began = Instant::now();
        let applied = apply(&mut tables, EventSeq { index: self.index, ordinal: 0 }, &command);
        let time = began.elapsed();
        let cost = Cost { reads: tables.reads.get(), bytes: tables.bytes, time };
        self.tables = tables.tables;
        self.created = Some(applied.map_err(|error| anyhow!("a command was refused: {error}"))?.outcome.subject);
        Ok(cost)
    }

    /// Makes a release of the `number`-th commit.
    pub fn import(&mut self, number: u8) -> Result<ReleaseId> {
        let file = PipelineFile::parse(FILE).map_err(|wrong| anyhow!("the pipeline file is wrong: {wrong:?}"))?;
        let artifact = StoredArtifact {
            digest: Digest::of(&[number]),
            size: ByteSize(100),
            unpacked_size: ByteSize(200),
            manifest: Digest::of(&[number, 1]),
        };
        let import = BuildAction::ImportArtifact {
            pipeline: PIPELINE.parse()?,
            commit: format!("{number:040x}").parse()?,
            git_ref: "HEAD".into(),
            artifact,
            file: Box::new(file),
        };
        self.apply(import.into())?;
        let Some(Subject::Build(id)) = self.created else { bail!("an import made {:?}", self.created) };
        let build: Build = self.tables.get(&key(id.0))?.context("a build without a record")?;
        build.release.context("an import without a release")
    }

    /// Starts moving the fleet to a release.
    pub fn start(&mut self, release: &ReleaseId) -> Result<RolloutId> {
        let environment = ENVIRONMENT.parse()?;
        let (release, purpose) = (release.clone(), Purpose::Deploy);
        self.apply(RolloutAction::Start { environment, release, purpose, why: None, if_plan: None }.into())?;
        match &self.created {
            Some(Subject::Rollout(id)) => Ok(*id),
            other => bail!("a rollout's start made {other:?}"),
        }
    }

    /// Takes a rollout to its end, with every target healthy.
    pub fn complete(&mut self, id: RolloutId) -> Result<()> {
        loop {
            let rollout: Rollout = self.tables.get(&key(id.0))?.context("a rollout without a record")?;
            if rollout.state.is_end() {
                return Ok(());
            }
            if rollout.gate == Gate::Convergence {
                let targets = (0..self.targets).collect();
                self.apply(RolloutAction::ChangeTargets { rollout: id, targets, unreachable: Default::default() }.into())?;
                for first in (0..self.targets).step_by(BATCH as usize) {
                    let batch = self.reports(first..self.targets.min(first + BATCH), &rollout.release, Progress::Healthy)?;
                    self.apply(batch.into())?;
                }
            }
            let (wave, gate) = (rollout.wave, rollout.gate);
            let evidence = Evidence::Baked { healthy: self.targets.into(), changed: self.targets.into(), duration: Millis(0) };
            let verdict = RolloutAction::RecordVerdict { rollout: id, wave, gate, verdict: Verdict::Pass, evidence };
            self.apply(verdict.into())?;
        }
    }

    /// What `targets` report of a release.
    pub fn reports(&self, targets: Range<u32>, release: &ReleaseId, progress: Progress) -> Result<FleetAction> {
        let pipeline = release.pipeline.clone();
        let of = |target: u32| {
            let report = Report {
                pipeline: pipeline.clone(),
                release: Some(release.clone()),
                progress,
                serving: true,
                instances: Vec::new(),
                failure: None,
            };
            let origin = ReportOrigin { agent: AgentId(format!("{target:032x}")), incarnation: 1, sequence: self.index };
            TargetReports { target, origin, reports: vec![report] }
        };
        Ok(FleetAction::Report { targets: targets.map(of).collect() })
    }
}

/// What target `number` says of itself.
pub fn info(number: u32) -> Result<TargetInfo> {
    Ok(TargetInfo {
        name: format!("target-{number}").parse()?,
        region: "region".into(),
        zone: format!("zone-{}", number % 3),
        labels: BTreeMap::new(),
        address: Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 1).to_bits() + number).into(),
        ports: PortRange::default(),
        agent_version: "0".into(),
    })
}
