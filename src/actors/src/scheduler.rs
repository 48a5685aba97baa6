//! The scheduler: gives queued builds to runners as `model::build::schedule` says, as many at once as it may.

use std::time::Duration;

use futures::{StreamExt as _, stream};

use super::{
    leader_context::LeaderContext,
    reconciler::{ReconcileError, Reconciler, Requeue},
};
use swell_model::{command::BuildAction, interfaces::ProposeError};

/// How often the queue is looked at when nothing changes: a runner may have connected.
const TICK: Duration = Duration::from_secs(2);

/// Assignments proposed at once; the proposer groups them into one log entry.
const ASSIGN_AT_ONCE: usize = 256;

/// Reconciles the build queue.
pub(super) struct SchedulerReconciler;

impl Reconciler for SchedulerReconciler {
    const NAME: &'static str = "scheduler";

    async fn reconcile(&mut self, context: &LeaderContext) -> Result<Requeue, ReconcileError> {
        let connected = context.runners.connected();
        let found = {
            let projections = context.projections();
            if projections.queue.is_empty() {
                return Ok(Requeue::OnChange);
            }
            projections.queue.scheduling(|runner| connected.contains(runner))
        };
        let assign = found.schedule().assign;
        let propose =
            |(build, runner)| async move { (build, context.propose(Self::NAME, BuildAction::Assign { build, runner }).await) };
        let mut assigned = stream::iter(assign).map(propose).buffer_unordered(ASSIGN_AT_ONCE);
        let mut applied = 0;
        while let Some((build, outcome)) = assigned.next().await {
            match outcome {
                Ok(outcome) => applied = applied.max(outcome.last_event.index),
                // Canceled or assigned meanwhile: its change wakes this actor.
                Err(ProposeError::Rejected(rejection)) => tracing::debug!(%build, %rejection, "assignment rejected"),
                Err(error) => return Err(error.into()),
            }
        }
        // Else the next reconciliation would assign them again.
        context.shows(applied).await;
        Ok(Requeue::After(TICK))
    }
}
