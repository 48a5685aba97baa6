//! One rollout: asks `model::decide` what to do next, proposes it, and measures how long the present gate has been watched.

use std::time::{Duration, Instant};

use super::{
    leader_context::LeaderContext,
    reconciler::{ReconcileError, Reconciler, Requeue},
};
use swell_model::{
    command::RolloutAction,
    fleet::Environment,
    ids::RolloutId,
    rollout::{
        Deployment, ELAPSED_EVERY, Gate, Rollout, RolloutState,
        decide::{Seen, next},
        deployment_key,
        plan_input::blocked,
    },
    tables::{ReadTables, TablesError, key},
    units::Millis,
};

/// How often an open rollout is reconciled when nothing changes: time passes.
const TICK: Duration = Duration::from_secs(1);

/// Steps of one reconciliation, so that one rollout never starves the others.
const STEPS_MAX: usize = 8;

/// What is being watched: any change of it starts the watch anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stage {
    state: RolloutState,
    wave: u32,
    gate: Gate,
    changed: u64,
    reverted: u64,
    paused: bool,
}

/// Reconciles one rollout.
pub(super) struct RolloutReconciler {
    id: RolloutId,
    watch: Option<Watch>,
}

#[derive(Debug, Clone, Copy)]
struct Watch {
    stage: Stage,
    since: Instant,
    before: Millis,
    recorded: Millis,
}

impl RolloutReconciler {
    pub fn new(id: RolloutId) -> Self {
        Self { id, watch: None }
    }

    /// How long the present stage has been watched: what state knows plus what this leader saw since.
    fn elapsed(&mut self, rollout: &Rollout) -> Millis {
        let sets = &rollout.sets;
        let stage = Stage {
            state: rollout.state,
            wave: rollout.wave,
            gate: rollout.gate,
            changed: sets.changed.len(),
            reverted: sets.reverted.len(),
            paused: rollout.paused.is_some(),
        };
        let watch = match self.watch {
            Some(watch) if watch.stage == stage => watch,
            _ => Watch { stage, since: Instant::now(), before: rollout.elapsed, recorded: rollout.elapsed },
        };
        self.watch = Some(watch);
        let seen = if stage.paused { Millis(0) } else { Millis(watch.since.elapsed().as_millis() as u64) };
        Millis(watch.before.0 + seen.0)
    }

    /// What to record of the elapsed time, if enough passed since it was recorded last.
    fn due_record(&mut self, rollout: &Rollout, elapsed: Millis) -> Option<RolloutAction> {
        let watch = self.watch.as_mut()?;
        if rollout.state == RolloutState::Blocked || elapsed.0 < watch.recorded.0 + ELAPSED_EVERY.0 {
            return None;
        }
        watch.recorded = elapsed;
        Some(RolloutAction::RecordElapsed { rollout: rollout.id, wave: rollout.wave, gate: rollout.gate, elapsed })
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
            // Going back also concerns targets that are in no wave, such as cordoned ones that the rollout before had changed.
            let (connected, lost) = context.presence.of(&(rollout.plan.targets() | rollout.touched()));
            let elapsed = self.elapsed(&rollout);
            let blocked = if rollout.state == RolloutState::Blocked { still_blocked(&view, &rollout)? } else { None };
            let seen = Seen { connected: &connected, lost: &lost, elapsed, blocked: blocked.as_ref() };
            let step = next(&view, &rollout, seen)?;
            drop(view);
            let action = match step.action {
                Some(action) => action,
                None => match self.due_record(&rollout, elapsed) {
                    Some(record) => record,
                    None => return Ok(Requeue::After(TICK)),
                },
            };
            context.propose(Self::NAME, action).await?;
        }
        Ok(Requeue::After(Duration::ZERO))
    }
}

fn still_blocked<T: ReadTables>(view: &T, rollout: &Rollout) -> Result<Option<swell_model::rollout::Blocked>, TablesError> {
    let Some(environment) = view.get::<Environment>(&key(rollout.environment.as_str()))? else { return Ok(None) };
    let deployment: Option<Deployment> = view.get(&deployment_key(&rollout.environment, &rollout.pipeline))?;
    Ok(blocked(&environment, deployment.as_ref(), rollout.purpose))
}
