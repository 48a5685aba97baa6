//! Forward: changing targets wave by wave, and what the gates conclude.

use roaring::RoaringBitmap;

use crate::{
    apply::{Check, context::Context, is_enforced},
    event::{DataKey, EventKind, Subject},
    fleet::{
        Target,
        observation::{Observation, Progress, Report, observation_key},
    },
    ids::RolloutId,
    rejection::{Rejection, RuleError},
    rollout::{
        EndReason, Evidence, Gate, PauseReason, Purpose, RollbackReason, Rollout, RolloutState, Verdict, VerdictRecord,
        WaveTally,
        apply::{back, end, illegal, move_to, open, pause, save},
        assignment::assigned_release,
        availability,
        plan_input::lost,
        reason::{EventReason, bounded},
    },
    tables::{Tables, key},
    units::Millis,
};

/// Assigns targets of the present wave the release. Refuses what would break an invariant, whoever asks.
pub(crate) fn change_targets<T: Tables>(
    context: &mut Context<'_, T>,
    id: RolloutId,
    targets: &RoaringBitmap,
    unreachable: &RoaringBitmap,
) -> Result<Subject, RuleError> {
    let mut rollout = open(context, id, "change targets")?;
    if !rollout.state.is_forward() || rollout.gate != Gate::Convergence || rollout.paused.is_some() {
        return Err(illegal(&rollout, "change targets now"));
    }
    let members = context.environment(&rollout.environment)?.members;
    let wave = rollout.wave_targets(&members);
    if !(targets | unreachable).is_subset(&wave) || !targets.is_disjoint(&rollout.sets.changed) {
        return Err(illegal(&rollout, "change targets of another wave, or that left, or twice"));
    }
    let deployment = context.deployment(&rollout.environment, &rollout.pipeline)?;
    for index in targets {
        if context.tables.get::<Target>(&key(index))?.is_some_and(|target| target.cordoned.is_some()) {
            return Err(illegal(&rollout, "change a cordoned target"));
        }
        let observed: Option<Observation> = context.tables.get(&observation_key(&rollout.pipeline, index))?;
        let report = observed.map(|observation| observation.report);
        if !report.as_ref().is_some_and(|report| report.serving) {
            rollout.sets.down_before.insert(index);
        }
        // A target that was assigned this release already reports nothing new: its last report counts.
        let is_healthy =
            |report: Report| report.release.as_ref() == Some(&rollout.release) && report.progress == Progress::Healthy;
        let assigned = assigned_release(&deployment, Some(&rollout), index);
        if assigned.as_ref() == Some(&rollout.release) && report.is_some_and(is_healthy) {
            rollout.sets.healthy.insert(index);
            rollout.sets.down_before.remove(index);
        }
    }
    let first_batch = rollout.sets.changed.is_empty();
    let planned = rollout.plan.waves.get(rollout.wave as usize);
    rollout.sets.late |= planned.map_or_else(|| targets.clone(), |wave| targets - &wave.targets);
    rollout.sets.changed |= targets;
    rollout.sets.unreachable |= unreachable;
    rollout.sets.unreachable -= &rollout.sets.changed;
    if is_enforced(Check::Availability)
        && let Some(bound) = availability::violation(&rollout, &members, targets)
    {
        return Err(Rejection::TooManyUnavailable { subject: Subject::Rollout(id), bound }.into());
    }
    if !targets.is_empty() {
        // The deadline is a batch's: a new one has all of it.
        rollout.elapsed = Millis(0);
    }
    let event = context.event(Subject::Rollout(id), EventKind::RolloutTargetsChanged);
    event
        .data(DataKey::Wave, rollout.wave + 1)
        .data(DataKey::Targets, targets.len())
        .data(DataKey::Unreachable, unreachable.len());
    if rollout.state == RolloutState::Deploying && !rollout.settings.canary && !first_batch {
        move_to(context, &mut rollout, RolloutState::RollingOut, None)?;
    }
    save(context, rollout)
}

/// Keeps how long the present gate has been watched, so that a new leader goes on from there.
pub(crate) fn record_elapsed<T: Tables>(
    context: &mut Context<'_, T>,
    id: RolloutId,
    (wave, gate, targets): (u32, Gate, u64),
    elapsed: Millis,
) -> Result<Subject, RuleError> {
    let mut rollout = open(context, id, "be watched")?;
    if (rollout.wave, rollout.gate, rollout.targets_assigned()) != (wave, gate, targets) || elapsed < rollout.elapsed {
        return Err(illegal(&rollout, "be watched at another gate or batch, or backwards"));
    }
    rollout.elapsed = elapsed;
    save(context, rollout)
}

/// Records what a gate concluded and takes the step that follows from it.
pub(crate) fn record_verdict<T: Tables>(
    context: &mut Context<'_, T>,
    id: RolloutId,
    wave: u32,
    gate: Gate,
    verdict: Verdict,
    evidence: &Evidence,
) -> Result<Subject, RuleError> {
    let rollout = open(context, id, "be judged")?;
    judge(context, rollout, (wave, gate), verdict, evidence.clone())
}

fn judge<T: Tables>(
    context: &mut Context<'_, T>,
    mut rollout: Rollout,
    (wave, gate): (u32, Gate),
    verdict: Verdict,
    evidence: Evidence,
) -> Result<Subject, RuleError> {
    let id = rollout.id;
    if !rollout.state.is_forward() || (rollout.wave, rollout.gate) != (wave, gate) {
        return Err(illegal(&rollout, "be judged at another gate"));
    }
    if rollout.paused.is_some() && verdict == Verdict::Pass {
        return Err(illegal(&rollout, "go on while it is paused"));
    }
    if verdict != Verdict::Fail && is_enforced(Check::Verdict) {
        let members = context.environment(&rollout.environment)?.members;
        check_passable(&rollout, &members, &lost(context.tables)?, verdict)?;
    }
    let event = context.event(Subject::Rollout(id), EventKind::RolloutGateJudged);
    event.data(DataKey::Wave, wave + 1).data(DataKey::Gate, gate.name()).data(DataKey::Verdict, verdict.name());
    evidence.describe(event);
    let (by, at) = (context.principal.clone(), context.at);
    rollout.verdicts.push(VerdictRecord { wave, gate, verdict, evidence: evidence.clone(), by, at });
    match verdict {
        Verdict::Pass | Verdict::Overridden => pass(context, rollout),
        // There is nothing better to go back to: its targets stay assigned the release, and a person looks.
        Verdict::Fail if rollout.purpose == Purpose::Rollback => {
            end(context, rollout, RolloutState::Failed, Some(EndReason::Verdict { wave, gate, evidence }))
        }
        Verdict::Fail if rollout.settings.irreversible => {
            pause(context, &mut rollout, PauseReason::Irreversible(evidence));
            save(context, rollout)
        }
        Verdict::Fail => back::begin(context, rollout, RollbackReason::Verdict { wave, gate, evidence }),
    }
}

/// A verdict may be late: what its gate guards must hold when it is applied, not only when it was reached. Deliberately computed again
/// from the sets, and stricter than `decide`: at a passing convergence whoever is not healthy counts as failed, whatever the deadline.
fn check_passable(rollout: &Rollout, members: &RoaringBitmap, lost: &RoaringBitmap, verdict: Verdict) -> Result<(), RuleError> {
    let mut tally = WaveTally::new(rollout, members);
    let at_convergence = rollout.gate == Gate::Convergence;
    // Nobody passes a wave that was not changed: what is left of it would change at once when the rollout ends.
    if at_convergence && !tally.unchanged().is_subset(&rollout.sets.unreachable) {
        return Err(illegal(rollout, "pass a wave that has targets left to change"));
    }
    if verdict == Verdict::Overridden {
        return Ok(());
    }
    if rollout.purpose == Purpose::Deploy && !tally.judged.is_empty() && tally.judged.is_disjoint(&tally.healthy) {
        return Err(illegal(rollout, "pass a wave that has no healthy target"));
    }
    if at_convergence {
        let mut unhealthy = &tally.changed - &tally.healthy;
        if rollout.purpose == Purpose::Rollback {
            // It goes back without the lost ones: they converge when they return.
            unhealthy -= lost;
        }
        tally = tally.with_overdue(rollout, unhealthy);
    }
    if tally.has_too_many_failures() {
        return Err(illegal(rollout, "pass a gate while more targets fail than may"));
    }
    Ok(())
}

/// A person passes the present gate, whatever it would say.
pub(crate) fn promote<T: Tables>(context: &mut Context<'_, T>, id: RolloutId, why: &str) -> Result<Subject, RuleError> {
    let mut rollout = open(context, id, "be promoted")?;
    if !rollout.state.is_forward() {
        return Err(illegal(&rollout, "be promoted"));
    }
    rollout.paused = None;
    let (wave, gate) = (rollout.wave, rollout.gate);
    judge(context, rollout, (wave, gate), Verdict::Overridden, Evidence::Promoted(bounded(why)))
}

/// What follows a passed gate: the bake, the next wave, or the end.
fn pass<T: Tables>(context: &mut Context<'_, T>, mut rollout: Rollout) -> Result<Subject, RuleError> {
    rollout.elapsed = Millis(0);
    let last = rollout.is_last_wave();
    let bakes = rollout.settings.bake > Millis(0) && !last;
    if rollout.gate == Gate::Convergence && bakes {
        rollout.gate = Gate::Bake;
        if rollout.settings.canary && rollout.wave == 0 {
            move_to(context, &mut rollout, RolloutState::CanaryCheck, None)?;
        }
        return save(context, rollout);
    }
    if last {
        return end(context, rollout, RolloutState::Deployed, None);
    }
    rollout.gate = Gate::Convergence;
    rollout.wave += 1;
    rollout.sets.late.clear();
    if rollout.state != RolloutState::RollingOut {
        move_to(context, &mut rollout, RolloutState::RollingOut, None)?;
    }
    context
        .event(Subject::Rollout(rollout.id), EventKind::RolloutWaveStarted)
        .data(DataKey::Wave, rollout.wave + 1)
        .data(DataKey::Waves, rollout.plan.waves.len());
    save(context, rollout)
}
