//! How long the present stage of a rollout has been watched: what state knows, plus what the present leader saw since. Only monotonic
//! time counts, so that a new leader expires nothing early and a jump of the wall clock promotes nothing.

use crate::{
    command::RolloutAction,
    rollout::{ELAPSED_EVERY, Gate, Rollout, RolloutState},
    units::Millis,
};

/// What is watched. Any change of it starts the watch anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stage {
    state: RolloutState,
    wave: u32,
    gate: Gate,
    changed: u64,
    reverted: u64,
    paused: bool,
}

impl Stage {
    fn of(rollout: &Rollout) -> Self {
        Self {
            state: rollout.state,
            wave: rollout.wave,
            gate: rollout.gate,
            changed: rollout.sets.changed.len(),
            reverted: rollout.sets.reverted.len(),
            paused: rollout.paused.is_some(),
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Watch {
    stage: Stage,
    since: Millis,
    /// What state knew when the watch began.
    before: Millis,
    recorded: Millis,
}

/// The watch over one rollout. Moments are given as milliseconds of one monotonic clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct StageClock {
    watch: Option<Watch>,
}

impl StageClock {
    /// How long the present stage has been watched. Time does not count while the rollout is paused.
    pub fn elapsed(&mut self, rollout: &Rollout, now: Millis) -> Millis {
        let stage = Stage::of(rollout);
        let watch = match self.watch {
            Some(watch) if watch.stage == stage => watch,
            _ => Watch { stage, since: now, before: rollout.elapsed, recorded: rollout.elapsed },
        };
        self.watch = Some(watch);
        let seen = if stage.paused { 0 } else { now.0.saturating_sub(watch.since.0) };
        Millis(watch.before.0 + seen)
    }

    /// What to record of the time that [`StageClock::elapsed`] returned, every [`ELAPSED_EVERY`].
    pub fn due_record(&mut self, rollout: &Rollout, elapsed: Millis) -> Option<RolloutAction> {
        let watch = self.watch.as_mut()?;
        if rollout.state == RolloutState::Blocked || elapsed.0 < watch.recorded.0 + ELAPSED_EVERY.0 {
            return None;
        }
        watch.recorded = elapsed;
        let (wave, gate, targets) = (rollout.wave, rollout.gate, rollout.targets_assigned());
        Some(RolloutAction::RecordElapsed { rollout: rollout.id, wave, gate, targets, elapsed })
    }
}
