//! One simulated target: what it should run, what its instances do, and which reports a server has not acknowledged. A pure state machine
//! of desired states, acknowledgements and time; must not know of sockets or of other targets.
//!
//! Instances behave as their service's environment says ([`START_MS`], [`FAIL_PERCENT`], [`STALL_PERCENT`]), so that a release's pipeline file decides, on
//! every target the same for the same seed. As a real agent's would, a new instance starts beside the old one, which serves until the
//! new one is healthy and drains until gateways no longer route to it.

use std::{
    collections::{BTreeMap, VecDeque},
    mem,
};

use swell_model::{
    digest::Digest,
    fleet::{
        TargetInfo,
        observation::{InstanceObserved, InstanceState, Progress, Report, ReportsHash, TargetFailure},
    },
    ids::{PipelineName, PortName, ReleaseId, ServiceName},
    rollout::assignment::{DesiredRelease, DesiredTarget, Generation},
    wire::{AgentHello, AgentId, PROTOCOL_VERSION},
};

use crate::counters::Notice;

/// Environment variable of a service: how long its instances take until they are healthy, in milliseconds.
pub const START_MS: &str = "SIMULATED_START_MS";

/// Environment variable of a service: the share of targets on which its instances never become healthy, 0 to 100.
pub const FAIL_PERCENT: &str = "SIMULATED_FAIL_PERCENT";

/// Environment variable of a service: the share of targets, besides, on which its instances neither become healthy nor fail, 0 to 100.
pub const STALL_PERCENT: &str = "SIMULATED_STALL_PERCENT";

/// How long an instance that left waits for gateways, in milliseconds, should no server say that they know.
const DRAIN_MAX_MS: u64 = 10_000;

/// Output that a failure carries, in bytes: what a crashing program prints.
const FAILURE_OUTPUT_BYTES: usize = 1024;

/// A message with reports that was not acknowledged yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Place in the incarnation's order, from 1.
    pub sequence: u64,
    pub reports: Vec<Report>,
}

/// A simulated target.
#[derive(Debug)]
pub struct SimulatedTarget {
    info: TargetInfo,
    agent: AgentId,
    seed: u64,
    following: Generation,
    desired_hash: Option<Digest>,
    pipelines: BTreeMap<PipelineName, Pipeline>,
    outbox: Vec<PipelineName>,
    unacknowledged: VecDeque<Message>,
    last_sequence: u64,
    notices: Vec<Notice>,
}

#[derive(Debug, Default)]
struct Pipeline {
    wanted: Option<ReleaseId>,
    current: Option<Running>,
    starting: Option<Starting>,
    draining: Option<Draining>,
    failed: bool,
    latest: Option<Report>,
}

/// The instances of a release.
#[derive(Debug, Clone)]
struct Running {
    release: ReleaseId,
    ports: Vec<(ServiceName, BTreeMap<PortName, u16>)>,
}

#[derive(Debug)]
struct Starting {
    instances: Running,
    /// When it is healthy or has failed; `None`: never.
    until: Option<u64>,
    fails: bool,
}

#[derive(Debug)]
struct Draining {
    instances: Running,
    /// Message that said that it no longer serves.
    sequence: u64,
    until: u64,
}

impl SimulatedTarget {
    /// A target that runs nothing. `seed` decides together with a release whether its instances fail here.
    pub fn new(info: TargetInfo, agent: AgentId, seed: u64) -> Self {
        Self {
            info,
            agent,
            seed,
            following: Generation::default(),
            desired_hash: None,
            pipelines: BTreeMap::new(),
            outbox: Vec::new(),
            unacknowledged: VecDeque::new(),
            last_sequence: 0,
            notices: Vec::new(),
        }
    }

    /// The first message of a session.
    pub fn hello(&self) -> AgentHello {
        let mut reports_hash = ReportsHash::default();
        self.pipelines.values().filter_map(|pipeline| pipeline.latest.as_ref()).for_each(|report| reports_hash.add(report));
        AgentHello {
            version: PROTOCOL_VERSION,
            info: self.info.clone(),
            agent: self.agent.clone(),
            incarnation: 1,
            following: self.following,
            desired_hash: self.desired_hash,
            reports_hash,
        }
    }

    /// A session is open. Returns what must be sent again, in order; unless the server knows all reports, the others are due too.
    pub fn welcomed(&mut self, reports_known: bool) -> Vec<Message> {
        if !reports_known {
            let is_on_its_way = |name: &PipelineName| {
                self.unacknowledged.iter().flat_map(|message| &message.reports).any(|r| r.pipeline == *name)
            };
            let said = self.pipelines.iter().filter(|(_, pipeline)| pipeline.latest.is_some()).map(|(name, _)| name);
            let missing: Vec<_> = said.filter(|name| !is_on_its_way(name) && !self.outbox.contains(name)).cloned().collect();
            self.outbox.extend(missing);
        }
        self.unacknowledged.iter().cloned().collect()
    }

    /// Follows a desired state from `now` on, unless it is older than the one before.
    pub fn follow(&mut self, desired: &DesiredTarget, now: u64) {
        if desired.generation < self.following {
            return;
        }
        self.following = desired.generation;
        self.desired_hash = Some(desired.hash());
        let gone: Vec<_> = self.pipelines.keys().filter(|name| !desired.deployments.contains_key(*name)).cloned().collect();
        for name in gone {
            if self.pipelines.get(&name).is_some_and(|pipeline| pipeline.wanted.is_some()) {
                self.notices.push(Notice::Removed(name.clone()));
                self.pipelines.insert(name.clone(), Pipeline::default());
                self.report(&name);
            }
        }
        for (name, release) in &desired.deployments {
            let pipeline = self.pipelines.entry(name.clone()).or_default();
            if pipeline.wanted.as_ref() != Some(&release.release) {
                self.notices.push(Notice::Assigned(release.release.clone()));
                pipeline.want(release, self.seed, now);
                self.settled(name);
            }
        }
    }

    /// Lets time pass until `now`: instances become healthy, fail, or end.
    pub fn advance(&mut self, now: u64) {
        let due: Vec<_> = self.pipelines.iter().filter(|(_, pipeline)| pipeline.due().is_some_and(|at| at <= now)).collect();
        let due: Vec<_> = due.into_iter().map(|(name, _)| name.clone()).collect();
        for name in due {
            let next = self.last_sequence + 1;
            if let Some(pipeline) = self.pipelines.get_mut(&name) {
                pipeline.advance(now, next);
            }
            self.settled(&name);
        }
    }

    /// When [`SimulatedTarget::advance`] has something to do next.
    pub fn due(&self) -> Option<u64> {
        self.pipelines.values().filter_map(Pipeline::due).min()
    }

    /// The next message to send, if something is to be reported. It is kept until it is acknowledged.
    pub fn take_message(&mut self) -> Option<Message> {
        if self.outbox.is_empty() {
            return None;
        }
        let names = mem::take(&mut self.outbox);
        let reports = names.iter().filter_map(|name| self.pipelines.get(name)?.latest.clone()).collect();
        self.last_sequence += 1;
        let message = Message { sequence: self.last_sequence, reports };
        self.unacknowledged.push_back(message.clone());
        Some(message)
    }

    /// Reports up to `sequence` are applied.
    pub fn acknowledged(&mut self, sequence: u64) {
        self.unacknowledged.retain(|message| message.sequence > sequence);
    }

    /// Gateways obey routes that take reports up to `sequence` into account: what drains since then may end.
    pub fn routed(&mut self, sequence: u64) {
        let mut ended = Vec::new();
        for (name, pipeline) in &mut self.pipelines {
            if pipeline.draining.as_ref().is_some_and(|draining| draining.sequence <= sequence) {
                pipeline.draining = None;
                ended.push(name.clone());
            }
        }
        ended.iter().for_each(|name| self.report(name));
    }

    /// What happened since the last call.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        mem::take(&mut self.notices)
    }

    fn settled(&mut self, name: &PipelineName) {
        let Some(pipeline) = self.pipelines.get(name) else { return };
        let before = pipeline.latest.as_ref().map(|report| (report.release.clone(), report.progress));
        let progress = pipeline.progress();
        if before != Some((pipeline.wanted.clone(), progress))
            && let Some(release) = pipeline.wanted.clone()
        {
            match progress {
                Progress::Healthy => self.notices.push(Notice::Healthy(release)),
                Progress::Failed => self.notices.push(Notice::Failed(release)),
                _ => {}
            }
        }
        self.report(name);
    }

    /// Notes that the pipeline's report is to be sent, if it changed.
    fn report(&mut self, name: &PipelineName) {
        let Some(pipeline) = self.pipelines.get_mut(name) else { return };
        let report = pipeline.report(name);
        if pipeline.latest.as_ref() == Some(&report) {
            return;
        }
        pipeline.latest = Some(report);
        if !self.outbox.contains(name) {
            self.outbox.push(name.clone());
        }
    }
}

impl Pipeline {
    fn want(&mut self, release: &DesiredRelease, seed: u64, now: u64) {
        self.wanted = Some(release.release.clone());
        self.failed = false;
        self.starting = None;
        // Going back to what still runs only turns the switch.
        if self.current.as_ref().is_some_and(|current| current.release == release.release) {
            return;
        }
        if let Some(draining) = self.draining.take_if(|draining| draining.instances.release == release.release) {
            let replaced = self.current.replace(draining.instances);
            self.draining = replaced.map(|instances| Draining { instances, sequence: 0, until: now });
            return;
        }
        let behavior = Behavior::of(release);
        let fails = is_chosen(seed, &release.release, behavior.fail_percent);
        let stalls = !fails && is_chosen(seed, &release.release, behavior.fail_percent + behavior.stall_percent);
        let until = (!stalls).then(|| now.saturating_add(behavior.start_ms));
        self.starting = Some(Starting { instances: Running::new(release), until, fails });
    }

    fn due(&self) -> Option<u64> {
        let starting = self.starting.as_ref().and_then(|starting| starting.until);
        let draining = self.draining.as_ref().map(|draining| draining.until);
        starting.into_iter().chain(draining).min()
    }

    fn advance(&mut self, now: u64, next_sequence: u64) {
        self.draining.take_if(|draining| draining.until <= now);
        let Some(started) = self.starting.take_if(|starting| starting.until.is_some_and(|until| until <= now)) else { return };
        if started.fails {
            self.failed = true;
            return;
        }
        let replaced = self.current.replace(started.instances);
        self.draining =
            replaced.map(|instances| Draining { instances, sequence: next_sequence, until: now.saturating_add(DRAIN_MAX_MS) });
    }

    fn progress(&self) -> Progress {
        match (&self.wanted, &self.starting) {
            (None, _) => Progress::Stopped,
            (Some(_), Some(_)) => Progress::Starting,
            (Some(_), None) if self.failed => Progress::Failed,
            (Some(_), None) => Progress::Healthy,
        }
    }

    fn report(&self, name: &PipelineName) -> Report {
        let mut instances = Vec::new();
        let groups = [
            (self.current.as_ref(), InstanceState::Serving),
            (self.starting.as_ref().map(|starting| &starting.instances), InstanceState::Starting),
            (self.draining.as_ref().map(|draining| &draining.instances), InstanceState::Draining),
        ];
        for (running, state) in groups {
            let Some(running) = running else { continue };
            instances.extend(running.ports.iter().map(|(service, ports)| InstanceObserved {
                service: service.clone(),
                release: running.release.clone(),
                ports: ports.clone(),
                state,
                restarts: 0,
            }));
        }
        Report {
            pipeline: name.clone(),
            release: self.wanted.clone(),
            progress: self.progress(),
            serving: self.current.is_some(),
            instances,
            failure: self.failed.then(failure),
        }
    }
}

impl Running {
    fn new(release: &DesiredRelease) -> Self {
        // Of a pair the first is as good as the other: nothing listens there.
        let first = |(port, numbers): (&PortName, &Vec<u16>)| Some((port.clone(), *numbers.first()?));
        let services = release.services.iter();
        let ports = services.map(|(name, service)| (name.clone(), service.ports.iter().filter_map(first).collect())).collect();
        Self { release: release.release.clone(), ports }
    }
}

struct Behavior {
    start_ms: u64,
    fail_percent: u64,
    stall_percent: u64,
}

impl Behavior {
    /// The slowest service's start, and the highest share of failures.
    fn of(release: &DesiredRelease) -> Self {
        let most = |name: &str| {
            let values = release.services.values().filter_map(|service| service.settings.env.get(name)?.parse::<u64>().ok());
            values.max().unwrap_or_default()
        };
        Self { start_ms: most(START_MS), fail_percent: most(FAIL_PERCENT), stall_percent: most(STALL_PERCENT) }
    }
}

fn failure() -> TargetFailure {
    TargetFailure {
        service: None,
        reason: "the simulated instance ended with exit 1 before it was healthy".to_owned(),
        hint: format!("lower {FAIL_PERCENT}"),
        exit: Some("exit 1".to_owned()),
        probe: None,
        output: "x".repeat(FAILURE_OUTPUT_BYTES),
        output_blob: None,
    }
}

/// Whether this target is among the `percent` of all on which `release` fails.
fn is_chosen(seed: u64, release: &ReleaseId, percent: u64) -> bool {
    mix(seed, release) % 100 < percent
}

/// A number that depends on all of its input: FNV-1a over the release, finished as SplitMix64 does.
fn mix(seed: u64, release: &ReleaseId) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let name = release.pipeline.as_str().bytes().fold(0xcbf2_9ce4_8422_2325, step);
    let mut mixed = seed.to_le_bytes().into_iter().chain(release.number.to_le_bytes()).fold(name, step);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests;
