//! The rules of converging: what is wanted, what is recorded and what is seen give the next step, and how far things have come.
//! Pure: no clock, no I/O. Must not know how steps are taken.
//!
//! One step at a time: whoever takes it asks again afterwards. The order in which the rules stand is their priority.
//!
//! A release starts as a whole. Its services that start beside come first, then, when all of those are proven, those that start in
//! place; when every service is proven one switch makes the new instances current and the others leave. Should a new instance fail
//! before that, those that started beside leave again and what was current stays.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    journal::{Instance, Journal, Role},
    options::Timing,
};
use swell_model::{
    digest::Digest,
    fleet::observation::{InstanceState, Progress},
    ids::{PortName, ServiceName},
    pipeline_file::{Probe, Start},
    rollout::assignment::{DesiredRelease, DesiredService},
};

/// So many probes in a row must fail until an instance that answered counts as unhealthy.
pub const UNHEALTHY_AFTER_FAILURES: u32 = 3;

/// So often in a row it must have been tried in vain to clear an instance away until others no longer count on its end.
const STUCK_AFTER_TROUBLES: u32 = 3;

/// What a target should run of one pipeline.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Wanted {
    /// No server ever said: what runs goes on.
    Unknown,
    /// Nothing.
    Nothing,
    /// This.
    Release(Box<DesiredRelease>),
}

impl Wanted {
    pub fn release(&self) -> Option<&DesiredRelease> {
        match self {
            Wanted::Release(release) => Some(release),
            _ => None,
        }
    }
}

/// What is seen of an instance's process. Times are monotonic milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Process {
    /// There is none.
    Down {
        /// When it may be started again.
        restart_at: u64,
        /// Whether it ended by itself; otherwise it was stopped, or never started, or the machine was.
        died: bool,
    },
    /// It runs.
    Up {
        /// Since when.
        since: u64,
        /// Since when its probes pass without one that failed.
        passing_since: Option<u64>,
        /// Probes that failed in a row.
        failures: u32,
        /// Whether a probe ever passed.
        passed: bool,
        /// Whether it was asked to end.
        stopping: bool,
    },
}

/// What is seen of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    pub process: Process,
    /// How often in a row it died before it was stable.
    pub deaths: u32,
    /// Since when it is leaving.
    pub leaving_since: u64,
    /// Before this its process is neither cleared nor started again: that could not be done the last time.
    pub retry_at: u64,
    /// How often in a row it could not.
    pub troubles: u32,
}

impl Seen {
    /// Without a process, to be started now.
    pub fn down(now: u64) -> Self {
        let process = Process::Down { restart_at: now, died: false };
        Self { process, deaths: 0, leaving_since: now, retry_at: now, troubles: 0 }
    }
}

/// All that a decision depends on.
pub(super) struct View<'a> {
    pub now: u64,
    pub wanted: &'a Wanted,
    pub journal: &'a Journal,
    pub seen: &'a BTreeMap<u64, Seen>,
    /// The releases that are unpacked.
    pub on_disk: &'a BTreeSet<Digest>,
    /// Whether the wanted release is on its way.
    pub fetching: bool,
    /// Before this nothing is fetched or newly started.
    pub hold_until: u64,
}

/// What is wrong with a new instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// It ended by itself.
    Died,
    /// No probe passed within `start_timeout`.
    NeverAnswered,
    /// It answered, then no longer.
    StoppedAnswering,
    /// It answers now and then, and did not become healthy in time.
    Unsteady,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Bring the wanted release to the disk. It takes a while; the answer comes later.
    Fetch,
    /// Record and start a new instance of the wanted release.
    Start { service: ServiceName, ports: BTreeMap<PortName, u16> },
    /// The service cannot be started, because it has no port.
    NoPort { service: ServiceName, port: PortName },
    /// The service cannot be started, because an instance that left it does not end and has its ports.
    Held { service: ServiceName, by: u64 },
    /// Start an instance again, whose process is gone.
    Restart(u64),
    /// Keep the evidence; new instances that started beside leave.
    Fail { id: u64, fault: Fault },
    /// What is new becomes current, the rest leaves.
    Switch,
    /// It is no longer needed: it drains, then stops.
    Leave(u64),
    /// It is needed again before it was stopped.
    Return(u64),
    /// Ask it to end.
    Stop(u64),
    /// Its process is gone: clear what it left.
    Forget(u64),
    /// Nothing runs any more: the pipeline has no active release.
    Retire,
    /// Remove a release from the disk.
    Remove(Digest),
}

impl Step {
    /// The instance that alone is to blame when the step cannot be taken: its process, say, hangs in the kernel and does not die.
    pub fn of_one(&self) -> Option<u64> {
        match self {
            Step::Forget(id) | Step::Restart(id) => Some(*id),
            _ => None,
        }
    }
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// This.
    Do(Step),
    /// Nothing before this moment, unless something happens.
    Wait(Option<u64>),
}

/// The earliest moment at which something changes by time alone.
struct Alarm {
    now: u64,
    at: Option<u64>,
}

impl Alarm {
    /// Whether `at` has come; remembers it otherwise.
    fn is_due(&mut self, at: u64) -> bool {
        if at > self.now {
            self.at = Some(self.at.map_or(at, |earlier| earlier.min(at)));
        }
        at <= self.now
    }
}

/// What to do next.
pub(super) fn next(view: &View<'_>) -> Next {
    let mut alarm = Alarm { now: view.now, at: None };
    let step = departures(view, &mut alarm)
        .or_else(|| match view.wanted {
            Wanted::Unknown => None,
            Wanted::Nothing => {
                let is_over =
                    view.journal.instances.is_empty() && (view.journal.active.is_some() || view.journal.attempt.is_some());
                staying(view).next().map(|instance| Step::Leave(instance.id)).or(is_over.then_some(Step::Retire))
            }
            Wanted::Release(release) => converge(view, release, &mut alarm),
        })
        .or_else(|| restarts(view, &mut alarm))
        .or_else(|| removals(view));
    step.map_or(Next::Wait(alarm.at), Next::Do)
}

fn staying<'a>(view: &View<'a>) -> impl Iterator<Item = &'a Instance> + use<'a> {
    view.journal.instances.iter().filter(|instance| instance.role != Role::Leaving)
}

fn process(view: &View<'_>, instance: &Instance) -> Process {
    seen(view, instance).process
}

fn seen(view: &View<'_>, instance: &Instance) -> Seen {
    view.seen.get(&instance.id).copied().unwrap_or(Seen::down(view.now))
}

/// Those that leave: drain, stop, forget.
fn departures(view: &View<'_>, alarm: &mut Alarm) -> Option<Step> {
    for instance in view.journal.instances.iter().filter(|instance| instance.role == Role::Leaving) {
        if returns(view, instance) {
            continue;
        }
        let seen = seen(view, instance);
        match seen.process {
            Process::Down { .. } if alarm.is_due(seen.retry_at) => return Some(Step::Forget(instance.id)),
            Process::Up { stopping: false, .. } => {
                let drain = if instance.served { instance.settings.settings.stop.drain.0 } else { 0 };
                if alarm.is_due(seen.leaving_since.saturating_add(drain)) {
                    return Some(Step::Stop(instance.id));
                }
            }
            Process::Down { .. } | Process::Up { stopping: true, .. } => {}
        }
    }
    None
}

/// Whether a leaving instance is wanted again and still good.
fn returns(view: &View<'_>, instance: &Instance) -> bool {
    let Some(release) = view.wanted.release() else { return false };
    let is_good = matches!(process(view, instance), Process::Up { stopping: false, passing_since: Some(_), .. });
    let is_alone = !staying(view).any(|other| other.service == instance.service && other.release == instance.release);
    is_good
        && is_alone
        && instance.served
        && instance.release == release.release
        && release.services.contains_key(&instance.service)
}

fn converge(view: &View<'_>, release: &DesiredRelease, alarm: &mut Alarm) -> Option<Step> {
    let is_wanted = |instance: &Instance| instance.release == release.release && release.services.contains_key(&instance.service);
    if let Some(instance) =
        view.journal.instances.iter().find(|instance| instance.role == Role::Leaving && returns(view, instance))
    {
        return Some(Step::Return(instance.id));
    }
    // Of a release that was wanted for a while: those beside are in nobody's way and of no use.
    let stale = |instance: &&Instance| instance.role == Role::New && !is_wanted(instance) && starts_beside(&instance.settings);
    if let Some(instance) = staying(view).find(stale) {
        return Some(Step::Leave(instance.id));
    }
    for instance in staying(view).filter(|instance| instance.role == Role::New && is_wanted(instance)) {
        if let Some(fault) = fault(view, instance, alarm) {
            if view.journal.attempt.as_ref().is_none_or(|attempt| attempt.run != Some(instance.run)) {
                return Some(Step::Fail { id: instance.id, fault });
            }
            // In place: told already; it is killed, so that it is started again.
            if let Process::Up { stopping: false, .. } = process(view, instance) {
                return Some(Step::Stop(instance.id));
            }
        }
    }
    let candidate = |service: &ServiceName| staying(view).find(|instance| instance.service == *service && is_wanted(instance));
    let mut ready = |service: &ServiceName| candidate(service).is_some_and(|instance| is_ready(view, instance, alarm));
    let ready: BTreeSet<&ServiceName> = release.services.keys().filter(|service| ready(service)).collect();
    let is_complete = !release.services.is_empty() || view.on_disk.contains(&release.artifact);
    if ready.len() == release.services.len() && is_complete {
        let is_switched = staying(view).all(|instance| instance.role == Role::Current && is_wanted(instance));
        let is_recorded = view.journal.active.as_ref().is_some_and(|active| active.release == release.release);
        return (!is_switched || !is_recorded).then_some(Step::Switch);
    }
    let missing = || release.services.iter().filter(|(service, _)| candidate(service).is_none());
    if (missing().next().is_none() && is_complete) || !alarm.is_due(view.hold_until) {
        return None;
    }
    if !view.on_disk.contains(&release.artifact) {
        return (!view.fetching).then_some(Step::Fetch);
    }
    for (service, settings) in missing().filter(|(_, settings)| starts_beside(settings)) {
        match free_ports(view, service, settings) {
            Ok(Some(ports)) => return Some(Step::Start { service: service.clone(), ports }),
            // Those that leave have the ports: one of them is free when they are gone.
            Ok(None) => {
                if let Some(held) = held(view, service) {
                    return Some(held);
                }
            }
            Err(port) => return Some(Step::NoPort { service: service.clone(), port }),
        }
    }
    let beside_is_ready = release.services.iter().all(|(service, settings)| !starts_beside(settings) || ready.contains(service));
    for (service, settings) in missing().filter(|(_, settings)| !starts_beside(settings) && beside_is_ready) {
        if let Some(old) = staying(view).find(|instance| instance.service == *service) {
            return Some(Step::Leave(old.id));
        }
        if let Some(held) = held(view, service) {
            return Some(held);
        }
        if view.journal.instances.iter().any(|instance| instance.service == *service) {
            continue;
        }
        match free_ports(view, service, settings) {
            Ok(Some(ports)) => return Some(Step::Start { service: service.clone(), ports }),
            Ok(None) => {}
            Err(port) => return Some(Step::NoPort { service: service.clone(), port }),
        }
    }
    None
}

/// That the service waits for instances none of which could be cleared away. Otherwise it need not wait for long.
fn held(view: &View<'_>, service: &ServiceName) -> Option<Step> {
    let is_leaving = |instance: &&Instance| instance.service == *service && instance.role == Role::Leaving;
    let mut leaving = view.journal.instances.iter().filter(is_leaving);
    let by = leaving.clone().next()?.id;
    let is_held = leaving.all(|instance| seen(view, instance).troubles >= STUCK_AFTER_TROUBLES);
    is_held.then(|| Step::Held { service: service.clone(), by })
}

fn starts_beside(settings: &DesiredService) -> bool {
    settings.settings.start == Start::Beside
}

/// For each port the one that no instance of the service has, none while all are had; or the port that has no number at all.
fn free_ports(
    view: &View<'_>,
    service: &ServiceName,
    settings: &DesiredService,
) -> Result<Option<BTreeMap<PortName, u16>>, PortName> {
    let mut ports = BTreeMap::new();
    for (port, numbers) in &settings.ports {
        let siblings = || view.journal.instances.iter().filter(|instance| instance.service == *service);
        let is_free = |number: &u16| !siblings().any(|sibling| sibling.ports.values().any(|taken| taken == number));
        let free = match numbers[..] {
            [] => return Err(port.clone()),
            // A fixed port: a program that starts beside itself shares it.
            [number] if starts_beside(settings) => Some(number),
            _ => numbers.iter().copied().find(is_free),
        };
        let Some(number) = free else { return Ok(None) };
        ports.insert(port.clone(), number);
    }
    Ok(Some(ports))
}

/// What is wrong with a new instance, if anything.
fn fault(view: &View<'_>, instance: &Instance, alarm: &mut Alarm) -> Option<Fault> {
    let health = &instance.settings.settings.health;
    match process(view, instance) {
        Process::Down { died, .. } => died.then_some(Fault::Died),
        // As it was asked to.
        Process::Up { stopping: true, .. } => None,
        Process::Up { passed: true, failures, .. } if failures >= UNHEALTHY_AFTER_FAILURES => Some(Fault::StoppedAnswering),
        Process::Up { passed: false, since, .. } => {
            alarm.is_due(since.saturating_add(health.start_timeout.0)).then_some(Fault::NeverAnswered)
        }
        Process::Up { since, .. } if !is_ready(view, instance, alarm) => {
            // After the last moment for the first answer: `min_healthy`, and as many probes more as may fail.
            let grace = health.min_healthy.0 + u64::from(UNHEALTHY_AFTER_FAILURES) * (health.interval.0 + health.timeout.0);
            alarm.is_due(since.saturating_add(health.start_timeout.0).saturating_add(grace)).then_some(Fault::Unsteady)
        }
        Process::Up { .. } => None,
    }
}

/// Whether it has proven itself: once it is current, it has.
fn is_ready(view: &View<'_>, instance: &Instance, alarm: &mut Alarm) -> bool {
    if instance.role == Role::Current {
        return true;
    }
    match process(view, instance) {
        Process::Up { passing_since: Some(since), stopping: false, .. } => {
            alarm.is_due(since.saturating_add(instance.settings.settings.health.min_healthy.0))
        }
        _ => false,
    }
}

/// Those that should run and don't.
fn restarts(view: &View<'_>, alarm: &mut Alarm) -> Option<Step> {
    let due = |instance: &&Instance| {
        let seen = seen(view, instance);
        match seen.process {
            Process::Down { restart_at, .. } => alarm.is_due(restart_at.max(seen.retry_at)),
            Process::Up { .. } => false,
        }
    };
    staying(view).find(due).map(|instance| Step::Restart(instance.id))
}

/// A release that nobody needs: not wanted, not run, not among the last ones.
fn removals(view: &View<'_>) -> Option<Step> {
    if matches!(view.wanted, Wanted::Unknown) || view.fetching {
        return None;
    }
    let wanted = view.wanted.release().map(|release| release.artifact);
    let is_needed = |digest: &&Digest| {
        view.journal.activated.contains(digest)
            || wanted == Some(**digest)
            || view.journal.instances.iter().any(|instance| instance.artifact == **digest)
    };
    view.on_disk.iter().find(|digest| !is_needed(digest)).map(|digest| Step::Remove(*digest))
}

/// What servers are told that an instance is doing; none for one that has left.
pub(super) fn instance_state(view: &View<'_>, instance: &Instance) -> Option<InstanceState> {
    let seen = seen(view, instance);
    let Process::Up { passing_since, failures, passed, stopping, .. } = seen.process else {
        return (instance.role != Role::Leaving).then_some(InstanceState::Unhealthy);
    };
    let health = &instance.settings.settings.health;
    // One that died and is not probed must first show that it stays up.
    let must_last = matches!(health.probe(), Probe::Alive) && seen.deaths > 0;
    let answers = passing_since.is_some_and(|since| !must_last || since.saturating_add(health.min_healthy.0) <= view.now);
    // One probe that fails is not yet news, unless it never answered.
    let answers = answers || (passed && !must_last && failures < UNHEALTHY_AFTER_FAILURES);
    Some(match instance.role {
        Role::Leaving => InstanceState::Draining,
        _ if stopping => InstanceState::Unhealthy,
        // Until the switch traffic goes to the old one; in place there is no other.
        Role::New if starts_beside(&instance.settings) => InstanceState::Starting,
        _ if answers => InstanceState::Serving,
        _ if failures >= UNHEALTHY_AFTER_FAILURES && passed => InstanceState::Unhealthy,
        _ => InstanceState::Starting,
    })
}

/// Whether an instance of each service answers, whichever its release.
pub(super) fn is_serving(view: &View<'_>) -> bool {
    let serving: BTreeSet<&ServiceName> = (view.journal.instances.iter())
        .filter(|instance| instance_state(view, instance) == Some(InstanceState::Serving))
        .map(|instance| &instance.service)
        .collect();
    match (&view.journal.active, view.wanted) {
        (_, Wanted::Nothing) => false,
        (Some(active), _) => active.services.iter().all(|service| serving.contains(service)),
        (None, Wanted::Release(release)) => release.services.keys().all(|service| serving.contains(service)),
        (None, Wanted::Unknown) => false,
    }
}

/// How far the pipeline has come with what is wanted. `alarm` learns when that changes by time alone.
pub(super) fn progress(view: &View<'_>) -> (Progress, Option<u64>) {
    let Some(release) = view.wanted.release() else {
        // With the last instance the link goes.
        let gone = view.journal.instances.is_empty() && view.journal.active.is_none();
        return (if gone { Progress::Stopped } else { Progress::Stopping }, None);
    };
    let mut alarm = Alarm { now: view.now, at: None };
    let is_switched = view.journal.active.as_ref().is_some_and(|active| active.release == release.release)
        && staying(view).all(|instance| instance.role == Role::Current)
        && release.services.keys().all(|service| staying(view).any(|instance| instance.service == *service));
    if is_switched {
        let mut is_healthy = |instance: &Instance| {
            let proven = match process(view, instance) {
                Process::Up { since, passed: true, .. } => {
                    // After a restart it must prove itself again.
                    seen(view, instance).deaths == 0
                        || alarm.is_due(since.saturating_add(instance.settings.settings.health.min_healthy.0))
                }
                _ => false,
            };
            instance_state(view, instance) == Some(InstanceState::Serving) && proven
        };
        let healthy = staying(view).all(&mut is_healthy);
        return (if healthy { Progress::Healthy } else { Progress::Unhealthy }, alarm.at);
    }
    let failed = view.journal.attempt.as_ref().is_some_and(|attempt| attempt.failed && attempt.release == release.release);
    let progress = match (failed, view.on_disk.contains(&release.artifact)) {
        (true, _) => Progress::Failed,
        (false, false) => Progress::Fetching,
        (false, true) => Progress::Starting,
    };
    (progress, None)
}

/// What follows for an instance from the end of its process: how many deaths in a row, and when it may start again.
pub(super) fn after_end(deaths: u32, lived_ms: u64, now: u64, timing: &Timing) -> (u32, u64) {
    let deaths = if lived_ms >= timing.stable_after.0 { 1 } else { deaths.saturating_add(1) };
    (deaths, now.saturating_add(super::options::backoff_ms(deaths, timing.restart_first, timing.restart_most)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
