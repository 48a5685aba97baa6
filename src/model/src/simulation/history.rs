//! One history: a small cluster with agents, runners, people and a leader that may be deposed at any step. Everything that
//! happens is drawn from one seed.

mod builds;
mod people;

use std::collections::BTreeMap;

use roaring::RoaringBitmap;

use crate::simulation::{
    agent::{Agent, Behaviour},
    invariants::Checks,
    plant::{self, Plant},
    random::Random,
};
use crate::{
    apply::{
        Applied,
        testing::{World, evidence, info, name},
    },
    build::{Build, OpenBuild},
    cluster::Epoch,
    command::{Action, ClusterAction, Command, EnvironmentAction, FleetAction, RolloutAction},
    fleet::{Environment, TARGET_GRACE, Target, TargetInfo},
    ids::{ReleaseId, RolloutId},
    pipeline::{Pipeline, Retention},
    pipeline_file::PipelineFile,
    principal::Principal,
    rejection::Rejection,
    release::{Release, release_key},
    rollout::{
        Deployment, Gate, OpenRollout, Rollout, RolloutState, StageClock, Verdict, WaitReason,
        assignment::assigned_release,
        decide::{Next, Seen, next},
        deployment_key,
        plan_input::{connected, lost},
    },
    tables::{ReadTables, Scan, Tables, key},
    units::{Millis, Timestamp},
};

const KINDS: [(&str, &str); 5] = [
    (r#""beside""#, r#"waves = [1, "50%", "100%"]"#),
    (r#""in-place""#, "strategy = \"rolling\"\nmax_unavailable = 2\nspread = \"zone\""),
    (r#""in-place""#, "waves = [2, \"100%\"]\nmax_unavailable = 2\nmax_failures = 1"),
    (r#""beside""#, "strategy = \"rolling\"\nmax_unavailable = \"30%\"\nauto = [\"main\"]"),
    (r#""beside""#, "waves = [1, \"100%\"]\nirreversible = true\nbake = \"20s\""),
];

fn file(kind: usize) -> PipelineFile {
    let (start, deploy) = KINDS[kind % KINDS.len()];
    let bake = if deploy.contains("bake") || deploy.contains("rolling") { "" } else { "bake = \"15s\"" };
    let text = format!(
        "[build]\nrun = \"make\"\n[package]\nrun = \"make install\"\n[service.web]\ncommand = [\"bin/web\"]\nstart = {start}\n\
         ports = {{ http = \"auto\" }}\nhealth = {{ port = \"http\", http = \"/healthz\" }}\n[deploy.production]\n{deploy}\n{bake}\n"
    );
    PipelineFile::parse(&text).unwrap()
}

fn labelled(number: u32, belongs: bool) -> TargetInfo {
    let role = if belongs { "web" } else { "none" };
    TargetInfo { labels: BTreeMap::from([("role".into(), role.into())]), ..info(number) }
}

pub struct History {
    pub world: World,
    pub random: Random,
    pub agents: Vec<Agent>,
    pub epoch: u64,
    pub releases: Vec<ReleaseId>,
    pub checks: Checks,
    pub plant: Option<Plant>,
    pub applied: usize,
    pub rejected: BTreeMap<&'static str, usize>,
    /// Commands of deposed leaders that arrive late.
    in_flight: Vec<Command>,
    clocks: BTreeMap<RolloutId, StageClock>,
    gone_since: BTreeMap<u32, Timestamp>,
    files: Vec<PipelineFile>,
    faults: bool,
    next_commit: u8,
    /// How often a runner loses an attempt, in percent of its steps.
    losses: u64,
    /// What each open rollout waits for.
    pub waits: BTreeMap<RolloutId, WaitReason>,
}

const YEAR: i64 = 365 * 86_400_000;

type Step = Result<(), String>;

impl History {
    pub fn new(seed: u64, plant: Option<Plant>) -> Self {
        let mut random = Random(seed);
        let count = 3 + random.below(6) as u32;
        let (mut world, _) = World::with_fleet(count, crate::apply::testing::FILE);
        // As little is kept as may be, so that retention has something to delete.
        world.retain(Retention { releases: 3, age: Millis(0), ..Retention::default() });
        let mut pipeline: Pipeline = world.get(key("shop"));
        pipeline.concurrency = 1 + random.below(2) as u32;
        world.tables.put(&pipeline).unwrap();
        // Targets can leave and come back: they belong by a label.
        let mut environment: Environment = world.get(key("production"));
        environment.selector = BTreeMap::from([("role".into(), "web".into())]);
        world.tables.put(&environment).unwrap();
        for number in 0..count {
            world.ok(FleetAction::Join { info: labelled(number, true) });
        }
        let agents = (0..count).map(Agent::new).collect();
        let mut checks = Checks::default();
        for applied in &world.applied {
            checks.history_so_far(applied);
        }
        world.applied.clear();
        Self {
            world,
            random,
            agents,
            epoch: 1,
            releases: Vec::new(),
            checks,
            plant,
            applied: 0,
            rejected: BTreeMap::new(),
            in_flight: Vec::new(),
            clocks: BTreeMap::new(),
            gone_since: BTreeMap::new(),
            files: (0..KINDS.len()).map(file).collect(),
            faults: true,
            next_commit: 1,
            losses: [5, 5, 45][seed as usize % 3],
            waits: BTreeMap::new(),
        }
    }

    /// At least `least` applied commands with faults, then none until everything has ended.
    pub fn run(&mut self, least: usize) -> Step {
        let mut steps = 0;
        while self.applied < least {
            steps += 1;
            if steps > least * 20 {
                return Err(format!("only {} commands were applied in {steps} steps", self.applied));
            }
            self.step()?;
        }
        self.settle()
    }

    pub fn members(&self) -> RoaringBitmap {
        self.world.get::<Environment>(key("production")).members
    }

    pub fn cordoned(&self) -> RoaringBitmap {
        let targets: Vec<Target> = self.world.tables.scan(&Scan::all(), 1000).unwrap();
        targets.into_iter().filter(|target| target.cordoned.is_some()).map(|target| target.index).collect()
    }

    pub fn deployment(&self) -> Option<Deployment> {
        self.world.tables.get(&deployment_key(&name("production"), &name("shop"))).unwrap()
    }

    pub fn open_rollouts(&self) -> Vec<Rollout> {
        let open: Vec<OpenRollout> = self.world.tables.scan(&Scan::all(), 100).unwrap();
        open.into_iter().map(|open| self.world.get(key(open.rollout.0))).collect()
    }

    fn open_builds(&self) -> Vec<Build> {
        let open: Vec<OpenBuild> = self.world.tables.scan(&Scan::all(), 100).unwrap();
        open.into_iter().map(|open| self.world.get(key(open.build.0))).collect()
    }

    /// Applies a command by the rules, or by the planted ones, and checks everything.
    fn propose(&mut self, command: Command) -> Result<Option<Applied>, String> {
        let proposed = command.clone();
        let outcome = match self.plant {
            Some(plant) => plant::apply(self, plant, command),
            None => self.world.propose(command),
        };
        self.world.applied.clear();
        let mut checks = std::mem::take(&mut self.checks);
        let checked = match &outcome {
            Ok(applied) => {
                self.applied += 1;
                checks.after(self, &proposed, applied)
            }
            Err(rejection) => {
                *self.rejected.entry(rejection.code()).or_default() += 1;
                checks.rejected(self, &proposed, rejection)
            }
        };
        self.checks = checks;
        checked?;
        Ok(outcome.ok())
    }

    fn person(&mut self, action: impl Into<Action>) -> Result<Option<Applied>, String> {
        let mut command = self.world.command(action);
        if self.random.chance(10) {
            command.idempotency_key = Some(format!("k{}", self.world.index));
            let first = self.propose(command.clone())?;
            if let Some(first) = first {
                let again = self.propose(command)?.ok_or("a retried command was rejected")?;
                if !again.outcome.replayed || again.outcome.subject != first.outcome.subject || !again.events.is_empty() {
                    return Err("a retried command was carried out twice".into());
                }
            }
            return Ok(None);
        }
        self.propose(command)
    }

    /// A command of the leader's; now and then it arrives only after the leader was deposed.
    fn lead(&mut self, action: impl Into<Action>) -> Step {
        let mut command = self.world.command(action);
        command.principal = Principal::system("leader");
        command.epoch = Some(Epoch(self.epoch));
        if self.faults && self.random.chance(4) {
            self.in_flight.push(command);
            return Ok(());
        }
        self.propose(command).map(drop)
    }

    fn step(&mut self) -> Step {
        match self.random.below(100) {
            0..=29 => self.leader(),
            30..=54 => self.fleet(),
            55..=62 => self.time(),
            63..=80 => self.builds(),
            81..=93 => self.people(),
            94..=95 => self.rogue(),
            96..=97 => self.presence(),
            _ => self.leadership(),
        }
    }

    /// An actor that is out of its mind: proposes steps that are not its turn. Whatever is unsafe of it is refused.
    fn rogue(&mut self) -> Step {
        let open = self.open_rollouts();
        // What goes back in place is rare, and the easiest to harm.
        let fragile = open.iter().find(|rollout| rollout.state == RolloutState::RollingBack && rollout.settings.in_place);
        let Some(rollout) = fragile.or(self.random.pick(&open)).cloned() else { return Ok(()) };
        let id = rollout.id;
        let action = match (self.random.below(4), rollout.state.is_forward()) {
            (0, true) => {
                let targets = rollout.wave_targets(&self.members()) - &rollout.sets.changed - self.cordoned();
                RolloutAction::ChangeTargets { rollout: id, targets, unreachable: RoaringBitmap::new() }
            }
            (1, true) => {
                let (wave, gate, verdict) = (rollout.wave, rollout.gate, Verdict::Pass);
                RolloutAction::RecordVerdict { rollout: id, wave, gate, verdict, evidence: evidence(verdict) }
            }
            (2, false) => RolloutAction::FinishRollback { rollout: id, unreachable: RoaringBitmap::new() },
            (_, false) => RolloutAction::RevertTargets { rollout: id, targets: rollout.touched() - &rollout.sets.reverted },
            _ => return Ok(()),
        };
        let mut command = self.world.command(action);
        command.principal = Principal::system("rogue");
        self.propose(command).map(drop)
    }

    fn leadership(&mut self) -> Step {
        if self.random.chance(50) {
            self.epoch += 1;
            self.clocks.clear();
            self.gone_since.clear();
            let (epoch, server) = (Epoch(self.epoch), 1);
            let command = self.world.command(ClusterAction::BeginEpoch { epoch, server });
            self.propose(command)?;
        }
        for command in std::mem::take(&mut self.in_flight) {
            self.propose(command)?;
        }
        Ok(())
    }

    /// Time passes, as the leader measures it.
    fn time(&mut self) -> Step {
        let passed = if self.random.chance(10) { 200_000 } else { self.random.below(12_000) as u64 };
        self.world.now.0 += passed;
        if self.random.chance(5) {
            // The leader's wall clock jumps, or is set right again.
            self.world.wall_offset = *self.random.pick(&[0, 0, 3000, YEAR, -YEAR]).unwrap();
        }
        for rollout in self.open_rollouts() {
            let elapsed = self.elapsed(&rollout);
            let record = self.clocks.entry(rollout.id).or_default().due_record(&rollout, elapsed);
            if let Some(record) = record {
                self.lead(record)?;
            }
        }
        self.declare_lost()
    }

    fn monotonic(&self) -> Millis {
        Millis(self.world.now.0)
    }

    fn elapsed(&mut self, rollout: &Rollout) -> Millis {
        let now = self.monotonic();
        self.clocks.entry(rollout.id).or_default().elapsed(rollout, now)
    }

    /// The leader declares those lost that have been gone for longer than the grace.
    fn declare_lost(&mut self) -> Step {
        let connected = connected(&self.world.tables).unwrap();
        let now = self.world.now;
        let gone = self.gone_since.iter().filter(|(_, since)| now.since(**since) > TARGET_GRACE);
        let gone: RoaringBitmap = gone.map(|(target, _)| *target).collect();
        let new = (gone - connected) - lost(&self.world.tables).unwrap();
        if new.is_empty() { Ok(()) } else { self.lead(FleetAction::DeclareLost { targets: new }) }
    }

    /// What the leader would do with a rollout.
    pub fn decide(&mut self, rollout: &Rollout) -> Next {
        let elapsed = self.elapsed(rollout);
        let seen = Seen::from_state(&self.world.tables, rollout, elapsed).unwrap();
        next(&self.world.tables, rollout, &seen).unwrap()
    }

    fn leader(&mut self) -> Step {
        self.waits.clear();
        for rollout in self.open_rollouts() {
            let mut next = self.decide(&rollout);
            if self.plant == Some(Plant::Stuck) && rollout.gate == Gate::Bake {
                next.action = None;
                next.waits_for = Some(WaitReason::NextStep);
            }
            let Some(waits_for) = next.waits_for else {
                return Err(format!("{} is {} and waits for nothing", rollout.id, rollout.state));
            };
            self.waits.insert(rollout.id, waits_for);
            if let Some(action) = next.action {
                self.lead(action)?;
            }
        }
        Ok(())
    }

    fn behaviour(&self, release: &ReleaseId) -> Behaviour {
        match release.number * 7 % 11 {
            0 | 3 => Behaviour::Bad(1),
            5 => Behaviour::Bad(3),
            8 => Behaviour::Slow,
            _ => Behaviour::Good,
        }
    }

    /// Agents learn what they are assigned, work and report; reports get lost, are late or come twice.
    fn fleet(&mut self) -> Step {
        let deployment = self.deployment();
        let rollout = deployment.as_ref().and_then(|deployment| deployment.rollout).map(|id| self.world.get(key(id.0)));
        let members = self.members();
        let mut reports = Vec::new();
        for index in 0..self.agents.len() {
            let index_ = index as u32;
            let assigned = deployment.as_ref().and_then(|deployment| assigned_release(deployment, rollout.as_ref(), index_));
            let assigned = assigned.filter(|_| members.contains(index_));
            let agent = &mut self.agents[index];
            let idle = self.faults && self.random.chance(30);
            if agent.connected && !idle {
                agent.assign(assigned);
            }
            if let Some(release) = self.agents[index].assigned.clone().filter(|_| !idle) {
                let file = self.world.get::<Release>(release_key(&release)).file;
                let in_place = file.service.values().any(|service| service.start == crate::pipeline_file::Start::InPlace);
                let behaviour = self.behaviour(&release);
                self.agents[index].work(behaviour, in_place, self.faults, &mut self.random);
            }
            let agent = &mut self.agents[index];
            if !agent.connected {
                continue;
            }
            if agent.unsaid {
                let report = agent.report();
                if self.faults && self.random.chance(5) {
                    agent.stragglers.push(report);
                    continue;
                }
                if self.faults && self.random.chance(5) {
                    reports.push((index as u32, report.clone()));
                }
                agent.unsaid = self.faults && self.random.chance(5);
                reports.push((index as u32, report));
            } else if self.random.chance(30) {
                // A late one; what is true now follows it.
                reports.extend(agent.stragglers.pop().map(|report| (index as u32, report)));
                agent.unsaid = true;
            }
        }
        if reports.is_empty() {
            return Ok(());
        }
        let action = self.world.reports(reports);
        self.lead(action)
    }

    fn presence(&mut self) -> Step {
        for index in 0..self.agents.len() {
            if self.faults && !self.random.chance(25) {
                continue;
            }
            let connected = !self.faults || !self.agents[index].connected;
            self.agents[index].connected = connected;
            self.agents[index].unsaid |= connected;
        }
        self.say_presence()
    }

    fn say_presence(&mut self) -> Step {
        let connected: RoaringBitmap = self.agents.iter().filter(|agent| agent.connected).map(|agent| agent.target).collect();
        for agent in &self.agents {
            if agent.connected {
                self.gone_since.remove(&agent.target);
            } else {
                self.gone_since.entry(agent.target).or_insert(self.world.now);
            }
        }
        let command = self.world.command(FleetAction::Presence { server: 1, connected });
        self.propose(command).map(drop)
    }

    /// The faults stop: whatever was begun ends, and every target runs what it is assigned.
    fn settle(&mut self) -> Step {
        self.faults = false;
        self.world.wall_offset = 0;
        self.in_flight.clear();
        self.presence()?;
        self.person(EnvironmentAction::Unfreeze { name: name("production") })?;
        for index in self.cordoned() {
            self.person(FleetAction::Uncordon { name: name(&format!("web-{index}")) })?;
        }
        for number in 0..self.agents.len() as u32 {
            self.person(FleetAction::Join { info: labelled(number, true) })?;
        }
        for round in 0..400 {
            for agent in &mut self.agents {
                agent.unsaid = true;
                agent.stragglers.clear();
            }
            for _ in 0..3 {
                self.fleet()?;
                self.leader()?;
            }
            for build in self.open_builds() {
                self.build(build)?;
            }
            self.time()?;
            self.world.now.0 += 10_000;
            let open = self.open_rollouts();
            if open.is_empty() && self.open_builds().is_empty() {
                break;
            }
            // People answer what waits for them.
            for rollout in open.iter().filter(|_| round % 20 == 19) {
                let waits = self.waits.get(&rollout.id);
                if rollout.paused.is_some() || waits.is_some_and(WaitReason::needs_person) {
                    self.person(RolloutAction::Abort { rollout: rollout.id, why: "it waits for me".into() })?;
                }
            }
        }
        let open = self.open_rollouts();
        if let Some(rollout) = open.first() {
            let waits = self.waits.get(&rollout.id);
            return Err(format!("liveness: {} is still {}: it waits for {waits:?}", rollout.id, rollout.state));
        }
        if let Some(build) = self.open_builds().first() {
            return Err(format!("liveness: {} is still {}", build.id, build.state));
        }
        for _ in 0..40 {
            self.fleet()?;
        }
        self.converged()
    }

    fn converged(&self) -> Step {
        let Some(deployment) = self.deployment() else { return Ok(()) };
        if !deployment.retained.is_empty() {
            return Err(format!("nobody is cordoned, and still some are retained: {:?}", deployment.retained));
        }
        for index in self.members() {
            let agent = &self.agents[index as usize];
            let bad = deployment.stable.as_ref().is_some_and(|stable| matches!(self.behaviour(stable), Behaviour::Bad(_)));
            if agent.assigned != deployment.stable || (agent.serves != deployment.stable && !bad) {
                let (assigned, serves) = (&agent.assigned, &agent.serves);
                return Err(format!("web-{index} is assigned {assigned:?} and serves {serves:?}, not {:?}", deployment.stable));
            }
        }
        Ok(())
    }

    /// For messages: nobody's rejection is a surprise.
    pub fn is_stale(&self, command: &Command) -> bool {
        command.epoch.is_some_and(|epoch| epoch.0 != self.epoch)
    }

    pub fn is_stale_epoch(rejection: &Rejection) -> bool {
        matches!(rejection, Rejection::StaleEpoch { .. })
    }

    /// The rollout that an action is about.
    pub fn subject(action: &Action) -> Option<RolloutId> {
        let Action::Rollout(action) = action else { return None };
        Some(match action {
            RolloutAction::Start { .. } => return None,
            RolloutAction::Unblock { rollout }
            | RolloutAction::ChangeTargets { rollout, .. }
            | RolloutAction::RecordElapsed { rollout, .. }
            | RolloutAction::RecordVerdict { rollout, .. }
            | RolloutAction::RevertTargets { rollout, .. }
            | RolloutAction::FinishRollback { rollout, .. }
            | RolloutAction::Pause { rollout, .. }
            | RolloutAction::Resume { rollout }
            | RolloutAction::Abort { rollout, .. }
            | RolloutAction::Promote { rollout, .. } => *rollout,
        })
    }
}
