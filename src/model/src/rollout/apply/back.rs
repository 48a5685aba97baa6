//! Back: aborting, reverting what was touched, and ending where everything is on the stable release again.

use roaring::RoaringBitmap;

use crate::rollout::apply::{end, illegal, move_to, open, save, start::quarantine};
use crate::{
    apply::context::Context,
    event::{DataKey, EventKind, Subject},
    fleet::observation::{Observation, Progress, observation_key},
    ids::{ReleaseId, RolloutId},
    rejection::RuleError,
    rollout::{Gate, Purpose, Rollout, RolloutState},
    tables::Tables,
    units::Millis,
};

/// Abort wins from every state that is not an end.
pub(crate) fn abort<T: Tables>(context: &mut Context<'_, T>, id: RolloutId, why: &str) -> Result<Subject, RuleError> {
    let rollout = open(context, id, "be aborted")?;
    context.event(Subject::Rollout(id), EventKind::RolloutAbortRequested).note(why);
    match rollout.state {
        RolloutState::RollingBack => save(context, rollout),
        RolloutState::Blocked => end(context, rollout, RolloutState::Canceled, Some(why)),
        _ if rollout.touched().is_empty() => end(context, rollout, RolloutState::Canceled, Some(why)),
        _ => begin(context, rollout, why),
    }
}

/// Starts going back: the release is quarantined here, and a pause is over.
pub(crate) fn begin<T: Tables>(context: &mut Context<'_, T>, mut rollout: Rollout, why: &str) -> Result<Subject, RuleError> {
    rollout.paused = None;
    rollout.elapsed = Millis(0);
    rollout.gate = Gate::Convergence;
    rollout.why = Some(why.to_owned());
    move_to(context, &mut rollout, RolloutState::RollingBack, Some(why))?;
    // An aborted rollback went to a release that was good before, and so does one that deploys the stable release once more: nothing is
    // known against it.
    if rollout.purpose == Purpose::Deploy && rollout.stable.as_ref() != Some(&rollout.release) {
        let mut deployment = context.deployment(&rollout.environment, &rollout.pipeline)?;
        quarantine(context, &mut deployment, &rollout.release, rollout.id, why)?;
        context.tables.put(&deployment)?;
    }
    if rollout.touched().is_empty() {
        return end(context, rollout, RolloutState::RolledBack, Some("nothing was changed"));
    }
    save(context, rollout)
}

/// Tells touched targets to go back to the stable release.
pub(crate) fn revert_targets<T: Tables>(
    context: &mut Context<'_, T>,
    id: RolloutId,
    targets: &RoaringBitmap,
) -> Result<Subject, RuleError> {
    let mut rollout = open(context, id, "revert targets")?;
    if rollout.state != RolloutState::RollingBack || !targets.is_subset(&rollout.touched()) {
        return Err(illegal(&rollout, "revert targets that it did not touch, or while it goes forward"));
    }
    for index in targets {
        let observed: Option<Observation> = context.tables.get(&observation_key(&rollout.pipeline, index))?;
        // What was told both ways before it noticed says nothing new: what it said last counts, until it says something else.
        if is_restored(rollout.stable.as_ref(), observed.as_ref()) {
            rollout.sets.restored.insert(index);
        }
    }
    rollout.sets.reverted |= targets;
    rollout.elapsed = Millis(0);
    context.event(Subject::Rollout(id), EventKind::RolloutTargetsReverted).data(DataKey::Targets, targets.len());
    save(context, rollout)
}

/// Whether a target is back on the stable release, by what it said last; stopped, where there is none.
fn is_restored(stable: Option<&ReleaseId>, observed: Option<&Observation>) -> bool {
    match (stable, observed) {
        // It was never told anything of this pipeline that it would have answered.
        (None, None) => true,
        (Some(_), None) => false,
        (stable, Some(observed)) => {
            let wanted = if stable.is_some() { Progress::Healthy } else { Progress::Stopped };
            observed.report.release.as_ref() == stable && observed.report.progress == wanted
        }
    }
}

/// Ends going back: everything touched is restored or unreachable, or a person is needed.
pub(crate) fn finish_rollback<T: Tables>(
    context: &mut Context<'_, T>,
    id: RolloutId,
    unreachable: &RoaringBitmap,
) -> Result<Subject, RuleError> {
    let mut rollout = open(context, id, "finish rolling back")?;
    // A target that left the environment counts against no one.
    let touched = rollout.touched() & context.environment(&rollout.environment)?.members;
    if rollout.state != RolloutState::RollingBack || !touched.is_subset(&rollout.sets.reverted) {
        return Err(illegal(&rollout, "finish rolling back before every touched target was told to"));
    }
    let missing = touched - &rollout.sets.restored;
    let absent = &missing & unreachable;
    rollout.sets.unreachable |= &absent;
    let stuck = &missing - unreachable;
    if stuck.is_empty() {
        let note = match (&rollout.stable, absent.len()) {
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
