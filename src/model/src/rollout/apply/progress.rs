//! What targets report, as the open rollouts count it: one write a rollout for a whole batch of reports.

use std::collections::BTreeMap;

use roaring::RoaringBitmap;

use crate::{
    apply::context::Context,
    event::{DataKey, EventKind, Subject},
    fleet::observation::{Observation, Progress as Observed},
    ids::RolloutId,
    rejection::RuleError,
    rollout::{FAILURES_KEPT_MAX, FailedTarget, OpenRollout, Rollout, RolloutState},
    tables::{SCAN_RECORDS_MAX, Scan, Tables},
    units::Timestamp,
};

/// The open rollouts that a batch of reports touches.
#[derive(Default)]
pub(crate) struct Progress {
    /// The rollout at work, of each pipeline that reported. Several, where it is in several environments.
    rollouts: BTreeMap<RolloutId, (Rollout, RoaringBitmap, bool)>,
    loaded: bool,
}

impl Progress {
    /// Counts one report.
    pub fn observe<T: Tables>(&mut self, context: &mut Context<'_, T>, observation: &Observation) -> Result<(), RuleError> {
        if !self.loaded {
            self.loaded = true;
            for open in context.tables.scan::<OpenRollout>(&Scan::all(), SCAN_RECORDS_MAX)? {
                let rollout = context.rollout(open.rollout)?;
                if rollout.state == RolloutState::Blocked {
                    continue;
                }
                let touched = rollout.touched();
                self.rollouts.insert(open.rollout, (rollout, touched, false));
            }
        }
        for (rollout, touched, counted) in self.rollouts.values_mut() {
            if rollout.pipeline == observation.report.pipeline && touched.contains(observation.target) {
                *counted |= count(rollout, observation, context.at);
            }
        }
        Ok(())
    }

    /// Writes the rollouts that changed.
    pub fn save<T: Tables>(self, context: &mut Context<'_, T>) -> Result<(), RuleError> {
        for (mut rollout, _, counted) in self.rollouts.into_values() {
            if !counted {
                continue;
            }
            let sets = &rollout.sets;
            let event = context.event(Subject::Rollout(rollout.id), EventKind::RolloutProgressed);
            event
                .data(DataKey::Changed, sets.changed.len())
                .data(DataKey::Healthy, sets.healthy.len())
                .data(DataKey::Failed, sets.failed.len());
            if rollout.state == RolloutState::RollingBack {
                event.data(DataKey::Restored, sets.restored.len());
            }
            rollout.revision = context.index;
            context.tables.put(&rollout)?;
        }
        Ok(())
    }
}

/// Moves the target between the rollout's sets. Says whether anything changed.
fn count(rollout: &mut Rollout, observation: &Observation, at: Timestamp) -> bool {
    let (target, report) = (observation.target, &observation.report);
    let mut changed = false;
    let mut set = |bitmap: &mut roaring::RoaringBitmap, member: bool| {
        changed |= if member { bitmap.insert(target) } else { bitmap.remove(target) };
    };
    set(&mut rollout.sets.unserving, !report.serving);
    let reverting = rollout.sets.reverted.contains(target);
    let about = if reverting { report.release == rollout.stable } else { report.release.as_ref() == Some(&rollout.release) };
    let failed = about && matches!(report.progress, Observed::Failed | Observed::Unhealthy);
    if reverting {
        let restored = if rollout.stable.is_none() { Observed::Stopped } else { Observed::Healthy };
        let restored = about && report.progress == restored;
        set(&mut rollout.sets.restored, restored);
        if restored {
            // From now on its failures are ours.
            set(&mut rollout.sets.down_before_revert, false);
            set(&mut rollout.sets.given_up, false);
        }
        set(&mut rollout.sets.unrestored, failed);
    } else if rollout.sets.changed.contains(target) {
        let healthy = about && report.progress == Observed::Healthy;
        set(&mut rollout.sets.healthy, healthy);
        if healthy {
            // From now on its failures are ours.
            set(&mut rollout.sets.down_before, false);
        }
        set(&mut rollout.sets.failed, failed);
    }
    let known = rollout.failures.iter().any(|kept| kept.target == target && kept.reverting == reverting);
    if let Some(failure) = report.failure.as_ref().filter(|_| failed && !known && rollout.failures.len() < FAILURES_KEPT_MAX) {
        rollout.failures.push(FailedTarget { target, reverting, failure: failure.clone(), at });
        changed = true;
    }
    changed
}
