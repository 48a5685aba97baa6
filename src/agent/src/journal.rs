//! What is recorded of one pipeline on this target: enough to go on after a crash at any moment. Plain data; knows nothing of
//! processes.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use swell_model::{
    digest::Digest,
    fleet::observation::TargetFailure,
    ids::{EnvironmentName, PortName, ReleaseId, ServiceName},
    rollout::assignment::{DesiredRelease, DesiredService},
};

/// How many activated releases stay on the disk: to these one can go back without moving a byte.
pub(super) const RELEASES_KEPT: usize = 3;

/// The record of one pipeline on this target.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Journal {
    /// The highest number given to an instance or a run of one.
    pub last_number: u64,
    /// The instances that run or should, or leave.
    pub instances: Vec<Instance>,
    /// The release that was switched to last.
    pub active: Option<Active>,
    /// The artifacts of the releases that were switched to, the latest first, each once.
    pub activated: Vec<Digest>,
    /// How the desired release failed.
    pub attempt: Option<Attempt>,
}

/// The release that was switched to last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Active {
    pub release: ReleaseId,
    pub artifact: Digest,
    pub services: BTreeSet<ServiceName>,
}

/// How the attempts at one release went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Attempt {
    pub release: ReleaseId,
    /// Failed attempts in a row.
    pub failures: u32,
    /// The run whose failure was reported; `None` when none was started.
    pub run: Option<u64>,
    /// Whether the release failed; otherwise the failure is only what happened last.
    pub failed: bool,
    pub failure: TargetFailure,
}

/// One instance of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Instance {
    /// Its number, which stays when it is started again.
    pub id: u64,
    /// The number of its present process: another one after each start.
    pub run: u64,
    pub service: ServiceName,
    pub release: ReleaseId,
    pub environment: EnvironmentName,
    pub artifact: Digest,
    pub settings: DesiredService,
    /// The numbers that it has of those it may have.
    pub ports: BTreeMap<PortName, u16>,
    pub role: Role,
    /// What its departure waits for; of a meaning while it is leaving.
    pub departure: Departure,
    /// Whether it was ever reported as serving: then its departure is confirmed and it drains before it stops.
    pub served: bool,
    /// How often it was started again.
    pub restarts: u32,
}

/// Part that an instance plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Role {
    /// Of the release that is to be switched to.
    New,
    /// Of the release that was switched to.
    Current,
    /// Drains, stops and is forgotten.
    Leaving,
}

/// What must be confirmed before an instance that leaves may drain. Recorded, so that it is waited for anew after a restart: servers
/// confirm reports of the agent's present incarnation alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Departure {
    /// Nothing: it was never reported as serving.
    Immediate,
    /// That a report which shows it leaving is in the state that servers share.
    Acknowledged,
    /// That every connected gateway obeys such a report.
    Routed,
    /// Nothing any more: it drains.
    Confirmed,
}

impl Instance {
    /// The name of its present process on this target, below its pipeline.
    pub fn name(&self) -> String {
        format!("{}-{}", self.service, self.run)
    }
}

impl Journal {
    pub fn instance(&self, id: u64) -> Option<&Instance> {
        self.instances.iter().find(|instance| instance.id == id)
    }

    pub fn instance_mut(&mut self, id: u64) -> Option<&mut Instance> {
        self.instances.iter_mut().find(|instance| instance.id == id)
    }

    /// The instances that are not leaving.
    pub fn staying(&self) -> Vec<u64> {
        self.instances.iter().filter(|instance| instance.role != Role::Leaving).map(|instance| instance.id).collect()
    }

    /// Records a new instance, not yet started.
    pub fn add(
        &mut self,
        release: &DesiredRelease,
        service: &ServiceName,
        settings: &DesiredService,
        ports: BTreeMap<PortName, u16>,
    ) -> u64 {
        self.last_number += 1;
        self.instances.push(Instance {
            id: self.last_number,
            run: self.last_number,
            service: service.clone(),
            release: release.release.clone(),
            environment: release.environment.clone(),
            artifact: release.artifact,
            settings: settings.clone(),
            ports,
            role: Role::New,
            departure: Departure::Immediate,
            served: false,
            restarts: 0,
        });
        self.last_number
    }

    /// Gives an instance a new run.
    pub fn rerun(&mut self, id: u64) {
        self.last_number += 1;
        let number = self.last_number;
        if let Some(instance) = self.instance_mut(id) {
            instance.run = number;
            instance.restarts = instance.restarts.saturating_add(1);
        }
    }

    /// Records a failure of the desired release. Output that was kept of an earlier one stays until there is other.
    pub fn failed(&mut self, release: ReleaseId, run: Option<u64>, failed: bool, mut failure: TargetFailure) {
        let before = self.attempt.take().filter(|attempt| attempt.release == release);
        let failures = before.as_ref().map_or(0, |attempt| attempt.failures).saturating_add(u32::from(failed));
        failure.output_blob = failure.output_blob.or(before.and_then(|attempt| attempt.failure.output_blob));
        self.attempt = Some(Attempt { release, failures, run, failed, failure });
    }

    /// Lets an instance leave once `departure` is confirmed. One that leaves already keeps what it waits for.
    pub fn leave(&mut self, id: u64, departure: Departure) {
        if let Some(instance) = self.instance_mut(id)
            && instance.role != Role::Leaving
        {
            (instance.role, instance.departure) = (Role::Leaving, departure);
        }
    }

    /// Makes the instances of `release` current; everything else leaves, after what `departure_of` says.
    pub fn switch(&mut self, release: &DesiredRelease, departure_of: impl Fn(&Instance) -> Departure) {
        for id in self.staying() {
            let Some(instance) = self.instance_mut(id) else { continue };
            if instance.release == release.release {
                (instance.role, instance.served) = (Role::Current, true);
            } else {
                let departure = departure_of(instance);
                self.leave(id, departure);
            }
        }
        self.active = Some(Active {
            release: release.release.clone(),
            artifact: release.artifact,
            services: release.services.keys().cloned().collect(),
        });
        self.activated.retain(|digest| *digest != release.artifact);
        self.activated.insert(0, release.artifact);
        self.activated.truncate(RELEASES_KEPT);
        self.attempt = None;
    }
}
