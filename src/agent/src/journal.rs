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

/// The record of one pipeline.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Journal {
    /// The highest number given to an instance or a run of one.
    pub last_number: u64,
    /// The instances that run or should.
    pub instances: Vec<Instance>,
    /// The release that was switched to last.
    pub active: Option<Active>,
    /// The artifacts of the releases that were switched to, the latest first, each once.
    pub activated: Vec<Digest>,
    /// How the release that is wanted failed.
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
    /// The run whose failure was told; none when none was started.
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
    /// The ports that it has of those it may have.
    pub ports: BTreeMap<PortName, u16>,
    pub role: Role,
    /// Whether gateways were ever told to send it traffic: then it drains before it stops.
    pub served: bool,
    /// How often it was started again.
    pub restarts: u32,
}

/// What an instance is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Role {
    /// Of the release that is to be switched to.
    New,
    /// Of the release that was switched to.
    Current,
    /// It drains, stops and is forgotten.
    Leaving,
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

    /// Records a failure of the release that is wanted. Output that was kept of an earlier one stays until there is other.
    pub fn failed(&mut self, release: ReleaseId, run: Option<u64>, failed: bool, mut failure: TargetFailure) {
        let before = self.attempt.take().filter(|attempt| attempt.release == release);
        let failures = before.as_ref().map_or(0, |attempt| attempt.failures).saturating_add(u32::from(failed));
        failure.output_blob = failure.output_blob.or(before.and_then(|attempt| attempt.failure.output_blob));
        self.attempt = Some(Attempt { release, failures, run, failed, failure });
    }

    /// What is new becomes current, and everything else leaves.
    pub fn switch(&mut self, release: &DesiredRelease) {
        for instance in &mut self.instances {
            let stays = instance.release == release.release && instance.role != Role::Leaving;
            instance.role = if stays { Role::Current } else { Role::Leaving };
            instance.served |= stays;
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
