//! One build: gives its attempt up when the runner does not take it, has lost it, or is silent for longer than the grace.

use std::time::{Duration, Instant};

use super::{
    leader_context::LeaderContext,
    reconciler::{ReconcileError, Reconciler, Requeue},
};
use swell_model::{
    build::{AttemptEnd, Build, decide::lost},
    command::BuildAction,
    ids::BuildId,
    tables::{ReadTables, key},
    units::Millis,
};

/// How often a build at work is reconciled when nothing changes: its runner may be silent.
const TICK: Duration = Duration::from_secs(1);

/// Reconciles one build.
pub(super) struct BuildReconciler {
    id: BuildId,
    /// The attempt that this leader watches, and since when.
    watched: Option<(u32, Instant)>,
}

impl BuildReconciler {
    pub fn new(id: BuildId) -> Self {
        Self { id, watched: None }
    }
}

impl Reconciler for BuildReconciler {
    const NAME: &'static str = "build";

    async fn reconcile(&mut self, context: &LeaderContext) -> Result<Requeue, ReconcileError> {
        let Some(build) = context.node.view().get::<Build>(&key(self.id.0))? else { return Ok(Requeue::Done) };
        if build.state.is_end() {
            return Ok(Requeue::Done);
        }
        // Without an attempt it is the scheduler's; an assignment is an event that wakes this actor.
        let Some(attempt) = build.live_attempt() else { return Ok(Requeue::OnChange) };
        let since = match self.watched {
            Some((number, since)) if number == attempt.number => since,
            _ => Instant::now(),
        };
        self.watched = Some((attempt.number, since));
        let heard = context.runners.heard(&attempt.runner, (self.id, attempt.number));
        let Some(why) = lost(attempt, heard, Millis(since.elapsed().as_millis() as u64)) else { return Ok(Requeue::After(TICK)) };
        let end = AttemptEnd::Lost(why);
        context.propose(Self::NAME, BuildAction::End { build: self.id, attempt: attempt.number, end, log: None }).await?;
        Ok(Requeue::After(Duration::ZERO))
    }
}
