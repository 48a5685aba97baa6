//! Back: aborting, reverting what was touched, and ending where everything is on the stable release again.

use roaring::RoaringBitmap;

use super::{end, illegal, move_to, open, save, start::quarantine};
use crate::model::{
    apply::context::Context,
    event::Subject,
    ids::RolloutId,
    rejection::RuleError,
    rollout::{Gate, Rollout, RolloutState},
    tables::Tables,
    units::Millis,
};

/// Abort wins from every state that is not an end.
pub(super) fn abort<T: Tables>(context: &mut Context<'_, T>, id: RolloutId, why: &str) -> Result<Subject, RuleError> {
    let rollout = open(context, id, "be aborted")?;
    context.event(Subject::Rollout(id), "rollout.abort_asked").note(why);
    match rollout.state {
        RolloutState::RollingBack => save(context, rollout),
        _ if rollout.sets.changed.is_empty() => end(context, rollout, RolloutState::Canceled, Some(why)),
        _ => begin(context, rollout, why),
    }
}

/// Starts going back: the release is quarantined here, and a pause is over.
pub(super) fn begin<T: Tables>(context: &mut Context<'_, T>, mut rollout: Rollout, why: &str) -> Result<Subject, RuleError> {
    rollout.paused = None;
    rollout.elapsed = Millis(0);
    rollout.gate = Gate::Convergence;
    rollout.why = Some(why.to_owned());
    move_to(context, &mut rollout, RolloutState::RollingBack, Some(why))?;
    let mut deployment = context.deployment(&rollout.environment, &rollout.pipeline)?;
    quarantine(context, &mut deployment, &rollout.release, rollout.id, why);
    context.tables.put(&deployment)?;
    if rollout.sets.changed.is_empty() {
        return end(context, rollout, RolloutState::RolledBack, Some("nothing was changed"));
    }
    save(context, rollout)
}

/// Tells touched targets to go back to the stable release.
pub(super) fn revert_targets<T: Tables>(
    context: &mut Context<'_, T>,
    id: RolloutId,
    targets: &RoaringBitmap,
) -> Result<Subject, RuleError> {
    let mut rollout = open(context, id, "revert targets")?;
    if rollout.state != RolloutState::RollingBack || !targets.is_subset(&rollout.sets.changed) {
        return Err(illegal(&rollout, "revert targets that it did not touch, or while it goes forward"));
    }
    rollout.sets.reverted |= targets;
    rollout.elapsed = Millis(0);
    context.event(Subject::Rollout(id), "rollout.targets_reverted").data("targets", targets.len());
    save(context, rollout)
}

/// Ends going back: everything touched is restored or unreachable, or a person is needed.
pub(super) fn finish_rollback<T: Tables>(
    context: &mut Context<'_, T>,
    id: RolloutId,
    unreachable: &RoaringBitmap,
) -> Result<Subject, RuleError> {
    let mut rollout = open(context, id, "finish rolling back")?;
    if rollout.state != RolloutState::RollingBack || rollout.sets.reverted != rollout.sets.changed {
        return Err(illegal(&rollout, "finish rolling back before every touched target was told to"));
    }
    let missing = &rollout.sets.reverted - &rollout.sets.restored;
    rollout.sets.unreachable |= &missing & unreachable;
    let stuck = &missing - unreachable;
    if stuck.is_empty() {
        let note = match (&rollout.stable, rollout.sets.unreachable.len()) {
            (None, _) => "there was no release to go back to: what it started is stopped".to_owned(),
            (Some(stable), 0) => format!("every touched target is back on {stable}"),
            (Some(stable), count) => format!("back on {stable}; {count} unreachable targets converge when they return"),
        };
        return end(context, rollout, RolloutState::RolledBack, Some(&note));
    }
    rollout.sets.unrestored = stuck;
    let note = format!("{} targets could not go back; a person is needed", rollout.sets.unrestored.len());
    end(context, rollout, RolloutState::Failed, Some(&note))
}
