//! What a decision depends on, and the questions that all rules ask of it. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::super::journal::{Instance, Journal, Role};
use swell_model::{
    digest::Digest,
    pipeline_file::Start,
    rollout::assignment::{DesiredRelease, DesiredService},
};

/// So many probes in a row must fail until an instance that answered counts as unhealthy.
pub const UNHEALTHY_AFTER_FAILURES: u32 = 3;

/// What a target should run of one pipeline.
#[derive(Debug, Clone, PartialEq)]
pub(in super::super) enum Desired {
    /// No server said yet: instances keep running.
    Unknown,
    /// No release is assigned: instances are stopped.
    Nothing,
    Release(Box<DesiredRelease>),
}

impl Desired {
    /// The assigned release, if a server named one.
    pub fn release(&self) -> Option<&DesiredRelease> {
        match self {
            Desired::Release(release) => Some(release),
            _ => None,
        }
    }
}

/// State of an instance's process. Times are monotonic milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Process {
    /// There is none.
    Down {
        /// When it may be started again.
        restart_at: u64,
        /// Whether it ended by itself; otherwise it was stopped, or never started, or the machine was.
        died: bool,
    },
    Up {
        /// When it was started or adopted.
        since: u64,
        /// When the first of the probes began that have passed without a failure; `None` after a failure.
        passing_since: Option<u64>,
        /// Probes that failed in a row.
        failures: u32,
        /// Whether a probe ever passed.
        passed: bool,
        /// Whether it was asked to end.
        stopping: bool,
    },
}

/// What is observed of an instance and not recorded. Times are monotonic milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Observed {
    pub process: Process,
    /// How often in a row it died before it was stable.
    pub deaths: u32,
    /// Whether what its departure waits for was confirmed in this incarnation of the agent.
    pub confirmed: bool,
    /// When its drain began; of a meaning once the confirmation is recorded.
    pub draining_since: u64,
    /// When its process may next be cleared or started; later than now after a failed step.
    pub retry_at: u64,
    /// How often in a row that failed.
    pub failed_steps: u32,
}

impl Observed {
    /// An instance without a process, to be started now.
    pub fn down(now: u64) -> Self {
        let process = Process::Down { restart_at: now, died: false };
        Self { process, deaths: 0, confirmed: false, draining_since: now, retry_at: now, failed_steps: 0 }
    }
}

/// All that a decision depends on.
pub(in super::super) struct View<'a> {
    /// The time of the decision, in monotonic milliseconds.
    pub now: u64,
    pub desired: &'a Desired,
    pub journal: &'a Journal,
    /// By the ids of instances.
    pub observed: &'a BTreeMap<u64, Observed>,
    /// The releases that are unpacked.
    pub on_disk: &'a BTreeSet<Digest>,
    /// Whether the desired release is being fetched.
    pub fetching: bool,
    /// Before this nothing is fetched or newly started.
    pub hold_until: u64,
}

impl<'a> View<'a> {
    /// The instances that are not leaving.
    pub fn staying(&self) -> impl Iterator<Item = &'a Instance> + use<'a> {
        self.journal.instances.iter().filter(|instance| instance.role != Role::Leaving)
    }

    /// The instances that are to be stopped.
    pub fn leaving(&self) -> impl Iterator<Item = &'a Instance> + Clone + use<'a> {
        self.journal.instances.iter().filter(|instance| instance.role == Role::Leaving)
    }

    /// The observation of an instance; one that was never observed counts as down and startable now.
    pub fn observed(&self, instance: &Instance) -> Observed {
        self.observed.get(&instance.id).copied().unwrap_or(Observed::down(self.now))
    }

    /// The observed state of an instance's process.
    pub fn process(&self, instance: &Instance) -> Process {
        self.observed(instance).process
    }
}

/// The earliest moment at which something changes by time alone.
pub(in super::super) struct Alarm {
    now: u64,
    /// `None` while nothing does.
    pub at: Option<u64>,
}

impl Alarm {
    pub fn new(view: &View<'_>) -> Self {
        Self { now: view.now, at: None }
    }

    /// Whether `at` has come; remembers it otherwise.
    pub fn is_due(&mut self, at: u64) -> bool {
        if at > self.now {
            self.at = Some(self.at.map_or(at, |earlier| earlier.min(at)));
        }
        at <= self.now
    }
}

pub(in super::super) fn starts_beside(settings: &DesiredService) -> bool {
    settings.settings.start == Start::Beside
}
