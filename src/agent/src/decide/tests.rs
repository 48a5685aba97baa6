//! Histories: a made-up target on which every step is taken at once, instances die, probes fail, agents restart, servers go away and come
//! back, and what is desired changes. Whatever happened, in the end just what is desired runs; what serves is not stopped before its
//! successor is proven; and nothing is stopped that a gateway may send requests to.

use proptest::prelude::*;

use super::*;
use crate::{
    journal::{Attempt, Departure, Journal},
    reports::Confirmed,
};
use swell_model::{
    fleet::observation::{InstanceState, Progress, TargetFailure},
    pipeline_file::{Health, Service, Start, Stop},
    units::{ByteSize, Millis},
};

const TIMING: Timing = Timing {
    restart_first: Millis(1_000),
    restart_most: Millis(60_000),
    stable_after: Millis(60_000),
    retry_first: Millis(30_000),
    retry_most: Millis(300_000),
    fetch_first: Millis(1_000),
    fetch_most: Millis(60_000),
    session_first: Millis(1),
    session_most: Millis(1),
};

fn service(start: Start, ports: &[u16]) -> DesiredService {
    let health = Health { port: Some("http".parse().unwrap()), http: Some("/".to_owned()), ..Health::default() };
    let settings = Service { command: vec!["x".to_owned()], start, health, stop: Stop::default(), ..Service::default() };
    DesiredService { settings, ports: [("http".parse().unwrap(), ports.to_vec())].into() }
}

/// Release `number`: `api` beside, and perhaps `worker` in place.
fn release(number: u64, with_worker: bool) -> DesiredRelease {
    let mut services: BTreeMap<ServiceName, DesiredService> = [("api".parse().unwrap(), service(Start::Beside, &[1, 2]))].into();
    if with_worker {
        services.insert("worker".parse().unwrap(), service(Start::InPlace, &[9]));
    }
    DesiredRelease {
        release: format!("shop@{number}").parse().unwrap(),
        environment: "test".parse().unwrap(),
        artifact: digest(number),
        artifact_size: ByteSize(1),
        unpacked_size: ByteSize(1),
        manifest: Digest([0; 32]),
        services,
    }
}

fn digest(number: u64) -> Digest {
    Digest([number as u8; 32])
}

fn failure() -> TargetFailure {
    let text = String::new;
    TargetFailure { service: None, reason: text(), hint: text(), exit: None, probe: None, output: text(), output_blob: None }
}

/// A target on which steps are taken at once.
struct World {
    now: u64,
    desired: Desired,
    journal: Journal,
    observed: BTreeMap<u64, Observed>,
    on_disk: BTreeSet<Digest>,
    fetching: Option<Digest>,
    hold_until: u64,
    /// Releases whose instances never answer.
    broken: BTreeSet<u64>,
    /// Instances whose processes hang in the kernel.
    undead: BTreeSet<u64>,
    /// Whether there is a server, and gateways that obey it.
    has_server: bool,
    /// Instances that gateways send requests to, until they hear otherwise.
    routed: BTreeSet<u64>,
    fetches: u32,
    steps: Vec<Step>,
}

impl World {
    fn new() -> Self {
        Self {
            now: 1,
            desired: Desired::Unknown,
            journal: Journal::default(),
            observed: BTreeMap::new(),
            on_disk: BTreeSet::new(),
            fetching: None,
            hold_until: 0,
            broken: BTreeSet::new(),
            undead: BTreeSet::new(),
            has_server: true,
            routed: BTreeSet::new(),
            fetches: 0,
            steps: Vec::new(),
        }
    }

    fn view(&self) -> View<'_> {
        View {
            now: self.now,
            desired: &self.desired,
            journal: &self.journal,
            observed: &self.observed,
            on_disk: &self.on_disk,
            fetching: self.fetching.is_some(),
            hold_until: self.hold_until,
        }
    }

    fn desire(&mut self, desired: Desired) {
        (self.desired, self.hold_until) = (desired, 0);
        let release = self.desired.release().map(|release| release.release.clone());
        if self.journal.attempt.as_ref().is_some_and(|attempt| Some(&attempt.release) != release.as_ref()) {
            self.journal.attempt = None;
        }
    }

    fn serving_api(&self) -> bool {
        let view = self.view();
        let is_api = |instance: &&Instance| instance.service.as_str() == "api";
        self.journal
            .instances
            .iter()
            .filter(is_api)
            .any(|instance| instance_state(&view, instance) == Some(InstanceState::Serving))
    }

    /// Servers and gateways hear how things stand, and confirm it.
    fn publish(&mut self) -> bool {
        let view = self.view();
        let is_serving = |instance: &&Instance| instance_state(&view, instance) == Some(InstanceState::Serving);
        let serving = self.journal.instances.iter().filter(is_serving).map(|instance| instance.id).collect();
        let confirmed: Vec<u64> = unconfirmed(&view).map(|instance| instance.id).collect();
        self.routed = serving;
        confirmed.iter().for_each(|id| self.observed.get_mut(id).unwrap().confirmed = true);
        !confirmed.is_empty()
    }

    /// Takes all steps that there are at this moment; returns when the next may be.
    fn reconcile(&mut self) -> Option<u64> {
        for _ in 0..100 {
            match next(&self.view()) {
                Next::Wait(_) if self.has_server && self.publish() => {}
                Next::Wait(at) => {
                    assert!(at.is_none_or(|at| at > self.now), "waits for the past");
                    return at;
                }
                Next::Do(step) => self.take(step),
            }
            self.check();
        }
        panic!("does not reconcile: {:#?}", &self.steps[self.steps.len() - 10..]);
    }

    fn take(&mut self, step: Step) {
        if let Some(id) = step.of_one().filter(|id| self.undead.contains(id)) {
            let observed = self.observed.get_mut(&id).unwrap();
            (observed.retry_at, observed.failed_steps) = (self.now + 60_000, observed.failed_steps + 1);
            return self.steps.push(step);
        }
        let was_serving = self.serving_api();
        match step.clone() {
            Step::Fetch => {
                assert!(self.fetching.is_none());
                self.fetching = self.desired.release().map(|release| release.artifact);
                self.fetches += 1;
            }
            Step::Start { service, ports } => {
                let release = self.desired.release().unwrap().clone();
                assert!(self.on_disk.contains(&release.artifact), "started before it was there");
                let id = self.journal.add(&release, &service, &release.services[&service], ports);
                self.observed.insert(id, Observed::down(self.now));
                self.up(id);
            }
            Step::NoPort { .. } => unreachable!("every service has ports here"),
            Step::Restart(id) => {
                self.journal.rerun(id);
                self.up(id);
            }
            Step::Blocked { .. } => {
                let release = self.desired.release().unwrap().release.clone();
                self.journal.failed(release, None, true, failure());
                self.hold_until = self.now + 30_000;
            }
            Step::Fail { id, .. } => {
                let instance = self.journal.instance(id).unwrap().clone();
                let failures = self.journal.attempt.as_ref().map_or(0, |attempt| attempt.failures) + 1;
                self.journal.attempt = Some(Attempt {
                    release: instance.release.clone(),
                    failures,
                    run: Some(instance.run),
                    failed: true,
                    failure: failure(),
                });
                let failed = self.journal.instances.clone().into_iter().filter(|other| {
                    other.release == instance.release && other.role == Role::New && other.settings.settings.start == Start::Beside
                });
                for other in failed {
                    self.journal.leave(other.id, departure_of(&other, &self.desired));
                }
                self.hold_until = self.now + 30_000;
            }
            Step::Switch => {
                let release = self.desired.release().unwrap().clone();
                self.journal.switch(&release, |instance| departure_of(instance, &self.desired));
            }
            Step::Leave(id) => {
                let answered = matches!(self.observed[&id].process, Process::Up { passed: true, .. });
                let instance = self.journal.instance_mut(id).unwrap();
                instance.served |= answered && instance.settings.settings.start == Start::InPlace;
                let departure = departure_of(instance, &self.desired);
                self.journal.leave(id, departure);
            }
            Step::Return(id) => {
                self.journal.instance_mut(id).unwrap().role = Role::New;
                self.observed.get_mut(&id).unwrap().confirmed = false;
            }
            Step::Drain(id) => {
                self.journal.instance_mut(id).unwrap().departure = Departure::Confirmed;
                self.observed.get_mut(&id).unwrap().draining_since = self.now;
            }
            Step::Stop(id) if self.is_leaving_api(id) && self.routed.contains(&id) => panic!("stops what gateways route to"),
            Step::Stop(id) => match &mut self.observed.get_mut(&id).unwrap().process {
                Process::Up { stopping, .. } => *stopping = true,
                Process::Down { .. } => panic!("stops what does not run"),
            },
            Step::Forget(id) => {
                assert!(matches!(self.observed[&id].process, Process::Down { .. }), "forgets what runs");
                self.journal.instances.retain(|instance| instance.id != id);
                self.observed.remove(&id);
            }
            Step::Retire => {
                (self.journal.active, self.journal.attempt) = (None, None);
                self.journal.activated.clear();
            }
            Step::Remove(digest) => assert!(self.on_disk.remove(&digest)),
        }
        // Only what nobody wants any more may cost an api that serves.
        let may_stop = self.desired == Desired::Nothing || matches!(step, Step::Stop(_));
        assert!(!was_serving || self.serving_api() || may_stop, "{step:?} stopped what serves");
        self.steps.push(step);
    }

    fn is_leaving_api(&self, id: u64) -> bool {
        let instance = self.journal.instance(id).unwrap();
        instance.role == Role::Leaving && instance.service.as_str() == "api"
    }

    fn up(&mut self, id: u64) {
        let is_broken = self.broken.contains(&self.journal.instance(id).unwrap().release.number);
        let answers = (!is_broken).then_some(self.now);
        self.observed.get_mut(&id).unwrap().process =
            Process::Up { since: self.now, passing_since: answers, failures: 0, passed: !is_broken, stopping: false };
    }

    /// What must hold at every moment.
    fn check(&self) {
        let mut taken = BTreeSet::new();
        for instance in &self.journal.instances {
            for port in instance.ports.values() {
                assert!(taken.insert((&instance.service, *port)), "two instances have port {port}");
            }
            if matches!(self.observed[&instance.id].process, Process::Up { .. }) {
                assert!(self.on_disk.contains(&instance.artifact), "runs without its files");
            }
        }
    }

    fn die(&mut self, id: u64) {
        let observed = self.observed.get_mut(&id).unwrap();
        if let Process::Up { since, stopping, .. } = observed.process {
            let (deaths, restart_at) = after_end(observed.deaths, self.now - since, self.now, &TIMING);
            observed.deaths = deaths;
            observed.process = Process::Down { restart_at, died: !stopping };
        }
    }

    /// Those that were asked to end do, what was asked for comes, and those that were found running answer their first probe.
    fn obey(&mut self) {
        for instance in &self.journal.instances {
            if let Some(Observed { process: Process::Up { passing_since, passed, failures, .. }, .. }) =
                self.observed.get_mut(&instance.id)
                && !self.broken.contains(&instance.release.number)
            {
                (*passing_since, *passed, *failures) = (passing_since.or(Some(self.now)), true, 0);
            }
        }
        let stopping: Vec<u64> = (self.observed.iter())
            .filter(|(_, observed)| matches!(observed.process, Process::Up { stopping: true, .. }))
            .map(|(id, _)| *id)
            .collect();
        stopping.into_iter().for_each(|id| self.die(id));
        self.on_disk.extend(self.fetching.take());
    }

    /// Whatever was broken works, also what runs.
    fn mend(&mut self) {
        self.broken.clear();
        self.undead.clear();
        self.has_server = true;
        for observed in self.observed.values_mut() {
            if let Process::Up { passing_since, passed, failures, .. } = &mut observed.process {
                (*passing_since, *passed, *failures) = (passing_since.or(Some(self.now)), true, 0);
            }
        }
    }

    /// The agent starts again: what it had in memory is gone, what runs is adopted.
    fn restart_agent(&mut self) {
        self.now += 1_000;
        self.fetching = None;
        self.hold_until = 0;
        for instance in &self.journal.instances {
            let observed = self.observed.get_mut(&instance.id).unwrap();
            let proven = instance.role == Role::Current || instance.served;
            *observed = match observed.process {
                Process::Up { .. } => Observed {
                    process: Process::Up {
                        since: self.now,
                        passing_since: None,
                        failures: if proven { UNHEALTHY_AFTER_FAILURES - 1 } else { 0 },
                        passed: proven,
                        stopping: false,
                    },
                    ..Observed::down(self.now)
                },
                Process::Down { died, .. } => {
                    Observed { process: Process::Down { restart_at: self.now, died }, ..Observed::down(self.now) }
                }
            };
        }
    }

    /// Lets time pass until nothing happens any more.
    fn rest(&mut self) {
        for _ in 0..2_000 {
            let at = self.reconcile();
            self.obey();
            match (at, next(&self.view())) {
                (_, Next::Do(_)) => {}
                (_, Next::Wait(Some(at))) => self.now = at,
                // What is reported may yet change with time alone.
                (_, Next::Wait(None)) => match progress(&self.view()).1 {
                    Some(at) => self.now = at,
                    None => return,
                },
            }
        }
        panic!("never rests: {:#?}", &self.steps[self.steps.len() - 20..]);
    }

    fn serving(number: u64) -> Self {
        let mut world = Self::new();
        world.desire(Desired::Release(Box::new(release(number, false))));
        world.rest();
        world.steps.clear();
        world
    }
}

#[test]
fn instance_that_does_not_die_holds_nobody_up() {
    let mut world = World::new();
    world.desire(Desired::Release(Box::new(release(2, true))));
    world.rest();
    // The old api leaves and cannot be cleared away; meanwhile its successor dies, then the worker.
    world.desire(Desired::Release(Box::new(release(3, true))));
    for _ in 0..1_000 {
        match next(&world.view()) {
            Next::Do(Step::Forget(1)) => break,
            Next::Do(step) => world.take(step),
            Next::Wait(_) if world.publish() => {}
            Next::Wait(at) => {
                world.now = at.unwrap_or(world.now);
                world.obey();
            }
        }
    }
    let staying = world.journal.staying();
    staying.iter().for_each(|id| world.die(*id));
    // Nor can one of those be started again.
    world.undead = [1, staying[0]].into();
    world.steps.clear();
    world.now += 120_000;
    world.reconcile();
    assert_eq!(world.steps, [Step::Forget(1), Step::Restart(staying[0]), Step::Restart(staying[1])]);
    // And a release that is desired comes.
    world.desire(Desired::Release(Box::new(release(4, false))));
    world.reconcile();
    assert!(world.steps.contains(&Step::Fetch), "{:?}", world.steps);
    // Where it needs the port of the one that does not die, that is reported.
    world.observed.get_mut(&1).unwrap().failed_steps = STUCK_AFTER_FAILED_STEPS;
    world.obey();
    world.reconcile();
    assert_eq!(progress(&world.view()).0, Progress::Failed);
    // In the end it is tried again.
    world.mend();
    world.rest();
    assert_eq!(progress(&world.view()).0, Progress::Healthy);
    assert_eq!(world.journal.instances.len(), 1);
}

#[test]
fn first_release_is_fetched_started_proven_and_switched_to() {
    let world = {
        let mut world = World::new();
        world.desire(Desired::Release(Box::new(release(1, false))));
        assert_eq!(progress(&world.view()).0, Progress::Fetching);
        world.rest();
        world
    };
    let names: Vec<String> =
        world.steps.iter().map(|step| format!("{step:?}").split([' ', '(']).next().unwrap().to_owned()).collect();
    assert_eq!(names, ["Fetch", "Start", "Switch"]);
    assert_eq!(progress(&world.view()).0, Progress::Healthy);
    assert!(is_serving(&world.view()));
}

#[test]
fn rollback_reuses_instance_that_is_still_draining() {
    let mut world = World::serving(1);
    world.desire(Desired::Release(Box::new(release(2, false))));
    while !world.steps.contains(&Step::Switch) {
        if let Some(at) = world.reconcile() {
            world.now = at;
        }
        world.obey();
    }
    world.steps.clear();
    world.desire(Desired::Release(Box::new(release(1, false))));
    world.reconcile();
    assert_eq!(world.steps, [Step::Return(1), Step::Switch, Step::Drain(2)]);
    assert!(world.serving_api());
    world.rest();
    assert_eq!(world.journal.instances.len(), 1);
}

/// Release 2 was just switched to from 1, and since then there has been no server.
fn switched_without_servers() -> World {
    let mut world = World::serving(1);
    world.desire(Desired::Release(Box::new(release(2, false))));
    while !world.steps.contains(&Step::Switch) {
        match next(&world.view()) {
            Next::Do(step) => world.take(step),
            Next::Wait(at) => world.now = at.unwrap_or(world.now),
        }
        world.obey();
    }
    world.has_server = false;
    world.steps.clear();
    world
}

fn is_up(world: &World, id: u64) -> bool {
    matches!(world.observed[&id].process, Process::Up { stopping: false, .. })
}

#[test]
fn replaced_instance_keeps_running_until_its_departure_is_routed() {
    let mut world = switched_without_servers();
    world.rest();
    world.now += 3_600_000;
    world.rest();
    assert_eq!(world.steps, []);
    assert!(is_up(&world, 1) && is_up(&world, 2));
    world.has_server = true;
    world.rest();
    assert_eq!(world.steps, [Step::Drain(1), Step::Stop(1), Step::Forget(1)]);
}

#[test]
fn drain_begins_when_departure_is_confirmed() {
    let mut world = switched_without_servers();
    world.now += 3_600_000;
    world.has_server = true;
    let stops_at = world.reconcile().unwrap();
    assert_eq!(stops_at, world.now + Stop::default().drain.0);
    assert_eq!(world.steps, [Step::Drain(1)]);
    // Nor does it begin anew for every confirmation.
    world.now += 1;
    assert_eq!(world.reconcile(), Some(stops_at));
}

#[test]
fn replaced_instance_keeps_running_across_agent_restart_without_servers() {
    let mut world = switched_without_servers();
    world.restart_agent();
    world.rest();
    assert_eq!(world.steps, []);
    assert!(is_up(&world, 1) && is_up(&world, 2));
    world.has_server = true;
    world.rest();
    assert_eq!(world.steps, [Step::Drain(1), Step::Stop(1), Step::Forget(1)]);
}

#[test]
fn replaced_instance_that_dies_before_its_departure_is_routed_is_restarted() {
    let mut world = switched_without_servers();
    world.die(1);
    world.rest();
    assert_eq!(world.steps, [Step::Restart(1)]);
    assert!(is_up(&world, 1));
}

#[test]
fn drained_instance_stays_away_after_agent_restart() {
    let mut world = switched_without_servers();
    world.has_server = true;
    world.reconcile();
    world.has_server = false;
    world.now += Stop::default().drain.0;
    world.reconcile();
    world.obey();
    world.restart_agent();
    world.rest();
    assert_eq!(world.steps, [Step::Drain(1), Step::Stop(1), Step::Forget(1)]);
}

#[test]
fn rollback_without_servers_keeps_both_instances_running() {
    let mut world = switched_without_servers();
    world.desire(Desired::Release(Box::new(release(1, false))));
    world.rest();
    assert_eq!(world.steps, [Step::Return(1), Step::Switch]);
    assert!(is_up(&world, 1) && is_up(&world, 2));
    world.has_server = true;
    world.rest();
    assert_eq!(world.steps[2..], [Step::Drain(2), Step::Stop(2), Step::Forget(2)]);
}

#[test]
fn departure_needs_gateways_only_where_they_route_to_a_successor() {
    let served = |service: &str, ports: &[u16], start| {
        let mut world = World::serving(1);
        let instance = world.journal.instance_mut(1).unwrap();
        instance.service = service.parse().unwrap();
        instance.settings.settings.start = start;
        instance.ports = ports.iter().map(|port| ("http".parse().unwrap(), *port)).collect();
        instance.clone()
    };
    let desired = Desired::Release(Box::new(release(2, true)));
    assert_eq!(departure_of(&served("api", &[1], Start::Beside), &desired), Departure::Routed);
    assert_eq!(departure_of(&served("worker", &[], Start::Beside), &desired), Departure::Acknowledged);
    assert_eq!(departure_of(&served("db", &[9], Start::InPlace), &desired), Departure::Acknowledged);
    assert_eq!(departure_of(&served("api", &[1], Start::Beside), &Desired::Nothing), Departure::Acknowledged);
    let unproven = Instance { served: false, ..served("api", &[1], Start::Beside) };
    assert_eq!(departure_of(&unproven, &desired), Departure::Immediate);
}

#[test]
fn departure_is_confirmed_by_the_report_that_shows_it_or_a_later_one() {
    let at = |acknowledged, routed| Confirmed { acknowledged, routed };
    assert!(!is_confirmed(Departure::Acknowledged, 5, at(4, 4)) && is_confirmed(Departure::Acknowledged, 5, at(5, 4)));
    assert!(!is_confirmed(Departure::Routed, 5, at(9, 4)) && is_confirmed(Departure::Routed, 5, at(9, 6)));
    assert!(is_confirmed(Departure::Immediate, 5, at(0, 0)));
}

#[test]
fn failed_release_is_tried_again_while_old_one_serves() {
    let mut world = World::serving(1);
    world.broken.insert(2);
    world.desire(Desired::Release(Box::new(release(2, false))));
    for _ in 0..60 {
        if let Some(at) = world.reconcile() {
            world.now = at;
        }
        world.obey();
        assert!(world.serving_api());
    }
    let starts = world.steps.iter().filter(|step| matches!(step, Step::Start { .. })).count();
    assert!(starts > 2, "{starts}");
    assert_eq!(progress(&world.view()).0, Progress::Failed);
    world.broken.clear();
    world.rest();
    assert_eq!(progress(&world.view()).0, Progress::Healthy);
}

#[test]
fn instance_that_dies_is_restarted_while_desired_state_is_unknown() {
    let mut world = World::serving(1);
    world.desire(Desired::Unknown);
    world.die(1);
    world.rest();
    assert_eq!(world.steps, [Step::Restart(1)]);
    assert!(is_serving(&world.view()));
}

#[test]
fn instance_is_unhealthy_after_three_failed_probes_in_a_row() {
    let mut world = World::serving(1);
    let mut fail = |failures| {
        world.observed.get_mut(&1).unwrap().process =
            Process::Up { since: 0, passing_since: None, failures, passed: true, stopping: false };
        progress(&world.view()).0
    };
    assert_eq!(fail(1), Progress::Healthy);
    assert_eq!(fail(UNHEALTHY_AFTER_FAILURES), Progress::Unhealthy);
}

#[test]
fn older_releases_than_three_are_removed_from_disk() {
    let mut world = World::new();
    for number in 1..=5 {
        world.desire(Desired::Release(Box::new(release(number, false))));
        world.rest();
    }
    assert_eq!(world.on_disk, [3, 4, 5].map(digest).into());
    let fetches = world.fetches;
    world.desire(Desired::Release(Box::new(release(3, false))));
    world.rest();
    assert_eq!(world.fetches, fetches, "going back moved bytes");
}

#[derive(Debug, Clone)]
enum Happens {
    Desired(Option<(u64, bool)>),
    Broken(u64),
    Mended,
    Dies(usize),
    Hangs(usize),
    Obeys,
    TimePasses,
    AgentRestarts,
    ServersGo,
    ServersReturn,
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        3 => proptest::option::weighted(0.9, (1..5_u64, any::<bool>())).prop_map(Happens::Desired),
        1 => (2..10_u64).prop_map(Happens::Broken),
        1 => Just(Happens::Mended),
        1 => (0..4_usize).prop_map(Happens::Dies),
        1 => (0..4_usize).prop_map(Happens::Hangs),
        4 => Just(Happens::Obeys),
        6 => Just(Happens::TimePasses),
        1 => Just(Happens::AgentRestarts),
        1 => Just(Happens::ServersGo),
        1 => Just(Happens::ServersReturn),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn target_runs_what_is_desired_after_any_history(history in proptest::collection::vec(happens(), 0..60)) {
        let mut world = World::new();
        for event in history {
            match event {
                Happens::Desired(None) => world.desire(Desired::Nothing),
                // A release never changes: whether it has a worker is part of its number.
                Happens::Desired(Some((number, with_worker))) => {
                    let number = number * 2 + u64::from(with_worker);
                    world.desire(Desired::Release(Box::new(release(number, with_worker))));
                }
                Happens::Broken(number) => drop(world.broken.insert(number)),
                Happens::Mended => world.mend(),
                Happens::Dies(index) => {
                    let id = world.journal.instances.get(index).map(|instance| instance.id);
                    if let Some(id) = id { world.die(id) }
                }
                Happens::Hangs(index) => world.undead.extend(world.journal.instances.get(index).map(|instance| instance.id)),
                Happens::Obeys => world.obey(),
                Happens::TimePasses => {
                    if let Some(at) = world.reconcile() { world.now = at }
                }
                Happens::AgentRestarts => world.restart_agent(),
                Happens::ServersGo => world.has_server = false,
                Happens::ServersReturn => world.has_server = true,
            }
            world.reconcile();
            world.check();
        }
        world.mend();
        world.rest();
        match world.desired.clone() {
            Desired::Unknown => prop_assert!(world.journal.instances.is_empty()),
            Desired::Nothing => {
                prop_assert!(world.journal.instances.is_empty());
                prop_assert_eq!(progress(&world.view()).0, Progress::Stopped);
                prop_assert!(world.on_disk.is_empty(), "{:?}", world.on_disk);
            }
            Desired::Release(release) => {
                prop_assert_eq!(progress(&world.view()).0, Progress::Healthy, "{:#?}", world.journal);
                prop_assert!(is_serving(&world.view()));
                let running: Vec<_> = world.journal.instances.iter().map(|instance| &instance.service).collect();
                prop_assert_eq!(running.len(), release.services.len());
                prop_assert!(world.journal.instances.iter().all(|instance| instance.release == release.release));
                prop_assert!(world.on_disk.len() <= 3 + 1);
            }
        }
    }
}
