//! How environments, deployments, targets and runners look from outside.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;

use super::{rollout::TargetFailureView, targets::TargetSet};
use swell_model::{
    build::Runner,
    fleet::{
        Environment, Target,
        observation::{InstanceState, Observation},
    },
    rollout::Deployment,
    tables::{ReadTables, TablesError},
};

/// A named set of targets and the policy for changing them.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct EnvironmentView {
    /// Its name.
    pub name: String,
    /// The labels that its targets have.
    pub selector: BTreeMap<String, String>,
    /// The targets that match; only counted in lists.
    pub members: TargetSet,
    /// Why nothing may be deployed now, where it is so.
    pub frozen: Option<FreezeView>,
    /// Every wave but the last bakes at least so long.
    pub least_bake_ms: Option<u64>,
    /// The first wave is at most this: a count or a share.
    pub first_wave_max: Option<String>,
    /// When it was created.
    pub created_at: u64,
    /// Its revision: the `ETag`.
    pub revision: u64,
}

/// A freeze.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct FreezeView {
    /// Why.
    pub why: String,
    /// Who.
    pub by: String,
    /// Since when.
    pub at: u64,
}

impl EnvironmentView {
    /// With at most `named_max` names of its targets.
    pub fn new<T: ReadTables>(tables: &T, environment: Environment, named_max: usize) -> Result<Self, TablesError> {
        Ok(Self {
            members: TargetSet::of(tables, &environment.members, named_max)?,
            name: environment.name.to_string(),
            selector: environment.selector,
            frozen: environment.frozen.map(|f| FreezeView { why: f.why, by: f.by.to_string(), at: f.at.0 }),
            least_bake_ms: environment.policy.least_bake.map(|bake| bake.0),
            first_wave_max: environment.policy.first_wave_max.map(|most| most.to_string()),
            created_at: environment.created_at.0,
            revision: environment.revision,
        })
    }
}

/// What a pipeline has in an environment.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct DeploymentView {
    /// Where.
    pub environment: String,
    /// Whose.
    pub pipeline: String,
    /// What every target runs, but those that an open rollout has moved.
    pub stable: Option<String>,
    /// The rollout at work.
    pub rollout: Option<String>,
    /// The rollout that waits for it.
    pub next: Option<String>,
    /// Where `rollback` goes; none: there is nothing to go back to.
    pub former: Option<String>,
    /// What was there before, newest first.
    pub history: Vec<PastView>,
    /// What may not be deployed until a person clears it.
    pub quarantined: Vec<QuarantinedView>,
}

/// A rollout that ended.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct PastView {
    /// Which release.
    pub release: String,
    /// By which rollout.
    pub rollout: String,
    /// How it ended.
    pub end: String,
    /// When.
    pub at: u64,
}

/// A release that was rolled back.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct QuarantinedView {
    /// Which.
    pub release: String,
    /// Which rollout went back from it.
    pub rollout: String,
    /// Why.
    pub why: String,
    /// Since when.
    pub at: u64,
}

impl From<Deployment> for DeploymentView {
    fn from(deployment: Deployment) -> Self {
        let past = |past: swell_model::rollout::Past| PastView {
            release: past.release.to_string(),
            rollout: past.rollout.to_string(),
            end: past.end.to_string(),
            at: past.at.0,
        };
        let quarantined = |kept: swell_model::rollout::Quarantined| QuarantinedView {
            release: kept.release.to_string(),
            rollout: kept.rollout.to_string(),
            why: kept.why,
            at: kept.at.0,
        };
        Self {
            former: deployment.former(deployment.stable.as_ref()).map(ToString::to_string),
            environment: deployment.environment.to_string(),
            pipeline: deployment.pipeline.to_string(),
            stable: deployment.stable.map(|release| release.to_string()),
            rollout: deployment.rollout.map(|id| id.to_string()),
            next: deployment.next.map(|id| id.to_string()),
            history: deployment.history.into_iter().map(past).collect(),
            quarantined: deployment.quarantined.into_iter().map(quarantined).collect(),
        }
    }
}

/// One server of the fleet.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct TargetView {
    /// Its name.
    pub name: String,
    /// Its number: what bitmaps hold.
    pub index: u32,
    /// The region it stands in.
    pub region: String,
    /// The zone within the region.
    pub zone: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Where gateways reach its instances.
    pub address: String,
    /// Whether its agent is connected to a server.
    pub connected: bool,
    /// Why no rollout may change it, where someone said so.
    pub cordoned: Option<String>,
    /// The version of its agent.
    pub agent_version: String,
    /// When it first joined.
    pub joined_at: u64,
    /// What it said of each pipeline; empty in lists.
    pub observations: Vec<ObservationView>,
    /// Its revision: the `ETag`.
    pub revision: u64,
}

/// What a target said last of a pipeline.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ObservationView {
    /// Whose.
    pub pipeline: String,
    /// The release that it should run.
    pub release: Option<String>,
    /// How far it has come, such as `healthy`.
    pub progress: String,
    /// Whether a healthy instance of every service answers.
    pub serving: bool,
    /// Its running instances.
    pub instances: Vec<InstanceView>,
    /// What went wrong last.
    pub failure: Option<TargetFailureView>,
    /// When it said it.
    pub at: u64,
}

/// A running instance of a service.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct InstanceView {
    /// Of which service.
    pub service: String,
    /// Of which release.
    pub release: String,
    /// Its ports.
    pub ports: BTreeMap<String, u16>,
    /// `starting`, `serving`, `unhealthy` or `draining`.
    pub state: String,
    /// How often it was started again.
    pub restarts: u32,
}

impl TargetView {
    /// Without what it said.
    pub fn brief(target: Target, connected: bool) -> Self {
        Self {
            name: target.info.name.to_string(),
            index: target.index,
            region: target.info.region,
            zone: target.info.zone,
            labels: target.info.labels,
            address: target.info.address.to_string(),
            connected,
            cordoned: target.cordoned,
            agent_version: target.info.agent_version,
            joined_at: target.joined_at.0,
            observations: Vec::new(),
            revision: target.revision,
        }
    }
}

impl From<Observation> for ObservationView {
    fn from(observation: Observation) -> Self {
        let report = observation.report;
        let instances = report.instances.into_iter().map(|instance| InstanceView {
            service: instance.service.to_string(),
            release: instance.release.to_string(),
            ports: instance.ports.into_iter().map(|(name, port)| (name.to_string(), port)).collect(),
            state: match instance.state {
                InstanceState::Starting => "starting",
                InstanceState::Serving => "serving",
                InstanceState::Unhealthy => "unhealthy",
                InstanceState::Draining => "draining",
            }
            .to_owned(),
            restarts: instance.restarts,
        });
        Self {
            pipeline: report.pipeline.to_string(),
            release: report.release.map(|release| release.to_string()),
            progress: report.progress.name().to_owned(),
            serving: report.serving,
            instances: instances.collect(),
            failure: report.failure.map(Into::into),
            at: observation.at.0,
        }
    }
}

/// A machine that runs builds.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct RunnerView {
    /// Its name.
    pub name: String,
    /// Thousandths of a CPU that it has in all.
    pub cpu_millis: u32,
    /// Memory that it has in all.
    pub memory_bytes: u64,
    /// The builds at work there.
    pub builds: Vec<String>,
    /// When it registered.
    pub registered_at: u64,
}

impl RunnerView {
    /// With the builds at work there.
    pub fn new(runner: Runner, builds: Vec<String>) -> Self {
        Self {
            name: runner.name.to_string(),
            cpu_millis: runner.resources.cpu_millis,
            memory_bytes: runner.resources.memory.0,
            builds,
            registered_at: runner.registered_at.0,
        }
    }
}
