//! The subjects that a leader moves forward, one controller each.

use std::sync::Arc;

use ractor::{ActorCell, SpawnErr};

use super::{
    build::BuildReconciler,
    leader_context::LeaderContext,
    pipeline::PipelineReconciler,
    reconciler::{self, Waker},
    rollout::RolloutReconciler,
    scheduler::SchedulerReconciler,
};
use swell_model::{
    event::Subject,
    ids::{BuildId, PipelineName, RolloutId},
};

/// What an actor of the leader is responsible for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Controller {
    Scheduler,
    Pipeline(PipelineName),
    Build(BuildId),
    Rollout(RolloutId),
}

impl Controller {
    /// Where a failure of the actor is recorded.
    pub fn subject(&self) -> Subject {
        match self {
            Controller::Scheduler => Subject::Cluster,
            Controller::Pipeline(name) => Subject::Pipeline(name.clone()),
            Controller::Build(id) => Subject::Build(*id),
            Controller::Rollout(id) => Subject::Rollout(*id),
        }
    }

    /// Starts the actor.
    pub async fn spawn(&self, context: Arc<LeaderContext>, supervisor: ActorCell) -> Result<Waker, SpawnErr> {
        match self {
            Controller::Scheduler => reconciler::spawn(SchedulerReconciler, context, supervisor).await,
            Controller::Pipeline(name) => reconciler::spawn(PipelineReconciler::new(name.clone()), context, supervisor).await,
            Controller::Build(id) => reconciler::spawn(BuildReconciler::new(*id), context, supervisor).await,
            Controller::Rollout(id) => reconciler::spawn(RolloutReconciler::new(*id), context, supervisor).await,
        }
    }
}
