//! One rollout: asks `model::decide` what to do next, proposes it, and measures how long the present gate has been watched.

use std::time::{Duration, Instant};

use super::{
    leader_context::LeaderContext,
    reconciler::{ReconcileError, Reconciler, Requeue},
};
use swell_model::{
    ids::RolloutId,
    rollout::{
        Rollout, StageClock,
        decide::{Seen, next},
    },
    tables::{ReadTables, key},
    units::Millis,
};

/// How often an open rollout is reconciled when nothing changes: time passes.
const TICK: Duration = Duration::from_secs(1);

/// Steps of one reconciliation, so that one rollout never starves the others.
const STEPS_MAX: usize = 8;

/// Reconciles one rollout.
pub(super) struct RolloutReconciler {
    id: RolloutId,
    began: Instant,
    clock: StageClock,
}

impl RolloutReconciler {
    pub fn new(id: RolloutId) -> Self {
        Self { id, began: Instant::now(), clock: StageClock::default() }
    }
}

impl Reconciler for RolloutReconciler {
    const NAME: &'static str = "rollout";

    async fn reconcile(&mut self, context: &LeaderContext) -> Result<Requeue, ReconcileError> {
        for _ in 0..STEPS_MAX {
            let view = context.node.view();
            let Some(rollout) = view.get::<Rollout>(&key(self.id.0))? else { return Ok(Requeue::Done) };
            if rollout.state.is_end() {
                return Ok(Requeue::Done);
            }
            let now = Millis(self.began.elapsed().as_millis() as u64);
            let elapsed = self.clock.elapsed(&rollout, now);
            let seen = Seen::from_state(&view, &rollout, elapsed)?;
            let step = next(&view, &rollout, &seen)?;
            drop(view);
            let action = match step.action {
                Some(action) => action,
                None => match self.clock.due_record(&rollout, elapsed) {
                    Some(record) => record,
                    None => return Ok(Requeue::After(TICK)),
                },
            };
            context.propose(Self::NAME, action).await?;
        }
        Ok(Requeue::After(Duration::ZERO))
    }
}
