//! The API's views of environments, deployments, targets and runners.

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

/// Set of targets and the policy for changing them.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct EnvironmentView {
    /// Name of the environment.
    pub name: String,
    /// Labels that its targets have.
    pub selector: BTreeMap<String, String>,
    /// Targets with these labels; without names in lists.
    pub members: TargetSet,
    /// The freeze, if deploys are forbidden.
    pub frozen: Option<FreezeView>,
    /// Least bake time of every wave but the last.
    pub least_bake_ms: Option<u64>,
    /// Largest first wave: a number of targets or a share.
    pub first_wave_max: Option<String>,
    /// Time of its creation.
    pub created_at: u64,
    /// Revision, also sent as `ETag`.
    pub revision: u64,
}

/// Freeze of an environment.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct FreezeView {
    /// Reason of the freeze.
    pub why: String,
    /// Principal that froze it.
    pub by: String,
    /// Time of the freeze.
    pub at: u64,
}

impl EnvironmentView {
    /// The environment with the names of at most `named_max` targets.
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

/// A pipeline's releases in an environment.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct DeploymentView {
    /// Name of the environment.
    pub environment: String,
    /// Name of the pipeline.
    pub pipeline: String,
    /// Release that every target runs, except those that an open rollout has changed.
    pub stable: Option<String>,
    /// Id of the open rollout.
    pub rollout: Option<String>,
    /// Id of the rollout that waits for the open one.
    pub next: Option<String>,
    /// Release that a rollback returns to, if there is one.
    pub former: Option<String>,
    /// Ended rollouts, newest first.
    pub history: Vec<PastView>,
    /// Releases that may not be deployed until they are cleared.
    pub quarantined: Vec<QuarantinedView>,
}

/// Rollout that has ended in this environment.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct PastView {
    /// Id of the release.
    pub release: String,
    /// Id of the rollout.
    pub rollout: String,
    /// Final state of the rollout.
    pub end: String,
    /// Time of its end.
    pub at: u64,
}

/// Release that was rolled back.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct QuarantinedView {
    /// Id of the release.
    pub release: String,
    /// Id of the rollout that was rolled back.
    pub rollout: String,
    /// Reason of the rollback.
    pub why: String,
    /// Time of the rollback.
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
            why: super::reason::rollback(&kept.reason),
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

/// Machine that releases run on.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct TargetView {
    /// Name of the target.
    pub name: String,
    /// Number of the target, in order of joining.
    pub index: u32,
    /// Region of the target.
    pub region: String,
    /// Zone within the region.
    pub zone: String,
    /// Labels, by which environments select it.
    pub labels: BTreeMap<String, String>,
    /// Address at which gateways reach its instances.
    pub address: String,
    /// Whether its agent is connected.
    pub connected: bool,
    /// Reason for which it is excluded from rollouts, if it is.
    pub cordoned: Option<String>,
    /// Version of its agent.
    pub agent_version: String,
    /// Time at which it first joined.
    pub joined_at: u64,
    /// Its last report about each pipeline; empty in lists.
    pub observations: Vec<ObservationView>,
    /// Revision, also sent as `ETag`.
    pub revision: u64,
}

/// A target's last report about a pipeline.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ObservationView {
    /// Name of the pipeline.
    pub pipeline: String,
    /// Release that the target should run.
    pub release: Option<String>,
    /// Progress towards the release, such as `healthy`.
    pub progress: String,
    /// Whether every service has a healthy instance.
    pub serving: bool,
    /// Instances whose processes run on the target.
    pub instances: Vec<InstanceView>,
    /// Last failure that the target reported for the release.
    pub failure: Option<TargetFailureView>,
    /// Time of the report.
    pub at: u64,
}

/// Running instance of a service.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct InstanceView {
    /// Name of the service.
    pub service: String,
    /// Id of the release.
    pub release: String,
    /// Ports by name.
    pub ports: BTreeMap<String, u16>,
    /// `starting`, `serving`, `unhealthy` or `draining`.
    pub state: String,
    /// Number of restarts.
    pub restarts: u32,
}

impl TargetView {
    /// The target without observations.
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

/// Machine that runs builds.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct RunnerView {
    /// Name of the runner.
    pub name: String,
    /// CPU offered to builds, in thousandths.
    pub cpu_millis: u32,
    /// Memory offered to builds.
    pub memory_bytes: u64,
    /// Ids of the builds that run there.
    pub builds: Vec<String>,
    /// Time of its registration.
    pub registered_at: u64,
}

impl RunnerView {
    /// The runner with the builds that run there.
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
