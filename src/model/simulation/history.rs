//! One history: a small cluster with agents, runners, people and a leader that may be deposed at any step. Everything that
//! happens is drawn from one seed.

use std::collections::BTreeMap;

use roaring::RoaringBitmap;

use super::{
    agent::{Agent, Behaviour},
    invariants::Checks,
    plant::{self, Plant},
    random::Random,
};
use crate::model::{
    apply::{
        Applied,
        testing::{World, artifact, commit, facts, lost, name, phase_record},
    },
    build::{AttemptEnd, Build, BuildFailure, Cause, OpenBuild, Phase, Resources},
    cluster::Epoch,
    command::{Action, ArtifactAction, BuildAction, ClusterAction, Command, EnvironmentAction, FleetAction, RolloutAction},
    decide::rollout::{Next, Seen, next},
    desired::told,
    event::Subject,
    fleet::{Environment, TARGET_GRACE, Target, TargetFacts},
    ids::{BuildId, ReleaseId, RolloutId},
    pipeline::Pipeline,
    pipeline_file::PipelineFile,
    planning::{blocked, connected},
    principal::Principal,
    rejection::Rejection,
    release::{Release, release_key},
    retention::expired_artifacts,
    rollout::{Deployment, Gate, OpenRollout, Purpose, Rollout, RolloutState, deployment_key},
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

fn labelled(number: u32, belongs: bool) -> TargetFacts {
    let role = if belongs { "web" } else { "none" };
    TargetFacts { labels: BTreeMap::from([("role".into(), role.into())]), ..facts(number) }
}

/// What the leader watches: a change of it starts the watch anew.
type Stage = (RolloutState, u32, Gate, u64, u64, bool);

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
    watches: BTreeMap<RolloutId, (Stage, Millis)>,
    gone_since: BTreeMap<u32, Timestamp>,
    files: Vec<PipelineFile>,
    faults: bool,
    next_commit: u8,
    /// How often a runner loses an attempt, in percent of its steps.
    losses: u64,
    /// What each open rollout waits for.
    pub waits: BTreeMap<RolloutId, String>,
}

type Step = Result<(), String>;

impl History {
    pub fn new(seed: u64, plant: Option<Plant>) -> Self {
        let mut random = Random(seed);
        let count = 3 + random.below(6) as u32;
        let (mut world, _) = World::with_fleet(count, crate::model::apply::testing::FILE);
        let mut pipeline: Pipeline = world.get(key("shop"));
        pipeline.concurrency = 1 + random.below(2) as u32;
        world.tables.put(&pipeline).unwrap();
        // Targets can leave and come back: they belong by a label.
        let mut environment: Environment = world.get(key("production"));
        environment.selector = BTreeMap::from([("role".into(), "web".into())]);
        world.tables.put(&environment).unwrap();
        for number in 0..count {
            world.ok(FleetAction::Join { facts: labelled(number, true) });
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
            watches: BTreeMap::new(),
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
            81..=95 => self.people(),
            96..=97 => self.presence(),
            _ => self.leadership(),
        }
    }

    fn leadership(&mut self) -> Step {
        if self.random.chance(50) {
            self.epoch += 1;
            self.watches.clear();
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
        for rollout in self.open_rollouts() {
            let elapsed = self.elapsed(&rollout);
            if let (Some((_, watched)), false) = (self.watches.get_mut(&rollout.id), rollout.paused.is_some()) {
                *watched = Millis(elapsed.0 + passed);
                let (elapsed, rollout) = (*watched, rollout);
                if rollout.state != RolloutState::Blocked && self.random.chance(40) {
                    let (wave, gate) = (rollout.wave, rollout.gate);
                    self.lead(RolloutAction::RecordElapsed { rollout: rollout.id, wave, gate, elapsed })?;
                }
            }
        }
        Ok(())
    }

    fn elapsed(&mut self, rollout: &Rollout) -> Millis {
        let (changed, reverted) = (rollout.sets.changed.len(), rollout.sets.reverted.len());
        let stage = (rollout.state, rollout.wave, rollout.gate, changed, reverted, rollout.paused.is_some());
        let watch = self.watches.entry(rollout.id).or_insert((stage, rollout.elapsed));
        if watch.0 != stage {
            *watch = (stage, rollout.elapsed);
        }
        watch.1
    }

    /// What the leader would do with a rollout.
    pub fn decide(&mut self, rollout: &Rollout) -> Next {
        let connected = connected(&self.world.tables).unwrap();
        let now = self.world.now;
        let lost = |target: &u32| {
            let since = self.gone_since.get(target);
            !connected.contains(*target) && since.is_some_and(|since| now.since(*since) > TARGET_GRACE)
        };
        let lost: RoaringBitmap = (0..self.agents.len() as u32).filter(lost).collect();
        let environment: Environment = self.world.get(key("production"));
        let blocked = blocked(&environment, self.deployment().as_ref(), rollout.purpose);
        let blocked = blocked.filter(|_| rollout.state == RolloutState::Blocked);
        let elapsed = self.elapsed(rollout);
        let seen = Seen { connected: &connected, lost: &lost, elapsed, blocked: blocked.as_ref() };
        next(&self.world.tables, rollout, seen).unwrap()
    }

    fn leader(&mut self) -> Step {
        self.waits.clear();
        for rollout in self.open_rollouts() {
            let mut next = self.decide(&rollout);
            if next.waits_for.is_empty() {
                return Err(format!("{} is {} and waits for nothing", rollout.id, rollout.state));
            }
            if self.plant == Some(Plant::Stuck) && rollout.gate == Gate::Bake {
                next = Next { action: None, waits_for: "the bake".into() };
            }
            self.waits.insert(rollout.id, next.waits_for);
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

    /// Agents hear, work and report; reports get lost, are late or come twice.
    fn fleet(&mut self) -> Step {
        let deployment = self.deployment();
        let rollout = deployment.as_ref().and_then(|deployment| deployment.rollout).map(|id| self.world.get(key(id.0)));
        let members = self.members();
        let mut reports = Vec::new();
        for index in 0..self.agents.len() {
            let told = deployment.as_ref().and_then(|deployment| told(deployment, rollout.as_ref(), index as u32));
            let told = told.filter(|_| members.contains(index as u32));
            let agent = &mut self.agents[index];
            let idle = self.faults && self.random.chance(30);
            if agent.connected && !idle {
                agent.hear(told);
            }
            if let Some(release) = self.agents[index].told.clone().filter(|_| !idle) {
                let file = self.world.get::<Release>(release_key(&release)).file;
                let in_place = file.service.values().any(|service| service.start == crate::model::pipeline_file::Start::InPlace);
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
        if reports.is_empty() { Ok(()) } else { self.lead(FleetAction::Report { reports }) }
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

    fn builds(&mut self) -> Step {
        let builds = self.open_builds();
        if builds.is_empty() || self.random.chance(15) {
            if self.faults {
                let number = if self.random.chance(20) { self.next_commit } else { self.next_commit.wrapping_add(1) };
                self.next_commit = number;
                let again = self.random.chance(10);
                let git_ref = if self.random.chance(80) { "refs/heads/main" } else { "refs/heads/next" };
                let cause = if self.random.chance(90) { Cause::Push } else { Cause::Manual };
                let (pipeline, resources) = (name("shop"), Resources::default());
                let commit = commit(number);
                if self.random.chance(10) {
                    let file = Box::new(self.files[self.random.below(self.files.len())].clone());
                    let artifact = artifact(number);
                    let pushed = self.person(BuildAction::Push { pipeline, commit, git_ref: git_ref.into(), artifact, file })?;
                    let Some(Subject::Build(id)) = pushed.map(|pushed| pushed.outcome.subject) else { return Ok(()) };
                    self.releases.extend(self.world.get::<Build>(key(id.0)).release);
                    return Ok(());
                }
                self.person(BuildAction::Request { pipeline, commit, git_ref: git_ref.into(), cause, again, resources })?;
            }
            return Ok(());
        }
        let build = builds[self.random.below(builds.len())].clone();
        self.build(build)
    }

    fn build(&mut self, build: Build) -> Step {
        let id = build.id;
        if self.faults && self.random.chance(4) {
            return self.person(BuildAction::Cancel { build: id }).map(drop);
        }
        let Some(live) = build.live_attempt() else {
            return self.lead(BuildAction::Assign { build: id, runner: name("r1") });
        };
        let attempt = live.number;
        if self.faults && self.random.chance(5) {
            // What a fenced attempt still says changes nothing.
            return self.lead(BuildAction::End { build: id, attempt: attempt + 1, end: lost(), log: None });
        }
        if build.cancel_asked && self.random.chance(50) {
            return self.lead(BuildAction::End { build: id, attempt, end: AttemptEnd::Canceled, log: None });
        }
        if self.faults && self.random.chance(self.losses) {
            return self.lead(BuildAction::End { build: id, attempt, end: lost(), log: None });
        }
        if !live.acknowledged {
            return self.lead(BuildAction::Acknowledge { build: id, attempt, unisolated: None });
        }
        if self.faults && self.random.chance(6) {
            let phase = *self.random.pick(&Phase::ALL).unwrap();
            let failure = BuildFailure { phase, reason: "exit 2".into(), hint: String::new(), output: "x".repeat(9000) };
            let end = if self.random.chance(50) { AttemptEnd::TimedOut(failure) } else { AttemptEnd::Failed(failure) };
            return self.lead(BuildAction::End { build: id, attempt, end, log: None });
        }
        match live.phases.len() {
            done if done < Phase::ALL.len() => {
                self.lead(BuildAction::Progress { build: id, attempt, phase: phase_record(Phase::ALL[done]) })
            }
            _ => {
                let number = u8::from_str_radix(&build.commit.as_str()[38..], 16).unwrap();
                let file = Box::new(self.files[self.random.below(self.files.len())].clone());
                self.lead(BuildAction::Succeed { build: id, attempt, artifact: artifact(number), file, log: None })?;
                self.releases.extend(self.world.get::<Build>(key(id.0)).release);
                Ok(())
            }
        }
    }

    fn people(&mut self) -> Step {
        let open = self.open_rollouts();
        let rollout = self.random.pick(&open).map(|rollout| rollout.id);
        let why = "because".to_owned();
        let release =
            if self.random.chance(60) { self.releases.last().cloned() } else { self.random.pick(&self.releases).cloned() };
        let target = name(&format!("web-{}", self.random.below(self.agents.len())));
        match (self.random.below(40), rollout, release) {
            (0..=11, _, Some(release)) => self.start(release, Purpose::Deploy),
            (12..=14, _, release) => {
                let deployment = self.deployment();
                let stable = deployment.as_ref().and_then(|deployment| deployment.stable.clone());
                let former = deployment.and_then(|deployment| deployment.former(stable.as_ref()).cloned());
                // Undoing what is at work, going back further, or to anything.
                let goal = if rollout.is_some() && self.random.chance(50) { stable } else { former };
                match goal.filter(|_| self.random.chance(90)).or(release) {
                    Some(release) => self.start(release, Purpose::Rollback),
                    None => Ok(()),
                }
            }
            (15..=16, Some(rollout), _) if self.random.chance(60) => self.person(RolloutAction::Abort { rollout, why }).map(drop),
            (17..=18, Some(rollout), _) => self.person(RolloutAction::Pause { rollout, why }).map(drop),
            (19..=22, Some(rollout), _) => self.person(RolloutAction::Resume { rollout }).map(drop),
            (23..=24, Some(rollout), _) => self.person(RolloutAction::Promote { rollout, why }).map(drop),
            (25, ..) => self.person(EnvironmentAction::Freeze { name: name("production"), why }).map(drop),
            (26..=28, ..) => self.person(EnvironmentAction::Unfreeze { name: name("production") }).map(drop),
            (29..=31, ..) => {
                let quarantined = self.deployment().map(|deployment| deployment.quarantined).unwrap_or_default();
                let Some(kept) = self.random.pick(&quarantined).cloned() else { return Ok(()) };
                let name = name("production");
                self.person(EnvironmentAction::ClearQuarantine { name, release: kept.release }).map(drop)
            }
            (32, ..) => self.person(FleetAction::Cordon { name: target, why }).map(drop),
            (33..=35, ..) => self.person(FleetAction::Uncordon { name: target }).map(drop),
            (36, ..) => {
                if self.agents.len() >= 12 {
                    return Ok(());
                }
                let number = self.agents.len() as u32;
                self.agents.push(Agent::new(number));
                let facts = labelled(number, true);
                let command = self.world.command(FleetAction::Join { facts });
                self.propose(command)?;
                self.say_presence()
            }
            (37, ..) => {
                // Retention at work, and someone who asks for more than it allows.
                let pipeline: Pipeline = self.world.get(key("shop"));
                let digests = expired_artifacts(&self.world.tables, &pipeline, Timestamp(u64::MAX), 3).unwrap();
                self.lead(ArtifactAction::Delete { digests })?;
                let Some(release) = self.random.pick(&self.releases).cloned() else { return Ok(()) };
                let digests = vec![self.world.get::<Release>(release_key(&release)).artifact];
                self.person(ArtifactAction::Delete { digests }).map(drop)
            }
            (39, ..) => {
                let number = self.random.below(self.agents.len()) as u32;
                let belongs = !self.members().contains(number);
                self.person(FleetAction::Join { facts: labelled(number, belongs) }).map(drop)
            }
            (38, ..) => {
                let build = BuildId(1 + self.random.below(20) as u64);
                self.person(BuildAction::Retry { build }).map(drop)
            }
            _ => Ok(()),
        }
    }

    fn start(&mut self, release: ReleaseId, purpose: Purpose) -> Step {
        let environment = name("production");
        self.person(RolloutAction::Start { environment, release, purpose, why: None, if_plan: None }).map(drop)
    }

    /// The faults stop: whatever was begun ends, and every target runs what it is told.
    fn settle(&mut self) -> Step {
        self.faults = false;
        self.in_flight.clear();
        self.presence()?;
        self.person(EnvironmentAction::Unfreeze { name: name("production") })?;
        for index in self.cordoned() {
            self.person(FleetAction::Uncordon { name: name(&format!("web-{index}")) })?;
        }
        for number in 0..self.agents.len() as u32 {
            self.person(FleetAction::Join { facts: labelled(number, true) })?;
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
                let waits = self.waits.get(&rollout.id).cloned().unwrap_or_default();
                if rollout.paused.is_some() || waits.contains("promote or abort") {
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
        if !deployment.held.is_empty() {
            return Err(format!("nobody is cordoned, and still some are held: {:?}", deployment.held));
        }
        for index in self.members() {
            let agent = &self.agents[index as usize];
            let bad = deployment.stable.as_ref().is_some_and(|stable| matches!(self.behaviour(stable), Behaviour::Bad(_)));
            if agent.told != deployment.stable || (agent.serves != deployment.stable && !bad) {
                let (told, serves) = (&agent.told, &agent.serves);
                return Err(format!("web-{index} is told {told:?} and serves {serves:?}, not {:?}", deployment.stable));
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
