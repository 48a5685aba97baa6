//! Back: aborting, reverting what was touched, and ending where everything is on the stable release again.

use roaring::RoaringBitmap;

use crate::{
    apply::{Check, context::Context, is_enforced},
    event::{DataKey, EventKind, Subject},
    fleet::observation::{Observation, Progress, observation_key},
    ids::{ReleaseId, RolloutId},
    rejection::{Rejection, RuleError},
    rollout::{
        EndReason, Gate, Purpose, RollbackReason, Rollout, RolloutState,
        apply::{end, illegal, move_to, open, save, start::quarantine},
        availability,
        plan_input::lost,
        reason::bounded,
    },
    tables::Tables,
    units::Millis,
};

/// Abort wins from every state that is not an end.
pub(crate) fn abort<T: Tables>(context: &mut Context<'_, T>, id: RolloutId, why: &str) -> Result<Subject, RuleError> {
    let rollout = open(context, id, "be aborted")?;
    context.event(Subject::Rollout(id), EventKind::RolloutAbortRequested).note(why);
    let (by, text) = (context.principal.clone(), bounded(why));
    match rollout.state {
        RolloutState::RollingBack => save(context, rollout),
        RolloutState::Blocked => end(context, rollout, RolloutState::Canceled, Some(EndReason::Aborted { by, text })),
        _ if rollout.touched().is_empty() => end(context, rollout, RolloutState::Canceled, Some(EndReason::Aborted { by, text })),
        _ => begin(context, rollout, RollbackReason::Aborted { by, text }),
    }
}

/// Starts going back: the release is quarantined here, and a pause is over.
pub(crate) fn begin<T: Tables>(
    context: &mut Context<'_, T>,
    mut rollout: Rollout,
    reason: RollbackReason,
) -> Result<Subject, RuleError> {
    rollout.paused = None;
    rollout.elapsed = Millis(0);
    rollout.gate = Gate::Convergence;
    move_to(context, &mut rollout, RolloutState::RollingBack, Some(&reason))?;
    // An aborted rollback went to a release that was good before, and so does one that deploys the stable release once more: nothing is
    // known against it.
    if rollout.purpose == Purpose::Deploy && rollout.stable.as_ref() != Some(&rollout.release) {
        let mut deployment = context.deployment(&rollout.environment, &rollout.pipeline)?;
        quarantine(context, &mut deployment, &rollout.release, rollout.id, reason.clone())?;
        context.tables.put(&deployment)?;
    }
    rollout.rollback_reason = Some(reason);
    if rollout.touched().is_empty() {
        return end(context, rollout, RolloutState::RolledBack, Some(EndReason::NothingChanged));
    }
    save(context, rollout)
}

/// Assigns touched targets the stable release again. Refuses what would break an invariant, whoever asks.
pub(crate) fn revert_targets<T: Tables>(
    context: &mut Context<'_, T>,
    id: RolloutId,
    targets: &RoaringBitmap,
) -> Result<Subject, RuleError> {
    let mut rollout = open(context, id, "revert targets")?;
    if rollout.state != RolloutState::RollingBack || !targets.is_subset(&rollout.touched()) {
        return Err(illegal(&rollout, "revert targets that it did not touch, or while it goes forward"));
    }
    // Before this step: who was not back in time does not keep the others.
    rollout.sets.given_up = rollout.given_up();
    for index in targets - &rollout.sets.reverted {
        let observed: Option<Observation> = context.tables.get(&observation_key(&rollout.pipeline, index))?;
        if is_restored(rollout.stable.as_ref(), observed.as_ref()) {
            // A target that was changed and reverted before it noticed reports nothing new: its last report counts.
            rollout.sets.restored.insert(index);
        } else if !observed.is_some_and(|observation| observation.report.serving) {
            rollout.sets.down_before_revert.insert(index);
        }
    }
    rollout.sets.reverted |= targets;
    let members = context.environment(&rollout.environment)?.members;
    let lost = lost(context.tables)?;
    if is_enforced(Check::RollbackAvailability)
        && let Some(bound) = availability::violation_going_back(&rollout, &members, &lost, targets)
    {
        return Err(Rejection::TooManyUnavailable { subject: Subject::Rollout(id), bound }.into());
    }
    rollout.elapsed = Millis(0);
    context.event(Subject::Rollout(id), EventKind::RolloutTargetsReverted).data(DataKey::Targets, targets.len());
    save(context, rollout)
}

/// Whether a target is back on the stable release, by its last report; stopped, where there is none.
fn is_restored(stable: Option<&ReleaseId>, observed: Option<&Observation>) -> bool {
    match (stable, observed) {
        // It never noticed anything of this pipeline that it would have reported.
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
    let all_reverted = touched.is_subset(&rollout.sets.reverted) || !is_enforced(Check::EveryTargetReverted);
    if rollout.state != RolloutState::RollingBack || !all_reverted {
        return Err(illegal(&rollout, "finish rolling back before every touched target was"));
    }
    let missing = touched - &rollout.sets.restored;
    let absent = &missing & unreachable;
    rollout.sets.unreachable |= &absent;
    let stuck = &missing - unreachable;
    if stuck.is_empty() {
        let reason = EndReason::Restored { unreachable: absent.len() };
        return end(context, rollout, RolloutState::RolledBack, Some(reason));
    }
    let reason = EndReason::NotRestored { targets: stuck.len() };
    rollout.sets.unrestored = stuck;
    end(context, rollout, RolloutState::Failed, Some(reason))
}
