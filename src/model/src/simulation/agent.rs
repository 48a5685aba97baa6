//! A simulated agent: runs what it is assigned, after a while, and reports it. Knows the rules of reports, not the rules of rollouts.

use crate::simulation::random::Random;
use crate::{
    apply::testing::name,
    fleet::observation::{Progress, Report, TargetFailure},
    ids::ReleaseId,
};

/// How a release behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    Good,
    /// Never becomes healthy, on one target of so many.
    Bad(u64),
    /// Fails at first and recovers.
    Slow,
}

pub struct Agent {
    pub target: u32,
    pub connected: bool,
    pub assigned: Option<ReleaseId>,
    pub progress: Progress,
    /// What answers now.
    pub serves: Option<ReleaseId>,
    /// Something changed that no report has told yet.
    pub unsaid: bool,
    /// Reports that are still on their way, although newer ones may have arrived.
    pub stragglers: Vec<Report>,
}

impl Agent {
    pub fn new(target: u32) -> Self {
        let progress = Progress::Stopped;
        Self { target, connected: true, assigned: None, progress, serves: None, unsaid: false, stragglers: Vec::new() }
    }

    fn become_(&mut self, progress: Progress) {
        self.unsaid |= self.progress != progress;
        self.progress = progress;
    }

    /// Learns what it should run.
    pub fn assign(&mut self, assigned: Option<ReleaseId>) {
        if self.assigned == assigned {
            return;
        }
        self.assigned = assigned;
        self.unsaid = true;
        self.progress = match &self.assigned {
            None => {
                self.serves = None;
                Progress::Stopped
            }
            Some(release) if self.serves.as_ref() == Some(release) => Progress::Healthy,
            Some(_) => Progress::Fetching,
        };
    }

    /// One step of its work.
    pub fn work(&mut self, behaviour: Behaviour, in_place: bool, faults: bool, random: &mut Random) {
        if self.assigned.is_none() {
            return;
        }
        match self.progress {
            Progress::Fetching => {
                if in_place {
                    self.serves = None;
                }
                self.become_(Progress::Starting);
            }
            Progress::Starting => {
                let fails = match behaviour {
                    Behaviour::Good => faults && random.chance(2),
                    Behaviour::Bad(of) => u64::from(self.target) % of == 0,
                    Behaviour::Slow => random.chance(40),
                };
                if fails {
                    self.become_(Progress::Failed);
                } else {
                    self.serves = self.assigned.clone();
                    self.become_(Progress::Healthy);
                }
            }
            Progress::Healthy if faults && random.chance(2) => {
                self.serves = None;
                self.become_(Progress::Unhealthy);
            }
            Progress::Unhealthy if random.chance(40) => {
                self.serves = self.assigned.clone();
                self.become_(Progress::Healthy);
            }
            Progress::Failed if !matches!(behaviour, Behaviour::Bad(_)) && random.chance(30) => self.become_(Progress::Starting),
            _ => {}
        }
    }

    pub fn report(&self) -> Report {
        let failed = matches!(self.progress, Progress::Failed | Progress::Unhealthy);
        let failure = failed.then(|| TargetFailure {
            service: None,
            reason: "exit 3".into(),
            hint: String::new(),
            exit: None,
            probe: None,
            output: String::new(),
            output_blob: None,
        });
        Report {
            pipeline: name("shop"),
            release: self.assigned.clone(),
            progress: self.progress,
            serving: self.serves.is_some(),
            instances: Vec::new(),
            failure,
        }
    }
}
