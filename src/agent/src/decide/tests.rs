//! Histories: a made-up target on which every step is taken at once, instances die, probes fail, agents restart, and what is wanted
//! changes. Whatever happened, in the end just what is wanted runs; and what serves is not stopped before its successor is proven.

use proptest::prelude::*;

use super::{super::journal::Attempt, *};
use swell_model::{
    fleet::observation::TargetFailure,
    pipeline_file::{Health, Service, Stop},
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
    wanted: Wanted,
    journal: Journal,
    seen: BTreeMap<u64, Seen>,
    on_disk: BTreeSet<Digest>,
    fetching: Option<Digest>,
    hold_until: u64,
    /// Releases whose instances never answer.
    broken: BTreeSet<u64>,
    /// Instances whose processes hang in the kernel.
    undead: BTreeSet<u64>,
    fetches: u32,
    steps: Vec<Step>,
}

impl World {
    fn new() -> Self {
        Self {
            now: 1,
            wanted: Wanted::Unknown,
            journal: Journal::default(),
            seen: BTreeMap::new(),
            on_disk: BTreeSet::new(),
            fetching: None,
            hold_until: 0,
            broken: BTreeSet::new(),
            undead: BTreeSet::new(),
            fetches: 0,
            steps: Vec::new(),
        }
    }

    fn view(&self) -> View<'_> {
        View {
            now: self.now,
            wanted: &self.wanted,
            journal: &self.journal,
            seen: &self.seen,
            on_disk: &self.on_disk,
            fetching: self.fetching.is_some(),
            hold_until: self.hold_until,
        }
    }

    fn want(&mut self, wanted: Wanted) {
        (self.wanted, self.hold_until) = (wanted, 0);
        let release = self.wanted.release().map(|release| release.release.clone());
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

    /// Takes all steps that there are at this moment; returns when the next may be.
    fn settle(&mut self) -> Option<u64> {
        for _ in 0..100 {
            match next(&self.view()) {
                Next::Wait(at) => {
                    assert!(at.is_none_or(|at| at > self.now), "waits for the past");
                    return at;
                }
                Next::Do(step) => self.take(step),
            }
            self.check();
        }
        panic!("does not settle: {:#?}", &self.steps[self.steps.len() - 10..]);
    }

    fn take(&mut self, step: Step) {
        if let Some(id) = step.of_one().filter(|id| self.undead.contains(id)) {
            let seen = self.seen.get_mut(&id).unwrap();
            (seen.retry_at, seen.troubles) = (self.now + 60_000, seen.troubles + 1);
            return self.steps.push(step);
        }
        let was_serving = self.serving_api();
        match step.clone() {
            Step::Fetch => {
                assert!(self.fetching.is_none());
                self.fetching = self.wanted.release().map(|release| release.artifact);
                self.fetches += 1;
            }
            Step::Start { service, ports } => {
                let release = self.wanted.release().unwrap().clone();
                assert!(self.on_disk.contains(&release.artifact), "started before it was there");
                let id = self.journal.add(&release, &service, &release.services[&service], ports);
                self.seen.insert(id, Seen::down(self.now));
                self.up(id);
            }
            Step::NoPort { .. } => unreachable!("every service has ports here"),
            Step::Restart(id) => {
                self.journal.rerun(id);
                self.up(id);
            }
            Step::Held { .. } => {
                let release = self.wanted.release().unwrap().release.clone();
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
                for other in self.journal.instances.iter_mut().filter(|other| {
                    other.release == instance.release && other.role == Role::New && other.settings.settings.start == Start::Beside
                }) {
                    other.role = Role::Leaving;
                    self.seen.get_mut(&other.id).unwrap().leaving_since = self.now;
                }
                self.hold_until = self.now + 30_000;
            }
            Step::Switch => {
                let staying = self.journal.staying();
                let release = self.wanted.release().unwrap().clone();
                self.journal.switch(&release);
                for id in staying {
                    self.seen.get_mut(&id).unwrap().leaving_since = self.now;
                }
            }
            Step::Leave(id) => {
                self.journal.instance_mut(id).unwrap().role = Role::Leaving;
                self.seen.get_mut(&id).unwrap().leaving_since = self.now;
            }
            Step::Return(id) => self.journal.instance_mut(id).unwrap().role = Role::New,
            Step::Stop(id) => match &mut self.seen.get_mut(&id).unwrap().process {
                Process::Up { stopping, .. } => *stopping = true,
                Process::Down { .. } => panic!("stops what does not run"),
            },
            Step::Forget(id) => {
                assert!(matches!(self.seen[&id].process, Process::Down { .. }), "forgets what runs");
                self.journal.instances.retain(|instance| instance.id != id);
                self.seen.remove(&id);
            }
            Step::Retire => {
                (self.journal.active, self.journal.attempt) = (None, None);
                self.journal.activated.clear();
            }
            Step::Remove(digest) => assert!(self.on_disk.remove(&digest)),
        }
        // Only what nobody wants any more may cost an api that serves.
        let may_stop = self.wanted == Wanted::Nothing || matches!(step, Step::Stop(_));
        assert!(!was_serving || self.serving_api() || may_stop, "{step:?} stopped what serves");
        self.steps.push(step);
    }

    fn up(&mut self, id: u64) {
        let is_broken = self.broken.contains(&self.journal.instance(id).unwrap().release.number);
        let answers = (!is_broken).then_some(self.now);
        self.seen.get_mut(&id).unwrap().process =
            Process::Up { since: self.now, passing_since: answers, failures: 0, passed: !is_broken, stopping: false };
    }

    /// What must hold at every moment.
    fn check(&self) {
        let mut taken = BTreeSet::new();
        for instance in &self.journal.instances {
            for port in instance.ports.values() {
                assert!(taken.insert((&instance.service, *port)), "two instances have port {port}");
            }
            if matches!(self.seen[&instance.id].process, Process::Up { .. }) {
                assert!(self.on_disk.contains(&instance.artifact), "runs without its files");
            }
        }
    }

    fn die(&mut self, id: u64) {
        let seen = self.seen.get_mut(&id).unwrap();
        if let Process::Up { since, stopping, .. } = seen.process {
            let (deaths, restart_at) = after_end(seen.deaths, self.now - since, self.now, &TIMING);
            seen.deaths = deaths;
            seen.process = Process::Down { restart_at, died: !stopping };
        }
    }

    /// Those that were asked to end do, what was asked for comes, and those that were found running answer their first probe.
    fn obey(&mut self) {
        for instance in &self.journal.instances {
            if let Some(Seen { process: Process::Up { passing_since, passed, failures, .. }, .. }) =
                self.seen.get_mut(&instance.id)
                && !self.broken.contains(&instance.release.number)
            {
                (*passing_since, *passed, *failures) = (passing_since.or(Some(self.now)), true, 0);
            }
        }
        let stopping: Vec<u64> = (self.seen.iter())
            .filter(|(_, seen)| matches!(seen.process, Process::Up { stopping: true, .. }))
            .map(|(id, _)| *id)
            .collect();
        stopping.into_iter().for_each(|id| self.die(id));
        self.on_disk.extend(self.fetching.take());
    }

    /// Whatever was broken works, also what runs.
    fn mend(&mut self) {
        self.broken.clear();
        self.undead.clear();
        for seen in self.seen.values_mut() {
            if let Process::Up { passing_since, passed, failures, .. } = &mut seen.process {
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
            let seen = self.seen.get_mut(&instance.id).unwrap();
            let proven = instance.role == Role::Current || instance.served;
            *seen = match seen.process {
                Process::Up { .. } => Seen {
                    process: Process::Up {
                        since: self.now,
                        passing_since: None,
                        failures: if proven { UNHEALTHY_AFTER_FAILURES - 1 } else { 0 },
                        passed: proven,
                        stopping: false,
                    },
                    ..Seen::down(self.now)
                },
                Process::Down { died, .. } => {
                    Seen { process: Process::Down { restart_at: self.now, died }, ..Seen::down(self.now) }
                }
            };
        }
    }

    /// Lets time pass until nothing happens any more.
    fn rest(&mut self) {
        for _ in 0..2_000 {
            let at = self.settle();
            self.obey();
            match (at, next(&self.view())) {
                (_, Next::Do(_)) => {}
                (_, Next::Wait(Some(at))) => self.now = at,
                // What is told may yet change with time alone.
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
        world.want(Wanted::Release(Box::new(release(number, false))));
        world.rest();
        world.steps.clear();
        world
    }
}

#[test]
fn one_that_does_not_die_keeps_nobody_waiting() {
    let mut world = World::new();
    world.want(Wanted::Release(Box::new(release(2, true))));
    world.rest();
    // The old api leaves and cannot be cleared away; meanwhile its successor dies, then the worker.
    world.want(Wanted::Release(Box::new(release(3, true))));
    for _ in 0..1_000 {
        match next(&world.view()) {
            Next::Do(Step::Forget(1)) => break,
            Next::Do(step) => world.take(step),
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
    world.settle();
    assert_eq!(world.steps, [Step::Forget(1), Step::Restart(staying[0]), Step::Restart(staying[1])]);
    // And a release that is wanted comes.
    world.want(Wanted::Release(Box::new(release(4, false))));
    world.settle();
    assert!(world.steps.contains(&Step::Fetch), "{:?}", world.steps);
    // Where it needs the port of the one that does not die, that is told.
    world.seen.get_mut(&1).unwrap().troubles = STUCK_AFTER_TROUBLES;
    world.obey();
    world.settle();
    assert_eq!(progress(&world.view()).0, Progress::Failed);
    // In the end it is tried again.
    world.mend();
    world.rest();
    assert_eq!(progress(&world.view()).0, Progress::Healthy);
    assert_eq!(world.journal.instances.len(), 1);
}

#[test]
fn a_first_release_is_fetched_started_proven_and_switched_to() {
    let world = {
        let mut world = World::new();
        world.want(Wanted::Release(Box::new(release(1, false))));
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
fn going_back_while_the_old_one_still_drains_only_turns_the_switch() {
    let mut world = World::serving(1);
    world.want(Wanted::Release(Box::new(release(2, false))));
    while !world.steps.contains(&Step::Switch) {
        if let Some(at) = world.settle() {
            world.now = at;
        }
        world.obey();
    }
    world.steps.clear();
    world.want(Wanted::Release(Box::new(release(1, false))));
    world.settle();
    assert_eq!(world.steps, [Step::Return(1), Step::Switch]);
    assert!(world.serving_api());
    world.rest();
    assert_eq!(world.journal.instances.len(), 1);
}

#[test]
fn a_release_that_fails_is_tried_again_after_a_while_and_the_old_one_stays() {
    let mut world = World::serving(1);
    world.broken.insert(2);
    world.want(Wanted::Release(Box::new(release(2, false))));
    for _ in 0..60 {
        if let Some(at) = world.settle() {
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
fn without_a_word_from_any_server_what_runs_goes_on() {
    let mut world = World::serving(1);
    world.want(Wanted::Unknown);
    world.die(1);
    world.rest();
    assert_eq!(world.steps, [Step::Restart(1)]);
    assert!(is_serving(&world.view()));
}

#[test]
fn a_probe_that_fails_once_is_no_news_and_three_are() {
    let mut world = World::serving(1);
    let mut fail = |failures| {
        world.seen.get_mut(&1).unwrap().process =
            Process::Up { since: 0, passing_since: None, failures, passed: true, stopping: false };
        progress(&world.view()).0
    };
    assert_eq!(fail(1), Progress::Healthy);
    assert_eq!(fail(UNHEALTHY_AFTER_FAILURES), Progress::Unhealthy);
}

#[test]
fn only_the_last_three_releases_stay() {
    let mut world = World::new();
    for number in 1..=5 {
        world.want(Wanted::Release(Box::new(release(number, false))));
        world.rest();
    }
    assert_eq!(world.on_disk, [3, 4, 5].map(digest).into());
    let fetches = world.fetches;
    world.want(Wanted::Release(Box::new(release(3, false))));
    world.rest();
    assert_eq!(world.fetches, fetches, "going back moved bytes");
}

#[derive(Debug, Clone)]
enum Happens {
    Wanted(Option<(u64, bool)>),
    Broken(u64),
    Mended,
    Dies(usize),
    Hangs(usize),
    Obeys,
    TimePasses,
    AgentRestarts,
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        3 => proptest::option::weighted(0.9, (1..5_u64, any::<bool>())).prop_map(Happens::Wanted),
        1 => (2..10_u64).prop_map(Happens::Broken),
        1 => Just(Happens::Mended),
        1 => (0..4_usize).prop_map(Happens::Dies),
        1 => (0..4_usize).prop_map(Happens::Hangs),
        4 => Just(Happens::Obeys),
        6 => Just(Happens::TimePasses),
        1 => Just(Happens::AgentRestarts),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_in_the_end_just_what_is_wanted_runs(history in proptest::collection::vec(happens(), 0..60)) {
        let mut world = World::new();
        for event in history {
            match event {
                Happens::Wanted(None) => world.want(Wanted::Nothing),
                // A release never changes: whether it has a worker is part of its number.
                Happens::Wanted(Some((number, with_worker))) => {
                    let number = number * 2 + u64::from(with_worker);
                    world.want(Wanted::Release(Box::new(release(number, with_worker))));
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
                    if let Some(at) = world.settle() { world.now = at }
                }
                Happens::AgentRestarts => world.restart_agent(),
            }
            world.settle();
            world.check();
        }
        world.mend();
        world.rest();
        match world.wanted.clone() {
            Wanted::Unknown => prop_assert!(world.journal.instances.is_empty()),
            Wanted::Nothing => {
                prop_assert!(world.journal.instances.is_empty());
                prop_assert_eq!(progress(&world.view()).0, Progress::Stopped);
                prop_assert!(world.on_disk.is_empty(), "{:?}", world.on_disk);
            }
            Wanted::Release(release) => {
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
